"""Captures over lists of prompts, tile by tile, into numpy; and projections on directions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.edits.edit import DirectionLike
from persona_jax.edits.window import Window
from persona_jax.engine.batches import ReadTile, batches
from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.tree import ALL_SHARED, Sharing
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


def capture(
  model: "Model",
  prompts: Sequence[Prompt],
  what: Capture,
  *,
  edits: Sequence[RowEdits] | None = None,
  progress: Callable[[int], None] | None = None,
  sharing: Sharing = ALL_SHARED,
) -> dict[tuple[str, int], np.ndarray]:
  """Read activations of prompts; see `Model.capture`. `sharing` can be switched off, to compare."""
  spec, banks = resolve(what, model.arch)
  rows = encode_rows(model, prompts, edits)
  if not rows:
    raise ValueError("capture needs at least one prompt.")
  longest = max(len(row.ids) for row in rows)
  tail = (longest,) if what.reduce == "all" else ()
  out = {
    where: np.full((len(rows), *tail, width), np.nan, np.float32)
    for where, width in spec.places(banks, model.arch).items()
  }
  for tile in batches(model, rows, what, sharing=sharing):
    if what.reduce == "all":
      _every_token(tile, out)
    else:
      for where, x_BD in tile.reads.items():
        out[where][tile.numbers] = np.asarray(x_BD)[: len(tile.numbers)]
    if progress is not None:
      progress(len(tile.numbers))
  return out


def _every_token(tile: ReadTile, out: dict[tuple[str, int], np.ndarray]) -> None:
  """Write every token that the rows of a tile read to its place in [N, T, ·]."""
  for note in tile.notes:
    for where, x_GTD in note.arrays.items():
      array = np.asarray(x_GTD, np.float32)
      for g, group in enumerate(note.groups):
        node = tile.tree.nodes[group.node]
        for row in group.rows:
          held = np.flatnonzero(tile.held[row][node.start : node.stop])
          out[where][tile.numbers[row], node.start + held] = array[g, held]


def project(
  model: "Model",
  prompts: Sequence[Prompt],
  directions: DirectionLike | Sequence[DirectionLike],
  *,
  site: str = "resid_post",
  tokens: str | Window = "last",
  allow_other_site: bool = False,
) -> np.ndarray:
  """Project prompts on unit directions at every block.

  Args:
    model: the model.
    prompts: strings, chats or `pj.Raw`.
    directions: one `Direction` or several; each block's own unit vector is used.
    site: where to read.
    tokens: "last" token of the row, or a window to average over: its name ("all", "answer", …) or
      a `Window`.
    allow_other_site: accept directions that were read at another site.

  Returns:
    float32 [P, L, R], in the units of the residual stream; NaN where the window holds no token.

  Raises:
    ValueError: an unknown site or window, or directions that do not fit the model or the site.
  """
  reduced = Capture(
    (site,),
    reduce="last" if tokens == "last" else "mean",
    bank=directions,
    tokens="all" if tokens == "last" else tokens,
    allow_other_site=allow_other_site,
  )
  reads = capture(model, prompts, reduced)
  return np.stack([reads[site, i] for i in range(model.arch.num_blocks)], axis=1)
