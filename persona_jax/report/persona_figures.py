"""Figures of single personas: D of the named one under each match, and the grid of two traits.

They draw what the core study's tables hold and estimate nothing.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from persona_jax.report.look import (
  CHANCE,
  SMALL,
  TEXT,
  arm_look,
  minus_signs,
  note,
  number,
  plain,
  required,
  rows_anchor,
  signed,
  with_interval,
)

_WIDTH = 10.5
_SIGNS = ("-", "", "+")


# ---- F6: D by match ------------------------------------------------------------------------------


def draw_matched(
  inversions: pd.DataFrame,
  named: str,
  matches: Sequence[str],
  labels: Mapping[str, str],
  *,
  delta: float,
  rate_name: str,
  blocked: str = "",
) -> Figure:
  """Draw how a persona differs from the others by prompt and steered, a row a match (F6).

  Args:
    inversions: persona, direction, match, d_SP, SP_low, SP_high, d_AS, AS_low, AS_high (bounds that
      are each one-sided at 95 %), p, p_holm, inverted, reason, and d_SP_<k>, d_AS_<k> of each
      replicate. Of the directions, the one that is worse steered is drawn.
    named: the persona.
    matches: steering arms that a row is drawn of; one without a value is "n/m".
    labels: {persona: how it is written}.
    delta: margin on either side of 0.
    rate_name: what the rate may be called.
    blocked: why nothing was tested.

  Raises:
    ValueError: no match, a persona without a label, or columns that are lacking.
  """
  columns = ("d_SP", "SP_low", "SP_high", "d_AS", "AS_low", "AS_high", "p", "p_holm", "inverted")
  if named not in labels or not matches:
    raise ValueError(
      f"named {named!r} and matches {list(matches)}: labels are of {list(labels)}, and at least "
      "one match is needed."
    )
  if not inversions.empty:
    required(inversions, "inversions", ("persona", "direction", "match", *columns))
  figure = Figure(figsize=(_WIDTH, 2.0 + 0.85 * len(matches)), layout="constrained")
  axes = figure.subplots()
  plain(axes, "x")
  axes.axvspan(-delta, delta, color=CHANCE, lw=0, zorder=0)
  axes.axvline(0, color="black", lw=0.8)
  ticks = []
  for n, match in enumerate(matches):
    ticks.append(arm_look(match).name)
    mine = inversions[
      (inversions["persona"] == named)
      & (inversions["match"] == match)
      & (inversions["direction"] == "AS-worse")
    ]
    if mine.empty or mine[["d_SP", "d_AS"]].isna().any(axis=None):
      axes.text(
        1.02, n, "n/m: not matched\nin every replicate", transform=axes.get_yaxis_transform(),
        va="center", fontsize=SMALL,
      )  # fmt: skip
      continue
    row = mine.iloc[0]
    for side, (arm, short) in enumerate((("SP", "SP"), (match, "AS"))):
      _bounded(axes, row, short, n + (-0.17, 0.17)[side], arm, named)
    axes.text(
      1.02, n, _tested(row, blocked), transform=axes.get_yaxis_transform(), va="center",
      fontsize=SMALL,
    )  # fmt: skip
  axes.set_yticks(range(len(matches)), ticks)
  axes.tick_params(axis="y", length=0)
  axes.set_ylim(len(matches) - 0.5, -0.5)
  axes.set_xlabel(
    f"D of {signed(labels[named])}: {rate_name.lower()} less the mean of the other personas'",
    fontsize=TEXT,
  )
  # Each steering arm has its own colour, so that the legend's is a plain one.
  handles = [
    Line2D([], [], color=arm_look("SP").colour, marker="o", lw=1.8, ms=7, label="by system prompt"),
    *(
      Line2D([], [], color=k.colour, marker=k.marker, lw=1.8, ms=7, label=k.name)
      for k in map(arm_look, matches)
    ),
    Line2D([], [], color="#555555", marker="o", mfc="none", ls="", ms=4.5, label="one replicate"),
    Patch(color=CHANCE, label=f"margin ±{delta:g}"),
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL)
  said = (
    "Whiskers: a lower and an upper bound, each one-sided at 95 % (together a 90 % interval). It "
    f"inverts if D by prompt is certainly below −{delta:g} and D steered above {delta:g}, after "
    "Holm's correction and in every replicate. × no bounds."
  )
  note(figure, said + (f" Not tested: {minus_signs(blocked)}." if blocked else ""))
  return figure


def _bounded(axes: Axes, row: pd.Series, short: str, y: float, arm: str, named: str) -> None:
  look, value = arm_look(arm), float(row[f"d_{short}"])
  low, high = float(row[f"{short}_low"]), float(row[f"{short}_high"])
  if not np.isnan(low):
    axes.plot((low, high), (y, y), color=look.colour, lw=1.8, solid_capstyle="butt")
    axes.plot((low, high), (y, y), color=look.colour, ls="", marker="|", ms=9, mew=1.8)
  marker = "x" if np.isnan(low) else look.marker
  (point,) = axes.plot(value, y, color=look.colour, marker=marker, ms=8, ls="", zorder=3)
  point.set_url("#" + rows_anchor(arm, named))
  of_each = [c for c in row.index if c.startswith(f"d_{short}_")]
  each = row[of_each].astype("float64").to_numpy()
  # Beside the whisker, not on it.
  beside = y + 0.14 * np.sign(y - round(y))
  axes.plot(
    each, np.full(len(each), beside), color=look.colour, marker="o", mfc="none", ms=4.5, ls=""
  )


def _tested(row: pd.Series, blocked: str) -> str:
  p, holm = float(row["p"]), float(row["p_holm"])
  if blocked or np.isnan(p):
    return "not tested"
  verdict = "inverts" if bool(row["inverted"]) else "not shown to invert"
  return f"{verdict}\np {_p(p)}, Holm {_p(holm)}"


def _p(value: float) -> str:
  if np.isnan(value):
    return "n/m"
  return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


# ---- F11: the grid of two traits -----------------------------------------------------------------


def draw_grid(
  effects: pd.DataFrame,
  baselines: pd.DataFrame,
  poles: Mapping[str, Sequence[str]],
  *,
  traits: tuple[str, str] = ("C", "A"),
  rate_name: str,
) -> Figure:
  """Draw rates over the three by three cells of two traits, a panel an arm (F11).

  The colour is a rate less its own baseline's, on one scale of all panels; the numbers are rates
  with their intervals. The baseline is the cell in the middle.

  Args:
    effects: arm, persona, rate, low, high, effect.
    baselines: arm, persona, rate, low, high; of "B0" and perhaps "placebo", which is then the
      prompts' baseline.
    poles: {persona: its poles, as ("C+", "A+")}; those of other traits are left out.
    traits: along x and along y.
    rate_name: what the rate may be called.

  Raises:
    ValueError: no persona of these traits, two in one cell, no "B0", or columns that are lacking.
  """
  required(effects, "effects", ("arm", "persona", "rate", "low", "high", "effect"))
  required(baselines, "baselines", ("arm", "rate", "low", "high"))
  base = baselines.drop_duplicates("arm").set_index("arm")
  if "B0" not in base.index:
    raise ValueError(f"baselines {list(base.index)}: the rate without a persona, B0, is needed.")
  cells = _cells(poles, traits)
  arms = list(dict.fromkeys(effects["arm"]))
  shown = effects[effects["persona"].isin(cells.values())]
  largest = float(shown["effect"].abs().max())
  scale = Normalize(*((-largest, largest) if largest > 0 else (-1, 1)))
  rows, across = -(-len(arms) // 2), min(2, len(arms))
  figure = Figure(figsize=(_WIDTH, 1.2 + 3.5 * rows), layout="constrained")
  panels = figure.subplots(rows, across, squeeze=False).ravel()
  for axes in panels[len(arms) :]:
    axes.set_axis_off()
  colours = mpl.colormaps["RdBu_r"]
  for axes, arm in zip(panels, arms, strict=False):
    own = "placebo" if arm == "SP" and "placebo" in base.index else "B0"
    mine = shown[shown["arm"] == arm].set_index("persona")
    for x, first in enumerate(_SIGNS):
      for y, second in enumerate(_SIGNS):
        name = cells.get((first, second))
        centre = not first and not second
        if centre:
          row, title, url = base.loc[own], arm_look(own).name, rows_anchor(own, "")
        elif name is None or name not in mine.index:
          text = "no persona" if name is None else f"{name}\nn/m"
          _empty(axes, x, y, text, hatched=name is None)
          continue
        else:
          row, title, url = mine.loc[name], name, rows_anchor(arm, name)
        rate, low, high = (float(row[c]) for c in ("rate", "low", "high"))
        effect = 0.0 if centre else float(row["effect"])
        if np.isnan(rate) or np.isnan(effect):
          _empty(axes, x, y, f"{title}\nn/m", hatched=False)
          continue
        fill = colours(scale(effect))
        box = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="white", lw=2)
        box.set_url("#" + url)
        axes.add_patch(box)
        lightness = float(np.dot(fill[:3], (0.299, 0.587, 0.114)))
        numbers = with_interval(rate, low, high).replace(" [", "\n[")
        if np.isnan(low):
          numbers += " ×"
        axes.text(
          x, y, f"{title}\n{numbers}", ha="center", va="center", fontsize=SMALL,
          color="black" if lightness > 0.5 else "white",
        )  # fmt: skip
    _edges(axes, traits)
    axes.set_title(arm_look(arm).name, fontsize=TEXT, loc="left")
  mappable = mpl.cm.ScalarMappable(scale, colours)
  bar = figure.colorbar(mappable, ax=list(panels), shrink=0.7, pad=0.02)
  bar.set_label("rate less its own baseline's, the cell in the middle", fontsize=SMALL)
  bar.ax.tick_params(labelsize=SMALL)
  bar.ax.yaxis.set_major_formatter(lambda value, _: number(value))
  note(
    figure,
    f"Numbers: {rate_name.lower()} with its 95 % interval. The middle is the arm's baseline. "
    "× no interval; n/m not measurable; hatched: no persona has these poles.",
  )
  return figure


def _cells(
  poles: Mapping[str, Sequence[str]], traits: tuple[str, str]
) -> dict[tuple[str, str], str]:
  """Return {(sign of the first trait, of the second; "" for none): persona}."""
  found: dict[tuple[str, str], str] = {}
  for name, own in poles.items():
    signs = {pole[:-1]: pole[-1] for pole in own}
    if not signs or not set(signs) <= set(traits):
      continue
    cell = (signs.get(traits[0], ""), signs.get(traits[1], ""))
    if cell in found:
      raise ValueError(f"personas {found[cell]} and {name} have the same poles {list(own)}.")
    found[cell] = name
  if not found:
    raise ValueError(f"no persona has poles of {list(traits)} alone; poles are {dict(poles)}.")
  return found


def _empty(axes: Axes, x: int, y: int, text: str, *, hatched: bool) -> None:
  box = Rectangle(
    (x - 0.5, y - 0.5), 1, 1, facecolor="#f4f4f4", edgecolor="#bdbdbd", lw=0,
    hatch="//" if hatched else None,
  )  # fmt: skip
  axes.add_patch(box)
  behind = {"facecolor": "#f4f4f4", "edgecolor": "none", "pad": 2}
  axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, bbox=behind)


def _edges(axes: Axes, traits: tuple[str, str]) -> None:
  def names(trait: str) -> list[str]:
    return [signed(f"{trait}{sign}") if sign else f"no {trait}" for sign in _SIGNS]

  axes.set_xticks(range(3), names(traits[0]))
  axes.set_yticks(range(3), names(traits[1]))
  axes.set_xlim(-0.5, 2.5)
  axes.set_ylim(-0.5, 2.5)
  axes.tick_params(length=0, labelsize=SMALL)
  axes.spines[:].set_visible(False)
