"""What is contrasted: pairs of system texts, with questions to make directions of and to judge."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from persona_jax.directions.formats.rows import file_name
from persona_jax.engine.model import Model
from persona_jax.personas.persona import (
  TRAITS,
  Persona,
  Pole,
  QuestionKind,
  load_poles,
  load_questions,
)
from persona_jax.studies.extraction.settings import Settings

_SUM = " (sum)"  # of a composite's name, where it is put together

Chat = list[dict[str, str]]
_Sides = tuple[tuple[str, ...], tuple[str, ...]]  # the texts of either side


class ChatPairs(NamedTuple):
  """Pairs of chats, and what they have in common.

  Attributes:
    positive, negative: the chats.
    wording, question: numbers of both, of each pair.
    asked: the question of each pair.
  """

  positive: list[Chat]
  negative: list[Chat]
  wording: list[int]
  question: list[int]
  asked: list[str]

  def only(self, numbers: Sequence[int]) -> ChatPairs:
    """Return some of the pairs."""
    return ChatPairs(*([x[n] for n in numbers] for x in self))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Two opposite texts in some wordings, and the questions that they are asked.

  Attributes:
    name: of the concept, such as "C+".
    positive, negative: the texts, a wording each; wordings of the same place are a pair.
    train, held_out: questions.
    parts: of a composite that is put together of other contrasts' directions: their names, and +1
      or -1.
    answers: name under which answers are kept: those of a composite serve both ways to make it.
  """

  name: str
  positive: tuple[str, ...]
  negative: tuple[str, ...]
  train: tuple[str, ...]
  held_out: tuple[str, ...]
  parts: tuple[tuple[str, int], ...] = ()
  answers: str = ""

  def pairs(self, questions: tuple[str, ...], persona_in: str = "system") -> ChatPairs:
    """Return a pair of chats for each wording and question; see `Settings.persona_in`."""

    def chat(text: str, question: str) -> Chat:
      if persona_in == "user":
        return [{"role": "user", "content": f"{text}\n\n{question}"}]
      return [{"role": "system", "content": text}, {"role": "user", "content": question}]

    def chats(texts: tuple[str, ...]) -> list[Chat]:
      return [chat(text, question) for text in texts for question in questions]

    count = len(self.positive)
    return ChatPairs(
      chats(self.positive),
      chats(self.negative),
      [k for k in range(count) for _ in questions],
      list(range(len(questions))) * count,
      list(questions) * count,
    )


def load_contrasts(settings: Settings) -> list[Contrast]:
  """Return the contrasts of a bank.

  A TOML file of roles has, for each role, a table with `positive` and `negative`, lists of as many
  texts; questions are ours or, where the file has a list `questions`, its own.

  Raises:
    ValueError: too few questions, an unknown name, or a file that is not of the form.
  """
  parts: dict[str, tuple[tuple[str, int], ...]] = {}
  if settings.bank == "traits":
    lexicon = load_poles()

    def wordings(trait: str, sign: int) -> tuple[str, ...]:
      return tuple(" ".join(halves) for halves in lexicon[Pole(trait, sign)])

    texts = {f"{t}+": (wordings(t, 1), wordings(t, -1)) for t in settings.only or TRAITS}
    for label in settings.composites:
      poles = tuple(Pole.parse(text) for text in label.split())
      persona = Persona(label, poles, lexicon)
      sides = persona, persona.contrast()
      x, y = (tuple(side.text(k) for k in range(lexicon.replicates)) for side in sides)
      texts[label] = texts[label + _SUM] = x, y
      parts[label + _SUM] = tuple((f"{pole.trait}+", pole.sign) for pole in poles)
    kind: QuestionKind = "self" if settings.source == "prompts" else "neutral"
    asked = [q.text for q in load_questions(kind)]
  else:
    texts, own = _roles(Path(settings.bank))
    asked = own or [q.text for q in load_questions("neutral")]
    if settings.only:
      unknown = [name for name in settings.only if name not in texts]
      if unknown:
        raise ValueError(f"{settings.bank} has no roles {unknown}; it has {list(texts)[:16]}.")
      texts = {name: texts[name] for name in settings.only}
  needed = settings.train_questions + settings.held_out_questions
  if needed > len(asked):
    raise ValueError(
      f"{settings.train_questions} questions to train and {settings.held_out_questions} held out; "
      f"the bank has {len(asked)}."
    )
  order = np.random.default_rng([settings.seed, 6]).permutation(len(asked))[:needed]
  train = tuple(asked[n] for n in sorted(order[: settings.train_questions]))
  held_out = tuple(asked[n] for n in sorted(order[settings.train_questions :]))
  files = [file_name(name) for name in texts]
  if len(set(files)) < len(files):
    raise ValueError(f"names {list(texts)} need different files; these would be {files}.")
  return [
    Contrast(name, x, y, train, held_out, parts.get(name, ()), name.removesuffix(_SUM))
    for name, (x, y) in texts.items()
  ]


def _roles(path: Path) -> tuple[dict[str, _Sides], list[str]]:
  try:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{path}: not a TOML file: {error}.") from error
  asked = content.pop("questions", [])
  texts: dict[str, _Sides] = {}
  for name, entry in content.items():
    sides = entry if isinstance(entry, dict) else {}
    x, y = (_wordings(sides.get(side)) for side in ("positive", "negative"))
    if not x or len(x) != len(y):
      raise ValueError(f"{path}: [{name}] needs 'positive' and 'negative', lists of as many texts.")
    texts[name] = x, y
  if not texts:
    raise ValueError(f"{path} has no roles.")
  return texts, asked


def _wordings(value: object) -> tuple[str, ...]:
  """Return a list of texts; none if it is anything else."""
  texts = value if isinstance(value, list) else []
  return tuple(texts) if all(isinstance(t, str) and t.strip() for t in texts) else ()


def with_answers(
  model: Model,
  chats: list[Chat],
  questions: list[str],
  *,
  max_new_tokens: int,
  temperature: float,
  seed: int,
  progress: Callable[[int], None] | None = None,
) -> list[Chat]:
  """Have chats answered, and return question and answer without the text that made them.

  What a direction reads then is the answer, and not that there is such a text.
  """
  answers = model.generate(
    chats, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, progress=progress
  )
  return [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
    for question, answer in zip(questions, answers, strict=True)
  ]
