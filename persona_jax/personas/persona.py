"""Personas as one or two poles of traits: their matched texts, contrasts and direction recipes.

A persona is one pole of a trait ("C+") or two poles of two traits ("C+ A+"). Its text is made of
two halves of about 25 words each whatever the number of poles, so that a composite has no larger
dose of words than a pole. Paraphrases (replicates) carry the wording variance. Personas are read
from files of the form that `persona_jax.personas.schema` describes; the built-in ones are

    big_five         P1 … P12 of the Big Five; sets core12 and closed50
    facet_faithful   the same personas in words that name the facets, obedience among them
    placebo4         both sides of four contrasts that are no personality; set placebo4
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from persona_jax.personas.poles import TRAITS, Lexicon, Pole
from persona_jax.personas.schema import (
  check_strings,
  parse_documented,
  parse_lexicon,
  parse_poles_of_personas,
  parse_sets,
  read_personas_file,
  read_toml,
)

QuestionKind = Literal["neutral", "dose", "trait", "self"]
ContrastKind = Literal["high_low", "high_neutral", "low_neutral"]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to make the direction of a persona: as a sum over its traits, or directly from its texts.

  Either direction points at the persona.

  Attributes:
    persona: name of the persona.
    parts: (trait, sign) for each pole. By the sum rule the direction is the unit vector along
      Σ sign · v̂_trait, of unit vectors that point at each trait's + pole.
    contrast: what the texts are: "high_low", the persona against its contrast; "high_neutral", the
      persona against no system message; "low_neutral", no system message against the contrast.
      High and low are seen from the persona, so the last two are as like as the effects of the two
      sides are opposite: their cosine is cos(v_high, -v_low).
    positive, negative: a system message for each paraphrase; those of one place belong together,
      and the direct rule takes the mean difference positive - negative. None: no system message.
  """

  persona: str
  parts: tuple[tuple[str, int], ...]
  contrast: ContrastKind
  positive: tuple[str | None, ...]
  negative: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Persona:
  """One or two poles of different traits, with the texts that describe them.

  Attributes:
    name: "P1" … "P12", or any other name.
    poles: one or two poles, in the order in which the text names them.
    lexicon: the texts.
    documented: whether the published study describes this persona (only P12).

  Raises:
    ValueError: no pole, more than two, two of one trait, or one that the lexicon does not have.
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
    for pole in self.poles:
      if pole not in self.lexicon:
        raise ValueError(
          f"persona {self.name} has the pole {pole}, of which lexicon {self.lexicon.name} has no"
          f" text; {', '.join(map(str, self.lexicon))} fit"
        )

  @property
  def traits(self) -> tuple[str, ...]:
    """Trait ids, in the order of the poles."""
    return tuple(pole.trait for pole in self.poles)

  @property
  def label(self) -> str:
    """The poles as text: "C+ A+"."""
    return " ".join(str(pole) for pole in self.poles)

  def text(self, replicate: int = 0) -> str:
    """Return the description in the second person ("You are …"), 47–54 words in built-in files.

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

  def recipe(self, contrast: ContrastKind = "high_low") -> Recipe:
    """Return how to make this persona's direction; see `Recipe` for the kinds of contrast.

    Raises:
      ValueError: unknown kind of contrast.
    """
    count = self.lexicon.replicates
    other = self.contrast()
    high = tuple(self.text(k) for k in range(count))
    low = tuple(other.text(k) for k in range(count))
    none = (None,) * count
    sides: dict[str, tuple[tuple[str | None, ...], tuple[str | None, ...]]] = {
      "high_low": (high, low),
      "high_neutral": (high, none),
      "low_neutral": (none, low),
    }
    if contrast not in sides:
      raise ValueError(f"unknown contrast {contrast!r}; {', '.join(sides)} fit")
    parts = tuple((pole.trait, pole.sign) for pole in self.poles)
    return Recipe(self.name, parts, contrast, *sides[contrast])


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
  """Return the texts of all poles of a personas file.

  Args:
    path: "big_five" (the default), "facet_faithful" or "placebo4", which are built in, or the path
      of a file of the same form.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is not of the form; the message names file, key and what fits.
  """
  return parse_lexicon(*read_personas_file(path))


def load_personas(path: str | Path | None = None, set: str | None = None) -> list[Persona]:
  """Return the personas of a file in order (P1 … P12 of the built-in one), or those of a set.

  A closed set has all poles in the order of the traits, + before -; then all pairs of poles of two
  traits in the same order, signs ++, +-, -+, --. What the file has as a persona is in it under its
  own name, in its own order of poles, so that results of two sets can be joined: P1 … P12 are among
  the 50 of closed50. The others are called by their poles, as "O+C-".

  Args:
    path: as for `load_poles`.
    set: a set of the file; None for all personas that it names.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no such set, or the file is not of the form; the message names file, key and what
      fits.
  """
  content, file = read_personas_file(path)
  lexicon = parse_lexicon(content, file)
  poles = parse_poles_of_personas(content, file)
  documented = parse_documented(content, file, poles)
  sets = parse_sets(content, file, poles)
  personas = {}
  for name in poles:
    try:
      personas[name] = Persona(name, poles[name], lexicon, documented=name in documented)
    except ValueError as error:
      raise ValueError(f"{file}: key 'personas.{name}': {error}") from None
  if set is None:
    return list(personas.values())
  if set not in sets:
    fitting = f"{', '.join(sets)} fit" if sets else "it has no sets"
    raise ValueError(f"{file}: no set {set!r}; {fitting}")
  members = sets[set]
  if members == "closed":
    return _closed(list(personas.values()), lexicon, file)
  return [personas[name] for name in members]


def _closed(personas: Sequence[Persona], lexicon: Lexicon, file: str) -> list[Persona]:
  named: dict[frozenset[Pole], Persona] = {}
  for persona in personas:
    named.setdefault(frozenset(persona.poles), persona)
  members = []
  for poles in [*((pole,) for pole in lexicon), *composite_poles(lexicon)]:
    name = "".join(map(str, poles))
    members.append(named.get(frozenset(poles)) or Persona(name, poles, lexicon))
  names = [persona.name for persona in members]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f"{file}: key 'personas.{twice[0]}': a closed set calls the poles of that name so; give the"
      " persona another name"
    )
  return members


def composite_poles(lexicon: Lexicon) -> list[tuple[Pole, Pole]]:
  """Return all pairs of poles of different traits, in the order of the lexicon."""
  return [
    (Pole(first, x), Pole(second, y))
    for first, second in itertools.combinations(lexicon.traits, 2)
    for x, y in itertools.product((1, -1), repeat=2)
  ]


def load_questions(kind: QuestionKind) -> list[Question]:
  """Return our own open questions of one kind: "neutral" (120), "dose" (24), "trait" (3 a trait)
  or "self" (12).

  The neutral and dose lists share no question, so that a dose is not measured on extraction data.

  Raises:
    ValueError: unknown kind, or a file that is not of the form.
  """
  content, file = read_toml(importlib.resources.files(__package__) / "questions.toml")
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
      for index, text in enumerate(check_strings(table[trait], file, f"trait.{trait}"))
    ]
  return [
    Question(f"{kind}-{index:02d}", text, kind)
    for index, text in enumerate(check_strings(content.get(kind), file, kind))
  ]
