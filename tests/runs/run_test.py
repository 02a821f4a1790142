"""Runs: the table, resuming after a stop, what a row's seed and id depend on, refusals."""

import json
import os

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.engine import generate as generating
from persona_jax.engine.generate import generate_tile
from persona_jax.engine.rows import make_row, plain_prompt
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.settings import Settings
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
  monkeypatch.setattr(runs, "tile_rows", lambda model, rows, settings, **options: 4)


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
  real, calls = generating.generate_tile, []

  def interrupted(*args):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(*args)

  monkeypatch.setattr(generating, "generate_tile", interrupted)
  with pytest.raises(KeyboardInterrupt):
    pj.run(tiny.model, grid(tiny), tmp_path / "cut", progress=False)
  assert len(pj.Run.open(tmp_path / "cut").table()) == 8
  (tmp_path / "cut" / "results" / "tile-00002.partial").write_bytes(b"half a file")
  resumed = pj.run(tiny.model, grid(tiny), tmp_path / "cut", progress=False).table()
  assert len(calls) == 5  # two more tiles, none twice
  pd.testing.assert_frame_equal(resumed, whole)


def test_a_run_goes_on_with_its_tiles_where_others_would_be_cut(tiny, tmp_path, monkeypatch):
  whole = pj.run(tiny.model, grid(tiny), tmp_path, progress=False).table()
  results = tmp_path / "results"
  for most in (16, 2):
    (results / "tile-00002.parquet").unlink()
    monkeypatch.setattr(runs, "tile_rows", lambda model, rows, settings, most=most, **options: most)
    resumed = pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
    assert resumed.description["tile_rows"] == 4 and len(list(results.iterdir())) == 4
    pd.testing.assert_frame_equal(resumed.table(), whole)


def test_another_grid_or_model_is_refused_in_the_same_directory(tiny, tiny_tied, tmp_path):
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  with pytest.raises(ValueError, match="differs in: max_new_tokens"):
    pj.run(tiny.model, grid(tiny, max_new_tokens=5), tmp_path, progress=False)
  other = grid(tiny, conditions=[pj.Condition("base")])
  with pytest.raises(ValueError, match="differs in: conditions"):
    pj.run(tiny.model, other, tmp_path, progress=False)
  with pytest.raises(ValueError, match="differs in: .*sha256"):
    pj.run(tiny_tied.model, grid(tiny), tmp_path, progress=False)


OTHER = pj.add(pj.Direction(np.ones((1, 3, 7)), "other"), 1.0, unit="raw", blocks=1)


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(max_new_tokens=100000), "prompt 'a' of condition 'base': .* positions"),
    (dict(conditions=[pj.Condition("c", edits=OTHER)]), "condition 'c': direction 'other' has wid"),
    (
      dict(prompts=[pj.Raw("")], conditions=[pj.Condition("base")]),
      "prompt '0000' of condition 'base': .*has no tokens",
    ),
  ],
)
def test_a_grid_that_is_refused_leaves_no_directory(tiny, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    pj.run(tiny.model, grid(tiny, **changes), tmp_path / "run", progress=False)
  assert not (tmp_path / "run").exists()


def test_what_is_no_grid_is_refused_before_anything_is_written(tiny, tmp_path):
  with pytest.raises(ValueError, match=r"the grid is a list; give a pj\.Grid\(prompts, "):
    pj.run(tiny.model, ["Hello?"], tmp_path / "run", progress=False)
  assert not (tmp_path / "run").exists()


def test_unfinished_run_of_other_code_is_refused_and_a_finished_one_is_read(tiny, tmp_path):
  run = pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  path = tmp_path / "grid.json"
  content = json.loads(path.read_text())
  content["versions"]["jax"] = "0.0.1"
  path.write_text(json.dumps(content))
  again = pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  pd.testing.assert_frame_equal(again.table(), run.table())
  next((tmp_path / "results").glob("tile-*.parquet")).unlink()
  with pytest.raises(ValueError, match="another version .*jax: 0.0.1 there"):
    pj.run(tiny.model, grid(tiny), tmp_path, progress=False)


def test_prompts_in_another_order_are_another_grid(tiny, tmp_path):
  prompts = {"b": "w12", "a": "w10 w11", "c": "w13"}
  pj.run(tiny.model, grid(tiny, prompts=prompts), tmp_path, progress=False)
  back = dict(reversed(prompts.items()))
  with pytest.raises(ValueError, match=r"differs in: prompts\)"):
    pj.run(tiny.model, grid(tiny, prompts=back), tmp_path, progress=False)
  assert pj.Run.open(tmp_path).is_complete


def test_tiles_with_other_rows_are_refused_by_name(tiny, tmp_path):
  results = tmp_path / "results"
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  (results / "tile-00001.parquet").write_bytes((results / "tile-00002.parquet").read_bytes())
  # Rows 4 … 7 are lost and 8 … 11 double: as many rows as the grid has.
  assert len(pj.Run.open(tmp_path).table()) == 16 and not pj.Run.open(tmp_path).is_complete
  with pytest.raises(ValueError, match=r"tile-00001\.parquet .*another version.*remove"):
    pj.run(tiny.model, grid(tiny), tmp_path, progress=False)


def test_tiles_beyond_the_plan_are_refused_by_name(tiny, tmp_path):
  results = tmp_path / "results"
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  (results / "tile-00003.parquet").rename(results / "tile-00004.parquet")
  with pytest.raises(ValueError, match=r"tile-00004\.parquet .*another version.*remove"):
    pj.run(tiny.model, grid(tiny), tmp_path, progress=False)


def test_a_row_of_the_table_can_be_sampled_again_from_its_seed(tiny, tmp_path):
  begun = [{"role": "user", "content": "w10"}, {"role": "assistant", "content": "w11 w12"}]
  prompts = {"a": "w10 w11", "r": pj.Raw("w10 w11"), "begun": begun}
  asked = grid(tiny, prompts=prompts, conditions=[
    pj.Condition("base"),
    pj.Condition("steered", edits=pj.add(tiny.direction(), 0.5, unit="raw", blocks=1)),
  ])  # fmt: skip
  table = pj.run(tiny.model, asked, tmp_path, progress=False).table()
  conditions = {c.name: c for c in asked.conditions}
  settings = Settings(asked.max_new_tokens, Sampling(asked.temperature), *tiny.model.stops())
  assert len({tuple(ids) for ids in table["token_ids"]}) > 4  # sampled, not greedy
  for row in table.itertuples():
    condition = conditions[row.condition]
    encoded = tiny.model.encode(condition.apply(asked.prompts[row.prompt_id]))
    again = generate_tile(tiny.model, [make_row(encoded, condition.edits, row.seed)], settings)
    assert again[0].token_ids == tuple(row.token_ids)
    assert row.n_prompt_tokens == encoded.prompt_length  # without the answer that was begun
  assert len(encoded.ids) == encoded.prompt_length + 2


def test_a_raw_prompt_and_its_text_are_different_prompts_for_all_noise(tiny, monkeypatch):
  assert plain_prompt("w9") == "w9" and plain_prompt(pj.Raw("w9")) == {"raw": "w9"}
  chat = ({"role": "user", "content": "w9"},)
  assert plain_prompt(chat) == list(chat)
  seeds = []
  real = generating.generate_tile
  spy = lambda m, rows, s: seeds.extend(row.seed for row in rows) or real(m, rows, s)
  monkeypatch.setattr(generating, "generate_tile", spy)
  tiny.model.generate(["w9", pj.Raw("w9")], max_new_tokens=1, temperature=1.0)
  cells = grid(
    tiny, prompts=["w9", pj.Raw("w9")], conditions=[pj.Condition("c")], samples=1
  ).cells()
  assert len(set(seeds)) == 2 and len({cell.seed for cell in cells}) == 2


def test_two_processes_write_to_different_temporary_files(tmp_path, monkeypatch):
  names = []
  for pid in (1, 2):
    monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
    names.append({runs.partial_of(tmp_path / f"x.{kind}").name for kind in ("json", "parquet")})
  assert len(names[0] | names[1]) == 4
  runs.write_json({}, tmp_path / "x.json")
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


class Length:
  """A scorer with the columns that it is told to have."""

  def __init__(self, name="length", columns=("length",)):
    self.name, self.columns = name, columns

  def score(self, table):
    return pd.DataFrame({c: table["text"].str.len() for c in self.columns}, index=table.index)


@pytest.mark.parametrize(
  "scorers,message",
  [
    ([Length("a/b")], "a/b"),
    ([Length("a\\b")], "name"),
    ([Length("..")], "name"),
    ([Length("")], "name"),
    ([Length(columns=("text",))], "text.*of the table"),
    ([Length("a"), Length("b")], "length.*'a'"),
    ([Length("a"), Length("a", ("other",))], "twice"),
    ([Length(columns=("x", "x"))], "'x'.*'length'"),
  ],
)
def test_scorers_that_clash_are_refused_before_anything_runs(tiny, tmp_path, scorers, message):
  with pytest.raises(ValueError, match=message):
    pj.run(tiny.model, grid(tiny), tmp_path / "run", scorers=scorers, progress=False)
  assert not (tmp_path / "run").exists()


def test_a_scorer_sees_no_other_scores(tiny, tmp_path):
  class Columns(Length):
    def score(self, table):
      seen.append(list(table.columns))
      table["text"] = ""  # a scorer may spoil its own copy
      return super().score(table)

  seen = []
  small = grid(tiny, conditions=[pj.Condition("base")])
  run = pj.run(tiny.model, small, tmp_path, scorers=[Length("stored", ("x",))], progress=False)
  run.score([Columns(), Length("other", ("other",))])
  assert seen == [list(runs.COLUMNS)]
  assert (run.table()["other"] == run.table()["text"].str.len()).all()


def test_scorers_may_be_replaced_but_not_share_a_column_with_a_stored_one(tiny, tmp_path):
  small = grid(tiny, conditions=[pj.Condition("base")])
  run = pj.run(tiny.model, small, tmp_path, scorers=[Length()], progress=False)
  run.score([Length(), Length("more", ("more",))])
  assert list(run.table().columns) == [*runs.COLUMNS, "length", "more"]
  with pytest.raises(ValueError, match="length.*'length'"):
    run.score([Length("other")])
  with pytest.raises(ValueError, match="stored scorer 'length'"):
    pj.run(tiny.model, small, tmp_path, scorers=[Length("other")], progress=False)
  run.score([Length("length", ("renamed",)), Length("more", ("length",))])
  assert set(run.table().columns) == {*runs.COLUMNS, "renamed", "length"}


def test_integers_and_floats_of_numpy_are_taken(tiny, tmp_path):
  number = np.int64
  conditions = [pj.Condition("c", replicate=number(1))]
  kwargs = dict(max_new_tokens=number(2), samples=number(2), seed=number(5))
  asked = grid(tiny, conditions=conditions, temperature=np.float32(1), **kwargs)
  same = grid(tiny, conditions=[pj.Condition("c", replicate=1)], max_new_tokens=2, temperature=1)
  assert asked.describe() == same.describe()
  assert [c.row_id for c in asked.cells()] == [c.row_id for c in same.cells()]
  assert pj.run(tiny.model, asked, tmp_path, progress=False).is_complete


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
  with pytest.raises(ValueError, match="no user message"):
    both.apply([{"role": "assistant", "content": "x"}])
  for prompt, message in (
    ([], "a prompt is a string, a non-empty list"),
    ([{"content": "x"}], "message 0 is .* must have the keys 'role' and 'content'"),
    ([{"role": "user", "content": ["x"]}], r"message 0 has the content \['x'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      both.apply(prompt)


def test_no_edits_and_an_empty_user_message_are_taken():
  plain = pj.Condition("a", edits=None)
  assert plain.edits == () and plain.method == "none"
  assert pj.Grid([""], [plain], max_new_tokens=1).prompts == {"0000": ""}


def test_open_and_json_are_readable(tiny, tmp_path):
  with pytest.raises(FileNotFoundError, match="grid.json"):
    pj.Run.open(tmp_path)
  pj.run(tiny.model, grid(tiny), tmp_path, progress=False)
  text = (tmp_path / "grid.json").read_text()
  assert json.loads(text)["grid"]["conditions"][2]["edits"][0]["coef"] == 0.5


def one(prompts, conditions=None, **settings) -> pj.Grid:
  conditions = [pj.Condition("a")] if conditions is None else conditions
  return pj.Grid(prompts, conditions, max_new_tokens=1, **settings)


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
    (lambda: pj.Grid({1: "w1"}, [pj.Condition("a")], max_new_tokens=1), r"strings.*\[1\]"),
    (lambda: one([{"role": "user", "content": "w5"}]), "Grid prompts .* not a single one"),
    (lambda: one({"role": "user", "content": "w5"}), "Grid prompts .* not a single one"),
    (lambda: one([1, 2]), "prompt '0000': a prompt is a string, .* got 1"),
    (lambda: one({"a": "w5", "b": []}), r"prompt 'b': a prompt is a string, .* got \[\]"),
    (lambda: one(None), "Grid prompts must be a list .* got a NoneType"),
    (lambda: one(["w1"], pj.Condition("a")), "Grid conditions .* not a single one"),
    (lambda: one(["w1"], ["a"]), "Grid conditions must be .* pj.Condition; item 0 is 'a'"),
    (lambda: one(["w1"], 5), "Grid conditions must be .* got 5"),
    (lambda: one(["w1"], paired="no"), "paired='no': give True or False"),
    (lambda: one(["w1"], temperature="a"), "temperature='a': give a number"),
    (lambda: one(["w1"], temperature=None), "temperature=None: give a number"),
    (lambda: pj.Condition("a", prefix=5), "condition 'a': prefix=5: give a text"),
    (lambda: pj.Condition("a", system=["w5"]), r"condition 'a': system=\['w5'\]: give a text"),
    (lambda: pj.Condition("a", edits=5), "condition 'a': edits must be made by pj.add .*'int'"),
    (lambda: pj.Condition(""), "name"),
    (lambda: pj.Condition("a", edits=["x"]), "pj.add"),
    (lambda: pj.Condition("a", replicate=1.5), "replicate=1.5"),
    (lambda: pj.Grid(["w1"], [pj.Condition("a")], max_new_tokens=2.5), "max_new_tokens=2.5"),
    (lambda: pj.Grid(["w1"], [pj.Condition("a")], max_new_tokens=0), "max_new_tokens=0"),
    (lambda: pj.Grid(["w1"], [pj.Condition("a")], max_new_tokens=1, seed="s"), "seed='s'"),
    (lambda: pj.Grid(["w1"], [pj.Condition("a")], max_new_tokens=1, samples=0), "samples=0"),
  ],
)
def test_bad_grids_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_conditions_refuse_one_amount_a_row(tiny):
  edit = pj.add(tiny.direction(), [1.0, 2.0], unit="raw", blocks=1)
  with pytest.raises(ValueError, match="'c'.*one amount a row; a condition needs one number"):
    pj.Condition("c", edits=[edit])
