"""What the study reads: personas, questions, prompts, questionnaire; chosen, disjoint, hashed."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.data.abilities import KnowledgeItem, load_mmlu
from persona_jax.data.hashing import content_hash
from persona_jax.data.items import load_ipip120
from persona_jax.data.near_copies import near_copies
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.prompts import data_hash
from persona_jax.engine.model import Model
from persona_jax.personas.baselines import load_placebo_texts
from persona_jax.personas.persona import Persona, load_personas, load_questions
from persona_jax.scorers.choice import ChoiceItem, Choices, load_choice_items, rating_items
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.splits import (
  by_cluster,
  of_kind,
  one_of_each,
  suites_of,
  twins_of,
  whole_clusters,
  without,
)
from persona_jax.studies.start import begin

# What makes the files that a study goes on with; analysis is made anew each time.
_HERE = "persona_jax.studies.persona_non_grata"
_STAGES = (
  "persona_jax.calibration", "persona_jax.scorers", "persona_jax.data",
  *(f"{_HERE}.{name}" for name in (
    "calibrating", "conditions", "contrasts", "extraction", "gates", "generation", "material",
    "ratings", "refusal", "specification", "splits", "utility",
  )),
)  # fmt: skip

Poles = dict[str, tuple[tuple[str, int], ...]]
_PROMPTS = (
  "harmful", "harmless", "held_out_harmful", "held_out_harmless", "calibration", "test", "twins",
  "partners", "confirm", "over",
)  # fmt: skip


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
    twins: harmless twins of harmful prompts.
    partners: the harmful prompts that they are twins of, in their order: of the test, or of no
      other part.
    confirm: harmful prompts that the claim of H3 rests on; they are not to be run before.
    over: harmless prompts that sound risky.
    util: questions with one right answer.
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
  partners: tuple[PromptItem, ...]
  confirm: tuple[PromptItem, ...]
  over: tuple[PromptItem, ...]
  util: tuple[KnowledgeItem, ...]
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
    parts = {name: data_hash(getattr(self, name)) for name in (*_PROMPTS, "util")}
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
  state one cluster. Of prompts that the refusal direction is made of or chosen by, of those of
  calibration and of those that sound risky, each cluster has one, and none comes again in another
  part. The test and what confirms it keep all of a cluster, since clusters are what is resampled,
  and have none that another part has. Twins are those of test prompts and, where these are too few,
  those of harmful prompts that are in no part.

  Raises:
    ValueError: too few prompts, questions or paraphrases, a test that whole clusters do not add up
      to, a persona that is not there, harmless prompts that are twins of harmful ones, or texts or
      near-copies in two parts.
    FileNotFoundError: a wheel was not fetched, or a file is not there.
  """
  personas = _worded(load_personas(settings.personas, settings.persona_set), settings.replicates)
  names = [persona.name for persona in personas]
  if settings.named not in names:
    raise ValueError(f"named={settings.named!r}: the personas are {names}.")
  placebo = (
    _worded(load_personas(settings.placebo), settings.replicates) if settings.placebo else ()
  )
  _check_personas(settings, personas, placebo)
  replicates = personas[0].lexicon.replicates
  rng = np.random.default_rng([settings.seed, 7])
  prompts = _prompts(settings, rng)
  found = Material(
    personas,
    placebo,
    _per_replicate(load_placebo_texts(), replicates),
    _questions(settings, replicates, rng),
    **prompts,
    util=tuple(load_mmlu(settings.util_items)) if settings.util_items else (),
    questionnaire=_questionnaire(settings, personas),
  )
  check_disjoint(found)
  return found


def _worded(personas: Sequence[Persona], replicates: int) -> tuple[Persona, ...]:
  """Return personas with their first paraphrases alone; with all for 0.

  Raises:
    ValueError: they have fewer.
  """
  lexicon = personas[0].lexicon
  if replicates > lexicon.replicates:
    raise ValueError(
      f"replicates={replicates}: {lexicon.name} has {lexicon.replicates} paraphrases of each pole."
    )
  if replicates:
    texts = {pole: halves[:replicates] for pole, halves in lexicon.items()}
    lexicon = dataclasses.replace(lexicon, texts=texts)
  return tuple(dataclasses.replace(persona, lexicon=lexicon) for persona in personas)


def _prompts(settings: Settings, rng: np.random.Generator) -> dict[str, tuple[PromptItem, ...]]:
  """Draw the prompts of every part, by its name in `Material`."""
  names = [settings.harmful, settings.test, settings.harmless]
  names += [settings.twins] if settings.twin_prompts else []
  names += [settings.over] if settings.over_prompts else []
  suites = suites_of(names)
  train, needed = settings.train_prompts, settings.train_prompts + settings.held_out_prompts
  chosen = one_of_each(
    of_kind(suites, settings.harmful, "harmful"),
    needed,
    "train_prompts + held_out_prompts",
    settings.harmful,
    rng,
  )
  harmless = one_of_each(
    of_kind(suites, settings.harmless, "harmless"),
    needed + settings.calibration_prompts,
    "train_prompts + held_out_prompts + calibration_prompts",
    settings.harmless,
    rng,
  )
  harmful = of_kind(suites, settings.test, "harmful")
  left = without(harmful, chosen)
  test = whole_clusters(left, settings.test_prompts, "test_prompts", settings.test, rng)
  # Draws of their own: the other parts are the same with and without them.
  confirm_rng, twins_rng, over_rng = (np.random.default_rng([settings.seed, n]) for n in (8, 9, 10))
  confirm = whole_clusters(
    without(left, test), settings.confirm_prompts, "confirm_prompts", settings.test, confirm_rng
  )
  pairs = (
    twins_of(suites, settings.twins, settings.twin_prompts, test, [*chosen, *confirm], twins_rng)
    if settings.twin_prompts
    else []
  )
  twins = [twin for twin, _ in pairs]
  over = (
    one_of_each(
      without(of_kind(suites, settings.over, "harmless"), [*harmless, *twins]),
      settings.over_prompts,
      "over_prompts",
      settings.over,
      over_rng,
    )
    if settings.over_prompts
    else []
  )
  return {
    "harmful": tuple(chosen[:train]),
    "harmless": tuple(harmless[:train]),
    "held_out_harmful": tuple(chosen[train:]),
    "held_out_harmless": tuple(harmless[train:needed]),
    "calibration": tuple(harmless[needed:]),
    "test": tuple(test),
    "twins": tuple(twins),
    "partners": tuple(partner for _, partner in pairs),
    "confirm": tuple(confirm),
    "over": tuple(over),
  }


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


def _questions(
  settings: Settings, replicates: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
  """Return the questions of each replicate."""
  if settings.questions in ("neutral", "self"):
    texts = [q.text for q in load_questions(settings.questions)]  # type: ignore[arg-type]
  else:
    items = of_kind(suites_of([settings.questions]), settings.questions, "harmless")
    texts = [cluster[0].text for cluster in by_cluster(items)]
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


def check_disjoint(material: Material) -> None:
  """Check that no text or near-copy is in two parts and that no harmless prompt is a twin.

  Partners of twins may be prompts of the test: they are not run by themselves.

  Raises:
    ValueError: some are.
  """
  _check_texts(material)
  harmful = ("harmful", "held_out_harmful", "test", "confirm")
  pair_ids = {item.pair_id for name in harmful for item in getattr(material, name)} - {None}
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
  parts = {name: [i.text for i in getattr(material, name)] for name in _PROMPTS}
  parts["questions"] = [text for mine in material.questions for text in mine]
  for name, other in itertools.combinations(parts, 2):
    both = sorted(set(parts[name]) & set(parts[other]))
    if both and (name, other) != ("test", "partners"):
      raise ValueError(
        f"{len(both)} texts are both in {name!r} and {other!r}, such as {both[0]!r}."
      )
  for names in (
    ("harmful", "held_out_harmful", "test", "confirm"),
    ("harmful", "held_out_harmful", "confirm", "partners"),
    ("harmless", "held_out_harmless", "calibration", "twins", "over", "questions"),
  ):
    placed = [(name, text) for name in names for text in parts[name]]
    first: dict[int, tuple[str, str]] = {}
    for cluster, (name, text) in zip(near_copies([t for _, t in placed]), placed, strict=True):
      other, like = first.setdefault(cluster, (name, text))
      if other != name:
        raise ValueError(
          f"near-copies are both in {other!r} and {name!r}, such as {like!r} and {text!r}."
        )
