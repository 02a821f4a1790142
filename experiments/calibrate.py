"""Steering matched to prompting: for every persona and scale the dose at which both are as strong.

    python experiments/calibrate.py --config=configs/persona_non_grata_tiny.py --workdir=runs/tiny
    python experiments/calibrate.py --config=configs/persona_non_grata.py:llama31_8b … --dry_run

The first two stages of the core study by themselves: directions, residual norms, block, matches.
Run on a study's own workdir it fills in what is not there yet. At the end it prints every match
with what it achieves on the other scales, and where the tables are.
"""

import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.studies import persona_non_grata as study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/persona_non_grata", "Where everything goes.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be measured, and stop.")

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")
_OTHER_FIELDS = (*_MODEL_FIELDS, "judges")
_COLUMNS = [
  "persona", "replicate", "coef", "coef_low", "coef_high", "coef_here", "target", "achieved_norm",
  "achieved_proj", "achieved_proj_here", "achieved_trait", "achieved_kl", "units", "units_missing",
  "items_missing", "status", "reason",
]  # fmt: skip


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  pj.keep_on_disk()
  settings = study.Settings.of({k: v for k, v in config.items() if k not in _OTHER_FIELDS})
  material = study.load_material(settings)
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
    print("\n".join(study.stages(settings, material, model.arch.num_blocks)))
    return
  study.start(model, settings, material, workdir)

  # ---- stages ------------------------------------------------------------------------------------
  extracted = study.extract(model, settings, material, workdir)
  calibrated = study.calibrate(model, settings, material, extracted, workdir)

  # ---- report ------------------------------------------------------------------------------------
  norm = calibrated.scale.resid_L[calibrated.block]
  print(f"\nblock {calibrated.block}: {calibrated.why}; median residual norm {norm:.4g}")
  norms = calibrated.scale.provenance
  print(
    f"measured on {calibrated.num_answers} answers to calibration prompts; left out: "
    f"{calibrated.num_empty} empty, and for the residual norm {norms['too_short']} of "
    f"{norms['prompts']} not longer than {settings.dose_skip} tokens"
  )
  print(
    "coef and norm in median residual norms, proj (at the read-out block) and proj_here (at the "
    "steered one) in units of the residual stream, kl in nats\n"
  )
  for by, table in calibrated.matches.groupby("by", sort=False):
    print(
      f"matched on {by}, read at block {table['read_block'].iloc[0]}; one coefficient for all: "
      f"{table['coef_pooled'].iloc[0]:.4g}, the median of {(table['status'] == 'ok').sum()} of "
      f"{len(table)} cells"
    )
    print(table[_COLUMNS].round(3).to_string(index=False), "\n")
  print(f"{time.monotonic() - begun:.0f} s\ntables  {workdir}/calibration")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
