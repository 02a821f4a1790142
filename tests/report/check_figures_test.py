"""Figures of what is checked beside: what is drawn against the numbers that were given."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from persona_jax.report.check_figures import (
  draw_dif,
  draw_models,
  draw_side_effects,
)
from persona_jax.report.look import CHANCE, rows_anchor
from tests.report.axes_reading import has_bar, linked, overlapping

LABELS = {"P1": "P1  O+", "P2": "P2  O-", "P12": "P12  C- A-"}

# ---- models --------------------------------------------------------------------------------------


def _pair(x: str, y: str, rho: float, reason: str = "") -> dict[str, object]:
  return {
    "x": x, "y": y, "rho": rho, "low": rho - 0.1, "high": rho + 0.05, "reliability_x": 0.91,
    "reliability_y": 0.12 if reason else 0.87, "measurable": not reason, "reason": reason,
  }  # fmt: skip


def _cells(axes: Axes) -> dict[tuple[str, str], tuple[str, str]]:
  """Returns {(row, column): (text, colour)} of a matrix."""
  columns = [t.get_text().replace("\n", " ") for t in axes.get_xticklabels()]
  rows = [t.get_text().replace("\n", " ") for t in axes.get_yticklabels()]
  found = {}
  for patch, text in zip(axes.patches, axes.texts, strict=True):
    assert isinstance(patch, Rectangle)
    x, y = text.get_position()
    assert patch.get_x() < x < patch.get_x() + patch.get_width()
    assert patch.get_y() < y < patch.get_y() + patch.get_height()
    found[rows[int(y)], columns[int(x)]] = (text.get_text(), to_hex(patch.get_facecolor()))
  return found


def _colour(rho: float) -> str:
  return to_hex(mpl.colormaps["PuOr"]((rho + 1) / 2))


def test_of_one_model_the_arms_are_compared() -> None:
  table = pd.DataFrame([_pair("SP", "AS:proj", -0.8), _pair("SP", "AS:norm", 0.25)])
  figure = draw_models(table)
  assert [axes.get_title(loc="left") for axes in figure.axes] == ["Arms of this model"]
  text = "−0.80  [−0.90, −0.75]\nreliability 0.91, 0.87"
  assert _cells(figure.axes[0]) == {
    ("system prompt", "steering, matched by proj"): (text, _colour(-0.8)),
    ("system prompt", "steering, matched by norm"): (
      "0.25  [0.15, 0.30]\nreliability 0.91, 0.87", _colour(0.25),
    ),
  }  # fmt: skip
  assert not overlapping(figure)


def test_of_several_models_there_is_a_matrix_an_arm_and_hyphens_of_names_stay() -> None:
  models = ["llama-8b", "gemma-27b"]
  rows = [_pair("SP", f"SP of {m}", 0.5) for m in models]
  rows += [_pair("llama-8b: SP", "gemma-27b: SP", 0.1)]
  rows += [_pair("AS:proj", "llama-8b: AS:proj", -0.3), _pair("SP", "AS:proj", -0.8)]
  figure = draw_models(pd.DataFrame(rows))
  titles = [axes.get_title(loc="left") for axes in figure.axes]
  assert titles == ["Models, system prompt", "Models, steering, matched by proj",
                    "Arms of this model"]  # fmt: skip
  first = _cells(figure.axes[0])
  assert {cell: text.split()[0] for cell, (text, _) in first.items()} == {
    ("this model", "llama-8b"): "0.50",
    ("this model", "gemma-27b"): "0.50",
    ("llama-8b", "gemma-27b"): "0.10",
  }
  assert list(_cells(figure.axes[1])) == [("this model", "llama-8b")]
  assert not overlapping(figure)


@pytest.mark.parametrize(
  ("reason", "short"),
  [
    ("not testable: G1: 0.00 < 0.5, gap -0.06 < 0.3; and G2, G5", "gates G1, G2, G5"),
    ("reliability of y below 0.3; and more", "reliability of y below 0.3"),
  ],
)
def test_what_is_not_measurable_is_grey_and_says_why(reason: str, short: str) -> None:
  table = pd.DataFrame([_pair("SP", "AS:proj", np.nan, reason), _pair("SP", "AS:norm", 0.9)])
  text, colour = _cells(draw_models(table).axes[0])["system prompt", "steering, matched by proj"]
  assert text == f"n/m: {short}\nreliability 0.91, 0.12"
  assert colour == CHANCE
  assert "0.90" not in text


def test_different_arms_of_different_models_are_an_error() -> None:
  table = pd.DataFrame([_pair("SP", "llama-8b: AS:proj", 0.2)])
  with pytest.raises(ValueError, match="'SP' and 'llama-8b: AS:proj' are different arms of diff"):
    draw_models(table)
  with pytest.raises(ValueError, match=r"lacks the columns \['rho'\]"):
    draw_models(table.drop(columns="rho"))


# ---- judges --------------------------------------------------------------------------------------


@pytest.fixture
def dif() -> pd.DataFrame:
  rng = np.random.default_rng(0)
  errors = ("false_positive", "false_negative")
  rows = [
    {"judge": judge, "persona": name, "error": error, "rate": (r := rng.uniform(0.2, 0.6)),
     "low": r - 0.1, "high": r + 0.2, "n": int(rng.integers(5, 90))}
    for judge, error, name in itertools.product(("rules", "rubric"), errors, LABELS)
  ]  # fmt: skip
  table = pd.DataFrame(rows).set_index(["judge", "error", "persona"]).sort_index()
  table.loc[("rules", "false_positive", "P2"), ["low", "high"]] = np.nan
  unknown = [np.nan, np.nan, np.nan, 0]
  table.loc[("rubric", "false_negative", "P12"), ["rate", "low", "high", "n"]] = unknown
  return table.reset_index().sort_values("judge", ascending=False, ignore_index=True)


def _points(axes: Axes) -> dict[tuple[float, float], str]:
  """Returns {(x, y): marker} of single points, rounded."""
  return {
    (round(float(li.get_xdata()[0]), 9), round(float(li.get_ydata()[0]), 9)): str(li.get_marker())
    for li in axes.get_lines()
    if len(li.get_xdata()) == 1
  }


def test_errors_of_judges_stand_a_panel_an_error_and_a_row_a_persona(dif: pd.DataFrame) -> None:
  figure = draw_dif(dif, LABELS)
  assert [a.get_title(loc="left") for a in figure.axes] == ["False positives", "False negatives"]
  cells = dif.set_index(["error", "judge", "persona"])
  for axes, error in zip(figure.axes, ("false_positive", "false_negative"), strict=True):
    drawn = _points(axes)
    for (j, judge), (p, name) in itertools.product(
      enumerate(("rules", "rubric")), enumerate(LABELS)
    ):
      row = cells.loc[(error, judge, name)]
      y = p + (j - 0.5) / 3
      counts = [t for t in axes.texts if t.get_text() == f"n {int(row['n'])}"]
      assert any(t.get_position()[1] == pytest.approx(y) for t in counts)
      if np.isnan(row["rate"]):
        (missing,) = [t for t in axes.texts if t.get_text() == "n/m"]
        assert missing.get_position()[1] == pytest.approx(y)
        continue
      marker = drawn[round(row["rate"], 9), round(y, 9)]
      assert (marker == "x") == np.isnan(row["low"])
      assert has_bar(axes, (row["low"], y), (row["high"], y)) != np.isnan(row["low"])
  assert not overlapping(figure)


def test_errors_of_judges_that_cannot_be_drawn_are_an_error(dif: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"errors \['miss'\]: the figure draws \['false_positive', "):
    draw_dif(dif.replace({"error": {"false_negative": "miss"}}), LABELS)
  with pytest.raises(ValueError, match=r"lacks the columns \['judge'\]"):
    draw_dif(dif.drop(columns="judge"), LABELS)


def test_a_judge_has_points_for_each_source_and_those_that_differ_have_a_ring(
  dif: pd.DataFrame,
) -> None:
  mine = dif[dif["error"] == "false_positive"].assign(
    differs=(dif["judge"] == "rubric") & (dif["persona"] == "P12")
  )
  both = pd.concat([mine.assign(source="people"), mine.assign(source="twins")], ignore_index=True)
  figure = draw_dif(both, LABELS)
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == [f"{judge}, against {source}" for source in ("people", "twins")
                   for judge in ("rules", "rubric")]  # fmt: skip
  (axes,) = figure.axes
  rate = both.loc[both["differs"], "rate"].iloc[0]
  rings = [li for li in axes.get_lines() if li.get_markersize() == 12]
  places = [(float(li.get_xdata()[0]), float(li.get_ydata()[0])) for li in rings]
  np.testing.assert_allclose(sorted(places), [(rate, 2 - 0.1), (rate, 2 + 0.3)])
  with pytest.raises(ValueError, match=r"\['rules', 'rubric'\] have two rows of a persona"):
    draw_dif(both.drop(columns="source"), LABELS)


def test_answers_without_a_persona_have_a_row_of_their_own(dif: pd.DataFrame) -> None:
  table = pd.concat([dif, dif[dif["persona"] == "P1"].assign(persona="")], ignore_index=True)
  axes = draw_dif(table, LABELS).axes[0]
  names = [text.get_text() for text in axes.get_yticklabels()]
  assert names == ["no persona", "P1  O+", "P2  O−", "P12  C− A−"]


# ---- side effects --------------------------------------------------------------------------------


@pytest.fixture
def side_effects() -> pd.DataFrame:
  rng = np.random.default_rng(3)
  rows = []
  for measure, by in (("over_refusal", "label"), ("accuracy", "letter"), ("kl", "match")):
    for arm, name in [("B0", ""), *itertools.product(("SP", "AS:proj"), LABELS)]:
      if measure == "kl" and arm == "B0":
        continue
      value = rng.uniform(0.2, 0.7)
      has = measure != "kl"
      rows.append(
        {"measure": measure, "by": by, "arm": arm, "persona": name, "value": value,
         "low": value - 0.1 if has else np.nan, "high": value + 0.2 if has else np.nan}
      )  # fmt: skip
  table = pd.DataFrame(rows)
  gone = (table["measure"] == "kl") & (table["arm"] == "AS:proj") & (table["persona"] == "P2")
  return table[~gone].reset_index(drop=True)


def _panel(figure: Figure, start: str) -> Axes:
  (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(start)]
  return axes


def test_side_effects_stand_a_panel_a_measure_with_linked_points(
  side_effects: pd.DataFrame,
) -> None:
  figure = draw_side_effects(side_effects, LABELS)
  assert len(figure.axes) == 3
  over = side_effects[side_effects["measure"] == "over_refusal"]
  axes = _panel(figure, "Refusals of harmless")
  drawn = linked(axes)
  assert len(drawn) == len(over) == 7
  for row in over.to_dict("records"):
    x, y, _ = drawn["#" + rows_anchor("over", row["arm"], row["persona"])]
    assert x == pytest.approx(row["value"])
    shift = {"B0": 0, "SP": -1 / 6, "AS:proj": 1 / 6}[row["arm"]]
    place = 0 if row["arm"] == "B0" else 1 + list(LABELS).index(row["persona"])
    assert y == pytest.approx(place + shift)
    assert has_bar(axes, (row["low"], y), (row["high"], y))
  assert not linked(_panel(figure, "MMLU"))
  assert not overlapping(figure)


def test_a_measure_without_intervals_has_crosses_and_what_is_missing_is_written(
  side_effects: pd.DataFrame,
) -> None:
  axes = _panel(draw_side_effects(side_effects, LABELS), "KL")
  values = side_effects[side_effects["measure"] == "kl"]["value"]
  drawn = _points(axes)
  assert sorted(x for x, _ in drawn) == pytest.approx(sorted(values), abs=1e-8)
  assert set(drawn.values()) == {"x"}
  (missing,) = [text for text in axes.texts if text.get_text() == "n/m"]
  assert missing.get_position()[1] == pytest.approx(2 + 1 / 6)  # P2, steered; none of no persona


def test_shifts_on_own_items_have_a_panel_of_their_own(side_effects: pd.DataFrame) -> None:
  shifts = pd.DataFrame(
    [{"measure": "trait", "by": "match", "arm": arm, "persona": "P1", "value": value}
     for arm, value in (("SP", 0.1), ("AS:proj", -0.2))]
  )  # fmt: skip
  both = pd.concat([side_effects, shifts], ignore_index=True)
  drawn = _points(_panel(draw_side_effects(both, LABELS), "Shift on the persona"))
  assert sorted(x for x, _ in drawn) == pytest.approx([-0.2, 0.1])


def test_side_effects_that_cannot_be_drawn_are_an_error(side_effects: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"measures \[\('kl', 'judge'\)\]: the figure draws"):
    draw_side_effects(side_effects.replace({"by": {"match": "judge"}}), LABELS)
  with pytest.raises(ValueError, match=r"personas \['P1', 'P2'\] of the table have no label"):
    draw_side_effects(side_effects, {"P12": ""})
