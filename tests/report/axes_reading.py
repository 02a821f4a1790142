"""What tests of figures read from axes: points with their links, and lines."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def linked(axes: Axes) -> dict[str, tuple[float, float, str]]:
  """Return x, y and marker of every point with a link, by the link."""
  found: dict[str, tuple[float, float, str]] = {}
  for line in axes.get_lines():
    if line.get_url():
      (x,), (y,) = line.get_xdata(), line.get_ydata()
      assert line.get_url() not in found
      found[str(line.get_url())] = (float(x), float(y), str(line.get_marker()))
  return found


def bars(axes: Axes) -> list[np.ndarray]:
  """Return the ends [2, 2] of lines of two points: intervals, and what joins points."""
  return [np.asarray(li.get_xydata()) for li in axes.get_lines() if len(li.get_xdata()) == 2]


def has_bar(axes: Axes, *ends: Any) -> bool:
  """Say whether a line between two points is drawn."""
  return any(np.allclose(bar, ends) for bar in bars(axes))


def overlapping(figure: Figure) -> list[tuple[str, str]]:
  """Return pairs of texts of a figure that lie on each other, and texts that leave the figure."""
  FigureCanvasAgg(figure).draw()
  boxes = [(t.get_text(), Text.get_window_extent(t)) for t in _texts(figure) if t.get_text()]
  frame = figure.bbox.padded(1)
  found = [(a, "outside") for a, box in boxes if not frame.fully_containsx(box.x0)]
  found += [(a, "outside") for a, box in boxes if not frame.fully_containsx(box.x1)]
  for (a, one), (b, other) in itertools.combinations(boxes, 2):
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    if wide > 1 and high > 1:
      found.append((a, b))
  return found


def _texts(figure: Figure) -> list[Text]:
  """Return the texts that are drawn: ticks beyond the axes' limits are not."""
  found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
  for axes in figure.axes:
    found += [*axes.texts, axes.title, axes._left_title, axes._right_title]
    if not axes.axison:
      continue
    found += [axes.xaxis.label, axes.yaxis.label]
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
      shown = [t for t in axis.get_major_ticks() if min(limits) <= t.get_loc() <= max(limits)]
      found += [tick.label1 for tick in shown if tick.label1.get_visible()]
  return found
