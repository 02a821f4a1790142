"""What the figures of the core study have in common: how arms and numbers look, axes, links, SVG.

Colours are Okabe and Ito's and a violet, and arms differ in markers too; grey is chance. Points
carry links to the rows that they are made of: `rows_anchor` names the place on the page, and
matplotlib's `set_url("#" + …)` makes the link, which `svg_markup` keeps.
"""

from __future__ import annotations

import dataclasses
import io
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# In points; a figure of 10.5 inches is shown about 1,000 pixels wide.
TEXT, SMALL = 12.0, 10.5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
CHANCE, CLOUD = "#d9d9d9", "#9a9a9a"
_ROWS = "rows-"
_IDS = re.compile(r'(\bid="|\bxlink:href="#|\bhref="#|url\(#)(?!rows-)')


@dataclasses.dataclass(frozen=True)
class ArmLook:
  """How an arm is written and drawn."""

  name: str
  colour: str
  marker: str


_LOOKS = {
  "B0": ArmLook("no persona", "#000000", "v"),
  "placebo": ArmLook("placebo message", "#56B4E9", "^"),
  "shuffled": ArmLook("persona text, words shuffled", "#999933", "<"),
  "user": ArmLook("persona text in the user turn", "#7A4FBF", ">"),
  "SP": ArmLook("system prompt", "#0072B2", "o"),
}
_STEERED = {"norm": ("#E69F00", "D"), "proj": ("#D55E00", "s"), "trait": ("#009E73", "P"),
            "kl": ("#CC79A7", "X")}  # fmt: skip


def arm_look(arm: str) -> ArmLook:
  """Return how an arm ("B0", "SP", "AS:proj", …) is written and drawn; unknown ones in grey."""
  by = arm.removeprefix("AS:")
  if by in _STEERED and by != arm:
    return ArmLook(f"steering, matched by {by}", *_STEERED[by])
  return _LOOKS.get(arm, ArmLook(arm, "#767676", "h"))


def signed(name: str) -> str:
  """Return a name of poles with true minus signs: "C− A−"."""
  return name.replace("-", "−")


def required(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
  """Check that a table has rows and the columns that a figure draws.

  Raises:
    ValueError: it has not.
  """
  lacking = [column for column in columns if column not in table]
  if lacking or table.empty:
    raise ValueError(
      f"table {name!r} has {len(table)} rows and lacks the columns {lacking}; the figure draws "
      f"{list(columns)}."
    )


def number(value: float, form: str = ".2f") -> str:
  """Return a number as figures write it, with a true minus sign, and "n/m" for NaN."""
  return "n/m" if np.isnan(value) else format(value, form).replace("-", "−")


def minus_signs(text: str) -> str:
  """Return a text whose negative numbers have true minus signs; hyphens in words stay."""
  return re.sub(r"-(?=[.\d])", "−", text)


def with_interval(value: float, low: float, high: float) -> str:
  """Return a value with its interval, as far as there are any: "0.21 [0.12, 0.32]"."""
  if np.isnan(value) or np.isnan(low):
    return number(value)
  return f"{number(value)} [{number(low)}, {number(high)}]"


def named(table: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
  """Return the personas of a table, in the order of their labels.

  Raises:
    ValueError: one has no label, or there is none.
  """
  there = set(table["persona"])
  names = [name for name in labels if name in there]
  unknown = sorted(there - set(labels) - {""})
  if unknown or not names:
    raise ValueError(
      f"personas {unknown} of the table have no label; labels are of {list(labels)}."
      if unknown
      else f"no persona of the table {sorted(there)} is among the labels {list(labels)}."
    )
  return names


def plain(axes: Axes, grid: str = "both") -> None:
  """Take away what is no data: two spines, a loud grid.

  Args:
    axes: to change.
    grid: "x", "y" or "both".
  """
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=SMALL)
  axes.grid(True, axis=grid, color="#ececec", lw=0.8)  # type: ignore[arg-type]
  axes.set_axisbelow(True)


def note(figure: Figure, text: str) -> None:
  """Write a note under the figure, broken to its width."""
  width = int(figure.get_figwidth() * 12)
  figure.supxlabel(textwrap.fill(text.strip(), width), fontsize=SMALL, x=0.01, ha="left")


def rows_anchor(*names: object) -> str:
  """Return the id of the place that shows some rows: of an arm, a persona, a condition, a dose."""
  # "+" and "-" of poles must not become one.
  texts = [str(name).replace("+", "p").replace("-", "m") for name in names]
  return _ROWS + "-".join(re.sub(r"[^\w.:]+", "_", text) for text in texts)


def svg_markup(figure: Figure, prefix: str) -> str:
  """Return a figure as an <svg> element that can stand in a page beside others.

  Letters are drawn as paths, so it looks alike without the font; ids get a prefix, so that those of
  two figures differ. The same numbers give the same text.

  Args:
    figure: to draw.
    prefix: of its ids, as "F1".
  """
  file = io.StringIO()
  with mpl.rc_context({"svg.hashsalt": prefix, "svg.fonttype": "path"}):
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
  text = file.getvalue()
  text = text[text.index("<svg") :]
  return _IDS.sub(lambda match: f"{match[0]}{prefix}-", text)
