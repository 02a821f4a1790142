"""D by match, and the grid of two traits: what is drawn against the numbers."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from persona_jax.report.persona_figures import draw_grid, draw_matched
from tests.report.axes_reading import has_bar, linked, overlapping

LABELS = {"P3": "P3  C+", "P12": "P12  C+ A+"}
MATCHES = ("AS:proj", "AS:norm")


# ---- D by match ----------------------------------------------------------------------------------


@pytest.fixture
def inversions() -> pd.DataFrame:
  rows = [
    {
      "persona": name, "direction": direction, "match": match, "d_SP": -0.2, "SP_low": -0.25,
      "SP_high": -0.14, "d_AS": 0.3 + n / 10, "AS_low": 0.22, "AS_high": 0.47, "p": 0.0004,
      "p_holm": 0.012, "inverted": direction == "AS-worse", "reason": "", "d_SP_0": -0.21,
      "d_SP_1": -0.19, "d_AS_0": 0.28, "d_AS_1": 0.32,
    }
    for name in LABELS
    for direction in ("AS-worse", "SP-worse")
    for n, match in enumerate(MATCHES)
  ]  # fmt: skip
  return pd.DataFrame(rows)


def test_both_d_have_their_one_sided_bounds_and_each_replicate(inversions: pd.DataFrame) -> None:
  figure = draw_matched(inversions, "P12", MATCHES, LABELS, delta=0.05, rate_name="Rate")
  (axes,) = figure.axes
  marked = [li for li in axes.get_lines() if li.get_url()]
  drawn = {(str(li.get_url()), float(li.get_xdata()[0])) for li in marked}
  assert drawn == {
    ("#rows-SP-P12", -0.2), ("#rows-AS:proj-P12", 0.3), ("#rows-AS:norm-P12", 0.4)
  }  # fmt: skip
  for line in marked:
    y = float(line.get_ydata()[0])
    ends = (-0.25, -0.14) if "SP-P12" in str(line.get_url()) else (0.22, 0.47)
    assert has_bar(axes, (ends[0], y), (ends[1], y))
  each = [tuple(li.get_xdata()) for li in axes.get_lines() if li.get_markerfacecolor() == "none"]
  assert each == [(-0.21, -0.19), (0.28, 0.32)] * 2
  (margin,) = [p for p in axes.patches if isinstance(p, Rectangle)]
  assert (margin.get_x(), margin.get_width()) == pytest.approx((-0.05, 0.1))
  assert [t.get_text() for t in axes.texts] == ["inverts\np < .001, Holm .012"] * 2
  assert "each one-sided at 95 %" in figure._supxlabel.get_text().replace("\n", " ")
  assert overlapping(figure) == []


def test_a_match_without_the_persona_and_one_without_bounds_are_told(
  inversions: pd.DataFrame,
) -> None:
  some = inversions[(inversions["match"] == "AS:proj") | (inversions["persona"] != "P12")].copy()
  some[["SP_low", "SP_high", "AS_low", "AS_high", "p", "p_holm"]] = np.nan
  figure = draw_matched(
    some, "P12", MATCHES, LABELS, delta=0.05, rate_name="Rate", blocked="G1: gap -0.06"
  )
  (axes,) = figure.axes
  assert {marker for _, _, marker in linked(axes).values()} == {"x"}
  assert [t.get_text() for t in axes.texts] == [
    "not tested",
    "n/m: not matched\nin every replicate",
  ]
  assert "Not tested: G1: gap −0.06." in figure._supxlabel.get_text().replace("\n", " ")


def test_a_persona_or_match_that_is_not_there_is_an_error(inversions: pd.DataFrame) -> None:
  for named, matches in (("P9", MATCHES), ("P12", ())):
    with pytest.raises(ValueError, match=r"labels are of \['P3', 'P12'\]"):
      draw_matched(inversions, named, matches, LABELS, delta=0.05, rate_name="Rate")


# ---- the grid ------------------------------------------------------------------------------------

POLES = {"P1": ["O+"], "P3": ["C+"], "P8": ["A-"], "P12": ["C+", "A+"], "PX": ["C+", "O-"]}


@pytest.fixture
def effects() -> pd.DataFrame:
  rows = [
    {"arm": arm, "persona": name, "rate": 0.3 + effect, "low": 0.2, "high": 0.9, "effect": effect}
    for arm in ("SP", "AS:proj")
    for name, effect in (("P1", 0.7), ("P3", 0.4), ("P8", -0.2), ("P12", 0.1), ("PX", 0.6))
  ]
  return pd.DataFrame(rows)


BASELINES = pd.DataFrame(
  [
    {"arm": "B0", "persona": "", "rate": 0.3, "low": 0.25, "high": 0.36},
    {"arm": "placebo", "persona": "", "rate": 0.4, "low": 0.35, "high": 0.46},
  ]
)


def test_cells_hold_rates_with_intervals_and_the_middle_the_arms_own_baseline(
  effects: pd.DataFrame,
) -> None:
  figure = draw_grid(effects, BASELINES, POLES, rate_name="Rate")
  prompted, steered = figure.axes[:2]
  for axes, middle in ((prompted, "placebo message\n0.40"), (steered, "no persona\n0.30")):
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    assert texts[2, 1] == "P3\n0.70\n[0.20, 0.90]"
    assert texts[2, 2] == "P12\n0.40\n[0.20, 0.90]"
    assert texts[1, 0] == "P8\n0.10\n[0.20, 0.90]"
    assert texts[1, 1].startswith(middle)
    assert [p for p, text in texts.items() if text == "no persona"] == [
      (0, 0), (0, 1), (0, 2), (1, 2), (2, 0)
    ]  # fmt: skip
  assert [t.get_text() for t in prompted.get_xticklabels()] == ["C−", "no C", "C+"]
  assert overlapping(figure) == []


def test_one_colour_scale_is_centred_at_the_baseline(effects: pd.DataFrame) -> None:
  figure = draw_grid(effects, BASELINES, POLES, rate_name="Rate")
  scale = figure.axes[-1]._colorbar.mappable
  assert scale.get_clim() == pytest.approx((-0.4, 0.4))  # of the cells: other traits are left out
  boxes = {p.get_url(): p.get_facecolor() for p in figure.axes[1].patches if p.get_url()}
  assert boxes["#rows-AS:proj-P3"] == pytest.approx(scale.to_rgba(0.4))
  assert boxes["#rows-AS:proj-P8"] == pytest.approx(scale.to_rgba(-0.2))
  assert boxes["#rows-B0-"] == pytest.approx(scale.to_rgba(0.0))


def test_a_persona_without_a_rate_is_not_measurable_and_not_absent(effects: pd.DataFrame) -> None:
  effects.loc[effects["persona"] == "P8", ["rate", "low", "high", "effect"]] = np.nan
  axes = draw_grid(effects, BASELINES, POLES, rate_name="Rate").axes[0]
  texts = {t.get_position(): t.get_text() for t in axes.texts}
  assert texts[1, 0] == "P8\nn/m"
  hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in axes.patches if p.get_hatch()}
  assert hatched == {(0, 0), (0, 1), (0, 2), (1, 2), (2, 0)}


def test_personas_that_fill_no_grid_are_an_error(effects: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"no persona has poles of \['E', 'N'\] alone"):
    draw_grid(effects, BASELINES, POLES, traits=("E", "N"), rate_name="Rate")
  with pytest.raises(ValueError, match="P3 and P4 have the same poles"):
    draw_grid(effects, BASELINES, {"P3": ["C+"], "P4": ["C+"]}, rate_name="Rate")
  with pytest.raises(ValueError, match="B0, is needed"):
    draw_grid(effects, BASELINES[1:], POLES, rate_name="Rate")
