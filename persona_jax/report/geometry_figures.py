"""Figures of trait-refusal geometry: alignment by block, the census, and how wide chance is.

Colours are Okabe and Ito's; grey is chance. Every curve stands in front of its null band, and what
a direction does (its coupling) stands under how it lies (its cosine).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persona_jax.report.label_places import spread_out, write_names
from persona_jax.report.look import (
  CHANCE,
  CLOUD,
  COLOURS,
  SMALL,
  TEXT,
  minus_signs,
  note,
  plain,
  required,
  signed,
)

_DPI = 150
_DASHES = ("-", "--")
_MOST = len(COLOURS) * len(_DASHES)  # curves that can be told apart
_SHADED = 4  # curves that have their intervals at every block
_NONE: Mapping[str, str] = MappingProxyType({})


def save(figure: Figure, path: Path) -> Path:
  """Write a figure as a PNG file that depends on the numbers alone."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=_DPI, facecolor="white", format="png", metadata={"Software": None})
  return path


def draw_alignment(
  alignment: pd.DataFrame,
  names: Sequence[str],
  *,
  steered: int | None = None,
  cosines: pd.DataFrame | None = None,
  labels: Mapping[str, str] = _NONE,
) -> Figure:
  """Draw cosine and coupling of some directions by block, each before its null band (F7).

  Of more than 16 directions, the 16 whose cosine lies furthest from 0 (at the steered block, or at
  any) have colours and names; the others are thin grey lines, and the figure says so. Of more than
  four, intervals are drawn at the steered block alone.

  Args:
    alignment: of `geometry.decoy.alignment_table`.
    names: directions to draw.
    steered: a block to mark.
    cosines: of `geometry.cosines.cosine_table`, whose Euclidean intervals are drawn. A cosine whose
      bounds are missing or outside [-1, 1] is a cross. None: cosines have no interval.
    labels: {direction: how it is written}; by default its name.

  Raises:
    ValueError: no name, one that is not in the table, or columns that are lacking.
  """
  required(alignment, "alignment", ("direction", "block", "cos", "coupling", "low", "high"))
  lacking = sorted(set(names) - set(alignment["direction"]))
  if not names or lacking:
    raise ValueError(
      f"names {list(names)}: give 1 or more that are in the table; not in: {lacking}."
    )
  mine = alignment[alignment["direction"].isin(names)]
  shown = _furthest(mine, names, steered)
  figure = Figure(figsize=(10.5, 9.0), layout="constrained")
  top, below = figure.subplots(2, 1, sharex=True)
  blocks = alignment.drop_duplicates("block").sort_values("block")
  # Shades of many curves hide each other and the null band.
  as_bars = steered is not None and len(shown) > _SHADED
  step = 0.0042 * max(float(np.ptp(blocks["block"])), 1.0)
  by_name = {name: one.sort_values("block") for name, one in mine.groupby("direction")}
  for axes, value, title in (
    (top, "cos", "Cosine with the refusal direction of the block"),
    (below, "coupling", "What adding it does: change of refusal log-odds, nats a unit of h"),
  ):
    plain(axes)
    edges = (blocks[f"{value}_null_low"], blocks[f"{value}_null_high"])
    axes.fill_between(
      blocks["block"], *edges, color=CHANCE, lw=0, label="95 % of random directions (R-cov)"
    )
    axes.axhline(0, color="black", lw=0.8)
    if steered is not None:
      axes.axvline(steered, color="black", lw=0.8, ls=":")
    for name in [n for n in names if n not in shown]:
      axes.plot(by_name[name]["block"], by_name[name][value], color=CLOUD, lw=0.7, label="_")
    for n, name in enumerate(shown):
      one = by_name[name]
      look = {"color": COLOURS[n % 8], "ls": _DASHES[n // 8], "lw": 1.8}
      axes.plot(one["block"], one[value], label=name, **look)
      bounds = one if value == "coupling" else _bounds(cosines, name)
      if bounds is None:
        continue
      low, high = bounds["low"], bounds["high"]
      if not as_bars:
        axes.fill_between(bounds["block"], low, high, color=look["color"], alpha=0.18, lw=0)
      else:
        bounds = bounds[bounds["block"] == steered]
        at = bounds["block"] + (n - (len(shown) - 1) / 2) * step
        axes.vlines(at, bounds["low"], bounds["high"], color=look["color"], lw=1.6, zorder=3)
      bare = one[one["block"].isin(bounds.loc[bounds["low"].isna(), "block"])]
      axes.plot(bare["block"], bare[value], color=look["color"], marker="x", ls="", ms=7, mew=1.8)
    axes.set_title(title, fontsize=TEXT, loc="left")
    _write_ends(axes, [by_name[name] for name in shown], value, labels)
  first, last = blocks["block"].min(), blocks["block"].max()
  below.set_xlim(first - 0.5 * (first == last), last + 0.5 * (first == last))
  below.set_xlabel("block (output of layer i, from 0)", fontsize=TEXT)
  figure.legend(
    *(part[:1] for part in top.get_legend_handles_labels()),
    loc="outside upper left", frameon=False, fontsize=SMALL,
  )  # fmt: skip
  said = f"Dotted: the steered block, {steered}. " if steered is not None else ""
  said += "Upright lines: 95 % interval there" if as_bars else "Shaded: 95 % interval"
  said += " of couplings; cosines have none here." if cosines is None else "; × without one."
  if len(shown) < len(names):
    where = "any block" if steered is None else f"block {steered}"
    said += (
      f" Named: the {len(shown)} directions furthest from 0 at {where}; the other "
      f"{len(names) - len(shown)} are thin grey lines."
    )
  note(figure, said)
  return figure


def _furthest(mine: pd.DataFrame, names: Sequence[str], steered: int | None) -> list[str]:
  """Return the directions that get colours, in the order of the names."""
  if len(names) <= _MOST:
    return list(names)
  at = mine if steered is None else mine[mine["block"] == steered]
  size = at.assign(size=at["cos"].abs()).groupby("direction")["size"].max()
  kept = set(size.reindex(names).nlargest(_MOST).index)
  return [name for name in names if name in kept]


def _bounds(cosines: pd.DataFrame | None, name: str) -> pd.DataFrame | None:
  """Return a direction's Euclidean intervals by block, NaN where they are none."""
  if cosines is None:
    return None
  mine = cosines[(cosines["direction"] == name) & (cosines["metric"] == "euclidean")]
  bounds = mine[["low", "high"]]
  # Of a difference as small as its noise, draws of a cosine leave [-1, 1]: that is no interval.
  usable = (bounds.abs() <= 1).all(axis=1)
  return mine.assign(**{b: mine[b].where(usable) for b in ("low", "high")}).sort_values("block")


def _write_ends(
  axes: Axes, curves: Sequence[pd.DataFrame], value: str, labels: Mapping[str, str]
) -> None:
  """Write every curve's name at its right end, names moved apart; "n/m" behind one of no values."""
  low, high = axes.get_ylim()
  axes.set_ylim(low, high)
  ends, texts = [], []
  for one in curves:
    name = str(one["direction"].iloc[0])
    there = one[value].dropna()
    text = signed(labels.get(name, name))
    texts.append(text if len(there) else f"{text} n/m")
    ends.append((float(there.iloc[-1] if len(there) else low) - low) / (high - low))
  named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
  for line, text, end, place in zip(named, texts, ends, spread_out(ends, 0.055), strict=True):
    style: dict[str, Any] = {
      "color": line.get_color(),
      "transform": axes.transAxes,
      "clip_on": False,
    }
    axes.plot((1.0, 1.03, 1.05), (end, place, place), lw=0.8, ls=line.get_linestyle(), **style)
    axes.text(1.055, place, text, fontsize=SMALL, va="center", **style)


def draw_census(
  points: pd.DataFrame,
  regression: pd.Series,
  *,
  x_name: str = "cosine with the refusal direction",
  y_name: str = "change of refusal log-odds, nats",
  kinds: Sequence[str] = (),
  names: Sequence[str] = (),
  labels: Mapping[str, str] = _NONE,
) -> Figure:
  """Draw what directions do to refusal against how they lie to it.

  Args:
    points: a row a direction: direction, kind, x, delta (nats), perhaps low and high (of delta).
    regression: slope, low, high, intercept, r2 and x_mean of the independent ones.
    x_name, y_name: what x and delta are.
    kinds: drawn in colours; the others are a grey cloud.
    names: directions whose names are written beside their points.
    labels: {direction: how it is written}; by default its name.

  Raises:
    ValueError: columns that are lacking, or no row.
  """
  required(points, "points", ("direction", "kind", "x", "delta"))
  figure = Figure(figsize=(12.5, 6.6), layout="constrained")
  axes = figure.subplots()
  plain(axes)
  axes.axhline(0, color="black", lw=0.8)
  axes.axvline(0, color="black", lw=0.8)
  cloud = points[~points["kind"].isin(kinds)]
  axes.scatter(
    cloud["x"], cloud["delta"], s=14, color=CLOUD, alpha=0.6, lw=0,
    label=f"random directions and components ({len(cloud)})",
  )  # fmt: skip
  there = [k for k in kinds if (points["kind"] == k).any()]
  looks = {kind: (COLOURS[n], "osD^"[n % 4]) for n, kind in enumerate(there)}
  for n, (kind, (colour, marker)) in enumerate(looks.items()):
    mine = points[points["kind"] == kind]
    # The earlier, the wider and the emptier, as directions of two kinds may be one.
    last = n == len(looks) - 1
    axes.scatter(
      mine["x"], mine["delta"], s=46 if last else 150 - 30 * n, marker=marker, label=kind, zorder=3,
      facecolors=colour if last else "none", edgecolors=colour, lw=0 if last else 1.5,
    )  # fmt: skip
  if {"low", "high"} <= set(points.columns):
    colours = points["kind"].map({kind: colour for kind, (colour, _) in looks.items()})
    axes.vlines(
      points["x"], points["low"], points["high"], colors=colours.fillna(CLOUD), lw=1.0, zorder=2
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
  axes.set_ylim(axes.get_ylim())
  axes.set_xlabel(x_name, fontsize=TEXT)
  axes.set_ylabel(y_name, fontsize=TEXT)
  # Beside the axes: inside, it lies on points, and which ones the data decide.
  axes.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
  marked = points[points["direction"].isin(names)]
  written = [signed(labels.get(name, name)) for name in marked["direction"]]
  write_names(axes, marked["x"], marked["delta"], written, avoid=_ink(axes, points, regression))
  return figure


def _ink(axes: Axes, points: pd.DataFrame, row: pd.Series) -> np.ndarray:
  """Return what names should not lie on, float [N, 2]: points, intervals, the line, both zeros."""
  x, y = (np.linspace(*limits, 200) for limits in (axes.get_xlim(), axes.get_ylim()))
  parts = [points[["x", "delta"]].to_numpy(dtype=float)]
  parts += [np.column_stack([x, 0 * x]), np.column_stack([0 * y, y])]
  if {"low", "high"} <= set(points.columns):
    for along in np.linspace(0, 1, 12):
      ends = (1 - along) * points["low"] + along * points["high"]
      parts.append(np.column_stack([points["x"], ends]))
  if not np.isnan(row["slope"]):
    parts.append(np.column_stack([x, row["intercept"] + row["slope"] * x]))
  return np.concatenate(parts)


def _slope_text(row: pd.Series) -> str:
  return minus_signs(
    f"slope {row['slope']:+.2f}\n95 % [{row['low']:+.2f}, {row['high']:+.2f}]\n"
    f"cross-validated R² {row['r2']:.2f}"
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
    plain(axes)
    for n, kind in enumerate(kinds):
      mine = cosines[(cosines["metric"] == metric) & (cosines["kind"] == kind)]
      size = mine.assign(size=mine["cos"].abs()).groupby("block")["size"]
      count = mine["direction"].nunique()
      axes.plot(
        size.median(), color=COLOURS[n % 8], lw=1.8, label=f"{kind} ({count})", ls=_DASHES[n // 8]
      )
      axes.fill_between(
        size.median().index, size.quantile(0.025), size.quantile(0.975), color=COLOURS[n % 8],
        alpha=0.12, lw=0,
      )  # fmt: skip
    axes.set_title(
      f"|cosine| with refusal, {metric} inner product: median and 95 %", fontsize=TEXT, loc="left"
    )
    axes.set_ylim(0, None)
  panels[-1].set_xlabel("block (output of layer i, from 0)", fontsize=TEXT)
  panels[0].legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
  return figure
