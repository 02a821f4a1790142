"""What the study reads: personas, questions, prompts, questionnaire; chosen, disjoint, hashed."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.data.items import load_ipip120
from persona_jax.data.near_copies import clustered, near_copies
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.engine.model import Model
from persona_jax.personas.baselines import load_placebo_texts
from persona_jax.personas.persona import Persona, load_personas, load_questions
from persona_jax.scorers.choice import ChoiceItem, Choices, load_choice_items, rating_items
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.start import begin

# What makes the files that a study goes on with; analysis is made anew each time.
_HERE = "persona_jax.studies.persona_non_grata"
_STAGES = (
  "persona_jax.calibration", "persona_jax.scorers", "persona_jax.data",
  *(f"{_HERE}.{name}" for name in (
    "calibrating", "conditions", "contrasts", "extraction", "gates", "generation", "material",
    "ratings", "refusal", "specification",
  )),
)  # fmt: skip

Poles = dict[str, tuple[tuple[str, int], ...]]
_Suites = dict[tuple[str, str], list[PromptItem]]  # by the name of the suite and kind


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
  """Everything that the study reads; prompts that are near-copies have one cluster.

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
    # Directions are made of both poles' texts, those of poles that no persona has among them.
    lexicons = [mine[0].lexicon for mine in (self.personas, self.placebo) if mine]
    texts = [{str(pole): halves for pole, halves in x.items()} for x in lexicons]
    names = [[p.name, p.label] for p in (*self.personas, *self.placebo)]
    return parts | {
      "personas": content_hash([texts, names, self.placebo_texts]),
      "questions": content_hash(self.questions),
      "questionnaire": content_hash(
        [dataclasses.asdict(item) for item in self.questionnaire.items]
      ),
    }


def load_material(settings: Settings) -> Material:
  """Read and choose everything that the study needs.

  Prompts are drawn by the seed, in clusters: near-copies (`data.near_copies`) and prompts that
  state one cluster. Of prompts that the refusal direction is made of or chosen by and of those of
  calibration, each cluster has one, and none comes again in another part. The test keeps all of a
  cluster, since clusters are what is resampled, and has none of those the direction has.

  Raises:
    ValueError: too few prompts or questions, a test that whole clusters do not add up to, a persona
      that is not there, harmless prompts that are twins of harmful ones, or texts or near-copies in
      two parts.
    FileNotFoundError: a wheel was not fetched, or a file is not there.
  """
  personas = tuple(load_personas(settings.personas, settings.persona_set))
  names = [persona.name for persona in personas]
  if settings.named not in names:
    raise ValueError(f"named={settings.named!r}: the personas are {names}.")
  placebo = tuple(load_personas(settings.placebo)) if settings.placebo else ()
  _check_personas(settings, personas, placebo)
  replicates = personas[0].lexicon.replicates
  rng = np.random.default_rng([settings.seed, 7])
  suites = _suites([settings.harmful, settings.test, settings.harmless])
  needed = settings.train_prompts + settings.held_out_prompts
  asked = f"train_prompts + held_out_prompts = {needed}"
  chosen = _one_of_each(suites, settings.harmful, "harmful", needed, asked, rng)
  all_harmless = needed + settings.calibration_prompts
  asked = f"train_prompts + held_out_prompts + calibration_prompts = {all_harmless}"
  harmless = _one_of_each(suites, settings.harmless, "harmless", all_harmless, asked, rng)
  test = _test_prompts(settings, suites, chosen, rng)
  partners = {i.pair_id: i for i in suites[settings.test, "harmless"] if i.pair_id is not None}
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
  check_disjoint(found, {i.pair_id for i in (*chosen, *test)} - {None})
  return found


def _check_personas(
  settings: Settings, personas: Sequence[Persona], placebo: Sequence[Persona]
) -> None:
  """Check that the study can be made of these personas.

  Raises:
    ValueError: fewer than two personas, none of one pole though a block is to be chosen, or a trait
      that both files have.
  """
  names = [persona.name for persona in personas]
  if len(names) < 2:
    raise ValueError(f"personas {names}: a persona is compared with the others; give two at least.")
  if settings.block is None and all(len(p.poles) > 1 for p in personas):
    raise ValueError(
      f"personas {names}: none has one pole, by which the block is chosen; give one, or a block."
    )
  both = [t for p in placebo[:1] for t in p.lexicon.traits if t in personas[0].lexicon.traits]
  if both:
    raise ValueError(
      f"placebo={settings.placebo!r} and personas={settings.personas!r} both have the traits "
      f"{both}; placebo contrasts need ids of their own ([traits] in the file)."
    )


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
    more: further settings, of another study that begins with the same stages.

  Raises:
    ValueError: the directory holds a study with other settings, texts or another model, or of
      another version of the code or of JAX.
  """
  asked = dataclasses.asdict(settings) | dict(more or {})
  return begin(model, asked, material.hashes(), directory, _STAGES)


def _suites(names: Sequence[str]) -> _Suites:
  """Return prompts by suite and kind, with the clusters of all suites together."""
  read = {name: load_prompts(name) for name in dict.fromkeys(names)}
  found: _Suites = {}
  for kind in ("harmful", "harmless"):
    mine = {name: [i for i in items if i.kind == kind] for name, items in read.items()}
    rest = iter(clustered([item for items in mine.values() for item in items]))
    found |= {(name, kind): [next(rest) for _ in items] for name, items in mine.items()}
  return found


def _of_kind(suites: _Suites, suite: str, kind: str) -> list[PromptItem]:
  if not suites[suite, kind]:
    raise ValueError(f"prompt suite {suite!r} has no {kind} prompts.")
  return suites[suite, kind]


def _by_cluster(items: Sequence[PromptItem]) -> list[list[PromptItem]]:
  found: dict[str, list[PromptItem]] = {}
  for item in items:
    found.setdefault(item.cluster or item.prompt_id, []).append(item)
  return list(found.values())


def _one_of_each(
  suites: _Suites,
  suite: str,
  kind: str,
  count: int,
  asked: str,
  rng: np.random.Generator,
) -> list[PromptItem]:
  """Draw prompts of different clusters, of each the first.

  Raises:
    ValueError: the suite has too few; the error begins with `asked`.
  """
  items = _of_kind(suites, suite, kind)
  clusters = _by_cluster(items)
  if count > len(clusters):
    raise ValueError(
      f"{asked}: {suite!r} has {len(items)} {kind} prompts, {len(clusters)} without near-copies."
    )
  return [clusters[n][0] for n in rng.permutation(len(clusters))[:count]]


def _test_prompts(
  settings: Settings,
  suites: _Suites,
  used: Sequence[PromptItem],
  rng: np.random.Generator,
) -> list[PromptItem]:
  """Draw whole clusters of which no prompt is used.

  Raises:
    ValueError: too few are left, or those drawn do not add up to the number asked for.
  """
  texts = {item.text for item in used}
  names = {item.cluster for item in used} - {None}
  left = [
    item
    for item in _of_kind(suites, settings.test, "harmful")
    if item.text not in texts and item.cluster not in names
  ]
  clusters = _by_cluster(left)
  asked = f"test_prompts={settings.test_prompts}"
  if settings.test_prompts > len(left):
    raise ValueError(
      f"{asked}: {settings.test!r} has {len(left)} harmful prompts, in {len(clusters)} clusters of "
      "near-copies, that the refusal direction is not made of or chosen by."
    )
  drawn: list[PromptItem] = []
  for n in rng.permutation(len(clusters)):
    if len(drawn) + len(clusters[n]) <= settings.test_prompts:
      drawn += clusters[n]
  if len(drawn) < settings.test_prompts:
    raise ValueError(
      f"{asked}: clusters of near-copies are not cut, and those drawn of {settings.test!r} make "
      f"{len(drawn)}; give {len(drawn)} or another number up to {len(left)}."
    )
  return drawn


def _questions(
  settings: Settings, replicates: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
  """Return the questions of each replicate."""
  if settings.questions in ("neutral", "self"):
    texts = [q.text for q in load_questions(settings.questions)]  # type: ignore[arg-type]
  else:
    items = _of_kind(_suites([settings.questions]), settings.questions, "harmless")
    texts = [cluster[0].text for cluster in _by_cluster(items)]
  each = settings.questions_each
  if each * replicates > len(texts):
    raise ValueError(
      f"questions_each={each} for {replicates} replicates: {settings.questions!r} has {len(texts)} "
      "without near-copies."
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


def check_disjoint(material: Material, pair_ids: set[str | None]) -> None:
  """Check that no text or near-copy is in two parts and that no harmless prompt is a twin.

  Raises:
    ValueError: some are.
  """
  _check_texts(material)
  for name in ("harmless", "held_out_harmless", "calibration"):
    twins = [i.prompt_id for i in getattr(material, name) if i.pair_id in pair_ids]
    if twins:
      raise ValueError(
        f"prompts {twins[:3]} of {name!r} are twins of harmful prompts; name another source "
        "(harmless)."
      )


def _check_texts(material: Material) -> None:
  """Check that no text is in two parts, and no near-copy in two that hold prompts of one kind.

  Raises:
    ValueError: some are.
  """
  kinds = (
    ("harmful", "held_out_harmful", "test"),
    ("harmless", "held_out_harmless", "calibration", "twins"),
  )
  parts = {name: [i.text for i in getattr(material, name)] for names in kinds for name in names}
  parts["questions"] = [text for mine in material.questions for text in mine]
  for name, other in itertools.combinations(parts, 2):
    both = sorted(set(parts[name]) & set(parts[other]))
    if both:
      raise ValueError(
        f"{len(both)} texts are both in {name!r} and {other!r}, such as {both[0]!r}."
      )
  for names in (kinds[0], (*kinds[1], "questions")):
    placed = [(name, text) for name in names for text in parts[name]]
    first: dict[int, tuple[str, str]] = {}
    for cluster, (name, text) in zip(near_copies([t for _, t in placed]), placed, strict=True):
      other, like = first.setdefault(cluster, (name, text))
      if other != name:
        raise ValueError(
          f"near-copies are both in {other!r} and {name!r}, such as {like!r} and {text!r}."
        )
