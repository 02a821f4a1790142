"""The core study: the same personas by system prompt and by steering, matched, controlled, tested.

    python experiments/persona_non_grata.py --config=configs/persona_non_grata.py --workdir=runs/png
    python experiments/persona_non_grata.py … --dry_run          what it will take
    python experiments/persona_non_grata.py … --stages=analyse   a stage by itself
    python experiments/persona_non_grata.py … --open_confirm     run what H3 rests on, once

Stages: extract, calibrate, generate, judge, analyse, report. Each reads what those before it have
written; what is there is kept, so a study that was stopped goes on, and a judge can be added later
without generating again. The confirm split is not run before --open_confirm, which is recorded
(confirm_opened.json); from then on H3 rests on it alone. At the end it prints gates, hypotheses,
rates, and where everything is.
"""

import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.engine.accelerators import ACCELERATORS
from persona_jax.studies import persona_non_grata as study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/persona_non_grata", "Where everything goes.")
_STAGES = flags.DEFINE_list(
  "stages", list(study.STAGES), "Which stages to run; the others must have run before."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print rows, tokens and memory, and stop.")
_ON = flags.DEFINE_enum(
  "on", None, sorted(ACCELERATORS), "Accelerator that --dry_run plans for, with estimated hours."
)
_OPEN_CONFIRM = flags.DEFINE_bool(
  "open_confirm", False, "Open the confirm split: it is run once, and H3 then rests on it alone."
)
_OTHERS = flags.DEFINE_list(
  "others", [], "Workdirs of other models' studies over the same prompts, for H1 and H2."
)
_LABELLED = flags.DEFINE_string(
  "labelled", None, "Parquet file of answers with known labels (text, label, persona), for gate G5."
)
_ANNOTATIONS = flags.DEFINE_list(
  "annotations",
  [],
  "Sheets of this study's rows that people have filled in (annotation/annotate-1.csv, …, their key "
  "beside them): for gate G5, corrected rates, and the validation of judges.",
)

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")
_OTHER_FIELDS = (*_MODEL_FIELDS, "judges")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  pj.keep_on_disk()
  settings = study.Settings.of({k: v for k, v in config.items() if k not in _OTHER_FIELDS})
  judges = study.Judges.of(config["judges"])
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
    print(study.describe(model, settings, material, _ON.value, judges))
    return
  study.start(model, settings, material, workdir)
  for note in study.unmeasured(
    settings, judges, labelled=_LABELLED.value is not None, annotated=bool(_ANNOTATIONS.value)
  ):
    logging.warning("%s", note)

  # Read before anything runs: a mistake in a flag must not be found at the end.
  directories = [Path(other) for other in _OTHERS.value]
  others, left_out = study.prompt_arms(settings, material, directories, judges.key)
  for name, why in left_out.items():
    logging.warning("%s %s: it is left out of the comparison of models.", name, why)
  labelled = annotations = None
  if _LABELLED.value is not None:
    labelled = study.read_labelled(settings, _LABELLED.value, with_prompts=judges.read_prompts)
  if _ANNOTATIONS.value:
    annotations = study.read_annotated(_ANNOTATIONS.value)
  study.require(settings, _STAGES.value, workdir, judges)
  if _OPEN_CONFIRM.value and "generate" not in _STAGES.value:
    raise app.UsageError("--open_confirm runs the confirm split: name the stage generate, too.")

  # ---- stages ------------------------------------------------------------------------------------
  last = max(study.STAGES.index(stage) for stage in _STAGES.value)
  extracted = study.extract(model, settings, material, workdir)
  refusal = study.find_refusal(model, settings, material, workdir)
  if last == 0:
    print(f"directions  {workdir}/directions")
    return
  calibrated = study.calibrate(model, settings, material, extracted, workdir)
  if last == 1:
    print(f"matches  {workdir}/calibration")
    return
  if _OPEN_CONFIRM.value:
    opened = study.open_confirm(material, workdir)
    logging.warning("the confirm split is open since %s", opened["date"])
  parts = study.parts_of(
    model,
    settings,
    material,
    extracted,
    refusal,
    calibrated,
    workdir,
    with_confirm=study.is_confirm_open(material, workdir),
  )
  rows = study.generate(model, settings, parts, refusal.ids, workdir)
  study.ask_items(model, settings, material.util, parts[0].arms, workdir)
  if last == 2:
    print(f"{len(rows)} rows  {workdir}/grids  (pj.Run.open)")
    return
  judged = study.judge(
    model,
    settings,
    judges,
    material,
    rows,
    workdir,
    lambda name: pj.load(name, dtype=config["dtype"], resid_dtype=config["resid_dtype"]),
  )
  if last == 3:
    print(f"judgements  {workdir}/judgements")
    return
  if "analyse" in _STAGES.value:
    found = study.analyse(
      model,
      settings,
      material,
      extracted,
      refusal,
      calibrated,
      judged.table,
      workdir,
      others=others,
      left_out=left_out,
      labelled=labelled,
      annotations=annotations,
      scorer=judged.labels or study.labeller(model, settings, refusal.ids),
      style=judged.style,
      competence=judged.competence,
      judged_by=judges.key,
    )
    summary = study.write_summary(found, settings, workdir / "summary.md")
    print(f"\n{study.screen(found, settings)}\n\nsummary  {summary.resolve()}")

  # ---- report ------------------------------------------------------------------------------------
  print(f"rows     {workdir}/grids  (pj.Run.open)\ntables   {workdir}/tables")
  if last == study.STAGES.index("report"):
    written = study.report(settings, material, judged.table, workdir)
    print(f"claims   {written.claims}  ({written.numbers} numbers)")
    print(f"{len(rows)} rows, {time.monotonic() - begun:.0f} s")
    print(f"report   {written.page.resolve()}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
