"""A census on a tiny model against one pass a row; components against the covariance."""

from typing import Any

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.geometry import census as census_module
from persona_jax.geometry.census import census, components, direction_bank, predictors
from persona_jax.geometry.gradients import gradients, refusal_mask
from persona_jax.geometry.metrics import EUCLIDEAN, whitening

PROMPTS = [f"w{5 + n} w{20 + n} w9" + " w7" * (n % 2) for n in range(4)]
IDS = [7, 11]


@pytest.fixture(scope="module")
def dose(tiny: Any) -> pj.Dose:
  blocks, width = tiny.model.arch.num_blocks, tiny.model.arch.width
  rng = np.random.default_rng(0)
  sample = rng.normal(size=(blocks, 200, width)) * np.linspace(1, 3, width)
  return pj.Dose(np.full(blocks, 9.0, np.float32), sample.astype(np.float32), 200, {})


def test_a_bank_is_of_traits_placebo_random_draws_and_components(tiny: Any, dose: pj.Dose) -> None:
  traits, placebo = [tiny.direction(k) for k in (1, 2)], [tiny.direction(3)]
  bank = direction_bank(traits, placebo, dose=dose, num_random=5, num_components=3)
  assert {kind: len(ds) for kind, ds in bank.items()} == {
    "trait": 2,
    "placebo": 1,
    "R-cov": 5,
    "PC": 3,
  }


def test_components_are_eigenvectors_of_the_covariance(dose: pj.Dose) -> None:
  for block, x_ND in enumerate(dose.sample_LND.astype(np.float64)):
    _, basis = np.linalg.eigh(np.cov(x_ND.T))
    for k, d in enumerate(components(dose, 3)):
      assert abs(d.unit_LD[block] @ basis[:, -1 - k]) == pytest.approx(1, abs=1e-6)
      loading_N = (x_ND - x_ND.mean(axis=0)) @ d.unit_LD[block]
      assert (loading_N**3).sum() >= 0
  with pytest.raises(ValueError, match="has 44 components"):
    components(dose, 45)


@pytest.mark.parametrize("logit_rows", [1024, 9])
def test_effects_are_those_of_one_pass_a_row(
  tiny: Any, dose: pj.Dose, logit_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(census_module, "_LOGIT_ROWS", logit_rows)
  bank = {"trait": [tiny.direction(1)], "R-iso": [tiny.direction(k) for k in (2, 3)]}
  found = census(tiny.model, PROMPTS, bank, 1, 0.3, IDS, unit="resid", scale=dose)
  assert found.names == ("random1", "random2", "random3")
  assert found.kinds == ("trait", "R-iso", "R-iso")
  refusal_V = refusal_mask(tiny.model, IDS)
  for n, prompt in enumerate(PROMPTS):
    ids = np.asarray([tiny.model.encode(prompt).ids], np.int32)
    plain, _ = pj.forward(tiny.model, ids, logits="last")
    base = log_odds(np.asarray(plain), np.flatnonzero(refusal_V))[0]
    assert found.base_N[n] == pytest.approx(base, abs=1e-4)
    for i, d in enumerate(found.directions):
      edit = pj.add(d, 0.3 * 9.0, unit="unit", blocks=1)
      z, _ = pj.forward(tiny.model, ids, pj.compile_edits(tiny.model, [edit]), logits="last")
      expected = log_odds(np.asarray(z), np.flatnonzero(refusal_V))[0] - base
      assert found.delta_RN[i, n] == pytest.approx(expected, abs=1e-4)
      assert found.change("log_odds")[i, n] == found.delta_RN[i, n]
      p, p_base = (1 / (1 + np.exp(x)) for x in (base + expected, base))
      assert found.change("p_bypass")[i, n] == pytest.approx(p - p_base, abs=1e-5)
  with pytest.raises(ValueError, match="outcome='asr': use one of"):
    found.change("asr")  # type: ignore[arg-type]


def test_small_doses_do_what_the_coupling_predicts(tiny: Any) -> None:
  ds, r = [tiny.direction(k) for k in (1, 2, 3)], tiny.direction(4)
  back = gradients(tiny.model, PROMPTS, r, [1], IDS)
  found = census(tiny.model, PROMPTS, {"trait": ds}, 1, 0.05, IDS, unit="unit")
  x = predictors(ds, r, 1, metrics=[EUCLIDEAN], gradients=back)
  np.testing.assert_allclose(found.delta_RN.mean(axis=1) / 0.05, x["coupling"], atol=3e-3)
  expected = [d.unit_LD[1] @ r.unit_LD[1] for d in ds]
  np.testing.assert_allclose(x["cos_euclidean"], expected, atol=1e-6)


def test_predictors_are_named_by_their_metric(tiny: Any, dose: pj.Dose) -> None:
  ds = [tiny.direction(k) for k in (1, 2)]
  x = predictors(ds, ds[0], 0, metrics=[EUCLIDEAN, whitening(dose)])
  assert set(x) == {"cos_euclidean", "cos_whitened"}
  assert x["cos_whitened"][0] == pytest.approx(1)


def test_directions_that_are_one_do_not_count_twice(tiny: Any) -> None:
  d = tiny.direction(1)
  both = {"trait": [d, *pj.controls(d, "-v")["-v"]]}
  with pytest.raises(ValueError, match="'random1' and '-random1' have a cosine of size 1.000"):
    census(tiny.model, PROMPTS, both, 1, 1.0, IDS, unit="unit")
  # Where no slope is fitted, their effects may be wanted: a negative is the opposite dose.
  found = census(tiny.model, PROMPTS, both, 1, 1.0, IDS, unit="unit", copies=True)
  other = census(tiny.model, PROMPTS, {"trait": [d]}, 1, -1.0, IDS, unit="unit")
  np.testing.assert_allclose(found.delta_RN[1], other.delta_RN[0], atol=1e-5)
  with pytest.raises(ValueError, match="needs prompts"):
    census(tiny.model, [], {"trait": [d]}, 1, 1.0, IDS, unit="unit")
