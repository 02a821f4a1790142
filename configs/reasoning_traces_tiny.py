"""Reasoning traces' pipeline on SmolLM2-135M: minutes on two CPU cores.

python experiments/reasoning_traces.py --workdir=runs/traces \
  --config=configs/reasoning_traces_tiny.py

SmolLM2 does not think and has no tokens for the tags: a template opens a thought for it, and
"</think>" is written where the budget ends. So this is a pipeline demonstration, as its report
says, and no finding.
"""

import ml_collections

from configs import models, reasoning_traces


def get_config(model: str = "smollm2-135m-instruct") -> ml_collections.ConfigDict:
  config = reasoning_traces.get_config(model)
  config.dtype = "float32"
  config.chat_template = models.CHATML_THINKS
  config.named = ("P12",)
  config.persona_in = "system"
  config.extract_questions = 8
  config.block = 18  # its self-report moves there (configs/demo.py)
  config.dose_prompts = 4
  config.dose_tokens = 32
  config.prompts = 12
  config.temperature = 0.0
  config.think_tokens = 48
  config.answer_tokens = 32
  config.at_budget = "closed"
  config.draws = 1000
  return config
