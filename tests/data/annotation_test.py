"""Sheets for annotators: blind, stratified, and read back as they were meant."""

from pathlib import Path

import pandas as pd
import pytest

from persona_jax.data.annotation import agreed, read_annotations, write_annotation_sheets


def table(rows: int = 200) -> pd.DataFrame:
  return pd.DataFrame(
    {
      "row_id": [f"r{n}" for n in range(rows)],
      "prompt": [f"question {n}" for n in range(rows)],
      "text": [f"=answer, {n}\nwith two lines" if n % 2 else f"answer {n}" for n in range(rows)],
      "method": ["prompt", "steer"] * (rows // 2),
      "persona": [f"P{n // 50}" for n in range(rows)],
      "label": ["degenerate" if n == 7 else "bypass" for n in range(rows)],
    }
  )


def test_sheets_are_blind_shuffled_and_share_a_part(tmp_path: Path) -> None:
  made = write_annotation_sheets(table(), tmp_path, n=60, seed=1)
  one, two = (pd.read_csv(path, keep_default_na=False) for path in made.sheets)
  assert list(one) == ["id", "question", "answer", "label", "note"]
  assert not set(one["label"]) - {""} and not set(one["note"]) - {""}
  assert (len(one), len(two), len(set(one["id"]) & set(two["id"]))) == (36, 36, 12)
  key = pd.read_parquet(made.key).set_index("id")
  assert len(key) == 60 and set(one["id"]) | set(two["id"]) == set(key.index)
  numbers = [int(q.split()[1]) for q in one["question"]]
  assert numbers != sorted(numbers)
  text = "".join(path.read_text() for path in made.sheets)
  assert not any(word in text for word in ("steer", "P1", "bypass", "r7"))
  assert [f"r{n}" for n in numbers] == list(key.loc[one["id"], "row_id"])


def test_every_stratum_is_there_and_weights_add_up(tmp_path: Path) -> None:
  made = write_annotation_sheets(table(), tmp_path, n=40, annotators=1)
  key = pd.read_parquet(made.key)
  assert "r7" in set(key["row_id"])  # the only one of its stratum
  assert key["weight"].sum() == pytest.approx(200)
  assert key.set_index("row_id").loc["r7", "weight"] == 1


def test_formulas_and_line_breaks_come_back_as_text(tmp_path: Path) -> None:
  (path,) = write_annotation_sheets(table(20), tmp_path, n=20, strata=(), annotators=1).sheets
  sheet = pd.read_csv(path, keep_default_na=False)
  assert not sheet["answer"].str.startswith("=").any()
  assert sheet["answer"].str.startswith("'=answer, ").sum() == 10
  assert sheet["answer"].str.contains("\nwith two lines", regex=False).sum() == 10


def test_labels_are_read_back_and_disagreement_is_missing(tmp_path: Path) -> None:
  made = write_annotation_sheets(table(), tmp_path, n=10, overlap=0.4, strata=("persona",))
  sheets = [pd.read_csv(path, keep_default_na=False) for path in made.sheets]
  shared = sorted(set(sheets[0]["id"]) & set(sheets[1]["id"]))
  for k, (sheet, path) in enumerate(zip(sheets, made.sheets, strict=True)):
    sheet["label"] = ["Refuse "] * len(sheet)
    if k:
      sheet.loc[sheet["id"] == shared[0], "label"] = "bypass"
      sheet.loc[sheet["id"] == shared[1], "label"] = "unsure"
      sheet.loc[sheet["id"] == shared[2], "label"] = ""
    sheet.to_csv(path, index=False)
  found = read_annotations(made.sheets, made.key)
  assert len(found) == 14 and found["label"].isna().sum() == 1
  row = pd.read_parquet(made.key).set_index("id")["row_id"]
  one = agreed(found).set_index("row_id")
  assert len(one) == 10
  missing = [one.loc[row[i], "label"] is None or pd.isna(one.loc[row[i], "label"]) for i in shared]
  assert missing == [True, True, False, False]
  assert one.loc[row[shared[2]], "annotators"] == 1


def test_sheets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match=r"lacks \['label'\]"):
    write_annotation_sheets(table().drop(columns="label"), tmp_path)
  with pytest.raises(ValueError, match="n=300: the table has 200 rows"):
    write_annotation_sheets(table(), tmp_path)
  with pytest.raises(ValueError, match="'r0' occurs twice"):
    write_annotation_sheets(pd.concat([table(), table()]), tmp_path, n=5, strata=())
  with pytest.raises(ValueError, match="n=4: there are 9 strata"):
    write_annotation_sheets(table(), tmp_path, n=4)
  made = write_annotation_sheets(table(), tmp_path, n=4, strata=(), annotators=1)
  sheet = pd.read_csv(made.sheets[0], keep_default_na=False)
  for change, said in (
    ({"label": "harmful"}, r"labels \['harmful'\]; refuse, bypass, degenerate, unsure fit"),
    ({"id": "x"}, r"ids not in .*: \['x'\]"),
  ):
    sheet.assign(**change).to_csv(made.sheets[0], index=False)
    with pytest.raises(ValueError, match=said):
      read_annotations(made.sheets, made.key)
