"""Outcomes as one array: arms × personas × replicates × prompts, with the clusters of the prompts.

Every test of the core study is a function of this array. A missing cell is NaN and stays in the
array; the statistics average what is there and count the rest. Dimension letters: M arms (methods,
doses, baselines), P personas, K replicates (paraphrases), N prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_KEYS = ("arm", "persona", "replicate", "prompt_id")


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
  """One measure for every arm, persona, replicate and prompt.

  Attributes:
    y_MPKN: float64 [arms, personas, replicates, prompts]; NaN is missing.
    arms, personas, replicates, prompts: labels of the four axes, without repeats.
    cluster_N: the cluster of each prompt (near copies share one); () makes each prompt its own.
  """

  y_MPKN: NDArray[np.float64]
  arms: tuple[Any, ...]
  personas: tuple[Any, ...]
  replicates: tuple[Any, ...]
  prompts: tuple[Any, ...]
  cluster_N: NDArray[Any] = dataclasses.field(default_factory=lambda: np.array(()))

  def __post_init__(self) -> None:
    y_MPKN = np.asarray(self.y_MPKN, dtype=np.float64)
    axes = ("arms", "personas", "replicates", "prompts")
    for axis in axes:
      labels = tuple(getattr(self, axis))
      if len(set(labels)) != len(labels):
        raise ValueError(f"{axis} holds a label twice: {labels}")
      object.__setattr__(self, axis, labels)
    shape = tuple(len(getattr(self, axis)) for axis in axes)
    if y_MPKN.shape != shape:
      raise ValueError(f"y_MPKN has shape {y_MPKN.shape}; the labels want {shape}")
    if 0 in shape:
      raise ValueError(f"outcomes are empty: {dict(zip(axes, shape, strict=True))}")
    if np.isinf(y_MPKN).any():
      raise ValueError("y_MPKN holds infinite values")
    cluster_N = np.asarray(self.cluster_N)
    if cluster_N.size == 0:
      cluster_N = np.asarray(self.prompts)
    if cluster_N.shape != (len(self.prompts),):
      raise ValueError(f"cluster_N has shape {cluster_N.shape}; one label a prompt fits")
    object.__setattr__(self, "y_MPKN", y_MPKN)
    object.__setattr__(self, "cluster_N", cluster_N)

  @classmethod
  def of(
    cls,
    table: pd.DataFrame,
    value: str,
    *,
    arms: Sequence[Any] | None = None,
    personas: Sequence[Any] | None = None,
  ) -> Outcomes:
    """Return the outcomes that a tidy table holds.

    Args:
      table: one row a measurement, with columns arm, persona, replicate, prompt_id, `value`, and
        perhaps cluster. Several rows of one cell (samples) are averaged over those not missing.
      value: name of the measure's column: booleans or numbers; None and NaN are missing.
      arms, personas: which to take and in which order; None takes all, as they first appear.

    Raises:
      ValueError: a missing column, no rows, an arm or persona that is not there, a missing label,
        a prompt in two clusters, values that are no numbers.
    """
    wanted = [*_KEYS, value]
    absent = [column for column in wanted if column not in table.columns]
    if absent:
      raise ValueError(f"the table lacks {absent}; it has {list(table.columns)}")
    for column, labels in (("arm", arms), ("persona", personas)):
      if labels is not None:
        unknown = [label for label in labels if label not in set(table[column])]
        if unknown:
          raise ValueError(f"no row has {column} {unknown}; there are {list(_seen(table[column]))}")
        table = table[table[column].isin(list(labels))]
    if not len(table):
      raise ValueError("the table has no rows")
    keys = [*_KEYS, "cluster"] if "cluster" in table.columns else list(_KEYS)
    blank = [column for column in keys if table[column].isna().any()]
    if blank:
      raise ValueError(f"columns {blank} hold missing labels; only {value!r} may be missing")
    try:
      value_N = table[value].astype("float64")
    except (TypeError, ValueError) as error:
      raise ValueError(f"column {value!r} holds values that are no numbers: {error}") from None
    labels_of = {
      "arm": _seen(table["arm"]) if arms is None else tuple(arms),
      "persona": _seen(table["persona"]) if personas is None else tuple(personas),
      "replicate": tuple(np.unique(table["replicate"]).tolist()),
      "prompt_id": tuple(np.unique(table["prompt_id"]).tolist()),
    }
    cluster_N: NDArray[Any] = np.array(())
    if "cluster" in table.columns:
      pairs = table[["prompt_id", "cluster"]].drop_duplicates()
      twice = list(dict.fromkeys(pairs["prompt_id"][pairs["prompt_id"].duplicated()]))
      if twice:
        raise ValueError(f"prompts {twice[:5]} lie in two clusters; each prompt has one")
      by_prompt = pairs.set_index("prompt_id")["cluster"]
      cluster_N = by_prompt.loc[list(labels_of["prompt_id"])].to_numpy()
    index = pd.MultiIndex.from_product([labels_of[k] for k in _KEYS], names=list(_KEYS))
    cells = value_N.groupby([table[k] for k in _KEYS], observed=True).mean().reindex(index)
    names = [labels_of[k] for k in _KEYS]
    y_MPKN = cells.to_numpy().reshape([len(name) for name in names])
    return cls(y_MPKN, names[0], names[1], names[2], names[3], cluster_N)

  def select(
    self, arms: Sequence[Any] | None = None, personas: Sequence[Any] | None = None
  ) -> Outcomes:
    """Return the named arms and personas, in the order given.

    Raises:
      ValueError: a name that is not there.
    """
    index = []
    for axis, have, want in (
      ("arms", self.arms, arms),
      ("personas", self.personas, personas),
    ):
      want = have if want is None else tuple(want)
      unknown = [name for name in want if name not in have]
      if unknown:
        raise ValueError(f"no {axis} {unknown}; there are {list(have)}")
      index.append([have.index(name) for name in want])
    return dataclasses.replace(
      self,
      y_MPKN=self.y_MPKN[np.ix_(*index)],
      arms=tuple(self.arms[i] for i in index[0]),
      personas=tuple(self.personas[i] for i in index[1]),
    )

  def arm(self, name: Any) -> Outcomes:
    """Return one arm with the personas that it has (a baseline has one).

    Raises:
      ValueError: an arm that is not there, or that has no value at all.
    """
    one = self.select(arms=[name])
    there = np.flatnonzero((~np.isnan(one.y_MPKN)).any(axis=(0, 2, 3)))
    if not there.size:
      raise ValueError(f"arm {name!r} holds no value")
    return one.select(personas=[one.personas[i] for i in there])

  @property
  def mean_MP(self) -> NDArray[np.float64]:
    """Mean over the replicates and prompts that are there; NaN where none is."""
    there_MP = (~np.isnan(self.y_MPKN)).sum(axis=(2, 3))
    total_MP = np.nansum(self.y_MPKN, axis=(2, 3))
    return np.where(there_MP > 0, total_MP / np.maximum(there_MP, 1), np.nan)


def _seen(column: pd.Series) -> tuple[Any, ...]:
  return tuple(dict.fromkeys(column.tolist()))
