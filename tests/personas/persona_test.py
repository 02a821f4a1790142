"""Persona texts: matched length, vocabulary, contrasts, and the errors of their files."""

import hashlib
import itertools
import re
from pathlib import Path

import pytest

from persona_jax.data.near_copies import near_copies
from persona_jax.personas import persona
from persona_jax.personas.persona import Lexicon, Persona, Pole
from persona_jax.personas.wording import banned_words

# Words of safety and of instruction following, with their inflections.
BANNED = re.compile(
  r"\b(?:safe|safely|safety|unsafe|harm|harms|harmful|harmless|rules?|laws?|lawful|duty|duties|"
  r"dutiful|honest|honestly|honesty|dishonest|help|helps|helpful|helping|comply|complies|compliant|"
  r"compliance|obey|obeys|obedient|refuse|refuses|refusal|careful|assistant|users?)\b"
)
POLES = [Pole(trait, sign) for trait in "OCEAN" for sign in (1, -1)]
COMPOSITES = [
  (first, second)
  for first, second in itertools.product(POLES, POLES)
  if "OCEAN".index(first.trait) < "OCEAN".index(second.trait)
]


def words(text: str) -> int:
  return len(text.split())


def test_there_are_twelve_personas_in_the_fixed_order() -> None:
  labels = "O+|O-|C+|C-|E+|E-|A+|A-|N+|N-|C- A-|C+ A+".split("|")
  personas = persona.load_personas()
  assert [p.name for p in personas] == [f"P{i}" for i in range(1, 13)]
  assert [p.label for p in personas] == labels


def test_only_p12_is_documented() -> None:
  assert [p.name for p in persona.load_personas() if p.documented] == ["P12"]


def test_poles_have_48_to_53_words() -> None:
  lexicon = persona.load_poles()
  lengths = {
    words(persona.Persona("x", (pole,), lexicon).text(k)) for pole in POLES for k in range(3)
  }
  assert (min(lengths), max(lengths)) == (48, 53)


def test_all_40_composites_have_47_to_54_words() -> None:
  lexicon = persona.load_poles()
  assert len(COMPOSITES) == 40
  lengths = {
    words(persona.Persona("x", pair, lexicon).text(k)) for pair in COMPOSITES for k in range(3)
  }
  assert (min(lengths), max(lengths)) == (47, 54)


def test_there_are_sixty_distinct_half_texts_of_known_content() -> None:
  lexicon = persona.load_poles()
  halves = [half for pole in POLES for pair in lexicon[pole] for half in pair]
  assert len(set(halves)) == 60
  assert hashlib.sha256("\n".join(halves).encode()).hexdigest() == (
    "19189e505b6a4e570d486e3dfd4162444fd9612f367725877f3ea235ef7f6db8"
  )


def test_no_half_text_uses_words_of_safety_or_obedience() -> None:
  lexicon = persona.load_poles()
  halves = [half for pole in POLES for pair in lexicon[pole] for half in pair]
  assert [half for half in halves if BANNED.search(half.lower())] == []


def test_text_of_a_pole_is_both_halves_and_of_a_composite_two_first_halves() -> None:
  lexicon = persona.load_poles()
  pole, composite = persona.load_personas()[2], persona.load_personas()[11]
  c, a = lexicon[Pole("C", 1)], lexicon[Pole("A", 1)]
  for k in range(3):
    assert pole.text(k) == f"{c[k][0]} {c[k][1]}"
    assert composite.text(k) == f"{c[k][0]} {a[k][0]}"


def test_text_of_p12_is_fixed() -> None:
  assert persona.load_personas()[11].text() == (
    "You are organized, thorough and efficient. You plan ahead, keep everything in its place, pay"
    " attention to detail, and finish each piece of work you start. You are kind, warm and"
    " cooperative. You trust people, feel for them, share what you have, and prefer agreement and"
    " peace to winning an argument."
  )


def test_contrast_reverses_every_pole_and_twice_is_the_same_text() -> None:
  personas = persona.load_personas()
  p11, p12 = personas[10], personas[11]
  assert p12.contrast().label == "C- A-"
  assert [p12.contrast().text(k) for k in range(3)] == [p11.text(k) for k in range(3)]
  for p in personas:
    assert p.contrast().contrast().text(1) == p.text(1)
    assert p.contrast().text() != p.text()


def test_traits_are_named_in_the_order_of_the_text() -> None:
  assert persona.load_personas()[11].traits == ("C", "A")


def test_personas_can_be_dictionary_keys() -> None:
  assert len(set(persona.load_personas() + persona.load_personas())) == 12


@pytest.mark.parametrize("replicate", [-1, 3])
def test_a_paraphrase_out_of_range_is_refused(replicate: int) -> None:
  with pytest.raises(ValueError, match=f"P1 has no paraphrase {replicate}; 0 to 2 fit"):
    persona.load_personas()[0].text(replicate)


@pytest.mark.parametrize("text", ["C", "C±", "+", "C+ ", "", "C\u2212", "C +", "drink-ing+", "é+"])
def test_what_is_no_pole_is_refused(text: str) -> None:
  with pytest.raises(ValueError, match="is no pole"):
    Pole.parse(text)


def test_a_pole_reads_back_as_it_is_written() -> None:
  poles = [*POLES, Pole("drink", 1), Pole("b_2", -1)]
  assert [Pole.parse(str(pole)) for pole in poles] == poles


@pytest.mark.parametrize(("trait", "sign"), [("C+", 1), ("", 1), ("hot drink", -1), ("C", 0)])
def test_a_pole_of_no_trait_or_no_sign_is_refused(trait: str, sign: int) -> None:
  with pytest.raises(ValueError, match="a trait is letters, digits and _"):
    Pole(trait, sign)


def test_a_persona_of_a_pole_without_text_is_refused() -> None:
  with pytest.raises(ValueError, match=r"lexicon big_five has no text; O\+, O-, C\+, .* N- fit"):
    Persona("x", (Pole("c", 1),), persona.load_poles())


def test_a_lexicon_of_one_side_of_a_trait_is_refused() -> None:
  texts = {Pole("C", 1): (("You are neat.", "You plan."),)}
  with pytest.raises(ValueError, match=r"has texts of C\+; its traits need those of C\+, C-"):
    Lexicon("half", texts, {"C": "conscientiousness"})


def test_a_persona_of_two_poles_of_one_trait_is_refused() -> None:
  with pytest.raises(ValueError, match="two of different traits"):
    persona.Persona("x", (Pole("C", 1), Pole("C", -1)), persona.load_poles())


def built_in() -> str:
  return (Path(persona.__file__).parent / "big_five.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('P1 = ["O+"]', 'P1 = ["Q+"]', r"mine.toml: key 'personas.P1': .* big_five has no text"),
    ('P1 = ["O+"]', 'P1 = ["O"]', r"mine.toml: key 'personas.P1': 'O' is no pole"),
    ('P1 = ["O+"]', 'P1 = "O+"', r"mine.toml: key 'personas.P1' must be a list of poles"),
    ('P1 = ["O+"]', 'P1 = ["O+", "O-"]', "mine.toml: key 'personas.P1': .*different traits"),
    ('[[poles."O+"]]', '[[poles."Q+"]]', r"mine.toml: key 'poles' must be a table with the keys O"),
    (
      'a = "You are imagin',
      'c = "You are imagin',
      r"'poles.O\+\[0\]' must be a table with .* a and b",
    ),
    (
      'a = "You are imagin',
      'a = " You are imagin',
      r"'poles.O\+\[0\]' must hold non-empty strings",
    ),
    ('name = "big_five"', "name = 5", "mine.toml: key 'name' must be a non-empty string; got 5"),
    ('name = "big_five"', 'name = "x"\nnmae = "y"', "mine.toml: unknown key 'nmae'; .*name"),
    ('documented = ["P12"]', 'documented = ["P13"]', "key 'documented' must list names"),
    ('name = "big_five"', "name = ", "mine.toml: not a TOML file"),
    ('name = "big_five"', 'name = "x"\nuses_safety_words = 1', "must be true or false; got 1"),
    ("[sets]", "[[sets]]", "mine.toml: key 'sets' must be a table"),
    ("[sets]", "[sets]\nmine = []", "key 'sets.mine' must be 'closed' or a non-empty list"),
    ("[sets]", '[sets]\nmine = "open"', "key 'sets.mine' must be 'closed' or a non-empty list"),
    ("[sets]", '[sets]\nmine = ["P13"]', r"key 'sets.mine' must list names .* P1, P2, .* fit"),
    ("[sets]", '[sets]\nmine = ["P1", "P1"]', "key 'sets.mine' must list names .* each once"),
    ("[sets]", '[traits]\n"hot drink" = "tea"\n[sets]', "key 'traits' has the id 'hot drink'"),
    ("[sets]", "[traits]\nC = 1\n[sets]", "key 'traits.C' must hold non-empty strings"),
    (
      "[sets]",
      '[traits]\nQ = "quiet"\n[sets]',
      r"key 'poles' must be a table with the keys Q\+, Q-",
    ),
  ],
)
def test_a_faulty_file_is_refused_by_file_key_and_what_fits(
  tmp_path: Path, old: str, new: str, message: str
) -> None:
  assert old in built_in()
  path = tmp_path / "mine.toml"
  path.write_text(built_in().replace(old, new, 1), encoding="utf-8")
  with pytest.raises(ValueError, match=message):
    persona.load_personas(path)


def test_poles_with_unequal_numbers_of_paraphrases_are_refused(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(built_in() + '\n[[poles."N-"]]\na = "You are."\nb = "You do."\n', "utf-8")
  with pytest.raises(ValueError, match="as many paraphrases as the others"):
    persona.load_poles(path)


def test_an_unknown_set_is_refused_and_those_there_are_named() -> None:
  with pytest.raises(ValueError, match="big_five.toml: no set 'core13'; core12, closed50 fit"):
    persona.load_personas(set="core13")


def test_a_misspelt_name_of_a_built_in_file_brings_their_names() -> None:
  with pytest.raises(FileNotFoundError, match="one of big_five, facet_faithful, placebo4"):
    persona.load_personas("facet_faithfull")


def test_core12_is_all_that_the_built_in_file_names() -> None:
  assert persona.load_personas(set="core12") == persona.load_personas()
  assert persona.load_personas("big_five") == persona.load_personas()


def test_closed50_is_the_poles_and_then_the_composites_in_a_fixed_order() -> None:
  closed = persona.load_personas(set="closed50")
  assert [p.poles for p in closed[:10]] == [(pole,) for pole in POLES]
  assert [p.name for p in closed[:10]] == [f"P{i}" for i in range(1, 11)]
  assert {p.poles for p in closed[10:]} == set(COMPOSITES)
  assert [p.name for p in closed[10:15]] == ["O+C+", "O+C-", "O-C+", "O-C-", "O+E+"]
  assert len({p.name for p in closed}) == len(closed) == 50
  assert [p.name for p in closed if p.documented] == ["P12"]


def test_closed50_holds_the_three_by_three_table_of_c_and_a_but_its_centre() -> None:
  # Rows C-, none, C+; columns A-, none, A+. The centre is no persona, the baseline.
  cells = {frozenset(map(str, p.poles)): p.name for p in persona.load_personas(set="closed50")}
  table = [
    [cells.get(frozenset({c, a} - {""})) for a in ("A-", "", "A+")] for c in ("C-", "", "C+")
  ]
  assert table == [["P11", "P4", "C-A+"], ["P8", None, "P7"], ["C+A-", "P3", "P12"]]


def test_closed50_is_closed_under_signed_permutations_of_the_traits() -> None:
  members = {frozenset(p.poles) for p in persona.load_personas(set="closed50")}
  moved = dict(zip("OCEAN", "ENOCA", strict=True))
  for signs in itertools.product((1, -1), repeat=5):
    sign = dict(zip("OCEAN", signs, strict=True))
    image = {frozenset(Pole(moved[p.trait], sign[p.trait] * p.sign) for p in m) for m in members}
    assert image == members


MINE = """\
name = "mine"
[traits]
drink = "tea over coffee"
C = "conscientiousness"
[personas]
tidy_tea = ["C+", "drink+"]
tea = ["drink+"]
[sets]
all = "closed"
back = ["tea", "tidy_tea"]
""" + "".join(
  f'[[poles."{pole}"]]\na = "You are {pole}."\nb = "Very {pole}."\n'
  for pole in ("C+", "C-", "drink-", "drink+")
)


def test_a_file_brings_its_own_traits_personas_and_sets(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(MINE, "utf-8")
  tidy_tea, tea = persona.load_personas(path)
  assert tidy_tea.text() == "You are C+. You are drink+."
  assert tea.text() == "You are drink+. Very drink+."
  assert tea.contrast().text() == "You are drink-. Very drink-."
  assert [p.name for p in persona.load_personas(path, "back")] == ["tea", "tidy_tea"]
  assert persona.load_poles(str(path)).traits["drink"] == "tea over coffee"


def test_a_closed_set_keeps_the_names_and_the_orders_of_poles_of_a_file(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(MINE, "utf-8")
  closed = persona.load_personas(path, "all")
  assert [(p.name, p.label) for p in closed] == [
    ("tea", "drink+"), ("drink-", "drink-"), ("C+", "C+"), ("C-", "C-"),
    ("tidy_tea", "C+ drink+"), ("drink+C-", "drink+ C-"),
    ("drink-C+", "drink- C+"), ("drink-C-", "drink- C-"),
  ]  # fmt: skip


def test_a_closed_set_with_two_personas_of_one_name_is_refused(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(MINE.replace("tidy_tea =", "C- =").replace('"tidy_tea"', '"C-"'), "utf-8")
  with pytest.raises(ValueError, match="key 'personas.C-': .* another name"):
    persona.load_personas(path, "all")


def test_a_file_without_sets_says_so(tmp_path: Path) -> None:
  path = tmp_path / "mine.toml"
  path.write_text(re.sub(r"\[sets\].*?(?=\[\[)", "", MINE, count=1, flags=re.DOTALL), "utf-8")
  with pytest.raises(ValueError, match="no set 'all'; it has no sets"):
    persona.load_personas(path, "all")


def test_facet_faithful_has_the_same_personas_in_other_words() -> None:
  plain, facets = persona.load_personas(), persona.load_personas("facet_faithful")
  assert [(p.name, p.poles, p.documented) for p in facets] == [
    (p.name, p.poles, p.documented) for p in plain
  ]
  assert not {p.text(k) for p in plain for k in range(3)} & {
    p.text(k) for p in facets for k in range(3)
  }
  assert len(persona.load_personas("facet_faithful", "closed50")) == 50


def test_recipe_of_a_composite_has_its_traits_with_signs_and_pairs_of_texts() -> None:
  p12 = persona.load_personas()[11]
  recipe = p12.recipe()
  assert (recipe.persona, recipe.contrast) == ("P12", "high_low")
  assert recipe.parts == (("C", 1), ("A", 1))
  assert recipe.positive == tuple(p12.text(k) for k in range(3))
  assert recipe.negative == tuple(p12.contrast().text(k) for k in range(3))
  assert p12.contrast().recipe().parts == (("C", -1), ("A", -1))


def test_recipes_against_neutral_have_no_system_message_on_one_side() -> None:
  p4 = persona.load_personas()[3]
  high, low = p4.recipe("high_neutral"), p4.recipe("low_neutral")
  assert (high.positive, high.negative) == (p4.recipe().positive, (None, None, None))
  assert (low.positive, low.negative) == ((None, None, None), p4.recipe().negative)
  assert high.parts == low.parts == (("C", -1),)


def test_an_unknown_contrast_of_a_recipe_is_refused() -> None:
  with pytest.raises(ValueError, match="'up_down'; high_low, high_neutral, low_neutral fit"):
    persona.load_personas()[0].recipe("up_down")  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match="absent.toml"):
    persona.load_personas(tmp_path / "absent.toml")


def test_there_are_120_neutral_24_dose_12_self_and_3_questions_a_trait() -> None:
  assert len(persona.load_questions("neutral")) == 120
  assert len(persona.load_questions("dose")) == 24
  assert len(persona.load_questions("self")) == 12
  assert [q.trait for q in persona.load_questions("trait")] == [
    t for t in "OCEAN" for _ in range(3)
  ]


def all_questions() -> list[persona.Question]:
  kinds: tuple[persona.QuestionKind, ...] = ("neutral", "dose", "trait", "self")
  return [question for kind in kinds for question in persona.load_questions(kind)]


def test_questions_and_their_ids_are_distinct_over_all_kinds() -> None:
  questions = all_questions()
  assert len({q.text.lower() for q in questions}) == len(questions) == 171
  assert len({q.question_id for q in questions}) == 171


def test_neutral_questions_are_numbered_on_from_the_first_60() -> None:
  questions = persona.load_questions("neutral")
  assert [q.question_id for q in questions] == [f"neutral-{n:02d}" for n in range(120)]
  assert questions[59].text == "How would you describe the taste of an apple?"


def test_questions_are_questions_without_words_of_safety() -> None:
  for question in all_questions():
    assert question.text.endswith("?")
    assert not BANNED.search(question.text.lower())
    assert not banned_words(question.text)


def test_no_questions_are_near_copies_nor_neutral_ones_by_runs_of_three_words() -> None:
  texts = [q.text for q in all_questions()]
  assert near_copies(texts) == list(range(len(texts)))
  neutral = [q.text for q in persona.load_questions("neutral")]
  assert near_copies(neutral, words=3) == list(range(120))


def test_neutral_and_dose_questions_use_no_describing_word_of_a_pole() -> None:
  # The first sentence of each half a lists adjectives: "You are kind, warm and cooperative."
  plain = set("you are a an and of to get along with much without person full hard easily".split())
  plain |= {"often", "usually"}
  describing = set()
  for paraphrases in persona.load_poles().values():
    for a, _ in paraphrases:
      describing |= set(re.findall(r"[a-z-]+", a.split(".")[0].lower())) - plain
  assert {"kind", "organized", "matter-of-fact", "thick-skinned"} <= describing
  for question in persona.load_questions("neutral") + persona.load_questions("dose"):
    assert not describing & set(re.findall(r"[a-z-]+", question.text.lower())), question


def test_an_unknown_kind_of_question_is_refused() -> None:
  with pytest.raises(ValueError, match="'nope'; 'neutral', 'dose', 'trait' or 'self' fits"):
    persona.load_questions("nope")  # type: ignore[arg-type]
