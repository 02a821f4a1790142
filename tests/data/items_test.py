"""IPIP-NEO-120 as read from the source text of the ffm wheel."""

from collections import Counter

import pytest

from persona_jax.data import items


@pytest.fixture(scope="module")
def inventory() -> list[items.SelfReportItem]:
  return items.load_ipip120()


def test_every_trait_has_24_items(inventory: list[items.SelfReportItem]) -> None:
  assert Counter(item.trait for item in inventory) == dict.fromkeys("OCEAN", 24)


def test_55_items_are_reverse_keyed(inventory: list[items.SelfReportItem]) -> None:
  reverse = Counter(item.trait for item in inventory if item.key == -1)
  assert reverse == {"N": 7, "E": 6, "O": 12, "A": 17, "C": 13}
  assert reverse.total() == 55


def test_ids_follow_the_published_order_in_which_traits_rotate(
  inventory: list[items.SelfReportItem],
) -> None:
  assert [item.item_id for item in inventory] == [f"ipip120-{i:03d}" for i in range(1, 121)]
  assert "".join(item.trait for item in inventory) == "NEOAC" * 24


@pytest.mark.parametrize(
  ("number", "text", "trait", "key"),
  [
    (1, "I worry about things.", "N", 1),
    (9, "I use others for my own ends.", "A", -1),
    (10, "I like to tidy up.", "C", 1),
    (67, "I prefer to be alone.", "E", -1),
    (68, "I do not like poetry.", "O", -1),
    (116, "I remain calm under pressure.", "N", -1),
    (120, "I act without thinking.", "C", -1),
  ],
)
def test_items_have_their_text_trait_and_key(
  inventory: list[items.SelfReportItem], number: int, text: str, trait: str, key: int
) -> None:
  item = inventory[number - 1]
  assert (item.text, item.trait, item.key) == (text, trait, key)


def test_statements_are_distinct_first_person_sentences(
  inventory: list[items.SelfReportItem],
) -> None:
  assert len({item.text for item in inventory}) == 120
  assert all(item.text.startswith("I ") and item.text.endswith(".") for item in inventory)


SOURCE = """
raise SystemExit("executed")
Qs = ["I a.", "I b.", "I c.", "I d.", "I e."]
def score(responses):
  trait_items = {"Openness": [0], "Conscientiousness": [1], "Extraversion": [2],
                 "Agreeableness": [3], "Neuroticism": [4]}
  reverse_items = {"Openness": [0], "Conscientiousness": [], "Extraversion": [],
                   "Agreeableness": [], "Neuroticism": []}
"""


def test_source_is_parsed_and_not_executed() -> None:
  assert [item.key for item in items.parse_inventory(SOURCE)] == [-1, 1, 1, 1, 1]


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("Qs =", "Questions =", "does not assign the literals Qs"),
    ('"Neuroticism": [4]', '"Neuroticism": [3]', "each of the 5 items exactly once"),
    ('"Openness": [0], "C', '"Openness": [0, 0], "C', "each of the 5 items exactly once"),
    ('"Agreeableness": [], "N', '"Agreeableness": [4], "N', "items of other traits: .4."),
    ('"Agreeableness": [3], "N', '"Kindness": [3], "N', "trait_items has the traits"),
  ],
)
def test_an_inconsistent_source_is_refused(old: str, new: str, message: str) -> None:
  assert old in SOURCE
  with pytest.raises(ValueError, match=message):
    items.parse_inventory(SOURCE.replace(old, new, 1))
