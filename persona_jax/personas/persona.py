"""Big Five personas P1 … P12: poles of traits, their matched texts, and their contrasts.

A persona is one pole of a trait ("C+") or two poles of two traits ("C+ A+"). Its text is made of
two halves of about 25 words each whatever the number of poles, so that a composite has no larger
dose of words than a pole. Three paraphrases (replicates) carry the wording variance.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

TRAITS: dict[str, str] = {
  "O": "openness",
  "C": "conscientiousness",
  "E": "extraversion",
  "A": "agreeableness",
  "N": "neuroticism",
}
QuestionKind = Literal["neutral", "dose", "trait", "self"]


@dataclasses.dataclass(frozen=True)
class Pole:
  """One end of one trait: `Pole("C", 1)` is high conscientiousness, written "C+".

  Raises:
    ValueError: a trait not in `TRAITS`, or a sign other than 1 and −1.
  """

  trait: str
  sign: int

  def __post_init__(self) -> None:
    if self.trait not in TRAITS or self.sign not in (1, -1):
      raise ValueError(
        f"no pole with trait {self.trait!r} and sign {self.sign!r}; a trait is one of"
        f" {', '.join(TRAITS)} and a sign 1 or -1"
      )

  def __str__(self) -> str:
    return self.trait + ("+" if self.sign > 0 else "-")

  @classmethod
  def parse(cls, text: str) -> Pole:
    """Return the pole written as a trait letter and a sign, as "C+" or "C-".

    Raises:
      ValueError: any other text.
    """
    if not isinstance(text, str) or len(text) != 2 or text[1] not in "+-" or text[0] not in TRAITS:
      raise ValueError(f"{text!r} is no pole; one of {', '.join(TRAITS)} with + or - fits, as 'C+'")
    return cls(text[0], 1 if text[1] == "+" else -1)

  @property
  def opposite(self) -> Pole:
    """The other end of the same trait."""
    return Pole(self.trait, -self.sign)


@dataclasses.dataclass(frozen=True)
class Lexicon(Mapping[Pole, tuple[tuple[str, str], ...]]):
  """The texts of all ten poles: pole → paraphrases, each a pair of halves (a, b)."""

  name: str
  texts: Mapping[Pole, tuple[tuple[str, str], ...]] = dataclasses.field(hash=False, repr=False)

  def __getitem__(self, pole: Pole) -> tuple[tuple[str, str], ...]:
    return self.texts[pole]

  def __iter__(self) -> Iterator[Pole]:
    return iter(self.texts)

  def __len__(self) -> int:
    return len(self.texts)

  @property
  def replicates(self) -> int:
    """Number of paraphrases that every pole has."""
    return min(len(paraphrases) for paraphrases in self.texts.values())


@dataclasses.dataclass(frozen=True)
class Persona:
  """One or two poles of different traits, with the texts that describe them.

  Attributes:
    name: "P1" … "P12", or any other name.
    poles: one or two poles, in the order in which the text names them.
    lexicon: the texts.
    documented: whether the published study describes this persona (only P12).

  Raises:
    ValueError: no pole, more than two, or two of one trait.
  """

  name: str
  poles: tuple[Pole, ...]
  lexicon: Lexicon = dataclasses.field(repr=False)
  documented: bool = False

  def __post_init__(self) -> None:
    if len(self.poles) not in (1, 2) or len(set(self.traits)) != len(self.poles):
      raise ValueError(
        f"persona {self.name} has the poles [{self.label}];"
        " one pole, or two of different traits, fit"
      )

  @property
  def traits(self) -> tuple[str, ...]:
    """Trait letters, in the order of the poles."""
    return tuple(pole.trait for pole in self.poles)

  @property
  def label(self) -> str:
    """The poles as text: "C+ A+"."""
    return " ".join(str(pole) for pole in self.poles)

  def text(self, replicate: int = 0) -> str:
    """Return the description in the second person ("You are …"), 47–54 words.

    One pole: both halves of its paraphrase. Two poles: the first half of each.

    Raises:
      ValueError: no such paraphrase.
    """
    if not 0 <= replicate < self.lexicon.replicates:
      raise ValueError(
        f"persona {self.name} has no paraphrase {replicate}; 0 to {self.lexicon.replicates - 1} fit"
      )
    if len(self.poles) == 1:
      return " ".join(self.lexicon[self.poles[0]][replicate])
    return " ".join(self.lexicon[pole][replicate][0] for pole in self.poles)

  def contrast(self) -> Persona:
    """Return the persona with every pole reversed, from the same lexicon."""
    opposite = tuple(pole.opposite for pole in self.poles)
    return Persona(f"anti-{self.name}", opposite, self.lexicon)


@dataclasses.dataclass(frozen=True)
class Question:
  """An open question of our own.

  Attributes:
    question_id: unique, as "neutral-07" or "trait-E-1".
    text: the question.
    kind: "neutral" (extraction from answers), "dose" (norms), "trait" (trait expression in free
      text) or "self"
      (about oneself; extraction).
    trait: the trait it is about, for kind "trait", else None.
  """

  question_id: str
  text: str
  kind: QuestionKind
  trait: str | None = None


def load_poles(path: str | Path | None = None) -> Lexicon:
  """Return the texts of the ten poles, from the built-in file or another of its form.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  content, file = _read_toml(path, "big_five.toml")
  return _parse_lexicon(content, file)


def load_personas(path: str | Path | None = None) -> list[Persona]:
  """Return the personas of the built-in file (P1 … P12 in order) or of another of its form.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  content, file = _read_toml(path, "big_five.toml")
  lexicon = _parse_lexicon(content, file)
  table = content.get("personas")
  if not isinstance(table, dict) or not table:
    raise ValueError(f"{file}: key 'personas' must be a table of persona name to list of poles")
  documented = content.get("documented", [])
  if not isinstance(documented, list) or not set(documented) <= set(table):
    raise ValueError(f"{file}: key 'documented' must list names of 'personas'; got {documented!r}")
  personas = []
  for name, poles in table.items():
    if not isinstance(poles, list):
      raise ValueError(f"{file}: key 'personas.{name}' must be a list of poles; got {poles!r}")
    try:
      parsed = tuple(Pole.parse(pole) for pole in poles)
      personas.append(Persona(name, parsed, lexicon, documented=name in documented))
    except ValueError as error:
      raise ValueError(f"{file}: key 'personas.{name}': {error}") from None
  return personas


def load_questions(kind: QuestionKind) -> list[Question]:
  """Return our own open questions of one kind: "neutral" (60), "dose" (24), "trait" (3 a trait)
  or "self" (12).

  The neutral and dose lists share no question, so that a dose is not measured on extraction data.

  Raises:
    ValueError: unknown kind, or a file that is not of the form.
  """
  content, file = _read_toml(None, "questions.toml")
  if kind not in ("neutral", "dose", "trait", "self"):
    raise ValueError(
      f"unknown kind of question {kind!r}; 'neutral', 'dose', 'trait' or 'self' fits"
    )
  if kind == "trait":
    table = content.get("trait")
    if not isinstance(table, dict) or set(table) != set(TRAITS):
      raise ValueError(f"{file}: key 'trait' must be a table with the keys {', '.join(TRAITS)}")
    return [
      Question(f"trait-{trait}-{index}", text, kind, trait)
      for trait in TRAITS
      for index, text in enumerate(_texts(table[trait], file, f"trait.{trait}"))
    ]
  return [
    Question(f"{kind}-{index:02d}", text, kind)
    for index, text in enumerate(_texts(content.get(kind), file, kind))
  ]


def _parse_lexicon(content: dict[str, Any], file: str) -> Lexicon:
  allowed = {"name", "documented", "personas", "poles"}
  unknown = sorted(set(content) - allowed)
  if unknown:
    raise ValueError(f"{file}: unknown key {unknown[0]!r}; {', '.join(sorted(allowed))} fit")
  name = content.get("name")
  if not isinstance(name, str) or not name:
    raise ValueError(f"{file}: key 'name' must be a non-empty string; got {name!r}")
  table = content.get("poles")
  wanted = [str(Pole(trait, sign)) for trait in TRAITS for sign in (1, -1)]
  if not isinstance(table, dict) or set(table) != set(wanted):
    raise ValueError(f"{file}: key 'poles' must be a table with the keys {', '.join(wanted)}")
  texts = {Pole.parse(key): _paraphrases(table[key], file, f"poles.{key}") for key in wanted}
  counts = {str(pole): len(paraphrases) for pole, paraphrases in texts.items()}
  if len(set(counts.values())) != 1:
    raise ValueError(f"{file}: every pole needs as many paraphrases as the others; got {counts}")
  return Lexicon(name, texts)


def _paraphrases(value: Any, file: str, key: str) -> tuple[tuple[str, str], ...]:
  if not isinstance(value, list) or not value:
    raise ValueError(f"{file}: key '{key}' must be a non-empty array of tables with 'a' and 'b'")
  for index, entry in enumerate(value):
    if not isinstance(entry, dict) or set(entry) != {"a", "b"}:
      raise ValueError(f"{file}: key '{key}[{index}]' must be a table with the keys a and b")
    _texts([entry["a"], entry["b"]], file, f"{key}[{index}]")
  return tuple((entry["a"], entry["b"]) for entry in value)


def _texts(value: Any, file: str, key: str) -> list[str]:
  if not isinstance(value, list) or not value:
    raise ValueError(f"{file}: key '{key}' must be a non-empty list of strings; got {value!r}")
  for text in value:
    if not isinstance(text, str) or not text.strip() or text != text.strip():
      raise ValueError(
        f"{file}: key '{key}' must hold non-empty strings without outer blanks; got {text!r}"
      )
  return value


def _read_toml(path: str | Path | None, default: str) -> tuple[dict[str, Any], str]:
  source: Traversable | Path
  source = importlib.resources.files(__package__) / default if path is None else Path(path)
  try:
    return tomllib.loads(source.read_text(encoding="utf-8")), source.name
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{source.name}: not a TOML file: {error}") from None
