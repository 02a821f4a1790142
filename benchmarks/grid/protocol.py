"""The line protocol between `bench.py` and the processes that do the work.

A process lives as long as the benchmark, so that the repetitions of all can be interleaved; it
computes only while it has a request. A request is one line of JSON on stdin, the answer one line on
stdout; what libraries print goes to stderr.

  {"call": "describe"}                              → {"arms", "versions", "python", "settings"}
  {"call": "warm", "arm": A, "grid": G}             → {"seconds"}
  {"call": "run", "arm": A, "grid": G}              → {"seconds", "tokens", "token_ids": [[…], …]}
  {"call": "score", "arm": A, "grid": G, "rows": [r, …], "token_ids": [[…], …]}
                                                    → {"logprobs": [[…], …]}

An error comes back as {"error": traceback}; the process goes on. Needs the standard library and
NumPy alone.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.grid.grids import Grid, Work, read

THREADS = 2
Rows = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way of one tool to do the work.

  Attributes:
    dtype: of weights and products.
    run: continues every row of a grid; returns the new token ids, row by row.
    score: log-probabilities of given continuations of some rows under their edits, or None where
      the tool is not asked for them.
    warm: what is done once before anything is timed; None continues every prompt under one
      condition by two tokens.
    grids: names of the grids that it is for.
  """

  dtype: str
  run: Callable[[Grid], Rows]
  score: Callable[[Grid, Sequence[int], Rows], list[list[float]]] | None = None
  warm: Callable[[Grid], object] | None = None
  grids: tuple[str, ...] = ("all_tokens", "20_generated")


def checked(ids: Rows, grid: Grid) -> Rows:
  """Return the ids as plain ints.

  Raises:
    ValueError: a row is missing, or has more or fewer tokens than it should.
  """
  lengths = {len(row) for row in ids}
  if len(ids) != len(grid.rows) or lengths != {grid.new_tokens}:
    raise ValueError(
      f"{grid.name} asks for {len(grid.rows)} rows of {grid.new_tokens} tokens; "
      f"got {len(ids)} rows of {sorted(lengths)}"
    )
  return [[int(token) for token in row] for row in ids]


def _answer(request: dict[str, Any], work: Work, arms: dict[str, Arm]) -> dict[str, Any]:
  arm, grid = arms[request["arm"]], work.grids[request["grid"]]
  if request["call"] == "score":
    if arm.score is None:
      raise ValueError(f"arm {request['arm']} computes no log-probabilities")
    return {"logprobs": arm.score(grid, request["rows"], request["token_ids"])}
  begun = time.perf_counter()
  if request["call"] == "warm":
    if arm.warm is not None:
      arm.warm(grid)
    else:
      arm.run(grid.part(len(grid.prompts), 1, 2))
    return {"seconds": time.perf_counter() - begun}
  ids = arm.run(grid)
  seconds = time.perf_counter() - begun
  ids = checked(ids, grid)
  return {"seconds": seconds, "tokens": sum(map(len, ids)), "token_ids": ids}


def _describe(arms: dict[str, Arm], settings: dict[str, Any]) -> dict[str, Any]:
  installed = importlib.metadata.distributions()
  return {
    "arms": {name: {"dtype": arm.dtype, "grids": arm.grids} for name, arm in arms.items()},
    "versions": dict(sorted((d.metadata["Name"].lower(), d.version) for d in installed)),
    "python": platform.python_version(),
    "settings": settings,
  }


def serve(build: Callable[[Work], dict[str, Arm]], settings: dict[str, Any]) -> None:
  """Answer requests until stdin ends.

  Args:
    build: loads what is needed and returns the arms by name.
    settings: what this tool was given, in words, for the report.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("work", type=Path)
  parser.add_argument("--quick", action="store_true")
  options = parser.parse_args()
  answers: TextIO = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  work = read(options.work, quick=options.quick)
  arms = build(work)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if request["call"] == "describe":
        answer = _describe(arms, settings)
      else:
        answer = _answer(request, work, arms)
    except Exception:  # whatever a tool raises is the coordinator's to report
      answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
