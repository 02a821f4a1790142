"""Cosines of directions with refusal, by block: null bands, intervals, reliability, units of gaps.

Also the check of block numbers: the same with directions shifted by a block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from persona_jax.directions.direction import Direction
from persona_jax.edits.target import Blocks, choose_blocks
from persona_jax.engine.rows import derive_seed
from persona_jax.geometry import gram
from persona_jax.geometry.gram import PairDifferences, PairSum, Resampled
from persona_jax.geometry.metrics import EUCLIDEAN, Metric

_Floats = NDArray[np.float64]
_AGREES = 0.99  # least cosine of a direction with the mean of its pairs: replicates differ in size


def means(directions: Sequence[Direction], r: Direction) -> np.ndarray:
  """Return the mean vectors of directions that can be compared with r, float32 [R, L, D].

  Raises:
    ValueError: no direction, other blocks, width or site than r has, or a site of heads.
  """
  if not directions:
    raise ValueError("there are no directions to compare.")
  if r.num_heads is not None:
    raise ValueError(f"direction {r.concept!r} is of heads; compare directions of whole streams.")
  expected = r.vectors_SLD.shape[1:], r.site
  for d in directions:
    if (d.vectors_SLD.shape[1:], d.site) != expected:
      raise ValueError(
        f"direction {d.concept!r} has (blocks, width) and site {d.vectors_SLD.shape[1:], d.site}; "
        f"{r.concept!r} has {expected}."
      )
  return np.stack([d.mean_LD for d in directions])


def cosines(v_RD: np.ndarray, r_D: np.ndarray, block: int, metric: Metric = EUCLIDEAN) -> _Floats:
  """Return the cosines of vectors with r at a block, float64 [R]; NaN of a zero vector."""
  mapped_RK, r_K = metric.map(v_RD, block), metric.map(r_D, block)
  size_R = np.linalg.norm(mapped_RK, axis=-1) * np.linalg.norm(r_K)
  found: _Floats = np.where(size_R > 0, mapped_RK @ r_K / np.where(size_R > 0, size_R, 1), np.nan)
  return found


def band(null_K: _Floats, confidence: float = 0.95) -> tuple[float, float]:
  """Return the interval that a draw of a null lies in; NaN without draws.

  The quantiles at k/(K + 1) (Weibull's), so that a new draw lies inside with that probability, as
  long as K + 1 is at least 2 / (1 - confidence).
  """
  null_K = null_K[~np.isnan(null_K)]
  if not len(null_K):
    return float("nan"), float("nan")
  tails = [(1 - confidence) / 2, (1 + confidence) / 2]
  low, high = np.quantile(null_K, tails, method="weibull")
  return float(low), float(high)


def specificity(value_R: _Floats, null_K: _Floats) -> _Floats:
  """Return p = (1 + number of |null| >= |value|) / (K + 1), float64 [R]; NaN of NaN."""
  size_K = np.sort(np.abs(null_K[~np.isnan(null_K)]))
  above_R = len(size_K) - np.searchsorted(size_K, np.abs(value_R), side="left")
  return np.where(np.isnan(value_R) | (len(size_K) == 0), np.nan, (1 + above_R) / (len(size_K) + 1))


def cosine_table(
  directions: Sequence[Direction],
  r: Direction,
  *,
  metric: Metric = EUCLIDEAN,
  null: Sequence[Direction] = (),
  pairs: Mapping[str, PairDifferences | PairSum] | None = None,
  r_pairs: Resampled | None = None,
  alpha: ArrayLike = 1.0,
  unit: Literal["raw", "unit"] = "raw",
  blocks: Blocks = "all",
  confidence: float = 0.95,
  draws: int = 2000,
  seed: int = 0,
) -> pd.DataFrame:
  """Compare directions with refusal at every block.

  Args:
    directions: R directions v.
    r: the refusal direction; its vector at each block is compared there.
    metric: the inner product of cosines (`geometry.metrics`).
    null: control directions of one kind, e.g. `pj.controls(…, "R-cov")`.
    pairs: by concept, the pairs that a direction is the mean, or a sum of unit means, of; for
      intervals.
    r_pairs: pairs or samples that r is made of, which are then drawn too.
    alpha: the dose that `gaps` is of; a number, or [R, L'] or what broadcasts to it.
    unit: what alpha is a multiple of, as of `pj.add`: "raw" v, or "unit" v / ‖v‖.
    blocks: which; default all, L' of them.
    confidence: of intervals and bands.
    draws, seed: of bootstrap and shuffles.

  Returns:
    A row a direction and block, in that order:
      direction, block, metric;
      cos, low, high: with its bootstrap interval over questions, NaN without pairs;
      null_low, null_high, p: band of the null, and the share of it, the value included, that lies
        as far from 0;
      shuf_low, shuf_high: band where sides of pairs are swapped at random (R-shuf);
      reliability, reliability_r, cos_disattenuated: cos / √(both); of directions in the Euclidean
        metric, in others from pairs;
      norm: ‖v‖; gaps: <v, r̂> alpha, of the raw or the unit v, in units of r's class gap (both
        Euclidean);
      reason: why a value is NaN; no word of intervals and bands that were not asked for.

  Raises:
    ValueError: directions that do not compare, pairs of none of them or that a direction is not the
      mean of, an unknown unit or an unknown block.
  """
  if unit not in ("raw", "unit"):
    raise ValueError(f"unit={unit!r}: use 'raw' or 'unit'.")
  v_RLD, r_LD = means(directions, r), r.mean_LD
  null_KLD = means(null, r) if len(null) else np.empty((0, *r_LD.shape), np.float32)
  chosen = choose_blocks(blocks, len(r_LD), f"direction {r.concept!r}")
  if metric.site is not None and metric.site != r.site:
    raise ValueError(f"the {metric.name} metric is of site {metric.site!r}, r of {r.site!r}.")
  alpha_RL = np.broadcast_to(np.asarray(alpha, np.float64), (len(v_RLD), len(chosen)))
  pairs = dict(pairs or {})
  concepts = [d.concept for d in directions]
  for concept in pairs:
    if concepts.count(concept) != 1:
      raise ValueError(f"pairs of {concept!r}, of which {concepts.count(concept)} directions are.")
  mine = [pairs.get(concept) for concept in concepts]
  parts = []
  for n, block in enumerate(chosen):
    v_RD, r_D = v_RLD[:, block].astype(np.float64), r_LD[block].astype(np.float64)
    norm_R, r_norm = np.linalg.norm(v_RD, axis=1), float(np.linalg.norm(r_D))
    cos_R = cosines(v_RD, r_D, block, metric)
    null_K = cosines(null_KLD[:, block], r_D, block, metric)
    rows: dict[str, Any] = {"direction": concepts, "block": block, "metric": metric.name}
    rows["cos"] = cos_R
    rows |= _resampled(cos_R, v_RD, r_D, mine, r_pairs, block, metric, confidence, draws, seed)
    rows["null_low"], rows["null_high"] = band(null_K, confidence)
    rows["p"] = specificity(cos_R, null_K)
    rows["reliability"] = np.asarray(
      [_reliability(d, own, block, metric) for d, own in zip(directions, mine, strict=True)]
    )
    rows["reliability_r"] = _reliability(r, r_pairs, block, metric)
    both_R = np.sqrt(np.maximum(rows["reliability"], 0) * max(rows["reliability_r"], 0))
    rows["cos_disattenuated"] = np.where(
      both_R > 0, cos_R / np.where(both_R > 0, both_R, 1), np.nan
    )
    gap = np.nan if r.gap_L is None else float(r.gap_L[block])
    rows["norm"] = norm_R
    with np.errstate(divide="ignore", invalid="ignore"):
      added_R = alpha_RL[:, n] / (norm_R if unit == "unit" else 1.0)
      moved_R = v_RD @ r_D / r_norm * added_R / (gap if gap > 0 else np.nan)
    rows["gaps"] = np.where(norm_R > 0, moved_R, np.nan)
    rows["reason"] = [
      "; ".join(
        text
        for text, holds in (
          ("the direction has no vector here", not norm_R[i] > 0),
          (f"{r.concept!r} has no vector here", not r_norm > 0),
          ("a reliability is unknown or not above 0", not both_R[i] > 0),
          (f"{r.concept!r} has no class gap here", not gap > 0),
          (
            "no interval: what is drawn again cancels but for rounding",
            not np.isnan(cos_R[i]) and mine[i] is not None and np.isnan(rows["low"][i]),
          ),
        )
        if holds
      )
      for i in range(len(cos_R))
    ]
    parts.append(pd.DataFrame(rows).assign(order=np.arange(len(cos_R))))
  table = pd.concat(parts, ignore_index=True).sort_values(["order", "block"], kind="stable")
  return table.drop(columns="order").reset_index(drop=True)


def _reliability(d: Direction, pairs: Resampled | None, block: int, metric: Metric) -> float:
  """Return a direction's reliability in a metric; NaN if it is not known."""
  if metric.roots is None and d.reliability_L is not None:
    return float(d.reliability_L[block])
  if pairs is None:
    return float("nan")
  return gram.split_half(metric.map(pairs.made_of(block, pairs.half_weights), block))


def _resampled(
  cos_R: _Floats,
  v_RD: _Floats,
  r_D: _Floats,
  pairs: Sequence[PairDifferences | PairSum | None],
  r_pairs: Resampled | None,
  block: int,
  metric: Metric,
  confidence: float,
  draws: int,
  seed: int,
) -> dict[str, _Floats]:
  """Return intervals of the cosines and bands of shuffled pairs, where there are pairs."""
  names = ("low", "high", "shuf_low", "shuf_high")
  found = {name: np.full(len(cos_R), np.nan) for name in names}
  if not any(own is not None for own in pairs):
    return found
  r_K = metric.map(r_D, block)
  if r_pairs is not None:
    _check_mean(r_pairs, r_D, block, "r")
    # The same draws of r's questions beside every direction.
    rng = np.random.default_rng(derive_seed("cosines", "r", seed))
    r_weight_BM = r_pairs.row_weights(block, r_pairs.bootstrap_weights(draws, rng))
    y_MK = metric.map(r_pairs.rows(block), block)
  for i, own in enumerate(pairs):
    if own is None or np.isnan(cos_R[i]):
      continue
    _check_mean(own, v_RD[i], block, f"direction {i}")
    x_NK = metric.map(own.rows(block), block)
    rng = np.random.default_rng(derive_seed("cosines", "v", seed))
    weight_BN = own.row_weights(block, own.bootstrap_weights(draws, rng))
    if r_pairs is None:
      drawn_B = gram.cosines(x_NK, r_K, weight_BN)
    else:
      drawn_B = gram.cosines_of_both(x_NK, weight_BN, y_MK, r_weight_BM)
    found["low"][i], found["high"][i] = gram.interval(cos_R[i], drawn_B, confidence)
    swapped_BN = own.row_weights(block, own.shuffled_weights(draws, rng))
    shuffled_B = gram.cosines(x_NK, r_K, swapped_BN)
    found["shuf_low"][i], found["shuf_high"][i] = band(shuffled_B, confidence)
  return found


def _check_mean(pairs: Resampled, v_D: _Floats, block: int, name: str) -> None:
  mean_D = pairs.mean(block)
  size = float(np.linalg.norm(mean_D) * np.linalg.norm(v_D))
  cos = float(mean_D @ v_D) / size if size > 0 else 1.0
  if cos < _AGREES:
    raise ValueError(
      f"{name} is not the mean of its pair differences at block {block} (cosine {cos:.3f})."
    )


def shifted(d: Direction, by: int) -> Direction:
  """Return a direction whose vector at block i is that of block i - `by`; zero where none is.

  What a slip of block numbers would make of it. Class gap and reliability go along.

  Args:
    d: it.
    by: blocks, of either sign.

  Raises:
    ValueError: as many blocks as it has or more.
  """
  num_blocks = d.vectors_SLD.shape[1]
  if abs(by) >= num_blocks:
    raise ValueError(f"by={by}: direction {d.concept!r} has {num_blocks} blocks.")

  def move(x: np.ndarray, axis: int, fill: float) -> np.ndarray:
    out = np.roll(x, by, axis=axis)
    empty = range(by) if by > 0 else range(num_blocks + by, num_blocks)
    out[(slice(None),) * axis + (list(empty),)] = fill
    return out

  gap_L, reliability_L = d.gap_L, d.reliability_L
  return Direction(
    move(d.vectors_SLD, 1, 0.0),
    f"{d.concept} (blocks {by:+d})" if by else d.concept,
    d.site,
    dict(d.provenance) | {"shifted_by": by},
    None if gap_L is None else move(gap_L, 0, 0.0),
    None if reliability_L is None else move(reliability_L, 0, np.nan),
    d.num_heads,
  )


def shift_table(
  directions: Sequence[Direction],
  r: Direction,
  *,
  moved: Literal["both", "v", "r"] = "both",
  metric: Metric = EUCLIDEAN,
) -> pd.DataFrame:
  """Return cosines as they are and with directions shifted by a block to either side.

  Where "both" are moved, a row shows what a study that reads one block off would report; where one
  is, whether v and r have the same block numbers: a slip of one makes a shifted cosine larger.

  Args:
    directions: R directions.
    r: the refusal direction.
    moved: what is shifted.
    metric: the inner product; at each block its own.

  Returns:
    A row a direction and block: direction, block, cos_minus_1, cos_0, cos_plus_1 (the number is
    what was added to block numbers); NaN at ends.

  Raises:
    ValueError: as `cosine_table`.
  """
  if moved not in ("both", "v", "r"):
    raise ValueError(f"moved={moved!r}: use 'both', 'v' or 'r'.")
  v_RLD = means(directions, r)
  out: dict[str, Any] = {
    "direction": np.repeat([d.concept for d in directions], len(r.mean_LD)),
    "block": np.tile(np.arange(len(r.mean_LD)), len(directions)),
  }
  for by, name in ((-1, "cos_minus_1"), (0, "cos_0"), (1, "cos_plus_1")):
    r_LD = (shifted(r, by) if moved != "v" else r).mean_LD
    moved_RLD = v_RLD if moved == "r" else means([shifted(d, by) for d in directions], r)
    cos_LR = [cosines(moved_RLD[:, b], r_LD[b], b, metric) for b in range(len(r_LD))]
    out[name] = np.stack(cos_LR, axis=1).ravel()
  return pd.DataFrame(out)
