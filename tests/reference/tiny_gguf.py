"""Writes tiny GGUF files, right or wrong in one chosen way, with llama.cpp's own writer package."""

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
