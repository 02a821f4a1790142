"""What a reasoning model thinks under a persona, and whether its answers follow its thoughts.

    python experiments/reasoning_traces.py --config=configs/reasoning_traces_tiny.py \
      --workdir=runs/traces

Stopped and started again, it goes on where it was; --stages runs some stages alone, --dry_run
prints what all would take. Directions are made if none are given.
"""

import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.engine.accelerators import ACCELERATORS
from persona_jax.report.trace_figures import draw_traces
from persona_jax.studies import reasoning_traces as study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/reasoning_traces", "Where everything goes.")
_STAGES = flags.DEFINE_list(
  "stages", list(study.STAGES), "Which stages to run; the others must have run before."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print rows, tokens and memory, and stop.")
_ON = flags.DEFINE_enum(
  "on", None, sorted(ACCELERATORS), "Accelerator that --dry_run plans for, with estimated times."
)
_JUDGED = flags.DEFINE_string(
  "judged", None, "CSV file of judged spans (text, cue, label 0 or 1), to validate cues by."
)

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  pj.keep_on_disk()
  settings = study.Settings.of({k: v for k, v in config.items() if k not in _MODEL_FIELDS})
  items = study.load_items(settings)
  judged = None if _JUDGED.value is None else study.read_judged(settings.lists(), _JUDGED.value)
  model = pj.load(
    config["model"],
    **{k: config[k] for k in _MODEL_FIELDS if k != "model"},
    weights=not _DRY_RUN.value,
  )
  settings = settings.at_block(model.arch.num_blocks)
  logging.info("%r on %s", model, jax.devices()[0].device_kind)
  if _DRY_RUN.value:
    print(study.describe(model, settings, items, _ON.value))
    return
  study.start(model, settings, items, workdir)
  study.require(_STAGES.value, workdir)

  # ---- stages ------------------------------------------------------------------------------------
  last = max(study.STAGES.index(stage) for stage in _STAGES.value)
  arms = study.make_arms(settings, study.prepare(model, settings, workdir))
  thoughts = study.think(model, settings, items, arms, workdir)
  if last == 0:
    print(f"{len(thoughts)} thoughts  {workdir}/think  (pj.Run.open)")
    return
  answers = study.answer(model, settings, items, arms, thoughts, workdir)
  if last == 1:
    print(f"{len(answers)} answers  {workdir}/answer")
    return
  found = study.analyse(settings, arms, thoughts, answers, workdir, judged=judged)

  # ---- report ------------------------------------------------------------------------------------
  note = "" if found.measures else found.title
  figures = draw_traces(
    found.tables["positions"], found.tables["swap"], workdir / "figures", note=note
  )
  summary = study.write_summary(found, figures, workdir / "summary.md")
  print(f"\n{study.screen(found)}\n")
  print(f"{len(thoughts)} thoughts, {len(answers)} answers, {time.monotonic() - begun:.0f} s")
  print(f"tables   {workdir}/tables\nfigures  {workdir}/figures\nsummary  {summary.resolve()}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
