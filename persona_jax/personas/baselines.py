"""System messages that are no persona: a placebo text, and a persona's text with words shuffled.

They tell what of a system prompt's effect is due to any text of that length, and to the words
without their sense. A third baseline, the text at the head of the user's turn, needs nothing here:
it is a condition with the text as its prefix.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

from persona_jax.personas.schema import check_strings, read_toml


def load_placebo_texts(path: str | Path | None = None) -> tuple[str, ...]:
  """Return placebo system messages of about 50 words, a paraphrase each, that describe nobody.

  Args:
    path: a TOML file with a list `placebo` of texts; None for our own three.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is not of the form.
  """
  own = importlib.resources.files(__package__) / "baselines.toml"
  content, file = read_toml(own if path is None else Path(path))
  unknown = sorted(set(content) - {"placebo"})
  if unknown:
    raise ValueError(f"{file}: unknown key {unknown[0]!r}; placebo fits")
  return tuple(check_strings(content.get("placebo"), file, "placebo"))


def shuffled_words(text: str, seed: int) -> str:
  """Return the words of a text, with the punctuation that they carry, in a random order.

  Words are sorted by a sha256 of seed, text and place, so that the order is the same on every
  machine and with every version of the libraries. Words are what stands between blanks; one blank
  is written between them.
  """
  words = text.split()

  def key(place: int) -> bytes:
    return hashlib.sha256(f"{seed} {place} {text}".encode()).digest()

  return " ".join(words[place] for place in sorted(range(len(words)), key=key))
