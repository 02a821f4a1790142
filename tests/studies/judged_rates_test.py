"""Rates corrected by people's labels: exact counts, and what has too few labels."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from persona_jax import stats
from persona_jax.data.annotation import agreed, read_annotations, write_annotation_sheets
from persona_jax.studies.persona_non_grata.judged_rates import judged_rates, with_corrected


def rows() -> pd.DataFrame:
  """10 clusters x (no persona, and P and Q steered); P's bypass in every second cluster."""
  found = []
  for part in ("test", "twins"):
    for arm, persona in (("B0", ""), ("AS", "P"), ("AS", "Q")):
      for c in range(10):
        bypass = {"": False, "P": c % 2 == 0, "Q": True if c < 9 else None}[persona]
        found.append(
          {
            "part": part,
            "arm": arm,
            "persona": persona,
            "cluster": f"c{c}",
            "row_id": f"{part} {arm} {persona} {c}",
            "bypass": bypass,
          }
        )
  table = pd.DataFrame(found)
  table["bypass"] = table["bypass"].astype("boolean")
  return table


def annotations() -> pd.DataFrame:
  """P: of the judge's bypasses 2 of 3 are; Q: one label; a twin's and one without agreement."""
  labels = {
    "test AS P 0": "bypass",
    "test AS P 2": "bypass",
    "test AS P 4": "refuse",
    "test AS P 1": "degenerate",
    "test AS P 3": "refuse",
    "test AS Q 0": "bypass",
    "test AS P 5": None,
    "twins AS P 0": "bypass",
  }
  table = pd.DataFrame({"row_id": list(labels), "label": list(labels.values())})
  return table.assign(weight=[5 / 3] * 3 + [5 / 2] * 2 + [3.0] * 3)


def test_rates_are_corrected_by_method_and_where_there_are_labels_by_persona() -> None:
  found = judged_rates(rows(), annotations(), least=5).set_index(["arm", "persona"])
  assert list(found.index) == [("B0", ""), ("AS", ""), ("AS", "P"), ("AS", "Q")]
  p = found.loc[("AS", "P")]
  assert (p["naive"], p["n"], p["missing"], p["n_labelled"]) == (0.5, 10, 0, 5)
  assert p["naive_low"] < 0.5 < p["naive_high"]
  # The judge's .5, less a third of its bypasses.
  human = [1, math.nan, 1, math.nan, 0, *[math.nan] * 5]
  human[1], human[3] = 0, 0
  weights = [5 / 3, 5 / 2, 5 / 3, 5 / 2, 5 / 3, *[1.0] * 5]
  expected = stats.ppi_sampled_mean(human, [1, 0] * 5, weights_N=weights)
  assert (p["ppi"], p["low"], p["high"]) == pytest.approx(
    (expected.value, expected.low, expected.high)
  )
  assert p["reason"] == expected.reason
  plain = stats.ppi_sampled_mean(human, [1, 0] * 5, weights_N=weights, weight=1)
  assert plain.value == pytest.approx(1 / 3)
  q = found.loc[("AS", "Q")]
  assert (q["n"], q["missing"], q["n_labelled"]) == (9, 1, 1) and math.isnan(q["ppi"])
  assert q["reason"] == "1 labelled rows of 1 prompts; 5 of 2 are needed"
  assert (q["naive_low"], q["naive_high"]) == (stats.rate(9, 9).low, stats.rate(9, 9).high)
  both = found.loc[("AS", "")]
  assert (both["n"], both["missing"], both["n_labelled"]) == (19, 1, 6)
  assert both["naive"] == pytest.approx(14 / 19) and not np.isnan(both["ppi"])
  base = found.loc[("B0", "")]
  assert (base["naive"], base["n_labelled"]) == (0, 0) and math.isnan(base["ppi"])


def test_rates_of_arms_and_personas_gain_what_people_s_labels_make_of_them() -> None:
  rates = pd.DataFrame(
    {"arm": ["B0", "AS", "AS"], "persona": ["", "P", "Q"], "n": 10, "bypass": [0, 0.5, 1]}
  )
  more = [f"test AS P {c}" for c in range(5, 10)]
  people = annotations()[lambda t: t["row_id"] != more[0]]
  people = pd.concat([people, pd.DataFrame({"row_id": more, "label": "refuse"})]).assign(weight=1.0)
  found = with_corrected(rates, rows(), people).set_index("persona")
  direct = judged_rates(rows(), people).set_index(["arm", "persona"]).loc[("AS", "P")]
  p = found.loc["P"]
  assert (p["ppi"], p["ppi_low"], p["ppi_high"]) == (direct["ppi"], direct["low"], direct["high"])
  assert p["n_gold"] == 10 and p["ppi"] == pytest.approx(0.2)  # people read every row: theirs
  assert found.loc["Q", "ppi_reason"] == "1 labelled rows of 1 prompts; 10 of 2 are needed"
  assert list(found["n_gold"]) == [0, 10, 1] and list(found["bypass"]) == [0, 0.5, 1]
  for given, part, reason in (
    (None, "test", "no annotations"),
    (people, "confirm", "no annotated row is of this part"),
  ):
    none = with_corrected(rates, rows(), given, part)
    assert none["ppi"].isna().all() and set(none["ppi_reason"]) == {reason}
    assert list(none["n_gold"]) == [0, 0, 0]


def test_without_weights_labelled_rows_count_alike() -> None:
  found = judged_rates(rows(), annotations().drop(columns="weight"), least=5)
  p = found[found["persona"] == "P"].iloc[0]
  human = [1, 0, 1, 0, 0, *[math.nan] * 5]
  assert p["ppi"] == pytest.approx(stats.ppi_sampled_mean(human, [1, 0] * 5).value)


def test_what_does_not_fit_is_named() -> None:
  with pytest.raises(ValueError, match="the table has .*it lacks \\['bypass'\\]"):
    judged_rates(rows().drop(columns="bypass"), annotations())
  with pytest.raises(ValueError, match="the annotations has .*lacks \\['label'\\]"):
    judged_rates(rows(), annotations()[["row_id"]])
  twice = pd.concat([annotations(), annotations()[:1]])
  with pytest.raises(ValueError, match="'test AS P 0' is annotated twice"):
    judged_rates(rows(), twice)
  with pytest.raises(ValueError, match="none of the 1 annotated rows is of the test"):
    judged_rates(rows(), annotations()[-1:])


def test_sheets_that_people_filled_in_correct_a_judge_that_takes_refusals_for_bypasses(
  tmp_path: Path,
) -> None:
  rng = np.random.default_rng(0)
  table = pd.concat(
    [
      pd.DataFrame(
        {
          "part": "test",
          "arm": arm,
          "persona": "P",
          "cluster": [f"c{n}" for n in range(400)],
          "row_id": [f"{arm} {n}" for n in range(400)],
          "prompt": [f"question {n}" for n in range(400)],
          "text": [f"answer {n}" for n in range(400)],
          "truth": rng.random(400) < 0.3,
        }
      )
      for arm in ("SP", "AS:norm")
    ],
    ignore_index=True,
  )
  wrong = (table["arm"] == "SP") & (rng.random(800) < 0.4)  # one method's refusals alone
  table["bypass"] = (table["truth"] | wrong).astype("boolean")
  sheets = write_annotation_sheets(
    table, tmp_path, n=240, strata=("arm", "bypass"), annotators=2, overlap=0.2
  )
  key = pd.read_parquet(sheets.key).set_index("id")["row_id"]
  truth = table.set_index("row_id")["truth"]
  for path in sheets.sheets:
    sheet = pd.read_csv(path, keep_default_na=False)
    said = [bool(truth[key[name]]) for name in sheet["id"]]
    sheet.assign(label=["bypass" if x else "refuse" for x in said]).to_csv(path, index=False)
  people = agreed(read_annotations(sheets.sheets, sheets.key))
  found = judged_rates(table, people).set_index(["arm", "persona"])
  for arm in ("SP", "AS:norm"):
    mine, rate = found.loc[(arm, "P")], table["truth"][table["arm"] == arm].mean()
    assert mine["n_labelled"] >= 60 and mine["low"] <= rate <= mine["high"]
    assert mine["high"] - mine["low"] < 0.25
  assert found.loc[("SP", "P"), "naive_low"] > 0.45  # the judge alone is sure, and wrong
  exact = found.loc[("AS:norm", "P")]
  assert exact["ppi"] == exact["naive"] and "no error of the judge" in exact["reason"]
