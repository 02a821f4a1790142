"""Reads and writes directions in every format: `read_directions`, `write_directions`."""

import dataclasses
import inspect
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats import (
  assistant_axis,
  control_vector,
  hidden_directions,
  native,
  persona_vectors,
  refusal_direction,
  repsteer,
)
from persona_jax.directions.formats.torch_file import read_torch_file


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of files of directions.

  Attributes:
    holds: what a file of it has, in words.
    read: function of a path and the number of blocks.
    write: function of directions and a path, with options of its own.
  """

  holds: str
  read: Callable[..., list[Direction]]
  write: Callable[..., list[Path]]


FORMATS = {
  native.NAME: Format("safetensors, all replicates, provenance", native.read, native.write),
  control_vector.NAME: Format(
    "control vector of llama.cpp and repeng", control_vector.read, control_vector.write
  ),
  persona_vectors.NAME: Format(
    ".pt [blocks + 1, width], row 0 of the embeddings", persona_vectors.read, persona_vectors.write
  ),
  assistant_axis.NAME: Format(
    ".pt [blocks, width]: roles, traits, axis", assistant_axis.read, assistant_axis.write
  ),
  refusal_direction.NAME: Format(
    "mean_diffs.pt, direction.pt", refusal_direction.read, refusal_direction.write
  ),
  repsteer.NAME: Format("folder of safetensors, by block", repsteer.read, repsteer.write),
  hidden_directions.NAME: Format(
    ".pt [blocks, width] with a manifest.json", hidden_directions.read, hidden_directions.write
  ),
}


def detect_format(path: str | Path, *, num_blocks: int | None = None) -> str:
  """Return the name of the format of a file or folder.

  Args:
    path: the file or folder.
    num_blocks: L of the model; tells a bare tensor [L + 1, D] from one [L, D].

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: it is of no known format, or of more than one: rows are never guessed.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"nothing at {path}.")
  if path.is_dir():
    return _of_folder(path)
  with path.open("rb") as file:
    start = file.read(9)
  if start.startswith(b"GGUF"):
    return control_vector.NAME
  if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 40:
    return native.NAME
  return _of_torch_file(path, num_blocks)


def _of_folder(path: Path) -> str:
  if repsteer.is_artifact(path) or any(repsteer.is_artifact(f.parent) for f in _manifests(path)):
    return repsteer.NAME
  if hidden_directions.manifest(path) is not None:
    return hidden_directions.NAME
  names = {file.name for file in path.iterdir()}
  if names & {"direction.pt", "mean_diffs.pt", "generate_directions"}:
    return refusal_direction.NAME
  if names & {"assistant_axis.pt", "default_vector.pt", "role_vectors", "trait_vectors"}:
    return assistant_axis.NAME
  if any(persona_vectors.named_so(file) for file in path.glob("*.pt")):
    return persona_vectors.NAME
  for suffix, name in ((".safetensors", native.NAME), (".gguf", control_vector.NAME)):
    if any(path.glob(f"*{suffix}")):
      return name
  raise ValueError(f"{path}: no files of directions that are known (it has {sorted(names)[:8]}).")


def _manifests(path: Path) -> list[Path]:
  return [*path.glob("*/manifest.json"), *path.glob("*/*/manifest.json")]


def _of_torch_file(path: Path, num_blocks: int | None) -> str:
  try:
    found = read_torch_file(path)
  except ValueError as error:
    raise ValueError(f"{error} Directions are read of safetensors, GGUF and .pt files.") from error
  if isinstance(found, dict):
    return assistant_axis.NAME
  if not isinstance(found, np.ndarray):
    raise ValueError(f"{path} holds a {type(found).__name__}, no tensor of directions.")
  beside = hidden_directions.manifest(path.parent) or {"directions": []}
  if any(entry.get("name") == path.stem for entry in beside["directions"]):
    return hidden_directions.NAME
  if found.ndim == 3 or (found.ndim == 1 and refusal_direction.has_metadata(path)):
    return refusal_direction.NAME
  if found.ndim == 2:
    if persona_vectors.named_so(path) or len(found) - 1 == num_blocks:
      return persona_vectors.NAME
    if assistant_axis.named_so(path) or len(found) == num_blocks:
      return assistant_axis.NAME
  raise ValueError(
    f"{path} holds a bare tensor of shape {found.shape}; which rows are which blocks is not to be "
    f"seen. Name the format: {persona_vectors.NAME!r} (row 0 is of the embeddings), "
    f"{assistant_axis.NAME!r} or {hidden_directions.NAME!r} (row i is of block i), or give the "
    "number of blocks of the model."
  )


def read_directions(
  path: str | Path,
  format: str | None = None,
  *,
  num_blocks: int | None = None,
  **options: Any,
) -> list[Direction]:
  """Read the directions of a file or folder of ours or of another tool.

  Vectors are by our block numbers. What a file says of itself goes into the provenance, with its
  format and sha256.

  Args:
    path: the file or folder.
    format: a key of `FORMATS`; default what the file shows itself to be.
    num_blocks: L of the model: checked, and needed where a file does not say it (one vector).
    **options: of the format.

  Returns:
    The directions; one for most files.

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: an unknown format or option, a damaged or hostile file, or one that does not fit.

  Warns:
    FormatWarning: of what is left out or is not what it seems.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"nothing at {path}.")
  chosen = _format(format or detect_format(path, num_blocks=num_blocks))
  directions = chosen.read(path, num_blocks=num_blocks, **_known(chosen.read, options))
  if not directions:
    raise ValueError(f"{path} holds no directions.")
  return directions


def write_directions(
  directions: Direction | Sequence[Direction],
  path: str | Path,
  format: str | None = None,
  **options: Any,
) -> list[Path]:
  """Write directions to a file or folder, for us or for another tool.

  Args:
    directions: one or several.
    path: file of the format's suffix for one direction, folder for several.
    format: a key of `FORMATS`; default by the suffix, `.safetensors` or `.gguf`.
    **options: of the format: model_hint and block_0 of "gguf", kind of "assistant_axis".

  Returns:
    What was written.

  Raises:
    ValueError: an unknown format or option, or a direction that the format has no place for.

  Warns:
    FormatWarning: of what the format cannot hold.
  """
  path = Path(path)
  if format is None:
    by_suffix = {".safetensors": native.NAME, ".gguf": control_vector.NAME}
    if path.suffix not in by_suffix:
      raise ValueError(f"{path}: name the format, one of {list(FORMATS)}.")
    format = by_suffix[path.suffix]
  directions = [directions] if isinstance(directions, Direction) else list(directions)
  if not directions:
    raise ValueError("there are no directions to write.")
  chosen = _format(format)
  return chosen.write(directions, path, **_known(chosen.write, options))


def _format(name: str) -> Format:
  if name not in FORMATS:
    raise ValueError(f"format {name!r} is not known; there are {list(FORMATS)}.")
  return FORMATS[name]


def _known(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
  """Return the options if the function has them all."""
  named = inspect.signature(function).parameters
  unknown = [name for name in options if name not in named]
  if unknown:
    has = [name for name, p in named.items() if p.kind is p.KEYWORD_ONLY and name != "num_blocks"]
    raise ValueError(f"options {unknown} are not of this format; it has {has or 'none'}.")
  return options
