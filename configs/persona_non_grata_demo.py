"""The core study cut down to what a newcomer waits for: four minutes on two CPU cores.

python experiments/persona_non_grata.py --workdir=runs/demo \
  --config=configs/persona_non_grata_demo.py

All stages of the core study on SmolLM2-135M: twelve personas by prompt and by steering at matched
strength, exact log-odds of a refusal's first token, controls, doses, side effects, and answers to a
few requests. The model refuses next to nothing: gates fail, the report says so, and no hypothesis
is tested. `persona_non_grata_tiny.py` is the same with directions from answers and more of all.
"""

import ml_collections

from configs import persona_non_grata_tiny


def get_config(model: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  config = persona_non_grata_tiny.get_config(model)
  config.replicates = 1
  config.train_prompts = 8
  config.held_out_prompts = 2
  config.calibration_prompts = 2
  config.test_prompts = 4
  config.dose_prompts = 2
  config.control_prompts = 2
  config.spec_prompts = 0
  config.over_prompts = 2

  # Directions are read at the last token of prompts: no answers are generated and rated for them.
  config.source = "prompts"
  config.refusal_positions = 1
  config.block_step = 4
  config.questions_each = 2
  config.placebo = ""

  config.kappas = (0.1, 0.2)
  config.matches = ("norm",)  # of short answers some prompts shift nothing along their direction
  config.outcome = "first_token"  # exact: its answers refuse nothing, so labels are all alike
  config.items = 1
  config.calibration_tokens = 8
  config.dose_skip = 2

  config.controls = ("R-cov", "-v")
  config.num_controls = 19  # the fewest of which a p can be .05
  config.max_new_tokens = 12
  config.draws = 1000
  return config
