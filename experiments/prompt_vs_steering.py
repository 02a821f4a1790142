"""The same personas by system prompt and by activation steering, from one command.

    python experiments/prompt_vs_steering.py --config=configs/demo.py --workdir=runs/demo

Stopped and started again, it goes on where it was. At the end it prints the findings and where the
report, tables, figures and rows are.
"""

import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import persona_jax as pj
from persona_jax.report import draw_all, write_report
from persona_jax.studies import prompt_vs_steering as study

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where everything goes.")

_MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; see --help.")
  config, workdir = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
  begun = time.monotonic()

  # ---- set-up ------------------------------------------------------------------------------------
  pj.keep_on_disk()
  model = pj.load(
    config["model"],
    dtype=config["dtype"],
    resid_dtype=config["resid_dtype"],
    system_default=config["system_default"],
    chat_template=config["chat_template"],
  )
  if config["block"] is None:
    config["block"] = round(0.6 * model.arch.num_blocks)
  settings = study.Settings.of({k: v for k, v in config.items() if k not in _MODEL_FIELDS})
  config_hash = study.start(model, settings, workdir)
  logging.info("%r on %s", model, jax.devices()[0].device_kind)
  for line in study.base_model(model):
    logging.info("%s", line)

  # ---- stages ------------------------------------------------------------------------------------
  prepared = study.prepare(model, settings, workdir)
  arms, curve = study.arms(settings, prepared), study.curve_arms(settings, prepared)
  breakdown = study.breakdown_arms(settings, prepared)
  prompts = study.prompts(settings)
  by_name = {**arms, **breakdown}
  rows = study.generate(model, settings, by_name, prompts, workdir)
  items = study.describe(model, config_hash, {**arms, **curve}, workdir)

  # ---- report ------------------------------------------------------------------------------------
  data = study.analyse(
    model, settings, config_hash, prepared, rows, items, prompts, by_name, workdir
  )
  figures = draw_all(data, workdir / "figures")
  report = write_report(data, figures, workdir / "report.html")
  print(f"\n{data.title}\n\n{study.screen_table(data)}\n")
  print(
    "trait shift: nats per token towards the persona's pole; refused: of harmful prompts; 95 %\n"
  )
  for line in (*data.verdict, *data.limits[:1], *study.base_model(model)):
    print(f"- {line}")
  print(f"\n{len(rows)} generations, {len(items)} items, {time.monotonic() - begun:.0f} s")
  print(
    f"rows    {workdir}/grid  (pj.Run.open)\ntables  {workdir}/tables\nreport  {report.resolve()}"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
