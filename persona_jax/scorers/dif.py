"""Whether a scorer errs more under some conditions than others: differential item functioning.

A judge that takes a persona's tone for the thing that it judges makes a difference between personas
out of nothing. So its errors are counted by persona against labels that are known: how often what
is none is called one (false positives), and the other way round.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import scipy.stats

from persona_jax.scorers import base
from persona_jax.stats.families import adjust
from persona_jax.stats.intervals import rate


@dataclasses.dataclass(frozen=True, eq=False)
class Differential:
  """Errors by group.

  Attributes:
    passed: no group's rate of either error differs from the others' by more than the margin, with
      Holm's p below the level.
    table: a row a group and error: group, error ("false_positive", "false_negative"), errors, n,
      rate, low, high (Wilson), rest (rate of all other groups), p (Fisher's exact test), p_adjusted
      (Holm, within the error), differs, reason.
    reason: why it failed, or what could not be tested; "" if nothing is amiss.
  """

  passed: bool
  table: pd.DataFrame
  reason: str


def differential(
  labels: Sequence[object],
  predictions: Sequence[object],
  groups: Sequence[Hashable],
  *,
  margin: float = 0.05,
  alpha: float = 0.05,
) -> Differential:
  """Compare the errors of predictions between groups.

  Args:
    labels: True, False or missing, of each row.
    predictions: the same, by the scorer.
    groups: of each row, such as its persona.
    margin: how far a rate may lie from that of the other groups.
    alpha: level of the tests, after Holm's correction over groups.

  Raises:
    ValueError: different lengths, or a value that is neither boolean nor missing.
  """
  if not len(labels) == len(predictions) == len(groups):
    raise ValueError(
      f"{len(labels)} labels, {len(predictions)} predictions and {len(groups)} groups; give one of "
      "each a row."
    )
  base.agreement(pd.Series(list(labels)), pd.Series(list(predictions)))  # checks the values
  rows = [
    (str(group), bool(label), bool(prediction))
    for label, prediction, group in zip(labels, predictions, groups, strict=True)
    if not base.is_missing(label) and not base.is_missing(prediction)
  ]
  table = pd.DataFrame(rows, columns=["group", "label", "prediction"])
  found = []
  for error, side in (("false_positive", False), ("false_negative", True)):
    mine = table[table["label"] == side]
    wrong = mine["prediction"] != mine["label"]
    for group in table["group"].drop_duplicates():
      own = mine["group"] == group
      counts = [int(wrong[own].sum()), int(own.sum()), int(wrong[~own].sum()), int((~own).sum())]
      found.append(_row(group, error, *counts))
  if not found:
    return Differential(False, pd.DataFrame(), "no row has a label and a prediction")
  result = adjust(pd.DataFrame(found).assign(family=lambda t: t["error"]), "holm", alpha=alpha)
  far = (result["rate"] - result["rest"]).abs() > margin
  result["differs"] = result["rejected"] & far
  result = result.drop(columns=["family", "correction", "family_size", "rejected"])
  bad = result[result["differs"]]
  reasons = [
    f"{r['error'].replace('_', ' ')} rate {r['rate']:.2f} under {r['group']}, {r['rest']:.2f} "
    "elsewhere"
    for r in bad.to_dict("records")
  ]
  for error, untested in result[result["p"].isna()].groupby("error"):
    groups = ", ".join(untested["group"])
    reasons.append(f"{str(error).replace('_', ' ')} rate not tested under {groups}")
  return Differential(bad.empty, result, "; ".join(reasons))


def _row(
  group: str, error: str, errors: int, n: int, other_errors: int, other_n: int
) -> dict[str, object]:
  estimate = rate(errors, n)
  rest = other_errors / other_n if other_n else np.nan
  p = np.nan
  if n and other_n:
    counts = [[errors, n - errors], [other_errors, other_n - other_errors]]
    p = float(scipy.stats.fisher_exact(counts).pvalue)
  return {
    "group": group,
    "error": error,
    "errors": errors,
    "n": n,
    "rate": estimate.value,
    "low": estimate.low,
    "high": estimate.high,
    "rest": rest,
    "p": p,
    "reason": estimate.reason or ("" if other_n else "no other group"),
  }
