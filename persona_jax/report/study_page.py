"""The page of the core study: verdicts, figures and tables, with the rows behind every point.

One file that opens from disk, asks nothing of the network and runs no script. Numbers go through
`claims.Claims`, so each has the query that gives it in claims.json. Points of figures are links to
rows; prompts that a model should decline, and what it answered, are folded.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
from matplotlib.figure import Figure

from persona_jax.report.claims import Claims, has_number
from persona_jax.report.look import svg_markup
from persona_jax.scorers.base import is_missing

_ON_SCREEN = ("model", "dtype", "persona in", "block", "window", "labels", "outcome")
_LINK = re.compile(r'href="#(rows-[^"]*)"')


@dataclasses.dataclass(frozen=True, eq=False)
class Plate:
  """One figure with its words.

  Attributes:
    id: of its place, such as "F2".
    title: heading.
    caption: how it is read, and what it does not show.
    alt: what is to be seen, for who cannot see it.
    figure: that is drawn.
    draws: table → columns, of all that is in it.
    given: what → number, or text with numbers, that is written in it and in no table.
  """

  id: str
  title: str
  caption: str
  alt: str
  figure: Figure
  draws: Mapping[str, Sequence[str]]
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def svg(self) -> str:
    """The figure as markup that can stand beside others."""
    markup = svg_markup(self.figure, self.id)
    # What is drawn again stands where it stood; to lay it out takes half of the time.
    self.figure.set_layout_engine("none")
    return markup


@dataclasses.dataclass(frozen=True)
class Listing:
  """One table of the page.

  Attributes:
    table: its name.
    title: heading.
    key: columns that name a row; no two rows have the same.
    legend: what the columns mean.
    columns: to show; None for all.
    forms: column → how its numbers are written; others by their kind.
    where: column → value: only these rows.
  """

  table: str
  title: str
  key: tuple[str, ...]
  legend: str = ""
  columns: tuple[str, ...] | None = None
  forms: Mapping[str, str] = dataclasses.field(default_factory=dict)
  where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """Rows behind a point.

  Attributes:
    anchor: of `look.rows_anchor`.
    title: which they are.
    total: how many there are.
    rows: those shown: row_id, prompt_id, replicate, prompt, is_folded, text (None where no answer
      was generated), label, log_odds, r_steered, v_steered, delivered_dose (NaN
      where there is none).
  """

  anchor: str
  title: str
  total: int
  rows: pd.DataFrame


@dataclasses.dataclass(frozen=True, eq=False)
class StudyPage:
  """Everything on the page.

  Attributes:
    title: heading.
    lead: sentences under it: what this is, and what it does not show.
    plates: figures, the most telling first.
    listings: tables.
    cells: rows behind points.
    absent: figures that do not apply, name → why.
  """

  title: str
  lead: Sequence[str]
  plates: Sequence[Plate]
  listings: Sequence[Listing]
  cells: Sequence[Cell]
  absent: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_page(
  page: StudyPage, tables: Mapping[str, pd.DataFrame], path: str | Path, claims_path: str | Path
) -> Claims:
  """Write the page, and the claims behind its numbers.

  Args:
    page: what stands on it.
    tables: by name; "gates" (name, what, state, shown, asked), "verdicts" (name, what, status,
      numbers, p, p_holm, reason, split), "claims" (claim, subject, text), "deviations" (field,
      protocol, here), "setup" and "hashes" (what, value) have places of their own.
    path: of the HTML file.
    claims_path: of claims.json.

  Returns:
    The claims.

  Raises:
    ValueError: a table or column that is not there, keys that do not tell rows apart, or a point
      that leads to no rows.
  """
  claims = Claims(tables)
  drawn = []
  for plate in page.plates:
    claims.figure(plate.id, plate.title, plate.draws, plate.svg, plate.given)
    drawn.append((plate, markupsafe.Markup(plate.svg)))  # noqa: S704
    lost = sorted(set(_LINK.findall(plate.svg)) - {cell.anchor for cell in page.cells})
    if lost:
      raise ValueError(f"{lost[0]!r}: no rows are shown for that point of {plate.id}.")
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  source = importlib.resources.files("persona_jax.report").joinpath("study.html.jinja")
  html = environment.from_string(source.read_text(encoding="utf-8")).render(
    page=page,
    gates=_lines(claims, tables["gates"], "gates"),
    verdicts=_lines(claims, tables["verdicts"], "verdicts"),
    claimed=[
      (row["claim"], row["subject"], row["text"] if row["claim"] == "H3" else
       _text(claims, "claims", row, ("claim", "subject"), "text"))
      for row in tables["claims"].to_dict("records")
    ],
    deviations=[
      {c: _text(claims, "deviations", row, ("field",), c) for c in row}
      for row in tables["deviations"].to_dict("records")
    ],
    screen=_facts(claims, tables["setup"], "setup", _ON_SCREEN),
    setup=_facts(claims, tables["setup"], "setup"),
    hashes=_facts(claims, tables["hashes"], "hashes"),
    figures=drawn,
    tables=[(listing, *_listed(claims, tables, listing)) for listing in page.listings],
    cells=[(cell, cell.rows.to_dict("records")) for cell in page.cells],
    is_missing=is_missing,
  )  # fmt: skip
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A lone surrogate, which UTF-8 does not have, becomes a question mark.
  path.write_text(html, encoding="utf-8", errors="replace")
  claims.write(claims_path)
  return claims


def save_plates(plates: Sequence[Plate], directory: Path) -> list[Path]:
  """Write every figure as a PNG and an SVG file, named by its id, for papers and slides."""
  directory.mkdir(parents=True, exist_ok=True)
  paths = []
  for plate in plates:
    svg, png = directory / f"{plate.id}.svg", directory / f"{plate.id}.png"
    svg.write_text(plate.svg, encoding="utf-8")
    plate.figure.savefig(png, dpi=150, facecolor="white", metadata={"Software": None})
    paths += [svg, png]
  return paths


def _lines(claims: Claims, table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
  """Return rows of gates or verdicts, texts with numbers as claims."""
  rows: list[dict[str, Any]] = []
  for row in table.to_dict("records"):
    shown: dict[str, Any] = {
      c: _text(claims, name, row, ("name",), c) for c in row if isinstance(row[c], str)
    }
    for column in ("p", "p_holm"):
      if column in row:
        given = not is_missing(row[column])
        shown[column] = claims.number(name, {"name": row["name"]}, column, ".2g") if given else ""
    rows.append(shown)
  return rows


def _facts(
  claims: Claims, table: pd.DataFrame, name: str, only: Sequence[str] = ()
) -> list[tuple[str, markupsafe.Markup | str]]:
  """Return (what, value) of a table that has these columns; of all, or of some."""
  return [
    (row["what"], _text(claims, name, row, ("what",), "value"))
    for row in table.to_dict("records")
    if not only or row["what"] in only
  ]


def _text(
  claims: Claims, table: str, row: Mapping[str, Any], key: Sequence[str], column: str
) -> markupsafe.Markup | str:
  """Return a cell of text; a claim if there is a number in it."""
  value = row[column]
  if is_missing(value):
    return ""
  if isinstance(value, str) and not has_number(value):
    return value
  return claims.number(table, {k: row[k] for k in key}, column, "")


def _listed(
  claims: Claims, tables: Mapping[str, pd.DataFrame], listing: Listing
) -> tuple[list[str], list[list[markupsafe.Markup | str]]]:
  """Return headings and cells of a table.

  Raises:
    ValueError: no such table or column, or two rows of one key.
  """
  if listing.table not in tables:
    raise ValueError(f"there is no table {listing.table!r}; there are {sorted(tables)}.")
  table = tables[listing.table]
  for column, value in listing.where.items():
    table = table[table[column] == value]
  if table.empty:
    return [], []
  if table.duplicated(list(listing.key)).any():
    raise ValueError(f"{listing.table}: {list(listing.key)} do not tell its rows apart.")
  wanted = list(table) if listing.columns is None else [*listing.key, *listing.columns]
  lacking = [c for c in wanted if c not in table]
  if lacking:
    raise ValueError(f"table {listing.table!r} has no columns {lacking}; it has {list(table)}.")
  bounds = _bounds(list(table))
  ends = {c for pair in bounds.values() for c in pair}
  shown = [c for c in wanted if c not in ends]
  # Columns in which nothing stands say nothing.
  shown = [c for c in shown if c in listing.key or not _is_blank(table[c])]
  rows = []
  for row in table.to_dict("records"):
    where = {**listing.where, **{k: row[k] for k in listing.key}}
    cells: list[markupsafe.Markup | str] = []
    for column in shown:
      form = listing.forms.get(column) or _form(column, table[column])
      value = row[column]
      if column in bounds:
        cells.append(claims.interval(listing.table, where, column, *bounds[column], form))
      elif isinstance(value, str) and not has_number(value):
        cells.append(value)
      elif is_missing(value) and table[column].map(lambda v: isinstance(v, str)).any():
        cells.append("")
      else:
        cells.append(claims.number(listing.table, where, column, form))
    rows.append(cells)
  return shown, rows


def _bounds(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
  """Return the bounds of values: `x_low` and `x_high` of x, `low` and `high` of what is before."""
  found = {}
  for n, column in enumerate(columns):
    if f"{column}_low" in columns and f"{column}_high" in columns:
      found[column] = (f"{column}_low", f"{column}_high")
    elif n and column == "low" and "high" in columns:
      found[columns[n - 1]] = ("low", "high")
  return found


def _is_blank(column: pd.Series) -> bool:
  return bool(column.map(lambda v: is_missing(v) or v == "").all())


def _form(column: str, values: pd.Series) -> str:
  if pd.api.types.is_integer_dtype(values) and not pd.api.types.is_bool_dtype(values):
    return ",d"
  if not pd.api.types.is_float_dtype(values):
    return ""
  return ".2g" if column.startswith(("p_", "q_")) or column in ("p", "q") else ".3f"
