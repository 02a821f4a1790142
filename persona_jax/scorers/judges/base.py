"""What every judge does with its replies: an expected value a row, or why there is none."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from persona_jax.personas.thinking import split_thinking
from persona_jax.scorers import base
from persona_jax.scorers.judges.rubric import Rubric


@dataclasses.dataclass(frozen=True)
class Item:
  """One answer to judge, with what stands in the rubric's further places."""

  question: str
  answer: str
  places: tuple[tuple[str, str], ...] = ()

  def ask(self, rubric: Rubric, order: Sequence[int]) -> str:
    """Return what a judge is asked of it."""
    return rubric.ask(self.question, self.answer, order, **dict(self.places))


@dataclasses.dataclass(frozen=True)
class Reply:
  """What a judge made of one item in one order: probabilities of the letters, or why none."""

  p_of_letter: Mapping[str, float] | None
  reason: str = ""


def too_little(mass: float, least: float) -> str:
  """Return why a judge that does not choose between the options gives no value."""
  return f"the options have {mass:.2g} of the probability, {least:g} needed"


class Judge(abc.ABC):
  """A scorer that asks a rubric of each row.

  Columns: judge_<rubric>, the expected value, NaN where there is none; judge_<rubric>_reason, why;
  of a binary rubric also judge_<rubric>_verdict (nullable boolean): whether the value is above .5.
  A thought before an answer is no part of what is judged.
  """

  rubric: Rubric
  places: Mapping[str, str]

  @property
  def name(self) -> str:
    """Name of the scorer."""
    return f"judge_{self.rubric.name}"

  @property
  def columns(self) -> tuple[str, ...]:
    """See the class."""
    verdict = (f"{self.name}_verdict",) if self.rubric.is_binary else ()
    return (self.name, f"{self.name}_reason", *verdict)

  @abc.abstractmethod
  def replies(self, items: Sequence[Item]) -> list[tuple[Reply, Reply]]:
    """Return the replies to each item, in both orders of the options."""

  @property
  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """Who judges, for reports and hashes: no secret."""

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns for the answers in text to the questions in prompt (or question).

    A further place of the rubric is filled by `places`, or by the table's column of its name.

    Raises:
      ValueError: a column is lacking.
    """
    question = "prompt" if "prompt" in table.columns else "question"
    further = sorted(self.rubric.places - {"question", "answer"} - set(self.places))
    base.require_columns(table, [question, "text", *further], self.name)
    given = tuple(self.places.items())
    found: dict[int, Item] = {}
    values = np.full(len(table), np.nan)
    reasons = [""] * len(table)
    for n, row in enumerate(table[[question, "text", *further]].to_dict("records")):
      missing = [name for name in (question, "text", *further) if base.is_missing(row[name])]
      if missing:
        reasons[n] = f"no {missing[0]}"
        continue
      answer = split_thinking(row["text"])[1]
      more = tuple((name, str(row[name])) for name in further)
      found[n] = Item(str(row[question]), answer, (*given, *more))
    # Equal items are asked once: a judge without noise says the same of them.
    distinct = list(dict.fromkeys(found.values()))
    replied = dict(zip(distinct, self.replies(distinct) if distinct else [], strict=True))
    for n, item in found.items():
      values[n], reasons[n] = self._value(replied[item])
    out = {self.name: values, f"{self.name}_reason": reasons}
    if self.rubric.is_binary:
      verdicts = [None if math.isnan(v) else bool(v > 0.5) for v in values]
      out[f"{self.name}_verdict"] = pd.array(verdicts, dtype="boolean")
    return pd.DataFrame(out, index=table.index)

  def validate(self, labelled: pd.DataFrame) -> dict[str, Any]:
    """Return the agreement with the column label.

    Boolean labels, of a binary rubric: `scorers.base.agreement`. Numbers: n, n_compared,
    missing_predictions, spearman, mae (mean absolute error, of labels in the rubric's values).

    Raises:
      ValueError: labels are boolean and the rubric is not binary.
    """
    base.require_columns(labelled, ["text", "label"], self.name)
    scored = self.score(labelled.drop(columns="label"))
    labels = labelled["label"]
    if not pd.api.types.is_bool_dtype(labels) and pd.api.types.is_numeric_dtype(labels):
      both = scored[self.name].notna() & labels.notna()
      x, y = (np.asarray(v[both], np.float64) for v in (labels.astype(float), scored[self.name]))
      spread = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
      return {
        "n": len(labelled),
        "n_compared": int(both.sum()),
        "missing_predictions": int(scored[self.name].isna().sum()),
        "spearman": float(scipy.stats.spearmanr(x, y).statistic) if spread else math.nan,
        "mae": float(np.abs(x - y).mean()) if len(x) else math.nan,
      }
    if not self.rubric.is_binary:
      raise ValueError(f"{self.name} gives no verdicts; labels that are numbers fit, not booleans")
    return base.agreement(labels, scored[f"{self.name}_verdict"])

  def _value(self, replies: tuple[Reply, Reply]) -> tuple[float, str]:
    """Average both orders; a missing one makes the value missing, for one alone is biased."""
    values = []
    for reply, order in zip(replies, self.rubric.orders(), strict=True):
      if reply.p_of_letter is None:
        return math.nan, reply.reason
      value = self.rubric.expected(reply.p_of_letter, order)
      if math.isnan(value):
        return math.nan, "no option has any probability"
      values.append(value)
    return float(np.mean(values)), ""
