"""Blind annotation: sheets of answers for people to label, and what they made of them.

A sheet has an id that says nothing, the question, the answer, and an empty column; rows are drawn
by strata, so that rare labels are in it, and shuffled. Which row an id is stands in a key apart,
which annotators do not get. Some rows are in every sheet, for the agreement between annotators.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

LABELS = ("refuse", "bypass", "degenerate", "unsure")
_SHEET = ["id", "question", "answer", "label", "note"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclasses.dataclass(frozen=True)
class Sheets:
  """Files that were written.

  Attributes:
    sheets: a CSV file each annotator.
    key: Parquet file of id, row_id and weight: how many rows of its stratum each id stands for.
  """

  sheets: tuple[Path, ...]
  key: Path


def write_annotation_sheets(
  table: pd.DataFrame,
  directory: str | Path,
  *,
  n: int = 300,
  strata: Sequence[str] = ("method", "persona", "label"),
  annotators: int = 2,
  overlap: float = 0.2,
  seed: int = 0,
) -> Sheets:
  """Draw rows and write sheets annotate-1.csv, annotate-2.csv … and annotate-key.parquet.

  Args:
    table: columns row_id, prompt, text, and those of `strata`; rows without a text are left out.
    directory: of the files.
    n: rows in all; every stratum has at least one, and the rest by its size.
    strata: columns that the rows are drawn by.
    annotators: sheets.
    overlap: share of the rows that is in every sheet.
    seed: of the draw and of the order.

  Raises:
    ValueError: a column is lacking, ids repeat, there are too few rows or more strata than `n`, or
      a number is out of bounds.
  """
  needed = ["row_id", "prompt", "text", *strata]
  lacking = [column for column in needed if column not in table]
  if lacking:
    raise ValueError(f"the table has the columns {list(table)}; it lacks {lacking}")
  if not 0 <= overlap <= 1 or annotators < 1 or n < 1:
    raise ValueError(
      f"n={n}, annotators={annotators}, overlap={overlap}: at least 1, 1 and a share fit"
    )
  rows = table[table["text"].notna()].reset_index(drop=True)
  if rows["row_id"].duplicated().any():
    raise ValueError(f"row_id {rows['row_id'][rows['row_id'].duplicated()].iloc[0]!r} occurs twice")
  if n > len(rows):
    raise ValueError(f"n={n}: the table has {len(rows)} rows with a text")
  rng = np.random.default_rng(seed)
  groups = rows.groupby(list(strata), sort=True, dropna=False).indices if strata else {}
  members = [np.asarray(index) for index in groups.values()] or [np.arange(len(rows))]
  if n < len(members):
    raise ValueError(
      f"n={n}: there are {len(members)} strata of {list(strata)}, and each needs a row; give more "
      "rows, or fewer columns to draw by"
    )
  counts = _allotted([len(index) for index in members], n)
  chosen, weight = [], []
  for index, count in zip(members, counts, strict=True):
    mine = rng.permutation(index)[:count]
    chosen += mine.tolist()
    weight += [len(index) / count] * len(mine)
  order = rng.permutation(len(chosen))
  drawn = rows.iloc[[chosen[k] for k in order]].reset_index(drop=True)
  ids = [_id(seed, row_id) for row_id in drawn["row_id"]]
  shared = round(overlap * len(drawn)) if annotators > 1 else 0
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  sheet = pd.DataFrame(
    {
      "id": ids,
      "question": [_safe(str(text)) for text in drawn["prompt"]],
      "answer": [_safe(str(text)) for text in drawn["text"]],
      "label": "",
      "note": "",
    }
  )
  paths = []
  for k in range(annotators):
    own = range(shared + k, len(drawn), annotators)
    mine = sheet.iloc[[*range(shared), *own]]
    mine = mine.iloc[np.random.default_rng([seed, k]).permutation(len(mine))]
    paths.append(directory / f"annotate-{k + 1}.csv")
    mine[_SHEET].to_csv(paths[-1], index=False, lineterminator="\r\n")
  key = directory / "annotate-key.parquet"
  pd.DataFrame(
    {"id": ids, "row_id": drawn["row_id"], "weight": [weight[k] for k in order]}
  ).to_parquet(key, index=False)
  return Sheets(tuple(paths), key)


def read_annotations(sheets: Sequence[str | Path], key: str | Path) -> pd.DataFrame:
  """Read sheets that people have filled in.

  Returns:
    A row a sheet and row: row_id, annotator (name of the sheet), label (of `LABELS`; None where it
    was left empty), weight, note.

  Raises:
    ValueError: a sheet lacks a column, holds an id twice or one that the key does not have, or a
      label that is none.
  """
  known = pd.read_parquet(key).set_index("id")
  found = []
  for path in map(Path, sheets):
    sheet = pd.read_csv(path, dtype=str, keep_default_na=False)
    lacking = [column for column in ("id", "label") if column not in sheet]
    if lacking:
      raise ValueError(f"{path} lacks the columns {lacking}")
    strays = sorted(set(sheet["id"]) - set(known.index))
    twice = sorted(sheet["id"][sheet["id"].duplicated()])
    if strays or twice:
      raise ValueError(f"{path}: ids not in {key}: {strays[:3]}; ids that occur twice: {twice[:3]}")
    labels = sheet["label"].str.strip().str.lower()
    wrong = sorted(set(labels) - {"", *LABELS})
    if wrong:
      raise ValueError(f"{path}: labels {wrong}; {', '.join(LABELS)} fit, or nothing")
    found.append(
      pd.DataFrame(
        {
          "row_id": known.loc[sheet["id"], "row_id"].to_numpy(),
          "annotator": path.stem,
          "label": [label or None for label in labels],
          "weight": known.loc[sheet["id"], "weight"].to_numpy(),
          "note": sheet["note"] if "note" in sheet else "",
        }
      )
    )
  return pd.concat(found, ignore_index=True)


def agreed(annotations: pd.DataFrame) -> pd.DataFrame:
  """Return one label a row: row_id, label, weight, annotators.

  Where annotators differ, or one of them is unsure, the label is missing.
  """
  rows = []
  for row_id, mine in annotations.groupby("row_id", sort=False):
    labels = set(mine["label"].dropna())
    label = labels.pop() if len(labels) == 1 else None
    rows.append(
      {
        "row_id": row_id,
        "label": None if label == "unsure" else label,
        "weight": mine["weight"].iloc[0],
        "annotators": int(mine["label"].notna().sum()),
      }
    )
  return pd.DataFrame(rows, columns=["row_id", "label", "weight", "annotators"])


def _allotted(sizes: Sequence[int], n: int) -> list[int]:
  """Share n among strata: one each, and the rest by size."""
  counts = np.ones(len(sizes), int)
  size = np.asarray(sizes)
  while counts.sum() < n:  # to whom it is due most, by the largest remainder
    due = np.where(counts < size, size / size.sum() * n - counts, -np.inf)
    counts[int(np.argmax(due))] += 1
  return counts.tolist()


def _id(seed: int, row_id: object) -> str:
  return hashlib.sha256(f"{seed} {row_id}".encode()).hexdigest()[:10]


def _safe(text: str) -> str:
  """Keep a spreadsheet from reading a text as a formula."""
  return f"'{text}" if text.startswith(_FORMULA) else text
