"""Decoding in segments: rows that are done leave, caches grow, and nothing else changes."""

import dataclasses
import gc
import threading
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import decode, segments
from persona_jax.engine import generate as generating
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.generate import generate_tile, run_tile
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import merged
from persona_jax.engine.programs import PROGRAMS, Dry
from persona_jax.engine.rows import levels
from persona_jax.engine.segments import decode_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import plan_tile
from persona_jax.engine.tree import ALL_SHARED, Tree

STEM = " ".join(f"w{i}" for i in range(40, 60))
# Ends answers of the tiny model at many different lengths.
STOPS = (3, 8, 13, 17, 29, 33, 41, 57)
SETTINGS = Settings(40, stop_ids=STOPS, logprobs=True, trace=True)


def grid_rows(tiny, prompts=5):
  d, e = tiny.direction(0, norm=6.0), tiny.direction(1, norm=6.0)
  edits = [
    [],
    [pj.add(d, 1.0, unit="raw", blocks=1, tokens="all")],
    [pj.ablate(e, blocks=2, tokens="generated"), pj.add(e, 1.0, unit="raw", blocks=0)],
  ]
  pairs = [(pj.Raw(f"{STEM} w{p + 5} w{p + 30}"), e) for p in range(prompts) for e in edits]
  return encode_rows(tiny.model, [p for p, _ in pairs], [e for _, e in pairs])


def test_rows_that_leave_and_caches_that_grow_change_nothing(tiny, leave_early):
  rows, settings = grid_rows(tiny), SETTINGS
  together, work = run_tile(tiny.model, rows, settings)
  lengths = [len(g.token_ids) for g in together]
  sizes = [size for size, _, _ in work.decoding.segments]
  assert len(set(lengths)) > 5 and len(set(sizes)) > 2 and sizes == sorted(sizes, reverse=True)
  for n in range(1, len(rows), 6):
    (alone,) = generate_tile(tiny.model, [rows[n]], settings)
    assert together[n].token_ids == alone.token_ids
    assert together[n].finish_reason == alone.finish_reason
    assert together[n].tokens_edited == alone.tokens_edited
    np.testing.assert_allclose(together[n].logprobs, alone.logprobs, atol=1e-4)
    np.testing.assert_allclose(together[n].delivered_dose, alone.delivered_dose, atol=1e-4)
    np.testing.assert_allclose(
      together[n].trace.change_IT, alone.trace.change_IT, atol=2e-4, rtol=1e-4
    )


def test_a_cpu_writes_slots_of_float32(tiny):
  # Of a 16-bit array XLA for CPUs writes the whole to change a slice.
  half = pj.load(tiny.directory, dtype="bfloat16")
  rows = encode_rows(half, [pj.Raw(f"{STEM} w7"), pj.Raw(f"{STEM} w8")], None)
  needs = [n for n in plan_tile(half, rows, [0, 1], SETTINGS).needs if n.name == "decode"]
  assert needs
  for need in needs:
    _, shared, _, _, _, state, *_ = need.args
    assert {kv.dtype for kv in state.caches} == {np.dtype(np.float32)}
    prompts = {part.kv.dtype for parts in shared.values() for part in parts}
    assert prompts == {np.dtype(jnp.bfloat16)}
  on_gpu = types.SimpleNamespace(device=types.SimpleNamespace(platform="gpu"), params=half.params)
  assert decode.cache_dtype(on_gpu) == jnp.bfloat16


def test_work_counts_every_step_of_every_row(tiny, leave_early):
  rows = grid_rows(tiny)
  generations, work = run_tile(tiny.model, rows, SETTINGS)
  done = work.decoding
  assert done.used_row_steps == sum(len(g.token_ids) for g in generations)
  assert done.row_steps == sum(size * steps for size, _, steps in done.segments)
  assert done.steps == max(len(g.token_ids) for g in generations)
  assert all(slots >= 32 for _, slots, _ in done.segments)


def test_dry_run_foretells_segments_and_programs(tiny, leave_early):
  rows, settings = grid_rows(tiny), SETTINGS
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  generations, work = run_tile(tiny.model, rows, settings)
  dry = Dry()
  waves = prefill(tiny.model, tree, run=dry).waves
  lengths = [len(g.token_ids) for g in generations]
  answers, foretold = decode_rows(
    tiny.model, rows, waves, settings, order=tree.order, run=dry, lengths=lengths
  )
  assert foretold == work.decoding and answers == [None] * len(rows)
  decodes = {need.key for need in dry if need.name == "decode"}
  assert len(decodes) == len({(size, slots) for size, slots, _ in foretold.segments})


def test_programs_compiled_ahead_are_those_needed(tiny):
  rows, settings = grid_rows(tiny), SETTINGS
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  waves = prefill(tiny.model, tree).waves
  ahead, real = Dry(), Dry()
  make = lambda run: segments._Batch(
    tiny.model, rows, list(waves), settings, tree.order, copies=False, run=run,
    lengths=[40] * 8 + [5] * 7,
  )  # fmt: skip
  batch = make(Dry())
  batch._next(ahead).leave_out_and_call(8)
  batch = make(real)
  before = set(real.needs)
  batch._done[:7] = True  # other rows than the first
  batch._leave_out(8)
  batch._call(0, 0)
  assert set(real.needs) - before == set(ahead.needs)


def test_programs_compiled_ahead_keep_no_arrays_while_they_wait(tiny):
  rows, go = grid_rows(tiny), threading.Event()
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  waves = prefill(tiny.model, tree).waves
  batch = segments._Batch(
    tiny.model, rows, waves, dataclasses.replace(SETTINGS, max_new_tokens=64), tree.order,
    copies=False, run=PROGRAMS, lengths=None,
  )  # fmt: skip
  PROGRAMS._ahead.submit(lambda: [go.wait()] and None)
  try:
    batch.compile_ahead()
    arrays = jax.tree.leaves((batch._shared, batch._state))
    alive = [weakref.ref(x) for x in arrays if isinstance(x, jax.Array)]
    assert len(alive) > 10
    del batch, arrays, waves
    gc.collect()
    assert not any(ref() is not None for ref in alive)
  finally:
    go.set()


def test_rows_are_left_out_only_if_many_steps_may_still_come(tiny, monkeypatch):
  monkeypatch.setattr(segments, "AHEAD_STEPS", 10**9)  # no programs on suspicion
  rows, settings = grid_rows(tiny), dataclasses.replace(SETTINGS, max_new_tokens=31)
  generations, work = run_tile(tiny.model, rows, settings)
  assert len({len(g.token_ids) for g in generations}) > 5
  assert {size for size, _, _ in work.decoding.segments} == {16}


def test_levels_are_three_an_octave_in_multiples_of_8_then_4_and_1():
  assert levels(128) == [128, 112, 88, 64, 56, 48, 32, 24, 16, 8, 4, 1]
  assert levels(144) == [144, 120, 96, 72, 64, 48, 40, 32, 24, 16, 8, 4, 1]
  assert levels(8) == [8, 4, 1] and levels(1) == [1]


@pytest.mark.parametrize("rows", [128, 144, 256])
@pytest.mark.parametrize(
  ("mean", "budget", "most"),
  [
    (20, 256, 0.15),
    (60, 256, 0.15),
    (100, 256, 0.15),
    (100, 512, 0.15),
    (20, 64, 0.3),
    (60, 64, 0.25),
  ],
)
def test_few_row_steps_are_wasted_at_a_constant_rate_of_ends(tiny, rows, mean, budget, most):
  row, shares = grid_rows(tiny, 1)[0], []
  for seed in range(3):
    lengths = np.minimum(np.random.default_rng(seed).geometric(1 / mean, rows), budget)
    tree, dry = Tree([row] * rows, [len(row.ids) - 1] * rows), Dry()
    waves = prefill(tiny.model, tree, run=dry).waves
    _, work = decode_rows(
      tiny.model,
      [row] * rows,
      waves,
      Settings(budget),
      order=tree.order,
      run=dry,
      lengths=lengths,
    )
    assert work.used_row_steps == lengths.sum()
    shares.append(work.wasted)
  print(f"{rows} rows, {mean} of {budget} tokens: {np.mean(shares):.1%} of row-steps are wasted")
  assert np.mean(shares) <= most


def several_waves(tiny):
  """Rows whose prompts share a stem, then a middle with the edit before it; 3 depths of a tree."""
  stem, middle = (" ".join(f"w{i}" for i in range(first, first + 20)) for first in (20, 60))
  prompts = [pj.Raw(f"{stem} w{5 + i} {middle} w{5 + i}") for i in range(6)]
  edits = [pj.add(tiny.direction(), c, unit="unit", blocks=0, tokens="all") for c in (1, 2, 3)]
  return encode_rows(
    tiny.model, [p for _ in edits for p in prompts], [e for e in edits for _ in prompts]
  )


@pytest.mark.parametrize("sharing", [ALL_SHARED, dataclasses.replace(ALL_SHARED, attention=False)])
def test_of_prefill_only_what_rows_read_is_held_while_decoding(tiny, monkeypatch, sharing):
  made, held = [], []
  real_prefill, real_call = generating.prefill, segments._Batch._call

  def prefill_noted(*args, **options):
    prefix = real_prefill(*args, **options)
    assert len(prefix.waves) > 1
    made.extend(weakref.ref(kv.k_BKHS) for wave in prefix.waves for kv in wave.kv)
    return prefix

  def call_noted(batch, until, leave):
    if not batch._run.is_dry:
      read = {id(part.kv.k_BKHS) for parts in batch._shared.values() for part in parts}
      held.append([ref for ref in made if ref() is not None and id(ref()) not in read])
    return real_call(batch, until, leave)

  monkeypatch.setattr(generating, "prefill", prefill_noted)
  monkeypatch.setattr(segments._Batch, "_call", call_noted)
  run_tile(tiny.model, several_waves(tiny), Settings(4), sharing=sharing)
  assert made and held == [[]]


def test_merging_lets_a_block_s_arrays_go_before_the_next_block(tiny):
  rows = several_waves(tiny)
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  waves = prefill(tiny.model, tree).waves
  made = [weakref.ref(kv.k_BKHS) for wave in waves for kv in wave.kv]
  alive = []

  def run(name, fn, *args, **static):
    alive.append(sum(ref() is not None for ref in made))
    return fn(*args, **static)

  merged(waves, 1 << 20, tree.order, run=run)
  # Two waves of three blocks; while a block is merged its own arrays are still there.
  assert not waves and len(made) == 6 and alive == [6, 4, 2]
