"""Judges: a rubric is asked of each row, on our own engine or behind an endpoint."""

from persona_jax.scorers.judges.base import Item, Judge, Reply
from persona_jax.scorers.judges.endpoint import Endpoint, EndpointJudge, Usage
from persona_jax.scorers.judges.local import LocalJudge
from persona_jax.scorers.judges.rubric import Rubric, load_rubric

__all__ = [
  "Endpoint",
  "EndpointJudge",
  "Item",
  "Judge",
  "LocalJudge",
  "Reply",
  "Rubric",
  "Usage",
  "load_rubric",
]
