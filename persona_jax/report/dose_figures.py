"""Figures over the dose: the curve of every direction through no edit, and what answers become."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from persona_jax.report.look import (
  CHANCE,
  SMALL,
  TEXT,
  arm_look,
  note,
  plain,
  required,
  rows_anchor,
  signed,
)

_WIDTH, _ACROSS = 10.5, 3
_CURVE = "#333333"
_DOSE = "dose, median residual norms"
# Two hues apart in lightness too, with what is neither in grey between them.
LABEL_COLOURS = {"bypass": "#D55E00", "degenerate": "#c9c9c9", "refuse": "#56B4E9"}
_STRIP, _LINE = 1.08, 0.11  # where marks of matches begin above the curve, and their rows


def draw_doses(
  curves: pd.DataFrame,
  matches: pd.DataFrame,
  labels: Mapping[str, str],
  *,
  rate_name: str,
  opposites: Mapping[str, str] | None = None,
  most_degenerate: float = 0.1,
) -> Figure:
  """Draw the rate over the dose, both signs through no edit at 0, a panel a direction (F3).

  Above each curve are the doses that match prompts, of each scale and replicate, with intervals.
  Doses are shaded at which more than a share of the answers is degenerate.

  Args:
    curves: persona, kappa, value, low, high, measure ("label" or "first_token"), degenerate.
    matches: persona, by, coef, coef_low, coef_high, status (all but "ok" are not drawn).
    labels: {persona: how it is written}, in the order of the figure.
    rate_name: what the rate may be called where `measure` is "label".
    opposites: {persona with a curve: persona whose direction is its negative}: its matches are
      drawn at negative doses.
    most_degenerate: share above which a dose is shaded.

  Raises:
    ValueError: no curve, an unknown persona, two measures, or columns that are lacking.
  """
  required(
    curves, "dose_curves", ("persona", "kappa", "value", "low", "high", "measure", "degenerate")
  )
  required(matches, "matches", ("persona", "by", "coef", "coef_low", "coef_high", "status"))
  names, opposites = _with_curves(curves, labels, opposites or {}), opposites or {}
  measures = set(curves["measure"])
  if len(measures) > 1:
    raise ValueError(f"measures {sorted(measures)}: one figure draws one.")
  scales = list(dict.fromkeys(matches["by"]))
  figure, panels = _panels(len(names), 2.35 + 0.16 * len(scales))
  furthest = float(curves["kappa"].abs().max())
  for axes, name in zip(panels, names, strict=False):
    mine = curves[curves["persona"] == name].sort_values("kappa")
    plain(axes)
    _shade(axes, mine, most_degenerate, 1.08 * furthest)
    _curve(axes, mine, name)
    for n, by in enumerate(scales):
      for who, sign in ((name, 1), (opposites.get(name), -1)):
        own = matches[(matches["persona"] == who) & (matches["by"] == by)]
        _mark(axes, own[own["status"] == "ok"], f"AS:{by}", _STRIP + n * _LINE, sign)
    axes.axvline(0, color="#c4c4c4", lw=0.8, zorder=0)
    axes.set_xlim(-1.08 * furthest, 1.08 * furthest)
    axes.set_ylim(-0.03, _STRIP + len(scales) * _LINE)
    axes.axhline(1.03, color="#bdbdbd", lw=0.8)
    axes.set_yticks(np.linspace(0, 1, 5), ["0", ".25", ".50", ".75", "1"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    _titles(axes, name, labels, opposites)
    axes.set_xlabel(_DOSE, fontsize=SMALL)
  exact = measures == {"first_token"}
  rate = "probability that the first token is no refusal" if exact else rate_name
  figure.supylabel(rate, fontsize=TEXT)
  handles: list[Line2D | Patch] = [
    Line2D([], [], color=_CURVE, marker="o", ms=4.5, lw=1.5, label="steered, 95 % interval"),
    Line2D([], [], color="black", marker="v", ls="", ms=6, label="no edit"),
  ]
  for by in scales:
    look = arm_look(f"AS:{by}")
    mark = {"color": look.colour, "marker": look.marker, "ls": "", "ms": 6}
    handles.append(Line2D([], [], label=f"matched by {by}", **mark))  # type: ignore[arg-type]
  if (curves["degenerate"] > most_degenerate).any():
    name = f"over {most_degenerate:.0%} of answers degenerate".replace("%", " %")
    handles.append(Patch(facecolor=CHANCE, hatch="//", edgecolor="#a8a8a8", lw=0, label=name))
  figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=SMALL)
  said = (
    "Above the line: doses that match prompts, a mark a replicate with its 95 % interval (by norm "
    "it is set, not estimated)"
    + ("; hollow ones are of the opposite persona." if opposites else ".")
  )
  if curves["degenerate"].isna().all():
    said += " No answers were generated over the dose, so that none is known to be degenerate."
  note(figure, f"{said} × a value without an interval; n/m not measurable.")
  return figure


def draw_labels(
  curves: pd.DataFrame,
  labels: Mapping[str, str],
  *,
  opposites: Mapping[str, str] | None = None,
) -> Figure:
  """Draw what answers become over the dose: shares of labels, stacked, a panel a direction (F4).

  The bounds between labels have the intervals of the share of bypasses, from below, and of
  refusals, from above.

  Args:
    curves: persona, kappa, n, missing, and bypass, refuse, degenerate, the first two with _low and
      _high.
    labels: {persona: how it is written}, in the order of the figure.
    opposites: {persona with a curve: persona whose direction is its negative}.

  Raises:
    ValueError: no row has labels, an unknown persona, or columns that are lacking.
  """
  bounds = [f"{name}_{side}" for name in ("bypass", "refuse") for side in ("low", "high")]
  required(curves, "dose_curves", ("persona", "kappa", *LABEL_COLOURS, *bounds))
  if curves["bypass"].isna().all():
    raise ValueError(
      "table 'dose_curves' has no labels: let the part 'dose' be generated (generate), or draw "
      "draw_doses alone."
    )
  names = _with_curves(curves, labels, opposites or {})
  figure, panels = _panels(len(names), 2.3)
  for axes, name in zip(panels, names, strict=False):
    plain(axes, "y")
    mine = curves[curves["persona"] == name].sort_values("kappa").reset_index(drop=True)
    for x, row in mine.iterrows():
      _stack(axes, int(str(x)), row, name)
    ticks = [f"{k:g}".replace("-", "−").replace("0.", ".") for k in mine["kappa"]]
    axes.set_xticks(range(len(mine)), ticks, rotation=90 if len(mine) > 9 else 0)
    axes.set_xlim(-0.6, len(mine) - 0.4)
    axes.set_ylim(0, 1.02)
    _titles(axes, name, labels, opposites or {})
    axes.set_xlabel(_DOSE, fontsize=SMALL)
  figure.supylabel("share of answers", fontsize=TEXT)
  handles = [
    Patch(facecolor=colour, edgecolor="#8a8a8a", label=name, hatch=_hatch(name))
    for name, colour in reversed(LABEL_COLOURS.items())
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL)
  note(
    figure,
    "Of answers with one of these labels; doses stand at equal steps, 0 is no edit. Lines: 95 % "
    "intervals of bypasses (from below; dark red) and, where some are degenerate, of refusals "
    "(from above; dark blue). n/m not measurable.",
  )
  return figure


def _panels(count: int, height: float) -> tuple[Figure, Sequence[Axes]]:
  rows = -(-count // _ACROSS)
  figure = Figure(figsize=(_WIDTH, 1.3 + height * rows), layout="constrained")
  panels = figure.subplots(rows, min(_ACROSS, count), sharey=True, squeeze=False).ravel()
  for axes in panels[count:]:
    axes.set_axis_off()
  return figure, list(panels)


def _with_curves(
  curves: pd.DataFrame, labels: Mapping[str, str], opposites: Mapping[str, str]
) -> list[str]:
  there = set(curves["persona"])
  unknown = sorted((there | set(opposites.values())) - set(labels))
  if unknown:
    raise ValueError(f"personas {unknown} have no label; labels are of {list(labels)}.")
  return [name for name in labels if name in there]


def _titles(axes: Axes, name: str, labels: Mapping[str, str], opposites: Mapping[str, str]) -> None:
  axes.set_title(f"{signed(labels[name])} →", fontsize=SMALL, loc="right")
  if name in opposites:
    axes.set_title(f"← {signed(labels[opposites[name]])}", fontsize=SMALL, loc="left")


def _curve(axes: Axes, mine: pd.DataFrame, name: str) -> None:
  there = mine.dropna(subset="value")
  axes.plot(there["kappa"], there["value"], color=_CURVE, lw=1.5, zorder=2)
  for row in mine.to_dict("records"):
    kappa, value, low, high = (float(row[c]) for c in ("kappa", "value", "low", "high"))
    if np.isnan(value):
      axes.text(kappa, 0.02, "n/m", ha="center", fontsize=SMALL - 2)
      continue
    if not np.isnan(low):
      axes.plot((kappa, kappa), (low, high), color=_CURVE, lw=1.2, zorder=2)
    at_zero = kappa == 0
    marker = "x" if np.isnan(low) else "v" if at_zero else "o"
    (point,) = axes.plot(
      kappa, value, marker=marker, ls="", zorder=3, color="black" if at_zero else _CURVE,
      ms=6 if at_zero else 4.5,
    )  # fmt: skip
    anchor = rows_anchor("dose", "" if at_zero else name, f"{kappa:g}")
    point.set_url("#" + anchor)


def _mark(axes: Axes, own: pd.DataFrame, arm: str, y: float, sign: int) -> None:
  """Draw the matched doses of a persona in the strip above the curve."""
  look = arm_look(arm)
  for row in own.to_dict("records"):
    low, high = sign * float(row["coef_low"]), sign * float(row["coef_high"])
    if not np.isnan(low):
      axes.plot((low, high), (y, y), color=look.colour, lw=1.2, zorder=2)
    bare = np.isnan(low) and row["by"] != "norm"
    (point,) = axes.plot(
      sign * float(row["coef"]), y, ls="", marker="x" if bare else look.marker, ms=4.5,
      color=look.colour, mfc=look.colour if sign > 0 else "white", zorder=3,
    )  # fmt: skip
    point.set_url("#" + rows_anchor(arm, row["persona"]))


def _shade(axes: Axes, mine: pd.DataFrame, most: float, edge: float) -> None:
  """Shade doses at which answers break down, half way to their neighbours."""
  kappa = mine["kappa"].to_numpy(np.float64)
  between = np.concatenate([[-edge], (kappa[:-1] + kappa[1:]) / 2, [edge]])
  for n in np.flatnonzero(mine["degenerate"].to_numpy(np.float64) > most):
    axes.axvspan(
      between[n], between[n + 1], facecolor=CHANCE, hatch="//", edgecolor="#a8a8a8", lw=0, zorder=0
    )


def _hatch(label: str) -> str | None:
  return "//" if label == "degenerate" else None


def _stack(axes: Axes, x: int, row: pd.Series, name: str) -> None:
  if np.isnan(row["bypass"]):
    axes.text(x, 0.02, "n/m", ha="center", va="bottom", rotation=90, fontsize=SMALL - 2)
    return
  kappa, bottom = float(row["kappa"]), 0.0
  anchor = rows_anchor("dose", "" if kappa == 0 else name, f"{kappa:g}")
  for label, colour in LABEL_COLOURS.items():
    (bar,) = axes.bar(
      x, row[label], bottom=bottom, width=0.86, color=colour, edgecolor="#8a8a8a", lw=0.6,
      hatch=_hatch(label),
    )  # fmt: skip
    bar.set_url("#" + anchor)
    bottom += float(row[label])
  below = (row["bypass_low"], row["bypass_high"])
  above = (1 - row["refuse_high"], 1 - row["refuse_low"])
  lines = [(-0.16, below, "#7a2f00"), (0.16, above, "#003f66")]
  if row["degenerate"] == 0:  # one bound, and the two intervals are one
    lines = [(0.0, below, "#7a2f00")]
  for shift, ends, colour in lines:
    if not np.isnan(ends[0]):
      axes.plot((x + shift, x + shift), ends, color=colour, lw=1.3)
