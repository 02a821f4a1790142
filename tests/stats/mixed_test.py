"""The mixed model: planted log-odds, statsmodels where there are no random effects, refusals."""

import math

import numpy as np
import pytest
import scipy.special
import statsmodels.api

from persona_jax import stats

INTERACTION = np.array([1.5, -1.0, -0.5, 0.0])


def world(
  prompt_sd: float = 1.2, seed: int = 0, n: int = 80, replicates: int = 3
) -> stats.Outcomes:
  rng = np.random.default_rng(seed)
  log_odds = -0.5 + np.outer([-0.5, 0.5], INTERACTION)[:, :, None, None]
  log_odds = log_odds + prompt_sd * rng.normal(size=n)
  log_odds = np.broadcast_to(log_odds, (2, 4, replicates, n))
  y_MPKN = (rng.random(log_odds.shape) < scipy.special.expit(log_odds)).astype(float)
  return stats.Outcomes(y_MPKN, ("SP", "AS"), tuple("abcd"), range(replicates), range(n))


def test_planted_interactions_and_prompt_spread_are_recovered() -> None:
  model = stats.mixed_model(world(), against=dict(zip("abcd", INTERACTION, strict=True)))
  assert model.interaction.term.tolist() == pytest.approx(INTERACTION.tolist(), abs=0.5)
  assert model.interaction.term.sum() == pytest.approx(0.0, abs=1e-9)
  assert model.interaction_variance == pytest.approx(INTERACTION.var(), rel=0.4)
  assert model.prompt_sd == pytest.approx(1.2, rel=0.25)
  assert model.replicate_sd < 0.5
  assert model.agrees is True


def test_without_random_effects_it_is_logistic_regression() -> None:
  o = world(prompt_sd=0.0, n=400, replicates=1)
  y = o.y_MPKN.ravel()
  m, p = np.repeat([-0.5, 0.5], 1600), np.tile(np.repeat(np.arange(4), 400), 2)
  code = np.concatenate([np.eye(3), -np.ones((1, 3))])[p]
  design = np.column_stack([np.ones(3200), m, code, m[:, None] * code])
  family = statsmodels.api.families.Binomial()
  theirs = statsmodels.api.GLM(y, design, family=family).fit()
  ours = stats.mixed_model(o).fixed
  assert ours["mean"].tolist() == pytest.approx(theirs.params.tolist(), abs=0.06)
  assert ours.sd.tolist() == pytest.approx(theirs.bse.tolist(), rel=0.1)


def test_cells_without_a_success_stay_finite() -> None:
  o = world()
  y_MPKN = o.y_MPKN.copy()
  y_MPKN[0, 0] = 0.0
  model = stats.mixed_model(
    stats.Outcomes(y_MPKN, o.arms, o.personas, o.replicates, o.prompts), prior_sd=2.5
  )
  assert np.isfinite(model.fixed["mean"]).all() and model.interaction.term.abs().max() < 10


def test_signs_that_differ_are_said() -> None:
  model = stats.mixed_model(world(), against={"a": 0.2, "b": 0.1})
  assert model.agrees is False
  assert model.interaction.agrees[:2].tolist() == [True, False]
  assert model.interaction.agrees[2:].isna().all()
  assert stats.mixed_model(world(n=20)).agrees is None


def test_missing_values_are_left_out_and_counted() -> None:
  o = world(n=30)
  y_MPKN = o.y_MPKN.copy()
  y_MPKN[0, 0, 0, :7] = math.nan
  model = stats.mixed_model(stats.Outcomes(y_MPKN, o.arms, o.personas, o.replicates, o.prompts))
  assert (model.n, model.reason) == (713, "7 of 720 values are missing and left out")


def test_a_constant_outcome_has_no_model_and_a_reason() -> None:
  o = world(n=5)
  flat = stats.Outcomes(np.zeros_like(o.y_MPKN), o.arms, o.personas, o.replicates, o.prompts)
  model = stats.mixed_model(flat)
  assert math.isnan(model.interaction_variance) and model.reason == "the outcome is constant"


def test_outcomes_that_are_no_choices_are_refused() -> None:
  o = world(n=5)
  half = stats.Outcomes(o.y_MPKN / 2, o.arms, o.personas, o.replicates, o.prompts)
  with pytest.raises(ValueError, match="besides 0 and 1"):
    stats.mixed_model(half)
  with pytest.raises(ValueError, match=r"no personas \['z'\]"):
    stats.mixed_model(o, against={"z": 1.0})
