"""The slope graph of ranks: ends, colours and crossings against the tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from persona_jax.report.rank_figures import DOWN, GREY, UP, draw_ranks
from tests.report.axes_reading import bars, linked, overlapping

NAMES = ("P1", "P2", "P3", "P4")
LABELS = {name: f"{name}  C-" for name in NAMES}
RATES = {"SP": (0.8, 0.6, 0.4, 0.2), "AS:proj": (0.1, 0.7, 0.5, 0.9)}


@pytest.fixture
def effects() -> pd.DataFrame:
  rows = [
    {"arm": arm, "persona": name, "rate": rate, "low": rate - 0.05, "high": rate + 0.05}
    for arm, rates in RATES.items()
    for name, rate in zip(NAMES, rates, strict=True)
  ]
  return pd.DataFrame(rows)


@pytest.fixture
def crossings() -> pd.DataFrame:
  rows = [
    {"p": p, "q": q, "crosses": (p, q) == ("P1", "P4"), "match": "AS:proj"}
    for p, q in itertools.combinations(NAMES, 2)
  ]
  return pd.DataFrame(rows)


def test_lines_go_from_the_rank_by_prompt_to_the_rank_steered(
  effects: pd.DataFrame, crossings: pd.DataFrame
) -> None:
  figure = draw_ranks(effects, crossings, LABELS, rate_name="Rate", delta=0.05)
  (axes,) = figure.axes
  ends = {"P1": (1, 4), "P2": (2, 2), "P3": (3, 3), "P4": (4, 1)}
  points = linked(axes)
  for name, (sp, steered) in ends.items():
    assert points[f"#rows-SP-{name}"][:2] == (0, sp)
    assert points[f"#rows-AS:proj-{name}"][:2] == (1, steered)
    assert any(np.allclose(bar, [(0, sp), (1, steered)]) for bar in bars(axes))
  texts = [text.get_text() for text in axes.texts]
  assert "P1  C−   .80 [.75, .85]" in texts
  assert "P1  C−   .10 [.05, .15]" in texts
  assert overlapping(figure) == []


def test_certain_crossings_are_coloured_and_marked_where_the_lines_meet(
  effects: pd.DataFrame, crossings: pd.DataFrame
) -> None:
  (axes,) = draw_ranks(effects, crossings, LABELS, rate_name="Rate", delta=0.05).axes
  colours = {
    (float(y[0]), float(y[1])): to_hex(line.get_color()).upper()
    for line in axes.get_lines()
    if len(y := line.get_ydata()) == 2
  }
  assert colours == {
    (1, 4): DOWN, (4, 1): UP, (2, 2): GREY.upper(), (3, 3): GREY.upper()
  }  # fmt: skip
  (dot,) = [li for li in axes.get_lines() if li.get_color() == "black"]
  assert (dot.get_xdata()[0], dot.get_ydata()[0]) == pytest.approx((0.5, 2.5))
  assert "1 of 6 pairs cross" in axes.get_title()


def test_where_a_gate_blocks_all_is_grey_and_the_figure_says_why(
  effects: pd.DataFrame, crossings: pd.DataFrame
) -> None:
  figure = draw_ranks(effects, crossings, LABELS, rate_name="Rate", delta=0.05, blocked="G1: -0.1")
  (axes,) = figure.axes
  assert {to_hex(li.get_color()) for li in axes.get_lines()} == {GREY, "#666666"}
  assert axes.get_title().endswith("not tested")
  assert "Not tested: G1: −0.1." in figure._supxlabel.get_text().replace("\n", " ")


def test_equal_rates_share_a_rank_and_their_names_do_not_lie_on_each_other(
  effects: pd.DataFrame,
) -> None:
  same = effects.assign(rate=1.0, low=0.6, high=1.0)
  figure = draw_ranks(same, pd.DataFrame(), LABELS, rate_name="Rate", delta=0.05)
  (axes,) = figure.axes
  assert {y for _, y, _ in linked(axes).values()} == {2.5}
  assert overlapping(figure) == []


def test_a_persona_that_was_not_compared_is_named_and_not_ranked(
  effects: pd.DataFrame, crossings: pd.DataFrame
) -> None:
  left = crossings[(crossings["p"] != "P2") & (crossings["q"] != "P2")]
  figure = draw_ranks(effects, left, LABELS, rate_name="Rate", delta=0.05)
  points = linked(figure.axes[0])
  assert "#rows-SP-P2" not in points
  assert points["#rows-SP-P3"][1] == 2
  assert "by proj: P2." in figure._supxlabel.get_text().replace("\n", " ")


def test_ranks_need_an_arm_to_compare(effects: pd.DataFrame, crossings: pd.DataFrame) -> None:
  prompted = effects[effects["arm"] == "SP"]
  with pytest.raises(ValueError, match="compare SP with at least one steering arm"):
    draw_ranks(prompted, crossings, LABELS, rate_name="Rate", delta=0.05)
