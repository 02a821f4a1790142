"""Llama 2 to 3.3 (Touvron et al. 2023, Grattafiori et al. 2024), SmolLM2, R1-Distill-Llama.

Grouped queries, RoPE with the `llama3` scaling from 3.1 on, SwiGLU, tied or untied head.
"""

from collections.abc import Mapping
from typing import Any

from persona_jax.models.arch import Arch, BlockKind
from persona_jax.models.config import Fields, sizes
from persona_jax.models.family import Family
from persona_jax.models.rope import parse_rope

_FIELDS = Fields(
  "llama",
  needed=(
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
  ),
  handled=(
    "model_type",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "attention_bias",
    "mlp_bias",
  ),
  fixed={"hidden_act": ("silu",), "rope_interleaved": (False,)},
)


def parse(config: Mapping[str, Any]) -> Arch:
  """Read a config.json of model type "llama".

  Raises:
    ValueError: a field is missing, unknown, or has a value that this port does not implement.
  """
  _FIELDS.check(config)
  max_positions = config.get("max_position_embeddings", 2048)
  scaling = config.get("rope_parameters") or config.get("rope_scaling")
  rope = parse_rope(config.get("rope_theta", 10_000.0), scaling, max_positions)
  biased = bool(config.get("attention_bias", False))
  return Arch(
    family=LLAMA,
    **sizes(config),
    max_positions=max_positions,
    kinds=(BlockKind(rope),),
    pattern=(0,) * config["num_hidden_layers"],
    qkv_bias=biased,
    o_bias=biased,
    ffw_bias=bool(config.get("mlp_bias", False)),
  )


LLAMA = Family("llama", parse)
