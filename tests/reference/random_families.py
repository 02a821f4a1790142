"""Random tiny checkpoints of every family: configurations as hub files write them, seeded weights.

No size is a power of two and no two sizes that could be confused are equal. Sequences are longer
than every sliding window, and RoPE scalings have contexts so short that they act.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

VOCAB = 101
MAX_LENGTH = 23
_LENGTHS = (23, 4, 15)  # of the rows of a batch

_COMMON: dict[str, Any] = {
  "vocab_size": VOCAB, "hidden_size": 44, "intermediate_size": 54, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 10, "num_hidden_layers": 3, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
}  # fmt: skip
_LLAMA = _COMMON | {
  "model_type": "llama", "hidden_act": "silu", "rope_theta": 10000.0, "attention_bias": False,
  "mlp_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA3 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 24,
}  # fmt: skip
_GEMMA = _COMMON | {
  "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "query_pre_attn_scalar": 7,
  "sliding_window": 6,
}  # fmt: skip
_GEMMA2 = _GEMMA | {
  "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0,
  "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "cache_implementation": "hybrid",
}  # fmt: skip
_GEMMA3 = _GEMMA | {
  "model_type": "gemma3_text", "rope_theta": 1_000_000.0, "rope_local_base_freq": 10000.0,
  "num_hidden_layers": 7, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
_QWEN2 = {k: v for k, v in _COMMON.items() if k != "head_dim"} | {
  "model_type": "qwen2", "hidden_size": 40, "hidden_act": "silu", "rope_theta": 1_000_000.0,
  "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2,
  "tie_word_embeddings": False,
}  # fmt: skip
_QWEN3 = _COMMON | {
  "model_type": "qwen3", "hidden_act": "silu", "rope_theta": 1_000_000.0, "rope_scaling": None,
  "attention_bias": False, "use_sliding_window": False, "sliding_window": None,
  "max_window_layers": 3, "tie_word_embeddings": True,
}  # fmt: skip
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

# Family and what is special about it → config.json.
CONFIGS: dict[str, dict[str, Any]] = {
  "llama, no scaling, one key head": _LLAMA | {"num_key_value_heads": 1},
  "llama, llama3 scaling, tied": _LLAMA | {"rope_scaling": _LLAMA3, "tie_word_embeddings": True},
  "llama, llama3 scaling, another base": _LLAMA | {
    "rope_scaling": _LLAMA3 | {"factor": 32.0, "high_freq_factor": 3.0}, "rope_theta": 500000.0,
    "num_key_value_heads": 4,
  },
  "llama, all biases, linear scaling": _LLAMA | {
    "attention_bias": True, "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 3.0},
  },
  "gemma2, both caps": _GEMMA2,
  "gemma2, no caps, window 1, untied": _GEMMA2 | {
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 1,
    "tie_word_embeddings": False, "num_hidden_layers": 4,
  },
  "gemma2, biases, layer types": _GEMMA2 | {
    "attention_bias": True, "num_key_value_heads": 4,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
  },
  "gemma3, five to one": _GEMMA3,
  "gemma3, linear scaling of full blocks, one key head": _GEMMA3 | {
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "num_key_value_heads": 1,
    "sliding_window_pattern": 2, "num_hidden_layers": 4,
  },
  "gemma3, untied, capped logits, biases": _GEMMA3 | {
    "tie_word_embeddings": False, "final_logit_softcapping": 2.5, "attention_bias": True,
    "num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
  },
  "qwen2, biases of q, k, v": _QWEN2,
  "qwen2, YaRN, tied": _QWEN2 | {"rope_scaling": _YARN, "tie_word_embeddings": True},
  "qwen2, sliding window in the last block": _QWEN2 | {
    "use_sliding_window": True, "sliding_window": 7, "num_key_value_heads": 4,
  },
  "qwen3, QK-norm, tied": _QWEN3,
  "qwen3, untied, biases, one key head": _QWEN3 | {
    "tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 1,
  },
  "qwen3, YaRN, sliding window": _QWEN3 | {
    "rope_scaling": _YARN | {"rope_type": "yarn", "beta_fast": 8.0}, "use_sliding_window": True,
    "sliding_window": 5, "max_window_layers": 1,
  },
}  # fmt: skip


def random_tensor(name: str, shape: tuple[int, ...], model_type: str) -> np.ndarray:
  """Draws one tensor, float32, from its name and shape alone.

  Gaussian, scaled so that every block's output is near the size of its input and attention is far
  from uniform; scales of norms lie between .5 and 1.5, as the family stores them.
  """
  rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
  if "norm" in name:
    scale = rng.uniform(0.5, 1.5, size=shape)
    return (scale - model_type.startswith("gemma")).astype(np.float32)
  values = rng.normal(size=shape)
  if name.endswith("bias"):
    return (0.5 * values).astype(np.float32)
  if "embed" not in name:
    values *= (2.0 if "q_proj" in name or "k_proj" in name else 1.0) / np.sqrt(shape[-1])
  elif model_type.startswith("gemma"):
    values /= np.sqrt(shape[-1])
  return values.astype(np.float32)


def random_tensors(
  config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Draws a checkpoint's tensors."""
  return {n: random_tensor(n, tuple(shape), config["model_type"]) for n, shape in shapes.items()}


def rows() -> list[list[int]]:
  """Returns a batch of token ids of different lengths."""
  rng = np.random.default_rng(7)
  return [rng.integers(2, VOCAB, n).tolist() for n in _LENGTHS]
