"""From two classes of activations at one block to a vector: the methods, in float64 on the host.

x_ND are activations of the positives and y_ND of the negatives, paired by row. Every vector points
from the negatives to the positives; PCA and LAT, whose components have no sign, are turned so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_EMPTY = 1e-12  # share of the largest singular value below which a direction holds no data


class NoComponent(ValueError):
  """All differences of activations are the same."""


def diff_means(x_ND: _Floats, y_ND: _Floats) -> _Floats:
  """Return mean(x) - mean(y) (Rimsky et al. 2024)."""
  return x_ND.mean(axis=0) - y_ND.mean(axis=0)


def pca_diff(x_ND: _Floats, y_ND: _Floats) -> _Floats:
  """Return the first principal component of the pairs' differences x - y, a unit vector.

  As repeng's "pca_diff": PCA centres the differences, so it finds how pairs differ from one another
  in how they differ, and not what all have in common, which `diff_means` finds.
  """
  return turned(_component(x_ND - y_ND), x_ND, y_ND)


def pca_center(x_ND: _Floats, y_ND: _Floats) -> _Floats:
  """Return the first principal component of both classes, each pair around its own middle.

  As repeng's "pca_center". A unit vector.
  """
  half_ND = (x_ND - y_ND) / 2
  return turned(_component(np.concatenate([half_ND, -half_ND])), x_ND, y_ND)


def lat(x_ND: _Floats, y_ND: _Floats, *, seed: int) -> _Floats:
  """Return the first principal component of differences of random pairs, a unit vector.

  Linear artificial tomography (Zou et al. 2023, arXiv 2310.01405): both classes are shuffled
  together and paired anew, without the labels, which then give the sign. The pairing is a draw, and
  `seed` says which.
  """
  all_MD = np.concatenate([x_ND, y_ND])
  order = np.random.default_rng(seed).permutation(len(all_MD))
  return turned(_component(all_MD[order[::2]] - all_MD[order[1::2]]), x_ND, y_ND)


def turned(v_D: _Floats, x_ND: _Floats, y_ND: _Floats) -> _Floats:
  """Return v or -v: the one on which more positives than not lie further than their negatives.

  The sign rule of repeng. Where as many do as not, the class means decide.
  """
  gap_N = (x_ND - y_ND) @ v_D
  votes = int((gap_N > 0).sum()) - int((gap_N < 0).sum())
  return -v_D if (votes or gap_N.mean()) < 0 else v_D


def _component(x_ND: _Floats) -> _Floats:
  """Return the first principal component of rows, a unit vector; sign as it comes.

  Raises:
    NoComponent: all rows are the same.
  """
  _, s_K, v_KD = np.linalg.svd(x_ND - x_ND.mean(axis=0), full_matrices=False)
  if not s_K[0] > _EMPTY * max(1.0, float(np.abs(x_ND).max())):
    raise NoComponent("all differences of activations are the same, so there is no component.")
  first: _Floats = v_KD[0]
  return first


def ledoit_wolf(x_ND: _Floats) -> tuple[_Floats, float]:
  """Return the shrunk covariance of rows, [D, D], and how much it was shrunk (0 to 1).

  (1 - a) S + a tr(S)/D I with the a of least expected squared error (Ledoit and Wolf 2004, J.
  Multivariate Anal. 88: 365-411).
  """
  n, d = x_ND.shape
  z_ND = x_ND - x_ND.mean(axis=0)
  cov_DD = z_ND.T @ z_ND / n
  mean = np.trace(cov_DD) / d
  # Of ‖S‖², the spread of eigenvalues, and the error of S, in the norm tr(A Aᵀ)/D.
  squares = float((cov_DD**2).sum())
  spread = squares - d * mean**2
  error = (float(((z_ND**2).sum(axis=1) ** 2).sum()) / n - squares) / n
  shrinkage = 1.0 if spread <= 0 else min(max(error / spread, 0.0), 1.0)
  cov_DD *= 1 - shrinkage
  cov_DD[np.diag_indices(d)] += shrinkage * mean
  return cov_DD, shrinkage


def lda(x_ND: _Floats, y_ND: _Floats) -> _Floats:
  """Return Σ⁻¹ (mean(x) - mean(y)): Fisher's discriminant, Σ within classes by Ledoit-Wolf.

  As scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`, which shrinks the
  covariance of each class in units of its features' spread and takes their mean.
  """
  gap_D = diff_means(x_ND, y_ND)
  cov_DD = np.zeros((len(gap_D), len(gap_D)))
  for z_ND in (x_ND, y_ND):
    scale_D = z_ND.std(axis=0)
    scale_D[scale_D == 0] = 1.0
    shrunk_DD, _ = ledoit_wolf(z_ND / scale_D)
    cov_DD += shrunk_DD * np.outer(scale_D, scale_D) * len(z_ND) / (len(x_ND) + len(y_ND))
  solved: _Floats
  try:
    solved = scipy.linalg.solve(cov_DD, gap_D, assume_a="pos")
  except np.linalg.LinAlgError:  # of so few rows that nothing was shrunk: the shortest solution
    solved = np.asarray(np.linalg.lstsq(cov_DD, gap_D)[0], np.float64)
  return solved


def logistic(x_ND: _Floats, y_ND: _Floats, *, c: float = 1.0) -> _Floats:
  """Return the weights of logistic regression of the class: c Σ log loss + ‖w‖²/2, with a constant.

  As scikit-learn's `LogisticRegression(C=c)`. It is solved in the space that the rows span, in
  which the penalty is the same, so that the cost does not grow with D².

  Raises:
    ValueError: c is not above 0, or it does not converge.
  """
  if not c > 0:
    raise ValueError(f"c={c!r} must be above 0.")
  z_MD = np.concatenate([x_ND, y_ND])
  centre_D = z_MD.mean(axis=0)  # the constant takes it up
  _, s_K, v_KD = np.linalg.svd(z_MD - centre_D, full_matrices=False)
  v_KD = v_KD[s_K > _EMPTY * s_K[0]]
  z_MK = (z_MD - centre_D) @ v_KD.T
  sign_M = np.repeat([1.0, -1.0], [len(x_ND), len(y_ND)])

  def loss(w_K1: _Floats) -> tuple[float, _Floats]:
    w_K, constant = w_K1[:-1], w_K1[-1]
    margin_M = sign_M * (z_MK @ w_K + constant)
    pull_M = -c * sign_M * scipy.special.expit(-margin_M)
    value = c * float(np.logaddexp(0, -margin_M).sum()) + float(w_K @ w_K) / 2
    return value, np.append(z_MK.T @ pull_M + w_K, pull_M.sum())

  start_K1 = np.zeros(z_MK.shape[1] + 1)
  options = {"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-9}
  found = scipy.optimize.minimize(loss, start_K1, jac=True, method="L-BFGS-B", options=options)
  if not found.success and np.abs(found.jac).max() > 1e-4:
    raise ValueError(f"logistic regression does not converge: {found.message}")
  weights: _Floats = found.x[:-1] @ v_KD
  return weights


def _of_unit_spread(make: Callable[..., _Floats]) -> Callable[..., _Floats]:
  """Return a method that sees activations in units of their spread within classes.

  So that a penalty means the same at every block, whatever the size of its activations.
  """

  def scaled(x_ND: _Floats, y_ND: _Floats, **options: Any) -> _Floats:
    spread = float(np.sqrt((x_ND.var(axis=0) + y_ND.var(axis=0)).mean() / 2)) or 1.0
    return make(x_ND / spread, y_ND / spread, **options)

  return scaled


@dataclasses.dataclass(frozen=True)
class Method:
  """How a vector is made of two classes.

  Attributes:
    make: (x_ND, y_ND, **options) → vector [D].
    about: what it is, in words.
    options: what it takes beside, with defaults.
  """

  make: Callable[..., _Floats]
  about: str
  options: tuple[tuple[str, Any], ...] = ()


METHODS = {
  "diff_means": Method(diff_means, "difference of class means"),
  "pca_diff": Method(pca_diff, "first component of pair differences (repeng)"),
  "pca_center": Method(pca_center, "first component of pair-centred rows (repeng)"),
  "lat": Method(lat, "first component of differences of random pairs (LAT)", (("seed", 0),)),
  "logistic": Method(_of_unit_spread(logistic), "weights of logistic regression", (("c", 1.0),)),
  "lda": Method(lda, "linear discriminant with Ledoit-Wolf covariance"),
}
