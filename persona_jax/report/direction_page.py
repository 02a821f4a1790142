"""One page a direction: where held-out pairs lie apart, how reliable it is, what methods agree on.

A page is one HTML file that opens from disk; an index lists them. Texts are data and are escaped.
"""

import base64
import dataclasses
import importlib.resources
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110
# Okabe and Ito's, then greys; each with a line style of its own for those who see no colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#767676")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)))
_MARKS = ("o", "s", "^", "D")  # from the ninth on colours and styles come again, with marks

_COLUMNS = (
  "method", "block", "AUC", "within a question", "block by other questions", "other wordings", "d",
  "reliability", "cosine of wordings", "why", "sha256",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class MethodLine:
  """What a page says of one method.

  Attributes:
    method: its name.
    separation: block, auc, auc_low, auc_high, d, d_low, d_high.
    reliability_L: split-half reliability by block, or None.
    block: the chosen block.
    why: why that one.
    hash: of the direction.
    wordings: cosines between wordings at the chosen block, of each two; none where there is one.
    within, confirmed: AUC within questions at the chosen block, and at the one that the other
      questions choose, each (value, low, high); NaN where there is none.
    other_wordings: AUC of each wording's vector on the other wordings' pairs; may be empty.
    extremes: projection, side, text of the prompts that project furthest.
  """

  method: str
  separation: pd.DataFrame
  reliability_L: np.ndarray | None
  block: int
  why: str
  hash: str
  wordings: np.ndarray
  within: tuple[float, float, float]
  confirmed: tuple[float, float, float]
  other_wordings: np.ndarray
  extremes: pd.DataFrame


@dataclasses.dataclass(frozen=True, eq=False)
class DirectionPage:
  """A concept's directions by all methods.

  Attributes:
    concept: its name.
    setup: what it was made of, in words.
    lines: the methods; the first is the primary one.
    cosines: between the methods, at the primary one's block or where a vector was trained.
    trials: of coefficients of the primary one: coefficient, nll, kl, degenerate, prompts, problem,
      answer, fluent and largest (bools); or None.
    bounds: what is fluent, in words.
    site: where coefficients were added.
  """

  concept: str
  setup: Mapping[str, str]
  lines: Sequence[MethodLine]
  cosines: pd.DataFrame
  trials: pd.DataFrame | None = None
  bounds: str = ""
  site: str = "resid_post"


def draw(page: DirectionPage) -> Figure:
  """Draw AUC, effect size and reliability by block, and the cosines between methods."""
  figure = Figure(figsize=(11, 8), layout="constrained")
  (auc, effect), (reliability, agreement) = figure.subplots(2, 2)
  for n, line in enumerate(page.lines):
    look: dict[str, Any] = {"color": _COLOURS[n % 8], "linestyle": _STYLES[n % 8]}
    if n >= len(_COLOURS):
      look["marker"], look["markersize"] = _MARKS[(n // 8 - 1) % len(_MARKS)], 4
    table = line.separation
    for axes, name in ((auc, "auc"), (effect, "d")):
      single = len(table) == 1
      axes.plot(
        table["block"],
        table[name],
        label=line.method,
        **(look | ({"marker": "o"} if single else {})),
      )
      if single:
        # An interval need not hold the estimate that it is of.
        low = np.maximum(table[name] - table[f"{name}_low"], 0.0)
        high = np.maximum(table[f"{name}_high"] - table[name], 0.0)
        axes.errorbar(table["block"], table[name], yerr=[low, high], color=look["color"], capsize=3)
      elif n == 0:  # of one: of several they hide each other
        axes.fill_between(
          table["block"], table[f"{name}_low"], table[f"{name}_high"],
          color=look["color"], alpha=0.15, lw=0,
        )  # fmt: skip
    if line.reliability_L is not None and not np.isnan(line.reliability_L).all():
      by_block = line.reliability_L
      mean_L = by_block if by_block.ndim == 1 else by_block.mean(axis=1)
      reliability.plot(np.arange(len(mean_L)), mean_L, label=line.method, **look)
  auc.axhline(0.5, color="#999999", lw=0.8)
  effect.axhline(0.0, color="#999999", lw=0.8)
  _label(auc, "AUC on held-out pairs")
  _label(effect, "Cohen's d on held-out pairs")
  _label(reliability, "split-half reliability")
  # Of halves that disagree it is far below -1, and says no more than that.
  reliability.set_ylim(max(-1.02, min(0.0, reliability.get_ylim()[0])), 1.02)
  for axes in (auc, effect, reliability):
    axes.axvline(page.lines[0].block, color="#bbbbbb", lw=6, alpha=0.4, zorder=0)
  auc.legend(fontsize=9, ncols=2, frameon=False)
  _heat(agreement, page)
  return figure


def _label(axes: Axes, name: str) -> None:
  axes.set_xlabel("block")
  axes.set_ylabel(name)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)


def _heat(axes: Axes, page: DirectionPage) -> None:
  values = page.cosines.to_numpy()
  axes.imshow(values, vmin=-1, vmax=1, cmap="PuOr")
  names = list(page.cosines.columns)
  axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=9)
  axes.set_yticks(range(len(names)), names, fontsize=9)
  for i, j in np.ndindex(values.shape):
    shown = "" if np.isnan(values[i, j]) else f"{values[i, j]:.2f}"
    dark = not np.isnan(values[i, j]) and abs(values[i, j]) > 0.6
    axes.text(j, i, shown, ha="center", va="center", fontsize=8, color="w" if dark else "k")
  axes.set_title(f"cosines between methods, block {page.lines[0].block} *", fontsize=11)


def write_page(page: DirectionPage, path: str | Path) -> Path:
  """Write a page as one self-contained HTML file; return its path."""
  image = io.BytesIO()
  draw(page).savefig(image, dpi=DPI, format="png", metadata={"Software": None})
  lines = [_cells(page.concept, line) for line in page.lines]
  return _write(
    path,
    title=page.concept,
    page=page,
    first=lines[0],
    lines=lines,
    image="data:image/png;base64," + base64.b64encode(image.getvalue()).decode(),
    columns=_COLUMNS,
    extremes=[(line.method, line.block, line.extremes.to_dict("records")) for line in page.lines],
    trials=[] if page.trials is None else page.trials.to_dict("records"),
  )


def write_index(
  pages: Sequence[tuple[DirectionPage, Path]],
  path: str | Path,
  cosines: pd.DataFrame,
  told: str = "",
) -> Path:
  """Write the list of pages, a line a concept and method; return its path.

  Args:
    pages: the pages and their files.
    path: where to.
    cosines: between concepts; `cosines.attrs["block"]` says where.
    told: of the refusal direction, in words.
  """
  folder = Path(path).parent
  lines = [
    _cells(page.concept, line, file.relative_to(folder).as_posix())
    for page, file in pages
    for line in page.lines
  ]
  return _write(
    path,
    title="Directions",
    page=None,
    lines=lines,
    columns=("direction", *(name for name in _COLUMNS if name != "why")),
    cosines=[(name, [f"{c:+.2f}" for c in row]) for name, row in cosines.iterrows()],
    block=cosines.attrs["block"],
    told=told,
  )


def _cells(concept: str, line: MethodLine, file: str = "") -> dict[str, str]:
  """Return what a table says of a direction, as text."""
  at = line.separation.set_index("block").loc[line.block]
  reliability = np.nan
  if line.reliability_L is not None:
    reliability = float(np.mean(line.reliability_L[line.block]))
  return {
    "concept": concept,
    "file": file,
    "method": line.method,
    "block": str(line.block),
    "auc": _interval(at, "auc"),
    "d": _interval(at, "d"),
    "within": _with_bounds(*line.within),
    "confirmed": _with_bounds(*line.confirmed),
    "other_wordings": _range(line.other_wordings),
    "reliability": _number(reliability),
    "wordings": _range(line.wordings),
    "why": line.why,
    "hash": f"{line.hash[:12]}…",
  }


def _write(path: str | Path, **values: Any) -> Path:
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  source = importlib.resources.files("persona_jax.report").joinpath("direction.html.jinja")
  page = environment.from_string(source.read_text(encoding="utf-8")).render(values)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(page, encoding="utf-8", errors="replace")
  return path


def _interval(row: pd.Series, name: str) -> str:
  if np.isnan(row[name]):
    return "not measurable"
  return _with_bounds(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _with_bounds(value: float, low: float, high: float) -> str:
  if np.isnan(value) or np.isnan(low):
    return _number(value)
  return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _range(values: np.ndarray) -> str:
  """Return the mean of values, with the least and the largest."""
  if not len(values) or np.isnan(values).all():
    return "–"
  return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def _number(value: float) -> str:
  return "–" if np.isnan(value) else f"{value:.2f}"
