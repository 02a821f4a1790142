"""Where names of points and curves are written so that none lies on another."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from persona_jax.report.look import SMALL

Box = tuple[float, float, float, float]  # left, right, low, high

_SIZE = SMALL - 1
# In points, of a letter and of a line: wider and higher than the font's, so that none touch.
_LETTER, _LINE = 0.62 * _SIZE, 1.35 * _SIZE
_POINT = 3.5  # radius of a marker


def spread_out(places: Sequence[float], gap: float) -> list[float]:
  """Move places on [0, 1] apart until neighbours have a gap, each as little as its cluster allows.

  Args:
    places: where names would stand.
    gap: least distance; less where there are too many for it.

  Returns:
    The new places, in the order of the old ones, whose order is kept.
  """
  count = len(places)
  if count < 2:
    return [float(np.clip(place, 0, 1)) for place in places]
  gap = min(gap, 1 / (count - 1))
  order = np.argsort(places, kind="stable")
  # Less the gaps below it, a place may fall together with its neighbours' but not behind them:
  # pools of neighbours that would cross stand about their mean.
  pools: list[list[float]] = []
  for rank, n in enumerate(order):
    pools.append([places[n] - rank * gap])
    while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
      pools[-2:] = [pools[-2] + pools[-1]]
  flat = [float(np.mean(pool)) for pool in pools for _ in pool]
  top = 1 - (count - 1) * gap
  found = [0.0] * count
  for rank, n in enumerate(order):
    found[n] = min(max(flat[rank], 0.0), top) + rank * gap
  return found


def write_names(
  axes: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], avoid: ArrayLike
) -> None:
  """Write names beside points: on no other name, and where there is room on nothing else.

  The limits of the axes must not change behind it.

  Args:
    axes: with its points drawn.
    x, y: of the points that are named.
    names: one a point.
    avoid: float [N, 2], x and y of what names should not lie on.
  """
  (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
  axes.set_ylim(low, high)
  assert axes.figure is not None
  size = axes.get_position().size * axes.figure.get_size_inches() * 72  # type: ignore[union-attr]
  # In points; the layout comes later and leaves axes smaller than this by about a fifth.
  wide, tall = 0.8 * size
  scale = np.asarray([wide / (right - left), tall / (high - low)])
  origin = np.asarray([left, low])
  at = (np.column_stack([np.asarray(x, float), np.asarray(y, float)]) - origin) * scale
  dots = (np.asarray(avoid, float) - origin) * scale
  taken: list[Box] = []
  for n in np.argsort(at[:, 1], kind="stable"):
    width = _LETTER * len(names[n])
    options = _around(at[n], width, (wide, tall))
    free = [box for box in options if not any(_meet(box, other) for other in taken)]
    clear = [box for box in free if not _covers(box, dots)]
    box = (clear or free or options)[0]
    taken.append(box)
    is_right = box[0] >= at[n][0]
    text = np.asarray([box[0] if is_right else box[1], (box[2] + box[3]) / 2]) / scale + origin
    axes.annotate(
      names[n], tuple(at[n] / scale + origin), xytext=tuple(text), fontsize=_SIZE, va="center",
      ha="left" if is_right else "right", zorder=4,
      arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#555555", "shrinkA": 0, "shrinkB": 2},
    )  # fmt: skip


def _around(at: np.ndarray, width: float, room: tuple[float, float]) -> list[Box]:
  """Return the boxes about a point that lie inside the axes, the nearest first."""
  found = []
  for away in (10.0, 24.0, 48.0, 80.0):
    for step in range(24):
      for up in {step, -step}:
        middle = at[1] + up * _LINE / 2
        for left in (at[0] + away, at[0] - away - width):
          cost = away + abs(up) * _LINE / 2 + 3.0 * (left < at[0])
          found.append((cost, (left, left + width, middle - _LINE / 2, middle + _LINE / 2)))
  inside = [
    (cost, box)
    for cost, box in found
    if box[0] >= 0 and box[1] <= room[0] and box[2] >= 0 and box[3] <= room[1]
  ]
  return [box for _, box in sorted(inside or found, key=lambda pair: pair[0])]


def _meet(a: Box, b: Box) -> bool:
  return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _covers(box: Box, dots_N2: np.ndarray) -> bool:
  x, y = dots_N2.T
  inside = (x > box[0] - _POINT) & (x < box[1] + _POINT)
  return bool((inside & (y > box[2] - _POINT) & (y < box[3] + _POINT)).any())
