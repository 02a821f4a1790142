"""Figures of geometry: what is drawn in the axes against the numbers that were given."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from persona_jax.report.geometry_figures import draw_alignment, draw_census, draw_spread, save
from persona_jax.report.look import CLOUD
from tests.report.axes_reading import overlapping

BLOCKS = range(6)
NAMES = [f"P{n}" for n in range(1, 18)]


@pytest.fixture
def alignment() -> pd.DataFrame:
  """Rows of 17 directions in an order of chance."""
  rng = np.random.default_rng(0)
  rows = [
    {
      "direction": name, "block": block, "cos": rng.uniform(-1, 1), "coupling": (c := rng.normal()),
      "low": c - 0.2, "high": c + 0.3, "cos_null_low": -0.2 - block / 50,
      "cos_null_high": 0.2 + block / 40, "coupling_null_low": -1.0,
      "coupling_null_high": 0.5 + block,
    }
    for name, block in itertools.product(NAMES, BLOCKS)
  ]  # fmt: skip
  return pd.DataFrame(rows).sample(frac=1, random_state=1, ignore_index=True)


def _lines(axes: Axes) -> dict[str, np.ndarray]:
  """Returns the points of the lines that have a name."""
  lines = axes.get_lines()
  return {
    str(line.get_label()): line.get_xydata()
    for line in lines
    if not str(line.get_label()).startswith("_")
  }


def _edges(axes: Axes, number: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the lower and upper edge of a filled band at each place along x."""
  xy = axes.collections[number].get_paths()[0].vertices
  x = np.unique(xy[:, 0])
  return tuple(np.array([edge(xy[xy[:, 0] == at, 1]) for at in x]) for edge in (np.min, np.max))  # type: ignore[return-value]


# ---- alignment by block --------------------------------------------------------------------------


def test_lines_of_alignment_are_cosines_and_couplings_in_the_order_of_blocks(
  alignment: pd.DataFrame,
) -> None:
  figure = draw_alignment(alignment, ["P3", "P1"])
  for axes, value in zip(figure.axes, ("cos", "coupling"), strict=True):
    lines = _lines(axes)
    assert list(lines) == ["P3", "P1"]
    for name, xy in lines.items():
      mine = alignment[alignment["direction"] == name].sort_values("block")
      np.testing.assert_allclose(xy, mine[["block", value]])


def test_chance_is_a_band_from_its_low_to_its_high(alignment: pd.DataFrame) -> None:
  figure = draw_alignment(alignment, ["P1"])
  one = alignment.drop_duplicates("block").sort_values("block")
  for axes, value in zip(figure.axes, ("cos", "coupling"), strict=True):
    low, high = _edges(axes, 0)
    np.testing.assert_allclose(low, one[f"{value}_null_low"])
    np.testing.assert_allclose(high, one[f"{value}_null_high"])
  assert figure.axes[0].get_legend_handles_labels()[1][0] == "95 % of random directions (R-cov)"


def test_the_interval_of_a_coupling_is_drawn_and_a_cosine_has_none(
  alignment: pd.DataFrame,
) -> None:
  top, below = draw_alignment(alignment, ["P2"]).axes
  mine = alignment[alignment["direction"] == "P2"].sort_values("block")
  low, high = _edges(below, 1)
  np.testing.assert_allclose(low, mine["low"])
  np.testing.assert_allclose(high, mine["high"])
  assert len(top.collections) == 1


def test_the_steered_block_is_marked_where_it_is_given(alignment: pd.DataFrame) -> None:
  marked, plain = (draw_alignment(alignment, ["P1"], steered=block) for block in (3, None))
  for axes, other in zip(marked.axes, plain.axes, strict=True):
    at = [list(line.get_xdata()) for line in axes.get_lines()]
    assert [3, 3] in at
    assert len(axes.get_lines()) == len(other.get_lines()) + 1


def test_sixteen_directions_look_unlike_each_other(alignment: pd.DataFrame) -> None:
  top = draw_alignment(alignment, NAMES[:16]).axes[0]
  named = [line for line in top.get_lines() if str(line.get_label()).startswith("P")]
  assert len({(line.get_color(), line.get_linestyle()) for line in named}) == 16


def test_of_more_than_sixteen_those_furthest_from_0_have_names_and_the_others_are_grey(
  alignment: pd.DataFrame,
) -> None:
  figure = draw_alignment(alignment, NAMES, steered=3)
  at = alignment[alignment["block"] == 3].set_index("direction")["cos"].abs()
  nearest = at.loc[NAMES].idxmin()
  for axes in figure.axes:
    assert list(_lines(axes)) == [name for name in NAMES if name != nearest]
    assert {text.get_text() for text in axes.texts} == set(NAMES) - {nearest}
    (grey,) = [line for line in axes.get_lines() if line.get_color() == CLOUD]
    assert len(grey.get_xdata()) == len(BLOCKS)
  note = " ".join(figure.get_supxlabel().split())
  assert "the 16 directions furthest from 0 at block 3; the other 1 are thin grey lines" in note


def test_of_more_than_four_intervals_are_upright_lines_at_the_steered_block(
  alignment: pd.DataFrame,
) -> None:
  _, below = draw_alignment(alignment, NAMES[:5], steered=3).axes
  at = alignment[alignment["block"] == 3].set_index("direction").loc[NAMES[:5]]
  lines = below.collections[1:]
  assert len(lines) == 5
  (segments,) = np.stack([c.get_segments() for c in lines], axis=1)  # type: ignore[attr-defined]
  np.testing.assert_allclose(segments[:, :, 1], at[["low", "high"]])
  assert np.ptp(segments[:, 0, 0]) < 0.15 and segments[:, 0, 0].mean() == pytest.approx(3)


def test_names_stand_behind_the_ends_of_their_curves_in_order(alignment: pd.DataFrame) -> None:
  figure = draw_alignment(alignment, NAMES[:16], labels={"P2": "P2  O-"})
  assert not overlapping(figure)
  last = alignment[alignment["block"] == 5].set_index("direction")
  for axes, value in zip(figure.axes, ("cos", "coupling"), strict=True):
    texts = sorted(axes.texts, key=lambda text: text.get_position()[1])
    order = [text.get_text().split()[0] for text in texts]
    assert order == list(last.loc[NAMES[:16], value].sort_values().index)
    assert "P2  O−" in [text.get_text() for text in texts]
    named = [line for line in axes.get_lines() if str(line.get_label()).startswith("P")]
    colours = {str(line.get_label()): line.get_color() for line in named}
    assert all(text.get_color() == colours[text.get_text().split()[0]] for text in texts)


def test_intervals_of_cosines_are_euclidean_and_without_a_usable_one_a_cosine_is_a_cross(
  alignment: pd.DataFrame,
) -> None:
  rows = alignment[["direction", "block", "cos"]].assign(metric="euclidean")
  rows["low"], rows["high"] = rows["cos"] * 0.9 - 0.05, rows["cos"] * 0.9 + 0.05
  rows.loc[(rows["direction"] == "P4") & (rows["block"] == 0), "high"] = 5967.5
  rows.loc[(rows["direction"] == "P4") & (rows["block"] == 2), ["low", "high"]] = np.nan
  others = rows.assign(metric="whitened", low=-1.0, high=1.0)
  top, _ = draw_alignment(
    alignment, ["P4"], cosines=pd.concat([rows, others], ignore_index=True)
  ).axes
  mine = rows[rows["direction"] == "P4"].set_index("block")
  (crosses,) = [line for line in top.get_lines() if line.get_marker() == "x"]
  np.testing.assert_allclose(crosses.get_xydata(), [(b, mine.loc[b, "cos"]) for b in (0, 2)])
  vertices = np.concatenate([path.vertices for path in top.collections[1].get_paths()])
  for block in (1, 3, 4, 5):
    edges = vertices[np.isclose(vertices[:, 0], block), 1]
    assert (edges.min(), edges.max()) == pytest.approx(tuple(mine.loc[block, ["low", "high"]]))
  assert not np.isin(vertices[:, 0], (0, 2)).any()


@pytest.mark.parametrize("names", [[], ["P1", "P99"]], ids=["none", "unknown"])
def test_names_that_cannot_be_drawn_are_an_error(alignment: pd.DataFrame, names: list[str]) -> None:
  with pytest.raises(ValueError, match="give 1 or more that are in the table"):
    draw_alignment(alignment, names)


def test_an_unknown_name_is_told(alignment: pd.DataFrame) -> None:
  with pytest.raises(ValueError, match=r"not in: \['P99'\]"):
    draw_alignment(alignment, ["P1", "P99"])


# ---- the census ----------------------------------------------------------------------------------


@pytest.fixture
def points() -> pd.DataFrame:
  """Twelve personas, three placebo directions, and a cloud of sixty."""
  rng = np.random.default_rng(2)
  kinds = ["persona"] * 12 + ["placebo"] * 3 + ["R-cov"] * 50 + ["PC"] * 10
  x = rng.normal(size=75) * 0.3
  delta = 2 * x + rng.normal(size=75) * 0.1
  names = [f"{kind} {n}" for n, kind in enumerate(kinds)]
  return pd.DataFrame({"direction": names, "kind": kinds, "x": x, "delta": delta})


REGRESSION = pd.Series(
  {"slope": 2.0, "low": 1.5, "high": 2.75, "intercept": 0.5, "r2": 0.9, "x_mean": -0.1}
)


def test_points_of_the_census_are_drawn_by_kind_and_the_others_are_a_cloud(
  points: pd.DataFrame,
) -> None:
  axes = draw_census(points, REGRESSION, kinds=("persona", "absent", "placebo")).axes[0]
  drawn = {str(c.get_label()): np.asarray(c.get_offsets()) for c in axes.collections[:3]}
  assert list(drawn) == ["random directions and components (60)", "persona", "placebo"]
  cloud = ["R-cov", "PC"]
  for xy, kinds in zip(drawn.values(), (cloud, ["persona"], ["placebo"]), strict=True):
    np.testing.assert_allclose(xy, points.loc[points["kind"].isin(kinds), ["x", "delta"]])


def test_the_line_of_the_census_has_its_slope_and_intercept_and_turns_about_the_mean(
  points: pd.DataFrame,
) -> None:
  axes = draw_census(points, REGRESSION).axes[0]
  ((text, xy),) = _lines(axes).items()
  assert text == "slope +2.00\n95 % [+1.50, +2.75]\ncross-validated R² 0.90"
  np.testing.assert_allclose(xy[:, 1], 0.5 + 2 * xy[:, 0])
  low, high = _edges(axes, 1)
  away = np.abs(xy[:, 0] + 0.1)  # the mean of those that the line is fitted to, not of all
  np.testing.assert_allclose(high - low, 1.25 * away, atol=1e-9)  # high less low of the slope
  np.testing.assert_allclose(axes.get_xlim(), xy[[0, -1], 0])


def test_without_a_slope_there_is_no_line(points: pd.DataFrame) -> None:
  none = REGRESSION * np.nan
  axes = draw_census(points, none, kinds=("persona",)).axes[0]
  assert _lines(axes) == {}
  assert len(axes.collections) == 2


def test_names_in_the_census_lie_inside_and_not_on_each_other(points: pd.DataFrame) -> None:
  crowded = points.assign(
    x=points["x"] * 0.2, delta=points["delta"].where(points["kind"] != "persona", 0.1)
  )
  crowded.loc[crowded["kind"] == "persona", "x"] = np.linspace(0, 0.01, 12)
  names = [f"persona {n}" for n in range(12)]
  figure = draw_census(crowded, REGRESSION, kinds=("persona",), names=names)
  axes = figure.axes[0]
  assert [text.get_text() for text in axes.texts] == names
  boxes = _boxes(figure)
  for a, b in itertools.combinations(boxes, 2):
    assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
  frame = axes.get_window_extent()
  assert all(frame.y0 <= box[2] and box[3] <= frame.y1 for box in boxes)


def _boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
  """Returns where texts lie without their arrows, (left, right, low, high) in pixels."""
  FigureCanvasAgg(figure).draw()
  extents = [Text.get_window_extent(text) for text in figure.axes[0].texts]
  return [(extent.x0, extent.x1, extent.y0, extent.y1) for extent in extents]


# ---- the spread of cosines -----------------------------------------------------------------------


@pytest.fixture
def cosines() -> pd.DataFrame:
  rng = np.random.default_rng(3)
  cells = itertools.product(("euclidean", "unembedding"), [("a", 5), ("b", 4)], BLOCKS)
  rows = [
    {"direction": f"{kind}{n}", "kind": kind, "block": block, "metric": metric,
     "cos": rng.uniform(-1, 1)}
    for metric, (kind, count), block in cells
    for n in range(count)
  ]  # fmt: skip
  return pd.DataFrame(rows)


def test_the_spread_is_the_median_size_of_cosines_a_panel_an_inner_product(
  cosines: pd.DataFrame,
) -> None:
  figure = draw_spread(cosines, ["b", "a"])
  assert len(figure.axes) == 2
  for axes, metric in zip(figure.axes, ("euclidean", "unembedding"), strict=True):
    assert metric in axes.get_title(loc="left")
    lines = _lines(axes)
    assert list(lines) == ["b (4)", "a (5)"]
    for number, kind in enumerate("ba"):
      mine = cosines[(cosines["metric"] == metric) & (cosines["kind"] == kind)]
      size_BN = np.abs(mine["cos"].to_numpy()).reshape(len(BLOCKS), -1)
      np.testing.assert_allclose(list(lines.values())[number][:, 1], np.median(size_BN, axis=1))
      low, high = _edges(axes, number)
      np.testing.assert_allclose(low, np.quantile(size_BN, 0.025, axis=1))
      np.testing.assert_allclose(high, np.quantile(size_BN, 0.975, axis=1))
    assert axes.get_ylim()[0] == 0


def test_a_figure_is_the_same_file_each_time(cosines: pd.DataFrame, tmp_path: Path) -> None:
  paths = [save(draw_spread(cosines, ["a"]), tmp_path / name / "a.png") for name in "xy"]
  first, second = (path.read_bytes() for path in paths)
  assert first.startswith(b"\x89PNG\r\n\x1a\n")
  assert first == second
