"""The engine and Hugging Face on one GPU, on the same random weights of Llama-3.1-8B's sizes.

  python -m benchmarks.gpu                      all sections; Hugging Face if PyTorch sees the GPU
  python -m benchmarks.gpu --sections ceiling,attention
  JAX_PLATFORMS=cpu python -m benchmarks.gpu --small    on a CPU, only to see that it runs

Sections: `attention` (the fused kernel against XLA), `ceiling` (products and copies of this GPU),
`engine` (shares of them, what an edit costs, what many configurations cost), `grid_all_tokens` and
`grid_20_generated` (us and the peer, interleaved, and how far their log-probabilities lie apart),
`memory` (what a plan predicts of these grids' programs, and what their compiler reports), `score`
and `capture` (`gpu_reads.py`).

Weights are drawn on the device, bfloat16; each tool has a copy of its own of the same numbers. What
they are makes no difference to the time. Prompts are random words of a vocabulary of the model's
size. Both tools run in this process, one after another; programs are compiled before any timing.
Writes gpu.json after every section and prints Markdown at the end.
"""

import argparse
import datetime
import functools
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch is to have room beside JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax
import jax.numpy as jnp
import numpy as np

import persona_jax as pj
from benchmarks import gpu_reads
from benchmarks.gpu_model import LARGE, SMALL, Sizes, make_grids, make_model, peer_model
from benchmarks.grid import engine_section
from benchmarks.grid.compare import agreement, logprob_distance
from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.ours import edits_of
from persona_jax.engine.memory import program_bytes
from persona_jax.engine.need import TAKE_PARAMS, Need, tree_bytes
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import plan_tile
from persona_jax.models import attention, fused_attention, llama
from persona_jax.models.layers import KV, Rotation

ROOT = Path(__file__).parents[1]
BEGUN = time.perf_counter()


def say(text: str) -> None:
  """Print progress."""
  print(f"{time.perf_counter() - BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


# ---- the GPU by itself -------------------------------------------------------------------------


def _median(call: Callable[[], Any], chain: int = 8, repeats: int = 5) -> float:
  """Return seconds of one call: the median of chains that wait for the device once."""
  jax.block_until_ready(call())
  took = []
  for _ in range(repeats):
    begun = time.perf_counter()
    jax.block_until_ready([call() for _ in range(chain)])
    took.append((time.perf_counter() - begun) / chain)
  return statistics.median(took)


def ceiling(sizes: Sizes) -> dict[str, float]:
  """Measure a bfloat16 product and a copy (bytes read and written both count)."""
  x = jax.random.normal(jax.random.key(0), (sizes.matrix, sizes.matrix), jnp.bfloat16)
  product = jax.jit(jnp.matmul)
  block = jnp.ones((sizes.copied // 4,), jnp.float32)
  negate = jax.jit(jnp.negative)
  return {
    "bf16_gflops": 2 * sizes.matrix**3 / _median(lambda: product(x, x)) / 1e9,
    "copy_gbs": 2 * sizes.copied / _median(lambda: negate(block), chain=2) / 1e9,
  }


@functools.partial(jax.jit, static_argnames=("fused", "dtype", "window"))
def _attend(
  q_BTNH: jax.Array,
  kv: KV,
  *,
  fused: fused_attention.FusedAttention | None,
  dtype: str,
  window: int | None,
) -> jax.Array:
  b, t, _, _ = q_BTNH.shape
  position_BT = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
  rope = Rotation(jnp.zeros(()), jnp.zeros(()))  # projections read it, attention does not
  slots = attention.Slots(
    position_BT=position_BT,
    slot_position_BS=position_BT,
    rope=rope,
    mask_BTS=None,
    window=window,
    fused=fused,
  )
  kv = jax.tree.map(lambda x: x.astype(dtype), kv)
  return attention.attend(q_BTNH.astype(dtype), kv, slots, dtype)


def attention_section(sizes: Sizes) -> dict[str, Any]:
  """Attention of tokens in order: the fused kernel and XLA's chunks, time and error.

  Of the sizes of one block of the model. The reference is XLA's in float32 with exact products.
  """
  arch = llama.parse(sizes.config)
  fused = fused_attention.choose_attention(None, jax.devices()[0])
  if fused is None:
    return {"skipped": "no fused kernel on this device"}
  found = {}
  for b, t in sizes.attention:
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (b, t, arch.num_heads, arch.head_dim), jnp.bfloat16)
    kv = KV(
      jax.random.normal(keys[1], (b, arch.num_kv_heads, arch.head_dim, t), jnp.bfloat16),
      jax.random.normal(keys[2], (b, arch.num_kv_heads, t, arch.head_dim), jnp.bfloat16),
    )
    for window in (None, t // 4):
      with jax.default_matmul_precision("highest"):
        exact = np.asarray(_attend(q, kv, fused=None, dtype="float32", window=window), np.float64)
      line: dict[str, float] = {}
      for name, kernel in (("xla", None), (fused.implementation, fused)):
        call = functools.partial(_attend, q, kv, fused=kernel, dtype="bfloat16", window=window)
        out = np.asarray(call().astype(jnp.float32), np.float64)
        line[f"{name}_us"] = 1e6 * _median(call)
        line[f"{name}_error"] = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
      found[f"{b} x {t}" + (f", window {window}" if window else "")] = line
      say(f"attention {b} x {t}, window {window}: {line}")
  return found


def engine(
  model: pj.Model, work: Work, most: dict[str, float], repetitions: int, matrix: int
) -> dict[str, Any]:
  """Shares of the ceilings, tax of an edit, many configurations; see `engine_section`."""
  found: dict[str, Any] = {}
  found["shares"] = engine_section.shares(model, work, repetitions, matrix=matrix)
  found["decode_bandwidth_share"] = found["shares"]["decode_gbs"] / most["copy_gbs"]
  say(f"shares: {found}")
  found["tax"] = engine_section.tax(model, work)
  say(f"tax: {found['tax']}")
  found["configs"] = engine_section.configs(model, work)
  say(f"configs: {found['configs']}")
  return found


# ---- grids -------------------------------------------------------------------------------------


def grid_section(
  model: pj.Model, peer: Any, grid: Grid, repetitions: int, deadline: float
) -> dict[str, Any]:
  """Run us and the peer in turn; arms that would begin after the deadline are left out.

  Round 0 warms up what is repeated. The peer's arms that go condition by condition are slow and
  compile nothing: they run once, in the last round.
  """
  texts = [grid.texts[prompt] for prompt, _ in grid.rows]
  edits = edits_of(model, grid)
  chosen = [edits[condition] for _, condition in grid.rows]

  def ours() -> list[list[int]]:
    made = model.generate(texts, edits=chosen, max_new_tokens=grid.new_tokens)
    return [list(g.token_ids) for g in made]

  arms: dict[str, Callable[[], Any]] = {"ours": ours}
  if peer is not None:
    arms["hf_rows"] = lambda: peer.all_rows(grid)
    arms["hf_conditions"] = lambda: peer.by_condition(grid)
    if grid.window == "generated":
      arms["hf_rows_reuse"] = lambda: peer.all_rows_reusing(grid)
      arms["hf_conditions_reuse"] = lambda: peer.by_condition_reusing(grid)
  found: dict[str, Any] = {"rows": len(grid.rows), "warm_s": {}, "seconds": {}}
  found |= {"failed": {}, "left_out": []}
  answers = {}
  tokens = found["tokens"] = len(grid.rows) * grid.new_tokens
  for repetition in range(repetitions + 1):
    for name, run in arms.items():
      if name in found["failed"]:
        continue
      if time.perf_counter() - BEGUN > deadline:
        found["left_out"].append(f"{name}, repetition {repetition}: the deadline had passed")
        continue
      if "conditions" in name and repetition != repetitions:
        continue
      try:
        took = engine_section.seconds(lambda run=run, name=name: answers.update({name: run()}))
      except Exception as error:  # one arm's failure is a line of the report
        found["failed"][name] = repr(error)[:500]
        say(f"{grid.name}: {name} FAILED: {error!r}"[:500])
        continue
      if repetition == 0:
        found["warm_s"][name] = took
      else:
        found["seconds"].setdefault(name, []).append(took)
      say(f"{grid.name}, {repetition}: {name} {took:.2f} s, {tokens / took:.0f} tok/s")
  found["tok_s"] = {n: tokens / statistics.median(s) for n, s in found["seconds"].items()}
  peers = {n: r for n, r in found["tok_s"].items() if n != "ours"}
  if peers and "ours" in found["tok_s"]:
    found["ratio"] = {n: found["tok_s"]["ours"] / rate for n, rate in peers.items()}
  if {"ours", "hf_rows"} <= set(answers):
    found["agreement"] = agreement(answers["hf_rows"], answers["ours"])
    rows = sorted(set(np.linspace(0, len(grid.rows) - 1, 16).round().astype(int).tolist()))
    given = [answers["ours"][row] for row in rows]
    theirs = peer.score(grid, rows, given)
    scored = model.score(
      [texts[row] for row in rows], given, edits=[chosen[row] for row in rows], per_token=True
    )
    found["logprobs"] = logprob_distance([row.tolist() for row in scored], theirs)
    say(f"{grid.name}: log-probabilities {found['logprobs']}, tokens {found['agreement']}")
  return found


def memory(model: pj.Model, grids: dict[str, Grid]) -> dict[str, dict[str, float]]:
  """Compare the memory that a plan predicts with the compiler's, of the largest of each program.

  Parameters are left out of both: they would hide what is wrong with the rest.
  """
  found = {}
  for grid in grids.values():
    rows = engine_section.rows_of(model, grid)
    plan = plan_tile(model, rows, range(len(rows)), Settings(grid.new_tokens))
    largest: dict[str, Need] = {}
    for need in plan.needs:
      # The embedding's program takes the head too, which its compiler leaves out.
      if need.name != "embed" and not need.static.get("only_kv"):
        largest[need.name] = max(
          need, largest.get(need.name, need), key=lambda need: need.argument_bytes
        )
    for name, need in largest.items():
      (program,) = PROGRAMS.describe([need])
      own = tree_bytes(need.args[0]) if name in TAKE_PARAMS else 0
      predicted, real = program_bytes(need, model.arch) - own, program.total_bytes - own
      found[f"{grid.name}, {name}"] = {
        "predicted": predicted, "compiler": real, "ratio": predicted / real,
        "arguments_and_results": need.argument_bytes - own + need.new_result_bytes,
      }  # fmt: skip
      say(f"{grid.name}, {name}: {found[f'{grid.name}, {name}']}")
  return found


def markdown(report: dict[str, Any]) -> str:
  """Return the tables of a report."""
  lines = [f"Measured {report['date']} on {report['device']}, JAX {report['jax']}.", ""]
  if "ceiling" in report:
    most = report["ceiling"]
    lines.append(
      f"{most['bf16_gflops'] / 1e3:.0f} TFLOP/s bfloat16, copies {most['copy_gbs']:.0f} GB/s.\n"
    )
  for name in ("grid_all_tokens", "grid_20_generated"):
    if name in report:
      part = report[name]
      lines += [
        f"{name}: {part['rows']} rows, {part['tokens']} tokens\n",
        "| arm | tok/s | each, s |",
      ]
      lines.append("|---|---|---|")
      for arm, rate in part["tok_s"].items():
        each = ", ".join(f"{s:.2f}" for s in part["seconds"][arm])
        lines.append(f"| {arm} | {rate:.0f} | {each} |")
      lines += [f"| {arm} | FAILED: {why} | |" for arm, why in part["failed"].items()]
      lines += [f"| left out: {text} | | |" for text in part["left_out"]]
      lines.append(f"\nratio {part.get('ratio')}, {part.get('logprobs')}\n")
  if "memory" in report:
    lines += ["| program | MB predicted | by the compiler | ratio |", "|---|---|---|---|"]
    for name, part in report["memory"].items():
      megabytes = f"{part['predicted'] / 1e6:.1f} | {part['compiler'] / 1e6:.1f}"
      lines.append(f"| {name} | {megabytes} | {part['ratio']:.3f} |")
    lines.append("")
  for name, unit in (("score", "rows"), ("capture", "prompts")):
    if name in report:
      part = report[name]
      lines += [f"{name}: {part[unit]} {unit}\n", f"| arm | {unit}/s | each, s |", "|---|---|---|"]
      for arm, rate in part["per_second"].items():
        each = ", ".join(f"{s:.2f}" for s in part["seconds"][arm])
        lines.append(f"| {arm} | {rate:.0f} | {each} |")
      lines.append(f"\nratio {part['ratio']}\n")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--repetitions", type=int, default=3)
  parser.add_argument("--sections", default="")
  parser.add_argument(
    "--deadline", type=float, default=1e9, help="seconds after which no arm begins"
  )
  parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
  options = parser.parse_args()
  sizes = SMALL if options.small else LARGE
  sections = [
    "ceiling", "attention", "grid_all_tokens", "grid_20_generated", "memory", "score", "capture",
    "engine",
  ]  # fmt: skip
  chosen = [name for name in options.sections.split(",") if name] or sections
  if unknown := set(chosen) - set(sections):
    parser.error(f"no section {sorted(unknown)}; there are {sections}")
  if "engine" in chosen:
    chosen.append("ceiling")  # its shares are shares of it
  options.out.mkdir(parents=True, exist_ok=True)
  device = jax.devices()[0]
  report: dict[str, Any] = {
    "date": f"{datetime.date.today()}", "device": device.device_kind, "jax": jax.__version__,
  }  # fmt: skip

  def keep(name: str, part: Any) -> None:
    report[name] = part
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1))

  if "ceiling" in chosen:
    keep("ceiling", ceiling(sizes))
    say(f"ceiling: {report['ceiling']}")
  if "attention" in chosen:
    keep("attention", attention_section(sizes))
  if set(chosen) - {"ceiling", "attention"}:
    model = make_model(sizes.config)
    grids = make_grids(model, sizes)
    say(f"model of {sum(x.nbytes for x in jax.tree.leaves(model.params)) / 1e9:.2f} GB")
    peer = None
    try:
      from benchmarks.grid.peers.hf import HuggingFace

      if set(chosen) - {"ceiling", "attention", "memory", "engine"}:
        peer = HuggingFace(peer_model(model))
    except (ImportError, RuntimeError) as error:
      say(f"no Hugging Face: {error}")
      report["peer"] = str(error)
    for name, grid in grids.items():
      if f"grid_{name}" in chosen:
        part = grid_section(model, peer, grid, options.repetitions, options.deadline)
        keep(f"grid_{name}", part | {"programs": len(PROGRAMS)})
    if "memory" in chosen:
      keep("memory", memory(model, grids))
    if "score" in chosen:
      part = gpu_reads.score_section(model, peer, *sizes.questionnaire, options.repetitions)
      keep("score", part)
      say(f"score: {part}")
    if "capture" in chosen:
      part = gpu_reads.capture_section(model, peer, sizes.captured, options.repetitions)
      keep("capture", part)
      say(f"capture: {part}")
    del peer
    gc.collect()
    if "engine" in chosen:
      work = Work(ROOT, grids, {})
      keep("engine", engine(model, work, report["ceiling"], options.repetitions, sizes.matrix))
  print(markdown(report))
  failed = [arm for name in report if name.startswith("grid_") for arm in report[name]["failed"]]
  if failed:
    raise SystemExit(f"not measured: {failed}")


if __name__ == "__main__":
  main()
