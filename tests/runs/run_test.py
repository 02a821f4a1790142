"""Runs: the table, resuming after a stop, what a row's seed and id depend on, refusals."""

import json

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.runs import run as runs
from persona_jax.scorers import Degenerate


def grid(tiny, **changes) -> pj.Grid:
  edit = pj.add(tiny.direction(), 0.5, unit="raw", blocks=1)
  conditions = [
    pj.Condition("base"),
    pj.Condition("prompted", system="w40 w41"),
    pj.Condition("steered", edits=edit, replicate=2),
    pj.Condition("both", prefix="w42", edits=[edit]),
  ]
  settings = dict(max_new_tokens=4, temperature=1.0, samples=2, seed=5)
  prompts = changes.pop("prompts", {"a": "w10 w11", "b": "w12"})
  return pj.Grid(prompts, changes.pop("conditions", conditions), **{**settings, **changes})


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  def by_four(rows):
    return [list(range(i, min(i + 4, len(rows)))) for i in range(0, len(rows), 4)]

  monkeypatch.setattr(runs, "tiles", by_four)


def test_table_has_a_row_for_every_cell_with_all_columns(tiny, tmp_path):
  run = pj.run(tiny.model, grid(tiny), tmp_path, scorers=[Degenerate()], progress=False)
  table = run.table()
  assert list(table.columns) == [*runs.COLUMNS, *Degenerate().columns]
  assert len(table) == 16 == run.num_rows and table["row_id"].is_unique and run.is_complete
  assert table.groupby("condition", sort=False)["method"].first().tolist() == [
    "none",
    "prompt",
    "steer",
    "both",
  ]
  steered = table[table["condition"] == "steered"]
  assert (steered["tokens_edited"] == steered["n_tokens"]).all()
  np.testing.assert_allclose(steered["delivered_dose"], 1.0, atol=1e-4)
  assert (steered["direction_hash"] == tiny.direction().hash).all() and (
    steered["replicate"] == 2
  ).all()
  plain = table[table["condition"] == "base"]
  assert (
    (plain["tokens_edited"] == 0).all()
    and plain["delivered_dose"].isna().all()
    and plain["valid"].all()
  )
  assert (
    table["config_hash"].nunique() == 4
    and (table["model_hash"] == tiny.model.identity.sha256).all()
  )
  assert pj.Run.open(tmp_path).table().equals(table)


def test_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch):
  whole = pj.run(tiny.model, grid(tiny), tmp_path / "whole", progress=False).table()
  real, calls = runs.generate_tile, []

  def interrupted(*args):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(*args)

  monkeypatch.setattr(runs, "generate_tile", interrupted)
  with pytest.raises(KeyboardInterrupt):
    pj.run(tiny.model, grid(tiny), tmp_path / "cut", progress=False)
  assert len(pj.Run.open(tmp_path / "cut").table()) == 8
  (tmp_path / "cut" / "results" / "tile-00002.partial").write_bytes(b"half a file")
  resumed = pj.run(tiny.model, grid(tiny), tmp_path / "cut", progress=False).table()
  assert len(calls) == 5  # two more tiles, none twice
  pd.testing.assert_frame_equal(resumed, whole)


def test_another_grid_or_model_is_refused_in_the_same_directory(tiny, tiny_tied, tmp_path):
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  with pytest.raises(ValueError, match="differs in: max_new_tokens"):
    pj.run(tiny.model, grid(tiny, max_new_tokens=5), tmp_path, progress=False)
  other = grid(tiny, conditions=[pj.Condition("base")])
  with pytest.raises(ValueError, match="differs in: conditions"):
    pj.run(tiny.model, other, tmp_path, progress=False)
  with pytest.raises(ValueError, match="differs in: .*sha256"):
    pj.run(tiny_tied.model, grid(tiny), tmp_path, progress=False)


def test_paired_conditions_share_noise_and_unpaired_do_not(tiny):
  paired, unpaired = grid(tiny).cells(), grid(tiny, paired=False).cells()
  by_prompt = {}
  for cell in paired:
    by_prompt.setdefault((cell.prompt_id, cell.sample), set()).add(cell.seed)
  assert all(len(seeds) == 1 for seeds in by_prompt.values()) and len(by_prompt) == 4
  assert len({cell.seed for cell in unpaired}) == len(unpaired) == 16


def test_row_ids_follow_content(tiny):
  ids = lambda **changes: [cell.row_id for cell in grid(tiny, **changes).cells()]
  assert ids() == ids() and len(set(ids())) == 16
  assert not set(ids()) & set(ids(seed=6))
  more = grid(tiny, prompts={"z": "w9", "a": "w10 w11"})
  assert len(set(ids()) & {cell.row_id for cell in more.cells()}) == 8


def test_scores_added_later_need_no_generation(tiny, tmp_path):
  run = pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  assert "degenerate" not in run.table()
  run.score([Degenerate()])
  assert len(run.table()["degenerate"]) == 16


def test_conditions_put_their_parts_round_the_prompt():
  both = pj.Condition("c", system="S", prefix="P")
  assert both.apply("hi") == [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "P\n\nhi"},
  ]
  chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  assert both.apply(chat)[1]["content"] == "P\n\na" and chat[0]["content"] == "a"
  assert pj.Condition("n").apply("hi") == "hi"
  with pytest.raises(ValueError, match="already has one"):
    both.apply([{"role": "system", "content": "x"}, *chat])
  with pytest.raises(ValueError, match="pj.Raw"):
    both.apply(pj.Raw("hi"))


def test_open_and_json_are_readable(tiny, tmp_path):
  with pytest.raises(FileNotFoundError, match="grid.json"):
    pj.Run.open(tmp_path)
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  text = (tmp_path / "grid.json").read_text()
  assert json.loads(text)["grid"]["conditions"][2]["edits"][0]["coef"] == 0.5


@pytest.mark.parametrize(
  "make,message",
  [
    (lambda: pj.Grid([], [pj.Condition("a")], max_new_tokens=1), "got 0"),
    (
      lambda: pj.Grid(["w1"], [pj.Condition("a"), pj.Condition("a")], max_new_tokens=1),
      "twice: .*a",
    ),
    (lambda: pj.Grid(["w1"], [pj.Condition("a")], samples=2, max_new_tokens=1), "greedy"),
    (lambda: pj.Grid("w1", [pj.Condition("a")], max_new_tokens=1), "not a single"),
    (lambda: pj.Condition(""), "name"),
    (lambda: pj.Condition("a", edits=["x"]), "pj.add"),
  ],
)
def test_bad_grids_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
