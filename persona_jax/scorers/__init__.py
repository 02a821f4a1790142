"""Scorers: `refusal`, `degenerate` and `labels` label rows of a run; `self_report` and `choice`
score questionnaires.
"""

from persona_jax.scorers.base import Scorer, agreement
from persona_jax.scorers.choice import ChoiceItem, Choices, load_choice_items, rating_items
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.labels import FirstToken, Labels
from persona_jax.scorers.refusal import DEFAULT_RULES, RefusalRules

__all__ = [
  "DEFAULT_RULES",
  "ChoiceItem",
  "Choices",
  "Degenerate",
  "FirstToken",
  "Labels",
  "RefusalRules",
  "Scorer",
  "agreement",
  "load_choice_items",
  "rating_items",
]
