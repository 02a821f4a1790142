"""Validates scorers of refusal on answers that people have labelled, and says which is the better.

    python experiments/validate_judges.py --config=configs/validate_judges.py --workdir=runs/judges

String matching and the rules have nothing to fit; the ensemble is tested on questions, and on sets,
that it was not fitted on. Differences of kappa are of the same rows, drawn together.
"""

import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.studies import judge_validation as study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/judges", "Where everything goes.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()
  pj.keep_on_disk()
  settings = study.Settings.of({k: v for k, v in config.items() if k not in ("reader", "dtype")})
  reader = pj.load(config["reader"], dtype=config["dtype"])
  found = study.run(reader, settings, workdir)
  shown = found.measures.round(3)
  print(shown[["test", "scorer", "measure", "value", "low", "high", "n"]].to_string(index=False))
  print("\nby how much the kappa of the first is higher, 95 % interval\n")
  print(found.differences.round(3).to_string(index=False))
  print(f"\nthe better: {found.better}\n{time.monotonic() - begun:.0f} s\ntables  {workdir}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
