"""Cuts rows into tiles: what begins alike stands together, prompts stay whole if that is cheap."""

import itertools
from collections.abc import Sequence

import numpy as np

from persona_jax.engine.rows import TILE_ROWS, Row, round_up
from persona_jax.engine.tree import MIN_RUN, first_place

# A tile that would be less full than this, were it to end with a prompt, divides the prompt: its
# beginning is then computed in both tiles, which costs less than a tile more.
_FULL = 7 / 8
# Shared tokens by which one end of a tile is better than another.
_STEM_TOKENS = 32


def tiles(rows: Sequence[Row], max_rows: int = TILE_ROWS) -> list[list[int]]:
  """Cut rows into tiles of at most `max_rows`; return row numbers.

  The cut depends only on the rows, so that a run that goes on after a stop makes the same tiles.
  """
  return fill(by_beginning(rows), max_rows)


class Prompts:
  """Rows by prompt, those that begin alike next to each other.

  Attributes:
    numbers: row numbers of each prompt.
    shared: of each prompt, tokens that it has in common with the one before it; 0 for the first.
  """

  def __init__(self, numbers: list[list[int]], shared: list[int]):
    self.numbers, self.shared = numbers, shared


def by_beginning(rows: Sequence[Row]) -> Prompts:
  """Order rows as a tree of their prompts has them: branches of one node by length.

  So rows of one system prompt stand together, and prompts without a common beginning by length.
  Rows of one prompt stand in the order of their first edits.
  """
  by_ids: dict[tuple[int, ...], list[int]] = {}
  for n, row in enumerate(rows):
    by_ids.setdefault(row.ids, []).append(n)
  prompts = sorted(by_ids)
  arrays = [np.asarray(ids, np.int32) for ids in prompts]
  shared = np.asarray([0, *map(_agreed, arrays, arrays[1:])], int)
  lengths = np.asarray([len(ids) for ids in prompts], int)

  order: list[int] = []
  todo = [(0, len(prompts))] if prompts else []
  while todo:
    lo, hi = todo.pop()
    if hi - lo == 1:
      order.append(lo)
      continue
    # All of the range share `least` tokens; branches share so many more that it is worth a pass.
    least = int(shared[lo + 1 : hi].min())
    cuts = [lo, *(lo + 1 + np.flatnonzero(shared[lo + 1 : hi] < least + MIN_RUN)).tolist(), hi]
    branches = list(zip(cuts[:-1], cuts[1:], strict=True))
    todo += sorted(branches, key=lambda ab: (int(lengths[slice(*ab)].max()), ab), reverse=True)

  def by_edits(n: int) -> tuple[list[int], int]:
    return sorted(map(first_place, rows[n].edits)), n

  ordered = [arrays[p] for p in order]
  return Prompts(
    [sorted(by_ids[prompts[p]], key=by_edits) for p in order],
    [0, *map(_agreed, ordered, ordered[1:])],
  )


def _agreed(a: np.ndarray, b: np.ndarray) -> int:
  """Return how many tokens two prompts have in common at their beginning."""
  size = min(len(a), len(b))
  differs = np.flatnonzero(a[:size] != b[:size])
  return int(differs[0]) if len(differs) else size


def fill(prompts: Prompts, max_rows: int) -> list[list[int]]:
  """Cut ordered rows into as few tiles as can be; of ways to do so, the one of like sizes.

  Where all prompts have as many rows, all tiles but the last do.
  """
  rows = [n for numbers in prompts.numbers for n in numbers]
  starts = np.cumsum([0, *map(len, prompts.numbers)])  # of each prompt, and the end
  # What a cut before each prompt loses.
  stems = np.asarray([*prompts.shared, 0]) // _STEM_TOKENS
  ends, _ = _ends(starts, stems, max_rows)
  least = max(1, -(-len(rows) // max(1, len(ends))))
  sizes = {least, *range(round_up(least, 8), max_rows, 8), max_rows}
  ways = ((*_ends(starts, stems, size), size) for size in sizes)
  ends, _, _ = min(ways, key=lambda way: (len(way[0]), way[1], way[2]))
  return [rows[start:stop] for start, stop in itertools.pairwise([0, *ends])]


def _ends(starts: np.ndarray, stems: np.ndarray, size: int) -> tuple[list[int], int]:
  """Fill tiles of at most `size` rows one after another.

  Returns:
    Where each tile ends, and how many of them end inside a prompt.
  """
  ends: list[int] = []
  divided, start, count = 0, 0, int(starts[-1])
  while start < count:
    stop = min(start + size, count)
    if stop < count:
      first, last = np.searchsorted(starts, [start + max(1, _FULL * size), stop + 1])
      divided += first == last
      if first < last:  # the last of those that lose least
        stop = int(starts[last - 1 - np.argmin(stems[first:last][::-1])])
    ends.append(stop)
    start = stop
  return ends, divided
