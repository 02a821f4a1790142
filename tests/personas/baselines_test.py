"""Placebo messages and shuffled texts."""

from pathlib import Path

import pytest

from persona_jax.personas import baselines, persona
from persona_jax.personas.wording import banned_words


def test_there_are_three_placebo_texts_as_long_as_a_persona() -> None:
  texts = baselines.load_placebo_texts()
  assert len(set(texts)) == 3
  assert [len(text.split()) for text in texts] == [50, 51, 49]
  assert all("weekday" in text and "You" not in text for text in texts)
  assert [banned_words(text) for text in texts] == [[], [], []]


def test_placebo_texts_come_from_a_file(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text('placebo = ["A room.", "A street."]', "utf-8")
  assert baselines.load_placebo_texts(path) == ("A room.", "A street.")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("placebo = []", "mine.toml: key 'placebo' must be a non-empty list"),
    ('placebos = ["A room."]', "mine.toml: unknown key 'placebos'; placebo fits"),
  ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(content, "utf-8")
  with pytest.raises(ValueError, match=message):
    baselines.load_placebo_texts(path)


def test_shuffled_words_are_the_same_words_in_another_order() -> None:
  text = persona.load_personas()[11].text()
  shuffled = baselines.shuffled_words(text, 0)
  assert sorted(shuffled.split()) == sorted(text.split())
  assert shuffled != text
  assert baselines.shuffled_words(text, 1) != shuffled


def test_shuffling_gives_the_same_order_on_every_machine() -> None:
  assert baselines.shuffled_words("one two three four five six", 3) == (
    "one six five four three two"
  )


def test_shuffling_leaves_no_word_where_it_was_more_often_than_chance() -> None:
  # The expected number of fixed points of a random permutation is 1, its variance 1.
  words = [f"w{i}" for i in range(50)]
  fixed = [
    sum(
      a == b
      for a, b in zip(words, baselines.shuffled_words(" ".join(words), s).split(), strict=True)
    )
    for s in range(400)
  ]
  assert abs(sum(fixed) / 400 - 1) < 4 / 20


@pytest.mark.parametrize("text", ["", "  ", "word"])
def test_texts_too_short_to_shuffle_stay(text: str) -> None:
  assert baselines.shuffled_words(text, 0) == text.strip()
