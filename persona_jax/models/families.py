"""The model families, by the `model_type` of their Hugging Face config."""

from persona_jax.models.family import Family
from persona_jax.models.gemma import GEMMA2, GEMMA3
from persona_jax.models.llama import LLAMA
from persona_jax.models.qwen import QWEN2, QWEN3

# "gemma3" is the type of multimodal checkpoints, whose text part is read.
FAMILIES: dict[str, Family] = {
  **{family.name: family for family in (LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3)},
  "gemma3": GEMMA3,
}


def family(model_type: str) -> Family:
  """Return the adapter for a `model_type`.

  Raises:
    ValueError: no adapter has that name.
  """
  if model_type not in FAMILIES:
    raise ValueError(
      f"model_type {model_type!r} is not supported; supported: {sorted(FAMILIES)}. "
      "Another family can be given: pj.load(…, family=pj.Family(…))."
    )
  return FAMILIES[model_type]
