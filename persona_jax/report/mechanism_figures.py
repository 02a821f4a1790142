"""Figures of mechanism: effects against alignment (F8), mediation (F9), specifications (F10).

They draw what the core study's tables hold and estimate nothing. A value stands with its interval;
one that has none is a cross, and one that is not measurable is written "n/m".
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from persona_jax.report.geometry_figures import draw_census
from persona_jax.report.look import (
  COLOURS,
  SMALL,
  TEXT,
  named,
  note,
  plain,
  required,
  rows_anchor,
  signed,
)

_WIDTH = 10.5
# How a predictor, and an outcome, is written under an axis.
PREDICTORS = {
  "cos_euclidean": "cosine with the refusal direction",
  "cos_whitened": "cosine with the refusal direction, whitened",
  "cos_unembedding": "cosine with the refusal direction, by the unembedding",
  "coupling": "derivative of refusal log-odds along the direction, nats a unit of h",
}
OUTCOMES = {
  "log_odds": "change of refusal log-odds, nats",
  "p_bypass": "change of the probability of a bypass",
}
_KINDS = ("trait", "placebo", "persona")
_OPPOSITE = "−"  # before the name of a direction that was subtracted
# variant of the table `mediation` → title of its panel
VARIANTS = {
  "v": "v, the whole",
  "v_perp_r": "v ⊥ r",
  "v_perp_subspace": "v ⊥ subspace of r",
  "v_par_r": "v ∥ r",
  "floor r": "v, floor under r",
  "floor random": "v, random floor",
}
_HOLDS, _HOLDS_NOT, _BROKEN = "#009E73", "#D55E00", "#a8a8a8"
_CHOICES = ("block", "window", "rule", "kappa")
_WORDS = {"rule": "composites by", "kappa": "dose κ"}


def draw_effects(
  census: pd.DataFrame,
  regressions: pd.DataFrame,
  labels: Mapping[str, str],
  *,
  predictor: str = "cos_euclidean",
  outcome: str = "log_odds",
) -> Figure:
  """Draw what every direction does against how it lies to refusal (F8).

  Args:
    census: direction, kind, outcome, delta, low, high, coef, and the predictor's column.
    regressions: outcome, predictor, slope, low, high, intercept, r2, reason.
    labels: {persona: how it is written}; a persona's direction that was subtracted has a minus
      before it.
    predictor: a key of `PREDICTORS`.
    outcome: a key of `OUTCOMES`.

  Raises:
    ValueError: an unknown predictor or outcome, no such row, or columns that are lacking.
  """
  points = census_points(census, predictor, outcome)
  mine = regressions[(regressions["outcome"] == outcome) & (regressions["predictor"] == predictor)]
  if mine.empty:
    raise ValueError(
      f"regressions hold no row of outcome {outcome!r} and predictor {predictor!r}; there are "
      f"{sorted(set(zip(regressions['outcome'], regressions['predictor'], strict=True)))}."
    )
  row = mine.iloc[0].copy()
  fitted = points[points["kind"] != "persona"]
  row["x_mean"] = fitted["x"].mean()
  people = points[points["kind"] == "persona"]
  unknown = sorted(set(people["direction"].str.lstrip(_OPPOSITE)) - set(labels))
  if unknown:
    raise ValueError(f"personas {unknown} of the census have no label; labels: {list(labels)}.")
  texts = {n: text for name, text in labels.items() for n, text in _both_signs(name, text)}
  figure = draw_census(
    points,
    row,
    x_name=PREDICTORS[predictor],
    y_name=OUTCOMES[outcome],
    kinds=_KINDS,
    names=list(people["direction"]),
    labels=texts,
  )
  said = (
    f"Line: over the {len(fitted)} directions that are no personas, with the 95 % band of its "
    "slope. Bars: 95 % over prompts."
  )
  said += (
    " Opposite poles share one direction: of such personas one is named, and measured with either "
    f"sign; {_OPPOSITE} before a name: its direction is subtracted."
    if len(people)
    else " No persona is among them: none has a direction that may be tested."
  )
  if not np.isfinite(row["slope"]):
    said += f" No line: {row['reason'] or 'it could not be fitted'}."
  note(figure, said)
  return figure


def _both_signs(name: str, text: str) -> list[tuple[str, str]]:
  return [(name, text), (f"{_OPPOSITE}{name}", f"{_OPPOSITE}({text})")]


def census_points(census: pd.DataFrame, predictor: str, outcome: str) -> pd.DataFrame:
  """Return the points of one outcome against one predictor, for `draw_census`.

  Args:
    census: direction, kind, outcome, delta, low, high, coef, and the predictor's column.
    predictor: a key of `PREDICTORS`.
    outcome: a key of `OUTCOMES`.

  Returns:
    direction (with "−" before it where it was subtracted), kind, x, delta, low, high.

  Raises:
    ValueError: an unknown predictor or outcome, no row of it, or columns that are lacking.
  """
  for what, known, value in (("predictor", PREDICTORS, predictor), ("outcome", OUTCOMES, outcome)):
    if value not in known:
      raise ValueError(f"{what}={value!r}: use one of {list(known)}.")
  columns = ("direction", "kind", "outcome", "delta", "low", "high", "coef", predictor)
  required(census, "geometry_census", columns)
  mine = census[census["outcome"] == outcome]
  if mine.empty:
    raise ValueError(f"the census holds {sorted(set(census['outcome']))}, not {outcome!r}.")
  names = mine["direction"].where(mine["coef"] > 0, _OPPOSITE + mine["direction"])
  kept = mine.assign(direction=names, x=mine[predictor])
  return kept[["direction", "kind", "x", "delta", "low", "high"]].reset_index(drop=True)


def draw_mediation(mediation: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
  """Draw the effect of every persona's direction, of its parts, and above floors (F9).

  A panel a variant, a bar a persona; a tick in each panel shows what the whole direction does.

  Args:
    mediation: persona, variant (keys of `VARIANTS`), effect, low, high, n.
    labels: {persona: how it is written}, in the order of the figure.

  Raises:
    ValueError: an unknown variant, a persona without a label, no row, or columns that are lacking.
  """
  required(mediation, "mediation", ("persona", "variant", "effect", "low", "high", "n"))
  unknown = sorted(set(mediation["variant"]) - set(VARIANTS))
  if unknown:
    raise ValueError(f"variants {unknown}: the figure draws {list(VARIANTS)}.")
  names = named(mediation, labels)
  variants = [v for v in VARIANTS if (mediation["variant"] == v).any()]
  figure = Figure(figsize=(_WIDTH, 1.9 + 0.33 * len(names)), layout="constrained")
  panels = figure.subplots(1, len(variants), sharey=True, sharex=True, squeeze=False)[0]
  cells = mediation.set_index(["variant", "persona"])
  for axes, colour, variant in zip(panels, COLOURS, variants, strict=False):
    plain(axes, "x")
    axes.axvline(0, color="black", lw=0.8)
    for y, name in enumerate(names):
      whole = cells["effect"].get(("v", name), np.nan)
      if variant != "v" and np.isfinite(whole):
        axes.plot((whole, whole), (y - 0.38, y + 0.38), color="black", lw=1.6, zorder=3)
      if (variant, name) in cells.index:
        _bar(axes, y, cells.loc[(variant, name)], colour, rows_anchor("control", variant, name))
      else:
        _not_measured(axes, y)
    axes.set_title(VARIANTS[variant], fontsize=SMALL + 0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALL - 1)
  panels[0].set_yticks(range(len(names)), [signed(labels[name]) for name in names])
  panels[0].set_ylim(len(names) - 0.4, -0.6)
  panels[0].xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=3))
  panels[0].xaxis.set_major_formatter(lambda x, _: signed(f"{x:.3g}"))
  counts = sorted(set(mediation["n"].astype(int)))
  note(
    figure,
    "Change of the exact probability of a bypass at the first token, against no edit on the same "
    f"prompts (n = {', '.join(map(str, counts))}); lines: 95 % over prompts; black ticks: what the "
    "whole direction v does; × without an interval; n/m not measured. r: the refusal direction.",
  )
  return figure


def _bar(axes: Axes, y: float, row: pd.Series, colour: str, anchor: str) -> None:
  """Draw an effect as a bar from 0 with its interval, linked to its rows."""
  if np.isnan(row["effect"]):
    _not_measured(axes, y)
    return
  (bar,) = axes.barh(y, row["effect"], height=0.62, color=colour, alpha=0.55, zorder=2)
  bar.set_url(f"#{anchor}")
  if np.isnan(row["low"]):
    axes.plot(row["effect"], y, marker="x", color="black", ms=6, zorder=4)
  else:
    axes.plot((row["low"], row["high"]), (y, y), color=colour, lw=2.2, zorder=4)


def _not_measured(axes: Axes, y: float) -> None:
  axes.text(
    0.98, y, "n/m", transform=axes.get_yaxis_transform(), ha="right", va="center",
    fontsize=SMALL - 1,
  )  # fmt: skip


def draw_specifications(curve: pd.DataFrame, who: str, *, delta: float) -> Figure:
  """Draw the specification curve of the named persona's inversion (F10).

  Above, the steered excess of every specification, in their order, beside the prompted one; below,
  which choices each consists of.

  Args:
    curve: block, window, rule, kappa, d_sp, d_as, coherent, holds, primary.
    who: how the named persona is written.
    delta: margin of an inversion.

  Raises:
    ValueError: no row, or columns that are lacking.
  """
  required(curve, "specifications", (*_CHOICES, "d_sp", "d_as", "coherent", "holds", "primary"))
  mine = curve.sort_values(["d_as", *_CHOICES], kind="stable", ignore_index=True)
  rows = _choice_rows(mine)
  height = 5.0 + 0.21 * (len(rows) + len(_CHOICES))
  figure = Figure(figsize=(_WIDTH, height), layout="constrained")
  top, below = figure.subplots(
    2, 1, sharex=True, height_ratios=[3.2, 0.21 * (len(rows) + len(_CHOICES))]
  )
  plain(top)
  for sign in (1, -1):
    top.axhline(sign * delta, color="black", lw=0.9, ls=(0, (4, 3)))
  top.axhline(0, color="black", lw=0.8)
  coherent = mine["coherent"].astype(bool)
  holds = mine["holds"].astype(bool)
  groups = {
    _HOLDS: coherent & holds, _HOLDS_NOT: coherent & ~holds, _BROKEN: ~coherent
  }  # fmt: skip
  for colour, which in groups.items():
    top.scatter(mine.index[which], mine["d_as"][which], marker="x", s=26, color=colour, lw=1.5)
  prompted = mine["d_sp"]
  top.plot(mine.index, prompted, color="#0072B2", lw=1.6, ls="-.", zorder=1)
  primary = mine.index[mine["primary"].astype(bool)]
  top.scatter(
    primary, mine["d_as"][primary], marker="o", s=110, facecolors="none", edgecolors="black", lw=1.1
  )
  top.set_ylabel("D: bypass probability less\nthe other personas' mean", fontsize=SMALL)
  top.yaxis.set_major_formatter(lambda y, _: signed(f"{y:.3g}"))
  top.set_title(f"{signed(who)}: {_held(coherent, holds)}", fontsize=TEXT, loc="left", pad=8)
  _draw_choices(below, mine, rows, primary, groups)
  figure.legend(handles=_curve_handles(groups), loc="outside upper left", ncols=3, frameon=False,
                fontsize=SMALL)  # fmt: skip
  note(
    figure,
    f"An inversion holds where D is below −{delta:g} prompted and above {delta:g} steered (dashed "
    "margins). Every × is one way to steer, without an interval, on exact probabilities of the "
    "first token. Circles: the study's own block, window and rule, at all doses.",
  )
  return figure


def _held(coherent: pd.Series, holds: pd.Series) -> str:
  """Return in how many coherent specifications the inversion holds, in words."""
  count = int(coherent.sum())
  if not count:
    return "no specification is coherent"
  held = int((coherent & holds).sum())
  return (
    f"inversion holds in {held} of {count} coherent specifications ({held / count * 100:.0f} %)"
  )


def _choice_rows(curve: pd.DataFrame) -> list[tuple[str, object]]:
  """Return what can be chosen, choice by choice."""
  return [(name, value) for name in _CHOICES for value in sorted(curve[name].unique())]


def _draw_choices(
  axes: Axes,
  curve: pd.DataFrame,
  rows: list[tuple[str, object]],
  primary: pd.Index,
  groups: Mapping[str, pd.Series],
) -> None:
  """Draw a dot for every choice of every specification, a gap between the kinds of choice."""
  ticks = []
  colours = pd.Series("", index=curve.index, dtype=object)
  for colour, which in groups.items():
    colours[which] = colour
  for n, (name, value) in enumerate(rows):
    y = n + _CHOICES.index(name) * 0.8
    text = f"{value:g}" if isinstance(value, float) else str(value)
    ticks.append((y, f"{_WORDS.get(name, name)} {text}"))
    at = curve.index[curve[name] == value]
    axes.scatter(at, [y] * len(at), marker="|", s=34, lw=1.5, color=list(colours[at]))
  for at in primary:
    axes.axvline(at, color="black", lw=0.5, ls=":", zorder=0)
  axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(axis="y", length=0, labelsize=SMALL - 0.5)
  axes.tick_params(axis="x", labelsize=SMALL)
  axes.set_ylim(ticks[-1][0] + 0.7, -0.7)
  axes.set_xlabel(f"{len(curve)} specifications, in the order of D steered", fontsize=TEXT)


def _curve_handles(groups: Mapping[str, pd.Series]) -> list[Line2D]:
  texts = ("steered: inversion holds", "steered: it does not hold", "steered: dose not coherent")
  handles = [
    Line2D([], [], color=colour, marker="x", ls="", mew=1.5, label=f"{text} ({int(which.sum())})")
    for (colour, which), text in zip(groups.items(), texts, strict=True)
  ]
  handles.append(Line2D([], [], color="#0072B2", ls="-.", lw=1.6, label="prompted"))
  own = {"marker": "o", "ms": 10, "mfc": "none", "mec": "black"}
  handles.append(Line2D([], [], ls="", label="the study's own choice", **own))  # type: ignore[arg-type]
  return handles
