"""Figures of reasoning traces: cues by position in the trace, and the 2 × 2 of the trace swap.

Colours are Okabe and Ito's; methods differ in markers too. A value is drawn with its interval, one
without an interval is a cross, and one that is not measurable is written "n/m".
"""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

_DPI = 150
_TEXT, _SMALL = 12.0, 10.5
# name, colour, marker, offset of its points, in tenths
_LOOKS = {
  "none": ("no persona", "#000000", "v", -0.18),
  "prompt": ("system prompt", "#0072B2", "o", 0.0),
  "steer": ("steering", "#D55E00", "s", 0.18),
}
_EFFECTS = {
  "thought_effect": "of the thought",
  "answer_effect": "of the answer",
  "interaction": "interaction",
}


def draw_traces(
  positions: pd.DataFrame, swap: pd.DataFrame, directory: Path, *, note: str = ""
) -> dict[str, Path]:
  """Draw both figures as PNG files of 150 dpi.

  Args:
    positions: method, cue, tenth, value, low, high (matches a 100 tokens of the tenth).
    swap: first, second, persona, outcome, what, thought, answer, value, low, high, n.
    directory: where the files go; made if absent.
    note: a sentence that stands under each, as that it is a demonstration.

  Returns:
    Name ("cue_positions", "trace_swap") → file; without those for which there are no numbers.
  """
  figures = {}
  if len(positions):
    figures["cue_positions"] = draw_positions(positions, note)
  if len(swap):
    figures["trace_swap"] = draw_swap(swap, note)
  directory.mkdir(parents=True, exist_ok=True)
  paths = {}
  for name, figure in figures.items():
    paths[name] = directory / f"{name}.png"
    # Without the version of matplotlib in it, the file depends on the numbers alone.
    figure.savefig(
      paths[name], dpi=_DPI, facecolor="white", format="png", metadata={"Software": None}
    )
  return paths


def draw_positions(positions: pd.DataFrame, note: str = "") -> Figure:
  """Draw the rate of every cue by tenth of the trace, a line a method, 95 % intervals."""
  cues = list(dict.fromkeys(positions["cue"]))
  rows = -(-len(cues) // 2)
  figure = Figure(figsize=(10.5, 0.9 + 3.3 * rows), layout="constrained")
  panels = figure.subplots(rows, min(2, len(cues)), sharex=True, squeeze=False)
  for axes in panels.flat[len(cues) :]:
    axes.set_axis_off()
  for axes, cue in zip(panels.flat, cues, strict=False):
    mine = positions[positions["cue"] == cue]
    for method in dict.fromkeys(mine["method"]):
      _line(axes, mine[mine["method"] == method].sort_values("tenth"), method)
    if mine["value"].isna().all():
      axes.text(0.5, 0.5, "n/m", transform=axes.transAxes, ha="center", fontsize=_TEXT)
    _plain(axes)
    axes.set_title(cue.replace("_", " "), loc="left", fontsize=_TEXT)
    axes.set_xlim(0.4, 10.6)
    axes.set_xticks(range(1, 11))
    # An all-zero cue keeps a scale, and no lower bound hides a point at 0.
    top = np.nanmax([*mine["high"], *mine["value"], 0.1]) if len(mine) else 0.1
    axes.set_ylim(-0.04 * top, 1.08 * top)
    axes.set_ylabel("matches in 100 tokens", fontsize=_SMALL)
  for axes in panels[-1]:
    axes.set_xlabel("tenth of the trace (characters)", fontsize=_SMALL)
  figure.legend(
    handles=[_key(method) for method in dict.fromkeys(positions["method"])],
    loc="outside upper right",
    ncols=3,
    frameon=False,
    fontsize=_SMALL,
  )
  _note(
    figure, f"Phrase lists, a heuristic. Bars: 95 %, bootstrap over prompts; × has none. {note}"
  )
  return figure


def _line(axes: Axes, mine: pd.DataFrame, method: str) -> None:
  _, colour, marker, offset = _LOOKS[method]
  x = mine["tenth"] + offset
  axes.plot(x, mine["value"], color=colour, lw=1, alpha=0.6)
  axes.vlines(x, mine["low"], mine["high"], color=colour, lw=1.5)
  bare = mine["low"].isna()
  axes.plot(x[~bare], mine["value"][~bare], marker, color=colour, ms=6)
  axes.plot(x[bare], mine["value"][bare], "x", color=colour, ms=6)


def _key(method: str) -> Line2D:
  name, colour, marker, _ = _LOOKS[method]
  return Line2D([], [], color=colour, marker=marker, ms=6, lw=1, label=name)


def draw_swap(swap: pd.DataFrame, note: str = "") -> Figure:
  """Draw the bypass rates of each swap's four cells, and the effects below.

  Over all personas where there are several.
  """
  swap = swap[swap["outcome"] == "bypass"]
  if (swap["persona"] == "all").any():
    swap = swap[swap["persona"] == "all"]
  pairs = list(dict.fromkeys(zip(swap["first"], swap["second"], strict=True)))
  figure = Figure(figsize=(2.6 + 3.6 * len(pairs), 7.4), layout="constrained")
  panels = figure.subplots(2, len(pairs), squeeze=False, sharey="row", height_ratios=(1, 0.6))
  for (top, below), (first, second) in zip(panels.T, pairs, strict=True):
    mine = swap[(swap["first"] == first) & (swap["second"] == second)]
    persona = mine["persona"].iloc[0]
    _cells(top, mine[mine["what"] == "cell"], (first, second))
    whose = "all personas" if persona == "all" else persona
    _effects(below, mine[mine["what"] != "cell"], first, second)
    n = int(mine["n"].max())
    lost = int(mine["missing"].max())
    left_out = f", {lost} left out" if lost else ""
    top.set_title(f"{whose}, n = {n}{left_out}", loc="left", fontsize=_TEXT)
  panels[0][0].set_ylabel("bypass rate", fontsize=_TEXT)
  _note(
    figure, f"Bars: 95 %, bootstrap over prompts (Wilson where all are alike); × has none. {note}"
  )
  return figure


def _cells(axes: Axes, cells: pd.DataFrame, pair: tuple[str, str]) -> None:
  for answer in pair:
    name, colour, marker, _ = _LOOKS[answer]
    mine = cells[cells["answer"] == answer].set_index("thought").reindex(list(pair))
    x = np.arange(2) + (-0.06 if answer == pair[0] else 0.06)
    axes.plot(x, mine["value"], color=colour, lw=1, alpha=0.6)
    axes.vlines(x, mine["low"], mine["high"], color=colour, lw=1.5)
    axes.plot(x, mine["value"], marker, color=colour, ms=7, label=f"answer: {name}")
    for at, value in zip(x, mine["value"], strict=True):
      if np.isnan(value):
        axes.text(at, 0.5, "n/m", color=colour, fontsize=_SMALL, ha="center")
  names = [f"thought:\n{_LOOKS[method][0]}" for method in pair]
  axes.set_xticks([0, 1], names, fontsize=_SMALL)
  axes.set_xlim(-0.4, 1.4)
  axes.set_ylim(-0.03, 1.03)
  axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  axes.legend(
    frameon=False, fontsize=_SMALL, loc="lower center", bbox_to_anchor=(0.5, 1.08), borderpad=0
  )
  _plain(axes)


def _effects(axes: Axes, effects: pd.DataFrame, first: str, second: str) -> None:
  axes.axvline(0, color="black", lw=1)
  for y, what in enumerate(_EFFECTS):
    row = effects[effects["what"] == what].iloc[0]
    if np.isnan(row["value"]):
      axes.text(0, y, " n/m", fontsize=_SMALL, va="center")
      continue
    axes.hlines(y, row["low"], row["high"], color="#009E73", lw=2)
    axes.plot(row["value"], y, "x" if np.isnan(row["low"]) else "D", color="#009E73", ms=7)
  axes.set_yticks(range(len(_EFFECTS)), list(_EFFECTS.values()), fontsize=_SMALL)
  axes.set_ylim(len(_EFFECTS) - 0.5, -0.5)
  bounds = effects[["value", "low", "high"]].abs().max().max()
  widest = 1.0 if np.isnan(bounds) else max(1.0, float(bounds))  # interactions reach 2
  axes.set_xlim(-1.05 * widest, 1.05 * widest)
  change = f"change of the rate, {_LOOKS[first][0]} → {_LOOKS[second][0]}"
  axes.set_xlabel(textwrap.fill(change, 34), fontsize=_SMALL)
  _plain(axes)


def _note(figure: Figure, text: str) -> None:
  width = int(figure.get_figwidth() * 13)
  figure.supxlabel(textwrap.fill(text.strip(), width), fontsize=_SMALL, x=0.01, ha="left")


def _plain(axes: Axes) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(axis="y", color="#e6e6e6", lw=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(labelsize=_SMALL)
