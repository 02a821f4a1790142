"""What a scorer is, and how its agreement with labels is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd


@runtime_checkable
class Scorer(Protocol):
  """Maps rows of a run to measurements.

  Attributes:
    name: name of the scorer, used in reports and configs.
    columns: names of the columns that `score` returns.
  """

  @property
  def name(self) -> str: ...

  @property
  def columns(self) -> tuple[str, ...]: ...

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    """Return `columns` for the rows of `table`, under its index.

    `table` has at least the columns prompt, text, finish_reason and n_tokens. A row that cannot be
    scored gets a missing value, never a zero.
    """
    ...

  def validate(self, labelled: pd.DataFrame) -> dict[str, Any]:
    """Return the agreement with human labels; `labelled` has the columns text and label."""
    ...


def require_columns(table: pd.DataFrame, needed: Iterable[str], who: str) -> None:
  """Check that `table` has the columns `needed`.

  Raises:
    ValueError: one is lacking; the message names it and those that are there.
  """
  lacking = [column for column in needed if column not in table.columns]
  if lacking:
    raise ValueError(f"{who} needs the columns {lacking}; the table has {list(table.columns)}")


def is_missing(value: Any) -> bool:
  """Return whether a cell is None, NaN or pandas' NA."""
  return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def agreement(labels: pd.Series, predictions: pd.Series) -> dict[str, Any]:
  """Return how well predictions agree with labels, both boolean with missing values allowed.

  Accuracy and Cohen's kappa (Cohen 1960) are over the rows where both are present; what is missing
  is counted and never taken for False.

  Args:
    labels: True, False or missing, by human readers.
    predictions: the same, by the scorer; in the order of `labels`.

  Returns:
    A dict with the keys
      n: rows in all; n_compared: rows with a label and a prediction;
      missing_labels, missing_predictions: counts;
      accuracy, kappa: NaN if undefined; reason: why, or empty;
      classes: {True, False: {labelled, predicted, agreed, precision, recall}, None: {labelled,
        predicted}}. labelled and predicted count all rows, None those that are missing; the others
        are over compared rows, NaN where there is nothing to divide by.

  Raises:
    ValueError: different lengths, or a value that is neither boolean nor missing.
  """
  if len(labels) != len(predictions):
    raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
  label = [_as_bool(value, "label") for value in labels]
  predicted = [_as_bool(value, "prediction") for value in predictions]
  pairs = [(a, b) for a, b in zip(label, predicted, strict=True) if a is not None and b is not None]
  table_22 = np.array([[pairs.count((a, b)) for b in (False, True)] for a in (False, True)], float)
  accuracy, kappa, reason = _accuracy_and_kappa(table_22)
  classes: dict[bool | None, dict[str, float]] = {}
  for k, value in enumerate((False, True)):
    classes[value] = {
      "labelled": label.count(value),
      "predicted": predicted.count(value),
      "agreed": int(table_22[k, k]),
      "precision": _ratio(table_22[k, k], table_22[:, k].sum()),
      "recall": _ratio(table_22[k, k], table_22[k].sum()),
    }
  classes[None] = {"labelled": label.count(None), "predicted": predicted.count(None)}
  return {
    "n": len(label),
    "n_compared": len(pairs),
    "missing_labels": label.count(None),
    "missing_predictions": predicted.count(None),
    "accuracy": accuracy,
    "kappa": kappa,
    "reason": reason,
    "classes": classes,
  }


def _as_bool(value: Any, what: str) -> bool | None:
  if is_missing(value):
    return None
  if isinstance(value, bool | np.bool_):
    return bool(value)
  raise ValueError(f"a {what} is {value!r}; True, False or a missing value fits")


def _accuracy_and_kappa(table_22: np.ndarray) -> tuple[float, float, str]:
  total = table_22.sum()
  if total == 0:
    return math.nan, math.nan, "no row has both a label and a prediction"
  observed = float(np.trace(table_22) / total)
  expected = float((table_22.sum(axis=0) * table_22.sum(axis=1)).sum() / total**2)
  if expected == 1:
    return observed, math.nan, "labels and predictions are all of one class, so kappa is undefined"
  return observed, (observed - expected) / (1 - expected), ""


def _ratio(numerator: float, denominator: float) -> float:
  return float(numerator / denominator) if denominator else math.nan
