"""Twelve personas by prompt and by steering: minutes on two CPU cores with a small model.

python experiments/prompt_vs_steering.py --config=configs/demo.py --workdir=runs/demo
python experiments/prompt_vs_steering.py --config=configs/demo.py:gemma-3-270m --workdir=runs/gemma

After the colon stands the model: a registry name, hub id, directory or .gguf file.
"""

import ml_collections
from ml_collections import config_dict

_TUNED = "smollm2-135m-instruct"
_BASE_MODELS = ("gemma-3-270m",)


def get_config(model: str = _TUNED) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = model  # registry name, hub id, directory or .gguf file
  config.dtype = "float32"
  config.resid_dtype = config_dict.placeholder(str)  # as dtype; float32 keeps small edits
  config.system_default = "keep"  # what a chat without a system message gets: keep, empty, drop

  # None: the model's own. A base model has none and is prompted in plain text.
  config.chat_template = config_dict.placeholder(str)
  if model in _BASE_MODELS:
    config.chat_template = "plain"

  config.personas = tuple(f"P{n}" for n in range(1, 13))

  # Steering. One block for all personas. For SmolLM2-135M, blocks 10, 14, 16, 18 and 20 of 30 were
  # tried with the self-report measure at dose 0.2: at 10 and 14 steering moved one trait or none,
  # at 18 the shift of all five has the right sign (three to four of the intervals exclude 0);
  # beyond 0.2 the curve flattened. So its slopes are flattered, and the report says so.
  config.tuned_on_self_report = model == _TUNED
  config.block = config_dict.placeholder(int)  # None: at three fifths of the depth, untuned
  if model == _TUNED:
    config.block = 18
  config.coef = 0.2  # dose of the steer and random arms, in median residual norms
  config.curve = (0.1, 0.2)  # doses of the curve, run with both signs
  config.breakdown = (0.8,)  # higher doses on the trait questions: where does text break?
  config.window = "answer"  # last prompt token and all generated ones

  # Directions: difference of means at the last prompt token, under opposite pole texts.
  config.extract_questions = 8  # questions about oneself, at most 12
  config.dose_prompts = 4  # harmless prompts whose answers give the residual norm, at most 24
  config.dose_tokens = 32

  # The grid.
  config.pairs = 2  # harmful questions, each with its harmless twin, at most 150
  config.trait_questions = 1  # a trait, at most 3
  config.max_new_tokens = 40
  config.replicate = 0  # paraphrase of the persona texts: 0, 1, 2
  config.seed = 0
  return config
