"""Agreement with intervals: exact kappas, scikit-learn's, and what is left out."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.string_match import StringMatch
from persona_jax.scorers.validation import kappa_difference, validate


def drawn(n: int, agree: float, seed: int) -> tuple[list[bool], list[bool]]:
  rng = np.random.default_rng(seed)
  labels = rng.random(n) < 0.6
  wrong = rng.random(n) > agree
  return labels.tolist(), (labels ^ wrong).tolist()


def test_kappa_is_scikit_learns_and_its_interval_holds_it() -> None:
  labels, made = drawn(200, 0.8, 0)
  table = validate(labels, made, range(200)).set_index("measure")
  assert table.loc["kappa", "value"] == pytest.approx(cohen_kappa_score(labels, made))
  assert table.loc["kappa", "low"] < table.loc["kappa", "value"] < table.loc["kappa", "high"]
  both = np.array(labels) & np.array(made)
  assert table.loc["recall True", "value"] == both.sum() / sum(labels)
  assert table.loc["precision True", "n"] == sum(made)


def test_intervals_cover_and_widen_where_answers_share_a_question() -> None:
  truth = cohen_kappa_score(*drawn(200_000, 0.8, 7))
  covered = 0
  for seed in range(100):
    table = validate(*drawn(120, 0.8, 1000 + seed), range(120), draws=300).set_index("measure")
    covered += table.loc["kappa", "low"] <= truth <= table.loc["kappa", "high"]
  assert covered >= 87  # 95 foretold; fewer than 87 have a chance of .1 %
  labels, made = drawn(40, 0.8, 3)
  single = validate(labels * 5, made * 5, range(200)).set_index("measure").loc["kappa"]
  shared = validate(labels * 5, made * 5, [*range(40)] * 5).set_index("measure").loc["kappa"]
  assert shared["value"] == single["value"]
  assert shared["high"] - shared["low"] > 1.8 * (single["high"] - single["low"])


def test_rows_without_a_prediction_are_counted_and_in_no_figure() -> None:
  table = validate([True, False, True, None], [True, False, None, True], "abcd")
  assert set(table["missing"]) == {2}
  found = table.set_index("measure")
  assert (found.loc["accuracy", "value"], found.loc["accuracy", "n"]) == (1.0, 2)
  one = validate([True, True], [True, True], "ab").set_index("measure").loc["kappa"]
  assert np.isnan(one["value"]) and "all of one class" in one["reason"]
  none = validate([None], [True], "a").set_index("measure").loc["kappa"]
  assert none["reason"] == "no row has both a label and a prediction"
  with pytest.raises(ValueError, match="2 labels, 1 predictions, 2 clusters"):
    validate([True, False], [True], "ab")


def test_two_scorers_are_compared_on_the_same_rows() -> None:
  labels, good = drawn(300, 0.95, 1)
  _, bad = drawn(300, 0.7, 1)
  found = kappa_difference(labels, good, bad, range(300))
  exact = cohen_kappa_score(labels, good) - cohen_kappa_score(labels, bad)
  assert found.value == pytest.approx(exact) and found.low > 0
  # What makes a row hard for both falls out: equal scorers differ by nothing at all.
  same = kappa_difference(labels, bad, bad, range(300))
  assert (same.value, same.low, same.high) == (0, 0, 0)
  cut = kappa_difference(labels, good, [None] * 100 + bad[100:], range(300))
  assert cut.n == 200


def test_string_matching_sees_phrases_anywhere_and_rules_do_not() -> None:

  table = pd.DataFrame({"text": ["Sorry, no.", "I’m just a poet. Here it is.", "Sure.", None]})
  assert StringMatch().score(table)["refused"].tolist()[:3] == [True, True, False]
  assert StringMatch().score(table)["refused"].isna().tolist() == [False, False, False, True]
  assert RefusalRules().score(table)["refused"].tolist()[1] is False
