"""Twelve personas by prompt and by steering on SmolLM2-135M: minutes on two CPU cores.

python experiments/prompt_vs_steering.py --config=configs/demo.py --workdir=runs/demo
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = "smollm2-135m-instruct"  # registry name, directory or .gguf file
  config.dtype = "float32"
  config.resid_dtype = None  # as dtype
  config.system_default = "keep"  # what a chat without a system message gets: keep, empty, drop

  config.personas = tuple(f"P{n}" for n in range(1, 13))

  # Steering. One block for all personas; its dose curve is in the report.
  config.block = 16  # of 30; output of layer 16, counted from 0
  config.coef = 0.2  # dose of the steer and random arms, in median residual norms
  config.curve = (0.05, 0.1, 0.2, 0.3)  # doses of the curve, run with both signs
  config.window = "answer"  # last prompt token and all generated ones

  # Directions: difference of means over answers under opposite poles.
  config.extract_questions = 12  # questions about oneself, at most 12
  config.extract_tokens = 32
  config.extract_context = "kept"  # read answers with the persona's system message, or "stripped"
  config.dose_prompts = 6  # harmless prompts whose answers give the residual norm, at most 24
  config.dose_tokens = 32

  # The grid.
  config.pairs = 5  # harmful questions, each with its harmless twin, at most 150
  config.trait_questions = 3  # at most 15
  config.max_new_tokens = 40
  config.replicate = 0  # paraphrase of the persona texts: 0, 1, 2
  config.seed = 0
  return config
