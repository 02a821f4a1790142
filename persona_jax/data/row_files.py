"""Rows of .jsonl, .csv and .parquet files, each with the place it stands at, for error messages."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

FORMATS = (".jsonl", ".csv", ".parquet")


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
  """Return the rows of a table as (place, {column: value}); a cell without a value is left out.

  Cells of a .csv file are text as it stands. The place reads "PATH, line 3" or "PATH, row 3".

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another format, a file that is not of its format, a line that is no object, or no
      row.
  """
  if path.suffix not in FORMATS:
    raise ValueError(f"{path}: files that end in {', '.join(FORMATS)} are read.")
  rows = _json_lines(path) if path.suffix == ".jsonl" else _table(path)
  if not rows:
    raise ValueError(f"{path} holds no row.")
  return [(at, {k: v for k, v in row.items() if not _is_blank(v)}) for at, row in rows]


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
  rows = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    if not line.strip():
      continue
    place = f"{path}, line {number}"
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
      raise ValueError(f"{place}: an object fits; got {str(row)[:80]}")
    rows.append((place, row))
  return rows


def _table(path: Path) -> list[tuple[str, dict[str, Any]]]:
  try:
    if path.suffix == ".csv":
      table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    else:
      table = pd.read_parquet(path)
  except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError, ValueError) as error:
    if isinstance(error, FileNotFoundError):
      raise
    raise ValueError(f"{path}: not a {path.suffix} file: {error}") from error
  names = [str(name) for name in table.columns]
  return [
    (f"{path}, row {number}", dict(zip(names, row, strict=True)))
    for number, row in enumerate(table.itertuples(index=False, name=None), 1)
  ]


def _is_blank(value: Any) -> bool:
  return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
