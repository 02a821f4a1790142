"""What the study reads: personas, questions, prompts, questionnaire; chosen, disjoint, hashed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.data.items import load_ipip120
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.engine.model import Model
from persona_jax.personas.baselines import load_placebo_texts
from persona_jax.personas.persona import Persona, load_personas, load_questions
from persona_jax.scorers.choice import ChoiceItem, Choices, load_choice_items, rating_items
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.start import begin

Poles = dict[str, tuple[tuple[str, int], ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
  """Everything that the study reads.

  Attributes:
    personas: of the study, in order.
    placebo: personas of the placebo contrasts.
    placebo_texts: system messages that describe nobody, a replicate each.
    questions: of each replicate, for directions; no question is in two.
    harmful, harmless: prompts that the refusal direction is made of.
    held_out_harmful, held_out_harmless: prompts that it is chosen by.
    calibration: harmless prompts of doses and matches.
    test: harmful prompts that outcomes are measured on.
    twins: harmless partners of test prompts.
    questionnaire: of trait expression.
  """

  personas: tuple[Persona, ...]
  placebo: tuple[Persona, ...]
  placebo_texts: tuple[str, ...]
  questions: tuple[tuple[str, ...], ...]
  harmful: tuple[PromptItem, ...]
  harmless: tuple[PromptItem, ...]
  held_out_harmful: tuple[PromptItem, ...]
  held_out_harmless: tuple[PromptItem, ...]
  calibration: tuple[PromptItem, ...]
  test: tuple[PromptItem, ...]
  twins: tuple[PromptItem, ...]
  questionnaire: Choices

  @property
  def replicates(self) -> int:
    """Paraphrases of every persona."""
    return len(self.questions)

  @property
  def traits(self) -> list[str]:
    """Traits of the personas, in the order of their lexicon."""
    used = {trait for persona in self.personas for trait in persona.traits}
    return [trait for trait in self.personas[0].lexicon.traits if trait in used]

  @property
  def poles(self) -> Poles:
    """(trait, sign) of every persona's poles."""
    return {p.name: tuple((pole.trait, pole.sign) for pole in p.poles) for p in self.personas}

  def hashes(self) -> dict[str, str]:
    """Return a hash of each part."""
    parts = {
      name: data_hash(getattr(self, name))
      for name in (
        "harmful", "harmless", "held_out_harmful", "held_out_harmless", "calibration", "test",
        "twins",
      )
    }  # fmt: skip
    texts = {
      p.name: [p.text(k) for k in range(self.replicates)] for p in (*self.personas, *self.placebo)
    }
    return parts | {
      "personas": content_hash([texts, self.placebo_texts]),
      "questions": content_hash(self.questions),
      "questionnaire": content_hash(
        [dataclasses.asdict(item) for item in self.questionnaire.items]
      ),
    }


def load_material(settings: Settings) -> Material:
  """Read and choose everything that the study needs.

  Prompts are drawn by the seed, harmful ones by whole clusters: near-copies of a prompt that the
  refusal direction was made of do not come again in the test.

  Raises:
    ValueError: too few prompts or questions, a persona that is not there, harmless prompts that are
      twins of harmful ones, or texts in two parts.
    FileNotFoundError: a wheel was not fetched, or a file is not there.
  """
  personas = tuple(load_personas(settings.personas, settings.persona_set))
  names = [persona.name for persona in personas]
  if settings.named not in names:
    raise ValueError(f"named={settings.named!r}: the personas are {names}.")
  placebo = tuple(load_personas(settings.placebo)) if settings.placebo else ()
  replicates = personas[0].lexicon.replicates
  rng = np.random.default_rng([settings.seed, 7])
  needed = settings.train_prompts + settings.held_out_prompts
  harmful = _of_kind(settings.harmful, "harmful")
  chosen = _draw(harmful, needed, settings.harmful, rng)
  harmless = _draw(
    _of_kind(settings.harmless, "harmless"),
    needed + settings.calibration_prompts,
    settings.harmless,
    rng,
  )
  test = _test_prompts(settings, chosen, rng)
  everything = load_prompts(settings.test)
  partners = {i.pair_id: i for i in everything if i.kind == "harmless" and i.pair_id is not None}
  twins = [partners[i.pair_id] for i in test if i.pair_id in partners][: settings.twin_prompts]
  if len(twins) < settings.twin_prompts:
    raise ValueError(
      f"twin_prompts={settings.twin_prompts}: {len(twins)} of the test prompts of "
      f"{settings.test!r} have a twin."
    )
  train = settings.train_prompts
  found = Material(
    personas,
    placebo,
    _per_replicate(load_placebo_texts(), replicates),
    _questions(settings, replicates, rng),
    tuple(chosen[:train]),
    tuple(harmless[:train]),
    tuple(chosen[train:]),
    tuple(harmless[train:needed]),
    tuple(harmless[needed:]),
    tuple(test),
    tuple(twins),
    _questionnaire(settings, personas),
  )
  _check_disjoint(found, {i.pair_id for i in (*chosen, *test)} - {None})
  return found


def start(
  model: Model,
  settings: Settings,
  material: Material,
  directory: Path,
  more: Mapping[str, Any] | None = None,
) -> str:
  """Write config.json, or check that the one there asks for the same; return its hash.

  Args:
    model: the model.
    settings: of the study.
    material: that it reads.
    directory: of the study.
    more: further settings, of a study that goes on from this one's directions.

  Raises:
    ValueError: the directory holds a study with other settings, texts or another model, or of
      another version of the code or of JAX.
  """
  asked = dataclasses.asdict(settings) | dict(more or {})
  return begin(model, asked, material.hashes(), directory)


def _of_kind(suite: str, kind: str) -> list[PromptItem]:
  found = [item for item in load_prompts(suite) if item.kind == kind]
  if not found:
    raise ValueError(f"prompt suite {suite!r} has no {kind} prompts.")
  return found


def _draw(
  items: Sequence[PromptItem], count: int, suite: str, rng: np.random.Generator
) -> list[PromptItem]:
  """Draw prompts, whole clusters at a time until there are enough.

  Raises:
    ValueError: the suite has too few.
  """
  if count > len(items):
    raise ValueError(f"{count} prompts are asked of {suite!r}, which has {len(items)}.")
  by_cluster: dict[str, list[PromptItem]] = {}
  for item in items:
    by_cluster.setdefault(item.cluster or item.prompt_id, []).append(item)
  clusters = list(by_cluster.values())
  order = rng.permutation(len(clusters))
  drawn = [item for n in order for item in clusters[n]]
  return drawn[:count]


def _test_prompts(
  settings: Settings, used: Sequence[PromptItem], rng: np.random.Generator
) -> list[PromptItem]:
  texts = {item.text for item in used}
  clusters = {item.cluster for item in used} - {None}
  left = [
    item
    for item in _of_kind(settings.test, "harmful")
    if item.text not in texts and item.cluster not in clusters
  ]
  if settings.test_prompts > len(left):
    raise ValueError(
      f"test_prompts={settings.test_prompts}: {settings.test!r} has {len(left)} harmful prompts "
      "that the refusal direction is not made of."
    )
  return _draw(left, settings.test_prompts, settings.test, rng)


def _questions(
  settings: Settings, replicates: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
  """Return the questions of each replicate."""
  if settings.questions in ("neutral", "self"):
    texts = [q.text for q in load_questions(settings.questions)]  # type: ignore[arg-type]
  else:
    texts = [item.text for item in _of_kind(settings.questions, "harmless")]
  each = settings.questions_each
  if each * replicates > len(texts):
    raise ValueError(
      f"questions_each={each} for {replicates} replicates: {settings.questions!r} has {len(texts)}."
    )
  order = rng.permutation(len(texts))
  return tuple(tuple(texts[n] for n in order[k * each : (k + 1) * each]) for k in range(replicates))


def _questionnaire(settings: Settings, personas: Sequence[Persona]) -> Choices:
  traits = {trait for persona in personas for trait in persona.traits}
  items: list[ChoiceItem]
  if settings.questionnaire == "ipip120":
    items = rating_items(load_ipip120())
  else:
    items = load_choice_items(settings.questionnaire)
  kept: list[ChoiceItem] = []
  for trait in sorted(traits):
    mine = [item for item in items if item.trait == trait]
    if not mine:
      raise ValueError(f"questionnaire {settings.questionnaire!r} has no items of trait {trait!r}.")
    kept += _balanced(mine)[: settings.items or None]
  return Choices(kept, settings.lead, settings.least_mass)


def _balanced(items: Sequence[ChoiceItem]) -> list[ChoiceItem]:
  """Order items so that both keys take turns as long as there are any."""
  by_key = [[item for item in items if item.key == key] for key in (1, -1)]
  turns = max(map(len, by_key))
  return [mine[n] for n in range(turns) for mine in by_key if n < len(mine)]


def _per_replicate(texts: Sequence[str], replicates: int) -> tuple[str, ...]:
  return tuple(texts[k % len(texts)] for k in range(replicates))


def _check_disjoint(material: Material, pair_ids: set[str | None]) -> None:
  """Check that no text is in two parts and that no harmless prompt is a twin.

  Raises:
    ValueError: some are.
  """
  parts = {
    name: {item.text for item in getattr(material, name)}
    for name in (
      "harmful", "harmless", "held_out_harmful", "held_out_harmless", "calibration", "test"
    )
  }  # fmt: skip
  parts["questions"] = {text for mine in material.questions for text in mine}
  names = list(parts)
  for n, name in enumerate(names):
    for other in names[n + 1 :]:
      both = parts[name] & parts[other]
      if both:
        raise ValueError(
          f"{len(both)} texts are both in {name!r} and {other!r}, such as {sorted(both)[0]!r}."
        )
  for name in ("harmless", "held_out_harmless", "calibration"):
    twins = [i.prompt_id for i in getattr(material, name) if i.pair_id in pair_ids]
    if twins:
      raise ValueError(
        f"prompts {twins[:3]} of {name!r} are twins of harmful prompts; name another source "
        "(harmless)."
      )
