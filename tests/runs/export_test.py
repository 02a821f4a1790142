"""Runs for other tools: what is written is what they read."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import persona_jax as pj
from persona_jax.runs.export import _plain, main, to_datasets, to_inspect
from persona_jax.scorers.refusal import RefusalRules
from tests.fixtures import Tiny

# Random weights say no refusal; these rules hold of answers with a word of w20 to w39.
RULES = RefusalRules((("twenties", r"\bw[2-3]\d\b"),))
HAS_INSPECT = importlib.util.find_spec("inspect_ai") is not None


@pytest.fixture(scope="module")
def study(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Two runs below one directory, one of them scored."""
  folder = tmp_path_factory.mktemp("study")
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1)
  conditions = [
    pj.Condition("plain"),
    pj.Condition("both", system="w7", prefix="w8", edits=edit, replicate=1),
  ]
  grid = pj.Grid(
    {"p": "w5 w6", "q": "w9"}, conditions, samples=2, max_new_tokens=3, temperature=1.0
  )
  rules = [RULES]
  pj.run(tiny.model, grid, folder / "grids" / "test", scorers=rules, progress=False)
  raw = pj.Grid({"r": pj.Raw("w3 w5 w4")}, [pj.Condition("plain")], max_new_tokens=2)
  pj.run(tiny.model, raw, folder / "grids" / "dose", progress=False)
  return folder


def test_a_data_set_holds_every_run_with_its_card(study: Path, tmp_path: Path) -> None:
  out = to_datasets(study, tmp_path / "data")
  card = (out / "README.md").read_text()
  head = yaml.safe_load(card.split("---")[1])
  assert head["license"] == "other" and head["tags"] == ["not-for-all-audiences"]
  assert head["configs"] == [
    {"config_name": "grids-dose", "data_files": "data/grids-dose.parquet"},
    {"config_name": "grids-test", "data_files": "data/grids-test.parquet"},
  ]
  for config, run in zip(head["configs"], ("dose", "test"), strict=True):
    expected = pj.Run.open(study / "grids" / run).table()
    pd.testing.assert_frame_equal(pd.read_parquet(out / config["data_files"]), expected)
  assert set(expected["refused"]) == {True, False}
  assert "| grids-test | 8 |" in card and "harmful" in card


@pytest.mark.skipif(not HAS_INSPECT, reason="make parity installs inspect-ai")
def test_inspect_reads_every_row_with_its_chat_scores_and_hashes(
  study: Path, tmp_path: Path
) -> None:
  from inspect_ai.log import read_eval_log

  dose, test = (read_eval_log(path) for path in to_inspect(study, tmp_path / "logs"))
  table = pj.Run.open(study / "grids" / "test").table()
  assert test.status == "success" and len(test.samples) == len(table) == 8
  for sample, row in zip(
    sorted(test.samples, key=lambda s: s.id),
    table.sort_values("row_id").to_dict("records"),
    strict=True,
  ):
    assert (sample.id, sample.epoch) == (row["row_id"], row["sample"] + 1)
    assert sample.output.completion == row["text"]
    assert sample.metadata["direction_hash"] == row["direction_hash"]
    assert sample.metadata["seed"] == row["seed"]
    user = {"p": "w5 w6", "q": "w9"}[row["prompt_id"]]
    said = [(m.role, m.content) for m in sample.input]
    if row["condition"] == "both":
      assert said == [("system", "w7"), ("user", f"w8\n\n{user}")]
    else:
      assert said == [("user", user)]
    assert sample.scores["refusal_rules"].value["refused"] is row["refused"]
  refused = table["refused"].tolist()
  assert set(refused) == {True, False}
  conditions = test.eval.metadata["conditions"]
  assert conditions["both"]["edits"][0]["op"] == "add"
  assert dose.samples[0].input == "w3 w5 w4"
  (mean,) = test.results.scores  # the rule's name is no number
  assert (mean.scorer, mean.name, mean.metrics["mean"].value) == (
    "refusal_rules",
    "refused",
    np.mean(refused),
  )
  assert (mean.scored_samples, mean.unscored_samples, dose.results.scores) == (8, 0, [])
  assert test.eval.model_generate_config.max_tokens == 3


def test_cells_are_what_json_has() -> None:
  cells = [np.int64(3), np.float64(0.5), np.nan, pd.NA, np.bool_(True), np.inf, -np.inf, "x"]
  assert [_plain(cell) for cell in cells] == [3, 0.5, None, None, True, "inf", "-inf", "x"]


@pytest.mark.skipif(HAS_INSPECT, reason="inspect-ai is there")
def test_without_inspect_the_extra_is_named(
  study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  assert main(["--run", str(study), "--to", "inspect", "--out", str(tmp_path)]) == 2
  assert "pip install 'persona_jax[inspect]'" in capsys.readouterr().err


def test_the_command_writes_and_says_where(
  study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  out = tmp_path / "data"
  assert main(["--run", str(study), "--to", "datasets", "--out", str(out)]) == 0
  assert capsys.readouterr().out.strip() == str(out)
  assert main(["--run", str(tmp_path / "no"), "--to", "datasets", "--out", str(out)]) == 2
