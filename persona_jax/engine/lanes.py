"""Lanes: the classes of a wave whose rows attend together, in one product.

A lane of P classes takes its rows as a rectangle [P, M]: M is the most rows of a class, and all its
slots are as many as the longest class has. Prompts that 13 steered conditions share and prompts of
a persona's system text, which have one row each, therefore go in lanes of their own.
"""

import itertools
from collections.abc import Sequence

import numpy as np

# What a lane more costs, in places of a row times slots, by row of the batch: its softmax must be
# joined to the others'. 128 rows take 2 CPU cores 1 ms a block for it (measured), as long as they
# take to attend to some 400 slots of SmolLM2.
LANE_SLOTS = 512
_MOST = 3


def split(rows_of: Sequence[int], slots_of: Sequence[int], batch: int) -> list[np.ndarray]:
  """Divide classes into lanes where that saves more attention than the lanes cost.

  Args:
    rows_of: rows of each class.
    slots_of: slots that each class fills.
    batch: rows of the batch.

  Returns:
    The numbers of the classes of each lane, ascending.
  """
  rows_P, slots_P = np.asarray(rows_of, int), np.asarray(slots_of, int)
  best = [np.arange(len(rows_P))]
  least = _places(rows_P, slots_P, best[0])
  for first, second in ((rows_P, slots_P), (slots_P, rows_P)):
    order = np.lexsort((second, first))
    steps = (1 + np.flatnonzero(np.diff(first[order]))).tolist()  # cuts between unequal classes
    for count in range(1, _MOST):
      for cuts in itertools.combinations(steps, count):
        lanes = np.split(order, cuts)
        cost = sum(_places(rows_P, slots_P, lane) for lane in lanes) + count * LANE_SLOTS * batch
        if cost < least:
          best, least = [np.sort(lane) for lane in lanes], cost
  return best


def _places(rows_P: np.ndarray, slots_P: np.ndarray, lane: np.ndarray) -> int:
  """Return a lane's places of rows times its slots."""
  return int(len(lane) * rows_P[lane].max() * slots_P[lane].max())
