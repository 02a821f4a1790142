"""Our own files: safetensors with provenance and a checksum, every replicate kept."""

from collections.abc import Sequence
from pathlib import Path

from persona_jax.directions.direction import Direction, read_direction
from persona_jax.directions.formats.rows import write_each

NAME = "persona_jax"


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read a file of `Direction.save`, or all of a folder.

  Raises:
    ValueError: a file is of another kind, is damaged, or has another number of blocks.
  """
  files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
  directions = [read_direction(file) for file in files]
  for file, direction in zip(files, directions, strict=True):
    if num_blocks not in (None, direction.vectors_SLD.shape[1]):
      raise ValueError(
        f"{file} has {direction.vectors_SLD.shape[1]} blocks; the model has {num_blocks}."
      )
  return directions


def write(directions: Sequence[Direction], path: Path) -> list[Path]:
  """Write one direction to a `.safetensors` file, or each of several into a folder."""

  def write_one(direction: Direction, file: Path) -> None:
    direction.save(file)

  return write_each(directions, path, ".safetensors", write_one)
