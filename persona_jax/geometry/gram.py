"""Cosines of resampled mean differences, by Gram matrices: no resampled vector is ever made.

A mean difference with weights w on its N pairs is v = Σ w_n δ_n. With G = ΔΔᵀ and b = Δr,
cos(v, r) = w·b / (√(wᵀGw) ‖r‖), so a draw costs N² and not N·D.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class PairDifferences:
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
    z_NLD = np.asarray(self.z_NLD, np.float32)
    if z_NLD.ndim != 3 or len(z_NLD) < 2 or not np.isfinite(z_NLD).all():
      raise ValueError(
        f"pair differences of shape {z_NLD.shape}: give finite [N, L, D] of 2 or more pairs."
      )
    if self.questions is not None and len(self.questions) != len(z_NLD):
      raise ValueError(f"{len(self.questions)} questions for {len(z_NLD)} pairs; give one each.")
    object.__setattr__(self, "z_NLD", z_NLD)

  @property
  def question_N(self) -> NDArray[np.intp]:
    """Number of each pair's question, from 0."""
    count = len(self.z_NLD)
    if self.questions is None:
      return np.arange(count)
    codes_N, _ = pd.factorize(pd.Series(list(self.questions)))
    return np.asarray(codes_N, np.intp)

  def bootstrap_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return how often each pair is drawn when questions are, [B, N]."""
    question_N = self.question_N
    count = int(question_N.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), draws)[:, question_N].astype(float)

  def shuffled_weights(self, draws: int, rng: np.random.Generator) -> _Floats:
    """Return weights of pairs whose sides were swapped at random, [B, N], of -1 and 1."""
    return rng.choice([-1.0, 1.0], (draws, len(self.z_NLD)))

  @property
  def half_weights(self) -> _Floats:
    """Weights of two halves, [2, N]: even and odd questions."""
    odd_N = self.question_N % 2 == 1
    return np.stack([~odd_N, odd_N]).astype(float)


def cosines(x_ND: _Floats, r_D: _Floats, weight_BN: _Floats) -> _Floats:
  """Return the cosines of weighted sums of rows with one vector, [B]; NaN of a zero sum."""
  square_B = ((weight_BN @ (x_ND @ x_ND.T)) * weight_BN).sum(axis=1)
  return _ratio(weight_BN @ (x_ND @ r_D), square_B, np.full(len(weight_BN), r_D @ r_D))


def cosines_of_both(
  x_ND: _Floats, weight_BN: _Floats, y_MD: _Floats, weight_BM: _Floats
) -> _Floats:
  """Return the cosines of weighted sums of rows with weighted sums of others, draw by draw, [B]."""
  square_B = ((weight_BN @ (x_ND @ x_ND.T)) * weight_BN).sum(axis=1)
  other_B = ((weight_BM @ (y_MD @ y_MD.T)) * weight_BM).sum(axis=1)
  return _ratio(((weight_BN @ (x_ND @ y_MD.T)) * weight_BM).sum(axis=1), square_B, other_B)


def split_half(x_ND: _Floats, half_2N: _Floats) -> float:
  """Return the reliability of a mean by the cosine of its halves (Spearman-Brown); NaN if none."""
  a_D, b_D = half_2N @ x_ND
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
