"""Labelled answers: counts of PyRIT's sets, and files of one's own. No text of theirs is here."""

from pathlib import Path

import pandas as pd
import pytest

from persona_jax.data.labelled import COLUMNS, load_labelled
from persona_jax.data.near_copies import near_copies


@pytest.mark.parametrize(
  ("name", "rows", "true", "train"),
  [
    ("pyrit/refusal", 105, 70, 41),
    ("pyrit/refusal_extra", 64, 39, 35),
    ("pyrit/objective", 395, 191, 201),
  ],
)
def test_sets_of_true_and_false_have_the_known_counts(
  name: str, rows: int, true: int, train: int
) -> None:
  table = load_labelled(name)
  assert list(table.columns) == list(COLUMNS)
  assert table["label"].dtype == bool
  counts = len(table), int(table["label"].sum()), int((table["split"] == "train").sum())
  assert counts == (rows, true, train)
  assert set(table["split"]) == {"train", "test"} and set(table["n_raters"]) == {1}
  assert (table["text"].str.strip() != "").all() and (table["question"].str.strip() != "").all()


def test_harm_scores_are_604_in_eight_categories() -> None:
  table = load_labelled("pyrit/harm")
  assert table["category"].value_counts().to_dict() == {
    "violence": 96, "privacy": 93, "self_harm": 93, "exploits": 80, "sexual_content": 78,
    "information_integrity": 76, "hate_speech": 59, "representational": 29,
  }  # fmt: skip
  assert set(table["label"]) == {0, 0.25, 0.5, 0.75, 1}
  assert table["label"].sum() == 292


def test_harm_scores_of_three_raters_are_their_means() -> None:
  table = load_labelled("pyrit/harm_raters")
  assert table["category"].value_counts().to_dict() == {"hate_speech": 199, "violence": 187}
  assert set(table["n_raters"]) == {3}
  assert ((table["label"] * 12).round() / 12 - table["label"]).abs().max() < 1e-9


def test_near_copies_of_a_question_are_on_one_side_also_across_joined_sets() -> None:
  table = load_labelled("pyrit/refusal+pyrit/refusal_extra")
  assert (len(table), int(table["label"].sum())) == (169, 109)
  sides = table.groupby(near_copies(list(table["question"])))["split"].nunique()
  assert (sides == 1).all() and len(sides) < len(table)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_of_ones_own_is_read_with_what_it_says(tmp_path: Path, ending: str) -> None:
  path = tmp_path / f"mine.{ending}"
  given = pd.DataFrame(
    {"question": ["a?", "b?"], "text": ["No.", "So."], "label": [True, False], "split": "test"}
  )
  if ending == "jsonl":
    given.to_json(path, orient="records", lines=True)
  else:
    given.to_csv(path, index=False) if ending == "csv" else given.to_parquet(path)
  table = load_labelled(str(path))
  assert table["label"].tolist() == [True, False] and table["label"].dtype == bool
  assert table["split"].tolist() == ["test", "test"]
  assert table[["source", "category", "n_raters"]].drop_duplicates().values.tolist() == [
    [path.name, "", 1]
  ]


def test_scores_stay_numbers_and_are_not_joined_with_true_and_false(tmp_path: Path) -> None:
  path = tmp_path / "mine.csv"
  path.write_text("question,text,label,n_raters\na?,x,0.5,2\nb?,y,1,3\n")
  table = load_labelled(str(path))
  assert table["label"].tolist() == [0.5, 1.0] and table["n_raters"].tolist() == [2, 3]
  with pytest.raises(ValueError, match="mixes true or false with scores"):
    load_labelled(f"{path}+pyrit/refusal")


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ("question,text\na?,x\n", r"row 1: question, text, label .* got \['question', 'text'\]"),
    ("question,text,label,why\na?,x,1,b\n", "row 1: .*got .*'why'"),
    ("question,text,label\na?,x,2\n", "mine.csv: label '2': true or false"),
    ("question,text,label\na?,x,yes\nb?,y,true\n", "label 'yes'"),
    ("question,text,label,split\na?,x,1,dev\n", "split 'dev': 'train' or 'test' fits"),
    ("question,text,label\n", "holds no row"),
  ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, error: str) -> None:
  path = tmp_path / "mine.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=error):
    load_labelled(str(path))


def test_an_unknown_set_lists_the_known_ones() -> None:
  with pytest.raises(ValueError, match="'pyrit/none'; known sets: pyrit/harm, .*pyrit/refusal_ex"):
    load_labelled("pyrit/none")
