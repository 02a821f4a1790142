"""Inner products against formulas in numpy, and what they do not depend on."""

from typing import Any

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions.methods import ledoit_wolf
from persona_jax.directions.whiten import whitened_cosine
from persona_jax.geometry.cosines import cosines
from persona_jax.geometry.metrics import EUCLIDEAN, Metric, covariance_root, unembedding, whitening

D = 9
RNG = np.random.default_rng(0)
H_LND = RNG.normal(size=(2, 40, D)) @ np.diag(np.arange(1.0, 1 + D)) + 3
V_RD, R_D = RNG.normal(size=(5, D)), RNG.normal(size=D)


def test_whitened_cosines_are_those_of_the_inverse_covariance() -> None:
  metric = whitening(H_LND)
  for block in range(2):
    cov_DD, shrinkage = ledoit_wolf(H_LND[block])
    expected = [whitened_cosine(v_D, R_D, cov_DD) for v_D in V_RD]
    np.testing.assert_allclose(cosines(V_RD, R_D, block, metric), expected, rtol=1e-9)
    assert metric.about["shrinkage"][str(block)] == shrinkage


def test_whitened_cosines_do_not_change_under_a_linear_map_of_all() -> None:
  """An unshrunk covariance: A is any invertible map of activations, vectors and refusal alike."""
  a_DD = RNG.normal(size=(D, D))
  cov_DD = np.cov(H_LND[0].T, bias=True)

  def whiten(cov_DD: np.ndarray) -> Metric:
    value, basis = np.linalg.eigh(cov_DD)
    return Metric("whitened", {0: (basis / np.sqrt(value)) @ basis.T})

  plain = cosines(V_RD, R_D, 0, whiten(cov_DD))
  mapped = cosines(V_RD @ a_DD.T, a_DD @ R_D, 0, whiten(a_DD @ cov_DD @ a_DD.T))
  np.testing.assert_allclose(mapped, plain, atol=1e-8)
  assert np.abs(cosines(V_RD @ a_DD.T, a_DD @ R_D, 0) - cosines(V_RD, R_D, 0)).max() > 0.1


def test_shrunk_whitening_does_not_change_under_a_rotation_and_a_scale_of_all() -> None:
  q_DD = np.linalg.qr(RNG.normal(size=(D, D)))[0] * 5.0
  plain = cosines(V_RD, R_D, 1, whitening(H_LND))
  turned = cosines(V_RD @ q_DD, R_D @ q_DD, 1, whitening(H_LND @ q_DD))
  np.testing.assert_allclose(turned, plain, atol=1e-9)


def test_a_dose_and_an_array_of_the_same_make_the_same_metric() -> None:
  sample = H_LND.astype(np.float32)
  of_dose = whitening(pj.Dose(np.ones(2), sample, 40, {}, "mlp_out"))
  assert of_dose.site == "mlp_out"
  np.testing.assert_array_equal(of_dose.map(V_RD, 1), whitening(sample).map(V_RD, 1))


def test_only_the_blocks_that_are_wanted_are_made() -> None:
  metric = whitening(H_LND, blocks=[1])
  with pytest.raises(ValueError, match=r"blocks \[1\], not 0"):
    metric.map(V_RD, 0)
  with pytest.raises(ValueError, match=r"blocks \[2\]"):
    whitening(H_LND, blocks=[2])
  with pytest.raises(ValueError, match="num_blocks"):
    whitening([H_LND])  # type: ignore[arg-type]


@pytest.mark.parametrize(
  ("which", "name"), [("tiny", "lm_head"), ("tiny_tied", "model.embed_tokens")]
)
def test_the_causal_product_is_the_covariance_of_unembedding_rows(
  which: str, name: str, request: pytest.FixtureRequest
) -> None:
  """Park et al. 2024: <λ, λ'> = λᵀ Cov(γ) λ', the variance over tokens of what λ does to logits."""
  tiny: Any = request.getfixturevalue(which)
  rows_VD = tiny.tensors[f"{name}.weight"].astype(np.float64)
  metric = unembedding(tiny.model)
  v_RD = np.random.default_rng(1).normal(size=(4, rows_VD.shape[1]))
  mapped = metric.map(v_RD, 2)
  logits_RV = v_RD @ rows_VD.T
  np.testing.assert_allclose(mapped @ mapped.T, np.cov(logits_RV, bias=True), rtol=1e-6)
  assert metric.roots is not None and metric.roots[0] is metric.roots[2]


def test_the_causal_product_ignores_what_all_tokens_share() -> None:
  rows_VD = RNG.normal(size=(50, D))
  np.testing.assert_allclose(covariance_root(rows_VD + 100), covariance_root(rows_VD), atol=1e-9)


def test_the_euclidean_metric_maps_nothing() -> None:
  np.testing.assert_array_equal(EUCLIDEAN.map(V_RD, 17), V_RD)
