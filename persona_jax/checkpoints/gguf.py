"""Reads GGUF files: configuration, tensors and tokenizer fields.

A GGUF file is translated into what a Hugging Face checkpoint of the same model holds:
`config.json` keys, tensor names and [out, in] weights. What the translation does not know is
refused by name, because a field that is skipped (a RoPE scaling, an expert count) is a model that
runs and is wrong.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, quants

from persona_jax.checkpoints.gguf_architectures import (
  ARCHITECTURES,
  MODEL_TENSORS,
  ROPE_FACTORS,
  Architecture,
  Fields,
)

_TENSOR_TYPES = {
  GGMLQuantizationType[name]
  for name in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
}

_BLOCK_TENSOR = re.compile(r"blk\.(0|[1-9]\d*)\.(\w+\.(weight|bias))")
# Weights dequantised at a time: what the package makes on the way should stay in the cache.
_CHUNK = 1 << 17


class GGUFFile:
  """An open GGUF file, memory-mapped; what is read of a tensor is dequantised then.

  Attributes:
    config: Hugging Face `config.json` keys.
    shapes: Hugging Face tensor name → shape, [out, in] for linear weights.
    quantisation: storage types by the number of weights they hold, e.g. "Q4_1+Q8_0+F32".
    tokenizer_fields: the `tokenizer.*` fields, for `Tokenizer.from_gguf`.
  """

  def __init__(self, path: Path):
    """Open and check a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not GGUF, truncated, or with an architecture, field, tensor or tensor type that
        is not handled; the message names it.
    """
    if not path.is_file():
      raise FileNotFoundError(f"{path}: no such file.")
    try:
      reader = _Reader(path)
      fields = {name: field.contents() for name, field in reader.fields.items()}
    # The reader meets the end of a short file wherever it happens to be reading.
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
      raise ValueError(
        f"{path}: not a readable GGUF file, maybe truncated or damaged: {error}"
      ) from error
    if reader.byte_order != "I":
      raise ValueError(f"{path}: its byte order is not this machine's; convert the file.")
    prefix, self._architecture = _check_header(path, fields)
    tensors = _rename(
      path, prefix, self._architecture, {tensor.name: tensor for tensor in reader.tensors}
    )
    factors = tensors.pop(ROPE_FACTORS, None)
    self.shapes: dict[str, tuple[int, ...]] = {
      name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()
    }
    self.config: dict[str, Any] = self._architecture.config(
      Fields(path, prefix, fields, None if factors is None else _read(factors, ())),
      "lm_head.weight" not in tensors,
    )
    _check_shapes(path, prefix, self.shapes, self._architecture.shapes(self.config))
    self.tokenizer_fields: dict[str, Any] = {
      name: value for name, value in fields.items() if name.startswith("tokenizer.")
    }
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
      kind = tensor.tensor_type.name
      sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    self.quantisation: str = "+".join(sorted(sizes, key=lambda kind: -sizes[kind]))
    self._path = path
    self._tensors = tensors

  def where(self, name: str) -> str:
    """Return the file and the name that a tensor has in it, for messages."""
    stored = self._tensors.get(name)
    return f"{self._path}: tensor {name!r}" + (f" ({stored.name})" if stored is not None else "")

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Dequantise a part of a tensor, by Hugging Face name; float32.

    Args:
      name: of the tensor.
      index: a slice of step 1 for some of its first dimensions; the others are whole.

    Raises:
      ValueError: no tensor of that name.
    """
    if name not in self._tensors:
      raise ValueError(f"{self._path}: no tensor {name!r}; it has {sorted(self._tensors)}.")
    heads = None
    if self._architecture.interleaved and name.endswith("self_attn.q_proj.weight"):
      heads = self.config["num_attention_heads"]
    elif self._architecture.interleaved and name.endswith("self_attn.k_proj.weight"):
      heads = self.config["num_key_value_heads"]
    weights = _read(self._tensors[name], index, heads)
    if self._architecture.norm_shift and name.endswith("norm.weight"):
      return weights - np.float32(self._architecture.norm_shift)
    return weights


class _Reader(GGUFReader):
  """GGUFReader that reads arrays in one go and names the tensor whose type it does not know.

  The parent makes an array view or two for every item of an array: it took 5.0 s to open SmolLM2
  on a loaded two-core machine; `open_checkpoint`, tokenizer and sha256 included, took 0.33 s there
  with this. Both hooks are the parent's internals; should it drop them, opening is slow and one
  message less exact.
  """

  def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
    if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
      return super()._get_field_parts(orig_offs, raw_type)
    raw_itype = self._get(orig_offs, np.uint32)
    length = self._get(orig_offs + 4, np.uint64)
    item_type, count = GGUFValueType(raw_itype[0]), int(length[0])
    start = orig_offs + 12
    types = [GGUFValueType.ARRAY, item_type]
    if item_type == GGUFValueType.STRING:
      buffer = np.asarray(self.data).view(np.ndarray)
      view = buffer.data
      strings, offset = [], start
      for _ in range(count):
        (size,) = struct.unpack_from("<Q", view, offset)
        offset += 8 + size
        if offset > buffer.size:
          raise ValueError(
            f"an array of strings goes on past the end of the file, to byte {offset}"
          )
        strings.append(buffer[offset - size : offset])
      indices = list(range(2, 2 + count))
      return offset - orig_offs, [raw_itype, length, *strings], indices, types
    if item_type in self.gguf_scalar_to_np:
      items = self._get(start, self.gguf_scalar_to_np[item_type], count)
      if items.size != count:
        raise ValueError(f"an array of {count} {item_type.name} goes on past the end of the file")
      return 12 + int(items.nbytes), [raw_itype, length, items], [2], types
    return super()._get_field_parts(orig_offs, raw_type)

  def _build_tensors(self, start_offs: int, fields: Any) -> None:
    known = {int(kind) for kind in GGMLQuantizationType}
    for field in fields:
      if int(field.parts[4][0]) not in known:
        raise ValueError(f"tensor {field.name!r} has the unknown type number {field.parts[4][0]}")
    for field in fields:
      kind = GGMLQuantizationType(int(field.parts[4][0]))
      block, size = GGML_QUANT_SIZES[kind]
      count = int(np.prod(np.asarray(field.parts[3], np.uint64)))
      end = start_offs + int(field.parts[5][0]) + count // block * size
      if end > self.data.nbytes:
        raise ValueError(
          f"tensor {field.name!r} ends at byte {end}, the file at byte {self.data.nbytes}"
        )
    super()._build_tensors(start_offs, fields)


def _check_header(path: Path, fields: Mapping[str, Any]) -> tuple[str, Architecture]:
  """Return the architecture; raise ValueError if the file is not one whole model of a known one."""
  prefix = fields.get("general.architecture")
  if prefix not in ARCHITECTURES:
    raise ValueError(
      f"{path}: general.architecture is {prefix!r}; these can be read from GGUF: "
      f"{', '.join(map(repr, ARCHITECTURES))}."
    )
  architecture = ARCHITECTURES[prefix]
  if fields.get("general.type", "model") != "model":
    raise ValueError(
      f"{path}: general.type is {fields['general.type']!r}; it must be 'model', not an "
      f"adapter or a part."
    )
  if fields.get("split.count", 1) > 1:
    raise ValueError(
      f"{path}: split.count is {fields['split.count']}; a model split over files must be merged "
      f"first (llama.cpp: gguf-split --merge)."
    )
  if fields.get("general.quantization_version", 2) != 2:
    raise ValueError(
      f"{path}: general.quantization_version is {fields['general.quantization_version']}; only 2 "
      f"is handled."
    )
  known = {f"{prefix}.{name}" for name in architecture.fields}
  unknown = {
    name: value
    for name, value in fields.items()
    if name.startswith(f"{prefix}.") and name not in known
  }
  if unknown:
    raise ValueError(
      f"{path}: fields that this reader does not handle: {unknown}; handled: {sorted(known)}."
    )
  missing = [f"{prefix}.{n}" for n in architecture.needed if f"{prefix}.{n}" not in fields]
  if missing:
    raise ValueError(f"{path}: lacks the fields {missing}.")
  return str(prefix), architecture


def _rename(
  path: Path, prefix: str, architecture: Architecture, tensors: Mapping[str, Any]
) -> dict[str, Any]:
  """Return the tensors by Hugging Face name; report every unknown name and type at once."""
  renamed, problems = {}, []
  for name, tensor in tensors.items():
    if tensor.tensor_type not in _TENSOR_TYPES:
      fits = ", ".join(sorted(kind.name for kind in _TENSOR_TYPES))
      problems.append(f"{name} has the type {tensor.tensor_type.name} (handled: {fits})")
    match = _BLOCK_TENSOR.fullmatch(name)
    in_block = architecture.block_name(match[2]) if match else None
    if match and in_block:
      renamed[f"model.layers.{int(match[1])}.{in_block}"] = tensor
    elif name in MODEL_TENSORS:
      renamed[MODEL_TENSORS[name]] = tensor
    elif name == ROPE_FACTORS and architecture.rope_factors:
      renamed[ROPE_FACTORS] = tensor
    else:
      problems.append(f"{name} is no tensor of a {prefix} model")
  if problems:
    raise ValueError(f"{path}: {'; '.join(problems)}.")
  return renamed


def _check_shapes(
  path: Path,
  prefix: str,
  shapes: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
) -> None:
  problems = [f"{name} is missing" for name in expected if name not in shapes]
  for name, shape in shapes.items():
    if name not in expected:
      problems.append(f"{name} is beyond the blocks that {prefix}.block_count gives")
    elif shape != expected[name]:
      problems.append(f"{name} has shape {shape}, the fields say {expected[name]}")
  if problems:
    shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
    raise ValueError(f"{path}: tensors do not fit the fields: {shown}.")


def _read(tensor: Any, index: tuple[slice, ...], heads: int | None = None) -> np.ndarray:
  """Dequantise a part of a vector or matrix; `heads` if its rows are in llama.cpp's order."""
  shape = tuple(int(n) for n in reversed(tensor.shape))
  whole = [slice(None)] * (len(shape) - len(index))
  spans = [range(n)[s] for n, s in zip(shape, (*index, *whole), strict=True)]
  rows, columns = (range(1), *spans)[-2:]
  stored = np.asarray(tensor.data).reshape((1, *shape)[-2], -1)
  if heads is None:
    stored = stored[rows.start : rows.stop]
  else:
    stored = stored[_stored_rows(np.arange(rows.start, rows.stop), shape[0] // heads)]
  return _dequantise(stored, tensor.tensor_type, columns).reshape([len(span) for span in spans])


def _dequantise(stored: np.ndarray, kind: GGMLQuantizationType, columns: range) -> np.ndarray:
  """Return some columns of rows of stored bytes (or floats, for F32 and F16), float32.

  The package's own `dequantize` splits a tensor into groups of 16 rows, which takes three times as
  long as the arithmetic.
  """
  if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
    return stored[:, columns.start : columns.stop].astype(np.float32)
  size, bytes_of_block = GGML_QUANT_SIZES[kind]
  dequantise_blocks = getattr(quants, kind.name).dequantize_blocks
  first, last = columns.start // size, -(-columns.stop // size)
  rows, width = stored.shape
  blocks = stored.reshape(rows, width // bytes_of_block, bytes_of_block)[:, first:last]
  out = np.empty((rows, (last - first) * size), np.float32)
  step = max(1, _CHUNK // max(1, out.shape[1]))
  for at in range(0, rows, step):
    target = out[at : at + step]
    chunk = blocks[at : at + step].reshape(-1, bytes_of_block)
    target[...] = dequantise_blocks(chunk).reshape(target.shape)
  return out[:, columns.start - first * size : columns.stop - first * size]


def _stored_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
  """Return where llama.cpp keeps query or key rows.

  It stores the two halves of each head interleaved, for its RoPE on neighbouring pairs; Hugging
  Face's RoPE pairs row i with row i + H/2 (llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute).
  """
  head, row = np.divmod(rows, head_dim)
  half, pair = np.divmod(row, head_dim // 2)
  return head * head_dim + 2 * pair + half
