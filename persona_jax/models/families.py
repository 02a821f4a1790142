"""The model families, by the `model_type` of their Hugging Face config."""

from types import ModuleType

from persona_jax.models import llama

_FAMILIES = {"llama": llama}


def family(name: str) -> ModuleType:
  """Return the adapter of a family.

  It has `parse`, `abstract_params`, `weight_map`, `embed`, `block` and `unembed`.

  Raises:
    ValueError: no adapter has that name.
  """
  if name not in _FAMILIES:
    raise ValueError(f"model_type {name!r} is not supported; supported: {sorted(_FAMILIES)}.")
  return _FAMILIES[name]
