"""Whitened geometry: directions as they are where all directions of the data spread alike."""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


def whitened(v_D: _Floats, cov_DD: _Floats) -> _Floats:
  """Return Σ^(-1/2) v, in float64.

  Args:
    v_D: a vector, or vectors [R, D].
    cov_DD: covariance, positive definite: shrunk (`methods.ledoit_wolf`) where there are fewer
      observations than dimensions.

  Raises:
    ValueError: the covariance is not symmetric or not positive definite.
  """
  cov_DD = np.asarray(cov_DD, np.float64)
  if not np.allclose(cov_DD, cov_DD.T, rtol=1e-6, atol=1e-12 * np.abs(cov_DD).max()):
    raise ValueError("the covariance is not symmetric.")
  value_D, basis_DD = scipy.linalg.eigh(cov_DD)
  if value_D[0] <= 0:
    raise ValueError(
      f"the covariance is not positive definite (least eigenvalue {value_D[0]:.3g}); shrink it."
    )
  root_DD = (basis_DD / np.sqrt(value_D)) @ basis_DD.T
  found: _Floats = np.asarray(v_D, np.float64) @ root_DD
  return found


def whitened_cosine(a_D: _Floats, b_D: _Floats, cov_DD: _Floats) -> float:
  """Return the cosine of two vectors after whitening.

  Raises:
    ValueError: as `whitened`, or a zero vector.
  """
  a, b = whitened(np.stack([a_D, b_D]), cov_DD)
  size = np.linalg.norm(a) * np.linalg.norm(b)
  if not size > 0:
    raise ValueError("a zero vector has no direction.")
  return float(a @ b / size)
