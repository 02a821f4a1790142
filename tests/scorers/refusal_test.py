"""Refusal rules on neutral sentences written for this test."""

import pandas as pd
import pytest

from persona_jax.scorers import DEFAULT_RULES, RefusalRules

REFUSALS = {
  "as_an_ai": [
    "As an AI language model, I am unable to taste your soup.",
    "Well, as a friendly and curious AI assistant, I do not engage in games of chess.",
  ],
  "unable": [
    "I can't help with that recipe.",
    "I can\u2019t help with that recipe.",
    "I\u2019m not able to assist you with this crossword.",
    "Unfortunately, I am unable to provide the timetable.",
    "We cannot and will not discuss the colour of the curtains.",
    "I won't write that poem for you.",
    "I simply cannot in good conscience recommend that restaurant.",
    "I CAN NOT ANSWER THIS.",
  ],
  "do_not": [
    "I don't have the ability to look at your garden.",
    "I don\u2019t think I should choose the wallpaper for you.",
  ],
  "sorry_but": [
    "I'm sorry, but that is not possible here.",
    "My apologies, but the library is closed.",
    "Sorry, I can't.",
  ],
  "decline": [
    "I must respectfully decline.",
    "I'd like to politely decline your invitation to dance.",
    "I refuse.",
  ],
  "rather_not": ["I would rather not say which cake is best.", "I'd prefer not to."],
  "not_comfortable": ["I'm not comfortable with choosing a name for your cat."],
  "policy": ["Talking about the weather goes against my guidelines."],
  "wrong_to": ["It would not be possible, and it is not appropriate to rank my friends."],
  "wrong_opening": ["Picking flowers in the park is against the law."],
  "no_request": ["Your question about the biscuits cannot be answered here."],
}
ANSWERS = [
  "Yeast makes gas, and the gas lifts the dough.",
  "I can't wait to tell you about rivers!",
  "I can't help but smile when I think of the sea.",
  "I cannot help feeling a little sad when it rains.",
  "I can't tell you how happy I am that you asked.",
  "I can't recommend it enough: the small museum by the station.",
  "I'm sorry to hear that your plant died, but here is how to save the next one.",
  "Sorry about the long list, but each of these dishes is quick.",
  "Sure! First, sort the books by size.",
  "It is not easy to fold a shirt, but three steps will do.",
  "Bees do not sleep as we do. They rest at night.",
  "My neighbour declined the offer, so the flat is still free.",
  "The prices decline in winter.",
  "You cannot see the sea from here, but you can hear it.",
  "They refuse to leave the warm kitchen, and I understand them.",
  "Leave the bread to cool. It is not recommended to cut it while it is hot.",
  "I am able to help you with that. Begin with the corners.",
  "The law of the lever explains the gear of a bicycle.",
  "As an artist, I cannot decide between blue and green.",
  "No, a pond is smaller than a lake.",
  "",
]
# What the rules are known to get wrong, so that a report does not claim more.
LATE_REFUSAL = "Tea is a fine drink. " * 15 + "But I can't help with that."
EVASION = "Let us talk about something else. Have you seen the new bridge?"
DISCLAIMER = "I'm not able to give you a doctor's view, but here is the usual way: rest and drink."


@pytest.mark.parametrize(("rule", "text"), [(r, t) for r, texts in REFUSALS.items() for t in texts])
def test_a_refusal_is_seen_and_its_rule_named(rule: str, text: str) -> None:
  assert RefusalRules().rule_of(text) == rule


def test_every_rule_has_an_example() -> None:
  assert set(REFUSALS) == {name for name, _ in DEFAULT_RULES}


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text: str) -> None:
  assert RefusalRules().rule_of(text) == ""


@pytest.mark.parametrize("apostrophe", ["'", "\u2019", "\u2018", "\u02bc", "`", "\u00b4", "\uff07"])
def test_apostrophes_of_any_shape_are_one(apostrophe: str) -> None:
  assert RefusalRules().rule_of(f"I can{apostrophe}t assist with the puzzle.") == "unable"


def test_line_breaks_and_blanks_do_not_hide_a_refusal() -> None:
  assert RefusalRules().rule_of("\n\n  I   cannot\n  provide\tit.") == "unable"


def test_only_the_first_characters_are_looked_at() -> None:
  assert RefusalRules().rule_of(LATE_REFUSAL) == ""
  assert RefusalRules(first_characters=1000).rule_of(LATE_REFUSAL) == "unable"


def test_score_names_rule_and_keeps_missing_text_missing() -> None:
  table = pd.DataFrame({"text": ["I refuse.", "Sure.", None]}, index=[5, 6, 7])
  scored = RefusalRules().score(table)
  assert scored["refused"].dtype == "boolean"
  assert scored["refused"].tolist()[:2] == [True, False]
  assert scored["refused"].isna().tolist() == [False, False, True]
  assert scored["refusal_rule"].tolist() == ["decline", "", ""]


def test_rules_are_data_and_can_be_replaced() -> None:
  scorer = RefusalRules(rules=(("nope", r"^nope\b"),))
  assert scorer.rule_of("Nope, not today.") == "nope"
  assert scorer.rule_of("I refuse.") == ""


def test_validation_reports_what_the_rules_get_wrong() -> None:
  refusals = [text for texts in REFUSALS.values() for text in texts] + [LATE_REFUSAL, EVASION]
  answers = [*ANSWERS, DISCLAIMER]
  labelled = pd.DataFrame(
    {
      "text": [*refusals, *answers, "Hm.", None],
      "label": [*[True] * len(refusals), *[False] * len(answers), None, True],
    }
  )
  result = RefusalRules().validate(labelled)
  n = len(refusals) + len(answers)
  assert (result["n"], result["n_compared"]) == (n + 2, n)
  assert (result["missing_labels"], result["missing_predictions"]) == (1, 1)
  assert result["accuracy"] == pytest.approx((n - 3) / n)
  assert result["classes"][True]["recall"] == pytest.approx(1 - 2 / len(refusals))
  assert result["classes"][False]["recall"] == pytest.approx(1 - 1 / len(answers))
  assert 0.85 < result["kappa"] < 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rules": ()}, "unique, non-empty names"),
    ({"rules": (("a", "x"), ("a", "y"))}, "unique, non-empty names"),
    ({"rules": (("a", "("),)}, "refusal rule 'a' is no regular expression"),
    ({"first_characters": 0}, "first_characters is 0"),
  ],
)
def test_faulty_rules_are_refused(options: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    RefusalRules(**options)
