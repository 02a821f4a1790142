"""What GGUF files of each architecture hold, in Hugging Face's terms: fields, tensors, conventions.

llama.cpp changes some weights when it converts a checkpoint (it interleaves the query and key rows
of Llama, adds 1 to Gemma's norms, and turns the RoPE scaling of Llama 3.1 into a tensor) and knows
some constants by the architecture alone; both are undone or filled in here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.models.rope import Rope

ROPE_FACTORS = "rope_freqs.weight"
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
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
  "post_attention_norm": "post_attention_layernorm",
  "ffn_norm": "pre_feedforward_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
_NEEDED = (
  "block_count", "context_length", "embedding_length", "feed_forward_length",
  "attention.head_count", "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_OPTIONAL = (
  "attention.head_count_kv", "attention.key_length", "attention.value_length",
  "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "vocab_size",
)  # fmt: skip
# What rope.scaling.* has beside the type, by type.
_SCALING_FIELDS: dict[str, tuple[str, ...]] = {
  "none": (),
  "linear": ("factor",),
  "yarn": ("factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow"),
}


@dataclasses.dataclass(frozen=True)
class Fields:
  """The fields of a file under its architecture's prefix.

  Attributes:
    path: of the file, for messages.
    prefix: of the fields' names, without the dot.
    all: every field of the file.
    rope_factors: the tensor "rope_freqs.weight" if there is one, float32.
  """

  path: Path
  prefix: str
  all: Mapping[str, Any]
  rope_factors: np.ndarray | None = None

  def has(self, name: str) -> bool:
    """Return whether the file has a field."""
    return f"{self.prefix}.{name}" in self.all

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

  def number(self, name: str, default: float | None = None) -> float:
    """Return the shortest decimal of a float32: 9.999999747378752e-06 was 1e-05.

    Raises:
      ValueError: the field is absent without a default, or is no positive number.
    """
    value = self.all.get(f"{self.prefix}.{name}", default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
      raise ValueError(f"{self.path}: {self.prefix}.{name} is {value!r}; it must be positive.")
    return float(str(np.float32(value)))

  def rope_scaling(self) -> dict[str, Any] | None:
    """Return the scaling of the rotary frequencies as config.json has it.

    Raises:
      ValueError: a type that is not handled for this architecture, or a field of another type.
    """
    kind = self.all.get(f"{self.prefix}.rope.scaling.type", "none")
    if kind not in ("none", *ARCHITECTURES[self.prefix].scalings):
      raise ValueError(
        f"{self.path}: {self.prefix}.rope.scaling.type is {kind!r}; it is not handled."
      )
    every = {name for names in _SCALING_FIELDS.values() for name in names}
    idle = [n for n in sorted(every - set(_SCALING_FIELDS[kind])) if self.has(f"rope.scaling.{n}")]
    if idle:
      raise ValueError(
        f"{self.path}: {self.prefix}.rope.scaling.type is {kind!r}, which has no {idle}."
      )
    if kind == "none":
      return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": self.number("rope.scaling.factor")}
    if self.has("rope.scaling.original_context_length"):
      scaling["original_max_position_embeddings"] = self.whole(
        "rope.scaling.original_context_length"
      )
    for name in ("beta_fast", "beta_slow"):
      if self.has(f"rope.scaling.yarn_{name}"):
        scaling[name] = self.number(f"rope.scaling.yarn_{name}")
    return scaling

  def llama3_scaling(self, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the scaling whose frequencies the file's `rope_factors` make, None without them.

    llama.cpp divides each frequency by its factor, and its files lack the four numbers that the
    factors were computed from. The published models (Llama 3.1, 3.2 and 3.3) differ in the largest
    factor alone, which the file has; the other three are supposed here, and taken only if they give
    every frequency of the file: then the model is the same, whatever numbers the factors came from.

    Raises:
      ValueError: they do not.
    """
    if self.rope_factors is None:
      return None
    factors = self.rope_factors.astype(np.float64)
    factor = float(str(np.float32(factors.max(initial=0.0))))
    scaling = {
      "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    }  # fmt: skip
    if factors.shape == (head_dim // 2,) and 1 < factor < math.inf and (factors >= 1).all():
      plain = Rope(theta).frequencies(head_dim).astype(np.float64)
      scaled = Rope(theta, "llama3", factor, 8192).frequencies(head_dim)
      # Rounding to float32 makes 2e-7; any other number of the three makes per cents.
      if np.allclose(plain / factors, scaled, rtol=1e-5, atol=0):
        return scaling
    raise ValueError(
      f"{self.path}: {ROPE_FACTORS} has {factors.size} factors, the largest {factor:g}; they are "
      f"not those of a Llama 3.1 to 3.3 model with head width {head_dim} and RoPE base {theta:g} "
      "(low_freq_factor 1, high_freq_factor 4, 8192 original positions)."
    )


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
    "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
    "tie_word_embeddings": tied,
    "vocab_size": fields.whole("vocab_size", len(fields.all.get("tokenizer.ggml.tokens", ()))),
  }
  for key, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
    config[f"{key}_token_id"] = fields.all.get(f"tokenizer.ggml.{field}_token_id")
  return config


def _llama(fields: Fields, tied: bool) -> dict[str, Any]:
  config = _common(fields, tied) | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_theta": fields.number("rope.freq_base", 10000.0),
  }
  fields.rope_scaling()
  scaling = fields.llama3_scaling(config["rope_theta"], config["head_dim"])
  return config if scaling is None else config | {"rope_scaling": scaling}


def _qwen(fields: Fields, tied: bool) -> dict[str, Any]:
  return _common(fields, tied) | {
    "hidden_act": "silu",
    "rope_theta": fields.number("rope.freq_base", 10000.0),
    "rope_scaling": fields.rope_scaling(),
  }


def _qwen2(fields: Fields, tied: bool) -> dict[str, Any]:
  config = _qwen(fields, tied)
  del config["attention_bias"]  # its queries, keys and values have biases; there is no choice
  return config | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _qwen3(fields: Fields, tied: bool) -> dict[str, Any]:
  return _qwen(fields, tied) | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def _gemma(fields: Fields, tied: bool, blocks_of_27b: int) -> dict[str, Any]:
  config = _common(fields, tied)
  # The 27B models alone scale scores by the width of the stream over its heads.
  of_stream = config["num_hidden_layers"] == blocks_of_27b
  scalar = config["hidden_size"] // config["num_attention_heads"] if of_stream else None
  return config | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": scalar or config["head_dim"],
  }


def _gemma2(fields: Fields, tied: bool) -> dict[str, Any]:
  fields.rope_scaling()
  # The first files lack these three; llama.cpp then takes the published values.
  return _gemma(fields, tied, 46) | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "rope_theta": fields.number("rope.freq_base", 10000.0),
    "sliding_window": fields.whole("attention.sliding_window", 4096),
    "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0),
    "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
  }


def _gemma3(fields: Fields, tied: bool) -> dict[str, Any]:
  return _gemma(fields, tied, 62) | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
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
    block_tensors: name within a block → Hugging Face's; each has a ".weight".
    config: (fields, whether the head is tied) → keys of config.json.
    needed, optional: fields that are read, without the architecture's prefix; others are refused.
    scalings: values of rope.scaling.type that are handled beside "none".
    biased: names within a block that have a ".bias" too.
    rope_factors: whether a file may have the factors of Llama 3.1's RoPE scaling.
    interleaved: whether query and key rows are in the order of rotary pairs.
    norm_shift: what llama.cpp added to the scales of norms.
  """

  block_tensors: Mapping[str, str]
  config: Callable[[Fields, bool], dict[str, Any]]
  needed: tuple[str, ...] = _NEEDED
  optional: tuple[str, ...] = _OPTIONAL
  scalings: tuple[str, ...] = ()
  biased: tuple[str, ...] = ()
  rope_factors: bool = False
  interleaved: bool = False
  norm_shift: float = 0.0

  @property
  def fields(self) -> tuple[str, ...]:
    """Fields that are read, without the architecture's prefix."""
    scaling = {f"rope.scaling.{n}" for kind in self.scalings for n in _SCALING_FIELDS[kind]}
    return (*self.needed, *self.optional, *sorted(scaling))

  def block_name(self, name: str) -> str | None:
    """Return Hugging Face's name of a tensor of a block, None for what the architecture lacks."""
    base, _, part = name.rpartition(".")
    if part == "bias" and base not in self.biased:
      return None
    return f"{self.block_tensors[base]}.{part}" if base in self.block_tensors else None

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
      for ours, name in self.block_tensors.items():
        shape = of_block.get(name, (d,))
        shapes[f"model.layers.{block}.{name}.weight"] = shape
        if ours in self.biased:
          shapes[f"model.layers.{block}.{name}.bias"] = shape[:1]
    return shapes


_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")

ARCHITECTURES: dict[str, Architecture] = {
  "llama": Architecture(_BLOCK_TENSORS, _llama, rope_factors=True, interleaved=True),
  "qwen2": Architecture(
    _BLOCK_TENSORS, _qwen2, scalings=("linear", "yarn"), biased=("attn_q", "attn_k", "attn_v")
  ),
  "qwen3": Architecture(_BLOCK_TENSORS | _QK_NORMS, _qwen3, scalings=("linear", "yarn")),
  "gemma2": Architecture(
    _BLOCK_TENSORS | _GEMMA_NORMS,
    _gemma2,
    optional=(*_OPTIONAL, *_SOFT_CAPS, "attention.sliding_window"),
    norm_shift=1.0,
  ),
  "gemma3": Architecture(
    _BLOCK_TENSORS | _QK_NORMS | _GEMMA_NORMS,
    _gemma3,
    needed=(*_NEEDED, "attention.sliding_window"),
    scalings=("linear",),
    norm_shift=1.0,
  ),
}
