"""Scorers: `refusal` and `degenerate` label rows of a run; `self_report` scores a questionnaire."""

from persona_jax.scorers.base import Scorer, agreement
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.refusal import DEFAULT_RULES, RefusalRules

__all__ = ["DEFAULT_RULES", "Degenerate", "RefusalRules", "Scorer", "agreement"]
