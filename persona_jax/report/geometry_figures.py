"""Figures of trait-refusal geometry: alignment by block, the census, and how wide chance is.

Colours are Okabe and Ito's; grey is chance. Every curve stands in front of its null band, and what
a direction does (its coupling) stands under how it lies (its cosine).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_DPI = 150
_TEXT = 12.0
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", "-.", ":")
_CHANCE, _CLOUD = "#d9d9d9", "#9a9a9a"


def save(figure: Figure, path: Path) -> Path:
  """Write a figure as a PNG file that depends on the numbers alone."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=_DPI, facecolor="white", format="png", metadata={"Software": None})
  return path


def draw_alignment(
  alignment: pd.DataFrame, names: Sequence[str], *, steered: int | None = None
) -> Figure:
  """Draw cosine and coupling of some directions by block, each before its null band.

  Args:
    alignment: of `geometry.decoy.alignment_table`.
    names: directions to draw, at most 16.
    steered: a block to mark.

  Raises:
    ValueError: no name, too many, or one that is not in the table.
  """
  lacking = sorted(set(names) - set(alignment["direction"]))
  if not names or len(names) > 16 or lacking:
    raise ValueError(f"names {list(names)}: give 1 to 16 that are in the table; not in: {lacking}.")
  figure = Figure(figsize=(10.5, 8.4), layout="constrained")
  top, below = figure.subplots(2, 1, sharex=True)
  blocks = alignment.drop_duplicates("block").sort_values("block")
  for axes, value, title in (
    (top, "cos", "Cosine with the refusal direction of the block"),
    (below, "coupling", "What adding it does: change of refusal log-odds, nats a unit of h"),
  ):
    _plain(axes)
    axes.fill_between(
      blocks["block"],
      blocks[f"{value}_null_low"],
      blocks[f"{value}_null_high"],
      color=_CHANCE,
      lw=0,
      label="95 % of random directions (R-cov)",
    )
    axes.axhline(0, color="black", lw=0.8)
    if steered is not None:
      axes.axvline(steered, color="black", lw=0.8, ls=":")
    for n, name in enumerate(names):
      mine = alignment[alignment["direction"] == name].sort_values("block")
      look = {"color": _COLOURS[n % 8], "ls": _DASHES[n // 8 % 4], "lw": 1.8}
      axes.plot(mine["block"], mine[value], label=name, **look)
      if value == "coupling":
        axes.fill_between(
          mine["block"], mine["low"], mine["high"], color=look["color"], alpha=0.18, lw=0
        )
    axes.set_title(title, fontsize=_TEXT, loc="left")
  below.set_xlabel("block (output of layer i, from 0)", fontsize=_TEXT)
  below.set_xlim(blocks["block"].min(), blocks["block"].max())
  top.legend(
    fontsize=_TEXT - 2, ncols=1, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
  )
  return figure


def draw_census(
  points: pd.DataFrame,
  regression: pd.Series,
  *,
  x_name: str = "cosine with the refusal direction",
  kinds: Sequence[str] = (),
  names: Sequence[str] = (),
) -> Figure:
  """Draw what directions do to refusal against how they lie to it.

  Args:
    points: a row a direction: direction, kind, x, delta (nats).
    regression: slope, low, high, intercept, r2 and x_mean of the independent ones.
    x_name: what x is.
    kinds: drawn in colours; the others are a grey cloud.
    names: directions whose names are written beside their points.
  """
  figure = Figure(figsize=(12.5, 6.6), layout="constrained")
  axes = figure.subplots()
  _plain(axes)
  axes.axhline(0, color="black", lw=0.8)
  axes.axvline(0, color="black", lw=0.8)
  cloud = points[~points["kind"].isin(kinds)]
  axes.scatter(
    cloud["x"], cloud["delta"], s=14, color=_CLOUD, alpha=0.6, lw=0,
    label=f"random directions and components ({len(cloud)})",
  )  # fmt: skip
  for n, kind in enumerate(k for k in kinds if (points["kind"] == k).any()):
    mine = points[points["kind"] == kind]
    axes.scatter(
      mine["x"], mine["delta"], s=46, color=_COLOURS[n], marker="osD^"[n % 4], label=kind, zorder=3
    )
  x = np.linspace(*axes.get_xlim(), 50)
  if not np.isnan(regression["slope"]):
    centre = float(regression["x_mean"])
    y = regression["intercept"] + regression["slope"] * x
    spread = [regression[b] - regression["slope"] for b in ("low", "high")]
    axes.plot(x, y, color="black", lw=1.4, label=_slope_text(regression))
    edges = np.sort([y + s * (x - centre) for s in spread], axis=0)
    axes.fill_between(x, *edges, color="black", alpha=0.12, lw=0)
  axes.set_xlim(x[0], x[-1])
  axes.set_xlabel(x_name, fontsize=_TEXT)
  axes.set_ylabel("change of refusal log-odds, nats", fontsize=_TEXT)
  # Beside the axes: inside, it lies on points, and which ones the data decide.
  axes.legend(fontsize=_TEXT - 2, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
  _write_names(axes, points[points["direction"].isin(names)])
  return figure


def _slope_text(row: pd.Series) -> str:
  return (
    f"slope {row['slope']:+.2f}\n95 % [{row['low']:+.2f}, {row['high']:+.2f}]\n"
    f"cross-validated R² {row['r2']:.2f}"
  )


def _write_names(axes: Axes, points: pd.DataFrame) -> None:
  """Write names to the right of points, moved up or down where two would lie on each other."""
  (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
  line, wide = 0.042 * (high - low), 0.11 * (right - left)
  placed: list[tuple[float, float]] = []
  for row in points.sort_values("delta").to_dict("records"):
    x, y = row["x"], row["delta"]
    tries = [y + step * line for n in range(12) for step in (n, -n)]
    free = [t for t in tries if all(abs(t - b) >= line or abs(x - a) >= wide for a, b in placed)]
    place = next((t for t in free if low < t < high), y)
    placed.append((x, place))
    axes.annotate(
      row["direction"],
      (x, y),
      xytext=(x + 0.025 * (right - left), place),
      fontsize=_TEXT - 2.5,
      va="center",
      arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#555555"},
      zorder=4,
    )


def draw_spread(cosines: pd.DataFrame, kinds: Sequence[str]) -> Figure:
  """Draw how far from 0 cosines lie, by block, kind of direction and inner product.

  Args:
    cosines: direction, kind, block, metric, cos.
    kinds: in the order of the legend.
  """
  metrics = list(dict.fromkeys(cosines["metric"]))
  figure = Figure(figsize=(10.5, 3.2 + 2.6 * (len(metrics) - 1)), layout="constrained")
  panels = np.atleast_1d(figure.subplots(len(metrics), 1, sharex=True))
  for axes, metric in zip(panels, metrics, strict=True):
    _plain(axes)
    for n, kind in enumerate(kinds):
      mine = cosines[(cosines["metric"] == metric) & (cosines["kind"] == kind)]
      size = mine.assign(size=mine["cos"].abs()).groupby("block")["size"]
      count = mine["direction"].nunique()
      axes.plot(
        size.median(), color=_COLOURS[n % 8], lw=1.8, label=f"{kind} ({count})", ls=_DASHES[n // 8]
      )
      axes.fill_between(
        size.median().index, size.quantile(0.025), size.quantile(0.975), color=_COLOURS[n % 8],
        alpha=0.12, lw=0,
      )  # fmt: skip
    axes.set_title(
      f"|cosine| with refusal, {metric} inner product: median and 95 %", fontsize=_TEXT, loc="left"
    )
    axes.set_ylim(0, None)
  panels[-1].set_xlabel("block (output of layer i, from 0)", fontsize=_TEXT)
  panels[0].legend(fontsize=_TEXT - 2, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
  return figure


def _plain(axes: Axes) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=_TEXT - 1)
  axes.grid(True, color="#ececec", lw=0.8)
  axes.set_axisbelow(True)
