"""Models of the core study by a short name, with what each needs set by hand.

The name stands after the colon of a config, as in `configs/persona_non_grata.py:llama31_8b`; any
other text there is taken as the model itself: a registry name, hub id, directory or .gguf file.
persona_non_grata (also for calibrate.py), trait_refusal_geometry, extract_directions and
reasoning_traces take them.
"""

import ml_collections

_R1_WITHOUT_THOUGHT = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
  "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
  "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<｜Assistant｜><think>\n\n</think>\n\n{% endif %}"
)

# Turns of models that do not think by themselves, with a tag that begins a thought behind the last:
# what configs/reasoning_traces.py needs. Persona texts stand in the user's turn there.
_LLAMA_THINKS = (
  "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
  "{{ m['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
  "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n{% endif %}"
)
_GEMMA_THINKS = (
  "{{ bos_token }}{% for m in messages %}<start_of_turn>"
  "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
  "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n<think>\n{% endif %}"
)
CHATML_THINKS = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
  "<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

# What a chat without a system message gets decides what steering is compared with, so it is set by
# hand: "keep" what the template does, "empty" an empty system message, "drop" none at all.
_MODELS = {
  "llama31_8b": {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    # Its template writes a system block with dates in any case; "keep" adds no other words to it.
    "system_default": "keep",
  },
  "gemma3_27b": {
    "model": "google/gemma-3-27b-it",
    # Its template has no system role: it puts a system message at the head of the user's turn. The
    # tables mark the placement.
    "system_default": "keep",
  },
  "qwen25_32b": {
    "model": "Qwen/Qwen2.5-32B-Instruct",
    # Its template says "You are Qwen, created by Alibaba Cloud" to a chat without a system message,
    # which a prompted persona replaces and a steered one would keep.
    "system_default": "empty",
  },
  "r1_distill_qwen_32b": {
    "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    # Its card advises against system messages: all instructions go into the user's turn.
    "system_default": "keep",
    "persona_in": "user",
    # An empty thought stands in every prompt: first tokens are answers' then, refusal can be found
    # as in other models, and doses are comparable. What its thoughts do is the question of
    # configs/reasoning_traces.py.
    "chat_template": _R1_WITHOUT_THOUGHT,
  },
  "smollm2_135m": {"model": "smollm2-135m-instruct"},
}
LARGE = ("llama31_8b", "gemma3_27b", "qwen25_32b", "r1_distill_qwen_32b")
NAMES = tuple(_MODELS)
# "closed": they are not made to end a thought, so one is ended for them (arXiv 2501.19393).
_THINKING = {
  "llama31_8b": {"chat_template": _LLAMA_THINKS, "at_budget": "closed"},
  "gemma3_27b": {"chat_template": _GEMMA_THINKS, "at_budget": "closed"},
  "qwen25_32b": {
    "chat_template": CHATML_THINKS,  # says nothing of its own, so nothing is to be kept out
    "system_default": "keep",
    "at_budget": "closed",
  },
  "r1_distill_qwen_32b": {"chat_template": None},  # its own begins a thought
  "smollm2_135m": {"chat_template": CHATML_THINKS, "at_budget": "closed"},
}


def put(config: ml_collections.ConfigDict, model: str, *, thinks: bool = False) -> None:
  """Set the fields of a config for a model: those of its short name, or the model alone.

  Args:
    config: of a study; fields that it does not have are left out.
    model: a short name, or what `pj.load` takes.
    thinks: whether answers begin with a thought.
  """
  fields = dict(_MODELS.get(model, {"model": model}))
  if thinks:
    fields |= _THINKING.get(model, {})
  for name, value in fields.items():
    if name in config:
      config[name] = value
