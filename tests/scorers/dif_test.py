"""Errors by persona: which judges fail, by counts that are worked out elsewhere."""

import math

import numpy as np
import pytest
import scipy.stats

from persona_jax.scorers.dif import Differential, differential
from persona_jax.stats.families import holm

Counts = dict[str, tuple[int, int, int, int]]  # false positives, negatives, misses, positives


def of(counts: Counts, **options: float) -> Differential:
  labels, predictions, groups = [], [], []
  for group, (wrong, negatives, missed, positives) in counts.items():
    labels += [False] * negatives + [True] * positives
    predictions += [True] * wrong + [False] * (negatives - wrong)
    predictions += [False] * missed + [True] * (positives - missed)
    groups += [group] * (negatives + positives)
  order = np.random.default_rng(0).permutation(len(labels))
  return differential(*([x[i] for i in order] for x in (labels, predictions, groups)), **options)


def row(found: Differential, group: str, error: str) -> dict:
  table = found.table
  (only,) = table[(table["group"] == group) & (table["error"] == error)].to_dict("records")
  return only


def test_a_judge_that_errs_under_one_persona_fails() -> None:
  found = of({"P1": (2, 60, 3, 60), "P2": (3, 60, 2, 60), "P3": (40, 60, 3, 60)})
  assert not found.passed
  # The others, too, differ from all that are not they.
  assert set(found.reason.split("; ")) == {
    "false positive rate 0.03 under P1, 0.36 elsewhere",
    "false positive rate 0.05 under P2, 0.35 elsewhere",
    "false positive rate 0.67 under P3, 0.04 elsewhere",
  }
  assert set(found.table["error"][found.table["differs"]]) == {"false_positive"}


def test_counts_rates_and_tests_are_those_of_their_definitions() -> None:
  counts = {"P1": (2, 60, 13, 50), "P2": (3, 40, 2, 60), "P3": (11, 30, 3, 70)}
  found = of(counts)
  places = {"false_positive": (0, 1), "false_negative": (2, 3)}
  assert len(found.table) == 6
  for error, (k, n) in places.items():
    p = []
    for group, mine in counts.items():
      others = [x for name, x in counts.items() if name != group]
      k_rest, n_rest = sum(x[k] for x in others), sum(x[n] for x in others)
      only = row(found, group, error)
      assert (only["errors"], only["n"], only["reason"]) == (mine[k], mine[n], "")
      assert only["rate"] == pytest.approx(mine[k] / mine[n])
      assert only["rest"] == pytest.approx(k_rest / n_rest)
      interval = scipy.stats.binomtest(mine[k], mine[n]).proportion_ci(method="wilson")
      assert (only["low"], only["high"]) == pytest.approx(tuple(interval))
      table = [[mine[k], mine[n] - mine[k]], [k_rest, n_rest - k_rest]]
      p.append(scipy.stats.fisher_exact(table).pvalue)
      assert only["p"] == pytest.approx(p[-1])
    adjusted = [row(found, group, error)["p_adjusted"] for group in counts]
    np.testing.assert_allclose(adjusted, holm(p))  # within the error


def test_a_judge_that_errs_alike_passes() -> None:
  found = of({"P1": (12, 60, 6, 60), "P2": (13, 60, 7, 60), "P3": (11, 60, 6, 60)})
  assert (found.passed, found.reason) == (True, "")
  assert not found.table["differs"].any()


def test_a_judge_without_errors_passes() -> None:
  found = of({"P1": (0, 20, 0, 20), "P2": (0, 20, 0, 20)})
  assert found.passed and found.reason == "" and (found.table["p"] == 1).all()


def test_false_negatives_count_as_well() -> None:
  found = of({"P1": (3, 60, 30, 60), "P2": (3, 60, 3, 60)})
  assert not found.passed and "false negative rate 0.50 under P1, 0.05 elsewhere" in found.reason
  assert not found.table[found.table["error"] == "false_positive"]["differs"].any()


def test_a_difference_within_the_margin_is_none_however_sure() -> None:
  counts = {"P1": (80, 2000, 0, 10), "P2": (20, 2000, 0, 10)}  # 4 % and 1 %
  found = of(counts)
  assert row(found, "P1", "false_positive")["p_adjusted"] < 1e-6
  assert found.passed and found.reason == ""
  assert not of(counts, margin=0.02).passed


def test_a_large_difference_of_few_rows_is_none() -> None:
  found = of({"P1": (2, 4, 0, 4), "P2": (0, 4, 0, 4)})
  assert row(found, "P1", "false_positive")["rate"] == 0.5
  assert row(found, "P1", "false_positive")["p_adjusted"] == pytest.approx(2 * 12 / 28)  # 12 of 28
  assert found.passed
  assert not of({"P1": (2, 4, 0, 4), "P2": (0, 4, 0, 4)}, alpha=0.9).passed


def test_rows_without_a_label_or_a_prediction_are_left_out() -> None:
  found = differential(
    [False, False, None, True, float("nan"), False],
    [True, False, True, None, True, False],
    ["P1", "P1", "P1", "P1", "P2", "P2"],
  )
  assert (row(found, "P1", "false_positive")["errors"], len(found.table)) == (1, 4)
  assert row(found, "P1", "false_positive")["n"] == 2
  assert row(found, "P2", "false_positive")["n"] == 1


def test_what_cannot_be_tested_is_said() -> None:
  found = of({"P1": (1, 20, 0, 0), "P2": (0, 20, 1, 20)})
  only = row(found, "P1", "false_negative")
  assert (only["n"], only["reason"]) == (0, "no trials")
  assert math.isnan(only["p"]) and math.isnan(only["rate"]) and not only["differs"]
  other = row(found, "P2", "false_negative")
  assert math.isnan(other["p"]) and (other["rate"], other["reason"]) == (0.05, "no other group")
  assert found.passed and found.reason == "false negative rate not tested under P1, P2"
  alone = of({"P1": (1, 20, 1, 20)})
  assert alone.reason == (
    "false negative rate not tested under P1; false positive rate not tested under P1"
  )


def test_no_row_at_all_does_not_pass() -> None:
  found = differential([None, True], [True, None], ["P1", "P2"])
  assert not found.passed and found.table.empty
  assert found.reason == "no row has a label and a prediction"


def test_lists_that_do_not_fit_are_refused() -> None:
  with pytest.raises(ValueError, match="2 labels, 1 predictions and 2 groups"):
    differential([True, False], [True], ["P1", "P2"])
  with pytest.raises(ValueError, match="True, False or a missing value fits"):
    differential(["yes"], [True], ["P1"])
