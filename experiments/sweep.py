"""Several experiments one after another, each a process of its own.

    python experiments/sweep.py --config=configs/sweeps/core_study.py --workdir=runs/core
    python experiments/sweep.py … --dry_run          what each of them will take
    python experiments/sweep.py … --only=llama31_8b  one of them

Every binary goes on where it was stopped, and so does the sweep. One that fails does not keep the
others from running; at the end it prints what became of each, and fails if one did.
"""

import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from persona_jax.engine.accelerators import ACCELERATORS

_CONFIG = config_flags.DEFINE_config_file("config", None, "The sweep.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Each run has a directory in it.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Pass --dry_run on to every binary.")
_ON = flags.DEFINE_enum("on", None, sorted(ACCELERATORS), "Pass --on to every dry run.")
_ONLY = flags.DEFINE_list("only", [], "Names of runs; default all.")

_EXPERIMENTS = Path(__file__).resolve().parent


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  runs = _CONFIG.value.to_dict()["runs"]
  names = [run["name"] for run in runs]
  if unknown := sorted(set(_ONLY.value) - set(names)):
    raise app.UsageError(f"--only={unknown}: the sweep has {names}.")
  ended = {}
  for run in runs:
    if _ONLY.value and run["name"] not in _ONLY.value:
      continue
    # A dry run says nothing new of a run that only analyses.
    if _DRY_RUN.value and run["flags"]:
      continue
    command = [sys.executable, str(_EXPERIMENTS / f"{run['binary']}.py")]
    command += [f"--config={run['config']}", f"--workdir={_WORKDIR.value}/{run['directory']}"]
    command += [flag.format(workdir=_WORKDIR.value) for flag in run["flags"]]
    if _DRY_RUN.value:
      command += ["--dry_run", *([f"--on={_ON.value}"] if _ON.value else [])]
    logging.info("%s: %s", run["name"], " ".join(command))
    begun = time.monotonic()
    code = subprocess.run(command, cwd=_EXPERIMENTS.parent, check=False).returncode
    verdict = "done" if code == 0 else f"FAILED with status {code}"
    ended[run["name"]] = f"{verdict}, {time.monotonic() - begun:.0f} s"
  print("\n" + "\n".join(f"{name}: {text}" for name, text in ended.items()))
  if any("FAILED" in text for text in ended.values()):
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
