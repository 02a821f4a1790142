"""Files of persona_vectors (Chen et al. 2025): `<trait>_response_avg_diff.pt`, a tensor [L + 1, D].

Row 0 is of the embeddings and row r of the output of block r - 1. The rows are Hugging Face's
`hidden_states`, whose last is taken after the final norm: it is no residual stream.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import (
  AFTER_FINAL_NORM,
  direction_of,
  mean_of,
  note,
  write_each,
)
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file

NAME = "persona_vectors"
_ENDS = {
  "_response_avg_diff": "answer_mean",
  "_prompt_avg_diff": "prompt_mean",
  "_prompt_last_diff": "last",
}


def named_so(path: Path) -> bool:
  """Return whether a file's name is one that persona_vectors gives."""
  return path.stem.endswith(tuple(_ENDS))


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read a tensor [L + 1, D], or all of a folder; row 0 is left out.

  Raises:
    ValueError: it is no such tensor, or not of `num_blocks` + 1 rows.
  """
  if path.is_dir():
    files = sorted(path.glob("*.pt"))
    left = [file.name for file in files if not named_so(file)]
    if left:
      note(path, f"{left[:8]} are not named as persona_vectors' files and are left out.")
    files = [file for file in files if named_so(file)]
    return [d for file in files for d in read(file, num_blocks=num_blocks)]
  x_RD = read_torch_file(path)
  if not isinstance(x_RD, np.ndarray) or x_RD.ndim != 2 or len(x_RD) < 2:
    what = f"a tensor of shape {x_RD.shape}" if isinstance(x_RD, np.ndarray) else type(x_RD)
    raise ValueError(f"{path}: {what}; persona_vectors writes tensors [blocks + 1, width].")
  if num_blocks is not None and len(x_RD) != num_blocks + 1:
    raise ValueError(
      f"{path}: {len(x_RD)} rows; persona_vectors of a model of {num_blocks} blocks has "
      f"{num_blocks + 1}, because row 0 is of the embeddings."
    )
  if x_RD[0].any():
    note(path, "row 0, of the embeddings, is left out: it is no block's output.")
  note(path, AFTER_FINAL_NORM)
  end = next((end for end in _ENDS if path.stem.endswith(end)), "")
  return [
    direction_of(
      dict(enumerate(x_RD[1:])),
      path=path,
      file_format=NAME,
      concept=path.stem.removesuffix(end),
      provenance={
        "method": "diff_means",
        "tokens": _ENDS.get(end),
        "last_block_after_final_norm": True,
      },
    )
  ]


def write(directions: Sequence[Direction], path: Path) -> list[Path]:
  """Write tensors [L + 1, D] in float32 with zeros for the embeddings; means over replicates.

  In a folder files have persona_vectors' names, `<concept>_response_avg_diff.pt` or as the tokens
  say. The last row is the block's output, before the final norm; that it is not what such files
  have there cannot be said in them.
  """
  ends = {tokens: end for end, tokens in _ENDS.items()}

  def name_of(direction: Direction) -> str:
    tokens = direction.provenance.get("tokens")
    end = ends.get(tokens) if isinstance(tokens, str) else None
    return direction.concept + (end or "_response_avg_diff")

  def write_one(direction: Direction, file: Path) -> None:
    v_LD = mean_of(direction, file, "a file of persona_vectors")
    write_torch_file(file, np.concatenate([np.zeros_like(v_LD[:1]), v_LD]))

  return write_each(directions, path, ".pt", write_one, name_of=name_of)
