"""Figures of what is checked beside: agreement of models (F5), the judge (F12), side effects (F13).

They draw what the core study's tables hold and estimate nothing. A value stands with its interval;
one that has none is a cross, and one that is not measurable is written "n/m".
"""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from persona_jax.report.look import (
  CHANCE,
  COLOURS,
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
_ITSELF = "this model"
_LEAST_WIDE = 3  # columns that a matrix has room for, so that one cell alone does not fill it
_MARKERS = "osD^vP"
# (measure, how it was measured) → title of the panel
MEASURES = {
  ("over_refusal", "label"): "Refusals of harmless\nprompts, share of answers",
  ("over_refusal", "first_token"): "Refusals of harmless\nprompts, P(first token)",
  ("accuracy", "letter"): "MMLU accuracy",
  ("kl", "match"): "KL from no persona,\nnats a token",
  ("trait", "match"): "Shift on the persona's\nown items",
}
ERRORS = {"false_positive": "False positives", "false_negative": "False negatives"}


def draw_models(rankings: pd.DataFrame) -> Figure:
  """Draw how far rankings of personas agree, as matrices of Spearman's ρ (F5).

  A panel an arm compares models; a panel a model compares arms. Each cell holds ρ, its interval and
  both reliabilities; one that is not measurable is grey, with the reason.

  Args:
    rankings: x, y (arms of this model, as "SP" and "AS:proj"; "SP of NAME" or "NAME: SP" of another
      model), rho, low, high, reliability_x, reliability_y, measurable, reason.

  Raises:
    ValueError: no row, columns that are lacking, or a pair of different arms of different models.
  """
  columns = (
    "x", "y", "rho", "low", "high", "reliability_x", "reliability_y", "measurable", "reason",
  )  # fmt: skip
  required(rankings, "rankings", columns)
  panels = _matrices(rankings)
  sizes = [(len({a for a, _ in cells}), len({b for _, b in cells})) for cells in panels.values()]
  heights = [0.75 + 0.95 * rows for rows, _ in sizes]
  figure = Figure(figsize=(_WIDTH, 1.1 + sum(heights)), layout="constrained")
  grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
  for axes, (title, cells) in zip(grid, panels.items(), strict=True):
    _matrix(axes, cells, most=max(_LEAST_WIDE, *(columns for _, columns in sizes)))
    axes.set_title(title, fontsize=TEXT, loc="left", pad=8)
  note(
    figure,
    "In each cell: Spearman's ρ of the personas' rates, its 95 % interval, and the split-half "
    "reliabilities (row, column). Grey: not measurable. Colours from −1 (orange) to 1 (purple).",
  )
  return figure


def _matrices(rankings: pd.DataFrame) -> dict[str, dict[tuple[str, str], pd.Series]]:
  """Return {title: {(row, column): comparison}}, models first."""
  across: dict[str, dict[tuple[str, str], pd.Series]] = {}
  within: dict[str, dict[tuple[str, str], pd.Series]] = {}
  for _, row in rankings.iterrows():
    (model_x, arm_x), (model_y, arm_y) = _split(row["x"]), _split(row["y"])
    if model_x == model_y:
      cells = within.setdefault(f"Arms of {model_x}", {})
      cells[arm_look(arm_x).name, arm_look(arm_y).name] = row
    elif arm_x == arm_y:
      cells = across.setdefault(f"Models, {arm_look(arm_x).name}", {})
      cells[model_x, model_y] = row
    else:
      raise ValueError(
        f"{row['x']!r} and {row['y']!r} are different arms of different models; give pairs of one "
        "model or of one arm."
      )
  return across | within


def _split(name: str) -> tuple[str, str]:
  """Return the model and the arm that a name of a ranking stands for."""
  if " of " in name:
    arm, model = name.split(" of ", 1)
    return model, arm
  if ": " in name:
    model, arm = name.split(": ", 1)
    return model, arm
  return _ITSELF, name


def _matrix(axes: Axes, cells: Mapping[tuple[str, str], pd.Series], most: int) -> None:
  """Draw one matrix; pairs that were not compared stay white."""
  rows = list(dict.fromkeys(a for a, _ in cells))
  columns = list(dict.fromkeys(b for _, b in cells))
  shades = mpl.colormaps["PuOr"]
  for (a, b), one in cells.items():
    x, y = columns.index(b), rows.index(a)
    measurable = bool(one["measurable"]) and np.isfinite(one["rho"])
    shade = shades((one["rho"] + 1) / 2) if measurable else CHANCE
    axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=shade, lw=0))
    is_dark = measurable and abs(one["rho"]) > 0.6
    axes.text(
      x, y, _cell_text(one, measurable), ha="center", va="center", fontsize=SMALL,
      color="white" if is_dark else "black", linespacing=1.35,
    )  # fmt: skip
  axes.set_xlim(-0.5, most - 0.5)  # cells of all panels are of one width
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xticks(range(len(columns)), [textwrap.fill(c, 30) for c in columns])
  axes.set_yticks(range(len(rows)), [textwrap.fill(r, 18) for r in rows])
  axes.xaxis.tick_top()
  axes.tick_params(length=0, labelsize=SMALL)
  axes.spines[:].set_visible(False)


def _cell_text(one: pd.Series, measurable: bool) -> str:
  reliability = f"reliability {number(one['reliability_x'])}, {number(one['reliability_y'])}"
  if not measurable:
    return f"n/m: {_short(str(one['reason']))}\n{reliability}"
  interval = f"[{number(one['low'])}, {number(one['high'])}]"
  return f"{number(one['rho'])}  {interval if np.isfinite(one['low']) else '×'}\n{reliability}"


def _short(reason: str) -> str:
  """Return a reason that fits a cell; of gates, their names alone."""
  gates = re.findall(r"\bG\d", reason)
  if reason.startswith("not testable") and gates:
    return f"gates {', '.join(dict.fromkeys(gates))}"
  text = textwrap.shorten(reason.split(";")[0] or "no reason given", 60, placeholder=" …")
  return textwrap.fill(text, 32)


def draw_dif(dif: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
  """Draw how often judges err by persona, against known labels (F12).

  Args:
    dif: judge, persona ("" for none), error ("false_positive", "false_negative"), rate, low, high,
      n; perhaps source (of the labels: a judge has points for each) and differs (from the others'
      rate: those have a ring).
    labels: {persona: how it is written}, in the order of the figure.

  Raises:
    ValueError: another error, a persona without a label, two rows of one point, no row, or columns
      that are lacking.
  """
  required(dif, "dif", ("judge", "persona", "error", "rate", "low", "high", "n"))
  unknown = sorted(set(dif["error"]) - set(ERRORS))
  if unknown:
    raise ValueError(f"errors {unknown}: the figure draws {list(ERRORS)}.")
  names = named(dif, labels)
  if "source" in dif:
    dif = dif.assign(judge=dif["judge"] + ", against " + dif["source"])
  twice = dif[dif.duplicated(["judge", "persona", "error"])]
  if len(twice):
    raise ValueError(
      f"{list(twice['judge'].unique())} have two rows of a persona and error; give one, or name "
      "their source."
    )
  judges = list(dict.fromkeys(dif["judge"]))
  errors = [error for error in ERRORS if (dif["error"] == error).any()]
  texts = {name: signed(labels[name]) for name in names}
  if (dif["persona"] == "").any():
    texts = {"": arm_look("B0").name, **texts}
  looks = {judge: (COLOURS[n % 8], _MARKERS[n % 6]) for n, judge in enumerate(judges)}
  figure, panels = _rows_of_panels(len(errors), texts, len(judges))
  for axes, error in zip(panels, errors, strict=True):
    mine = dif[dif["error"] == error].set_index(["judge", "persona"]).sort_index()
    for (j, judge), (p, name) in itertools.product(enumerate(judges), enumerate(texts)):
      y, colour = p + _shift(j, len(judges)), looks[judge][0]
      one = mine.loc[(judge, name)] if (judge, name) in mine.index else None
      values = (np.nan,) * 3 if one is None else (one["rate"], one["low"], one["high"])
      _point(axes, y, values, *looks[judge])
      if one is not None and bool(one.get("differs", False)):
        axes.plot(one["rate"], y, marker="o", ms=12, mfc="none", mec="black", ls="", zorder=4)
      axes.text(
        1.02, y, f"n {0 if one is None else int(one['n'])}", fontsize=SMALL - 2, va="center",
        transform=axes.get_yaxis_transform(), color=colour,
      )  # fmt: skip
    axes.set_xlim(-0.02, 1.02)
    axes.set_title(ERRORS[error], fontsize=TEXT, loc="left")
    axes.set_xlabel("rate (95 % interval)", fontsize=SMALL)
  _legend(figure, [(judge, *look) for judge, look in looks.items()])
  note(
    figure,
    "False positive: called what it is not; false negative: missed. n: answers whose true label is "
    "known. A judge that errs more under one persona makes a difference between personas out of "
    "nothing"
    + ("; ring: significantly, and by more than the margin. " if "differs" in dif else ". ")
    + "n/m: no such answer.",
  )
  return figure


def draw_side_effects(side_effects: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
  """Draw what personas do besides, by persona and method, a panel a measure (F13).

  Args:
    side_effects: measure, by (keys of `MEASURES`), arm, persona ("" for none), value, low, high.
    labels: {persona: how it is written}, in the order of the figure.

  Raises:
    ValueError: an unknown measure, a persona without a label, no row, or columns that are lacking.
  """
  columns = ("measure", "by", "arm", "persona", "value", "low", "high")
  required(side_effects, "side_effects", columns)
  keys = list(zip(side_effects["measure"], side_effects["by"], strict=True))
  unknown = sorted(set(keys) - set(MEASURES))
  if unknown:
    raise ValueError(f"measures {unknown}: the figure draws {list(MEASURES)}.")
  names = named(side_effects, labels)
  measures = [key for key in MEASURES if key in keys]
  arms = list(dict.fromkeys(side_effects["arm"]))
  alone = [arm for arm in arms if _has_no_persona(side_effects, arm)]
  methods = [arm for arm in arms if arm not in alone]
  texts = {arm: arm_look(arm).name for arm in alone} | {n: signed(labels[n]) for n in names}
  figure, panels = _rows_of_panels(len(measures), texts, max(len(methods), 1))
  for axes, key in zip(panels, measures, strict=True):
    _draw_measure(axes, side_effects, key, alone, methods, names)
    axes.set_title(MEASURES[key], fontsize=SMALL + 0.5, loc="left")
  _legend(figure, [(arm_look(a).name, arm_look(a).colour, arm_look(a).marker) for a in arms])
  note(
    figure,
    "Bars: 95 % over prompts or questions crossed with replicates; × without an interval (means "
    "over replicates, and cells that were not matched in all of them); n/m not measured.",
  )
  return figure


def _has_no_persona(table: pd.DataFrame, arm: str) -> bool:
  return bool((table.loc[table["arm"] == arm, "persona"] == "").all())


def _draw_measure(
  axes: Axes,
  table: pd.DataFrame,
  key: tuple[str, str],
  alone: Sequence[str],
  methods: Sequence[str],
  names: Sequence[str],
) -> None:
  """Draw one measure: arms of no persona on rows of their own, then a row a persona."""
  mine = table[(table["measure"] == key[0]) & (table["by"] == key[1])]
  cells = mine.set_index(["arm", "persona"])
  places = [(arm, "", float(n)) for n, arm in enumerate(alone)]
  places += [
    (arm, name, len(alone) + p + _shift(m, len(methods)))
    for p, name in enumerate(names)
    for m, arm in enumerate(methods)
  ]
  for arm, name, y in places:
    one = cells.loc[(arm, name)] if (arm, name) in cells.index else None
    values = (np.nan,) * 3 if one is None else (one["value"], one["low"], one["high"])
    if not name and one is None:
      continue  # KL and traits are changes from no persona
    look = arm_look(arm)
    anchor = rows_anchor("over", arm, name) if key[0] == "over_refusal" else ""
    _point(axes, y, values, look.colour, look.marker, anchor)
  base = cells["value"].get(("B0", ""), np.nan)
  if np.isfinite(base):
    axes.axvline(base, color=arm_look("B0").colour, lw=1.0, ls=(0, (4, 2)), zorder=1)
  elif key[0] in ("kl", "trait"):
    axes.axvline(0, color="black", lw=0.8, zorder=1)
  axes.xaxis.set_major_locator(MaxNLocator(3))
  axes.xaxis.set_major_formatter(lambda x, _: signed(f"{x:.3g}"))


def _rows_of_panels(
  count: int, texts: Mapping[str, str], lines: int
) -> tuple[Figure, Sequence[Axes]]:
  """Return panels side by side with a shared row a persona, `lines` points in each row."""
  height = 1.9 + len(texts) * max(0.3, 0.15 * (lines + 1))
  figure = Figure(figsize=(_WIDTH, height), layout="constrained")
  panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
  for axes in panels:
    plain(axes, "x")
    axes.tick_params(axis="y", length=0)
    for y in range(1, len(texts)):
      axes.axhline(y - 0.5, color="#dcdcdc", lw=0.8, zorder=0)
  panels[0].set_yticks(range(len(texts)), list(texts.values()))
  panels[0].set_ylim(len(texts) - 0.5, -0.5)
  return figure, list(panels)


def _shift(n: int, count: int) -> float:
  """Return how far from the middle of its row the n-th point of a row lies."""
  return (n - (count - 1) / 2) / (count + 1)


def _point(
  axes: Axes, y: float, values: Sequence[float], colour: str, marker: str, anchor: str = ""
) -> None:
  """Draw a value with its interval along x; a cross without one, "n/m" without a value."""
  value, low, high = (float(v) for v in values)
  if np.isnan(value):
    axes.text(
      0.01, y, "n/m", transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL - 2,
      color=colour,
    )  # fmt: skip
    return
  if not np.isnan(low):
    axes.plot((low, high), (y, y), color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
  has_none = np.isnan(low)
  (point,) = axes.plot(
    value, y, color=colour, marker="x" if has_none else marker, ms=6, ls="", zorder=3
  )
  if anchor:
    point.set_url(f"#{anchor}")


def _legend(figure: Figure, looks: Sequence[tuple[str, str, str]]) -> None:
  handles = [
    Line2D([], [], color=colour, marker=marker, lw=1.6, ms=6, label=text)
    for text, colour, marker in looks
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL)
