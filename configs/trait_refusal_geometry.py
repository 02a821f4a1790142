"""Trait-refusal geometry of a thousand directions: minutes on two CPU cores with SmolLM2-135M.

python experiments/trait_refusal_geometry.py --workdir=runs/geometry \
  --config=configs/trait_refusal_geometry.py

After the colon stands the model. Directions come from prompts under opposite texts, at their last
token, which is quick; set source="answers" for those of answers.
"""

import ml_collections

from configs import persona_non_grata_tiny


def get_config(model: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  config = persona_non_grata_tiny.get_config(model)
  config.persona_set = "closed50"  # 10 poles and 40 composites, three replicates each
  config.source = "prompts"
  config.questions = "self"
  config.questions_each = 4
  config.train_prompts = 24
  config.held_out_prompts = 8
  config.calibration_prompts = 4
  config.calibration_tokens = 16

  config.bank = ml_collections.ConfigDict()
  config.bank.isotropic = 256
  config.bank.covariance = 512
  config.bank.components = 32
  config.bank.prompts = 24  # harmful ones
  config.bank.kappa = 0.2  # dose of the census, in median residual norms
  config.bank.draws = 2000
  config.bank.seed = 0
  config.test_prompts = 24
  return config
