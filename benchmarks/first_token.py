"""Seconds from starting the demo to its first generated tokens, cold and warm.

  python benchmarks/first_token.py [--out FILE]

Runs `experiments/prompt_vs_steering.py` with the demo's config in processes of their own: cold with
an empty cache of compiled programs, warm with what the cold one left. Model and prompts are there
in both (`make fetch`), directions are extracted anew in both. Two moments are taken: the first
token of all, of plain answers whose residual norms set the dose, and the first of the study's grid,
for which all arms' prompts have been prefilled. There the process ends.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# The first segment of decoding is cut to one step; when it is done, its token is there. That of the
# dose then goes on.
CHILD = """
import os, runpy, sys
from persona_jax.engine import segments
from persona_jax.studies import prompt_vs_steering as study
call, generate, said = segments._Batch._call, study.generate, []
def say(what, batch):
  batch._state.token_B.block_until_ready()
  print(what, flush=True)
  said.append(what)
def first(self, until, leave):
  if not self._run.is_dry and (not said or "GRID" in said):
    call(self, 1, leave)
    say("FIRST", self)
    if "GRID" in said:
      os._exit(0)
  call(self, until, leave)
def grid(*args, **options):
  said.append("GRID")
  return generate(*args, **options)
segments._Batch._call, study.generate = first, grid
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def first_tokens(programs: Path, workdir: Path) -> list[float]:
  """Start the demo; return the seconds until its first token, and until the first of the grid.

  Raises:
    RuntimeError: it ended without them.
  """
  begun = time.perf_counter()
  with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
    [
      sys.executable, "-c", CHILD, "experiments/prompt_vs_steering.py",
      "--config=configs/demo.py:smollm2-135m-instruct", f"--workdir={workdir}",
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(programs),
         "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    stdout=subprocess.PIPE,
    stderr=errors,
    text=True,
  ) as demo:  # fmt: skip
    assert demo.stdout is not None
    found = [time.perf_counter() - begun for line in demo.stdout if line == "FIRST\n"]
    if len(found) != 2:
      errors.seek(0)
      raise RuntimeError(f"the demo gave {len(found)} of 2 tokens: {errors.read()[-2000:]}")
  return found


def measure() -> dict[str, Any]:
  """Return medians of two cold starts and three warm ones.

  Returns:
    "cold_s", "warm_s": until the first token; "grid_cold_s", "grid_warm_s": until the first of the
    study's grid; "samples": of each.
  """
  samples: dict[str, list[float]] = {}
  for kind in ("cold_s", "warm_s", "warm_s", "cold_s", "warm_s"):
    with tempfile.TemporaryDirectory() as folder:
      if kind == "cold_s":
        programs = tempfile.TemporaryDirectory()
      found = first_tokens(Path(programs.name), Path(folder) / "run")
    for name, seconds in zip((kind, f"grid_{kind}"), found, strict=True):
      samples.setdefault(name, []).append(seconds)
  programs.cleanup()
  return {name: round(statistics.median(found), 1) for name, found in samples.items()} | {
    "samples": samples
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path)
  options = parser.parse_args()
  found = measure()
  print(json.dumps(found))
  if options.out:
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
