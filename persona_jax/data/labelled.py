"""Answers that people have labelled, to train and to validate judges on; none is kept here.

A judge sees question and answer, and must say what people said. Near-copies of a question are on
one side of the split, so that nothing is validated on what it was trained on.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from persona_jax.data import wheels
from persona_jax.data.hub_files import HubFile
from persona_jax.data.near_copies import near_copies
from persona_jax.data.row_files import FORMATS, read_rows
from persona_jax.data.suites import source_of

COLUMNS = ("question", "text", "label", "source", "split", "category", "n_raters")
_EVALS = "pyrit/datasets/scorer_evals/"
_HARMS = (
  "exploits", "hate_speech", "info_integrity", "privacy", "representational", "self_harm",
  "sexual", "violence",
)  # fmt: skip
_OBJECTIVES = (
  "bias", "chemical_biological", "cyber", "exploits", "harassment_bullying", "hate_speech",
  "illegal_activity", "info_integrity", "misinformation", "phishing", "privacy", "self_harm",
  "sexual", "violence",
)  # fmt: skip
_SEVERAL = ("hate_speech", "violence")
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


def load_labelled(name: str) -> pd.DataFrame:
  """Return a set of labelled answers, a row an answer.

  "pyrit/refusal": 105 answers, "pyrit/refusal_extra": 64 others; the label says whether people call
  it a refusal. "pyrit/objective": 395, the label says whether the answer achieves what was asked.
  "pyrit/harm": 604 in eight categories, one rater each; "pyrit/harm_raters": 386 in two, three
  raters each; the label is how harmful the answer is, from 0 to 1, the mean of the raters. All of
  PyRIT, whose questions are called objectives.

  A name that ends in .jsonl, .csv or .parquet is a file, and "hub:ORG/NAME/FILE" one of the hub's
  cache, with the columns question, text and label and, if wanted, source, split, category and
  n_raters; further columns are refused in a file, and not read from the hub. Labels that are all 0
  or 1 are read as false and true. Sets of labels of one kind may be joined by "+".

  Returns:
    question, text (the answer), label (bool, True for a refusal or an objective that is achieved;
    or float in [0, 1]), source, split ("train" or "test": by a hash of the cluster of near-copies
    of the question, about half each, unless the file says it), category ("" if none is given),
    n_raters (int; 1 if it is not given).

  Raises:
    ValueError: unknown set, one named twice, a file without the columns, labels that are neither
      all true or false nor all numbers from 0 to 1, or other splits.
    FileNotFoundError: the wheel or the file of the hub was not fetched, or there is no such file.
  """
  names = name.split("+")
  if len(set(names)) < len(names):
    raise ValueError(f"labelled set {name!r} names a set twice.")
  sets = [_load(one) for one in names]
  kinds = {str(one["label"].dtype) for one in sets}
  if len(kinds) > 1:
    raise ValueError(f"labelled set {name!r} mixes true or false with scores.")
  table = pd.concat(sets, ignore_index=True)
  by_hash = pd.Series(_splits(list(table["question"])), index=table.index, dtype=object)
  table["split"] = table["split"].where(table["split"] != "", by_hash)
  return table[list(COLUMNS)]


def _load(name: str) -> pd.DataFrame:
  """Return one set; split is "" where it is not said."""
  if name in SETS:
    return SETS[name]()
  if HubFile.is_named_by(name):
    hub_file = HubFile.parse(name)
    path = hub_file.cached()
    return _of_rows(read_rows(path), hub_file.source(path), from_hub=True)
  if name.endswith(FORMATS):
    return _of_rows(read_rows(Path(name)), Path(name).name, from_hub=False)
  raise ValueError(
    f"unknown labelled set {name!r}; known sets: {', '.join(sorted(SETS))}; or give a file that "
    f"ends in {', '.join(FORMATS)}, or hub:ORG/NAME/FILE"
  )


def _splits(questions: Sequence[str]) -> list[str]:
  """Return the side of every question; near-copies are on one, whatever else is in the set."""
  clusters = near_copies(questions)
  first: dict[int, str] = {}
  for cluster, question in zip(clusters, questions, strict=True):
    first[cluster] = min(first.get(cluster, question), question)
  side = {
    c: ("train", "test")[hashlib.sha256(q.encode()).digest()[0] % 2] for c, q in first.items()
  }
  return [side[cluster] for cluster in clusters]


def _of_rows(
  rows: Sequence[tuple[str, Mapping[str, Any]]], source: str, *, from_hub: bool
) -> pd.DataFrame:
  found = []
  for place, row in rows:
    unknown = set(row) - set(COLUMNS)
    if not {"question", "text", "label"} <= set(row) or (unknown and not from_hub):
      raise ValueError(
        f"{place}: question, text, label and, if wanted, source, split, category, n_raters fit; "
        f"got {sorted(row)}."
      )
    if row.get("split", "train") not in ("train", "test"):
      raise ValueError(f"{place}: split {row['split']!r}: 'train' or 'test' fits.")
    found.append(
      {
        "question": str(row["question"]),
        "text": str(row["text"]),
        "label": row["label"],
        "source": str(row.get("source", source)),
        "split": str(row.get("split", "")),
        "category": str(row.get("category", "")),
        "n_raters": int(row.get("n_raters", 1)),
      }
    )
  table = pd.DataFrame(found)
  return table.assign(label=_labels(source, list(table["label"])))


def _labels(source: str, given: Sequence[object]) -> pd.Series:
  """Return labels as bool if all are true or false, else as float.

  Whole numbers 0 and 1 are read as false and true, since that is how tables write them.

  Raises:
    ValueError: a label is neither, or a number is out of [0, 1].
  """
  words = [str(one).strip().lower() for one in given]
  if all(word in (*_TRUE, *_FALSE) for word in words):
    return pd.Series([word in _TRUE for word in words], dtype=bool)
  numbers = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").astype("float64")
  wrong = ~numbers.between(0, 1)
  if wrong.any():
    raise ValueError(
      f"{source}: label {given[int(wrong.argmax())]!r}: true or false in all rows, or a number "
      "from 0 to 1 in all, fits."
    )
  return numbers


def _read(member: str) -> pd.DataFrame:
  """Return a table of PyRIT's, with its text columns and `scores`, a column a rater."""
  text = wheels.read_member("pyrit", _EVALS + member).decode("utf-8-sig")
  while text.startswith("#"):  # lines that describe the file
    text = text.partition("\n")[2]
  table = pd.read_csv(io.StringIO(text), keep_default_na=False)
  scores = [name for name in table.columns if name.startswith("human_score")]
  if not scores or set(table["data_type"]) != {"text"}:
    raise ValueError(f"{member} of pyrit: no human_score, or answers that are no text")
  if "harm_category" not in table:
    table["harm_category"] = ""
  return pd.DataFrame(
    {
      "question": table["objective"],
      "text": table["assistant_response"],
      "label": table[scores].astype("float64").mean(axis=1),
      "source": source_of("pyrit", _EVALS + member),
      "split": "",
      "category": table["harm_category"].str.lower(),
      "n_raters": len(scores),
    }
  )


def _bools(*members: str) -> pd.DataFrame:
  table = pd.concat([_read(member) for member in members], ignore_index=True)
  if not table["label"].isin([0, 1]).all():
    raise ValueError(f"{members[0]} of pyrit: a label is neither 0 nor 1")
  return table.astype({"label": bool})


def _scores(*members: str) -> pd.DataFrame:
  table = pd.concat([_read(member) for member in members], ignore_index=True)
  if not table["label"].between(0, 1).all():
    raise ValueError(f"{members[0]} of pyrit: a score is not from 0 to 1")
  return table


SETS: Mapping[str, Callable[[], pd.DataFrame]] = MappingProxyType(
  {
    "pyrit/harm": lambda: _scores(*(f"harm/{name}.csv" for name in _HARMS)),
    "pyrit/harm_raters": lambda: _scores(*(f"harm/{n}_multi_score.csv" for n in _SEVERAL)),
    "pyrit/objective": lambda: _bools(*(f"objective/{name}.csv" for name in _OBJECTIVES)),
    "pyrit/refusal": lambda: _bools("refusal_scorer/refusal.csv"),
    "pyrit/refusal_extra": lambda: _bools("refusal_scorer/refusal_extra.csv"),
  }
)
