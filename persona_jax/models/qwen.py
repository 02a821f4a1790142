"""Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen (biases of q, k, v; YaRN), and Qwen3 (QK-norm).

Yang et al. 2024 (2407.10671, 2412.15115), Yang et al. 2025 (2505.09388).
"""

from collections.abc import Mapping
from typing import Any

from persona_jax.models.arch import Arch, BlockKind, block_pattern
from persona_jax.models.config import Fields, layer_windows, sizes
from persona_jax.models.family import Family
from persona_jax.models.rope import parse_rope

_NEEDED = (
  "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
_HANDLED = (
  "model_type", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
  "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "use_sliding_window",
  "sliding_window", "max_window_layers", "layer_types",
)  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "use_mrope": (False,)}


def _parse(config: Mapping[str, Any], family: Family, **parts: Any) -> Arch:
  num_blocks = config["num_hidden_layers"]
  max_positions = config.get("max_position_embeddings", 32768)
  scaling = config.get("rope_parameters") or config.get("rope_scaling")
  rope = parse_rope(config.get("rope_theta", 10_000.0), scaling, max_positions)
  if rope.kind == "yarn":  # Qwen's files name the original context in both places
    max_positions = max(max_positions, int(rope.factor * rope.original_positions))
  slides = bool(config.get("use_sliding_window", False))
  first = config.get("max_window_layers", 28)
  # transformers drops the window unless it is in use; null is no window even then.
  window = config.get("sliding_window", 4096) if slides else None
  default = [window is not None and i >= first for i in range(num_blocks)]
  kinds, pattern = block_pattern(
    BlockKind(rope, w) for w in layer_windows(config, num_blocks, default, window)
  )
  return Arch(
    family=family,
    **sizes(config),
    max_positions=max_positions,
    kinds=kinds,
    pattern=pattern,
    **parts,
  )


def parse_qwen2(config: Mapping[str, Any]) -> Arch:
  """Read a config.json of model type "qwen2".

  Raises:
    ValueError: a field is missing, unknown, or has a value that this port does not implement.
  """
  Fields("qwen2", _NEEDED, _HANDLED, _FIXED).check(config)
  return _parse(config, QWEN2, qkv_bias=True)


def parse_qwen3(config: Mapping[str, Any]) -> Arch:
  """Read a config.json of model type "qwen3"; raises as `parse_qwen2`."""
  Fields("qwen3", _NEEDED, (*_HANDLED, "attention_bias"), _FIXED).check(config)
  biased = bool(config.get("attention_bias", False))
  config = {"head_dim": 128, **config}  # the class's default is not hidden_size / heads
  return _parse(config, QWEN3, qk_norm=True, qkv_bias=biased, o_bias=biased)


QWEN2 = Family("qwen2", parse_qwen2)
QWEN3 = Family("qwen3", parse_qwen3)
