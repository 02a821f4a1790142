"""What the protocol fixes before anything is generated, and how a study's settings differ from it.

Which prompts, personas and model are taken is no deviation; it is said in the setup. Of numbers of
prompts and draws the protocol asks for so many or more, of lists for these or more.
"""

import dataclasses
from types import MappingProxyType
from typing import Any

import pandas as pd

from persona_jax.studies.persona_non_grata.settings import CONTROLS, GATES, Settings


@dataclasses.dataclass(frozen=True)
class _Fixed:
  """One value, and which other values keep to it."""

  value: Any
  or_more: bool = False
  zero_is_all: bool = False

  def is_kept(self, here: Any) -> bool:
    if self.zero_is_all and here == 0:
      return True
    if isinstance(self.value, tuple) and self.or_more:
      return set(self.value) <= set(here)
    if self.or_more:
      return bool(here >= self.value)
    return bool(here == self.value)


PROTOCOL = MappingProxyType(
  {
    "named": _Fixed("P12"),
    "persona_in": _Fixed("system"),
    # Directions: answers under opposite texts, read without the texts.
    "source": _Fixed("answers"),
    "context": _Fixed("stripped"),
    "tokens": _Fixed("answer_mean"),
    "contrast": _Fixed("high_low"),
    "composites": _Fixed("sum"),
    "replicates": _Fixed(3, or_more=True, zero_is_all=True),
    "questions_each": _Fixed(40, or_more=True),
    "answer_tokens": _Fixed(96),
    "answer_samples": _Fixed(2),
    "least_answer_tokens": _Fixed(24),
    # Refusal direction and splits.
    "train_prompts": _Fixed(128, or_more=True),
    "held_out_prompts": _Fixed(32, or_more=True),
    "calibration_prompts": _Fixed(64, or_more=True),
    "test_prompts": _Fixed(200, or_more=True),
    "confirm_prompts": _Fixed(100, or_more=True),
    "twin_prompts": _Fixed(100, or_more=True),
    "over_prompts": _Fixed(100, or_more=True),
    "util_items": _Fixed(570, or_more=True),
    "refusal_positions": _Fixed(0),
    "refusal_words": _Fixed(()),
    # Block, dose, matched strength.
    "block": _Fixed(None),
    "depth": _Fixed((0.2, 0.8)),
    "block_step": _Fixed(1),
    "read_block": _Fixed(None),
    "kappa": _Fixed(None),
    "spec_prompts": _Fixed(1, or_more=True),
    "window": _Fixed("answer"),
    "kappas": _Fixed((0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9)),
    "matches": _Fixed(("norm", "proj", "trait", "kl"), or_more=True),
    "limit": _Fixed("fluency"),
    "questionnaire": _Fixed("ipip120"),
    "items": _Fixed(0),
    "least_mass": _Fixed(0.5),
    "calibration_tokens": _Fixed(256),
    "dose_skip": _Fixed(16),
    "covariance": _Fixed("answers"),
    # Controls, decoding, statistics.
    "baselines": _Fixed(("placebo", "shuffled", "user"), or_more=True),
    "controls": _Fixed(CONTROLS, or_more=True),
    "num_controls": _Fixed(64, or_more=True),
    "generate": _Fixed(("test", "twins", "dose", "controls", "confirm", "over"), or_more=True),
    "samples": _Fixed(1),
    "temperature": _Fixed(0.0),
    "max_new_tokens": _Fixed(256),
    "least_words": _Fixed(3),
    "outcome": _Fixed("label"),
    "delta": _Fixed(0.05),
    "gates": _Fixed(GATES, or_more=True),
    "draws": _Fixed(4000, or_more=True),
  }
)


# Which texts are read, what labels them, and what the protocol leaves to the study.
FREE = (
  "personas", "persona_set", "placebo", "questions", "harmful", "harmless", "test", "twins", "over",
  "dose_prompts", "control_prompts", "least_margin", "lead", "both", "labels", "seed",
)  # fmt: skip


def deviations(settings: Settings) -> pd.DataFrame:
  """Return the settings that differ from the protocol's: field, protocol, here (as text)."""
  rows = [
    {
      "field": field,
      "protocol": _written(fixed.value, fixed.or_more),
      "here": _written(getattr(settings, field)),
    }
    for field, fixed in PROTOCOL.items()
    if not fixed.is_kept(getattr(settings, field))
  ]
  return pd.DataFrame(rows, columns=["field", "protocol", "here"])


def _written(value: Any, or_more: bool = False) -> str:
  if value is None:
    return "chosen by the study"
  if isinstance(value, tuple):
    return ", ".join(map(str, value)) or "none"
  return f"{value} or more" if or_more else str(value)
