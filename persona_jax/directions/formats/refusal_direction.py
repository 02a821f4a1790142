"""Files of refusal_direction (Arditi et al. 2024): `mean_diffs.pt` and `direction.pt`.

`mean_diffs.pt` is float64 [P, L, D]: a candidate for each of the last P tokens of the template
(position p - P) and each layer. Layer l is the *input* of block l, which is the output of our block
l - 1; layer 0 is of the embeddings. `direction.pt` [D] is the chosen one, and
`direction_metadata.json` beside it says {"pos": -1, "layer": 12}.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import (
  blocks_of,
  direction_of,
  mean_of,
  note,
)
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file

NAME = "refusal_direction"
_METADATA = "direction_metadata.json"


def has_metadata(path: Path) -> bool:
  """Return whether the metadata of a chosen direction lie beside it."""
  return path.with_name(_METADATA).is_file()


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read candidates, one direction a position; or the chosen direction with its metadata.

  The last block has none, because no layer reads its output.

  Args:
    path: `mean_diffs.pt`, `direction.pt`, or a folder with one of them.
    num_blocks: L; needed for `direction.pt`.

  Raises:
    ValueError: neither of them, or without the metadata or `num_blocks` that it needs.
  """
  if path.is_dir():
    for name in ("direction.pt", "mean_diffs.pt", "generate_directions/mean_diffs.pt"):
      if (path / name).is_file():
        return read(path / name, num_blocks=num_blocks)
    raise ValueError(f"{path} has neither direction.pt nor mean_diffs.pt.")
  x = read_torch_file(path)
  if not isinstance(x, np.ndarray) or x.ndim not in (1, 3):
    raise ValueError(f"{path} holds no tensor [positions, layers, width] or [width].")
  if x.ndim == 1:
    return [_read_chosen(path, x, num_blocks)]
  positions, layers, _ = x.shape
  if layers < 2 or (num_blocks is not None and layers != num_blocks):
    raise ValueError(f"{path}: {layers} layers for a model of {num_blocks} blocks.")
  if x[:, 0].any():
    note(path, "layer 0, the embeddings, is left out: it is no block's output.")
  return [
    direction_of(
      {layer - 1: x[p, layer] for layer in range(1, layers)},
      path=path,
      file_format=NAME,
      concept=f"refusal@{p - positions}",
      num_blocks=layers,
      provenance={"method": "diff_means", "position": p - positions},
    )
    for p in range(positions)
  ]


def _read_chosen(path: Path, x_D: np.ndarray, num_blocks: int | None) -> Direction:
  metadata = path.with_name(_METADATA)
  if not has_metadata(path):
    raise ValueError(f"{path}: one vector; its layer should be in {metadata}, which is not there.")
  try:
    known = json.loads(metadata.read_text())
    position, layer = int(known["pos"]), int(known["layer"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{metadata} should be like {{'pos': -1, 'layer': 12}}: {error!r}.") from error
  if num_blocks is None:
    raise ValueError(f"{path}: one vector, of layer {layer}; say how many blocks the model has.")
  if layer < 1:
    raise ValueError(f"{path}: layer {layer} is of the embeddings, which no block puts out.")
  return direction_of(
    {layer - 1: x_D},
    path=path,
    file_format=NAME,
    concept="refusal",
    num_blocks=num_blocks,
    provenance={"method": "diff_means", "position": position, "chosen_block": layer - 1},
  )


def _chosen(directions: Sequence[Direction]) -> int | None:
  """Return the block of a direction that was chosen; None if these are candidates."""
  if len(directions) != 1:
    return None
  (direction,) = directions
  blocks, block = blocks_of(direction), direction.provenance.get("chosen_block")
  if block is None and len(blocks) == 1:
    block = blocks[0]
  if block is not None and block not in blocks:
    raise ValueError(f"direction {direction.concept!r} has no vector at its block, {block}.")
  return block


def write(directions: Sequence[Direction], path: Path) -> list[Path]:
  """Write a chosen direction, or candidates by position.

  Args:
    directions: one whose provenance names the chosen block, as `directions.refusal` makes it, or
      that has a vector at one block only; or one for each of the positions -P … -1, as their
      provenance says.
    path: the folder, or the `.pt` file.

  Raises:
    ValueError: it is neither of the two.
  """
  for direction in directions:
    mean_of(direction, path, "a file of refusal_direction")
  block = _chosen(directions)
  if block is not None:
    (direction,) = directions
    if len(blocks_of(direction)) > 1:
      note(path, f"only the vector of the chosen block, {block}, is written.")
    file = path if path.suffix == ".pt" else path / "direction.pt"
    write_torch_file(file, direction.mean_LD[block].astype(np.float64))
    content = {"pos": int(direction.provenance.get("position", -1)), "layer": block + 1}
    file.with_name(_METADATA).write_text(json.dumps(content, indent=4))
    return [file, file.with_name(_METADATA)]
  by_position = {d.provenance.get("position"): d for d in directions}
  wanted = list(range(-len(directions), 0))
  if sorted(map(str, by_position)) != sorted(map(str, wanted)):
    raise ValueError(
      f"candidates need one direction for each position {wanted}, in their provenance; got "
      f"{list(by_position)}. A chosen direction names its block or has a vector at one only."
    )
  mean_PLD = np.stack([by_position[p].mean_LD for p in wanted]).astype(np.float64)
  file = path if path.suffix == ".pt" else path / "mean_diffs.pt"
  if mean_PLD[:, -1].any():
    note(file, "the last block is left out: no layer has its output as its input.")
  shifted_PLD = np.concatenate([np.zeros_like(mean_PLD[:, :1]), mean_PLD[:, :-1]], axis=1)
  return [write_torch_file(file, shifted_PLD)]
