"""Whitening against numpy and scipy in float64."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from persona_jax.directions.methods import ledoit_wolf
from persona_jax.directions.whiten import whitened, whitened_cosine


def data(n=50):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, 7)) @ np.diag(np.arange(1.0, 8)) @ rng.normal(size=(7, 7))


@pytest.mark.parametrize("n", [50, 5])
def test_whitening_is_by_the_inverse_root_of_the_covariance(n):
  cov_DD, _ = ledoit_wolf(data(n))
  v_RD = np.random.default_rng(1).normal(size=(3, 7))
  inverse_DD = np.linalg.inv(sqrtm(cov_DD).real)
  np.testing.assert_allclose(whitened(v_RD, cov_DD), v_RD @ inverse_DD, rtol=1e-9)
  np.testing.assert_allclose(whitened(v_RD[0], cov_DD), inverse_DD @ v_RD[0], rtol=1e-9)
  # Mahalanobis: the length is that by the inverse covariance.
  length = np.linalg.norm(whitened(v_RD[0], cov_DD))
  assert length**2 == pytest.approx(v_RD[0] @ np.linalg.solve(cov_DD, v_RD[0]), rel=1e-9)
  a, b = v_RD[:2] @ inverse_DD
  cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert whitened_cosine(v_RD[0], v_RD[1], cov_DD) == pytest.approx(cosine, rel=1e-9)


def test_whitened_data_spread_alike():
  x_ND = data(2000)
  cov_DD = np.cov(x_ND.T, bias=True)
  np.testing.assert_allclose(np.cov(whitened(x_ND, cov_DD).T, bias=True), np.eye(7), atol=1e-9)


def test_what_cannot_be_whitened_is_refused():
  x_ND = data(5)
  with pytest.raises(ValueError, match="not positive definite"):
    whitened(np.ones(7), np.cov(x_ND.T) - 1e-9 * np.eye(7))
  with pytest.raises(ValueError, match="not symmetric"):
    whitened(np.ones(2), np.asarray([[1.0, 0.5], [0.0, 1.0]]))
  with pytest.raises(ValueError, match="zero vector"):
    whitened_cosine(np.zeros(2), np.ones(2), np.eye(2))
