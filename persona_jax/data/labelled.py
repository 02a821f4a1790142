"""Answers that people have labelled, to validate scorers with; from pinned wheels or files.

The sets of the pyrit wheel (PyRIT's scorer evaluations, MIT): "pyrit/refusal", 105 answers, 70 of
them refusals; "pyrit/refusal_extra", 64, 39 of them; "pyrit/harm", 604 answers with a harm score
between 0 and 1 in eight categories. They hold harmful requests and answers: none is copied here.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from persona_jax.data import wheels

_ROOT = "pyrit/datasets/scorer_evals/"
_REFUSAL = {
  "pyrit/refusal": "refusal_scorer/refusal.csv",
  "pyrit/refusal_extra": "refusal_scorer/refusal_extra.csv",
}
_HARM = (
  "exploits", "hate_speech", "info_integrity", "privacy", "representational", "self_harm", "sexual",
  "violence",
)  # fmt: skip
NAMES = (*_REFUSAL, "pyrit/harm")
_COLUMNS = ["question", "text", "label"]


def load_labelled(name: str) -> pd.DataFrame:
  """Return labelled answers, in file order.

  Args:
    name: of a set of the pyrit wheel, or a .csv, .jsonl or .parquet file with the columns question,
      text and label (and, if wanted, category and source).

  Returns:
    Columns question, text (the answer), label, category, source. A label is True where people saw a
    refusal; of "pyrit/harm" it is the mean of their harm scores, from 0 to 1.

  Raises:
    ValueError: unknown name, or a file that lacks a column or holds a label that does not fit.
    FileNotFoundError: the wheel was not fetched, or there is no such file.
  """
  if name in _REFUSAL:
    rows = _rows(_REFUSAL[name])
    table = pd.DataFrame(
      {
        "question": [row["objective"] for row in rows],
        "text": [row["assistant_response"] for row in rows],
        "label": pd.array([_as_bool(row["human_score"], name) for row in rows], dtype="boolean"),
      }
    )
    return table.assign(category="", source=_source(_REFUSAL[name]))
  if name == "pyrit/harm":
    return pd.concat([_harm(category) for category in _HARM], ignore_index=True)
  if name.endswith((".csv", ".jsonl", ".parquet")):
    return _file(Path(name))
  raise ValueError(
    f"unknown labelled set {name!r}; known: {', '.join(NAMES)}; or give a file that ends in .csv, "
    ".jsonl or .parquet"
  )


def _harm(category: str) -> pd.DataFrame:
  member = f"harm/{category}.csv"
  rows = _rows(member)
  scores = [[float(v) for k, v in row.items() if k.startswith("human_score") and v] for row in rows]
  return pd.DataFrame(
    {
      "question": [row["objective"] for row in rows],
      "text": [row["assistant_response"] for row in rows],
      "label": [sum(mine) / len(mine) if mine else float("nan") for mine in scores],
      "category": category,
      "source": _source(member),
    }
  )


def _rows(member: str) -> list[dict[str, str]]:
  """Read a table behind its lines of comment."""
  text = wheels.read_member("pyrit", _ROOT + member).decode("utf-8-sig")
  while text.startswith("#"):
    text = text.partition("\n")[2]
  # newline="": answers hold line breaks of all kinds, which belong to them.
  return list(csv.DictReader(io.StringIO(text, newline="")))


def _source(member: str) -> str:
  return f"pyrit {wheels.wheel_source('pyrit').version} {_ROOT}{member}"


def _as_bool(value: str, name: str) -> bool:
  known = {"0": False, "1": True, "true": True, "false": False}
  if value.strip().lower() not in known:
    raise ValueError(f"{name}: a label is {value!r}; {', '.join(known)} fit")
  return known[value.strip().lower()]


def _file(path: Path) -> pd.DataFrame:
  if path.suffix == ".csv":
    table = pd.read_csv(path)
  elif path.suffix == ".jsonl":
    table = pd.read_json(path, lines=True)
  else:
    table = pd.read_parquet(path)
  lacking = [column for column in _COLUMNS if column not in table]
  if lacking:
    raise ValueError(f"{path} has the columns {list(table)}; it lacks {lacking}")
  for column in ("category", "source"):
    if column not in table:
      table[column] = "" if column == "category" else path.name
  return table[[*_COLUMNS, "category", "source"]]
