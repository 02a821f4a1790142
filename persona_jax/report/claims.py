"""Numbers of a report, each with the query that gives it: what is on the page can be looked up.

    python -m persona_jax.report.claims DIR

A page is written through `Claims`: a number is asked of a table by a filter and a column, and comes
back as markup with an id. What was asked goes into claims.json, and so does where every number is
from that is written inside a figure (`figure_numbers`). `check` runs every query again and
reads the page: a number that differs from its table, or that no claim stands behind, is listed. The
command does so for a study's directory: report.html, claims.json and tables/*.parquet.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import html.parser
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import markupsafe
import pandas as pd

from persona_jax.report.figure_numbers import Sources, Written, written
from persona_jax.scorers.base import is_missing

NOT_MEASURABLE = "n/m"
IN_FIGURE = "inside figure"  # how `check` begins on a number that a figure's tables do not hold
_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])|(?<![\w.])\.\d+")
# Of these, and of what is marked `data-plain`, no number is a claim.
_PLAIN = ("script", "style", "title", "code", "pre", "svg")
_FIGURE = re.compile(r'<figure\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</figure>', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Claim:
  """One number, or one value with its interval.

  Attributes:
    id: of its place on the page.
    text: as it is shown.
    table: name of the table.
    where: column → value, of the row.
    columns: of the numbers: the value's, and those of the interval's bounds if it has one.
    form: how each is written, as in `format`.
  """

  id: str
  text: str
  table: str
  where: Mapping[str, Any]
  columns: tuple[str, ...]
  form: str


class _Lookup:
  """Finds rows of tables by the values of some columns; each set of columns is indexed once."""

  def __init__(self, tables: Mapping[str, pd.DataFrame]):
    self._tables = tables
    self._rows: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = {}

  def values(self, table: str, where: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """Return cells of the one row that has some values.

    Raises:
      ValueError: no such table or column, or another number of rows than one.
    """
    if table not in self._tables:
      raise ValueError(f"there is no table {table!r}; there are {sorted(self._tables)}.")
    frame = self._tables[table]
    lacking = [c for c in (*where, *columns) if c not in frame]
    if lacking:
      raise ValueError(f"table {table!r} has no columns {lacking}; it has {list(frame)}.")
    key = (table, *where)
    if key not in self._rows:
      self._rows[key] = {}
      cells = [[_plain(v) for v in frame[column]] for column in where]
      for row in range(len(frame)):
        self._rows[key].setdefault(tuple(c[row] for c in cells), []).append(row)
    found = self._rows[key].get(tuple(map(_plain, where.values())), [])
    if len(found) != 1:
      raise ValueError(f"table {table!r}: {len(found)} rows where {dict(where)}; one fits.")
    return [frame[column].iloc[found[0]] for column in columns]


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """A figure, and what it draws: table → columns, and what it is given besides.

  `numbers` are those written in it: text, number and where it is from, None where that is unknown.
  """

  id: str
  title: str
  tables: Mapping[str, tuple[str, ...]]
  given: Mapping[str, Any]
  numbers: Sequence[Mapping[str, Any]] = ()


class Claims:
  """Writes numbers into a page, and remembers where each is from."""

  def __init__(self, tables: Mapping[str, pd.DataFrame]):
    """Take the tables, by name, that numbers are asked of."""
    self._tables = tables
    self._lookup = _Lookup(tables)
    self._claims: list[tuple[Claim, list[Any]]] = []
    self._figures: list[_Drawn] = []

  def number(
    self, table: str, where: Mapping[str, Any], column: str, form: str = ".2f"
  ) -> markupsafe.Markup:
    """Return a number of a table as markup; "n/m" where it is missing.

    Args:
      table: its name.
      where: column → value; one row must have them all.
      column: of the number.
      form: how it is written, as in `format`.

    Raises:
      ValueError: as `Claim.values`.
    """
    return self._add(table, where, (column,), form)

  def interval(
    self,
    table: str,
    where: Mapping[str, Any],
    column: str,
    low: str = "low",
    high: str = "high",
    form: str = ".2f",
  ) -> markupsafe.Markup:
    """Return a number with its interval, as "0.52 [0.41, 0.63]".

    Raises:
      ValueError: as `Claim.values`.
    """
    return self._add(table, where, (column, low, high), form)

  def figure(
    self,
    name: str,
    title: str,
    tables: Mapping[str, Sequence[str]],
    svg: str,
    given: Mapping[str, Any] = MappingProxyType({}),
  ) -> None:
    """Remember a figure, what it is drawn from, and where the numbers written in it are from.

    Args:
      name: id of the element that holds it.
      title: its heading.
      tables: name of a table → columns that are drawn.
      svg: its markup.
      given: what → number, or text with numbers, that stands in it and in no table.

    Raises:
      ValueError: no such table or column.
    """
    columns = {table: tuple(some) for table, some in tables.items()}
    drawn = _Drawn(name, title, columns, dict(given))
    if faults := _undrawable(drawn, self._tables):
      raise ValueError(faults[0])
    sources = Sources(self._tables, columns, given)
    found = [_of_figure(one, sources) for one in written(svg)]
    self._figures.append(dataclasses.replace(drawn, numbers=found))

  def __len__(self) -> int:
    return len(self._claims)

  def _add(
    self, table: str, where: Mapping[str, Any], columns: tuple[str, ...], form: str
  ) -> markupsafe.Markup:
    values = self._lookup.values(table, where, columns)
    text = _shown(values, form)
    claim = Claim(f"c{len(self._claims) + 1}", text, table, dict(where), columns, form)
    self._claims.append((claim, values))
    return markupsafe.Markup('<data id="{}" value="{}">{}</data>').format(
      claim.id, claim.table, claim.text
    )

  def write(self, path: str | Path) -> Path:
    """Write claims.json: `numbers`, each with id, text, value, low, high and the query, and
    `figures`, each with id, title, the columns of tables that it draws, what it is given, and the
    numbers written in it with what each is."""
    rows = []
    for claim, (value, *bounds) in self._claims:
      low, high = bounds or (None, None)
      rows.append(
        {
          "id": claim.id,
          "text": claim.text,
          "value": _plain(value),
          "low": _plain(low),
          "high": _plain(high),
          "query": {
            "table": claim.table,
            "where": {column: _plain(v) for column, v in claim.where.items()},
            "columns": list(claim.columns),
            "form": claim.form,
          },
        }
      )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"numbers": rows, "figures": [dataclasses.asdict(one) for one in self._figures]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def check(page: str | Path, claims: str | Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
  """Return what does not fit between a page, its claims and the tables; nothing if all does.

  Args:
    page: the HTML file.
    claims: its claims.json.
    tables: by name, as they are now.
  """
  known: dict[str, Claim] = {}
  found = []
  lookup = _Lookup(tables)
  told = json.loads(Path(claims).read_text(encoding="utf-8"))
  for row in told["numbers"]:
    query = row["query"]
    claim = Claim(
      row["id"],
      row["text"],
      query["table"],
      query["where"],
      tuple(query["columns"]),
      query["form"],
    )
    known[claim.id] = claim
    try:
      now = _shown(lookup.values(claim.table, claim.where, claim.columns), claim.form)
    except ValueError as error:
      found.append(f"{claim.id}: {error}")
      continue
    if now != claim.text:
      found.append(f"{claim.id}: {claim.text!r} is claimed, the table gives {now!r}")
  reader = _Page()
  markup = Path(page).read_text(encoding="utf-8")
  reader.feed(markup)
  shown = dict(reader.claimed)
  for name, text in reader.claimed:
    if name not in known:
      found.append(f"the page shows {text!r} as {name}, which is no claim")
    elif text != known[name].text:
      found.append(f"{name}: the page shows {text!r}, claimed is {known[name].text!r}")
  found += [f"{name}: claimed, and not on the page" for name in known if name not in shown]
  figures = dict(_FIGURE.findall(markup))
  for row in told["figures"]:
    drawn = _Drawn(**row)
    found += (faults := _undrawable(drawn, tables))
    if not faults:
      found += _misdrawn(drawn, tables, figures.get(drawn.id, ""))
    if drawn.id not in reader.ids:
      found.append(f"figure {drawn.id}: claimed, and not on the page")
  named = {row["id"] for row in told["figures"]}
  found += [
    f"figure {name}: on the page, and not claimed" for name in sorted(reader.figures - named)
  ]
  found += [f"{number!r} in {text!r} is no claim" for number, text in reader.strays]
  return found


def _undrawable(drawn: _Drawn, tables: Mapping[str, pd.DataFrame]) -> list[str]:
  found = []
  for table, columns in drawn.tables.items():
    if table not in tables:
      found.append(f"figure {drawn.id}: there is no table {table!r}; there are {sorted(tables)}.")
    elif lacking := [column for column in columns if column not in tables[table]]:
      found.append(f"figure {drawn.id}: table {table!r} has no columns {lacking}.")
  return found


def _of_figure(one: Written, sources: Sources) -> dict[str, Any]:
  return {"text": one.text, "number": one.number, "from": sources.find(one)}


def _misdrawn(drawn: _Drawn, tables: Mapping[str, pd.DataFrame], markup: str) -> list[str]:
  """Return numbers of a figure that nothing gives, or that are not those that were claimed."""
  sources = Sources(tables, drawn.tables, drawn.given)
  now = [_of_figure(one, sources) for one in written(markup)]
  found = [
    f"{IN_FIGURE} {drawn.id}: {one['number']!r} in {one['text']!r} is nothing that it is drawn from"
    for one in now
    if one["from"] is None
  ]
  shown, claimed = ([(one["text"], one["number"]) for one in some] for some in (now, drawn.numbers))
  if shown != claimed:
    odd = next((pair for pair in zip(shown, claimed, strict=False) if pair[0] != pair[1]), None)
    found.append(
      f"figure {drawn.id}: it shows {len(shown)} numbers and {len(claimed)} are claimed"
      + (f"; {odd[0]} where {odd[1]} is claimed" if odd else "")
    )
  return found


def has_number(text: str) -> bool:
  """Return whether a text holds what `check` takes for a number."""
  return _NUMBER.search(text) is not None


class _Page(html.parser.HTMLParser):
  """Collects claimed numbers of a page, and numbers that no claim stands behind."""

  def __init__(self) -> None:
    super().__init__()
    self.claimed: list[tuple[str, str]] = []
    self.strays: list[tuple[str, str]] = []
    self.ids: set[str] = set()
    self.figures: set[str] = set()  # of <figure> elements
    self._plain = 0  # how deep in what holds no claims
    self._open: list[tuple[str, bool]] = []
    self._claim: tuple[str, str] | None = None

  def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
    if tag in ("img", "br", "hr", "meta", "link", "input", "area", "col"):
      return
    given = dict(attrs)
    if name := given.get("id"):
      self.ids.add(name)
      if tag == "figure":
        self.figures.add(name)
    plain = tag in _PLAIN or "data-plain" in given
    self._plain += plain
    self._open.append((tag, plain))
    if tag == "data":
      self._claim = (given.get("id") or "", "")

  def handle_endtag(self, tag: str) -> None:
    while self._open:
      opened, plain = self._open.pop()
      self._plain -= plain
      if opened == tag:
        break
    if tag == "data" and self._claim is not None:
      self.claimed.append(self._claim)
      self._claim = None

  def handle_data(self, text: str) -> None:
    if self._claim is not None:
      self._claim = (self._claim[0], self._claim[1] + text)
    elif not self._plain:
      around = " ".join(text.split())
      self.strays += [(match[0], around[:80]) for match in _NUMBER.finditer(text)]


def _shown(values: Sequence[Any], form: str) -> str:
  value, *bounds = values
  if is_missing(value):
    return NOT_MEASURABLE
  text = _formatted(value, form)
  if not bounds or any(is_missing(b) for b in bounds):
    return text
  low, high = (_formatted(b, form) for b in bounds)
  return f"{text} [{low}, {high}]"


def _formatted(value: Any, form: str) -> str:
  value = value.item() if hasattr(value, "item") else value
  if isinstance(value, str | bool):
    return str(value)
  text = format(value, form)
  return text.replace("-", "", 1) if float(text.rstrip("%").replace(",", "") or 0) == 0 else text


def _plain(value: Any) -> Any:
  """Return a cell as JSON has it; what is missing is None."""
  if is_missing(value):
    return None
  found = value.item() if hasattr(value, "item") else value
  return None if isinstance(found, float) and not math.isfinite(found) else found


def main(argv: Sequence[str] | None = None) -> int:
  """Check the report of a directory; return 0 if every number fits, 1 if one does not, 2 if there
  is no report."""
  parser = argparse.ArgumentParser(prog="python -m persona_jax.report.claims", description=__doc__)
  parser.add_argument("directory", type=Path, help="of a study that has written its report")
  folder = parser.parse_args(argv).directory
  page, claims = folder / "report.html", folder / "claims.json"
  for path in (page, claims, folder / "tables"):
    if not path.exists():
      print(f"{path} is not there: run the study's stage report.", file=sys.stderr)
      return 2
  tables = {
    path.stem: pd.read_parquet(path) for path in sorted((folder / "tables").glob("*.parquet"))
  }
  wrong = check(page, claims, tables)
  told = json.loads(claims.read_text(encoding="utf-8"))
  print("\n".join(wrong))
  inside = sum(len(figure["numbers"]) for figure in told["figures"])
  print(
    f"{len(told['numbers'])} numbers, and {inside} in {len(told['figures'])} figures: "
    f"{len(wrong) or 'nothing'} that does not fit"
  )
  return int(bool(wrong))


if __name__ == "__main__":
  sys.exit(main())
