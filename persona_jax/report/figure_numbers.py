"""Numbers that are written inside figures, and the cells or counts of tables that they are.

A figure is drawn from columns of tables. Whatever number stands in it, but for the ticks of its
axes, is looked for there: as a cell, rounded as it is written; inside a cell of text; as a count of
rows that have some values; or among constants that the figure is given. So a number that no table
holds is found. One that equals another cell by chance is not.
"""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

_NUMBER = re.compile(
  r"(?<![\w.])(?P<sign>[-+−±])?(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)(?P<power>e[-+]?\d+)?(?![\w])"
  r"(?P<percent> ?%)?"
)
_TICKS = re.compile(r"(?:^|-)[xy]tick_\d+$")
# The level of intervals, which captions and legends name: 95 %, and 90 % of two one-sided bounds.
_LEVELS = {"level of an interval": (95.0, 90.0)}
_FEW_VALUES = 8  # of a column, for which three sets of rows are taken together
_MOST_VALUES = 80  # of a column that rows are counted by


@dataclasses.dataclass(frozen=True)
class Written:
  """One number of a figure.

  Attributes:
    text: the line that it stands in.
    number: as it is written.
    value: that it stands for.
    step: one unit of its last digit.
    is_share: whether it is written as per cent.
  """

  text: str
  number: str
  value: float
  step: float
  is_share: bool


def written(svg: str) -> list[Written]:
  """Return the numbers in the texts of an SVG image, ticks of axes left out.

  Args:
    svg: markup of `look.svg_markup`, which keeps every line of text as a comment.
  """
  reader = _Texts()
  reader.feed(svg)
  return [number for text in reader.found for number in numbers(text)]


def numbers(text: str) -> Iterator[Written]:
  """Yield the numbers of a text."""
  for match in _NUMBER.finditer(text):
    digits, power = match["digits"].replace(",", ""), match["power"] or ""
    value = float(digits + power)
    step = 10.0 ** (int(power[1:] or 0) - len(digits.partition(".")[2]))
    sign = -1.0 if match["sign"] in ("-", "−") else 1.0
    yield Written(text, match[0].strip(), sign * value, step, bool(match["percent"]))


class _Texts(html.parser.HTMLParser):
  """Collects comments outside the groups of ticks."""

  def __init__(self) -> None:
    super().__init__()
    self.found: list[str] = []
    self._open: list[bool] = []  # of <g> elements, whether they are ticks

  def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
    if tag == "g":
      self._open.append(bool(_TICKS.search(dict(attrs).get("id") or "")))

  def handle_endtag(self, tag: str) -> None:
    if tag == "g" and self._open:
      self._open.pop()

  def handle_comment(self, data: str) -> None:
    if not any(self._open):
      self.found.append(data.strip())


class Sources:
  """Finds where numbers of one figure are from."""

  def __init__(
    self,
    tables: Mapping[str, pd.DataFrame],
    draws: Mapping[str, Sequence[str]],
    given: Mapping[str, Any],
  ):
    """Take what the figure is drawn from.

    Args:
      tables: by name.
      draws: name of a table → columns.
      given: what → a number, or a text with numbers, that the figure is given besides.
    """
    self._cells = [
      (table, column, tables[table][column].to_numpy(np.float64))
      for table, columns in draws.items()
      for column in columns
      if pd.api.types.is_numeric_dtype(tables[table][column])
    ]
    self._texts = [
      (table, column, row, text)
      for table, columns in draws.items()
      for column in columns
      for row, text in enumerate(tables[table][column])
      if isinstance(text, str)
    ]
    self._given = {**_LEVELS, **given}
    self._frames = {table: tables[table][list(columns)] for table, columns in draws.items()}
    self._counts: dict[int, dict[str, Any]] | None = None

  def find(self, one: Written) -> dict[str, Any] | None:
    """Return what gives a number, as JSON has it; None if nothing does."""
    for what, known in self._given.items():
      if any(_is_same(one, value) for value in _values(known)):
        return {"given": what}
    value, half = one.value, 0.5 * one.step * (1 + 1e-9)
    for table, column, cells in self._cells:
      scaled = cells * 100 if one.is_share else cells
      rows = np.flatnonzero(np.abs(scaled - value) <= half)
      if rows.size:
        return {"table": table, "column": column, "row": int(rows[0])}
    if one.number.isdigit() and (count := self._counted().get(int(one.number))):
      return count
    for table, column, row, text in self._texts:
      if any(_is_same(one, other.value) for other in numbers(text)):
        return {"table": table, "column": column, "row": row}
    return None

  def _counted(self) -> dict[int, dict[str, Any]]:
    """Return {number of rows: which rows}, of rows that have, or have not, up to three values."""
    if self._counts is None:
      self._counts = {}
      for table, frame in self._frames.items():
        masks = sorted(_masks(frame), key=lambda one: str(one[1]).startswith("not "))
        self._counts.setdefault(len(frame), {"table": table, "rows where": {}})
        few = [one for one in masks if frame[one[0]].nunique() <= _FEW_VALUES]
        for k, sets in ((1, masks), (2, masks), (3, few)):
          for some in itertools.combinations(sets, k):
            count = int(np.logical_and.reduce([mask for _, _, mask in some]).sum())
            where: dict[str, list[Any]] = {}
            for column, value, _ in some:
              where.setdefault(column, []).append(value)
            self._counts.setdefault(count, {"table": table, "rows where": where})
    return self._counts


def _masks(frame: pd.DataFrame) -> Iterator[tuple[str, Any, np.ndarray]]:
  """Yield (column, value, rows that have it) of columns of few values."""
  for column in frame:
    if pd.api.types.is_float_dtype(frame[column]):
      continue
    values = frame[column].dropna().unique()
    if len(values) > _MOST_VALUES:
      continue
    for value in values:
      plain = value.item() if hasattr(value, "item") else value
      mask = (frame[column] == value).to_numpy(bool)
      yield column, plain, mask
      yield column, f"not {plain}", ~mask


def _values(known: Any) -> Iterator[float]:
  if isinstance(known, str):
    yield from (other.value for other in numbers(known))
  elif isinstance(known, Sequence):
    yield from map(float, known)
  else:
    yield float(known)


def _is_same(one: Written, value: float) -> bool:
  return abs(one.value - value) <= 0.5 * one.step * (1 + 1e-9)
