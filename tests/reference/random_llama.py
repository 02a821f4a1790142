"""Random tiny Llama checkpoints: Hugging Face config keys and tensors, small enough for float64.

No size is a power of two and no two sizes that could be confused are equal, so a wrong axis or a
silent broadcast shows.
"""

from typing import Any

import numpy as np


def random_llama(
  seed: int = 0,
  *,
  tied: bool = False,
  blocks: int = 3,
  hidden: int = 44,
  heads: int = 4,
  kv_heads: int = 2,
  head_dim: int = 10,
  ffw: int = 54,
  vocab: int = 101,
  rope_theta: float = 10_000.0,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Draws a checkpoint: (config.json as a dictionary, Hugging Face name → float32 array [out, in]).

  Weights are Gaussian with the scale that keeps every block's output near the size of its input,
  norm weights lie between .5 and 1.5, and queries and keys are large enough that attention is far
  from uniform. Token 0 is `<bos>`, token 1 `<eos>`. `tied` leaves out `lm_head.weight`.
  """
  rng = np.random.default_rng(seed)

  def matrix(out: int, width: int, gain: float = 1.0) -> np.ndarray:
    return (gain * rng.normal(size=(out, width)) / np.sqrt(width)).astype(np.float32)

  def norm() -> np.ndarray:
    return rng.uniform(0.5, 1.5, size=hidden).astype(np.float32)

  tensors = {"model.embed_tokens.weight": rng.normal(size=(vocab, hidden)).astype(np.float32)}
  for i in range(blocks):
    tensors |= {
      f"model.layers.{i}.{name}.weight": tensor
      for name, tensor in {
        "input_layernorm": norm(),
        "self_attn.q_proj": matrix(heads * head_dim, hidden, 2.0),
        "self_attn.k_proj": matrix(kv_heads * head_dim, hidden, 2.0),
        "self_attn.v_proj": matrix(kv_heads * head_dim, hidden),
        "self_attn.o_proj": matrix(hidden, heads * head_dim),
        "post_attention_layernorm": norm(),
        "mlp.gate_proj": matrix(ffw, hidden),
        "mlp.up_proj": matrix(ffw, hidden),
        "mlp.down_proj": matrix(hidden, ffw),
      }.items()
    }
  tensors["model.norm.weight"] = norm()
  if not tied:
    tensors["lm_head.weight"] = matrix(vocab, hidden, 2.0)
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": hidden,
    "intermediate_size": ffw,
    "num_hidden_layers": blocks,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "vocab_size": vocab,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": rope_theta,
    "max_position_embeddings": 256,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": tied,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
  }
  return config, tensors


def vocabulary(config: dict[str, Any]) -> list[str]:
  """Names every token of a random checkpoint: `<bos>`, `<eos>`, then the words w2, w3, …"""
  return ["<bos>", "<eos>", *(f"w{i}" for i in range(2, config["vocab_size"]))]
