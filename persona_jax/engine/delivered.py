"""What edits did to the tokens of prompts, put together by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from persona_jax.edits.apply import Delivery
from persona_jax.edits.table import Where
from persona_jax.engine.tree import Group, Tree


class Delivered(NamedTuple):
  """What the edits did to the tokens of R rows.

  Attributes:
    realised_R, requested_R: float32, delivery of the edits (`edits.apply.Delivery`).
    edited_R: int32, tokens on which an edit was on.
    changes: float32 by (site, block) and row, how far each of its tokens was moved, if traced.
  """

  realised_R: np.ndarray
  requested_R: np.ndarray
  edited_R: np.ndarray
  changes: dict[Where, list[np.ndarray]]


def delivered_by_row(
  tree: Tree,
  notes: Sequence[tuple[Sequence[Group], Sequence[Delivery], Mapping[Where, jax.Array]]],
) -> Delivered:
  """Put together by row what was delivered to groups."""
  realised, requested = (np.zeros(len(tree.rows), np.float32) for _ in range(2))
  edited = [np.zeros(stop, bool) for stop in tree.stops]
  changes: dict[Where, list[np.ndarray]] = {}
  for groups, deliveries, changed in notes:
    for delivery in deliveries:
      done = [np.asarray(x) for x in delivery]
      for g, group in enumerate(groups):
        node = tree.nodes[group.node]
        for row in group.rows:
          realised[row] += done[0][g]
          requested[row] += done[1][g]
          edited[row][node.start : node.stop] |= done[2][g, : node.length]
    for where, change_GT in changed.items():
      by_row = changes.setdefault(where, [np.zeros(stop, np.float32) for stop in tree.stops])
      change = np.asarray(change_GT)
      for g, group in enumerate(groups):
        node = tree.nodes[group.node]
        for row in group.rows:
          by_row[row][node.start : node.stop] = change[g, : node.length]
  counts = np.asarray([x.sum() for x in edited], np.int32)
  return Delivered(realised, requested, counts, changes)
