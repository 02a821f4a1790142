"""GGUF control vectors: llama.cpp, repeng, EasySteer and others.

Tensor `direction.<k>`, one-dimensional, is added to the output of block k: k is our block number.
llama.cpp refuses a file with `direction.0` or with anything but float32, and reads no fields;
repeng needs `controlvector.model_hint`. So a file is written with repeng's fields, without block
0, and with what else we know under `persona_jax.*`, which both leave alone.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of, direction_of, mean_of, note, write_each

NAME = "gguf"
_TENSOR = re.compile(r"direction\.(0|[1-9]\d*)")
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.F64)


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read a control vector; blocks without one (block 0 of most files) get zeros.

  Raises:
    ValueError: it is no GGUF file, holds no direction, or one of a quantised type.
  """
  if path.is_dir():
    return [d for file in sorted(path.glob("*.gguf")) for d in read(file, num_blocks=num_blocks)]
  try:
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
  # The reader meets the end of a short file wherever it happens to be reading.
  except Exception as error:
    raise ValueError(f"{path}: not a readable GGUF file ({error}).") from error
  rows = {}
  for name, tensor in tensors.items():
    match = _TENSOR.fullmatch(name)
    if match is None:
      note(path, f"tensor {name!r} is no direction and is left out.")
      continue
    if tensor.tensor_type not in _FLOATS:
      raise ValueError(f"{path}: {name} is of type {tensor.tensor_type.name}; F32 is read.")
    rows[int(match[1])] = np.array(tensor.data)
  if not rows:
    raise ValueError(
      f"{path}: no tensor direction.<block>, so no control vector (architecture "
      f"{fields.get('general.architecture')!r}; tensors {list(tensors)[:4]})."
    )
  hint = fields.get("controlvector.model_hint")
  if hint is None:
    note(path, "it has no controlvector.model_hint, so that the kind of its model is not known.")
  ours = _ours(path, fields.get("persona_jax.direction", "{}"))
  stated = ours.get("num_blocks")
  if None not in (stated, num_blocks) and stated != num_blocks:
    raise ValueError(f"{path}: of a model of {stated} blocks; this one has {num_blocks}.")
  num_blocks = stated if num_blocks is None else num_blocks
  direction = direction_of(
    rows,
    path=path,
    file_format=NAME,
    concept=ours.get("concept", path.stem),
    num_blocks=num_blocks,
    provenance=ours.get("provenance", {}) | ({} if hint is None else {"model_type": hint}),
  )
  return [direction]


def _ours(path: Path, field: object) -> dict[str, Any]:
  """Return what we wrote of a direction; nothing for files of other tools."""
  try:
    found = json.loads(str(field))
  except ValueError as error:
    raise ValueError(f"{path}: its field persona_jax.direction is no JSON ({error}).") from error
  if not isinstance(found, dict) or (found and "num_blocks" not in found):
    raise ValueError(f"{path}: its field persona_jax.direction is not ours: {str(field)[:80]}.")
  return found


def write(
  directions: Sequence[Direction],
  path: Path,
  *,
  model_hint: str | None = None,
  block_0: bool = False,
) -> list[Path]:
  """Write control vectors: the mean over replicates, blocks that are zero left out.

  Args:
    directions: one for a `.gguf` file, or several for a folder.
    path: the file or the folder.
    model_hint: kind of the model, as "llama" or "qwen2"; default what the provenance says.
    block_0: write `direction.0`, too; stock llama.cpp then refuses the file.
  """

  def write_one(direction: Direction, file: Path) -> None:
    v_LD = mean_of(direction, file, "a GGUF control vector", keeps_provenance=True)
    blocks = blocks_of(direction)
    if 0 in blocks and not block_0:
      note(file, "block 0 is left out, because llama.cpp refuses files with it.")
      blocks.remove(0)
    if not blocks:
      raise ValueError(f"direction {direction.concept!r} has no vector at any block but 0.")
    hint = model_hint or direction.provenance.get("model_type")
    if hint is None:
      note(file, "the kind of the model is not known and is written as 'unknown'; see model_hint.")
    _write_file(direction, file, v_LD, blocks, hint or "unknown")

  return write_each(directions, path, ".gguf", write_one)


def _write_file(
  direction: Direction, file: Path, v_LD: np.ndarray, blocks: list[int], hint: str
) -> None:
  ours: dict[str, Any] = {
    "concept": direction.concept,
    "num_blocks": len(v_LD),
    "provenance": dict(direction.provenance),
  }
  partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
  writer = GGUFWriter(partial, "controlvector")
  writer.add_string("controlvector.model_hint", hint)
  writer.add_uint32("controlvector.layer_count", len(blocks))
  writer.add_string("persona_jax.direction", json.dumps(ours, sort_keys=True))
  for block in blocks:
    writer.add_tensor(f"direction.{block}", np.ascontiguousarray(v_LD[block], np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  partial.replace(file)
