"""Trait-refusal geometry of a thousand directions: minutes on two CPU cores with SmolLM2-135M.

python experiments/trait_refusal_geometry.py --workdir=runs/geometry \
  --config=configs/trait_refusal_geometry.py
python experiments/trait_refusal_geometry.py --workdir=runs/geometry-llama --dry_run \
  --config=configs/trait_refusal_geometry.py:llama31_8b

After the colon stands the model: llama31_8b, gemma3_27b, qwen25_32b, r1_distill_qwen_32b (see
`models.py`) with the prompts, answers and choice of the block of the core study; any other one with
those of its tiny config. SmolLM2's directions come from prompts under opposite texts, at their last
token, which is quick; set source="answers" for those of answers.
"""

import ml_collections

from configs import models, persona_non_grata, persona_non_grata_tiny


def get_config(model: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  if model in models.LARGE:
    config = persona_non_grata.get_config(model)  # block None: chosen, without harmful prompts
    config.test_prompts = 200
  else:
    config = persona_non_grata_tiny.get_config(model)
    config.source = "prompts"
    config.questions = "self"
    config.questions_each = 4
    config.train_prompts = 24
    config.held_out_prompts = 8
    config.calibration_prompts = 4
    config.calibration_tokens = 16
    config.test_prompts = 24
  config.persona_set = "closed50"  # 10 poles and 40 composites, three replicates each

  config.bank = ml_collections.ConfigDict()
  config.bank.isotropic = 256
  config.bank.covariance = 512
  config.bank.components = 32
  config.bank.prompts = 100 if model in models.LARGE else 24  # harmful ones
  config.bank.kappa = 0.2  # dose of the census, in median residual norms
  config.bank.draws = 2000
  config.bank.seed = 0
  return config
