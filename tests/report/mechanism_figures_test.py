"""Figures of mechanism: what is drawn against the numbers that were given."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from persona_jax.report.look import rows_anchor
from persona_jax.report.mechanism_figures import (
  VARIANTS,
  census_points,
  draw_effects,
  draw_mediation,
  draw_specifications,
)
from tests.report.axes_reading import has_bar, overlapping

LABELS = {"P1": "P1  O+", "P3": "P3  C+", "P12": "P12  C- A-"}

# ---- effects against alignment -------------------------------------------------------------------


@pytest.fixture
def census() -> pd.DataFrame:
  """Both outcomes of a cloud, two traits and three personas of either sign."""
  rng = np.random.default_rng(0)
  kinds = [("R-cov", 40), ("trait", 2), ("persona", 3)]
  rows = []
  for outcome, slope in (("log_odds", 3.0), ("p_bypass", -0.5)):
    for (kind, count), sign in itertools.product(kinds, (1, -1)):
      if kind != "persona" and sign < 0:
        continue
      for n in range(count):
        name = list(LABELS)[n] if kind == "persona" else f"{kind} {n}"
        x = sign * rng.uniform(-0.6, 0.6)
        delta = slope * x + rng.normal() * 0.02
        rows.append(
          {"direction": name, "kind": kind, "outcome": outcome, "delta": delta, "low": delta - 0.1,
           "high": delta + 0.15, "block": 2, "coef": sign * 0.2, "cos_euclidean": x,
           "coupling": 2 * x}
        )  # fmt: skip
  return pd.DataFrame(rows).sample(frac=1, random_state=1, ignore_index=True)


REGRESSIONS = pd.DataFrame(
  [
    {"outcome": "log_odds", "predictor": "cos_euclidean", "slope": 3.0, "low": 2.5, "high": 3.25,
     "intercept": -0.1, "r2": 0.9, "reason": ""},
    {"outcome": "p_bypass", "predictor": "coupling", "slope": np.nan, "low": np.nan,
     "high": np.nan, "intercept": np.nan, "r2": np.nan, "reason": "too few directions"},
  ]
)  # fmt: skip


def test_points_of_the_census_are_of_one_outcome_and_have_the_sign_that_was_added(
  census: pd.DataFrame,
) -> None:
  points = census_points(census, "coupling", "p_bypass")
  mine = census[census["outcome"] == "p_bypass"]
  np.testing.assert_array_equal(points["x"], mine["coupling"])
  np.testing.assert_array_equal(points[["delta", "low", "high"]], mine[["delta", "low", "high"]])
  people = points[points["kind"] == "persona"]["direction"]
  assert sorted(people) == ["P1", "P12", "P3", "−P1", "−P12", "−P3"]
  assert not points.loc[points["kind"] != "persona", "direction"].str.startswith("−").any()


def test_the_line_of_effects_turns_about_the_mean_of_those_that_are_no_personas(
  census: pd.DataFrame,
) -> None:
  figure = draw_effects(census, REGRESSIONS, LABELS)
  axes = figure.axes[0]
  (line,) = [li for li in axes.get_lines() if str(li.get_label()).startswith("slope")]
  xy = np.asarray(line.get_xydata())
  np.testing.assert_allclose(xy[:, 1], 3 * xy[:, 0] - 0.1)
  fitted = census[(census["outcome"] == "log_odds") & (census["kind"] != "persona")]
  band = axes.collections[-1].get_paths()[0].vertices
  edges = [np.ptp(band[np.isclose(band[:, 0], x), 1]) for x in xy[:, 0]]
  away = np.abs(xy[:, 0] - fitted["cos_euclidean"].mean())
  np.testing.assert_allclose(edges, 0.75 * away, atol=1e-6)
  assert f"over the {len(fitted)} directions" in " ".join(figure.get_supxlabel().split())


def test_personas_stand_with_their_interval_and_their_name(census: pd.DataFrame) -> None:
  figure = draw_effects(census, REGRESSIONS, LABELS)
  axes = figure.axes[0]
  names = {text.get_text() for text in axes.texts}
  assert names == {f"{a}{b}{c}" for text in ("P1  O+", "P3  C+", "P12  C− A−")
                   for a, b, c in (("", text, ""), ("−(", text, ")"))}  # fmt: skip
  by_kind = {str(c.get_label()): np.asarray(c.get_offsets()) for c in axes.collections[:3]}
  mine = census[census["outcome"] == "log_odds"]
  for kind in ("trait", "persona"):
    one = mine[mine["kind"] == kind]
    np.testing.assert_allclose(by_kind[kind], one[["cos_euclidean", "delta"]])
  ends = np.asarray([segment[:, 1] for segment in axes.collections[3].get_segments()])  # type: ignore[attr-defined]
  np.testing.assert_allclose(ends, mine[["low", "high"]])
  assert not overlapping(figure)


def test_a_line_that_could_not_be_fitted_is_not_drawn_and_its_reason_is_told(
  census: pd.DataFrame,
) -> None:
  figure = draw_effects(census, REGRESSIONS, LABELS, predictor="coupling", outcome="p_bypass")
  assert not any("slope" in str(line.get_label()) for line in figure.axes[0].get_lines())
  assert "No line: too few directions." in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"predictor": "cos"}, r"predictor='cos': use one of \['cos_euclidean'"),
    ({"outcome": "asr"}, r"outcome='asr': use one of \['log_odds', 'p_bypass'\]"),
    ({"predictor": "cos_whitened"}, r"lacks the columns \['cos_whitened'\]"),
    ({"outcome": "p_bypass"}, "no row of outcome 'p_bypass' and predictor 'cos_euclidean'"),
  ],
)
def test_effects_that_cannot_be_drawn_are_an_error(
  census: pd.DataFrame, change: dict[str, str], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    draw_effects(census, REGRESSIONS, LABELS, **change)


def test_a_persona_without_a_label_is_an_error(census: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"personas \['P12'\] of the census have no label"):
    draw_effects(census, REGRESSIONS, {"P1": "one", "P3": "three"})


# ---- mediation -----------------------------------------------------------------------------------


@pytest.fixture
def mediation() -> pd.DataFrame:
  """All variants of three personas; one without an interval, one NaN, one that was not run."""
  rng = np.random.default_rng(1)
  rows = [
    {"persona": name, "variant": variant, "effect": (e := rng.uniform(-0.4, 0.4)), "low": e - 0.1,
     "high": e + 0.12, "n": 20}
    for name, variant in itertools.product(LABELS, VARIANTS)
  ]  # fmt: skip
  table = pd.DataFrame(rows).set_index(["persona", "variant"])
  table.loc[("P1", "v_par_r"), ["low", "high"]] = np.nan
  table.loc[("P3", "floor r"), ["effect", "low", "high"]] = np.nan
  return table.drop(("P12", "floor random")).reset_index()


def _bars(axes: Axes) -> dict[str, Rectangle]:
  return {str(bar.get_url()): bar for bar in axes.patches if isinstance(bar, Rectangle)}


def test_bars_of_mediation_go_from_0_to_the_effect_and_link_to_their_rows(
  mediation: pd.DataFrame,
) -> None:
  figure = draw_mediation(mediation, LABELS)
  assert [axes.get_title() for axes in figure.axes] == list(VARIANTS.values())
  cells = mediation.set_index(["persona", "variant"])
  for axes, variant in zip(figure.axes, VARIANTS, strict=True):
    drawn = _bars(axes)
    for y, name in enumerate(LABELS):
      url = "#" + rows_anchor("control", variant, name)
      if (name, variant) not in cells.index or np.isnan(cells.loc[(name, variant), "effect"]):
        assert url not in drawn
        assert [t.get_position()[1] for t in axes.texts if t.get_text() == "n/m"] == [y]
        continue
      row = cells.loc[(name, variant)]
      bar = drawn[url]
      assert bar.get_x() + bar.get_width() == pytest.approx(row["effect"])
      assert bar.get_x() * bar.get_width() == 0
      assert bar.get_y() < y < bar.get_y() + bar.get_height()
      crosses = [li for li in axes.get_lines() if li.get_marker() == "x"]
      if np.isnan(row["low"]):
        assert [(li.get_xdata()[0], li.get_ydata()[0]) for li in crosses] == [(row["effect"], y)]
      else:
        assert has_bar(axes, (row["low"], y), (row["high"], y))
      whole = cells.loc[(name, "v"), "effect"]
      tick = has_bar(axes, (whole, y - 0.38), (whole, y + 0.38))
      assert tick == (variant != "v")
  assert not overlapping(figure)


def test_mediation_that_cannot_be_drawn_is_an_error(mediation: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"variants \['v_half'\]: the figure draws \['v', "):
    draw_mediation(mediation.replace({"variant": {"v": "v_half"}}), LABELS)
  with pytest.raises(ValueError, match=r"personas \['P3'\] of the table have no label"):
    draw_mediation(mediation, {"P1": "", "P12": ""})
  with pytest.raises(ValueError, match="'mediation' has 0 rows"):
    draw_mediation(mediation[:0], LABELS)


# ---- the specification curve ---------------------------------------------------------------------


@pytest.fixture
def curve() -> pd.DataFrame:
  rng = np.random.default_rng(2)
  ways = itertools.product((17, 18), ("answer", "all"), ("sum", "direct"), (0.1, 0.2, 0.4))
  table = pd.DataFrame(ways, columns=["block", "window", "rule", "kappa"])
  d_as = rng.uniform(-0.05, 0.3, len(table))
  return table.assign(
    d_sp=-0.2, d_as=d_as, coherent=table["kappa"] < 0.4, holds=d_as > 0.05,
    primary=(table["block"] == 18) & (table["window"] == "answer") & (table["rule"] == "sum"),
  )  # fmt: skip


def test_specifications_stand_in_order_and_under_each_what_it_consists_of(
  curve: pd.DataFrame,
) -> None:
  figure = draw_specifications(curve, "P12  C- A-", delta=0.05)
  top, below = figure.axes
  order = curve.sort_values("d_as", ignore_index=True)
  drawn = np.concatenate([np.asarray(c.get_offsets()) for c in top.collections[:3]])
  drawn = drawn[np.argsort(drawn[:, 0])]
  np.testing.assert_allclose(drawn, np.column_stack([order.index, order["d_as"]]))
  held, not_held, broken = (len(c.get_offsets()) for c in top.collections[:3])
  coherent = curve[curve["coherent"]]
  assert (held, not_held) == (coherent["holds"].sum(), (~coherent["holds"]).sum())
  assert broken == (~curve["coherent"]).sum()
  rings = np.asarray(top.collections[3].get_offsets())
  np.testing.assert_allclose(rings[:, 0], order.index[order["primary"]])
  names = {text.get_text(): y for text, y in zip(below.get_yticklabels(), below.get_yticks(),
                                                 strict=True)}  # fmt: skip
  assert list(names) == [
    "block 17", "block 18", "window all", "window answer", "composites by direct",
    "composites by sum", "dose κ 0.1", "dose κ 0.2", "dose κ 0.4",
  ]  # fmt: skip
  at = {round(float(c.get_offsets()[0, 1]), 6): np.asarray(c.get_offsets())[:, 0]
        for c in below.collections}  # fmt: skip
  np.testing.assert_array_equal(
    at[round(names["window all"], 6)], order.index[order["window"] == "all"]
  )
  np.testing.assert_array_equal(
    at[round(names["dose κ 0.4"], 6)], order.index[order["kappa"] == 0.4]
  )
  assert not overlapping(figure)


def test_the_title_says_in_how_many_coherent_specifications_it_holds(curve: pd.DataFrame) -> None:
  coherent = curve["coherent"]
  held = int(curve.loc[coherent, "holds"].sum())
  title = draw_specifications(curve, "P12  C- A-", delta=0.05).axes[0].get_title(loc="left")
  share = f"{100 * held / 16:.0f} %"
  assert title == f"P12  C− A−: inversion holds in {held} of 16 coherent specifications ({share})"
  none = draw_specifications(curve.assign(coherent=False), "P12", delta=0.05)
  assert none.axes[0].get_title(loc="left") == "P12: no specification is coherent"


def test_margins_and_the_prompted_excess_are_lines(curve: pd.DataFrame) -> None:
  top = draw_specifications(curve, "P12", delta=0.07).axes[0]
  levels = {(str(to_hex(li.get_color())), float(li.get_ydata()[0])) for li in top.get_lines()}
  assert {("#000000", 0.07), ("#000000", -0.07), ("#000000", 0.0)} <= levels
  assert ("#0072b2", -0.2) in levels
  with pytest.raises(ValueError, match=r"lacks the columns \['holds'\]"):
    draw_specifications(curve.drop(columns="holds"), "P12", delta=0.07)
