"""Forests of rates and of odds: what is drawn against the numbers that were given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from persona_jax.report.arm_figures import draw_forest, draw_odds
from persona_jax.report.look import CHANCE, svg_markup
from tests.report.axes_reading import has_bar, linked, overlapping

LABELS = {"P1": "P1  O+", "P2": "P2  O-", "P12": "P12  C+ A+"}
ARMS = ("SP", "AS:proj", "AS:norm")


@pytest.fixture
def effects() -> pd.DataFrame:
  rng = np.random.default_rng(0)
  rows = [
    {"arm": arm, "persona": name, "rate": (rate := rng.uniform(0.2, 0.6)), "low": rate - 0.1,
     "high": rate + 0.15}
    for arm in ARMS for name in LABELS
  ]  # fmt: skip
  return pd.DataFrame(rows)


@pytest.fixture
def baselines() -> pd.DataFrame:
  return pd.DataFrame(
    [
      {"arm": "B0", "persona": "", "rate": 0.3, "low": 0.2, "high": 0.45},
      {"arm": "placebo", "persona": "", "rate": 0.35, "low": 0.25, "high": 0.5},
      {"arm": "user", "persona": "P1", "rate": 0.7, "low": 0.6, "high": 0.75},
    ]
  )


@pytest.fixture
def bands() -> pd.DataFrame:
  return pd.DataFrame(
    {"measure": ["rate", "delta"], "control": "R-cov", "low": [0.205, -0.95],
     "high": [0.395, 0.95], "directions": 41, "prompts": 20, "reason": ""}
  )  # fmt: skip


def _band(axes: Axes) -> tuple[float, float] | None:
  for patch in axes.patches:
    if isinstance(patch, Rectangle) and patch.get_facecolor()[:3] == _rgb(CHANCE):
      return patch.get_x(), patch.get_x() + patch.get_width()
  return None


def _rgb(colour: str) -> tuple[float, ...]:
  return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_every_rate_is_a_linked_point_with_its_interval(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  (axes,) = draw_forest(effects, baselines, bands, LABELS, rate_name="Rate").axes
  points = linked(axes)
  every = pd.concat([effects, baselines])
  assert len(points) == len(every)
  for row in every.to_dict("records"):
    link = f"#rows-{row['arm']}-{row['persona']}"
    x, y, _ = points[link]
    assert x == pytest.approx(row["rate"])
    assert has_bar(axes, (row["low"], y), (row["high"], y))


def test_rows_follow_the_labels_and_no_two_points_share_a_height(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  figure = draw_forest(effects, baselines, bands, LABELS, rate_name="Non-refusal rate")
  (axes,) = figure.axes
  assert [text.get_text() for text in axes.get_yticklabels()] == [
    "no persona", "placebo message", "P1  O+", "P2  O−", "P12  C+ A+",
  ]  # fmt: skip
  heights = [y for _, y, _ in linked(axes).values()]
  assert len(set(heights)) == len(heights)
  assert axes.get_xlabel() == "Non-refusal rate (95 % interval)"
  assert overlapping(figure) == []


def test_the_band_of_rates_is_drawn_and_said(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  figure = draw_forest(effects, baselines, bands, LABELS, rate_name="Rate")
  assert _band(figure.axes[0]) == pytest.approx((0.205, 0.395))
  said = figure._supxlabel.get_text().replace("\n", " ")
  assert "0.20 to 0.40, is the rate without a persona" in said and "on 20 prompts" in said


def test_without_a_band_the_note_says_why(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  none = bands.assign(low=np.nan, high=np.nan, reason="random directions (R-cov) were not run")
  figure = draw_forest(effects, baselines, none, LABELS, rate_name="Rate")
  assert _band(figure.axes[0]) is None
  said = figure._supxlabel.get_text().replace("\n", " ")
  assert said.startswith("No band: random directions (R-cov) were not run.")
  with pytest.raises(ValueError, match=r"table 'bands' has measures \['delta'\], not 'rate'"):
    draw_forest(effects, baselines, bands[1:], LABELS, rate_name="Rate")


def test_no_interval_is_a_cross_and_no_value_is_written(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  holed = effects.copy()
  holed.loc[0, ["low", "high"]] = np.nan
  holed.loc[1, ["rate", "low", "high"]] = np.nan
  (axes,) = draw_forest(holed, baselines, bands, LABELS, rate_name="Rate").axes
  points = linked(axes)
  assert points["#rows-SP-P1"][2] == "x"
  assert "#rows-SP-P2" not in points
  assert [t.get_text() for t in axes.texts].count("n/m") == 3  # it, and "user" of two personas


def test_what_no_forest_can_be_drawn_of_is_an_error(
  effects: pd.DataFrame, baselines: pd.DataFrame, bands: pd.DataFrame
) -> None:
  with pytest.raises(ValueError, match=r"personas \['P2'\] of the table have no label"):
    draw_forest(effects, baselines, bands, {"P1": "P1", "P12": "P12"}, rate_name="Rate")
  with pytest.raises(ValueError, match="the rate without a persona, B0, is needed"):
    draw_forest(effects, baselines[1:], bands, LABELS, rate_name="Rate")
  with pytest.raises(ValueError, match=r"'effects' has 9 rows and lacks the columns \['low'\]"):
    draw_forest(effects.drop(columns="low"), baselines, bands, LABELS, rate_name="Rate")


def test_odds_are_drawn_about_zero_before_the_quantiles_of_random_directions(
  effects: pd.DataFrame, bands: pd.DataFrame
) -> None:
  odds = effects.assign(delta=effects["rate"] - 0.4, replicates=3)
  odds[["low", "high"]] -= 0.4
  odds.loc[0, "replicates"] = 2
  figure = draw_odds(odds, bands, LABELS)
  (axes,) = figure.axes
  points = linked(axes)
  for row in odds.to_dict("records"):
    x, y, _ = points[f"#rows-{row['arm']}-{row['persona']}"]
    assert x == pytest.approx(row["delta"])
    assert has_bar(axes, (row["low"], y), (row["high"], y))
  assert _band(axes) == pytest.approx((-0.95, 0.95))
  hollow = [str(li.get_url()) for li in axes.get_lines() if li.get_markerfacecolor() == "white"]
  assert hollow == ["#rows-SP-P1"]
  assert overlapping(figure) == []
  assert 'href="#rows-SP-P1"' in svg_markup(figure, "F2")
