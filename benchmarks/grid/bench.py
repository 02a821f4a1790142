"""persona_jax and its peers on the same grids, in one session: `make bench`.

  python -m benchmarks.grid.bench                      everything; hours on two cores
  python -m benchmarks.grid.bench --quick              2 prompts x 2 conditions x 8 tokens, once, to
                                                       see that all runs: compilation is timed
  python -m benchmarks.grid.bench --only ours,hf_rows  arms whose names begin so
  python -m benchmarks.grid.bench --sections ceiling,grid_all_tokens

Each tool is a process of its own that lives as long as the session; repetitions are interleaved
(ABC, CBA, ABC), because a shared machine drifts, and only one process computes at a time. All use
two threads, on the same two cores. What each was given is written in its module (`ours.py`,
`peers/`).

Writes benchmarks/out/cpu.json (quick: quick.json, with --only: part.json) after every section, and
prints it as Markdown (later: python -m benchmarks.grid.table FILE). A run of some sections replaces
those in the file and leaves the others; `ran` says of each when, from which commit and how it was
measured.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import first_token
from benchmarks.grid import machine, table, work
from benchmarks.grid.engine_section import HEADLINE, engine
from benchmarks.grid.environments import ROOT
from benchmarks.grid.grid_section import grid_section
from benchmarks.grid.grids import read
from benchmarks.grid.processes import TOOLS, Process, ToolError
from benchmarks.grid.protocol import THREADS

SECTIONS = (
  "ceiling", "grid_all_tokens", "grid_20_generated", "engine", "first_token", "ceiling_after",
)  # fmt: skip


def _say(text: str) -> None:
  print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _commit() -> str:
  """Return the commit that is measured, "-dirty" if files differ from it."""
  command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _start(
  directory: Path, logs: Path, only: list[str], quick: bool
) -> tuple[list[Process], dict[str, str]]:
  """Start the tools that are asked for; return them, and why others could not be."""
  logs.mkdir(parents=True, exist_ok=True)
  processes, skipped = [], {}
  for tool in TOOLS:
    if only and not any(tool.name.startswith(o) or o.startswith(tool.name) for o in only):
      continue
    try:
      processes.append(Process(tool, directory, logs, quick=quick))
      _say(f"started {tool.name}")
    except ToolError as error:
      skipped[tool.name] = str(error)
      _say(f"SKIPPED {tool.name}: {error}")
  return processes, skipped


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--repetitions", type=int, help="timed runs of each arm (3; quick: 1)")
  parser.add_argument("--only", default="", help="comma-separated beginnings of arms' names")
  parser.add_argument("--quick", action="store_true", help="a corner of each grid")
  parser.add_argument(
    "--slow-seconds", type=float, default=240, help="an arm slower than this runs once"
  )
  parser.add_argument("--sections", default="", help="comma-separated names; all of them")
  parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
  options = parser.parse_args()
  only = [name for name in options.only.split(",") if name]
  repetitions = options.repetitions or (1 if options.quick else 3)
  # Of some arms only, it is no result that others can be compared with later.
  target = options.out / ("quick.json" if options.quick else "part.json" if only else "cpu.json")

  chosen = [name for name in options.sections.split(",") if name] or list(SECTIONS)
  if unknown := set(chosen) - set(SECTIONS):
    parser.error(f"no section {sorted(unknown)}; there are {list(SECTIONS)}")
  if "engine" in chosen:
    chosen.append("ceiling")  # the share of copies is one of it

  cores = machine.use_cores(THREADS)
  _say("making the work")
  work.build(options.out / "work")
  given = read(options.out / "work", quick=options.quick)
  needs_tools = any(name in table.GRIDS for name in chosen)
  processes, skipped = [], {}
  if needs_tools:
    processes, skipped = _start(options.out / "work", options.out / "logs", only, options.quick)
  report: dict[str, Any] = {}
  if options.sections and target.is_file():
    report = json.loads(target.read_text())
  report |= {
    "date": f"{datetime.date.today()}",
    "model": given.identity,
    "device": machine.device() | {"cores_used": cores},
    "tools": report.get("tools", {})
    | {
      p.tool.name: {k: p.description[k] for k in ("python", "versions", "settings")}
      for p in processes
    },
  }
  failed: dict[str, str] = {}

  def keep(name: str, found: dict[str, Any]) -> None:
    report.update(found)
    report.setdefault("ran", {})[name] = {
      "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
      "commit": _commit(),
      "repetitions": repetitions,
      "only": only,
      "skipped": skipped if name in table.GRIDS else {},
      "failed": {n: why for n, why in failed.items() if n.split(",")[0] == name},
      "load_average": os.getloadavg(),
    }
    target.write_text(json.dumps(report, indent=1))

  def grid(name: str) -> dict[str, Any]:
    # Without such instructions Hugging Face's bfloat16 is 2 to 5 times slower than its float32 (the
    # first grid shows it), and would take most of the session.
    left_out = "" if name == "all_tokens" or machine.has_bfloat16() else "hf_.*_bf16"
    return grid_section(
      processes,
      given.grids[name],
      only=only,
      left_out=left_out,
      warm_up=not options.quick,
      repetitions=repetitions,
      slow_s=options.slow_seconds,
      say=_say,
    )

  def measure_engine() -> None:
    # Its answers of a thousand tokens need the memory that the tools hold (10 GB of 24, measured).
    for process in processes:
      process.close()
    # Its headline figures stand at the top, its details under its name; none of an earlier run's.
    for key in ("engine", *HEADLINE):
      report.pop(key, None)
    why = engine(given, report["ceiling"], repetitions, lambda found: keep("engine", found), _say)
    failed.update({f"engine, {part}": text for part, text in why.items()})
    keep("engine", {})

  sections: dict[str, Callable[[], dict[str, Any] | None]] = {
    "ceiling": machine.ceilings,
    "grid_all_tokens": lambda: grid("all_tokens"),
    "grid_20_generated": lambda: grid("20_generated"),
    "engine": measure_engine,
    "first_token": first_token.measure,
    "ceiling_after": machine.ceilings,
  }
  try:
    for name, section in sections.items():
      if name not in chosen:
        continue
      try:
        found = section()
      except Exception as error:  # the others are still worth their time
        failed[name] = repr(error)[:1000]
        report.pop(name, None)
        keep(name, {})
        _say(f"{name} FAILED: {error!r}")
        continue
      if found is not None:
        keep(name, {name: found})
      _say(f"{name} is in {target}")
  finally:
    for process in processes:
      process.close()
  print(table.markdown(report))
  done = [report[name] for name in table.GRIDS if name in chosen and name in report]
  missing = [*skipped, *failed, *(key for section in done for key in section["failed"])]
  missing += [key for section in done for key in section.get("logprobs", {}).get("failed", ())]
  other = [key for section in done for key in section["does_other_work"]]
  if missing or other:
    raise SystemExit(f"not measured: {missing}; not the same tokens as ours: {other}")


if __name__ == "__main__":
  main()
