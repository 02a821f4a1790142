"""What GGUF files of each architecture hold, in Hugging Face's terms: fields, tensors, conventions.

llama.cpp changes some weights when it converts a checkpoint (it interleaves the query and key rows
of Llama, and adds 1 to Gemma's norms) and knows some constants by the architecture alone; both are
undone or filled in here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MODEL_TENSORS = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_BLOCK_TENSORS = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_NEEDED = (
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "attention.head_count",
  "attention.layer_norm_rms_epsilon",
)
_OPTIONAL = (
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.scaling.type",
  "vocab_size",
)


@dataclasses.dataclass(frozen=True)
class Fields:
  """The fields of a file under its architecture's prefix."""

  path: Path
  prefix: str
  all: Mapping[str, Any]

  def whole(self, name: str, default: int | None = None) -> int:
    """Return a positive integer.

    Raises:
      ValueError: the field is absent without a default, or is something else.
    """
    value = self.all.get(f"{self.prefix}.{name}", default)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
      raise ValueError(
        f"{self.path}: {self.prefix}.{name} is {value!r}; it must be one positive integer for all "
        "blocks."
      )
    return value

  def number(self, name: str, default: float) -> float:
    """Return the shortest decimal of a float32: 9.999999747378752e-06 was 1e-05."""
    return float(str(np.float32(self.all.get(f"{self.prefix}.{name}", default))))

  def rope_scaling(self) -> dict[str, Any] | None:
    """Return the scaling of the rotary frequencies as config.json has it.

    Raises:
      ValueError: a type other than "none" and "linear".
    """
    kind = self.all.get(f"{self.prefix}.rope.scaling.type", "none")
    if kind == "none":
      return None
    if kind != "linear" or "rope.scaling.factor" not in ARCHITECTURES[self.prefix].optional:
      raise ValueError(
        f"{self.path}: {self.prefix}.rope.scaling.type is {kind!r}; it is not handled."
      )
    return {"rope_type": "linear", "factor": self.number("rope.scaling.factor", 1.0)}


def _common(fields: Fields, tied: bool) -> dict[str, Any]:
  heads, width = fields.whole("attention.head_count"), fields.whole("embedding_length")
  head_dim = fields.whole("attention.key_length", width // heads)
  for name in ("attention.value_length", "rope.dimension_count"):
    if fields.whole(name, head_dim) != head_dim:
      raise ValueError(
        f"{fields.path}: {fields.prefix}.{name} is {fields.whole(name)}; it must equal the head "
        f"width, {head_dim}."
      )
  config: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": head_dim,
    "hidden_size": width,
    "intermediate_size": fields.whole("feed_forward_length"),
    "max_position_embeddings": fields.whole("context_length"),
    "num_attention_heads": heads,
    "num_hidden_layers": fields.whole("block_count"),
    "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
    "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", 0.0),
    "tie_word_embeddings": tied,
    "vocab_size": fields.whole("vocab_size", len(fields.all.get("tokenizer.ggml.tokens", ()))),
  }
  for key, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
    config[f"{key}_token_id"] = fields.all.get(f"tokenizer.ggml.{field}_token_id")
  return config


def _llama(fields: Fields, tied: bool) -> dict[str, Any]:
  fields.rope_scaling()
  return _common(fields, tied) | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_theta": fields.number("rope.freq_base", 10000.0),
  }


def _gemma3(fields: Fields, tied: bool) -> dict[str, Any]:
  config = _common(fields, tied)
  # The 27B model alone scales scores by the width of the stream over its heads.
  of_stream = config["num_hidden_layers"] == 62
  scalar = config["hidden_size"] // config["num_attention_heads"] if of_stream else None
  return config | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": scalar or config["head_dim"],
    "rope_theta": fields.number("rope.freq_base", 1_000_000.0),
    "rope_local_base_freq": 10000.0,
    "rope_scaling": fields.rope_scaling(),
    "sliding_window": fields.whole("attention.sliding_window"),
    "sliding_window_pattern": 6,
  }


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One `general.architecture`.

  Attributes:
    block_tensors: name within a block → Hugging Face's.
    needed, optional: fields that are read, without the architecture's prefix; others are refused.
    config: (fields, whether the head is tied) → keys of config.json.
    interleaved: whether query and key rows are in the order of rotary pairs.
    norm_shift: what llama.cpp added to the scales of norms.
  """

  block_tensors: Mapping[str, str]
  needed: tuple[str, ...]
  optional: tuple[str, ...]
  config: Callable[[Fields, bool], dict[str, Any]]
  interleaved: bool = False
  norm_shift: float = 0.0

  def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the fields promise, by Hugging Face name."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    h = config["head_dim"]
    queries, keys = config["num_attention_heads"] * h, config["num_key_value_heads"] * h
    of_block = {
      "self_attn.q_proj": (queries, d), "self_attn.k_proj": (keys, d),
      "self_attn.v_proj": (keys, d), "self_attn.o_proj": (d, queries), "mlp.gate_proj": (f, d),
      "mlp.up_proj": (f, d), "mlp.down_proj": (d, f), "self_attn.q_norm": (h,),
      "self_attn.k_norm": (h,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
      "model.embed_tokens.weight": (v, d),
      "model.norm.weight": (d,),
    }
    if not config["tie_word_embeddings"]:
      shapes["lm_head.weight"] = (v, d)
    for block in range(config["num_hidden_layers"]):
      for name in self.block_tensors.values():
        shapes[f"model.layers.{block}.{name}.weight"] = of_block.get(name, (d,))
    return shapes


ARCHITECTURES: dict[str, Architecture] = {
  "llama": Architecture(_BLOCK_TENSORS, _NEEDED, _OPTIONAL, _llama, interleaved=True),
  "gemma3": Architecture(
    _BLOCK_TENSORS
    | {
      "attn_q_norm": "self_attn.q_norm",
      "attn_k_norm": "self_attn.k_norm",
      "post_attention_norm": "post_attention_layernorm",
      "ffn_norm": "pre_feedforward_layernorm",
      "post_ffw_norm": "post_feedforward_layernorm",
    },
    (*_NEEDED, "attention.sliding_window"),
    (*_OPTIONAL, "rope.scaling.factor"),
    _gemma3,
    norm_shift=1.0,
  ),
}
