"""Outcomes from tidy tables: cells, means over samples, missing values, refusals."""

import math

import numpy as np
import pandas as pd
import pytest

from persona_jax import stats


def table() -> pd.DataFrame:
  rows = [
    ("SP", "C+", 0, "q1", True),
    ("SP", "C+", 0, "q1", False),  # a second sample of the same cell
    ("SP", "C+", 0, "q0", True),
    ("SP", "A+", 0, "q0", None),
    ("SP", "A+", 0, "q1", False),
    ("B0", "none", 0, "q0", True),
    ("B0", "none", 0, "q1", True),
  ]
  return pd.DataFrame(rows, columns=["arm", "persona", "replicate", "prompt_id", "asr"])


def test_samples_of_one_cell_are_averaged_and_absent_cells_are_nan() -> None:
  o = stats.Outcomes.of(table(), "asr")
  assert o.arms == ("SP", "B0") and o.personas == ("C+", "A+", "none")
  assert o.prompts == ("q0", "q1")
  np.testing.assert_array_equal(o.y_MPKN[0, 0, 0], [1.0, 0.5])
  np.testing.assert_array_equal(o.y_MPKN[0, 1, 0], [math.nan, 0.0])
  assert np.isnan(o.y_MPKN[1, 0]).all()


def test_an_arm_keeps_the_personas_that_it_has() -> None:
  baseline = stats.Outcomes.of(table(), "asr").arm("B0")
  assert (baseline.arms, baseline.personas) == (("B0",), ("none",))
  assert baseline.mean_MP.tolist() == [[1.0]]


def test_arms_and_personas_come_in_the_order_asked_for() -> None:
  o = stats.Outcomes.of(table(), "asr", arms=["SP"], personas=["A+", "C+"])
  assert (o.arms, o.personas) == (("SP",), ("A+", "C+"))
  assert o.mean_MP.tolist() == [[0.0, 0.75]]
  assert o.select(personas=["C+"]).mean_MP.tolist() == [[0.75]]


def test_clusters_are_read_with_the_prompts() -> None:
  o = stats.Outcomes.of(table().assign(cluster=[7, 7, 3, 3, 7, 3, 7]), "asr")
  assert o.cluster_N.tolist() == [3, 7]
  assert stats.Outcomes.of(table(), "asr").cluster_N.tolist() == ["q0", "q1"]


def test_the_mean_is_over_what_is_there() -> None:
  y_MPKN = np.array([[[[1.0, math.nan], [0.0, 0.0]]]])
  o = stats.Outcomes(y_MPKN, ("SP",), ("C+",), (0, 1), (0, 1))
  assert o.mean_MP.tolist() == [[pytest.approx(1 / 3)]]


@pytest.mark.parametrize(
  ("change", "arguments", "message"),
  [
    (lambda t: t.drop(columns="replicate"), {}, r"lacks \['replicate'\]"),
    (lambda t: t[:0], {}, "has no rows"),
    (lambda t: t, {"arms": ["XX"]}, r"no row has arm \['XX'\]; there are \['SP', 'B0'\]"),
    (lambda t: t.assign(cluster=range(7)), {}, r"prompts \['q1', 'q0'\] lie in two clusters"),
    (lambda t: t.assign(asr="yes"), {}, "values that are no numbers"),
    (lambda t: t.assign(persona=None), {}, r"\['persona'\] hold missing labels"),
  ],
)
def test_faulty_tables_are_named(change, arguments: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.Outcomes.of(change(table()), "asr", **arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((np.zeros((1, 2, 1, 3)), "a", "p", (0,), (1, 2, 3)), r"the labels want \(1, 1, 1, 3\)"),
    ((np.zeros((1, 2, 1, 1)), "a", "pp", (0,), (1,)), "personas holds a label twice"),
    ((np.full((1, 1, 1, 1), np.inf), "a", "p", (0,), (1,)), "infinite"),
    ((np.zeros((1, 1, 1, 0)), "a", "p", (0,), ()), "outcomes are empty"),
    ((np.zeros((1, 1, 1, 2)), "a", "p", (0,), (1, 2), np.arange(3)), "one label a prompt"),
  ],
)
def test_faulty_arrays_are_named(arguments: tuple, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.Outcomes(*arguments)


def test_an_unknown_arm_is_named() -> None:
  with pytest.raises(ValueError, match=r"no arms \['AS'\]; there are \['SP', 'B0'\]"):
    stats.Outcomes.of(table(), "asr").arm("AS")
