"""Seconds from starting the demo to its first generated token, cold and warm.

  python benchmarks/first_token.py [--out FILE]

Runs `experiments/prompt_vs_steering.py` with the demo's config in processes of their own: cold with
an empty cache of compiled programs, warm with what the cold one left. Model and prompts are there
in both (`make fetch`), directions are extracted anew in both. A process ends at its first token.
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

# The first segment of decoding is cut to one step; when it is done, its token is there.
CHILD = """
import os, runpy, sys
from persona_jax.engine import segments
call = segments._Batch._call
def first(self, until, leave):
  call(self, 1, leave)
  if not self._run.is_dry:
    self._state.token_B.block_until_ready()
    print("FIRST TOKEN", flush=True)
    os._exit(0)
segments._Batch._call = first
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def first_token(programs: Path, workdir: Path) -> float:
  """Start the demo and return the seconds until its first token.

  Raises:
    RuntimeError: it ended without one.
  """
  begun = time.perf_counter()
  done = subprocess.run(
    [
      sys.executable, "-c", CHILD, "experiments/prompt_vs_steering.py",
      "--config=configs/demo.py:smollm2-135m-instruct", f"--workdir={workdir}",
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(programs),
         "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    capture_output=True,
    text=True,
  )  # fmt: skip
  seconds = time.perf_counter() - begun
  if "FIRST TOKEN" not in done.stdout:
    raise RuntimeError(f"the demo gave no token: {done.stderr[-2000:]}")
  return seconds


def measure() -> dict[str, Any]:
  """Return {"cold_s", "warm_s", "samples"}: medians of two cold starts and three warm ones."""
  samples: dict[str, list[float]] = {"cold_s": [], "warm_s": []}
  for name in ("cold_s", "warm_s", "warm_s", "cold_s", "warm_s"):
    with tempfile.TemporaryDirectory() as folder:
      if name == "cold_s":
        programs = tempfile.TemporaryDirectory()
      samples[name].append(first_token(Path(programs.name), Path(folder) / "run"))
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
