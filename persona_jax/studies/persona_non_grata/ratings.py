"""How high in a trait the writer of an answer comes across, rated by the unedited model itself.

The model reads a question and its answer, without the text that the answer was given under, and is
then asked how high the writer is in the trait. The rating is Σ p(j)·j over five options, from very
low (1) to very high (5), p renormalised to them: no generation and no judge (as expected Likert
ratings, Serapio-García et al. 2023, arXiv 2307.00184). Options are shown in both orders and ratings
averaged, for models prefer a place. The wording is our own: no item of a questionnaire that traits
are measured by is asked here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt

LETTERS = "ABCDE"
LEVELS = ("very low", "low", "neither low nor high", "high", "very high")
_ORDERS = ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1))  # what the letters stand for


class Answer(NamedTuple):
  """An answer and the trait it is rated on.

  Attributes:
    question: what was asked.
    text: the answer; not blank.
    trait: the trait's name, such as "conscientiousness".
  """

  question: str
  text: str
  trait: str


def rating_question(trait: str, order: Sequence[int]) -> str:
  """Return what the model is asked of an answer.

  Args:
    trait: the trait's name.
    order: level, 1 to 5, that each letter stands for.
  """
  lines = [f"{a}. {LEVELS[level - 1]}" for a, level in zip(LETTERS, order, strict=True)]
  return "\n".join(
    [
      f'How high in "{trait}" does the writer of that answer come across?',
      *lines,
      "Reply with one letter.",
    ]
  )


def rate(
  model: Model,
  answers: Sequence[Answer],
  *,
  lead: str = "",
  least_mass: float = 0.5,
  progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Rate answers on traits by the exact probabilities of the options.

  Args:
    model: the model.
    answers: N answers, each with a trait.
    lead: text that the reply is made to begin with; see `scorers.choice.Choices`.
    least_mass: share of the next token's probability that the options need together, in either
      order, for there to be a rating.
    progress: called with the number of options scored, of 10 an answer.

  Returns:
    Ratings, float64 [N], 1 to 5, NaN where the model does not choose between the options; and the
    least probability that the options have together, float64 [N].
  """
  chats: list[Prompt] = []
  letters: list[str] = []
  for answer in answers:
    for order in _ORDERS:
      chat: list[dict[str, str]] = [
        {"role": "user", "content": answer.question},
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": rating_question(answer.trait, order)},
      ]
      if lead:
        chat.append({"role": "assistant", "content": lead})
      chats += [chat] * len(LETTERS)
      letters += LETTERS
  logprob_M = model.score(chats, letters, progress=progress)
  p_NOJ = np.exp(logprob_M).reshape(len(answers), len(_ORDERS), len(LETTERS))
  mass_NO = p_NOJ.sum(axis=-1)
  expected_NO = np.full_like(mass_NO, np.nan)
  np.divide((p_NOJ * np.asarray(_ORDERS)).sum(axis=-1), mass_NO, out=expected_NO, where=mass_NO > 0)
  mass_N = mass_NO.min(axis=-1)
  return np.where(mass_N >= least_mass, expected_NO.mean(axis=-1), np.nan), mass_N
