"""Multiple choice: scores by hand from `model.score`, files of items, ratings of the inventory."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.data.items import SelfReportItem, load_ipip120
from persona_jax.scorers.choice import (
  COLUMNS,
  ChoiceItem,
  Choices,
  load_choice_items,
  rating_items,
)
from tests.fixtures import Tiny
from tests.planted import files
from tests.planted import world as planted

# One order with options of one and two tokens; two orders; a reverse key; another trait.
ITEMS = [
  ChoiceItem("c1", "C", 1, ("w5 w6",), (("w10", "w11 w12"),), ((1.0, 0.0),)),
  ChoiceItem("c2", "C", 1, ("w7", "w8 w7"), (("w20", "w21"), ("w21", "w20")), ((1, 5), (5, 1))),
  ChoiceItem("c3", "C", -1, ("w7",), (("w20", "w21", "w22"),), ((1, 2, 3),)),
  ChoiceItem("a1", "A", 1, ("w9",), (("w30", "w31"),), ((0, 1),)),
]


@pytest.fixture(scope="module")
def conditions(tiny: Tiny) -> dict[str, tuple[pj.Condition, list[str]]]:
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="answer")
  return {
    "plain": (pj.Condition("plain"), ["C"]),
    "both": (pj.Condition("both", system="w40 w41", edits=edit), ["A", "C"]),
  }


@pytest.fixture(scope="module")
def table(tiny: Tiny, conditions: dict[str, tuple[pj.Condition, list[str]]]) -> pd.DataFrame:
  return Choices(ITEMS, least_mass=0.0).measure(tiny.model, conditions)


def probabilities(
  tiny: Tiny, condition: pj.Condition, asked: str, options: Sequence[str], lead: str = ""
) -> np.ndarray:
  chat = [{"role": "user", "content": asked}]
  if lead:
    chat += [{"role": "assistant", "content": lead}]
  prompts = [condition.apply(chat)] * len(options)
  scores = tiny.model.score(prompts, options, edits=[condition.edits] * len(options))
  return np.exp(np.asarray(scores))


def by_hand(
  tiny: Tiny, condition: pj.Condition, item: ChoiceItem, lead: str = ""
) -> tuple[float, float]:
  scores, masses = [], []
  for asked, options, values in zip(item.prompts, item.options, item.values, strict=True):
    p_O = probabilities(tiny, condition, asked, options, lead)
    scores.append(p_O @ np.asarray(values) / p_O.sum())
    masses.append(p_O.sum())
  score = float(np.mean(scores))
  low, high = min(item.values[0]), max(item.values[0])
  return (score if item.key == 1 else low + high - score), min(masses)


def test_scores_are_expected_values_over_options_averaged_over_orders(
  tiny: Tiny, table: pd.DataFrame, conditions: dict[str, tuple[pj.Condition, list[str]]]
) -> None:
  assert list(table.columns) == list(COLUMNS)
  asked = [("plain", ITEMS[:3]), ("both", ITEMS)]  # the traits of each condition
  expected = [
    (name, item.item_id, item.trait, item.key, *by_hand(tiny, conditions[name][0], item))
    for name, items in asked
    for item in items
  ]
  names = ["condition", "item_id", "trait", "key"]
  assert table[names].to_numpy().tolist() == [list(row[:4]) for row in expected]
  np.testing.assert_allclose(table["score"], [row[4] for row in expected], rtol=1e-4)
  np.testing.assert_allclose(table["mass"], [row[5] for row in expected], rtol=1e-4)


def test_a_reverse_key_turns_the_value_round(tiny: Tiny, table: pd.DataFrame) -> None:
  p_O = probabilities(tiny, pj.Condition("plain"), "w7", ["w20", "w21", "w22"])
  found = table.set_index(["condition", "item_id"]).loc[("plain", "c3"), "score"]
  assert found == pytest.approx(p_O @ [3, 2, 1] / p_O.sum(), rel=1e-4)


def test_rows_say_what_edits_did(table: pd.DataFrame) -> None:
  plain, both = (table[table["condition"] == name] for name in ("plain", "both"))
  assert plain["valid"].all() and (plain["tokens_edited"] == 0).all()
  assert plain["delivered_dose"].isna().all()
  assert both["valid"].all() and (both["tokens_edited"] == 1).all()  # the last prompt token
  np.testing.assert_allclose(both["delivered_dose"], 1, atol=1e-3)


def test_where_options_have_too_little_probability_the_score_is_missing(tiny: Tiny) -> None:
  condition = {"plain": (pj.Condition("plain"), ["C"])}
  masses = [by_hand(tiny, pj.Condition("plain"), item)[1] for item in ITEMS[:3]]
  assert max(masses) < 0.5
  strict = Choices(ITEMS).measure(tiny.model, condition)
  assert strict["score"].isna().all()
  np.testing.assert_allclose(strict["mass"], masses, rtol=1e-4)  # still told
  between = float(np.mean(sorted(masses)[1:]))
  found = Choices(ITEMS, least_mass=between).measure(tiny.model, condition)
  assert found["score"].notna().tolist() == [mass >= between for mass in masses]


def test_the_least_mass_is_asked_of_every_order(tiny: Tiny) -> None:
  masses = [
    probabilities(tiny, pj.Condition("plain"), asked, options).sum()
    for asked, options in zip(ITEMS[1].prompts, ITEMS[1].options, strict=True)
  ]
  between = float(np.mean(masses))
  assert min(masses) < between < max(masses)
  choices = Choices([ITEMS[1]], least_mass=between)
  found = choices.measure(tiny.model, {"plain": (pj.Condition("plain"), ["C"])})
  assert np.isnan(found["score"][0]) and found["mass"][0] == pytest.approx(min(masses), rel=1e-4)


def test_a_lead_begins_the_answer(tiny: Tiny) -> None:
  plain = pj.Condition("plain")
  choices = Choices([ITEMS[1]], lead="w50 w51", least_mass=0.0)
  found = choices.measure(tiny.model, {"plain": (plain, ["C"])})
  score, mass = by_hand(tiny, plain, ITEMS[1], lead="w50 w51")
  assert (found["score"][0], found["mass"][0]) == pytest.approx((score, mass), rel=1e-4)


def test_progress_counts_options_and_no_trait_is_no_row(
  tiny: Tiny, conditions: dict[str, tuple[pj.Condition, list[str]]]
) -> None:
  seen: list[int] = []
  Choices(ITEMS, least_mass=0.0).measure(tiny.model, conditions, progress=seen.append)
  assert sum(seen) == 9 + 11
  assert Choices(ITEMS).traits == ["C", "A"]
  none = Choices(ITEMS).measure(tiny.model, {"plain": (pj.Condition("plain"), [])})
  assert none.empty and list(none.columns) == list(COLUMNS)


def test_a_trait_without_items_is_refused(tiny: Tiny) -> None:
  with pytest.raises(ValueError, match=r"traits \['O'\] have no items; there are .*'C', 'A'"):
    Choices(ITEMS).measure(tiny.model, {"plain": (pj.Condition("plain"), ["C", "O"])})


# ---- items ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts": (), "options": (), "values": ()}, "0 prompts"),
    ({"prompts": ("w7", "w8")}, "2 prompts, 1 lists of options and 1 of values"),
    ({"options": (("w10",),), "values": ((1.0,),)}, "at least two different options"),
    ({"options": (("w10", "w10"),)}, "at least two different options"),
    ({"options": (("w10", "w11", "w12"),)}, "at least two different options"),
    ({"key": 0}, "key 0"),
    (
      {"prompts": ("a", "b"), "options": (("x", "y"),) * 2, "values": ((1, 0), (0, 2))},
      "same values in every order",
    ),
  ],
)
def test_items_that_cannot_be_scored_are_refused(changes: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(ITEMS[0], **changes)


def test_ratings_are_asked_in_both_orders() -> None:
  (item,) = rating_items([SelfReportItem("x-1", "I like order.", "C", -1)])
  assert (item.item_id, item.trait, item.key, item.range) == ("x-1", "C", -1, (1.0, 5.0))
  assert item.options == (tuple("ABCDE"),) * 2
  assert item.values == ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1))
  first, second = (prompt.splitlines() for prompt in item.prompts)
  assert (
    first[0] == second[0] == ('How accurately does this statement describe you? "I like order."')
  )
  assert (first[1], first[5]) == ("A. very inaccurate", "E. very accurate")
  words = [[line[3:] for line in lines[1:6]] for lines in (first, second)]
  assert words[0] == words[1][::-1] and len(set(words[0])) == 5


def test_the_inventory_has_items_of_both_keys_in_two_orders() -> None:
  inventory = load_ipip120()
  items = rating_items(inventory)
  assert [(i.item_id, i.trait, i.key) for i in items] == [
    (i.item_id, i.trait, i.key) for i in inventory
  ]
  assert {len(i.prompts) for i in items} == {2} and sum(i.key == -1 for i in items) == 55
  assert all(
    i.text in prompt for i, j in zip(inventory, items, strict=True) for prompt in j.prompts
  )
  assert sorted(Choices(items).traits) == sorted("OCEAN")


# ---- files ---------------------------------------------------------------------------------------

HEAD = "[[items]]\n"
FIELDS = 'id = "c1"\ntrait = "C"\nkey = 1\n'
ONE = 'prompt = "w5 w6"\noptions = ["w10", "w11 w12"]\nvalues = [1, 0]\n'
TWO = """prompt = ["w7", "w8 w7"]
options = [["w20", "w21"], ["w21", "w20"]]
values = [[1, 5], [5, 1]]
"""


def written(directory: Path, text: str) -> Path:
  path = directory / "items.toml"
  path.write_text(text, encoding="utf-8")
  return path


def test_items_are_read_with_one_order_or_more(tmp_path: Path) -> None:
  second = FIELDS.replace("c1", "c2")
  path = written(tmp_path, f'name = "x"\n{HEAD}{FIELDS}{ONE}{HEAD}{second}{TWO}')
  assert load_choice_items(path) == load_choice_items(str(path)) == ITEMS[:2]


def test_the_instrument_of_a_planted_world_is_read(tmp_path: Path) -> None:
  path = written(tmp_path, files._trait_items())
  items = load_choice_items(path)
  assert Choices(items).traits == list(planted.TRAITS)
  assert len(items) == files.ITEMS * len(planted.TRAITS)
  assert {i.values for i in items} == {((1.0, 0.0),)}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[[items", "not a TOML file"),
    ('name = "x"\n', r"needs tables \[\[items\]\]"),
    ("items = 3\n", r"needs tables \[\[items\]\]"),
    (HEAD + FIELDS, r"item 0 has the keys \['id', 'key', 'trait'\]"),
    (HEAD + FIELDS + ONE + "text = 1\n", "item 0 has the keys .*'text'"),
    ((HEAD + FIELDS + ONE) * 2 + "[[items]]", r"item 2 has the keys \[\]"),
    (HEAD + FIELDS + ONE.replace("[1, 0]", "[1]"), "item 0: item 'c1': options"),
    (HEAD + FIELDS + ONE.replace("[1, 0]", "3"), "item 0: 'int' object"),
    (HEAD + FIELDS.replace("key = 1", "key = 2") + ONE, "item 0: item 'c1': key 2"),
    (HEAD + FIELDS.replace("key = 1", 'key = "+"') + ONE, "item 0: invalid literal"),
    (HEAD + FIELDS + TWO.replace("[5, 1]]", "[5, 2]]"), "same values in every order"),
  ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
  path = written(tmp_path, text)
  with pytest.raises(ValueError, match=message) as error:
    load_choice_items(path)
  assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match=r"none\.toml"):
    load_choice_items(tmp_path / "none.toml")
