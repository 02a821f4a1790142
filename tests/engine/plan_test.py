"""What a plan announces is what the run does."""

import dataclasses
import gc
import math
import types

import jax
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import generate as generating
from persona_jax.engine import memory, score
from persona_jax.engine import tile_plan as planning
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.memory import DryMemory, program_bytes
from persona_jax.engine.need import TAKE_PARAMS, TAKE_PLACE, Need, shape_of, tree_bytes
from persona_jax.engine.plan import grid_rows, grid_settings
from persona_jax.engine.prefill import prefill
from persona_jax.engine.programs import DIRECT, PROGRAMS, Live
from persona_jax.engine.rows import row_bucket
from persona_jax.engine.settings import Settings
from persona_jax.engine.tiles import tiles
from persona_jax.engine.tree import Tree

STEM = " ".join(f"w{i}" for i in range(20, 60))


def steered(tiny, count, block=1, tokens="all"):
  d = tiny.direction()
  return [
    pj.Condition(f"c{c}", edits=pj.add(d, c, unit="unit", blocks=block, tokens=tokens))
    for c in range(1, count + 1)
  ]


def grid(tiny, conditions, prompts=3, **options):
  texts = [pj.Raw(f"{STEM} w{i} w{i + 1} w{i + 2} w{i + 7}") for i in range(5, 5 + prompts)]
  return pj.Grid(texts, conditions, max_new_tokens=4, **options)


def test_a_plan_compiles_and_runs_nothing(tiny, monkeypatch):
  def never(*args, **options):
    raise AssertionError("a plan runs a program")

  real = type(DIRECT).__call__

  def only_traced(*args, **options):
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args[2:])):
      never()
    return real(*args, **options)

  monkeypatch.setattr(type(DIRECT), "__call__", only_traced)
  for runner, call in ((Live, "call"), (Need, "compile")):
    monkeypatch.setattr(runner, call, never)
  d = tiny.direction()
  gated = pj.add(d, 1.0, unit="raw", blocks=1).when(pj.Probe(d, 1, above=0.0))
  conditions = [*steered(tiny, 5), pj.Condition("gated", edits=gated)]
  before = len(PROGRAMS)
  pj.plan(tiny.model, grid(tiny, conditions, prompts=2), early_ends=True)
  assert before == len(PROGRAMS)


def test_edits_that_are_alike_share_however_often_they_were_made(tiny, tmp_path):
  d, e = tiny.direction(), tiny.direction(1)
  make = lambda: pj.ablate(e, blocks=0, tokens="all")
  first = make()
  passes = []
  for ablate in (lambda: first, make):
    conditions = [
      pj.Condition(f"c{c}", edits=[ablate(), pj.add(d, c, unit="unit", blocks=2, tokens="all")])
      for c in range(4)
    ]
    passes.append(pj.plan(tiny.model, grid(tiny, conditions)).passes)
  assert passes[0] == passes[1]


def test_passes_are_those_of_the_blocks_that_ran(tiny, monkeypatch):
  ran = []
  real = Live.call

  def call(self, device, name, fn, args, static):
    if name == "block":
      rows, tokens, _ = args[1].shape
      ran.append(rows * tokens)
    return real(self, device, name, fn, args, static)

  monkeypatch.setattr(Live, "call", call)
  for block, tokens in ((1, "all"), (0, "last:3"), (1, "generated")):
    asked = grid(tiny, steered(tiny, 20, block, tokens))
    _, rows = grid_rows(tiny.model, asked)
    ran.clear()
    out = prefill(tiny.model, Tree(rows, [len(row.ids) - 1 for row in rows]))
    assert sum(ran) == out.padded_passes
    assert out.padded_passes < 3 * sum(len(row.ids) - 1 for row in rows) / 1.5


@pytest.mark.parametrize(
  ("block", "tokens", "fewer"),
  # Of L blocks those up to the edit's are shared: 20 L / (l + 1 + 20 (L - l - 1)).
  [(1, "all", 20 * 3 / (2 + 20)), (0, "all", 20 * 3 / (1 + 40)), (1, "generated", 20.0)],
)
def test_passes_are_near_the_least_there_are(tiny, block, tokens, fewer):
  # One prompt, so that conditions alone share.
  asked = grid(tiny, steered(tiny, 20, block, tokens), prompts=1)
  plan = pj.plan(tiny.model, asked)
  assert plan.passes <= 1.1 * plan.least_passes
  np.testing.assert_allclose(plan.unshared_passes / plan.passes, fewer, rtol=1e-6)
  _, rows = grid_rows(tiny.model, asked)
  ran = prefill(tiny.model, Tree(rows, [len(row.ids) - 1 for row in rows]))
  assert ran.passes == plan.passes and ran.padded_passes == plan.tiles[0].padded_passes


def test_the_work_of_a_tile_is_that_of_the_plan(tiny):
  asked = grid(tiny, [pj.Condition("none"), *steered(tiny, 6)], prompts=4)
  plan, (_, rows) = pj.plan(tiny.model, asked), grid_rows(tiny.model, asked)
  _, work = generating.run_tile(tiny.model, rows, grid_settings(tiny.model, asked))
  assert work.passes == plan.passes and work.padded_passes == plan.tiles[0].padded_passes


def test_announced_programs_are_those_of_the_run(tiny, tmp_path):
  asked = grid(tiny, [pj.Condition("none"), *steered(tiny, 6)], prompts=4)
  plan = pj.plan(tiny.model, asked)
  table = pj.compile(tiny.model, plan)
  before = len(PROGRAMS)
  pj.run(tiny.model, asked, out=tmp_path, progress=False)
  assert len(PROGRAMS) == before
  again = pj.compile(tiny.model, plan)
  assert [p.name for p in again.programs] == [p.name for p in table.programs]
  assert all(p.calls > 0 and p.traces <= 1 and p.seconds > 0 for p in again.programs)
  assert {"embed", "block", "decode"} <= {p.name for p in again.programs}


def test_vectors_and_doses_make_no_new_program_but_windows_and_shares_can(tiny):
  def programs(seed, doses, tokens="all"):
    d = tiny.direction(seed)
    conditions = [
      pj.Condition(f"{i}", edits=pj.add(d, c, unit="unit", blocks=1, tokens=tokens) if c else ())
      for i, c in enumerate(doses)
    ]
    return {need.key for need in pj.plan(tiny.model, grid(tiny, conditions, prompts=2)).needs}

  first = programs(0, [1, 2, 3, 4])
  assert programs(1, [0.5, -2, 7, 9]) == first
  assert programs(0, [1, 2, 3, 4], "generated") - first
  assert programs(0, [1, 2, None, None]) - first  # two conditions are alike


def test_programs_of_answers_that_end_early_are_listed_if_asked_for(tiny, tmp_path, leave_early):
  ends = dataclasses.replace(tiny.model.tokenizer, eos_ids=(3, 8, 13, 17, 29, 33, 41, 57))
  model = dataclasses.replace(tiny.model, tokenizer=ends)
  asked = dataclasses.replace(grid(tiny, steered(tiny, 2), prompts=4), max_new_tokens=40)
  text = str(pj.plan(model, asked))
  assert "if answers end early, batches shrink to 4, 1 rows" in text
  plan = pj.plan(model, asked, early_ends=True)
  assert f"{len(plan.early_needs)} more may be needed if answers end early" in str(plan)
  table = pj.compile(model, plan)
  # Two smaller sizes, each with caches of 32 and of 40 slots.
  assert [p.name for p in table.early].count("decode") == 4
  before = set(PROGRAMS._entries)
  run = pj.run(model, asked, out=tmp_path / "run", progress=False)
  assert (run.table()["n_tokens"] < 40).mean() > 0.5
  more = [entry for key, entry in PROGRAMS._entries.items() if key not in before]
  called = {entry.need.name for entry in more if entry.calls}
  assert called <= {"leave out", "take classes", "lengthen"}
  again = pj.compile(model, plan)
  assert any(p.calls for p in again.early if p.name == "decode")
  # The same grid once more compiles nothing.
  before = set(PROGRAMS._entries)
  pj.run(model, asked, out=tmp_path / "again", progress=False)
  assert not [e for key, e in PROGRAMS._entries.items() if key not in before and e.calls]


def test_what_is_said_of_results_without_a_trace_is_what_a_trace_says(tiny):
  plan = pj.plan(tiny.model, grid(tiny, steered(tiny, 2)))
  said = [need for need in plan.needs if need.name in TAKE_PLACE]
  assert said
  for need in said:
    results, new_bytes = need.results(), need.new_result_bytes
    traced = need.fn.trace(*need.args, **need.static)
    assert jax.tree.map(shape_of, traced.out_info) == results
    donated = [x for x in jax.tree.leaves(traced.args_info) if x.donated]
    assert sum(math.prod(x.shape) * x.dtype.itemsize for x in donated) == tree_bytes(results)
    assert new_bytes == 0


def test_donated_caches_alias(tiny):
  plan = pj.plan(tiny.model, grid(tiny, steered(tiny, 2)))
  (decode,) = [p for p in pj.compile(tiny.model, plan).programs if p.name == "decode"]
  arch = tiny.model.arch
  caches = 4 * 2 * 8 * arch.num_blocks * arch.num_kv_heads * 4 * arch.head_dim
  assert caches <= decode.alias_bytes <= decode.output_bytes < decode.alias_bytes + 1024


def test_report_says_what_a_reader_needs(tiny):
  plan = pj.plan(tiny.model, grid(tiny, steered(tiny, 20), prompts=1), lengths=[2, 4])
  text = str(plan)
  tokens = 44
  assert plan.row_tokens == (tokens,) * 20
  assert "20 rows = 1 prompts x 20 conditions x 1 samples" in text
  assert f"{20 * (tokens - 1)} to prefill without sharing" in text and "2.73x fewer" in text
  assert "lanes from block 0: (1, 20)" in text and "lanes from block 2: (24, 1)" in text
  assert "answers are as long as the 2 given (mean 3.0 tokens)" in text
  assert 0 < plan.wasted_row_steps < 0.6 and f"{plan.wasted_row_steps:.1%}" in text


def test_gates_are_taken_as_on_and_named(tiny):
  probe = pj.Probe(tiny.direction(), 1, above=0.0)
  gated = pj.Condition(
    "gated", edits=pj.add(tiny.direction(), 1.0, unit="unit", blocks=1).when(probe)
  )
  plan = pj.plan(tiny.model, grid(tiny, [gated]))
  assert plan.undecided == 3 and "3 rows have a gate" in str(plan)


def test_programs_that_read_for_gates_are_announced(tiny, tmp_path):
  probe = pj.Probe(tiny.direction(), 1, above=-1e9)  # on for every prompt, as is announced
  edits = pj.add(tiny.direction(), 1.0, unit="unit", blocks=1).when(probe)
  conditions = [pj.Condition("none"), pj.Condition("gated", edits=edits)]
  # Of lengths that no other test has.
  prompts = [pj.Raw(f"{STEM} {STEM} {STEM} w{i}") for i in (5, 6)]
  asked = pj.Grid(prompts, conditions, max_new_tokens=3)
  plan = pj.plan(tiny.model, asked)
  assert not any(need.key in PROGRAMS._entries for need in plan.gate_needs if need.name == "block")
  assert {"add reads", "mean of reads"} <= {need.name for need in plan.gate_needs}
  pj.compile(tiny.model, plan)
  before = len(PROGRAMS)
  pj.run(tiny.model, asked, out=tmp_path / "run", progress=False)
  assert len(PROGRAMS) == before


def test_lengths_are_checked(tiny):
  for wrong in ([], [0, 3]):
    with pytest.raises(ValueError, match="at least 1"):
      pj.plan(tiny.model, grid(tiny, steered(tiny, 1)), lengths=wrong)


@pytest.mark.parametrize(
  ("lengths", "message"),
  [
    (["a"], r"lengths\[0\]='a': give an integer of at least 1"),
    ([3, 2.5], r"lengths\[1\]=2.5: give an integer"),
    (5, "lengths=5: give a list"),
    ("12", "lengths='12': give a list"),
    ([3.0, float("nan")], r"lengths\[1\] is NaN"),
  ],
)
def test_lengths_that_are_no_integers_are_refused(tiny, lengths, message):
  with pytest.raises(ValueError, match=message):
    pj.plan(tiny.model, grid(tiny, steered(tiny, 1)), lengths=lengths)


def test_lengths_of_a_float_column_and_a_negative_seed_are_taken(tiny):
  plans = [
    pj.plan(tiny.model, grid(tiny, steered(tiny, 2), seed=-1), lengths=lengths)
    for lengths in (np.asarray([3.0, 2.0]), [3, 2])
  ]
  assert str(plans[0]) == str(plans[1]) and "the 2 given (mean 2.5 tokens)" in str(plans[0])


def test_what_is_no_grid_is_refused(tiny):
  with pytest.raises(ValueError, match=r"the grid is a list; give a pj\.Grid\(prompts, "):
    pj.plan(tiny.model, ["Hello?"])


def test_a_prompt_of_a_grid_that_cannot_be_rendered_is_named(tiny):
  answer = [{"role": "assistant", "content": "w5"}]
  asked = pj.Grid({"a": "w5", "b": answer}, steered(tiny, 1), max_new_tokens=2)
  with pytest.raises(ValueError, match="prompt 'b' of condition 'c1': the only message is an"):
    pj.plan(tiny.model, asked)


def test_a_condition_that_does_not_fit_a_prompt_is_named_once(tiny):
  asked = pj.Grid([pj.Raw("w5")], [pj.Condition("c", system="w6")], max_new_tokens=2)
  with pytest.raises(ValueError, match="^prompt '0000' of condition 'c': the condition changes"):
    pj.plan(tiny.model, asked)


def first_blocks(model, count=8):
  """Returns a model of the first blocks, which compiles in less time."""
  arch = dataclasses.replace(model.arch, pattern=model.arch.pattern[:count])
  params = model.params | {"blocks": model.params["blocks"][:count]}
  return dataclasses.replace(model, arch=arch, params=params)


@pytest.mark.bits
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predicted_memory_is_that_of_the_compiler(smollm2, dtype):
  model = smollm2 if dtype == "float32" else pj.load("smollm2-135m-instruct", dtype=dtype)
  d = pj.Direction(np.ones((1, 30, 576)), "ones")
  conditions = [
    pj.Condition(f"c{c}", edits=pj.add(d, c, unit="unit", blocks=15, tokens="all"))
    for c in range(1, 17)
  ]
  prompts = [f"{i} " + "walk city friend good " * 6 for i in range(4)]
  plan = pj.plan(model, pj.Grid(prompts, conditions, max_new_tokens=32))
  largest = {}
  for need in plan.needs:
    if need.name in ("behind", "block", "decode") and not need.static.get("only_kv"):
      largest[need.name] = max(need, largest.get(need.name, need), key=lambda n: n.argument_bytes)
  assert len(largest) == 3
  for name, need in largest.items():
    (program,) = PROGRAMS.describe([need])
    # Without the parameters, which would hide what is wrong with the rest.
    own = tree_bytes(need.args[0]) if name in TAKE_PARAMS else 0
    rest = program.total_bytes - own
    assert 0.9 < (program_bytes(need, model.arch) - own) / rest < 1.1, name
    assert program_bytes(need, model.arch) <= plan.peak_bytes
  assert plan.peak_bytes <= 1.1 * program.total_bytes  # of decoding, the last


@pytest.mark.bits
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predicted_memory_of_scores_is_the_compilers(smollm2, dtype):
  model = smollm2 if dtype == "float32" else pj.load("smollm2-135m-instruct", dtype=dtype)
  model = first_blocks(model)
  rows = encode_rows(model, [pj.Raw(f"{STEM} w{n}") for n in range(60)], None)
  passes = [score._Pass(row, tuple(range(50, 70)), [7, 8]) for row in rows]
  tree = Tree([one.whole(model) for one in passes], [len(row.ids) + 20 for row in rows])
  asked, dry = score._asked(passes), DryMemory(model.arch, model.params)
  assert len(asked) == 60 * 22
  prefix = prefill(model, tree, chosen=[item[:2] for item in asked], run=dry)
  parts = [part for part, _ in score._next_tokens(model, prefix, asked, model.runner(dry))]
  assert sorted(item for part in parts for item in part) == sorted(asked)
  need, *_ = (need for need in dry if need.name == "log-probs")
  (program,) = PROGRAMS.describe([need])
  own = tree_bytes(need.args[0])
  predicted, real = program_bytes(need, model.arch) - own, program.total_bytes - own
  print(f"{need.name} in {dtype}: {predicted / real:.3f} of what the compiler reports")
  assert 0.9 < predicted / real < 1.1
  assert dry.peak_bytes >= program_bytes(need, model.arch)


@pytest.mark.bits
def test_predicted_memory_of_long_prompts_projections_and_sampling_is_the_compilers(smollm2):
  model = first_blocks(smollm2)
  d = pj.Direction(np.random.default_rng(0).normal(size=(1, 8, 576)), "d")
  conditions = [
    pj.Condition(f"c{c}", edits=pj.cap(d, 0.1 * c, unit="unit", blocks=4, tokens="all"))
    for c in range(8)
  ]
  stem = "walk city friend good " * 40
  prompts = [f"{stem}{i} " + "what is a good walk " * 8 for i in range(4)]
  grid = pj.Grid(prompts, conditions, max_new_tokens=32, temperature=1.0)
  plan = pj.plan(model, grid)
  assert max(plan.row_tokens) > 160
  largest = {}
  for need in plan.needs:
    if need.name in ("behind", "block", "decode", "merge waves"):
      if not need.static.get("only_kv"):
        largest[need.name] = max(need, largest.get(need.name, need), key=lambda n: n.argument_bytes)
  for name, need in largest.items():
    (program,) = PROGRAMS.describe([need])
    own = tree_bytes(need.args[0]) if name in TAKE_PARAMS else 0
    predicted, real = program_bytes(need, model.arch) - own, program.total_bytes - own
    print(f"{name}: {predicted / real:.3f} of what the compiler reports")
    assert 0.9 < predicted / real < 1.1, name
  assert plan.peak_bytes <= 1.1 * max(
    PROGRAMS.describe([n])[0].total_bytes for n in plan.needs[-2:]
  )


def test_the_largest_tile_that_fits_is_chosen(tiny, monkeypatch):
  asked = grid(tiny, steered(tiny, 40), prompts=8)
  _, rows = grid_rows(tiny.model, asked)
  # Of long answers, the caches of which are most of the memory.
  settings = dataclasses.replace(grid_settings(tiny.model, asked), max_new_tokens=64)
  # 320 rows in tiles of at most 256, 216, 176 or 128: thrice of 160, then of 120, 120 and 80.
  peaks = [
    planning.plan_tile(tiny.model, rows, tiles(rows, most)[0], settings).peak_bytes
    for most in (216, 128)
  ]
  limit = sum(peaks) // 2
  monkeypatch.setattr(planning, "memory_limit", lambda mesh: limit)
  monkeypatch.setattr(planning, "most_bytes", lambda *args: 1 << 40)
  real, planned = planning.plan_tile, []
  monkeypatch.setattr(
    planning, "plan_tile", lambda *args, **kw: planned.append(len(args[2])) or real(*args, **kw)
  )
  tiled = planning.cut(tiny.model, rows, settings)
  assert sorted(n for tile in tiled for n in tile) == list(range(320))
  assert [len(tile) for tile in tiled] == [120, 120, 80]
  assert sorted(planned) == [80, 120, 120, 160]  # cut alike is tried once, and all must fit


def test_what_surely_fits_does(tiny):
  asked = grid(tiny, steered(tiny, 20), prompts=4)
  _, rows = grid_rows(tiny.model, asked)
  settings = grid_settings(tiny.model, asked)
  peak = planning.plan_tile(tiny.model, rows, range(len(rows)), settings).peak_bytes
  surely = planning.most_bytes(tiny.model, rows, settings)
  assert peak < surely < 1 << 34
  # The vectors of 8 slots at all blocks, by row, count as they do in the table.
  subspace = pj.ablate_subspace([tiny.direction(n) for n in range(8)], blocks="all")
  wide = [dataclasses.replace(row, edits=(subspace,)) for row in rows]
  table = pj.compile_edits(tiny.model, [[subspace]] * row_bucket(len(rows)))
  assert planning.most_bytes(tiny.model, wide, settings) - surely > 1.5 * tree_bytes(table)


def test_tiles_are_as_small_as_the_longest_prompts_need(tiny, monkeypatch):
  texts = [f"w{5 + i}" for i in range(17)] + [" ".join([f"w{5 + i}"] * 90) for i in range(16)]
  rows = encode_rows(tiny.model, texts, None)
  settings = Settings(2)
  monkeypatch.setattr(planning, "most_rows", lambda device: 32)
  short, long = (
    planning.plan_tile(tiny.model, rows, tile, settings).peak_bytes for tile in tiles(rows, 32)
  )
  limit = (short + long) // 2
  monkeypatch.setattr(planning, "memory_limit", lambda mesh: limit)
  for tile in planning.cut(tiny.model, rows, settings):
    assert planning.plan_tile(tiny.model, rows, tile, settings).peak_bytes <= limit


def test_where_not_even_a_row_fits_tiles_are_of_one(tiny, monkeypatch):
  monkeypatch.setattr(planning, "memory_limit", lambda mesh: 1000)
  for count in (1, 2):
    rows = encode_rows(tiny.model, ["w5 w6"] * count, None)
    assert planning.cut(tiny.model, rows, Settings(2)) == [[n] for n in range(count)]


def test_what_is_held_at_each_call_is_that_of_the_run(tiny, monkeypatch):
  stem, middle = (" ".join(f"w{i}" for i in range(first, first + 20)) for first in (20, 60))
  prompts = [pj.Raw(f"{stem} w{5 + i} {middle} w{5 + i}") for i in range(6)]
  asked = pj.Grid(prompts, steered(tiny, 3, block=0), max_new_tokens=40)
  _, rows = grid_rows(tiny.model, asked)
  settings = Settings(asked.max_new_tokens)  # no stops: no answer ends early
  predicted, seen = [], []

  class Noted(memory.DryMemory):
    def call(self, device, name, fn, args, static):
      predicted.append((name, self._held[0]))
      return super().call(device, name, fn, args, static)

  monkeypatch.setattr(planning, "DryMemory", Noted)
  planning.plan_tile(tiny.model, rows, range(len(rows)), settings)
  generating.run_tile(tiny.model, rows, settings)  # banks of vectors are made once and stay
  gc.collect()
  before = {id(x): x for x in jax.live_arrays()}
  real = Live.call

  def noted(self, device, name, fn, args, static):
    held = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
    seen.append((name, held))
    return real(self, device, name, fn, args, static)

  monkeypatch.setattr(Live, "call", noted)
  generating.run_tile(tiny.model, rows, settings)
  assert [name for name, _ in predicted] == [name for name, _ in seen]
  assert {"merge waves", "lengthen", "decode"} <= {name for name, _ in seen}
  for (name, foretold), (_, held) in zip(predicted, seen, strict=True):
    assert abs(foretold - held) <= 0.02 * held + 4096, name


@pytest.mark.parametrize(
  ("group", "file", "text", "limit"),
  [
    ("0::/", "memory.max", "1000000", 1000000),
    ("0::/a.slice/b", "a.slice/memory.max", "1000000", 1000000),
    ("0::/", "memory.max", "max", None),
    ("5:memory:/docker/x", "memory/docker/x/memory.limit_in_bytes", "1000000", 1000000),
    ("5:memory:/docker/x", "memory/memory.limit_in_bytes", "9223372036854771712", None),
    ("5:cpu:/docker/x", "memory/docker/x/memory.limit_in_bytes", "1000000", None),
  ],
)
def test_limit_of_a_container_counts(tmp_path, group, file, text, limit):
  unlimited = memory.host_bytes(tmp_path)
  (tmp_path / "proc/self").mkdir(parents=True)
  (tmp_path / "proc/self/cgroup").write_text(group + "\n")
  path = tmp_path / "sys/fs/cgroup" / file
  path.parent.mkdir(parents=True)
  path.write_text(text + "\n")
  assert memory.host_bytes(tmp_path) == (limit or unlimited)


def test_a_plan_is_compiled_for_its_own_model_only(tiny, tiny_tied):
  asked = grid(tiny, steered(tiny, 1))
  plan = pj.plan(tiny.model, asked)
  half = pj.load(tiny.directory, dtype="bfloat16")
  for other in (tiny_tied.model, half):
    with pytest.raises(ValueError, match="the plan is for .* make a plan with this model"):
      pj.compile(other, plan)
  with pytest.raises(ValueError, match=r"pj\.plan\(model, grid\); got a Grid"):
    pj.compile(tiny.model, asked)
  compared = pj.plan(tiny.model, asked, sharing=pj.Sharing(trunk=False))
  assert "sharing   all but trunk (pj.run shares all)" in str(compared)
  assert "sharing" not in str(plan).split("prompts ")[0]
  with pytest.raises(ValueError, match="the plan shares all but trunk, to compare"):
    pj.compile(tiny.model, compared)
  for wrong in (None, False, "all"):
    with pytest.raises(ValueError, match=r"sharing=.*: give a pj\.Sharing"):
      pj.plan(tiny.model, asked, sharing=wrong)
  with pytest.raises(ValueError, match="trunk='no': give True or False"):
    pj.Sharing(trunk="no")
  assert repr(plan).startswith("<Plan of 3 rows in 1 tiles for ")


def test_programs_of_the_next_tile_are_made_while_one_runs(tiny, monkeypatch):
  said = []
  monkeypatch.setattr(PROGRAMS, "prepare", lambda needed: said.append(("prepared", needed())))
  monkeypatch.setattr(
    generating, "plan_tile", lambda model, rows, tile, *_, **__: types.SimpleNamespace(needs=tile)
  )
  monkeypatch.setattr(
    generating, "generate_tile", lambda model, rows, _: said.append(("ran", rows)) or rows
  )
  tiled, long = [[0, 1], [2, 3], [4, 5]], Settings(generating.AHEAD_STEPS + 1)
  done = list(generating.run_tiles(tiny.model, range(6), long, tiled))
  assert done == [(tile, tile) for tile in tiled]
  first, second, third = tiled
  ahead = [("prepared", first), ("prepared", second), ("ran", first), ("prepared", third)]
  assert said == [*ahead, ("ran", second), ("ran", third)]
  said.clear()
  list(generating.run_tiles(tiny.model, range(6), Settings(1), tiled))  # is over before
  assert said == [("ran", tile) for tile in tiled]


def test_a_function_that_cannot_decode_is_refused_before_the_work(tiny, tmp_path):
  def branching(h_BTD, params, offset_BT):
    return h_BTD if h_BTD.shape[1] > 1 or h_BTD.sum() > 0 else -h_BTD

  def narrowing(h_BTD, params, offset_BT):
    return h_BTD[..., :3]

  for fn, error, said in (
    (branching, jax.errors.TracerBoolConversionError, "boolean"),
    (narrowing, ValueError, r"condition 'odd': .*narrowing' turns shape .* it must stay"),
  ):
    edit = pj.custom_edit(fn, blocks=1, tokens="generated")
    asked = grid(tiny, [pj.Condition("none"), pj.Condition("odd", edits=edit)])
    for call in (pj.plan, lambda model, grid: pj.run(model, grid, out=tmp_path / "run")):
      with pytest.raises(error, match=said):
        call(tiny.model, asked)
  assert not (tmp_path / "run").exists()
