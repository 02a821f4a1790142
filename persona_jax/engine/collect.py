"""Captures over lists of prompts, batch by batch, into numpy; and projections on directions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.edits.edit import DirectionLike
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
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
) -> dict[tuple[str, int], np.ndarray]:
  """Read activations of prompts; see `Model.capture`."""
  rows = encode_rows(model, prompts, edits)
  if not rows:
    raise ValueError("capture needs at least one prompt.")
  longest = max(len(row.ids) for row in rows)
  out: dict[tuple[str, int], np.ndarray] = {}
  for tile, reads in batches(model, rows, what):
    for where, value in reads.items():
      array = np.asarray(value, np.float32)
      if where not in out:
        tail = (longest, array.shape[-1]) if what.reduce == "all" else array.shape[1:]
        out[where] = np.full((len(rows), *tail), np.nan, np.float32)
      for b, n in enumerate(tile):
        if what.reduce == "all":
          length = len(rows[n].ids)
          out[where][n, :length] = array[b, :length]
        else:
          out[where][n] = array[b]
    if progress is not None:
      progress(len(tile))
  return out


def project(
  model: "Model",
  prompts: Sequence[Prompt],
  directions: DirectionLike | Sequence[DirectionLike],
  *,
  site: str = "resid_post",
  tokens: str = "last",
  allow_other_site: bool = False,
) -> np.ndarray:
  """Project prompts on unit directions at every block.

  Args:
    model: the model.
    prompts: strings, chats or `pj.Raw`.
    directions: one `Direction` or several; each block's own unit vector is used.
    site: where to read.
    tokens: "last" token of the row, or a window name ("all", "answer", …) to average over.
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
