"""Agreement with labels: textbook numbers, and missing labels that are counted."""

import math

import pandas as pd
import pytest

from persona_jax.scorers import Degenerate, RefusalRules, Scorer, agreement


def series(*runs: tuple[object, int]) -> pd.Series:
  return pd.Series([value for value, count in runs for _ in range(count)], dtype=object)


def test_kappa_of_the_textbook_table_is_point_four() -> None:
  # 20 both yes, 5 and 10 discordant, 15 both no: p_o = .70, p_e = .50, kappa = .40.
  labels = series((True, 25), (False, 25))
  predictions = series((True, 20), (False, 5), (True, 10), (False, 15))
  result = agreement(labels, predictions)
  assert result["accuracy"] == pytest.approx(0.70)
  assert result["kappa"] == pytest.approx(0.40)
  assert (result["n"], result["n_compared"], result["reason"]) == (50, 50, "")


def test_classes_hold_counts_precision_and_recall() -> None:
  labels = series((True, 25), (False, 25))
  predictions = series((True, 20), (False, 5), (True, 10), (False, 15))
  classes = agreement(labels, predictions)["classes"]
  assert classes[True] == {
    "labelled": 25,
    "predicted": 30,
    "agreed": 20,
    "precision": pytest.approx(20 / 30),
    "recall": pytest.approx(0.8),
  }
  assert classes[False]["labelled"] == 25 and classes[False]["agreed"] == 15


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_label_is_counted_and_is_not_false(missing: object) -> None:
  result = agreement(series((True, 2), (False, 2), (missing, 3)), series((True, 2), (False, 5)))
  assert (result["n"], result["n_compared"], result["missing_labels"]) == (7, 4, 3)
  assert (result["accuracy"], result["kappa"]) == (1.0, 1.0)
  assert result["classes"][None] == {"labelled": 3, "predicted": 0}
  assert result["classes"][False]["labelled"] == 2


def test_a_missing_prediction_is_counted_and_is_not_false() -> None:
  result = agreement(series((True, 2), (False, 2)), series((True, 1), (None, 1), (False, 2)))
  assert (result["n_compared"], result["missing_predictions"]) == (3, 1)
  assert result["accuracy"] == 1.0


def test_one_class_alone_has_no_kappa() -> None:
  result = agreement(series((False, 5)), series((False, 5)))
  assert result["accuracy"] == 1.0
  assert math.isnan(result["kappa"])
  assert "all of one class" in result["reason"]


def test_nothing_to_compare_is_nan_with_a_reason() -> None:
  result = agreement(series((None, 2)), series((True, 2)))
  assert math.isnan(result["accuracy"]) and math.isnan(result["kappa"])
  assert "no row has both" in result["reason"]


@pytest.mark.parametrize("label", ["yes", 1, 0.0])
def test_a_label_that_is_not_boolean_is_refused(label: object) -> None:
  with pytest.raises(ValueError, match="a label is"):
    agreement(series((label, 1)), series((True, 1)))


def test_series_of_different_length_are_refused() -> None:
  with pytest.raises(ValueError, match="2 labels but 1 predictions"):
    agreement(series((True, 2)), series((True, 1)))


@pytest.mark.parametrize("scorer", [RefusalRules(), Degenerate()])
def test_scorers_keep_the_protocol(scorer: Scorer) -> None:
  table = pd.DataFrame(
    {
      "prompt": ["How does bread rise?", "What is a pond?", "What is a lake?"],
      "text": ["Yeast makes gas in the dough.", None, ""],
      "finish_reason": ["stop", "stop", "length"],
      "n_tokens": [8, 0, 0],
    },
    index=["r7", "r3", "r9"],
  )
  scored = scorer.score(table)
  assert isinstance(scorer, Scorer)
  assert tuple(scored.columns) == scorer.columns
  assert list(scored.index) == ["r7", "r3", "r9"]
  assert scored[scorer.columns[0]].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("scorer", [RefusalRules(), Degenerate()])
def test_a_table_without_text_is_refused_by_name(scorer: Scorer) -> None:
  with pytest.raises(ValueError, match=rf"{scorer.name} needs the columns \['text'\]"):
    scorer.score(pd.DataFrame({"prompt": ["x"]}))
