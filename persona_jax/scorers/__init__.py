"""Scorers: `refusal`, `degenerate`, `fluency` and `labels` label rows; `self_report` and `choice`
score questionnaires; `traces` measures cues in thoughts.
"""

from persona_jax.scorers.base import Scorer, agreement
from persona_jax.scorers.choice import ChoiceItem, Choices, load_choice_items, rating_items
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.fluency import Fluency
from persona_jax.scorers.labels import FirstToken, Labels
from persona_jax.scorers.refusal import DEFAULT_RULES, RefusalRules
from persona_jax.scorers.thoughts import Splitter, Thought
from persona_jax.scorers.traces import CueLists, TraceCues, load_cues, validate_cues

__all__ = [
  "DEFAULT_RULES",
  "ChoiceItem",
  "Choices",
  "CueLists",
  "Degenerate",
  "FirstToken",
  "Fluency",
  "Labels",
  "RefusalRules",
  "Scorer",
  "Splitter",
  "Thought",
  "TraceCues",
  "agreement",
  "load_choice_items",
  "load_cues",
  "rating_items",
  "validate_cues",
]
