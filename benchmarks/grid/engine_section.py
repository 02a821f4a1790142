"""What the engine reaches by itself, on SmolLM2.

Shares of the machine's ceilings, what steering and many configurations cost, what is computed of
the least there is, flipped tokens, wasted row-steps.

All in one process, float32 unless said otherwise; what is compared is run side by side.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import persona_jax as pj
from benchmarks.grid import machine
from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.ours import edits_of
from persona_jax.engine.decode import cache_dtype
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.generate import generate_tile, run_tile
from persona_jax.engine.prefill import prefill
from persona_jax.engine.rows import Row
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.segments import decode_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import plan_tile
from persona_jax.engine.tree import Tree

EOS_BUDGET = 1024  # of answers that may end by themselves
SHORT_BUDGETS = (64, 256)  # of the same answers
PAIRS = 10  # of runs whose speeds are to be told apart by a hundredth
PAIRED_STEPS = 16  # of decoding, of each
PRODUCTS = 5  # of matrices, one after another, for a ceiling
# What is reported above the parts that they come from.
HEADLINE = (
  "share", "tax_one_block", "configs_256_over_1", "passes_over_minimum", "token_flip_rate_bf16",
  "wasted_row_steps",
)  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
  """Time one call."""
  begun = time.perf_counter()
  run()
  return time.perf_counter() - begun


def paired(a: Callable[[], object], b: Callable[[], object]) -> dict[str, Any]:
  """Time two calls side by side, in the order ABBA, each once before.

  A shared machine drifts by more than what is to be told apart, but less within one pair.

  Returns:
    ratio: the median of seconds of a over seconds of b, and `quartiles` of it; `samples_s`.
  """
  a(), b()
  found: dict[str, list[float]] = {"a": [], "b": []}
  for pair in range(PAIRS):
    for name, run in (("a", a), ("b", b)) if pair % 2 == 0 else (("b", b), ("a", a)):
      found[name].append(seconds(run))
  ratios = [x / y for x, y in zip(found["a"], found["b"], strict=True)]
  low, middle, high = statistics.quantiles(ratios, n=4)
  return {"ratio": middle, "quartiles": [low, high], "samples_s": found}


def rows_of(model: pj.Model, grid: Grid, window: str | None = None) -> list[Row]:
  """Return the rows of a grid."""
  edits = edits_of(model, grid, window)
  return encode_rows(model, [grid.texts[p] for p, _ in grid.rows], [edits[c] for _, c in grid.rows])


def token_flops(model: pj.Model) -> tuple[float, float]:
  """Return the multiply-adds x 2 of one token in all blocks, and in the head; attention aside."""
  blocks = sum(leaf.size for leaf in jax.tree.leaves(model.params["blocks"]) if leaf.ndim > 1)
  return 2.0 * blocks, 2.0 * model.params["embed_VD"].size


def attention_flops(model: pj.Model, slots: float) -> float:
  """Return those of one token's attention to so many slots, in all blocks."""
  arch = model.arch
  return 4.0 * arch.num_blocks * arch.num_heads * arch.head_dim * slots


def step_bytes(model: pj.Model, rows: list[Row], steps: int) -> float:
  """Return the bytes that a step of decoding has to read: weights, and each row's own cache once.

  Prompts, which rows share, are left out.
  """
  arch = model.arch
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
  if not arch.tied_head:  # then a step reads one row a token of the embedding
    weights -= model.params["embed_VD"].nbytes
  slot = 2 * cache_dtype(model).itemsize * arch.num_blocks * arch.num_kv_heads * arch.head_dim
  return float(weights + len(rows) * slot * steps / 2)


def decoding(model: pj.Model, rows: list[Row], steps: int) -> Callable[[], object]:
  """Return a call that decodes rows whose prompts are computed."""
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  waves = prefill(model, tree).waves

  def run() -> object:
    return decode_rows(model, rows, list(waves), Settings(steps), order=tree.order)

  return run


def products(dtype: str, size: int) -> Callable[[], object]:
  """Return a call that multiplies square matrices `PRODUCTS` times."""
  x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  return lambda: jax.block_until_ready([machine.product(x, x) for _ in range(PRODUCTS)])


def shares(
  model: pj.Model, work: Work, repetitions: int, *, matrix: int = machine.SIZE
) -> dict[str, Any]:
  """Measure prefill and decoding of all rows of the first grid against the matmul ceiling.

  The ceiling is products of square matrices of size `matrix` in the model's dtype, taken right
  before and after each part, the faster of the two: a shared machine drifts by more than the shares
  that are asked for.

  Prefill: the 8 long prompts, 511 tokens each, what they begin with in common once. Decoding: the
  first grid. Counted are the products of weights and of attention that the rows need, not padding,
  nor slots that are masked.
  """
  blocks, head = token_flops(model)
  long, short = work.grids["20_generated"], work.grids["all_tokens"]
  rows = encode_rows(model, long.texts, None)
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])

  def prefilled() -> object:
    return jax.block_until_ready([wave.kv for wave in prefill(model, tree).waves])

  grid_rows = rows_of(model, short)
  ceiling = products(model.dtype, matrix)
  parts = {"prefill": prefilled, "decode": decoding(model, grid_rows, short.new_tokens)}
  for run in (ceiling, *parts.values()):
    run()
  found: dict[str, list[float]] = {name: [] for name in parts}
  most: dict[str, list[float]] = {name: [] for name in parts}
  for _ in range(repetitions):
    before = seconds(ceiling)
    for name, run in parts.items():
      found[name].append(seconds(run))
      after = seconds(ceiling)
      most[name].append(2e-9 * PRODUCTS * matrix**3 / min(before, after))
      before = after
  needed = sum(
    node.length * blocks
    + sum(attention_flops(model, position + 1) for position in range(node.start, node.stop))
    for node in tree.nodes
  )
  # Of the last block only keys and values are needed.
  last = model.params["blocks"][-1]
  spared = sum(leaf.size for name, leaf in last.items() if name not in ("k_DKH", "v_DKH"))
  for node in tree.nodes:
    needed -= 2.0 * spared * node.length
    for position in range(node.start, node.stop):
      needed -= attention_flops(model, position + 1) / model.arch.num_blocks
  steps = short.new_tokens
  decoded = sum(
    steps * (blocks + head + attention_flops(model, len(row.ids) + steps / 2)) for row in grid_rows
  )
  suffix = {"float32": "f32", "bfloat16": "bf16"}[model.dtype]
  rate = {f"prefill_{suffix}": needed, f"decode{len(grid_rows)}_{suffix}": decoded}
  medians = [statistics.median(found[name]) for name in ("prefill", "decode")]
  each = {
    name: [flops / s / 1e9 / top for s, top in zip(found[part], most[part], strict=True)]
    for (name, flops), part in zip(rate.items(), ("prefill", "decode"), strict=True)
  }
  return {
    "share": {name: statistics.median(values) for name, values in each.items()},
    "share_each": each,
    "ceiling_gflops": most,
    "prompts": f"{len(long.prompts)} x {len(long.prompts[0]) - 1}",
    "gflops": {n: f / s / 1e9 for (n, f), s in zip(rate.items(), medians, strict=True)},
    "decode_step_ms": 1e3 * medians[1] / steps,
    "decode_gbs": step_bytes(model, grid_rows, steps) * steps / medians[1] / 1e9,
    "samples_s": found,
  }


def tax(model: pj.Model, work: Work) -> dict[str, Any]:
  """Measure what an edit of one block adds to decoding: 128 rows with one and without."""
  grid = work.grids["all_tokens"]
  steered = rows_of(model, grid, "generated")
  plain = [dataclasses.replace(row, edits=()) for row in steered]
  found = paired(*(decoding(model, rows, PAIRED_STEPS) for rows in (steered, plain)))
  return {"tax_one_block": found["ratio"] - 1, **found}


def configs(model: pj.Model, work: Work) -> dict[str, Any]:
  """Measure 256 rows with an edit of their own each against 256 rows with one edit."""
  grid = work.grids["all_tokens"]
  shape = (1, model.arch.num_blocks, model.arch.width)
  rng = np.random.default_rng(2)
  edits = [
    pj.add(
      pj.Direction(np.broadcast_to(rng.normal(size=model.arch.width), shape), f"own {n}"),
      0.1 * (1 + n % 7),
      unit="raw",
      blocks=grid.block,
      tokens="generated",
    )
    for n in range(256)
  ]
  texts = [grid.texts[n % len(grid.texts)] for n in range(256)]
  one, many = (
    decoding(model, encode_rows(model, texts, chosen), PAIRED_STEPS)
    for chosen in (edits[:1] * 256, edits)
  )
  found = paired(one, many)
  return {"configs_256_over_1": found["ratio"], **found}


def passes(model: pj.Model, work: Work) -> dict[str, Any]:
  """Count prefill's token-block passes of 20 conditions on the long prompts, really computed."""
  grid = work.grids["20_generated"]
  out: dict[str, Any] = {}
  for name, window in (("trunk", "all"), ("generated", "generated")):
    rows = rows_of(model, grid, window)
    stops = [len(row.ids) - 1 for row in rows]
    tree = Tree(rows, stops)
    done = prefill(model, tree)
    planned = plan_tile(model, rows, range(len(rows)), Settings(grid.new_tokens))
    least = Tree(rows, stops, min_run=1).passes(model.arch.num_blocks)
    out[name] = {
      "computed": done.passes,
      "planned": planned.passes,
      "least": least,
      "unshared": planned.unshared_passes,
      "fewer": planned.unshared_passes / done.passes,
      "padding": 1 - done.passes / done.padded_passes,
      "conditions": len(grid.vectors_CD),
    }
  return {
    "passes_over_minimum": {n: x["computed"] / x["least"] for n, x in out.items()},
    "passes": out,
  }


def flips(work: Work, models: dict[str, pj.Model]) -> dict[str, Any]:
  """Count tokens of the first grid that differ from float32's, and between shapes of tiles."""
  grid = work.grids["all_tokens"]
  settings = Settings(grid.new_tokens)
  ids: dict[str, list[tuple[int, ...]]] = {}
  for name, model in models.items():
    rows = rows_of(model, grid)
    ids[name] = [g.token_ids for g in generate_tile(model, rows, settings)]
    parts = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    ids[f"{name} in tiles of 32"] = [
      g.token_ids for part in parts for g in generate_tile(model, part, settings)
    ]
  pairs = {
    "bf16 against f32": ("bfloat16", "float32"),
    "f32, 32 rows against 128": ("float32 in tiles of 32", "float32"),
    "bf16, 32 rows against 128": ("bfloat16 in tiles of 32", "bfloat16"),
  }
  found = {name: _differences(ids[a], ids[b]) for name, (a, b) in pairs.items()}
  return {"token_flip_rate_bf16": found["bf16 against f32"]["first_flip_rate"], "flips": found}


def _differences(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> dict[str, float]:
  """Compare rows of tokens.

  After its first difference a row goes its own way, so what is counted is how often a token was
  the first to differ, of those that followed the same text.
  """
  firsts = [
    next((n for n, (x, y) in enumerate(zip(p, q, strict=True)) if x != y), None)
    for p, q in zip(a, b, strict=True)
  ]
  compared = sum(len(p) if n is None else n + 1 for p, n in zip(a, firsts, strict=True))
  flipped = sum(n is not None for n in firsts)
  return {
    "rows_that_differ": flipped / len(a),
    "first_flip_rate": flipped / compared,
    "tokens_that_differ": float(np.mean(np.asarray(a) != np.asarray(b))),
  }


def wasted(model: pj.Model, work: Work) -> dict[str, Any]:
  """Decode answers that end by themselves; count row-steps that served none.

  As many as the first grid has, of its prompts without edits, sampled at temperature 1.
  """
  grid = work.grids["all_tokens"]
  plain = encode_rows(model, [grid.texts[prompt] for prompt, _ in grid.rows], None)
  rows = [dataclasses.replace(row, seed=number) for number, row in enumerate(plain)]
  ids, texts = model.stops()
  settings = Settings(EOS_BUDGET, Sampling(1.0), stop_ids=ids, stop_texts=texts)
  generations, took = run_tile(model, rows, settings)
  lengths = [len(g.token_ids) for g in generations]
  done = took.decoding
  return {
    "wasted_row_steps": done.wasted,
    "without_leaving_out": 1 - sum(lengths) / (max(lengths) * len(rows)),
    "with_budgets": {b: _with_budget(model, rows, settings, lengths, b) for b in SHORT_BUDGETS},
    "answer_tokens": {
      "mean": statistics.fmean(lengths),
      "median": statistics.median(lengths),
      "ended": sum(g.finish_reason == "stop" for g in generations),
      "rows": len(rows),
      "budget": EOS_BUDGET,
    },
    "segments": done.segments,
  }


def _with_budget(
  model: pj.Model, rows: list[Row], settings: Settings, lengths: list[int], budget: int
) -> dict[str, Any]:
  """Foretell the row-steps of answers of these lengths, if they may not be longer than a budget.

  A row draws the same tokens whatever its budget, so that nothing has to be generated again.
  """
  shorter = [min(n, budget) for n in lengths]
  settings = dataclasses.replace(settings, max_new_tokens=budget)
  planned = plan_tile(model, rows, range(len(rows)), settings, lengths=shorter).decoding
  return {
    "wasted": planned.wasted,
    "without_leaving_out": 1 - sum(shorter) / (max(shorter) * len(rows)),
    "ended": sum(n < budget for n in lengths),
  }


def engine(
  work: Work,
  ceiling: dict[str, Any],
  repetitions: int,
  keep: Callable[[dict[str, Any]], None],
  say: Callable[[str], None],
) -> dict[str, str]:
  """Run every part; what one finds is kept as soon as it is there.

  Args:
    work: the grids.
    ceiling: of this machine, see `machine.ceilings`.
    repetitions: of the shares.
    keep: takes headline figures, and {"engine": {part: details}} beside them.
    say: prints progress.

  Returns:
    Why parts failed, by name.
  """
  name = work.identity["name"]
  models = {dtype: pj.load(name, dtype=dtype) for dtype in ("float32", "bfloat16")}
  model = models["float32"]

  def both_shares() -> dict[str, Any]:
    exact, half = shares(model, work, repetitions), shares(models["bfloat16"], work, repetitions)
    of_copy = {"decode_f32_of_copy": exact["decode_gbs"] / ceiling["copy_gbs"]}
    return exact | {"share": exact["share"] | half["share"] | of_copy, "bf16": half}

  parts: dict[str, Callable[[], dict[str, Any]]] = {
    "shares": both_shares,
    "tax": lambda: tax(model, work),
    "configs": lambda: configs(model, work),
    "passes": lambda: passes(model, work),
    "flips": lambda: flips(work, models),
    "wasted": lambda: wasted(model, work),
  }
  failed, done = {}, {}
  for part, run in parts.items():
    try:
      done[part] = run()
    except Exception as error:  # the others are still worth their time
      failed[part] = repr(error)[:1000]
      say(f"engine, {part} FAILED: {error!r}")
      continue
    say(f"engine, {part}: done")
    keep({key: done[part][key] for key in HEADLINE if key in done[part]} | {"engine": dict(done)})
  return failed
