"""Traits, their two poles, and the texts of all poles of a personas file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

TRAITS: dict[str, str] = {
  "O": "openness",
  "C": "conscientiousness",
  "E": "extraversion",
  "A": "agreeableness",
  "N": "neuroticism",
}
_TRAIT_ID = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Pole:
  """One end of one trait: `Pole("C", 1)` is high conscientiousness, written "C+".

  Only the form is checked here; which traits there are is up to a `Lexicon`.

  Raises:
    ValueError: a trait that is no identifier (letters, digits, _), or a sign other than 1 and -1.
  """

  trait: str
  sign: int

  def __post_init__(self) -> None:
    if not is_trait_id(self.trait) or self.sign not in (1, -1):
      raise ValueError(
        f"no pole with trait {self.trait!r} and sign {self.sign!r}; a trait is letters, digits and"
        " _, as 'C' or 'drink', and a sign 1 or -1"
      )

  def __str__(self) -> str:
    return self.trait + ("+" if self.sign > 0 else "-")

  @classmethod
  def parse(cls, text: str) -> Pole:
    """Return the pole written as a trait and a sign, as "C+" or "drink-".

    Raises:
      ValueError: any other text.
    """
    if not isinstance(text, str) or text[-1:] not in ("+", "-") or not is_trait_id(text[:-1]):
      raise ValueError(f"{text!r} is no pole; a trait with + or - fits, as 'C+' or 'drink-'")
    return cls(text[:-1], 1 if text[-1] == "+" else -1)

  @property
  def opposite(self) -> Pole:
    """The other end of the same trait."""
    return Pole(self.trait, -self.sign)


@dataclasses.dataclass(frozen=True)
class Lexicon(Mapping[Pole, tuple[tuple[str, str], ...]]):
  """The texts of both poles of some traits: pole → paraphrases, each a pair of halves (a, b).

  Attributes:
    name: of the lexicon, as "big_five".
    texts: of every pole.
    traits: trait id → name, in the order of the lexicon.
    uses_safety_words: whether the texts use words of safety and obedience on purpose.

  Raises:
    ValueError: the texts are not those of both poles of every trait.
  """

  name: str
  texts: Mapping[Pole, tuple[tuple[str, str], ...]] = dataclasses.field(hash=False, repr=False)
  traits: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: TRAITS, hash=False, repr=False
  )
  uses_safety_words: bool = False

  def __post_init__(self) -> None:
    wanted = poles_of(self.traits)
    if set(self.texts) != set(wanted):
      raise ValueError(
        f"lexicon {self.name} has texts of {_listed(self.texts)}; its traits need those of"
        f" {_listed(wanted)}"
      )

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


def is_trait_id(text: object) -> bool:
  """Return whether `text` can be the id of a trait: ASCII letters, digits and _."""
  return isinstance(text, str) and _TRAIT_ID.fullmatch(text) is not None


def poles_of(traits: Mapping[str, str]) -> list[Pole]:
  """Return both poles of every trait, + before -, in the order of the traits."""
  return [Pole(trait, sign) for trait in traits for sign in (1, -1)]


def _listed(poles: Mapping[Pole, object] | list[Pole]) -> str:
  return ", ".join(map(str, poles))
