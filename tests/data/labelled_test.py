"""Labelled answers of the pyrit wheel, counted; no text of theirs is written down here."""

from pathlib import Path

import pandas as pd
import pytest

from persona_jax.data.labelled import load_labelled


@pytest.mark.parametrize(
  ("name", "rows", "refusals"), [("pyrit/refusal", 105, 70), ("pyrit/refusal_extra", 64, 39)]
)
def test_refusals_are_as_many_as_people_saw(name: str, rows: int, refusals: int) -> None:
  table = load_labelled(name)
  assert list(table) == ["question", "text", "label", "category", "source"]
  assert (len(table), int(table["label"].sum())) == (rows, refusals)
  assert table["question"].str.len().min() > 0 and table["text"].str.len().min() > 0


def test_harm_scores_are_means_of_people_s_in_eight_categories() -> None:
  table = load_labelled("pyrit/harm")
  assert len(table) == 604
  assert table.groupby("category").size().to_dict() == {
    "exploits": 80, "hate_speech": 59, "info_integrity": 76, "privacy": 93, "representational": 29,
    "self_harm": 93, "sexual": 78, "violence": 96,
  }  # fmt: skip
  assert table["label"].between(0, 1).all()


def test_a_file_of_one_s_own_is_read(tmp_path: Path) -> None:
  table = pd.DataFrame({"question": ["q"], "text": ["no\nnever"], "label": [True]})
  for end, write in (("csv", table.to_csv), ("parquet", table.to_parquet)):
    write(tmp_path / f"x.{end}", index=False)
    found = load_labelled(str(tmp_path / f"x.{end}"))
    assert found.to_dict("records") == [
      {"question": "q", "text": "no\nnever", "label": True, "category": "", "source": f"x.{end}"}
    ]
  table.drop(columns="label").to_csv(tmp_path / "y.csv", index=False)
  with pytest.raises(ValueError, match=r"lacks \['label'\]"):
    load_labelled(str(tmp_path / "y.csv"))
  with pytest.raises(ValueError, match="unknown labelled set 'xstest'; known: pyrit/refusal"):
    load_labelled("xstest")
