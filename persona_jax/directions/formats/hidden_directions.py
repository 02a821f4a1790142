"""Files of hidden-directions and hotwire: a tensor [L, D], or [D] of one block.

Row i is Hugging Face's `hidden_states[i + 1]`: the output of block i, but for the last, which is
taken after the final norm and is no residual stream. A folder has a `manifest.json` that names the
model and, for each direction, a layer and a coefficient that its authors recommend.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import (
  AFTER_FINAL_NORM,
  direction_of,
  file_name,
  mean_of,
  note,
)
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file

NAME = "hidden_directions"
# In a manifest of ours: that the last row is a block's output like the others.
_OURS = "last_row_is_block_output"


def manifest(folder: Path) -> dict[str, Any] | None:
  """Return the manifest of a folder, or None if it has none of this kind.

  Raises:
    ValueError: it is no JSON, or a direction in it has no name.
  """
  path = folder / "manifest.json"
  if not path.is_file():
    return None
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: {error}.") from error
  if not isinstance(found, dict) or not isinstance(found.get("directions"), list):
    return None
  nameless = [e for e in found["directions"] if not isinstance(e, dict) or "name" not in e]
  if nameless:
    raise ValueError(f"{path}: entries without a name: {nameless[:2]}.")
  return found


def read(path: Path, *, num_blocks: int | None = None, layer: int | None = None) -> list[Direction]:
  """Read a folder by its manifest, or one tensor.

  Args:
    path: folder or `.pt` file.
    num_blocks: L, to be checked; needed for a tensor [D].
    layer: block of a tensor [D].

  Raises:
    ValueError: a direction of the manifest is missing or of another shape; a tensor [D] without its
      block.
  """
  found = manifest(path.parent if path.is_file() else path)
  if path.is_file():
    entries = [] if found is None else found["directions"]
    entry: dict[str, Any] = next((e for e in entries if e["name"] == path.stem), {})
    read = [_read_one(path, entry, found or {}, num_blocks, layer)]
  elif found is None:
    raise ValueError(f"{path} has no manifest.json that lists directions.")
  else:
    read = [
      _read_one(path / f"{entry['name']}.pt", entry, found, num_blocks, layer)
      for entry in found["directions"]
    ]
  if any(d.provenance.get("last_block_after_final_norm") for d in read):
    note(path, AFTER_FINAL_NORM)
  return read


def _read_one(
  path: Path,
  entry: Mapping[str, Any],
  beside: Mapping[str, Any],
  num_blocks: int | None,
  layer: int | None,
) -> Direction:
  x = read_torch_file(path)
  if not isinstance(x, np.ndarray) or x.ndim not in (1, 2) or not x.size:
    raise ValueError(f"{path} holds no tensor [blocks, width] or [width].")
  if "shape" in entry and list(x.shape) != list(entry["shape"]):
    raise ValueError(f"{path}: shape {x.shape}; the manifest says {entry['shape']}.")
  if x.ndim == 2 and num_blocks is not None and len(x) != num_blocks:
    raise ValueError(f"{path}: {len(x)} rows for a model of {num_blocks} blocks.")
  if x.ndim == 1 and (layer is None or num_blocks is None):
    raise ValueError(f"{path}: one vector; say of which layer, and how many blocks the model has.")
  rows = dict(enumerate(x)) if x.ndim == 2 else {layer: x}
  return direction_of(
    rows,  # type: ignore[arg-type]
    path=path,
    file_format=NAME,
    concept=path.stem,
    num_blocks=num_blocks,
    provenance={
      "model": beside.get("model"),
      "last_block_after_final_norm": True if x.ndim == 2 and not beside.get(_OURS) else None,
      "recommended_block": entry.get("recommended_layer"),
      "recommended_coefficient": entry.get("recommended_alpha"),
    },
  )


def write(directions: Sequence[Direction], path: Path) -> list[Path]:
  """Write a tensor [L, D] for a `.pt` file, or a folder with a manifest; means over replicates.

  What was read in bfloat16 and is still exact in it is written so, everything else in float32.

  Raises:
    ValueError: several directions for one file, two of one name, or of several models.
  """
  if path.suffix == ".pt" and len(directions) != 1:
    raise ValueError(f"{path} has room for one direction; give a folder for {len(directions)}.")
  models = {d.provenance.get("model") for d in directions}
  names = [file_name(d.concept) for d in directions]
  if len(set(names)) < len(names) or len(models) > 1:
    raise ValueError(
      f"directions of one folder need different names and one model; got {names} of {models}."
    )
  single = path.suffix == ".pt"
  entries, files = [], []
  for direction, name in zip(directions, names, strict=True):
    file = path if single else path / f"{name}.pt"
    v_LD = mean_of(direction, file, "a file of hidden-directions")
    half = v_LD.astype(ml_dtypes.bfloat16)
    if direction.provenance.get("file_dtype") == "bfloat16" and (half == v_LD).all():
      v_LD = half
    files.append(write_torch_file(file, v_LD))
    entry = {"name": name, "shape": list(v_LD.shape), "dtype": f"torch.{v_LD.dtype}"}
    for key, known in (
      ("recommended_layer", "recommended_block"),
      ("recommended_alpha", "recommended_coefficient"),
    ):
      if known in direction.provenance:
        entry[key] = direction.provenance[known]
    entries.append(entry)
  if not single:
    flags = [d.provenance.get("last_block_after_final_norm") for d in directions]
    content = {"model": next(iter(models)), "directions": entries, _OURS: not any(flags)}
    (path / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")
    files.append(path / "manifest.json")
  return files
