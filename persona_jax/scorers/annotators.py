"""How far people agree who labelled the same answers: Cohen's kappa, with an interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_jax.scorers.base import require_columns


def annotator_agreement(
  annotations: pd.DataFrame,
  *,
  clusters: Mapping[str, str] | None = None,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> pd.DataFrame:
  """Compare every two annotators on the rows that both have (Cohen 1960), over all their labels.

  Args:
    annotations: of `data.annotation.read_annotations`: row_id, annotator, label (missing where it
      was left empty). "unsure" is a label like any other.
    clusters: {row_id: its question's cluster}, which are resampled; default each row by itself.
    draws, seed: of the bootstrap.
    confidence: of its interval.

  Returns:
    A row a pair: annotator, other, shared (rows in both sheets), n (labelled by both), unlabelled,
    disagree, agreement (share of n), kappa, low, high (percentiles of draws; NaN where kappa is
    undefined in most of them), reason.

  Raises:
    ValueError: a column is lacking, an annotator has a row twice, or a row has no cluster.
  """
  require_columns(annotations, ["row_id", "annotator", "label"], "annotator_agreement")
  twice = annotations[annotations.duplicated(["row_id", "annotator"])]
  if len(twice):
    first = twice.iloc[0]
    raise ValueError(f"annotator {first['annotator']!r} has row {first['row_id']!r} twice")
  lacking = [] if clusters is None else sorted(set(annotations["row_id"]) - set(clusters))
  if lacking:
    raise ValueError(f"rows {lacking[:3]} have no cluster")
  wide = annotations.pivot(index="row_id", columns="annotator", values="label")
  seen = annotations.assign(there=True).pivot(index="row_id", columns="annotator", values="there")
  rows = []
  for one, other in itertools.combinations(wide.columns, 2):
    shared = wide[seen[one].notna() & seen[other].notna()]
    both = shared[shared[one].notna() & shared[other].notna()]
    cluster_N = [name if clusters is None else clusters[name] for name in both.index]
    rows.append(
      {
        "annotator": one,
        "other": other,
        "shared": len(shared),
        "n": len(both),
        "unlabelled": len(shared) - len(both),
        "disagree": int((both[one] != both[other]).sum()),
        "agreement": float((both[one] == both[other]).mean()) if len(both) else math.nan,
        **_kappa(both[one], both[other], cluster_N, draws, seed, confidence),
      }
    )
  columns = ["annotator", "other", "shared", "n", "unlabelled", "disagree", "agreement"]
  return pd.DataFrame(rows, columns=[*columns, "kappa", "low", "high", "reason"])


def _kappa(
  one: pd.Series,
  other: pd.Series,
  cluster_N: list[str],
  draws: int,
  seed: int,
  confidence: float,
) -> dict[str, object]:
  none = {"kappa": math.nan, "low": math.nan, "high": math.nan}
  if one.empty:
    return none | {"reason": "no row has the labels of both"}
  labels = sorted({*one, *other})
  number = {label: k for k, label in enumerate(labels)}
  size = len(labels)
  cell_N = [number[a] * size + number[b] for a, b in zip(one, other, strict=True)]
  names, index_N = np.unique(cluster_N, return_inverse=True)
  count_CK = np.zeros((len(names), size * size))
  np.add.at(count_CK, (index_N, np.asarray(cell_N)), 1)
  value = float(_of_tables(count_CK.sum(axis=0).reshape(1, size, size))[0])
  if math.isnan(value):
    return none | {"reason": f"both have the label {labels[0]!r} alone, so kappa is undefined"}
  rng = np.random.default_rng(seed)
  weight_BC = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
  drawn_B = _of_tables((weight_BC @ count_CK).reshape(-1, size, size))
  there_B = drawn_B[~np.isnan(drawn_B)]
  if len(there_B) < draws / 2:
    return none | {"kappa": value, "reason": "kappa is undefined in most draws"}
  low, high = np.quantile(there_B, [(1 - confidence) / 2, (1 + confidence) / 2])
  return {"kappa": value, "low": float(low), "high": float(high), "reason": ""}


def _of_tables(table_BKK: np.ndarray) -> np.ndarray:
  """Return Cohen's kappa of each table of counts, NaN where chance agreement is complete."""
  total_B = table_BKK.sum(axis=(1, 2))
  observed_B = np.trace(table_BKK, axis1=1, axis2=2) / total_B
  chance_B = (table_BKK.sum(axis=1) * table_BKK.sum(axis=2)).sum(axis=1) / total_B**2
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(chance_B < 1, (observed_B - chance_B) / (1 - chance_B), np.nan)
