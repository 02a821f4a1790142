"""Figures over the dose: what is drawn in the axes against the numbers that were given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from persona_jax.report.dose_figures import LABEL_COLOURS, draw_doses, draw_labels
from tests.report.axes_reading import has_bar, linked, overlapping

LABELS = {"P1": "P1  O+", "P2": "P2  O-", "P3": "P3  C+"}
KAPPAS = (-0.4, -0.1, 0.0, 0.1, 0.4)
DEGENERATE = (0.3, 0.1, 0.0, 0.05, 0.5)


@pytest.fixture
def curves() -> pd.DataFrame:
  rng = np.random.default_rng(0)
  rows = []
  for name in ("P3", "P1"):
    for kappa, broken in zip(KAPPAS, DEGENERATE, strict=True):
      bypass = rng.uniform(0.1, 0.4)
      rows.append(
        {
          "persona": name, "kappa": kappa, "value": bypass, "low": bypass - 0.08,
          "high": bypass + 0.09, "measure": "label", "bypass": bypass,
          "bypass_low": bypass - 0.08, "bypass_high": bypass + 0.09,
          "refuse": 1 - bypass - broken, "refuse_low": 0.7 - bypass - broken,
          "refuse_high": 1 - bypass, "degenerate": broken,
        }
      )  # fmt: skip
  return pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)


@pytest.fixture
def matches() -> pd.DataFrame:
  rows = [
    ("P1", "proj", 0.2, 0.15, 0.26, "ok"),
    ("P2", "proj", 0.3, 0.25, 0.31, "ok"),
    ("P1", "norm", 0.25, np.nan, np.nan, "ok"),
    ("P1", "trait", 0.1, np.nan, np.nan, "ok"),
    ("P3", "proj", 0.35, 0.3, 0.4, "unreachable"),
  ]
  return pd.DataFrame(rows, columns=["persona", "by", "coef", "coef_low", "coef_high", "status"])


def test_curves_run_through_no_edit_in_the_order_of_the_dose(
  curves: pd.DataFrame, matches: pd.DataFrame
) -> None:
  figure = draw_doses(curves, matches, LABELS, rate_name="Rate", opposites={"P1": "P2"})
  drawn = [axes for axes in figure.axes if axes.axison]
  assert [axes.get_title(loc="right") for axes in drawn] == ["P1  O+ →", "P3  C+ →"]
  assert [axes.get_title(loc="left") for axes in drawn] == ["← P2  O−", ""]
  for axes, name in zip(drawn, ("P1", "P3"), strict=True):
    mine = curves[curves["persona"] == name].sort_values("kappa")
    (line,) = [li for li in axes.get_lines() if len(li.get_xdata()) == len(KAPPAS)]
    np.testing.assert_allclose(line.get_xydata(), mine[["kappa", "value"]])
    points = linked(axes)
    for row in mine.to_dict("records"):
      k = row["kappa"]
      link = f"#rows-dose-{name}-{k:g}".replace("--", "-m") if k else "#rows-dose--0"
      assert points[link][:2] == pytest.approx((k, row["value"]))
      assert has_bar(axes, (k, row["low"]), (k, row["high"]))
  assert overlapping(figure) == []


def test_doses_of_matches_stand_above_the_curve_and_the_opposites_at_negative_ones(
  curves: pd.DataFrame, matches: pd.DataFrame
) -> None:
  figure = draw_doses(curves, matches, LABELS, rate_name="Rate", opposites={"P1": "P2"})
  first, second = (axes for axes in figure.axes if axes.axison)
  points = linked(first)
  x, y, _ = points["#rows-AS:proj-P1"]
  assert x == 0.2 and y > 1
  assert has_bar(first, (0.15, y), (0.26, y))
  x, opposite, _ = points["#rows-AS:proj-P2"]
  assert (x, opposite) == (-0.3, y)
  assert has_bar(first, (-0.25, y), (-0.31, y))
  assert points["#rows-AS:norm-P1"][2] == "D"  # set, and so without an interval
  assert points["#rows-AS:trait-P1"][2] == "x"
  assert not any("AS:" in link for link in linked(second))  # censored


def test_doses_with_more_degenerate_answers_than_the_floor_are_shaded(
  curves: pd.DataFrame, matches: pd.DataFrame
) -> None:
  axes = draw_doses(curves, matches, LABELS, rate_name="Rate", most_degenerate=0.1).axes[0]
  spans = sorted((p.get_x(), p.get_x() + p.get_width()) for p in axes.patches)
  left, right = axes.get_xlim()
  np.testing.assert_allclose(spans, [(left, -0.25), (0.25, right)])  # half way to the next dose
  none = curves.assign(degenerate=np.nan, measure="first_token")
  figure = draw_doses(none, matches, LABELS, rate_name="Rate")
  assert not figure.axes[0].patches
  assert "none is known to be degenerate" in figure._supxlabel.get_text().replace("\n", " ")
  assert figure._supylabel.get_text() == "probability that the first token is no refusal"


def test_labels_are_stacked_to_the_whole_with_intervals_at_their_bounds(
  curves: pd.DataFrame,
) -> None:
  figure = draw_labels(curves, LABELS)
  axes = figure.axes[0]
  mine = curves[curves["persona"] == "P1"].sort_values("kappa")
  for label, colour in LABEL_COLOURS.items():
    heights = [p.get_height() for p in axes.patches if to_hex(p.get_facecolor()) == colour.lower()]
    np.testing.assert_allclose(heights, mine[label])
  tops = [p.get_y() + p.get_height() for p in axes.patches]
  assert np.isclose(tops, 1).sum() == len(KAPPAS)
  links = [p.get_url() for p in axes.patches]
  assert links[0] == "#rows-dose-P1-m0.4"
  assert links.count("#rows-dose--0") == 3
  broken, whole = mine.iloc[0], mine.iloc[2]
  assert has_bar(axes, (-0.16, broken["bypass_low"]), (-0.16, broken["bypass_high"]))
  assert has_bar(axes, (0.16, 1 - broken["refuse_high"]), (0.16, 1 - broken["refuse_low"]))
  assert has_bar(axes, (2, whole["bypass_low"]), (2, whole["bypass_high"]))
  assert [t.get_text() for t in axes.get_xticklabels()] == ["−.4", "−.1", "0", ".1", ".4"]
  assert overlapping(figure) == []


def test_what_was_not_measured_is_written(curves: pd.DataFrame, matches: pd.DataFrame) -> None:
  curves.loc[curves["kappa"] == 0.1, ["value", "low", "high", "bypass", "refuse"]] = np.nan
  doses, labels = draw_doses(curves, matches, LABELS, rate_name="Rate"), draw_labels(curves, LABELS)
  for figure in (doses, labels):
    assert [t.get_text() for t in figure.axes[0].texts] == ["n/m"]
  assert "#rows-dose-P1-0.1" not in linked(doses.axes[0])


def test_figures_over_the_dose_say_what_they_need(
  curves: pd.DataFrame, matches: pd.DataFrame
) -> None:
  with pytest.raises(ValueError, match="has no labels: let the part 'dose' be generated"):
    draw_labels(curves.assign(bypass=np.nan), LABELS)
  with pytest.raises(ValueError, match=r"personas \['P1'\] have no label"):
    draw_doses(curves, matches, {"P3": "P3"}, rate_name="Rate")
  with pytest.raises(ValueError, match="one figure draws one"):
    draw_doses(curves.assign(measure=["label", "first_token"] * 5), matches, LABELS, rate_name="R")
  with pytest.raises(ValueError, match=r"table 'dose_curves' has 0 rows"):
    draw_doses(pd.DataFrame(), matches, LABELS, rate_name="Rate")
