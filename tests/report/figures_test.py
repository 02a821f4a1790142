"""Tests of the figures, on the drawn objects and on the files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from persona_jax.report import ReportData, draw_all
from persona_jax.report.figures import draw_comparison, draw_degeneration, draw_dose_response

Make = Callable[..., ReportData]


def test_every_figure_is_a_png_of_plausible_size(drawn: dict[str, Path]) -> None:
  assert list(drawn) == ["comparison", "dose_response", "degeneration"]
  for path in drawn.values():
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 600
    # Ink on white: neither blank nor black.
    assert 0.5 < float(np.mean(pixels[..., :3] > 0.99)) < 0.99


def test_no_figure_without_numbers(make: Make, data: ReportData, tmp_path: Path) -> None:
  empty = make(
    **{name: getattr(data, name).iloc[:0] for name in ("degeneration", "traits", "refusal")}
  )
  assert list(draw_all(empty, tmp_path)) == ["dose_response"]
  assert not (tmp_path / "degeneration.png").exists()


def test_forest_has_every_persona_and_both_traits_of_a_composite(data: ReportData) -> None:
  left, _ = draw_comparison(data).axes
  names = [label.get_text() for label in left.get_yticklabels()]
  assert names[:3] == ["no persona", "P1  O+", "P2  O−"]
  assert names[-4:] == ["P11  C− A−   on C", "   on A", "P12  C+ A+   on C", "   on A"]


def test_forest_draws_an_interval_for_every_value(data: ReportData) -> None:
  left, right = draw_comparison(data).axes
  measured = data.traits.dropna(subset="value")
  np.testing.assert_allclose(
    sorted(_bars(left)), sorted(zip(measured["low"], measured["high"], strict=True))
  )
  bounds = zip(data.refusal["refused_low"], data.refusal["refused_high"], strict=True)
  np.testing.assert_allclose(sorted(_bars(right)), sorted(bounds))


def test_value_that_is_not_measurable_is_written(make: Make, data: ReportData) -> None:
  left, right = draw_comparison(data).axes
  assert [text.get_text().strip() for text in left.texts] == ["n/m"]
  assert not right.texts
  refusal = data.refusal.copy()
  rates = ["refused", "refused_low", "refused_high"]
  refusal.loc[refusal.index[:3], rates] = math.nan
  _, right = draw_comparison(make(refusal=refusal)).axes
  assert len(right.texts) == 3


def test_value_without_interval_is_a_cross(make: Make, data: ReportData) -> None:
  traits = data.traits.copy()
  traits.loc[0, ["low", "high"]] = math.nan
  left, _ = draw_comparison(make(traits=traits)).axes
  crosses = [line for line in left.lines if line.get_marker() == "x"]
  assert [line.get_xdata()[0] for line in crosses] == [traits.loc[0, "value"]]


def test_forest_names_the_dose_that_it_shows(make: Make, data: ReportData) -> None:
  assert "steering, coefficient 0.1" in _legend_texts(data)
  traits = data.traits.copy()
  traits.loc[traits["persona"].eq("P1") & traits["arm"].eq("steer"), "coef"] = 0.2
  assert "steering" in _legend_texts(make(traits=traits))


def test_dose_response_has_a_panel_with_slope_for_each_trait(data: ReportData) -> None:
  panels = [axes for axes in draw_dose_response(data).axes if axes.get_visible()]
  titles = [axes.get_title(loc="left").split()[0] for axes in panels]
  assert titles == list("OCEAN")
  for axes in panels:
    assert "slope +1.40 [+1.10, +1.70]" in [text.get_text() for text in axes.texts]
    assert len(axes.collections) == 2  # an interval band for each arm
  assert panels[-1].texts[0].get_text().startswith("slope not measurable: one coefficient")


@pytest.mark.parametrize("trait_count", [1, 2, 4])
def test_dose_response_fits_any_number_of_traits(
  make: Make, data: ReportData, trait_count: int
) -> None:
  curves = data.curves[data.curves["trait"].isin(list("OCEAN"[:trait_count]))]
  figure = draw_dose_response(make(curves=curves))
  assert sum(axes.get_visible() for axes in figure.axes) == trait_count


def test_degeneration_draws_an_interval_for_every_rate(data: ReportData) -> None:
  (axes,) = draw_degeneration(data).axes
  bars = [segment for lines in axes.collections for segment in lines.get_segments()]
  assert len(bars) == len(data.degeneration)


def _bars(axes: Axes) -> list[tuple[float, float]]:
  """Return the ends of the horizontal bars of an axes."""
  segments = [segment for lines in axes.collections for segment in lines.get_segments()]
  return [(float(segment[0][0]), float(segment[1][0])) for segment in segments]


def _legend_texts(data: ReportData) -> list[str]:
  (legend,) = draw_comparison(data).legends
  return [text.get_text() for text in legend.get_texts()]
