"""Degenerate output: each rule at its boundary."""

import pandas as pd
import pytest

from persona_jax.scorers import Degenerate
from persona_jax.scorers.degenerate import unique_ngram_share

SOUND = "Fill the kettle, warm the pot, and let the leaves stand for three minutes."


@pytest.mark.parametrize("text", ["", "  \n ", "Yes.", "Oh yes!"])
def test_fewer_than_three_words_is_empty(text: str) -> None:
  assert Degenerate().reason_of(text) == "empty"


def test_three_words_are_not_empty() -> None:
  assert Degenerate().reason_of("Oh yes, please.") == ""


def test_unique_share_counts_distinct_4grams() -> None:
  # 16 words a b a b …: 13 4-grams, 2 distinct.
  assert unique_ngram_share(["a", "b"] * 8) == 2 / 13
  assert unique_ngram_share(list("abcd")) == 1.0
  assert unique_ngram_share(list("abc")) == 1.0


def test_repetition_begins_below_one_half() -> None:
  # 19 words have 16 4-grams. A loop of 8 words has 8 distinct ones, a loop of 7 words 7.
  eight = ("one two three four five six seven eight " * 3).split()[:19]
  seven = ("one two three four five six seven " * 3).split()[:19]
  assert unique_ngram_share(eight) == 0.5
  assert unique_ngram_share(seven) == 7 / 16
  assert Degenerate().reason_of(" ".join(eight)) == ""
  assert Degenerate().reason_of(" ".join(seven)) == "repetition"


def test_repetition_needs_sixteen_words() -> None:
  assert Degenerate().reason_of("tea " * 15) == ""
  assert Degenerate().reason_of("tea " * 16) == "repetition"


def test_repetition_ignores_case_and_punctuation() -> None:
  assert Degenerate().reason_of("Tea, tea! TEA; tea... " * 5) == "repetition"


@pytest.mark.parametrize(
  "text",
  [
    "!!!! ???? ....",
    "{}[]<>||\\\\ == ++ a",
    "\U0001f600" * 12,
    "\ufffd\ufffd\ufffd so it is \ufffd" * 4,
  ],
)
def test_what_is_not_letters_is_no_text(text: str) -> None:
  assert Degenerate().reason_of(text) == "non_text"


@pytest.mark.parametrize(
  "text",
  [
    SOUND,
    "It costs 12 €, which is 3 + 9.",
    "Great idea! \U0001f600 Let us bake.",
    "Das Wasser steigt und fällt zweimal am Tag.",
    "print('bread rises')  # it does",
  ],
)
def test_sound_text_passes(text: str) -> None:
  assert Degenerate().reason_of(text) == ""


def test_another_script_than_the_prompts_is_a_change() -> None:
  russian = "Чайник нужно сначала хорошо нагреть."
  assert Degenerate().reason_of(russian, "How do you make tea?") == "script_change"
  assert Degenerate().reason_of(russian, "Как заварить чай?") == ""
  assert Degenerate().reason_of(russian) == ""


def test_a_few_foreign_letters_are_no_change_of_script() -> None:
  text = "The letter π stands for the ratio of a circle's girth to its width."
  assert Degenerate().reason_of(text, "What is pi?") == ""


def test_score_gives_flags_reasons_and_keeps_missing_text_missing() -> None:
  table = pd.DataFrame({"prompt": ["How do you make tea?"] * 3, "text": [SOUND, "tea " * 20, None]})
  scored = Degenerate().score(table)
  assert scored["degenerate"].dtype == "boolean"
  assert scored["degenerate"].tolist()[:2] == [False, True]
  assert scored["degenerate"].isna().tolist() == [False, False, True]
  assert scored["degenerate_reason"].tolist() == ["", "repetition", ""]


def test_a_refusal_is_not_degenerate() -> None:
  assert Degenerate().reason_of("I can't help with that.") == ""


def test_validation_shows_that_fluent_nonsense_passes() -> None:
  nonsense = "The seven of the window is a green before the early soup, and never the door it sang."
  labelled = pd.DataFrame(
    {
      "text": [
        "tea " * 20,
        "",
        "???? !!!!",
        nonsense,
        SOUND,
        "Oh yes, please.",
        "The lake is deep.",
      ],
      "label": [True, True, True, True, False, False, None],
    }
  )
  result = Degenerate().validate(labelled)
  assert (result["n"], result["n_compared"], result["missing_labels"]) == (7, 6, 1)
  assert result["classes"][True]["recall"] == 0.75
  assert result["classes"][False]["recall"] == 1.0
  # p_o = 5/6, p_e = (3·4 + 3·2) / 36 = 1/2.
  assert result["kappa"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"min_unique_4grams": 1.5}, "min_unique_4grams is 1.5; a share"),
    ({"min_words": 0}, "min_words is 0; at least 1"),
    ({"repetition_from": 3}, "repetition_from is 3; at least 4"),
  ],
)
def test_faulty_thresholds_are_refused(options: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    Degenerate(**options)
