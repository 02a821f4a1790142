"""Built-in persona texts and placebo messages: length, words, repeats; and what the check finds."""

import re

import pytest

from persona_jax.personas import baselines, persona
from persona_jax.personas.persona import Lexicon, Pole
from persona_jax.personas.schema import BUILT_IN
from persona_jax.personas.wording import TextProblem, banned_words, check_texts

WORDS_25 = " ".join(["Tea"] * 25)


def lexicon(plus: tuple[str, str], minus: tuple[str, str], declared: bool = False) -> Lexicon:
  texts = {Pole("drink", 1): (plus,), Pole("drink", -1): (minus,)}
  return Lexicon("drinks", texts, {"drink": "tea over coffee"}, declared)


def describing_words() -> set[str]:
  """Returns the adjectives that the first sentence of each half a of the Big Five lists."""
  plain = set("you are a an and of to get along with much without person full hard easily".split())
  plain |= {"often", "usually"}
  return {
    word
    for paraphrases in persona.load_poles().values()
    for a, _ in paraphrases
    for word in re.findall(r"[a-z-]+", a.split(".")[0].lower())
  } - plain


@pytest.mark.parametrize("name", ["big_five", "placebo4"])
def test_texts_that_declare_no_safety_words_have_nothing_amiss(name: str) -> None:
  assert not persona.load_poles(name).uses_safety_words
  assert check_texts(persona.load_poles(name)) == []


def test_facet_faithful_has_banned_words_of_c_and_a_alone_and_declares_them() -> None:
  problems = check_texts(persona.load_poles("facet_faithful"))
  assert {(p.kind, p.declared) for p in problems} == {("banned word", True)}
  assert {p.where[0] for p in problems} == {"C", "A"}
  found = " ".join(p.detail for p in problems)
  for word in ("dutifulness", "obey", "compliance", "honestly", "refuse"):
    assert word in found


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_lexica_have_three_paraphrases(name: str) -> None:
  assert {len(texts) for texts in persona.load_poles(name).values()} == {3}


NEO_FACETS = {  # of the NEO-PI-R (Costa and McCrae 1992), by the stem of their names
  "O": ("fantasy", "aesthetic", "feelings", "actions", "ideas", "values"),
  "C": ("competen", "order", "dut", "achievement", "disciplined|discipline", "deliberat|hasty"),
  "E": ("warm|distant", "gregarious|solitary", "assertive", "activ", "excit", "positive emotion"),
  "A": (
    "trust", "straightforward|devious", "altruis|selfish", "complian|defiant", "modest",
    "tender-minded|tough-minded",
  ),
  "N": (
    "anxi|unworried", "hostility|ang", "depress", "conscious", "impulsive|controlled",
    "vulnerab|hardy",
  ),
}  # fmt: skip


def test_each_paraphrase_of_facet_faithful_names_the_six_facets_of_its_trait() -> None:
  for pole, paraphrases in persona.load_poles("facet_faithful").items():
    for a, b in paraphrases:
      first_sentences = f"{a.split('.')[0]} {b.split('.')[0]}".lower()
      for facet in NEO_FACETS[pole.trait]:
        assert re.search(facet, first_sentences), (pole, facet, first_sentences)


def test_placebo4_is_both_sides_of_four_contrasts() -> None:
  personas = persona.load_personas("placebo4", "placebo4")
  assert [p.label for p in personas] == [
    f"{trait}{sign}" for trait in ("drink", "spelling", "daytime", "tense") for sign in "+-"
  ]
  assert [p.name for p in personas[::2]] == ["tea", "british", "morning", "past"]


def test_placebos_use_no_describing_word_of_a_pole() -> None:
  texts = list(baselines.load_placebo_texts())
  texts += [p.text(k) for p in persona.load_personas("placebo4") for k in range(3)]
  assert {"kind", "organized", "calm"} <= describing_words()
  for text in texts:
    assert not describing_words() & set(re.findall(r"[a-z-]+", text.lower())), text


def test_a_text_of_46_or_of_55_words_is_a_problem() -> None:
  a, b = "You are fond of tea and of little else.", " ".join(["Cup"] * 37)
  assert check_texts(lexicon((a, b), (WORDS_25, WORDS_25 + " too"))) == [
    TextProblem("length", "drink+ 0", "46 words, 47 to 54 fit")
  ]
  b += " Cup" * 9
  assert check_texts(lexicon((a, b), (WORDS_25, WORDS_25 + " too"))) == [
    TextProblem("length", "drink+ 0", "55 words, 47 to 54 fit")
  ]


def test_composites_are_measured_too() -> None:
  texts = {
    Pole(trait, sign): ((f"{trait}{sign} " * 20, f"{trait}{sign} so " * 15),)
    for trait in ("x", "y")
    for sign in (1, -1)
  }
  found = check_texts(Lexicon("short", texts, {"x": "x", "y": "y"}))
  assert [p.where for p in found] == ["x+ y+ 0", "x+ y- 0", "x- y+ 0", "x- y- 0"]


def test_banned_words_are_found_in_any_case_and_between_hyphens() -> None:
  text = "Safe? A rule-bound user, never careless, works carefully."
  assert banned_words(text) == ["safe", "rule", "user"]


def test_banned_words_are_marked_as_declared_if_the_lexicon_says_so() -> None:
  plus, minus = (WORDS_25, WORDS_25 + " refuse"), (WORDS_25 + " x", WORDS_25 + " y")
  (undeclared,) = check_texts(lexicon(plus, minus))
  (declared,) = check_texts(lexicon(plus, minus, declared=True))
  assert str(undeclared) == "drink+ 0 b: banned word: refuse"
  assert str(declared) == "drink+ 0 b: banned word: refuse (declared)"


def test_a_half_found_twice_is_a_problem_whatever_its_case() -> None:
  found = check_texts(lexicon((WORDS_25, WORDS_25 + " x"), (WORDS_25.lower(), WORDS_25 + " y")))
  assert found == [TextProblem("repeat", "drink- 0 a", "the same as drink+ 0 a")]
