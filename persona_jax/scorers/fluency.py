"""How likely the unedited model finds an answer: what an edit broke, it would hardly have written.

Answers whose tokens are less likely than nearly all that the model writes by itself are degenerate,
whatever their words look like: fluent nonsense and slow loops pass the rules of `degenerate`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.scorers import base

_BARE = Condition("B0")


@dataclasses.dataclass(frozen=True, eq=False)
class Fluency:
  """Score answers by their mean log-probability under the unedited model, without a persona.

  Attributes:
    model: the model that answered.
    percentile: of the answers labelled sound, that `validate` takes as the threshold.
  """

  model: Model
  percentile: float = 0.5

  @property
  def name(self) -> str:
    """Name of the scorer."""
    return "fluency"

  @property
  def columns(self) -> tuple[str, ...]:
    """mean_logprob, in nats a token; NaN for an answer that has none."""
    return ("mean_logprob",)

  @property
  def describe(self) -> dict[str, Any]:
    """What its numbers depend on beside the rows."""
    chat = self.model.chat
    return {
      "scorer": self.name,
      "model": self.model.identity.sha256,
      "dtypes": [self.model.dtype, self.model.resid_dtype],
      "system_default": chat.system_default,
      "template": [chat.template, [list(option) for option in chat.options]],
    }

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    """Return mean_logprob for the columns prompt and token_ids.

    The prompt is what the user said; around it stands what an unprompted chat has. All tokens of
    an answer count, a thought and the token that ends it among them, as they were generated: the
    text is not cut anew.

    Raises:
      ValueError: a column is lacking, or an id lies outside the vocabulary.
    """
    base.require_columns(table, ["prompt", "token_ids"], self.name)
    answers = [() if base.is_missing(ids) else tuple(map(int, ids)) for ids in table["token_ids"]]
    there = [n for n, ids in enumerate(answers) if ids]
    chats = [_BARE.apply(prompt) for prompt in table["prompt"].iloc[there]]
    found = np.full(len(table), math.nan)
    if there:
      logprobs = self.model.score(chats, [answers[n] for n in there], per_token=True)
      found[there] = [float(x.mean()) for x in logprobs]
    return pd.DataFrame({"mean_logprob": found}, index=table.index)

  def validate(self, labelled: pd.DataFrame) -> dict[str, Any]:
    """Return the agreement (`scorers.base.agreement`) with the column label: True for degenerate.

    Of columns prompt, token_ids and label; the threshold is that of the answers labelled False.

    Raises:
      ValueError: a column is lacking, or those answers are too few for the percentile.
    """
    base.require_columns(labelled, ["prompt", "token_ids", "label"], self.name)
    scores = self.score(labelled)["mean_logprob"]
    least = least_logprob(scores[[label is False for label in labelled["label"]]], self.percentile)
    return base.agreement(labelled["label"], unlikely(scores, least))


def least_logprob(mean_logprobs: pd.Series, percentile: float = 0.5) -> float:
  """Return the mean log-probability below which an answer is degenerate.

  It is one of those given, so that at most `percentile` per cent of them lie below it. The least of
  a few answers is no such threshold: of SmolLM2's answers of 24 tokens under persona prompts, which
  nothing has broken, 68 % are less likely than the least of 6 without, 3 % than the .5 percentile
  of 200.

  Args:
    mean_logprobs: of the unedited model's own answers, without a persona; NaN is left out.
    percentile: in per cent.

  Raises:
    ValueError: answers are too few for the percentile.
  """
  there = mean_logprobs.dropna().to_numpy(np.float64)
  if len(there) < answers_needed(percentile):
    raise ValueError(
      f"{len(there)} answers have no {percentile} percentile; {answers_needed(percentile)} have."
    )
  return float(np.percentile(there, percentile, method="lower"))


def answers_needed(percentile: float) -> int:
  """Return how many answers a percentile needs, so that one of them may lie below it.

  Raises:
    ValueError: a percentile that is not between 0 and 100.
  """
  if not 0 < percentile < 100:
    raise ValueError(f"percentile {percentile}: a number between 0 and 100 fits.")
  return math.ceil(100 / percentile)


def unlikely(mean_logprobs: pd.Series, least: float) -> pd.Series:
  """Return whether answers are less likely than `least`, nullable boolean; missing for NaN."""
  flags = pd.Series(mean_logprobs < least, index=mean_logprobs.index, dtype="boolean")
  return flags.mask(mean_logprobs.isna())
