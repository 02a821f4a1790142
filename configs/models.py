"""Models of the core study by a short name, with what each needs set by hand.

The name stands after the colon of a config, as in `configs/persona_non_grata.py:llama31_8b`; any
other text there is taken as the model itself: a registry name, hub id, directory or .gguf file.
"""

import ml_collections

_R1_WITHOUT_THOUGHT = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
  "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
  "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<｜Assistant｜><think>\n\n</think>\n\n{% endif %}"
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
NAMES = tuple(_MODELS)


def put(config: ml_collections.ConfigDict, model: str) -> None:
  """Set the fields of a config for a model: those of its short name, or the model alone."""
  for name, value in _MODELS.get(model, {"model": model}).items():
    if name not in config:
      continue  # of another study
    config[name] = value
