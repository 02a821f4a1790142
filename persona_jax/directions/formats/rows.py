"""Vectors by block, as files of other tools hold them, to and from a `Direction`."""

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.directions.direction import Direction


class FormatWarning(UserWarning):
  """A file is not what it seems, or a format cannot hold all of a direction."""


# Of files whose rows are Hugging Face's `hidden_states`.
AFTER_FINAL_NORM = (
  "the tool of such files reads the last block's vector after the final norm: then it is of no "
  "residual stream, and not to be added to one."
)


def note(path: Path, what: str) -> None:
  """Warn of what is lost or not as it seems."""
  warnings.warn(f"{path}: {what}", FormatWarning, stacklevel=4)


def direction_of(
  rows: Mapping[int, np.ndarray],
  *,
  path: Path,
  file_format: str,
  concept: str,
  num_blocks: int | None = None,
  site: str = "resid_post",
  provenance: Mapping[str, Any] | None = None,
) -> Direction:
  """Make a direction of vectors by block.

  Args:
    rows: vector [D] of each block, by our number; a block without one gets zeros, along which no
      edit can be made.
    path: file that they are of; its sha256 goes into the provenance.
    file_format: name of its format.
    concept: name of the direction.
    num_blocks: L; default as many as the highest number asks for.
    site: where they were read.
    provenance: what else is known; what is None is left out.

  Raises:
    ValueError: no vector, vectors of different widths, not one-dimensional or not finite, or a
      block beyond the last.
  """
  shapes = sorted({np.shape(x) for x in rows.values()})
  if len(shapes) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
    raise ValueError(f"{path}: vectors must be one-dimensional and of one width; got {shapes}.")
  last = max(rows)
  num_blocks = last + 1 if num_blocks is None else num_blocks
  if min(rows) < 0 or last >= num_blocks:
    raise ValueError(f"{path}: vectors of blocks {sorted(rows)}; the model has {num_blocks}.")
  dtypes = sorted({str(x.dtype) for x in rows.values()})
  v_LD = np.zeros((num_blocks, shapes[0][0]), np.float32)
  for block, x_D in rows.items():
    v_LD[block] = np.asarray(x_D).astype(np.float32)
  if dtypes == ["float64"] and any(
    (x.astype(np.float32).astype(np.float64) != x).any() for x in rows.values()
  ):
    note(path, "its float64 numbers are rounded to float32.")
  known = dict(provenance or {}) | {
    "format": file_format,
    "file": path.name,
    "file_dtype": dtypes[0],
    "file_sha256": sha256(path),
    "blocks": sorted(rows) if len(rows) < num_blocks else None,
  }
  known = {key: value for key, value in known.items() if value is not None}
  return Direction(v_LD[None], concept, site, known)


def sha256(path: Path) -> str | None:
  """Return the sha256 of a file, hex; None of a folder."""
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def mean_of(
  direction: Direction,
  path: Path,
  name: str,
  site: str = "resid_post",
  *,
  keeps_provenance: bool = False,
) -> np.ndarray:
  """Return the one vector a block that a format has room for, float32 [L, D].

  Args:
    direction: it; what else it has and the format does not hold is said.
    path: where it is written, for what is said.
    name: of the format, in words.
    site: that the format's vectors are of.
    keeps_provenance: whether the format has room for it.

  Raises:
    ValueError: the direction is of another site than the format is for.
  """
  if direction.site != site:
    raise ValueError(
      f"direction {direction.concept!r} is of site {direction.site!r}; {name} is for vectors of "
      f"{site!r}."
    )
  if len(direction.vectors_SLD) > 1:
    note(
      path,
      f"{name} has room for one vector a block; direction {direction.concept!r} has "
      f"{len(direction.vectors_SLD)} replicates, of which the mean is written.",
    )
  lost = {
    "the class gap (of unit='gap')": direction.gap_L is not None,
    "the reliability": direction.reliability_L is not None,
    "the provenance": not keeps_provenance and bool(direction.provenance),
  }
  if any(lost.values()):
    named = ", ".join(what for what, is_lost in lost.items() if is_lost)
    note(path, f"{name} has no room for {named} of {direction.concept!r}; vectors are written.")
  return direction.mean_LD


def blocks_of(direction: Direction) -> list[int]:
  """Return the blocks at which a direction has a vector other than zero."""
  return np.flatnonzero(direction.vectors_SLD.any(axis=(0, 2))).tolist()


def write_each(
  directions: Sequence[Direction],
  path: Path,
  suffix: str,
  write_one: Callable[[Direction, Path], None],
  *,
  name_of: Callable[[Direction], str] | None = None,
) -> list[Path]:
  """Write one direction to a file of that suffix, or each of several into a folder.

  Args:
    directions: what to write.
    path: the file or the folder.
    suffix: of files.
    write_one: writes a direction to a file.
    name_of: name of a direction's file in a folder; default the concept.

  Raises:
    ValueError: several directions for one file, or two of one name.
  """
  if path.suffix == suffix:
    if len(directions) != 1:
      names = [d.concept for d in directions]
      raise ValueError(f"{path} has room for one direction; give a folder for {names}.")
    files = [path]
  else:
    names = [d.concept if name_of is None else name_of(d) for d in directions]
    files = [path / f"{file_name(name)}{suffix}" for name in names]
    if len(set(files)) < len(files):
      raise ValueError(f"directions need different names; got {[d.concept for d in directions]}.")
  for direction, file in zip(directions, files, strict=True):
    file.parent.mkdir(parents=True, exist_ok=True)
    write_one(direction, file)
  return files


def file_name(concept: str) -> str:
  """Return a concept's name as that of a file."""
  return re.sub(r"[^\w.+-]+", "_", concept).strip(".") or "direction"
