"""Ratings of answers against an independent Llama, and what a missing one is."""

import dataclasses

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.studies.persona_non_grata.ratings import LETTERS, Answer, rate, rating_question
from tests.fixtures import TEMPLATE, Tiny
from tests.reference import numpy_llama
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama, vocabulary

ORDERS = ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1))
ANSWERS = (
  Answer("w5 w6", "w7 w8 w9", "calm"),
  Answer("w5 w6", "w7 w8 w9", "brave"),
  Answer("w10", "w11", "calm"),
)


@dataclasses.dataclass(frozen=True)
class Reader:
  """A random Llama that knows the words of the ratings."""

  tiny: Tiny
  words: list[str]

  def ids(self, text: str) -> list[int]:
    return [self.words.index(word) for word in text.split()]

  def p_of_options(self, answer: Answer, order: tuple[int, ...], lead: str = "") -> np.ndarray:
    """Works out p(letter) [5] by the reference."""
    asked = rating_question(answer.trait, order)
    chat = f"w3 {answer.question} w4 {answer.text} w3 {asked} w4 {lead}"
    logits_TV = numpy_llama.forward(self.tiny.config, self.tiny.tensors, self.ids(chat)).logits_TV
    logprob_V = numpy_llama.log_softmax(logits_TV[-1:])[0]
    return np.exp(logprob_V[[self.words.index(letter) for letter in LETTERS]])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
  directory = tmp_path_factory.mktemp("reader")
  config, tensors = random_llama()
  texts = [rating_question(trait, order) for trait in ("calm", "brave") for order in ORDERS]
  needed = list(dict.fromkeys([*LETTERS, *(word for text in texts for word in text.split())]))
  words = [*vocabulary(config)[: config["vocab_size"] - len(needed)], *needed]
  write_checkpoint(directory, config, tensors, words, TEMPLATE)
  model = pj.load(directory, dtype="float32")
  return Reader(Tiny(model, config, tensors, directory), words)


@pytest.mark.parametrize("lead", ["", "w12"])
def test_a_rating_is_the_expected_level_averaged_over_both_orders(
  reader: Reader, lead: str
) -> None:
  ratings, masses = rate(reader.tiny.model, ANSWERS, lead=lead, least_mass=0.0)
  for answer, rating, mass in zip(ANSWERS, ratings, masses, strict=True):
    p_OJ = np.stack([reader.p_of_options(answer, order, lead) for order in ORDERS])
    levels = (p_OJ * np.asarray(ORDERS)).sum(axis=1) / p_OJ.sum(axis=1)
    assert rating == pytest.approx(levels.mean(), abs=1e-4)
    assert mass == pytest.approx(p_OJ.sum(axis=1).min(), rel=1e-3)
  assert len(set(ratings.round(6))) == 3  # each answer and each trait has its own


def test_options_without_the_mass_in_either_order_give_no_rating(reader: Reader) -> None:
  (answer, *_) = ANSWERS
  masses = [reader.p_of_options(answer, order).sum() for order in ORDERS]
  between = float(np.mean(masses))
  (missing,), _ = rate(reader.tiny.model, [answer], least_mass=between)
  assert np.isnan(missing)
  (rated,), _ = rate(reader.tiny.model, [answer], least_mass=min(masses) * 0.99)
  assert 1 <= rated <= 5


def test_no_answers_have_no_ratings(reader: Reader) -> None:
  ratings, masses = rate(reader.tiny.model, [])
  assert ratings.shape == masses.shape == (0,)


def test_the_question_names_the_trait_and_shows_the_levels_in_the_given_order() -> None:
  first, *options, last = rating_question("tea over coffee", ORDERS[1]).splitlines()
  assert '"tea over coffee"' in first
  assert options == ["A. very high", "B. high", "C. neither low nor high", "D. low", "E. very low"]
  assert last == "Reply with one letter."
