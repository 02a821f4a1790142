"""Writes tiny GGUF files, right or wrong in one chosen way, with llama.cpp's own writer package.

`write_gguf` writes a fixed Llama; `write_model` any Hugging Face checkpoint, as llama.cpp's
convert_hf_to_gguf.py would.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFW, BLOCKS = 64, 4, 2, 16, 96, 2
_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_CHARACTERS = [chr(b) for b in _BYTES] + [chr(256 + i) for i in range(256 - len(_BYTES))]
TOKENS = ("<|end|>", "<|start|>", *_CHARACTERS, "he", "ll", "hell", "word")
VOCAB = len(TOKENS)

FIELDS: dict[str, Any] = {
  "llama.block_count": BLOCKS,
  "llama.context_length": 128,
  "llama.embedding_length": WIDTH,
  "llama.feed_forward_length": FFW,
  "llama.attention.head_count": HEADS,
  "llama.attention.head_count_kv": KV_HEADS,
  "llama.attention.layer_norm_rms_epsilon": 1e-6,
  "llama.rope.freq_base": 10000.0,
  "llama.rope.dimension_count": HEAD_DIM,
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.pre": "gpt-2",
  "tokenizer.ggml.tokens": list(TOKENS),
  "tokenizer.ggml.token_type": [3, 3, *[1] * (VOCAB - 2)],
  "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
  "tokenizer.ggml.bos_token_id": 1,
  "tokenizer.ggml.eos_token_id": 0,
}


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
  """Returns float32 tensors by GGUF name, in [out, in] orientation."""
  rng = np.random.default_rng(seed)
  keys = KV_HEADS * HEAD_DIM
  shapes: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCAB, WIDTH),
    "output_norm.weight": (WIDTH,),
  }
  for block in range(BLOCKS):
    for name, shape in {
      "attn_norm": (WIDTH,),
      "attn_q": (WIDTH, WIDTH),
      "attn_k": (keys, WIDTH),
      "attn_v": (keys, WIDTH),
      "attn_output": (WIDTH, WIDTH),
      "ffn_norm": (WIDTH,),
      "ffn_gate": (FFW, WIDTH),
      "ffn_up": (FFW, WIDTH),
      "ffn_down": (WIDTH, FFW),
    }.items():
      shapes[f"blk.{block}.{name}.weight"] = shape
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
  path: Path,
  *,
  architecture: str = "llama",
  fields: Mapping[str, Any] | None = None,
  tensors: Mapping[str, np.ndarray | None] | None = None,
  types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
  """Writes a tiny model; `fields` and `tensors` replace, add, or (None) leave out entries.

  `types` gives tensors a quantisation. A tensor of dtype uint8 is taken as quantised bytes.
  """
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in {**FIELDS, **(fields or {})}.items():
    if value is not None:
      writer.add_key_value(key, value, _value_type(value), _item_type(value))
  for name, array in {**tiny_tensors(), **(tensors or {})}.items():
    if array is None:
      continue
    kind = (types or {}).get(name)
    if kind is not None and array.dtype != np.uint8:
      array = gguf.quantize(array, kind)
    writer.add_tensor(name, array, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_model(
  path: Path,
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  *,
  fields: Mapping[str, Any] | None = None,
  stored: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
  """Writes a Hugging Face checkpoint, whose vocabulary must be `TOKENS`, with this tokenizer.

  Names are those of the package. `fields` (without the architecture's prefix) and `stored` (by GGUF
  name) replace, add, or (None) leave out entries.
  """
  name = {"gemma3_text": "gemma3"}.get(config["model_type"], config["model_type"])
  architecture = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[name]
  names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
  converted: dict[str, np.ndarray | None] = dict.fromkeys(tiny_tensors())
  for key, tensor in tensors.items():
    if name == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
      kind = "num_attention_heads" if "q_proj" in key else "num_key_value_heads"
      tensor = _pairwise(tensor, config[kind])
    if name.startswith("gemma") and key.endswith("norm.weight"):
      tensor = tensor + np.float32(1)
    converted[names.get_name(key, (".weight", ".bias"))] = tensor
  scaling = config.get("rope_scaling") or {}
  kind = scaling.get("rope_type", scaling.get("type"))
  if kind == "llama3":
    converted["rope_freqs.weight"] = llama3_factors(config)
  keys = {f"{name}.{key}": value for key, value in (_fields(name, config) | (fields or {})).items()}
  return write_gguf(
    path,
    architecture=name,
    fields={key: None for key in FIELDS if key.startswith("llama.")} | keys,
    tensors=converted | dict(stored or {}),
  )


def _fields(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
  keys, rope, attention = gguf.Keys.LLM, gguf.Keys.Rope, gguf.Keys.Attention
  given = {
    keys.BLOCK_COUNT: "num_hidden_layers", keys.CONTEXT_LENGTH: "max_position_embeddings",
    keys.EMBEDDING_LENGTH: "hidden_size", keys.FEED_FORWARD_LENGTH: "intermediate_size",
    attention.HEAD_COUNT: "num_attention_heads", attention.HEAD_COUNT_KV: "num_key_value_heads",
    attention.LAYERNORM_RMS_EPS: "rms_norm_eps", attention.KEY_LENGTH: "head_dim",
    attention.VALUE_LENGTH: "head_dim",
  }  # fmt: skip
  if name != "gemma2":
    given[rope.FREQ_BASE] = "rope_theta"
  if name.startswith("gemma"):
    given[attention.SLIDING_WINDOW] = "sliding_window"
  if name == "gemma2":
    given[keys.ATTN_LOGIT_SOFTCAPPING] = "attn_logit_softcapping"
    given[keys.FINAL_LOGIT_SOFTCAPPING] = "final_logit_softcapping"
  fields = {key: config[of] for key, of in given.items() if of in config}
  scaling = config.get("rope_scaling") or {}
  kind = scaling.get("rope_type", scaling.get("type"))
  if kind in ("linear", "yarn"):
    fields |= {rope.SCALING_TYPE: kind, rope.SCALING_FACTOR: scaling["factor"]}
  if kind == "yarn":
    fields[rope.SCALING_ORIG_CTX_LEN] = scaling["original_max_position_embeddings"]
    for key, of in ((rope.SCALING_YARN_BETA_FAST, "beta_fast"),
                    (rope.SCALING_YARN_BETA_SLOW, "beta_slow")):  # fmt: skip
      if of in scaling:
        fields[key] = scaling[of]
  return {key.removeprefix("{arch}."): value for key, value in fields.items()}


def llama3_factors(config: Mapping[str, Any]) -> np.ndarray:
  """Returns what each rotary frequency is divided by, by way of wave lengths as the converter."""
  scaling, dim = config["rope_scaling"], config["head_dim"]
  factor, length = scaling["factor"], scaling["original_max_position_embeddings"]
  low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
  factors = []
  for i in range(0, dim, 2):
    wave = 2 * math.pi * config["rope_theta"] ** (i / dim)
    if wave < length / high:
      factors.append(1.0)
    elif wave > length / low:
      factors.append(factor)
    else:
      smooth = (length / wave - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(factors, np.float32)


def _pairwise(weights: np.ndarray, heads: int) -> np.ndarray:
  """Puts row i + H/2 of each head behind row i."""
  rows = np.arange(len(weights)).reshape(heads, 2, -1)
  return weights[rows.swapaxes(1, 2).reshape(-1)]


def _value_type(value: Any) -> gguf.GGUFValueType:
  if isinstance(value, bool):
    return gguf.GGUFValueType.BOOL
  if isinstance(value, int):
    return gguf.GGUFValueType.UINT32
  if isinstance(value, float):
    return gguf.GGUFValueType.FLOAT32
  if isinstance(value, list):
    return gguf.GGUFValueType.ARRAY
  return gguf.GGUFValueType.STRING


def _item_type(value: Any) -> gguf.GGUFValueType | None:
  if not isinstance(value, list):
    return None
  return gguf.GGUFValueType.STRING if isinstance(value[0], str) else gguf.GGUFValueType.INT32
