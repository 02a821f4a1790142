"""What is contrasted: pairs of system texts, with questions to make directions of and to judge."""

import dataclasses
import tomllib
from pathlib import Path

import numpy as np

from persona_jax.engine.model import Model
from persona_jax.personas.persona import TRAITS, Pole, load_poles, load_questions
from persona_jax.studies.extraction.settings import Settings

Chat = list[dict[str, str]]
_Sides = tuple[tuple[str, ...], tuple[str, ...]]  # the texts of either side


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Two opposite texts in some wordings, and the questions that they are asked.

  Attributes:
    name: of the concept, such as "C+".
    positive, negative: the texts, a wording each; wordings of the same place are a pair.
    train, held_out: questions.
  """

  name: str
  positive: tuple[str, ...]
  negative: tuple[str, ...]
  train: tuple[str, ...]
  held_out: tuple[str, ...]

  def pairs(self, questions: tuple[str, ...]) -> tuple[list[Chat], list[Chat], list[int]]:
    """Return positive and negative chats, a pair for each wording and question, and its wording."""

    def chats(texts: tuple[str, ...]) -> list[Chat]:
      return [
        [{"role": "system", "content": text}, {"role": "user", "content": question}]
        for text in texts
        for question in questions
      ]

    label = [k for k in range(len(self.positive)) for _ in questions]
    return chats(self.positive), chats(self.negative), label


def contrasts(settings: Settings) -> list[Contrast]:
  """Return the contrasts of a bank.

  A TOML file of roles has, for each role, a table with `positive` and `negative`, lists of as many
  texts; questions are ours or, where the file has a list `questions`, its own.

  Raises:
    ValueError: too few questions, an unknown name, or a file that is not of the form.
  """
  if settings.bank == "traits":
    lexicon = load_poles()

    def wordings(trait: str, sign: int) -> tuple[str, ...]:
      return tuple(" ".join(halves) for halves in lexicon[Pole(trait, sign)])

    texts = {f"{t}+": (wordings(t, 1), wordings(t, -1)) for t in settings.only or TRAITS}
    asked = [q.text for q in load_questions("self")]
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
  return [Contrast(name, x, y, train, held_out) for name, (x, y) in texts.items()]


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
  model: Model, chats: list[Chat], *, max_new_tokens: int, temperature: float, seed: int
) -> list[Chat]:
  """Have chats answered, and return question and answer without the system text.

  What a direction reads then is the answer, and not that there is a system text (an answer of no
  token stands as it is, and is an error to read).
  """
  answers = model.generate(chats, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
  return [
    [chat[-1], {"role": "assistant", "content": answer.text}]
    for chat, answer in zip(chats, answers, strict=True)
  ]
