"""The figures of a report, drawn with matplotlib's object interface.

Colours are Okabe and Ito's, and every arm has a marker shape of its own. A value is drawn with its
interval; one without an interval is a cross, one that is not measurable is written "n/m".
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from persona_jax.personas import TRAITS
from persona_jax.report.data import DOSED_ARMS, KINDS, PERSONA_ARMS, ReportData
from persona_jax.report.tables import ARM_NAMES, coefficient_text, interval_text, is_missing

DPI = 150
# At half size and 150 dpi, 12 points are about 12 pixels.
_TEXT = 12.0
_SMALL = 10.5


@dataclasses.dataclass(frozen=True)
class _Look:
  name: str
  colour: str
  marker: str


_LOOKS = {
  "baseline": _Look(ARM_NAMES["baseline"], "#000000", "v"),
  "prompt": _Look(ARM_NAMES["prompt"], "#0072B2", "o"),
  "steer": _Look(ARM_NAMES["steer"], "#D55E00", "s"),
  "random": _Look(ARM_NAMES["random"], "#767676", "D"),
}


def draw_all(data: ReportData, directory: str | Path) -> dict[str, Path]:
  """Draw every figure for which there are numbers, as PNG files of 150 dpi.

  Args:
    data: the tables of a study.
    directory: where the files go; made if absent.

  Returns:
    Name ("comparison", "dose_response", "degeneration") → file, in the order of the report.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  drawers: dict[str, tuple[bool, Callable[[ReportData], Figure]]] = {
    "comparison": (len(data.traits) + len(data.refusal) > 0, draw_comparison),
    "dose_response": (len(data.curves) > 0, draw_dose_response),
    "degeneration": (len(data.degeneration) > 0, draw_degeneration),
  }
  paths = {}
  for name, (has_numbers, draw) in drawers.items():
    if has_numbers:
      paths[name] = directory / f"{name}.png"
      # Without the version of matplotlib in it, the file depends on the numbers alone.
      draw(data).savefig(
        paths[name], dpi=DPI, facecolor="white", format="png", metadata={"Software": None}
      )
  return paths


# ---- personas × arms -------------------------------------------------------------------------


def draw_comparison(data: ReportData) -> Figure:
  """Draw the forest of personas × arms: trait shift on the left, refusal rate on the right.

  A persona has a line for each of its traits; its refusal rates stand in the middle of them.
  """
  traits, refusal = data.main_rows("traits"), data.main_rows("refusal")
  lines: list[str] = []
  trait_line: dict[tuple[str, str], int] = {}
  middle: dict[str, float] = {}
  stripes: list[tuple[float, float]] = []
  for persona, label in data.personas():
    own = list(dict.fromkeys(traits.loc[traits["persona"] == persona, "trait"])) or [""]
    stripes.append((len(lines) - 0.5, len(lines) + len(own) - 0.5))
    middle[persona] = sum(stripes[-1]) / 2
    for i, trait in enumerate(own):
      trait_line[persona, trait] = len(lines)
      name = f"{persona}  {label}".replace("-", "−") if i == 0 else ""
      lines.append(name + (f"   on {trait}" if len(own) > 1 else ""))

  figure = Figure(figsize=(10.5, 1.9 + 0.56 * (len(lines) + 1)), layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
  for axes in (left, right):
    _plain(axes)
    for stripe in stripes[::2]:
      axes.axhspan(*stripe, color="#f4f4f4", lw=0, zorder=0)
    axes.tick_params(axis="y", length=0)

  left.axvline(0, color="black", lw=1, zorder=1)
  for row in _rows(traits):
    y = trait_line[row["persona"], row["trait"]] + 0.26 * _lane(row["arm"])
    _mark_across(left, y, row["value"], row["low"], row["high"], _LOOKS[row["arm"]])
  _label(
    left,
    "Trait expression",
    "shift against no persona, nats per token\n→ towards the persona's pole",
  )

  for row in _rows(refusal):
    is_harmful = row["kind"] == KINDS[0]
    if row["arm"] == "baseline":
      y = -1.0 + (-0.12 if is_harmful else 0.12)
      if is_harmful and not is_missing(row["refused"]):
        right.axvline(row["refused"], color="black", lw=1, zorder=1)
        band = row["refused_low"], row["refused_high"]
        right.axvspan(*band, color="#d9d9d9", lw=0, zorder=0.5)
    else:
      y = middle[row["persona"]] + 0.28 * _lane(row["arm"]) + (-0.055 if is_harmful else 0.055)
    interval = row["refused"], row["refused_low"], row["refused_high"]
    _mark_across(right, y, *interval, _LOOKS[row["arm"]], is_filled=is_harmful)
  _label(right, "Refusal rate", "share of answers refused")
  # From zero to the next 10 %: small rates stay apart.
  ends = refusal[["refused", "refused_high"]].astype(float).max().max()
  top = 1.0 if np.isnan(ends) else max(np.ceil(10 * ends) / 10, 0.2)
  right.set_xlim(-0.02 * top, 1.02 * top)
  right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

  left.set_yticks([-1, *range(len(lines))], ["no persona", *lines], fontsize=_TEXT)
  left.set_ylim(len(lines) - 0.5, -1.5)
  looks = {arm: _LOOKS[arm] for arm in PERSONA_ARMS}
  steered = [frame.loc[frame["arm"] == "steer", "coef"] for frame in (traits, refusal)]
  # Compared as texts: a mean of equal coefficients may differ in the last bit.
  if len(coefs := set(map(coefficient_text, pd.concat(steered).dropna()))) == 1:
    name = f"{looks['steer'].name}, coefficient {coefs.pop()}"
    looks["steer"] = dataclasses.replace(looks["steer"], name=name)
  handles: list[Artist] = [_key(look) for look in looks.values()]
  black = _LOOKS["baseline"]
  handles += [
    _key(dataclasses.replace(black, name="harmful prompts", marker="o")),
    _key(dataclasses.replace(black, name="harmless twins", marker="o"), is_filled=False),
    Patch(facecolor="#d9d9d9", edgecolor="black", label="no persona, harmful prompts"),
  ]
  _legend(figure, handles, columns=3)
  return figure


def _lane(arm: str) -> int:
  return PERSONA_ARMS.index(arm) - 1


def _mark_across(
  axes: Axes,
  y: float,
  value: float,
  low: float,
  high: float,
  look: _Look,
  *,
  is_filled: bool = True,
) -> None:
  """Draw one value of a forest, its interval lying across."""
  if is_missing(value):
    # The two kinds of prompts of an arm lie so close that their words go side by side.
    text = " n/m" if is_filled else " " * 12 + "n/m (harmless)"
    axes.text(0.0, y, text, color=look.colour, fontsize=8.5, va="center")
    return
  has_interval = not (is_missing(low) or is_missing(high))
  if has_interval:
    axes.hlines(y, low, high, color=look.colour, lw=1.8 if is_filled else 1.1, zorder=2)
  axes.plot(value, y, zorder=3, **_marker(look, has_interval, is_filled))


# ---- dose response ---------------------------------------------------------------------------


def draw_dose_response(data: ReportData) -> Figure:
  """Draw shift against coefficient, a panel for each trait, with the slopes written above it."""
  present = set(data.curves["trait"])
  traits = [trait for trait in TRAITS if trait in present] + sorted(present - set(TRAITS))
  columns = min(3, len(traits))
  rows = -(-len(traits) // columns)
  figure = Figure(figsize=(max(3.5 * columns, 6.0), 3.7 * rows + 0.9), layout="constrained")
  grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
  for axes, trait in zip(grid.flat, traits, strict=False):
    _plain(axes)
    axes.axhline(0, color="black", lw=0.8, zorder=1)
    axes.axvline(0, color="black", lw=0.8, zorder=1)
    slopes = []
    for lane, arm in enumerate(reversed(DOSED_ARMS)):
      curve = data.curves[(data.curves["trait"] == trait) & (data.curves["arm"] == arm)]
      _draw_curve(axes, curve.sort_values("coef"), _LOOKS[arm])
      slope = data.slopes[(data.slopes["trait"] == trait) & (data.slopes["arm"] == arm)]
      slopes += [(lane, arm, row) for row in _rows(slope)]
    for lane, arm, row in slopes:
      axes.text(
        *(0.0, 1.02 + 0.075 * lane, _slope_text(row)),
        **{"color": _LOOKS[arm].colour, "fontsize": _SMALL, "transform": axes.transAxes},
        va="bottom",
        parse_math=False,
        in_layout=False,
      )
    axes.set_title(
      f"{trait}  {TRAITS.get(trait, '')}", fontsize=_TEXT + 1, loc="left", pad=5 + 16 * len(slopes)
    )
  for axes in grid.flat[len(traits) :]:
    axes.set_visible(False)
  for column in range(columns):
    # The lowest visible panel of a column carries the ticks that a shared axis hides.
    lowest = [axes for axes in grid[:, column] if axes.get_visible()][-1]
    lowest.tick_params(labelbottom=True)
  figure.supxlabel("coefficient, in units of the median residual norm", fontsize=_TEXT)
  figure.supylabel("shift towards the high pole, nats per token", fontsize=_TEXT)
  _legend(figure, [_key(_LOOKS[arm]) for arm in DOSED_ARMS], columns=2)
  return figure


def _draw_curve(axes: Axes, curve: pd.DataFrame, look: _Look) -> None:
  coef, value, low, high = (
    curve[name].to_numpy(dtype=float) for name in ("coef", "value", "low", "high")
  )
  axes.fill_between(coef, low, high, color=look.colour, alpha=0.2, lw=0, zorder=1.5)
  axes.plot(coef, value, color=look.colour, lw=1.8, zorder=2)
  for x, y, has_interval in zip(coef, value, np.isfinite(low) & np.isfinite(high), strict=True):
    if np.isfinite(y):
      axes.plot(x, y, zorder=3, **_marker(look, has_interval, True))
    else:
      across = axes.get_xaxis_transform()
      axes.text(x, 0.02, "n/m", color=look.colour, fontsize=8.5, ha="center", transform=across)


def _slope_text(row: dict[str, Any]) -> str:
  text = interval_text(row["value"], row["low"], row["high"], row["reason"])
  return textwrap.shorten(f"slope {text}", 42, placeholder=" …")


# ---- degenerate output -----------------------------------------------------------------------


def draw_degeneration(data: ReportData) -> Figure:
  """Draw the share of degenerate generations against the size of the coefficient."""
  figure = Figure(figsize=(7.5, 4.4), layout="constrained")
  axes = figure.subplots()
  _plain(axes)
  coefs = np.unique(data.degeneration["coef"].to_numpy(dtype=float))
  gap = float(np.diff(coefs).min()) if len(coefs) > 1 else 1.0
  for side, arm in zip((-1, 1), DOSED_ARMS, strict=True):
    points = data.degeneration[data.degeneration["arm"] == arm].sort_values("coef")
    # A little apart, so that one interval does not hide the other.
    shift, look = 0.06 * gap * side, _LOOKS[arm]
    axes.plot(points["coef"] + shift, points["rate"], color=look.colour, lw=1.2, zorder=2)
    for row in _rows(points):
      x = row["coef"] + shift
      if is_missing(row["rate"]):
        axes.text(x, 0.0, "n/m", color=look.colour, fontsize=8.5, ha="center", va="bottom")
        continue
      has_interval = not (is_missing(row["low"]) or is_missing(row["high"]))
      if has_interval:
        axes.vlines(x, row["low"], row["high"], color=look.colour, lw=1.8, zorder=2)
      axes.plot(x, row["rate"], zorder=3, **_marker(look, has_interval, True))
  axes.set_ylim(-0.03, 1.03)
  axes.yaxis.set_major_formatter(PercentFormatter(1.0))
  axes.set_xlim(left=-0.03 * coefs[-1])
  if gap > 0.06 * coefs[-1]:
    axes.set_xticks(coefs)
  axes.set_xlabel("|coefficient|, in units of the median residual norm", fontsize=_TEXT)
  axes.set_ylabel("degenerate generations", fontsize=_TEXT)
  present = set(data.degeneration["arm"])
  _legend(figure, [_key(_LOOKS[arm]) for arm in DOSED_ARMS if arm in present], columns=2)
  return figure


# ---- shared parts ----------------------------------------------------------------------------


def _rows(frame: pd.DataFrame) -> Iterable[dict[str, Any]]:
  return frame.to_dict("records")


def _plain(axes: Axes) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=_TEXT - 0.5)


def _label(axes: Axes, title: str, below: str) -> None:
  axes.set_title(title, fontsize=_TEXT + 1, loc="left")
  axes.set_xlabel(below, fontsize=_TEXT)


def _marker(look: _Look, has_interval: bool, is_filled: bool) -> dict[str, Any]:
  return {
    "linestyle": "none",
    "marker": look.marker if has_interval else "x",
    "markersize": (6.5 if is_filled else 5.5) if has_interval else 8.0,
    "color": look.colour,
    "markerfacecolor": look.colour if is_filled else "white",
    "markeredgewidth": 1.2 if has_interval else 2.0,
  }


def _key(look: _Look, is_filled: bool = True) -> Line2D:
  marker = _marker(look, True, is_filled) | {"linestyle": "-", "lw": 1.8 if is_filled else 1.1}
  return Line2D([], [], label=look.name, **marker)


def _legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
  figure.legend(
    handles=list(handles),
    loc="outside upper center",
    ncols=columns,
    fontsize=_TEXT - 0.5,
    frameon=False,
  )
