"""Residuals of thousands of prompts into moments on the device, by us and by a peer.

    python -m benchmarks.capture --prompts 20000          (make bench-capture)

SmolLM2-135M-Instruct in float32, `resid_post` of all blocks, at the last token and as the mean of
all tokens. The peer is Hugging Face with a hook on every layer, on the same weights and token ids
(`grid/peers/hf_reads.py`): `hf` adds sums up in float64, `hf_stored` keeps every activation as most
scripts do. `stored` is an ablation: our own `Model.capture` in pieces, all of it kept.

Every measurement runs in a process of its own on two cores, whose peak of resident memory it
reports; it first runs a few hundred of the prompts, so that most programs are compiled. Moments are
checked against each other where as many prompts were read.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import persona_jax as pj
from benchmarks.grid import machine, work
from benchmarks.grid.protocol import THREADS
from benchmarks.score import PEER_TOKENS, peer
from persona_jax.engine.programs import PROGRAMS

OUT = Path(__file__).parent / "out"
MODEL = "smollm2-135m-instruct"
WAYS = ("moments", "hf", "hf_stored", "stored")
OPENINGS = (
  "Describe", "Write two sentences about", "Explain to a child what is special about",
  "Give me three facts about", "What do people like about", "Tell a short story about",
  "Compare a photograph with a painting of", "Why would someone write a song about",
)  # fmt: skip
ADJECTIVES = (
  "quiet", "old", "green", "busy", "narrow", "sunny", "wooden", "famous", "little", "round",
  "slow", "colourful", "half-finished", "friendly", "well-kept",
)  # fmt: skip
NOUNS = (
  "garden", "railway station", "bakery", "bicycle", "lighthouse", "library", "river", "market",
  "kitchen", "bridge", "orchard", "museum", "harbour", "school play", "village square",
)  # fmt: skip
ENDINGS = (
  "", " in spring", " on a rainy afternoon", " at the edge of a small town", " before breakfast",
  " that my grandmother told me about when I was young", " with a red door and a clock above it",
  ". Keep it simple and mention at least one smell, one sound and one colour",
)  # fmt: skip


def make_prompts(count: int) -> list[str]:
  """Draw prompts of 5 to 30 words."""
  rng = random.Random(0)
  return [
    f"{rng.choice(OPENINGS)} a {rng.choice(ADJECTIVES)}, {rng.choice(ADJECTIVES)} "
    f"{rng.choice(NOUNS)}{rng.choice(ENDINGS)}."
    for _ in range(count)
  ]


def by_peer(way: str, reduce: str, count: int, warm: int) -> dict[str, Any]:
  """Run Hugging Face on as many prompts, in a process of its own."""
  model = pj.load(MODEL)
  prompts = [[int(i) for i in model.encode(p).ids] for p in make_prompts(count)]
  request = {"prompts": prompts, "reduce": reduce, "warm": warm, "tokens": PEER_TOKENS}
  tokens = sum(map(len, prompts))
  call = {"hf": "moments", "hf_stored": "moments_stored"}[way]
  record = peer(call, request, OUT / "work")
  seconds = record["seconds"]
  return record | {
    "way": way, "reduce": reduce, "prompts": count, "tokens": tokens,
    "prompts_per_second": count / seconds, "tokens_per_second": tokens / seconds,
  }  # fmt: skip


def stored(model: pj.Model, prompts: list[str], what: pj.Capture, piece: int) -> dict:
  """Keep every activation; return float64 means and variances by place."""
  kept: dict = {}
  for first in range(0, len(prompts), piece):
    for where, x_ND in model.capture(prompts[first : first + piece], what).items():
      kept.setdefault(where, []).append(x_ND)
  out = {}
  for where in list(kept):
    x_ND = np.concatenate(kept.pop(where))
    mean_D = x_ND.mean(axis=0, dtype=np.float64)
    out[where] = mean_D, np.mean((x_ND - mean_D) ** 2, axis=0)
  return out


def measure(way: str, reduce: str, count: int, warm: int, piece: int) -> dict:
  """Run one way in this process."""
  if way.startswith("hf"):
    return by_peer(way, reduce, count, warm)
  model = pj.load(MODEL, dtype="float32")
  prompts, what = make_prompts(count), pj.Capture(reduce=reduce)
  tokens = sum(len(model.encode(p).ids) for p in prompts)
  at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  def work(prompts: list[str]):
    return stored(model, prompts, what, piece) if way == "stored" else model.moments(prompts, what)

  begun = time.perf_counter()
  work(prompts[:warm])
  warm_seconds, programs = time.perf_counter() - begun, PROGRAMS.count("block")
  begun, cpu_begun = time.perf_counter(), time.process_time()
  result = work(prompts)
  seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
  last = ("resid_post", model.arch.num_blocks - 1)
  mean_D, variance_D = (
    result[last] if way == "stored" else (result.mean[last][0], result.variance[last][0])
  )
  record = {
    "way": way, "reduce": reduce, "prompts": count, "tokens": tokens,
    "seconds": seconds, "cpu_seconds": cpu_seconds,
    "prompts_per_second": count / seconds, "tokens_per_second": tokens / seconds,
    "warm_up_seconds": warm_seconds, "peak_bytes": peak(), "bytes_before": at_rest,
    "block_programs": [programs, PROGRAMS.count("block")],
    "mean_norm": float(np.linalg.norm(mean_D)), "variance_sum": float(variance_D.sum()),
  }  # fmt: skip
  if way == "moments":
    cost = result.work
    record |= {
      "padding": cost.padding,
      "computed_tokens": cost.passes / model.arch.num_blocks,
      "shared": 1 - cost.passes / (model.arch.num_blocks * cost.tokens),
    }
  return record


def peak() -> int:
  """Return the peak of resident memory of this process, in bytes (Linux)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--prompts", type=int, default=20_000)
  parser.add_argument("--peer-prompts", type=int, help="fewer for the others; default as many")
  parser.add_argument("--reduce", nargs="+", default=["last", "mean"])
  parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
  parser.add_argument("--warm", type=int, default=512, help="prompts to run before the clock")
  parser.add_argument("--piece", type=int, default=1024, help="prompts of one call of `stored`")
  parser.add_argument("--repeats", type=int, default=1)
  parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # way and reduce: the child
  args = parser.parse_args()
  if args.one:
    way, reduce = args.one
    print(json.dumps(measure(way, reduce, args.prompts, args.warm, args.piece)))
    return
  machine.use_cores(THREADS)
  work.build(OUT / "work")
  records = []
  for _ in range(args.repeats):
    for reduce in args.reduce:
      for way in args.ways:
        count = args.prompts if way == "moments" else args.peer_prompts or args.prompts
        command = [sys.executable, "-m", "benchmarks.capture", "--one", way, reduce]
        command += ["--prompts", str(count), "--warm", str(args.warm), "--piece", str(args.piece)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        records.append(json.loads(done.stdout.splitlines()[-1]))
        show(records[-1])
        # After each, so that what breaks later takes nothing with it.
        about = {"device": machine.device()}
        (OUT / "capture.json").write_text(json.dumps(about | {"records": records}, indent=1))
  for one in records:
    for other in records:
      if all(one[key] == other[key] for key in ("reduce", "prompts")):
        for key in ("mean_norm", "variance_sum"):
          if not np.isclose(one[key], other[key], rtol=1e-4):
            raise SystemExit(f"{one['way']} and {other['way']} differ in {key}: {one}, {other}")


def show(r: dict) -> None:
  text = (
    f"{r['way']:8s} {r['reduce']:5s} {r['prompts']:6d} prompts, {r['tokens']} tokens: "
    f"{r['prompts_per_second']:.1f} prompts/s, {r['tokens_per_second']:.0f} tokens/s, "
    f"{1e3 * r['cpu_seconds'] / r['prompts']:.0f} ms of CPU a prompt, "
    f"peak {r['peak_bytes'] / 1e9:.2f} GB ({r['bytes_before'] / 1e9:.2f} before)"
  )
  if "block_programs" in r:
    before, after = r["block_programs"]
    text += f", block programs {before} + {after - before}"
  if r["way"] == "moments":
    text += f", padding {r['padding']:.0%}, {r['shared']:.0%} of the tokens shared"
  print(text, flush=True)


if __name__ == "__main__":
  main()
