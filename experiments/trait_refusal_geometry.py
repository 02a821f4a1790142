"""Trait-refusal geometry alone: a bank of a thousand directions at every block, with null bands.

    python experiments/trait_refusal_geometry.py --workdir=runs/geometry \
      --config=configs/trait_refusal_geometry.py        SmolLM2
    … --config=configs/trait_refusal_geometry.py:llama31_8b --dry_run

Directions and refusal are extracted as in the core study, or read where they are there. At the end
it prints regressions and where tables and figures are.
"""

import dataclasses
import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.studies import persona_non_grata as study
from persona_jax.studies import trait_refusal_geometry as geometry

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/geometry", "Where everything goes.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be measured, and stop.")

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")
_OTHER_FIELDS = (*_MODEL_FIELDS, "judges")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  pj.keep_on_disk()
  bank_settings = geometry.BankSettings.of(config["bank"])
  fields = {k: v for k, v in config.items() if k not in (*_OTHER_FIELDS, "bank")}
  settings = study.Settings.of(fields)
  material = study.load_material(settings)
  if bank_settings.prompts > len(material.test):
    raise ValueError(
      f"bank.prompts={bank_settings.prompts}: the test has {len(material.test)} (test_prompts)."
    )
  model = pj.load(
    config["model"],
    dtype=config["dtype"],
    resid_dtype=config["resid_dtype"],
    system_default=config["system_default"],
    chat_template=config["chat_template"],
    weights=not _DRY_RUN.value,
  )
  logging.info("%r on %s", model, jax.devices()[0].device_kind)
  if settings.block is not None:
    settings.steered_block(model.arch.num_blocks)  # refuses one that the model does not have
  if _DRY_RUN.value:
    lines = study.stages(settings, material, model.arch.num_blocks)[:2]
    shown = geometry.describe(bank_settings, material, model.arch.num_blocks, settings.block)
    print("\n".join([*lines, shown]))
    return
  study.start(model, settings, material, workdir, {"bank": dataclasses.asdict(bank_settings)})

  # ---- directions --------------------------------------------------------------------------------
  extracted = study.extract(model, settings, material, workdir)
  refusal = study.find_refusal(model, settings, material, workdir)
  scale = study.residual_norms(model, settings, material, workdir)
  block, why = study.find_block(model, settings, material, extracted, workdir)
  logging.info("block %d: %s", block, why)
  logging.info("directions after %.0f s", time.monotonic() - begun)

  # ---- geometry ----------------------------------------------------------------------------------
  bank = geometry.make_bank(bank_settings, material, extracted, scale)
  prompts = [item.text for item in material.test[: bank_settings.prompts]]
  found = geometry.measure(
    model, bank_settings, bank, refusal, scale, block, prompts, settings.window
  )
  found.write(workdir / "tables")
  figures = geometry.draw(found, block, workdir / "figures")

  # ---- report ------------------------------------------------------------------------------------
  if not refusal.about["selected"]:
    print(f"\nG2 FAILED: {refusal.about['why']} No geometric claim can be made.")
  count = sum(map(len, found.kinds.values()))
  print(f"\n{count} directions at {model.arch.num_blocks} blocks; census at block {block}\n")
  print(found.regressions.round(3).to_string(index=False))
  for note in found.notes:
    print(f"- {note}")
  print(f"\n{time.monotonic() - begun:.0f} s\ntables   {workdir}/tables")
  print("figures  " + "\n         ".join(map(str, figures)))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
