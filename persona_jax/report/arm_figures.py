"""Forests of all personas and methods: of rates, and of refusal log-odds, both before chance (F2).

They draw what the core study's tables hold and estimate nothing. A value stands with its interval;
one that has none is a cross, and one that was not measurable is written "n/m".
"""

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
  named,
  note,
  number,
  plain,
  required,
  rows_anchor,
  signed,
)

_WIDTH = 10.5
_BASES = ("B0", "placebo")
_MEANT = "× a value without an interval; n/m not measurable."


def draw_forest(
  effects: pd.DataFrame,
  baselines: pd.DataFrame,
  bands: pd.DataFrame,
  labels: Mapping[str, str],
  *,
  rate_name: str,
) -> Figure:
  """Draw the rate of every persona and method with its interval, before chance (F2).

  Baselines stand on top and go down as lines. The band is what random directions (R-cov) do at the
  controls' dose.

  Args:
    effects: arm, persona, rate, low, high.
    baselines: arm, persona ("" for those of none), rate, low, high; "B0" is one.
    bands: measure ("rate"), low, high, directions, prompts, reason.
    labels: {persona: how it is written}, in the order of the figure.
    rate_name: what the rate may be called.

  Raises:
    ValueError: no persona, no "B0", or columns that are lacking.
  """
  columns = ("arm", "persona", "rate", "low", "high")
  required(effects, "effects", columns)
  required(baselines, "baselines", columns)
  bases = baselines[baselines["arm"].isin(_BASES)]
  if "B0" not in set(bases["arm"]):
    raise ValueError(f"baselines {list(bases['arm'])}: the rate without a persona, B0, is needed.")
  names = named(effects, labels)
  every = pd.concat([effects, baselines[~baselines["arm"].isin(_BASES)]], ignore_index=True)
  figure, axes = _forest(every.rename(columns={"rate": "value"}), names, labels, above=bases)
  band = _band(bands, "rate")
  handles = [*_handles(every), *_chance(axes, band)]
  why = _of_band(band, "the rate without a persona, moved as random directions move it")
  for row in bases.to_dict("records"):
    look = arm_look(row["arm"])
    axes.axvline(row["rate"], color=look.colour, lw=1.1, ls=(0, (4, 2)), zorder=1)
  furthest = max(every[["rate", "high"]].max().max(), bases[["rate", "high"]].max().max(), 0.1)
  axes.set_xlim(-0.01, min(1.01, 0.1 * np.ceil(10 * furthest) + 0.01))
  axes.set_xlabel(f"{rate_name} (95 % interval)", fontsize=TEXT)
  _legend(figure, handles)
  note(figure, f"{why} {_MEANT}")
  return figure


def draw_odds(odds: pd.DataFrame, bands: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
  """Draw what every persona and method changes in the log-odds of a refusal, before chance (F2).

  The odds are exact and of the first token, so that this can be drawn of any model.

  Args:
    odds: arm, persona, delta, low, high, replicates (fewer than others have: drawn hollow).
    bands: measure ("delta"), low, high, directions, prompts, reason.
    labels: {persona: how it is written}, in the order of the figure.

  Raises:
    ValueError: no persona, or columns that are lacking.
  """
  required(odds, "odds", ("arm", "persona", "delta", "low", "high", "replicates"))
  names = named(odds, labels)
  partly = odds["replicates"] < odds["replicates"].max()
  figure, axes = _forest(
    odds.rename(columns={"delta": "value"}).assign(partly=partly), names, labels
  )
  band = _band(bands, "delta")
  handles = [*_handles(odds), *_chance(axes, band)]
  why = _of_band(band, "what random directions change")
  axes.axvline(0, color="black", lw=1.0, zorder=1)
  for text, side in (("← refuses less ", "right"), (" refuses more →", "left")):
    axes.text(
      0, 1.005, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=SMALL
    )
  axes.set_xlabel(
    "change of refusal log-odds at the first token, nats (95 % interval)", fontsize=TEXT
  )
  _legend(figure, handles)
  note(
    figure,
    f"0 is each arm's own baseline: no persona for steering, the placebo message (without one: no "
    f"persona) for prompts. {why} Hollow: matched in part of the replicates. {_MEANT}",
  )
  return figure


def _forest(
  table: pd.DataFrame,
  names: Sequence[str],
  labels: Mapping[str, str],
  above: pd.DataFrame | None = None,
) -> tuple[Figure, Axes]:
  """Draw a row a persona with a line an arm in it, and baselines above."""
  arms = list(dict.fromkeys(table["arm"]))
  tops = [] if above is None else above.to_dict("records")
  line = 1 / (len(arms) + 1)  # rows are one high; a line's room is left between them
  height = 1.9 + (len(names) * (len(arms) + 1) + 2 * len(tops)) * 0.155
  figure = Figure(figsize=(_WIDTH, height), layout="constrained")
  axes = figure.subplots()
  plain(axes, "x")
  ticks: list[tuple[float, str]] = []
  for n, row in enumerate(tops):
    y = (n - len(tops)) * 2 * line
    ticks.append((y, arm_look(row["arm"]).name))
    _point(axes, y, (row["rate"], row["low"], row["high"]), row["arm"], "")
  cells = table.drop_duplicates(["arm", "persona"]).set_index(["arm", "persona"])
  for p, name in enumerate(names):
    ticks.append((p + line * (len(arms) - 1) / 2, signed(labels[name])))
    axes.axhline(p - line, color="#d0d0d0", lw=0.8, zorder=0)
    for m, arm in enumerate(arms):
      one = cells.loc[(arm, name)] if (arm, name) in cells.index else None
      values = (np.nan,) * 3 if one is None else (one["value"], one["low"], one["high"])
      hollow = one is not None and bool(one.get("partly", False))
      _point(axes, p + m * line, values, arm, name, hollow=hollow)
  axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
  axes.tick_params(axis="y", length=0, labelsize=SMALL)
  axes.set_ylim(len(names) - 0.5 * line, -line * (2 * len(tops) + 1))
  return figure, axes


def _point(
  axes: Axes, y: float, values: Sequence[float], arm: str, persona: str, *, hollow: bool = False
) -> None:
  """Draw a value with its interval along x; a cross without one, "n/m" without a value."""
  look = arm_look(arm)
  value, low, high = (float(v) for v in values)
  if np.isnan(value):
    axes.text(
      0.004, y, "n/m", transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL - 2,
      color=look.colour,
    )  # fmt: skip
    return
  if not np.isnan(low):
    axes.plot((low, high), (y, y), color=look.colour, lw=1.6, solid_capstyle="butt", zorder=2)
  marker = "x" if np.isnan(low) else look.marker
  (point,) = axes.plot(
    value,
    y,
    color=look.colour,
    marker=marker,
    ms=6.5,
    ls="",
    zorder=3,
    mfc="white" if hollow else look.colour,
  )
  point.set_url("#" + rows_anchor(arm, persona))


def _band(bands: pd.DataFrame, measure: str) -> pd.Series:
  """Return the row of a measure."""
  required(bands, "bands", ("measure", "low", "high", "directions", "prompts", "reason"))
  mine = bands[bands["measure"] == measure]
  if mine.empty:
    raise ValueError(f"table 'bands' has measures {list(bands['measure'])}, not {measure!r}.")
  return mine.iloc[0]


def _of_band(band: pd.Series, what: str) -> str:
  """Return the sentence about the band, or why there is none."""
  if np.isnan(band["low"]):
    return f"No band: {band['reason']}."
  return (
    f"The band, {number(band['low'])} to {number(band['high'])}, is {what} at the controls' dose, "
    f"on {band['prompts']} prompts."
  )


def _chance(axes: Axes, band: pd.Series) -> list[Patch]:
  """Draw the band, if there is one; return its handle for the legend."""
  low, high = float(band["low"]), float(band["high"])
  if np.isnan(low):
    return []
  # Directions that all do alike leave a band without a width, which an edge shows.
  edge = 0.0 if high > low else 4.0
  axes.axvspan(low, high, facecolor=CHANCE, edgecolor=CHANCE, lw=edge, zorder=0, alpha=0.75)
  return [Patch(color=CHANCE, label=f"95 % of {band['directions']} random directions (R-cov)")]


def _handles(table: pd.DataFrame) -> list[Line2D | Patch]:
  looks = [arm_look(arm) for arm in dict.fromkeys(table["arm"])]
  return [
    Line2D([], [], color=k.colour, marker=k.marker, lw=1.6, ms=6.5, label=k.name) for k in looks
  ]


def _legend(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
  figure.legend(
    handles=list(handles), loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL
  )
