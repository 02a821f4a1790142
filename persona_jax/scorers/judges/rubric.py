"""What a judge is asked: a text with a question and an answer in it, and options with a value each.

A rubric is a TOML file, of ours (`rubrics/`) or anybody's. A judge sees question and answer, and
never the condition. Options are lettered, and shown in both orders, for models prefer a place; what
is reported is the expected value over the options, both orders averaged.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import string
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_jax.data.hashing import content_hash

LETTERS = "ABCDEFGH"
_FIELDS = {"name", "version", "text", "options", "values"}
_PLACES = {"question", "answer"}


@dataclasses.dataclass(frozen=True)
class Rubric:
  """What is asked of an answer.

  Attributes:
    name: of the columns that judges make, such as "harm".
    version: raised whenever the wording changes, for a judge's error is that of its wording.
    text: with the places {question} and {answer}, and further ones that `fill` is given.
    options: in rising order of their values, two to eight.
    values: what each is worth.

  Raises:
    ValueError: a place is missing, or options and values do not fit one another.
  """

  name: str
  version: int
  text: str
  options: tuple[str, ...]
  values: tuple[float, ...]

  def __post_init__(self) -> None:
    where = f"rubric {self.name!r}"
    lacking = sorted(_PLACES - self.places)
    if lacking:
      raise ValueError(f"{where}: the text lacks {lacking}; its places are {sorted(self.places)}")
    if not 2 <= len(self.options) <= len(LETTERS) or len(set(self.options)) < len(self.options):
      raise ValueError(
        f"{where}: options {list(self.options)}; 2 to {len(LETTERS)} different ones fit"
      )
    if len(self.values) != len(self.options) or list(self.values) != sorted(set(self.values)):
      raise ValueError(
        f"{where}: values {list(self.values)} of {len(self.options)} options; one each fits, "
        "rising ones"
      )

  @property
  def places(self) -> set[str]:
    """Names of the places in the text."""
    return {name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None}

  @property
  def is_binary(self) -> bool:
    """Whether there are two options, worth 0 and 1, so that a verdict can be given."""
    return self.values == (0.0, 1.0)

  @property
  def sha256(self) -> str:
    """Hash of all of it."""
    return content_hash(dataclasses.asdict(self))

  def orders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the options' numbers as they are lettered: rising, and falling."""
    rising = tuple(range(len(self.options)))
    return rising, rising[::-1]

  def ask(self, question: str, answer: str, order: Sequence[int], **places: str) -> str:
    """Return what a judge is asked.

    Args:
      question, answer: that are judged; braces in them are text.
      order: numbers of the options, as they are lettered.
      places: what stands in further places.

    Raises:
      ValueError: a further place is not filled, or there is none such.
    """
    given = {"question": question, "answer": answer, **places}
    if set(given) != self.places:
      raise ValueError(
        f"rubric {self.name!r} has the places {sorted(self.places)}; given are {sorted(given)}"
      )
    lines = [f"{LETTERS[n]}. {self.options[option]}" for n, option in enumerate(order)]
    text = self.text.strip().format_map(given)
    return "\n".join([text, "", *lines, "", "Reply with one letter."])

  def expected(self, p_of_letter: Mapping[str, float], order: Sequence[int]) -> float:
    """Return the expected value of the option, of the letters' probabilities renormalised.

    NaN where no letter has any.
    """
    p = [p_of_letter.get(LETTERS[n], 0.0) for n in range(len(order))]
    total = math.fsum(p)
    if not total > 0:
      return math.nan
    return math.fsum(x * self.values[o] for x, o in zip(p, order, strict=True)) / total


def load_rubric(source: str | Path) -> Rubric:
  """Return a rubric of ours by its name ("harm", "refusal", "coherence", …) or of a TOML file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: no rubric of that name, or a file that is not of the form.
  """
  folder = importlib.resources.files("persona_jax.scorers.judges") / "rubrics"
  own = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir())
  if isinstance(source, str) and not source.endswith(".toml"):
    if source not in own:
      raise ValueError(f"unknown rubric {source!r}; known: {', '.join(own)}; or give a .toml file")
    text = (folder / f"{source}.toml").read_text(encoding="utf-8")
  else:
    text = Path(source).read_text(encoding="utf-8")
  try:
    content: dict[str, Any] = tomllib.loads(text)
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{source}: not a TOML file: {error}") from error
  if set(content) != _FIELDS:
    raise ValueError(f"{source} has the fields {sorted(content)}; {sorted(_FIELDS)} fit")
  return Rubric(
    str(content["name"]),
    int(content["version"]),
    str(content["text"]),
    tuple(map(str, content["options"])),
    tuple(map(float, content["values"])),
  )
