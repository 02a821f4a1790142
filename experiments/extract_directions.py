"""Directions of a bank of traits or roles, by many methods, chosen on held-out questions.

    python experiments/extract_directions.py --config=configs/extract_directions.py \
      --workdir=runs/directions

Stopped and started again, it goes on where it was. At the end it prints the evidence for every
direction and where the pages and files are.
"""

import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.studies import extraction as study
from persona_jax.studies.extraction.pages import write_pages

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/directions", "Where everything goes.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be extracted, and stop.")

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
  pj.keep_on_disk()
  settings = study.Settings.of({k: v for k, v in config.items() if k not in _MODEL_FIELDS})
  contrasts = study.load_contrasts(settings)
  model = pj.load(
    config["model"],
    dtype=config["dtype"],
    resid_dtype=config["resid_dtype"],
    system_default=config["system_default"],
    chat_template=config["chat_template"],
    weights=not _DRY_RUN.value,
  )
  logging.info("%r on %s", model, jax.devices()[0].device_kind)
  if _DRY_RUN.value:
    print(study.describe(model, settings, contrasts))
    return
  config_hash = study.start(model, settings, contrasts, workdir)

  # ---- stages ------------------------------------------------------------------------------------
  directions = study.extract(model, settings, contrasts, workdir)
  evidence = study.examine(model, settings, contrasts, directions, workdir)
  trials = study.try_out(model, settings, evidence, workdir)
  refusal = study.find_refusal(model, settings, workdir)

  # ---- report ------------------------------------------------------------------------------------
  index = write_pages(
    model, settings, config_hash, contrasts, evidence, workdir, trials=trials, refusal=refusal
  )
  print(f"\n{'direction':<12} {'method':<13} {'block':>5}  {'AUC [95 %]':<20} {'d [95 %]':<22}")
  for concept, lines in evidence.items():
    for line in lines:
      at = line.at_block
      auc, d = (
        f"{at[name]:.2f} [{at[f'{name}_low']:.2f}, {at[f'{name}_high']:.2f}]"
        for name in ("auc", "d")
      )
      print(f"{concept:<12} {line.method:<13} {line.block:>5}  {auc:<20} {d:<22}")
  count = sum(map(len, evidence.values()))
  print(f"\n{count} directions, {time.monotonic() - begun:.0f} s")
  print(f"directions  {workdir}/directions  (pj.load_direction)\nreport      {index.resolve()}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
