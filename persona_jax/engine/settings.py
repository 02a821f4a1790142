"""Decoding settings that all rows of a call share."""

import dataclasses

from persona_jax.engine.checks import as_int
from persona_jax.engine.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Settings:
  """How rows are decoded.

  Attributes:
    max_new_tokens: budget, at least 1.
    sampling: how a token is chosen.
    stop_ids: ids that end a row.
    stop_texts: texts that end a row, wherever they come in its answer.
    logprobs: whether log-probabilities are computed.
    trace: whether the trace of edits is kept.

  Raises:
    ValueError: the budget is no integer of at least 1.
  """

  max_new_tokens: int
  sampling: Sampling = Sampling()
  stop_ids: tuple[int, ...] = ()
  stop_texts: tuple[str, ...] = ()
  logprobs: bool = False
  trace: bool = False

  def __post_init__(self) -> None:
    budget = as_int("max_new_tokens", self.max_new_tokens, 1)
    object.__setattr__(self, "max_new_tokens", budget)
