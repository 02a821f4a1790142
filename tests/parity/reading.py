"""Our side of a comparison: logits and residuals of a padded batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import persona_jax as pj

Edits = Sequence[pj.Edit | None]


class Reading(NamedTuple):
  """One pass: float32 logits [T, V] and each block's output [L, T, D]."""

  logits_TV: np.ndarray
  resid_LTD: np.ndarray


def our_reading(
  model: pj.Model, rows: Sequence[Sequence[int]], *, edits: Edits | None = None, ends: Any = None
) -> list[Reading]:
  """Runs rows as one batch, padded to the longest; returns the valid part of each."""
  lengths = [len(row) for row in rows]
  tokens_BT = np.full((len(rows), max(lengths)), 7, np.int32)  # a pad that is an ordinary token
  for b, row in enumerate(rows):
    tokens_BT[b, : len(row)] = row
  logits_BTV, reads = pj.forward(
    model,
    jnp.asarray(tokens_BT),
    None if edits is None else pj.compile_edits(model, edits),
    pj.Capture(),
    lengths_B=jnp.asarray(lengths),
    prompt_lengths_B=None if ends is None else jnp.asarray(ends),
  )
  assert logits_BTV is not None
  resid_LBTD = [
    np.asarray(reads["resid_post", i], np.float32) for i in range(model.arch.num_blocks)
  ]
  return [
    Reading(np.asarray(logits_BTV[b, :n]), np.stack([h_BTD[b, :n] for h_BTD in resid_LBTD]))
    for b, n in enumerate(lengths)
  ]
