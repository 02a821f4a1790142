"""Slope graph of ranks by prompt and steered, with the pairs that certainly cross (F1)."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from persona_jax.report.look import (
  SMALL,
  TEXT,
  arm_look,
  minus_signs,
  named,
  note,
  required,
  rows_anchor,
  signed,
  with_interval,
)

UP, DOWN, GREY = "#D55E00", "#0072B2", "#b5b5b5"
_WIDTH = 10.5
_NAMES = SMALL - 1  # points: names with their numbers stand at both ends of half a page


def draw_ranks(
  effects: pd.DataFrame,
  crossings: pd.DataFrame,
  labels: Mapping[str, str],
  *,
  rate_name: str,
  delta: float,
  blocked: str = "",
) -> Figure:
  """Draw the rank of every persona by prompt beside its rank steered, a panel a match (F1).

  Rank 1 has the highest rate. Ranked are the personas that a match has in every replicate. Pairs
  whose order certainly reverses are coloured, by which way the persona moves, and their crossing
  is a point; all other lines are grey.

  Args:
    effects: arm, persona, rate, low, high.
    crossings: p, q, crosses, match (of pairs of personas); may be empty.
    labels: {persona: how it is written}, in the order of the figure.
    rate_name: what the rate may be called.
    delta: margin that a crossing exceeds in both arms.
    blocked: why nothing was tested; then all is grey, and the figure says so.

  Raises:
    ValueError: no steering arm, no persona, or columns that are lacking.
  """
  required(effects, "effects", ("arm", "persona", "rate", "low", "high"))
  arms = [a for a in dict.fromkeys(effects["arm"]) if a != "SP"]
  names = named(effects, labels)
  if not arms or "SP" not in set(effects["arm"]):
    raise ValueError(f"arms {['SP', *arms]}: ranks compare SP with at least one steering arm.")
  if not crossings.empty:
    required(crossings, "crossings", ("p", "q", "crosses", "match"))
  rows = -(-len(arms) // 2)
  figure = Figure(figsize=(_WIDTH, 1.4 + rows * (0.7 + 0.25 * len(names))), layout="constrained")
  panels = figure.subplots(rows, min(2, len(arms)), squeeze=False).ravel()
  for axes in panels[len(arms) :]:
    axes.set_axis_off()
  unranked = []
  for axes, arm in zip(panels, arms, strict=False):
    pairs = crossings if crossings.empty else crossings[crossings["match"] == arm]
    tables = [effects[effects["arm"] == a].set_index("persona").reindex(names) for a in ("SP", arm)]
    ranked = _ranked(tables, pairs)
    certain = pairs[:0] if blocked or pairs.empty else pairs[pairs["crosses"].astype(bool)]
    _slopes(axes, [t.loc[ranked] for t in tables], certain, ("SP", arm), labels)
    count = f"{len(certain)} of {len(pairs)} pairs cross"
    title = f"{arm_look(arm).name}: {'not tested' if blocked or pairs.empty else count}"
    axes.set_title(title, fontsize=TEXT)
    axes.set_ylim(len(names) + 0.7, -0.1)
    left = [name for name in names if name not in ranked]
    if left:
      unranked.append(f"by {arm.removeprefix('AS:')}: {', '.join(left)}")
  said = (
    f"Numbers: {rate_name.lower()}, 95 % interval; the highest is on top, and equal ones share a "
    f"place. Crossing: by prompt and steered the pair differs by more than {delta:g} in opposite "
    "senses, by simultaneous 95 % bounds over all pairs and both arms."
  )
  if unranked:
    said += f" n/m, not matched in every replicate: {'; '.join(unranked)}."
  if blocked:
    said += f" Not tested: {minus_signs(blocked)}."
  else:
    handles = [
      Line2D([], [], color=UP, lw=2, label="certainly crosses another, higher steered"),
      Line2D([], [], color=DOWN, lw=2, label="certainly crosses another, lower steered"),
      Line2D([], [], color="black", ls="", marker="o", ms=4, label="a certain crossing"),
      Line2D([], [], color=GREY, lw=1.4, label="no certain crossing"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)
  note(figure, said)
  return figure


def _ranked(tables: Sequence[pd.DataFrame], pairs: pd.DataFrame) -> list[str]:
  """Return the personas of a panel: those compared, or else those that have rates."""
  both = tables[0]["rate"].notna() & tables[1]["rate"].notna()
  paired = {*pairs["p"], *pairs["q"]} if len(pairs) else set(both.index)
  return [name for name in both.index if both[name] and name in paired]


def _slopes(
  axes: Axes,
  tables: Sequence[pd.DataFrame],
  certain: pd.DataFrame,
  arms: tuple[str, str],
  labels: Mapping[str, str],
) -> None:
  involved = set() if certain.empty else {*certain["p"], *certain["q"]}
  ranks = [t["rate"].rank(ascending=False) for t in tables]
  # Equal rates share a rank, and their names fan out over the places that it spans.
  places = [t["rate"].rank(ascending=False, method="first") for t in tables]
  for name in tables[0].index:
    ends = (float(ranks[0][name]), float(ranks[1][name]))
    crosses = name in involved
    colour = GREY if not crosses else UP if ends[1] < ends[0] else DOWN
    axes.plot((0, 1), ends, color=colour, lw=2.2 if crosses else 1.4, zorder=2)
    for side, (arm, away) in enumerate(zip(arms, (-1, 1), strict=True)):
      (point,) = axes.plot(
        side, ends[side], color=colour if crosses else "#666666", zorder=3, ls="",
        marker=arm_look(arm).marker, ms=6,
      )  # fmt: skip
      point.set_url("#" + rows_anchor(arm, name))
      place, gap = float(places[side][name]), 0.07
      if (ranks[side] == ends[side]).sum() > 1:
        gap = 0.17
        axes.plot((side, side + 0.14 * away), (ends[side], place), color=GREY, lw=0.8, zorder=1)
      value, low, high = (float(tables[side].loc[name, c]) for c in ("rate", "low", "high"))
      text = with_interval(value, low, high).replace("0.", ".")
      text = text if low == low else text + " ×"
      axes.text(
        side + gap * away, place, f"{signed(labels[name])}   {text}", fontsize=_NAMES,
        ha="right" if side == 0 else "left", va="center", color="black" if crosses else "#555555",
      )  # fmt: skip
  for row in certain.to_dict("records"):
    (p0, p1), (q0, q1) = ([float(r[row[which]]) for r in ranks] for which in ("p", "q"))
    x = (q0 - p0) / ((p1 - p0) - (q1 - q0))
    axes.plot(x, p0 + x * (p1 - p0), color="black", marker="o", ms=3.6, ls="", zorder=4)
  for side, text in enumerate(("by system prompt", "steered")):
    axes.text(side, 0.35, text, ha="right" if side == 0 else "left", va="bottom", fontsize=SMALL)
  axes.set_xlim(-0.95, 1.95)
  axes.set_axis_off()
