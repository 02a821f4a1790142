"""The clustered logit against its formulas, separation, and pairs of like length."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from persona_jax.stats.association import clustered_logit, length_matched, matched_difference


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
  rng = np.random.default_rng(0)
  n, clusters = 400, 40
  made = pd.DataFrame(
    {
      "prompt_id": np.repeat(np.arange(clusters), n // clusters),
      "method": rng.choice(["a", "b"], n),
      "persona": rng.choice(["P1", "P2"], n),
      "cue": rng.poisson(1.0, n).astype(float),
      "n_think_tokens": rng.integers(20, 200, n),
    }
  )
  made["log_length"] = np.log(made["n_think_tokens"])
  shared_N = rng.normal(size=clusters)[made["prompt_id"]]
  logit_N = made["cue"] - 1 + 0.5 * (made["method"] == "b") + shared_N
  return made.assign(refused=rng.random(n) < 1 / (1 + np.exp(-logit_N)))


def test_logit_is_the_maximum_and_its_error_the_clustered_sandwich(table) -> None:
  got = clustered_logit(table, "refused", ["cue", "log_length"])
  b, p2 = (table["method"] == "b").to_numpy(float), (table["persona"] == "P2").to_numpy(float)
  x_NK = np.column_stack([np.ones(len(table)), table["cue"], table["log_length"], b, p2, b * p2])
  y_N = table["refused"].to_numpy(float)
  best = scipy.optimize.minimize(
    lambda w: np.logaddexp(0, x_NK @ w).sum() - y_N @ x_NK @ w, np.zeros(6), tol=1e-10
  )
  p_N = 1 / (1 + np.exp(-x_NK @ best.x))
  bread_KK = np.linalg.inv((x_NK * (p_N * (1 - p_N))[:, None]).T @ x_NK)
  score_GK = np.stack(
    [(x_NK * (y_N - p_N)[:, None])[table["prompt_id"] == g].sum(0) for g in range(40)]
  )
  factor = 40 / 39 * (400 - 1) / (400 - 6)
  error_K = np.sqrt(np.diag(bread_KK @ (score_GK.T @ score_GK) @ bread_KK) * factor)
  assert list(got.terms["term"]) == [
    "intercept", "cue", "log_length", "method=b", "persona=P2", "method=b × persona=P2",
  ]  # fmt: skip
  np.testing.assert_allclose(got.terms["coef"], best.x, atol=1e-4)
  half_K = scipy.stats.t.ppf(0.975, 39) * error_K
  np.testing.assert_allclose(got.terms["high"] - got.terms["coef"], half_K, rtol=1e-3)
  assert (got.n, got.num_clusters, got.reason) == (400, 40, "")


def test_an_empty_cell_costs_the_interaction_and_says_so(table) -> None:
  table = table.copy()
  table.loc[(table["method"] == "b") & (table["persona"] == "P2"), "refused"] = False
  got = clustered_logit(table, "refused", ["cue", "log_length"])
  assert "method=b × persona=P2" in got.reason and "left out" in got.reason
  assert list(got.terms["term"])[-2:] == ["method=b", "persona=P2"]
  assert np.isfinite(got.terms["coef"]).all()


def test_a_cue_that_tells_the_outcome_has_no_finite_estimate(table) -> None:
  got = clustered_logit(table.assign(cue=table["refused"] * 1.0), "refused", ["cue"])
  assert got.terms["coef"].isna().all() and "separated by" in got.reason and "cue" in got.reason


def test_what_is_missing_constant_or_short_is_said(table) -> None:
  part = table.assign(refused=table["refused"].astype("boolean"), flat=1.0)
  part.loc[:9, "refused"] = pd.NA
  got = clustered_logit(part, "refused", ["cue", "flat"])
  assert (
    got.n == 390 and "10 of 400 rows" in got.reason and "constant and left out: flat" in got.reason
  )
  assert got.terms.set_index("term")["coef"].isna()["flat"]
  same = clustered_logit(table.assign(refused=True), "refused", ["cue"])
  assert "same in all rows" in same.reason and same.terms["coef"].isna().all()
  few = clustered_logit(table[table["prompt_id"] < 2], "refused", ["cue"])
  assert "2 clusters for" in few.reason
  with pytest.raises(ValueError, match="lacks"):
    clustered_logit(table, "refused", ["nothing"])
  with pytest.raises(ValueError, match="other than 0 and 1"):
    clustered_logit(table.assign(refused=table["cue"]), "refused", ["log_length"])


def test_pairs_are_nearest_in_log_length_within_a_prompt() -> None:
  table = pd.DataFrame(
    [
      ("p", "a", 100, True), ("p", "a", 50, False), ("p", "b", 104, False), ("p", "b", 51, False),
      ("p", "b", 400, True), ("q", "a", 100, True), ("q", "b", 300, False), ("r", "a", 0, True),
      ("r", "b", 10, True), ("s", "a", 10, True), ("s", "b", 10, None), ("t", "c", 10, True),
    ],
    columns=["prompt_id", "method", "n_think_tokens", "y"],
  )  # fmt: skip
  pairs = length_matched(table, ("a", "b"))
  # In q lengths are too far apart, in r one has none.
  assert pairs[["a", "b"]].to_numpy().tolist() == [[0, 2], [1, 3], [9, 10]]
  assert pairs["distance"].tolist() == pytest.approx([math.log(1.04), math.log(1.02), 0])
  assert len(length_matched(table, ("a", "b"), caliper=0)) == 1
  got = matched_difference(table, pairs, "y")
  assert got.value == 0.5 and "1 of 3 values are missing" in got.reason
  none = matched_difference(table, pairs[:0], "y")
  assert math.isnan(none.value) and none.reason == "no pair of like length"
  with pytest.raises(ValueError, match="caliper=-1"):
    length_matched(table, ("a", "b"), caliper=-1)


def test_as_many_pairs_are_made_as_can_be() -> None:
  """Nearest first would pair 100 with 101 and leave 95 and 107 too far apart."""
  table = pd.DataFrame(
    {"prompt_id": "p", "method": ["a", "a", "b", "b"], "n_think_tokens": [95, 100, 101, 107]}
  )
  spread = np.log(table["n_think_tokens"]).std(ddof=0)
  pairs = length_matched(table, ("a", "b"), caliper=0.07 / spread)
  assert pairs[["a", "b"]].to_numpy().tolist() == [[0, 2], [1, 3]]


def test_an_effect_of_length_alone_vanishes_in_pairs() -> None:
  rng = np.random.default_rng(1)
  n = 3000
  method = rng.choice(["a", "b"], n)
  length = np.exp(rng.normal(4, 0.5, n) + 0.5 * (method == "b")).round()
  table = pd.DataFrame(
    {
      "prompt_id": rng.integers(0, 60, n),
      "method": method,
      "n_think_tokens": length,
      "y": rng.random(n) < 1 / (1 + np.exp(-2 * (np.log(length) - 4.25))),
    }
  )
  means = table.groupby("method")["y"].mean()
  assert means["b"] - means["a"] > 0.15
  pairs = length_matched(table, ("a", "b"))
  assert abs(matched_difference(table, pairs, "y", draws=200).value) < 0.05
