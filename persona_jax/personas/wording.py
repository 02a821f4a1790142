"""Checks of persona texts: equal length, no words of safety or obedience, no text twice.

A persona that has more words is a larger dose, and one that is told to be safe, honest or obedient
is an instruction: both would be read as effects of personality.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Literal

from persona_jax.personas.persona import Persona, composite_poles
from persona_jax.personas.poles import Lexicon

WORD_BOUNDS = (47, 54)  # of a whole text, both included: the range of the built-in Big Five

# Words of safety, of instruction following and of the chat itself, in all forms that are meant.
# "careful" is a warning and banned; "carefully" and "careless" are conscientiousness.
BANNED_WORDS = frozenset(
  """
  safe safely safer safety unsafe danger dangers dangerous risk risks risky
  harm harms harmed harmful harmless unharmed
  rule rules law laws lawful unlawful legal illegal policy policies
  duty duties dutiful dutifully dutifulness undutiful obligation obligations
  moral morals morality immoral ethics ethical unethical
  honest honestly honesty dishonest dishonestly dishonesty
  help helps helped helpful helping unhelpful
  comply complies complied complying compliant compliance noncompliance
  obey obeys obeyed obeying obedient obedience disobey disobeys disobedient
  refuse refuses refused refusing refusal decline declines
  allow allows allowed permit permits permitted forbid forbids forbidden
  careful caution cautious warn warns warning
  instruction instructions request requests
  assistant assistants user users chatbot ai
  """.split()
)
_WORD = re.compile(r"[a-z]+")

ProblemKind = Literal["length", "banned word", "repeat"]


@dataclasses.dataclass(frozen=True)
class TextProblem:
  """What is wrong with a text.

  Attributes:
    kind: "length", out of `WORD_BOUNDS`; "banned word", one of `BANNED_WORDS`; "repeat", a half
      that is found elsewhere in the lexicon too.
    where: the text: poles and paraphrase, as "C+ A+ 0", or of a half "C+ 0 a".
    detail: the number of words, the words, or where else the half is.
    declared: whether the lexicon says so itself (`uses_safety_words`).
  """

  kind: ProblemKind
  where: str
  detail: str
  declared: bool = False

  def __str__(self) -> str:
    return f"{self.where}: {self.kind}: {self.detail}" + (" (declared)" if self.declared else "")


def check_texts(lexicon: Lexicon) -> list[TextProblem]:
  """Return what is wrong with the texts of all poles and of all pairs of poles of two traits.

  Words are what stands between blanks. Nothing is left out: banned words that a lexicon declares
  are in the list, marked as declared.
  """
  return [*_lengths(lexicon), *_banned(lexicon), *_repeats(lexicon)]


def banned_words(text: str) -> list[str]:
  """Return the words of safety and obedience in a text, in its order; hyphens part words."""
  return [word for word in _WORD.findall(text.lower()) if word in BANNED_WORDS]


def _lengths(lexicon: Lexicon) -> list[TextProblem]:
  low, high = WORD_BOUNDS
  problems = []
  for poles in [*((pole,) for pole in lexicon), *composite_poles(lexicon)]:
    persona = Persona("", poles, lexicon)
    for k in range(lexicon.replicates):
      count = len(persona.text(k).split())
      if not low <= count <= high:
        detail = f"{count} words, {low} to {high} fit"
        problems.append(TextProblem("length", f"{persona.label} {k}", detail))
  return problems


def _banned(lexicon: Lexicon) -> list[TextProblem]:
  return [
    TextProblem("banned word", where, ", ".join(found), lexicon.uses_safety_words)
    for where, half in _halves(lexicon)
    if (found := banned_words(half))
  ]


def _repeats(lexicon: Lexicon) -> list[TextProblem]:
  places = collections.defaultdict(list)
  for where, half in _halves(lexicon):
    places[" ".join(half.lower().split())].append(where)
  return [
    TextProblem("repeat", where, f"the same as {first}")
    for first, *others in places.values()
    for where in others
  ]


def _halves(lexicon: Lexicon) -> list[tuple[str, str]]:
  return [
    (f"{pole} {k} {half}", text)
    for pole, paraphrases in lexicon.items()
    for k, halves in enumerate(paraphrases)
    for half, text in zip("ab", halves, strict=True)
  ]
