"""The form of a personas file (TOML), which is all it takes to add personas, traits or wordings.

    name = "mine"
    documented = ["orderly"]           # optional: personas that a published study describes
    uses_safety_words = true           # optional: the texts use words of safety on purpose

    [traits]                           # optional: id = name; the Big Five if absent
    C = "conscientiousness"
    drink = "tea over coffee"

    [personas]                         # name = one pole, or two poles of different traits
    orderly = ["C+"]
    "orderly tea drinker" = ["C+", "drink+"]

    [sets]                             # optional: name = personas, in the order wanted, or
    pair = ["orderly", "orderly tea drinker"]
    all = "closed"                     # every pole and every pair of poles of different traits

    [[poles."C+"]]                     # a table for each paraphrase; every trait needs + and -,
    a = "You are …"                    # every pole as many paraphrases as the others
    b = "You …"

The text of one pole is a + b, of two poles the a of the first + the a of the second; with halves of
24 to 27 words all personas are about as long. `persona_jax.personas.wording.check_texts` tells what
to mend.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from persona_jax.personas.poles import TRAITS, Lexicon, Pole, is_trait_id, poles_of

BUILT_IN = ("big_five", "facet_faithful", "placebo4")
_KEYS = ("name", "documented", "uses_safety_words", "traits", "personas", "sets", "poles")
_FILES = importlib.resources.files(__package__)

Content = dict[str, Any]
Members = tuple[str, ...] | Literal["closed"]


def read_personas_file(path: str | Path | None) -> tuple[Content, str]:
  """Return the content of a personas file and its name: of a built-in one, or of a path.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a TOML file, or it has an unknown key.
  """
  name = BUILT_IN[0] if path is None else path
  if isinstance(name, str) and name in BUILT_IN:
    content, file = read_toml(_FILES / f"{name}.toml")
  else:
    try:
      content, file = read_toml(Path(name))
    except FileNotFoundError:
      raise FileNotFoundError(
        f"no personas file {str(name)!r}; a path fits, or one of {', '.join(BUILT_IN)}"
      ) from None
  unknown = sorted(set(content) - set(_KEYS))
  if unknown:
    raise ValueError(f"{file}: unknown key {unknown[0]!r}; {', '.join(sorted(_KEYS))} fit")
  return content, file


def read_toml(source: Traversable | Path) -> tuple[Content, str]:
  """Return the content of a TOML file and its name.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a TOML file.
  """
  try:
    return tomllib.loads(source.read_text(encoding="utf-8")), source.name
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{source.name}: not a TOML file: {error}") from None


def parse_lexicon(content: Content, file: str) -> Lexicon:
  """Return the texts of all poles of a file.

  Raises:
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  name = content.get("name")
  if not isinstance(name, str) or not name:
    raise ValueError(f"{file}: key 'name' must be a non-empty string; got {name!r}")
  declared = content.get("uses_safety_words", False)
  if not isinstance(declared, bool):
    raise ValueError(f"{file}: key 'uses_safety_words' must be true or false; got {declared!r}")
  traits = _parse_traits(content, file)
  wanted = [str(pole) for pole in poles_of(traits)]
  table = content.get("poles")
  if not isinstance(table, dict) or set(table) != set(wanted):
    got = ", ".join(table) if isinstance(table, dict) else repr(table)
    raise ValueError(
      f"{file}: key 'poles' must be a table with the keys {', '.join(wanted)}; got {got}"
    )
  texts = {Pole.parse(key): _paraphrases(table[key], file, f"poles.{key}") for key in wanted}
  counts = {str(pole): len(paraphrases) for pole, paraphrases in texts.items()}
  if len(set(counts.values())) != 1:
    raise ValueError(f"{file}: every pole needs as many paraphrases as the others; got {counts}")
  return Lexicon(name, texts, traits, declared)


def parse_poles_of_personas(content: Content, file: str) -> dict[str, tuple[Pole, ...]]:
  """Return the poles of each persona of a file, by name.

  Raises:
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  table = content.get("personas")
  if not isinstance(table, dict) or not table:
    raise ValueError(f"{file}: key 'personas' must be a table of persona name to list of poles")
  poles = {}
  for name, value in table.items():
    key = f"{file}: key 'personas.{name}'"
    if not isinstance(value, list):
      raise ValueError(f"{key} must be a list of poles; got {value!r}")
    try:
      poles[name] = tuple(Pole.parse(pole) for pole in value)
    except ValueError as error:
      raise ValueError(f"{key}: {error}") from None
  return poles


def parse_documented(content: Content, file: str, personas: Iterable[str]) -> tuple[str, ...]:
  """Return the names of the personas that a published study describes.

  Raises:
    ValueError: it is no list of names of `personas`.
  """
  return _names(content.get("documented", []), personas, f"{file}: key 'documented'")


def parse_sets(content: Content, file: str, personas: Iterable[str]) -> dict[str, Members]:
  """Return the sets of a file: name → names out of `personas`, or "closed".

  Raises:
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  table = content.get("sets", {})
  if not isinstance(table, dict):
    raise ValueError(f"{file}: key 'sets' must be a table of set name to personas; got {table!r}")
  sets: dict[str, Members] = {}
  for name, value in table.items():
    key = f"{file}: key 'sets.{name}'"
    if value == "closed":
      sets[name] = "closed"
      continue
    if not isinstance(value, list) or not value:
      raise ValueError(f"{key} must be 'closed' or a non-empty list of personas; got {value!r}")
    sets[name] = _names(value, personas, key)
  return sets


def check_strings(value: Any, file: str, key: str) -> list[str]:
  """Return a value of a TOML file if it is a non-empty list of strings without outer blanks.

  Raises:
    ValueError: it is not.
  """
  if not isinstance(value, list) or not value:
    raise ValueError(f"{file}: key '{key}' must be a non-empty list of strings; got {value!r}")
  for text in value:
    if not isinstance(text, str) or not text.strip() or text != text.strip():
      raise ValueError(
        f"{file}: key '{key}' must hold non-empty strings without outer blanks; got {text!r}"
      )
  return value


def _parse_traits(content: Content, file: str) -> Mapping[str, str]:
  table = content.get("traits", TRAITS)
  if not isinstance(table, dict) or not table:
    raise ValueError(f"{file}: key 'traits' must be a table of trait id to name; got {table!r}")
  for trait, name in table.items():
    if not is_trait_id(trait):
      raise ValueError(
        f"{file}: key 'traits' has the id {trait!r}; letters, digits and _ fit, as C or drink"
      )
    check_strings([name], file, f"traits.{trait}")
  return dict(table)


def _paraphrases(value: Any, file: str, key: str) -> tuple[tuple[str, str], ...]:
  if not isinstance(value, list) or not value:
    raise ValueError(f"{file}: key '{key}' must be a non-empty array of tables with 'a' and 'b'")
  for index, entry in enumerate(value):
    if not isinstance(entry, dict) or set(entry) != {"a", "b"}:
      raise ValueError(f"{file}: key '{key}[{index}]' must be a table with the keys a and b")
    check_strings([entry["a"], entry["b"]], file, f"{key}[{index}]")
  return tuple((entry["a"], entry["b"]) for entry in value)


def _names(value: Any, personas: Iterable[str], key: str) -> tuple[str, ...]:
  fitting = list(personas)
  if (
    not isinstance(value, list)
    or not all(name in fitting for name in value)
    or len(set(value)) < len(value)
  ):
    raise ValueError(
      f"{key} must list names of 'personas', each once; got {value!r}; {', '.join(fitting)} fit"
    )
  return tuple(value)
