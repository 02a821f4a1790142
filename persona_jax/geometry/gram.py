"""Cosines of resampled mean differences, by Gram matrices: no resampled vector is ever made.

A mean difference with weights w on its N rows is v = Σ w_n δ_n. With G = ΔΔᵀ and b = Δr,
cos(v, r) = w·b / (√(wᵀGw) ‖r‖), so a draw costs N² and not N·D. What rows and weights are depends
on what a direction was made of: pairs, the sum of several such directions, or two samples.
"""

import abc
import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

_Floats = NDArray[np.float64]
_ROUNDING = 1e-12  # of squared lengths, float32 rows


class Resampled(abc.ABC):
  """What a direction was made of, so that it can be made again of a part or a draw of it.

  A draw gives a weight to each of N rows, [B, N]; `row_weights` makes of them the weights whose
  weighted sum of rows is the direction of that draw, up to its length.
  """

  @abc.abstractmethod
  def rows(self, block: int) -> np.ndarray:
    """Return the rows at a block, [N, D]."""

  @property
  @abc.abstractmethod
  def question_N(self) -> NDArray[np.intp]:
    """Number of the question, from 0, that each row belongs to; they are drawn whole."""

  def row_weights(self, block: int, weight_BN: _Floats) -> _Floats:
    """Return weights of rows at a block, of how often each was drawn, [B, N]."""
    del block
    return weight_BN

  def bootstrap_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return how often each row is drawn when questions are, [B, N]."""
    return _drawn(self.question_N, draws, rng)

  @property
  def half_weights(self) -> _Floats:
    """Weights of two halves, [2, N]: even and odd questions."""
    odd_N = self.question_N % 2 == 1
    return np.stack([~odd_N, odd_N]).astype(float)

  def made_of(self, block: int, weight_BN: _Floats) -> _Floats:
    """Return the direction of each draw at a block, up to its length, float64 [B, D]."""
    found: _Floats = self.row_weights(block, weight_BN) @ self.rows(block).astype(np.float64)
    return found

  def mean(self, block: int) -> _Floats:
    """Return the direction of all rows at a block, up to its length, float64 [D]."""
    vector_D: _Floats = self.made_of(block, np.ones((1, len(self.question_N))))[0]
    return vector_D


@dataclasses.dataclass(frozen=True, eq=False)
class PairDifferences(Resampled):
  """What a direction is the mean of.

  Attributes:
    z_NLD: float32, activation of the positive less that of the negative, of N pairs.
    questions: a label for each pair; pairs with one label are drawn together. None: each by itself.

  Raises:
    ValueError: not [N, L, D], fewer than 2 pairs, a NaN, or another number of labels.
  """

  z_NLD: np.ndarray
  questions: Sequence[Hashable] | None = None

  def __post_init__(self) -> None:
    object.__setattr__(self, "z_NLD", _checked("pair differences", self.z_NLD, self.questions))

  def rows(self, block: int) -> np.ndarray:
    """Return the differences at a block, float32 [N, D]."""
    return self.z_NLD[:, block]

  @property
  def question_N(self) -> NDArray[np.intp]:
    """Number of each pair's question, from 0."""
    return _numbered(len(self.z_NLD), self.questions)

  def shuffled_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return weights of pairs whose sides were swapped at random, [B, N], of -1 and 1."""
    return rng.choice([-1.0, 1.0], (draws, len(self.question_N)))


@dataclasses.dataclass(frozen=True, eq=False)
class PairSum(Resampled):
  """What a sum of unit vectors is made of, each of them the direction of a mean difference.

  As `directions.direction.compose` adds directions: in each replicate the parts' unit vectors, the
  sum made a unit vector again; the direction is the mean of replicates. A question that several
  parts have is drawn in all of them alike. A replicate counts as often as its pairs are drawn, and
  not at all where a draw leaves one of its parts without any.

  Attributes:
    parts: pairs of each part, of one number of blocks and width.
    signs: with which each unit vector is added, 1 or -1.
    replicates: of each part, a label for each pair; None: there is one replicate.

  Raises:
    ValueError: fewer than two parts, parts of unlike shapes, signs or replicates that do not fit.
  """

  parts: Sequence[PairDifferences]
  signs: Sequence[float]
  replicates: Sequence[Sequence[Hashable]] | None = None

  def __post_init__(self) -> None:
    shapes = sorted({part.z_NLD.shape[1:] for part in self.parts})
    if len(self.parts) < 2 or len(shapes) > 1:
      raise ValueError(
        f"{len(self.parts)} parts of (blocks, width) {shapes}: give two or more of one shape."
      )
    if len(self.signs) != len(self.parts) or set(self.signs) - {1, -1}:
      raise ValueError(f"signs={list(self.signs)}: give 1 or -1 for each of {len(self.parts)}.")
    if self.replicates is not None:
      given, fit = [len(x) for x in self.replicates], [len(part.z_NLD) for part in self.parts]
      if given != fit:
        raise ValueError(f"{given} labels of replicates for {fit} pairs; give one each.")

  def rows(self, block: int) -> np.ndarray:
    """Return the differences of all parts at a block, one below the other, float32 [N, D]."""
    return np.concatenate([part.rows(block) for part in self.parts])

  @property
  def question_N(self) -> NDArray[np.intp]:
    """Number of each row's question, from 0."""
    labels: list[Hashable] = []
    for i, part in enumerate(self.parts):
      own = part.questions
      labels += [("part", i, n) for n in range(len(part.z_NLD))] if own is None else list(own)
    return _numbered(len(labels), labels)

  def shuffled_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return weights of pairs whose sides were swapped at random, [B, N], of -1 and 1."""
    return rng.choice([-1.0, 1.0], (draws, len(self.question_N)))

  def row_weights(self, block: int, weight_BN: _Floats) -> _Floats:
    """Return weights that make unit vectors of parts, and of replicates; NaN where none is left."""
    counts = [len(part.z_NLD) for part in self.parts]
    part_N = np.repeat(np.arange(len(counts)), counts)
    replicate_N = np.zeros(len(part_N), np.intp)
    if self.replicates is not None:
      labels = [label for own in self.replicates for label in own]
      replicate_N = _numbered(len(labels), labels)
    x_ND = self.rows(block).astype(np.float64)
    found_BN = np.zeros(weight_BN.shape)
    for k in range(int(replicate_N.max()) + 1):
      rows = np.flatnonzero(replicate_N == k)
      gram_nn = x_ND[rows] @ x_ND[rows].T
      unit_Bn = np.zeros((len(weight_BN), len(rows)))
      for i, sign in enumerate(self.signs):
        own = np.flatnonzero(part_N[rows] == i)
        w_Bo = weight_BN[:, rows[own]]
        unit_Bn[:, own] = sign * w_Bo / _size(w_Bo, gram_nn[np.ix_(own, own)])[:, None]
      times_B = np.abs(weight_BN[:, rows]).sum(axis=1) / _size(unit_Bn, gram_nn)
      found_BN[:, rows] = np.nan_to_num(unit_Bn * times_B[:, None])
    found_BN[~found_BN.any(axis=1)] = np.nan
    return found_BN


@dataclasses.dataclass(frozen=True, eq=False)
class TwoSamples(Resampled):
  """What the difference of two means is made of, where nothing of one goes with one of the other.

  Rows are those of both; both are drawn by themselves, and each half has half of either.

  Attributes:
    x_NLD, y_MLD: float32, activations of the two samples.
    x_clusters, y_clusters: a label for each; what has one label is drawn together. None: each by
      itself.

  Raises:
    ValueError: as `PairDifferences`, or of unlike shapes, or a sample of one cluster.
  """

  x_NLD: np.ndarray
  y_MLD: np.ndarray
  x_clusters: Sequence[Hashable] | None = None
  y_clusters: Sequence[Hashable] | None = None

  def __post_init__(self) -> None:
    x_NLD = _checked("a sample", self.x_NLD, self.x_clusters)
    y_MLD = _checked("a sample", self.y_MLD, self.y_clusters)
    if x_NLD.shape[1:] != y_MLD.shape[1:]:
      raise ValueError(
        f"samples of (blocks, width) {x_NLD.shape[1:]} and {y_MLD.shape[1:]}: give one shape."
      )
    object.__setattr__(self, "x_NLD", x_NLD)
    object.__setattr__(self, "y_MLD", y_MLD)
    if min(number_N.max() for number_N in self._numbers) == 0:
      raise ValueError("a sample is of one cluster: give two at least, to draw from.")

  @property
  def _numbers(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return (
      _numbered(len(self.x_NLD), self.x_clusters),
      _numbered(len(self.y_MLD), self.y_clusters),
    )

  def rows(self, block: int) -> np.ndarray:
    """Return both samples at a block, one below the other, float32 [N + M, D]."""
    return np.concatenate([self.x_NLD[:, block], self.y_MLD[:, block]])

  @property
  def question_N(self) -> NDArray[np.intp]:
    """Number of each row's cluster, each sample's from 0."""
    return np.concatenate(self._numbers)

  def bootstrap_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return how often each row is drawn when the clusters of either sample are, [B, N + M]."""
    return np.concatenate([_drawn(number_N, draws, rng) for number_N in self._numbers], axis=1)

  def row_weights(self, block: int, weight_BN: _Floats) -> _Floats:
    """Return weights of the mean of one sample less that of the other."""
    x_BN, y_BM = np.split(weight_BN, [len(self.x_NLD)], axis=1)
    return np.concatenate(
      [x_BN / x_BN.sum(axis=1, keepdims=True), -y_BM / y_BM.sum(axis=1, keepdims=True)], axis=1
    )


def _checked(what: str, z_NLD: np.ndarray, labels: Sequence[Hashable] | None) -> np.ndarray:
  z_NLD = np.asarray(z_NLD, np.float32)
  if z_NLD.ndim != 3 or len(z_NLD) < 2 or not np.isfinite(z_NLD).all():
    raise ValueError(f"{what} of shape {z_NLD.shape}: give finite [N, L, D] of 2 or more.")
  if labels is not None and len(labels) != len(z_NLD):
    raise ValueError(f"{len(labels)} labels for {what} of {len(z_NLD)}; give one each.")
  return z_NLD


def _numbered(count: int, labels: Sequence[Hashable] | None) -> NDArray[np.intp]:
  """Return the number of each row's label in order of first appearance; without, its own."""
  if labels is None:
    return np.arange(count)
  codes_N, _ = pd.factorize(pd.Series(list(labels), dtype=object))
  return np.asarray(codes_N, np.intp)


def _drawn(number_N: NDArray[np.intp], draws: int, rng: np.random.Generator) -> _Floats:
  count = int(number_N.max()) + 1
  return rng.multinomial(count, np.full(count, 1 / count), draws)[:, number_N].astype(float)


def _square(weight_BN: _Floats, gram_NN: _Floats) -> _Floats:
  """Return squared lengths of weighted sums of rows, [B]; 0 of what is left of rows that cancel.

  Rows are float32: sums of equal ones, with weights of sum 0, leave rounding and no direction.
  """
  square_B: _Floats = ((weight_BN @ gram_NN) * weight_BN).sum(axis=1)
  largest_B = (np.abs(weight_BN) @ np.sqrt(np.diagonal(gram_NN))) ** 2
  return np.where(square_B > _ROUNDING * largest_B, square_B, 0.0)


def _size(weight_BN: _Floats, gram_NN: _Floats) -> _Floats:
  """Return the lengths of weighted sums of rows, [B]; NaN of a zero sum."""
  square_B = _square(weight_BN, gram_NN)
  return np.sqrt(np.where(square_B > 0, square_B, np.nan))


def cosines(x_ND: _Floats, r_D: _Floats, weight_BN: _Floats) -> _Floats:
  """Return the cosines of weighted sums of rows with one vector, [B]; NaN of a zero sum."""
  square_B = _square(weight_BN, x_ND @ x_ND.T)
  return _ratio(weight_BN @ (x_ND @ r_D), square_B, np.full(len(weight_BN), r_D @ r_D))


def cosines_of_both(
  x_ND: _Floats, weight_BN: _Floats, y_MD: _Floats, weight_BM: _Floats
) -> _Floats:
  """Return the cosines of weighted sums of rows with weighted sums of others, draw by draw, [B]."""
  square_B, other_B = (
    _square(weight_BX, z_XD @ z_XD.T) for weight_BX, z_XD in ((weight_BN, x_ND), (weight_BM, y_MD))
  )
  return _ratio(((weight_BN @ (x_ND @ y_MD.T)) * weight_BM).sum(axis=1), square_B, other_B)


def split_half(half_2D: _Floats) -> float:
  """Return the reliability of a direction by the cosine of its halves (Spearman-Brown).

  NaN where a half is zero or the halves are opposite.
  """
  a_D, b_D = half_2D
  size = float(np.linalg.norm(a_D) * np.linalg.norm(b_D))
  if not size > 0:
    return float("nan")
  cos = float(a_D @ b_D) / size
  return 2 * cos / (1 + cos) if cos > -1 else float("nan")


def _ratio(product_B: _Floats, square_B: _Floats, other_B: _Floats) -> _Floats:
  size_B = np.sqrt(np.maximum(square_B, 0.0) * np.maximum(other_B, 0.0))
  found: _Floats = np.where(size_B > 0, product_B / np.where(size_B > 0, size_B, 1.0), np.nan)
  return found


def interval(estimate: float, drawn_B: _Floats, confidence: float) -> tuple[float, float]:
  """Return the percentiles of draws, corrected for bias (BC of Efron 1987, JASA 82: 171-185).

  Draws repeat questions, so their vectors are noisier than the estimate's and their cosines nearer
  to 0.
  """
  drawn_B = drawn_B[~np.isnan(drawn_B)]
  if not len(drawn_B) or np.isnan(estimate):
    return float("nan"), float("nan")
  below = (drawn_B < estimate).mean() + 0.5 * (drawn_B == estimate).mean()
  shift = ndtri(np.clip(below, 1 / len(drawn_B), 1 - 1 / len(drawn_B)))
  tails = ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
  low, high = np.quantile(drawn_B, ndtr(2 * shift + tails))
  return float(low), float(high)
