"""The core study over all its models, one after another, then compared with one another.

Of the one that thinks, its traces too.

python experiments/sweep.py --config=configs/sweeps/core_study.py --workdir=runs/core [--dry_run]

After the colon stands a comma-separated part of the models, such as `…core_study.py:llama31_8b`.
"""

import ml_collections

from configs import models

_THINK = ("r1_distill_qwen_32b",)


def get_config(chosen: str = ",".join(models.LARGE)) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  names = tuple(chosen.split(","))

  # Each run is a binary with its config; its directory is below the sweep's, named as it is.
  runs = {name: ("persona_non_grata", f"configs/persona_non_grata.py:{name}", ()) for name in names}
  for name in names:
    others = ",".join(f"{{workdir}}/{other}" for other in names if other != name)
    if others:
      # H1 and H2 compare rankings of models, so they come when all have run.
      flags = ("--stages=analyse,report", f"--others={others}")
      config_file = f"configs/persona_non_grata.py:{name}"
      runs[f"{name} compared"] = ("persona_non_grata", config_file, flags)
  for name in names:
    if name in _THINK:
      runs[f"{name}-traces"] = ("reasoning_traces", f"configs/reasoning_traces.py:{name}", ())
  config.runs = [
    {
      "name": name,
      "binary": binary,
      "config": config_file,
      "directory": name.removesuffix(" compared"),
      "flags": flags,
    }
    for name, (binary, config_file, flags) in runs.items()
  ]
  return config
