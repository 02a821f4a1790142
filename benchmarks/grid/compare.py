"""How far the answers of two runs lie apart."""

import statistics
from collections.abc import Sequence
from typing import Any

Rows = Sequence[Sequence[int]]
FIRST = 8  # tokens of a row that show whether its edit was applied


def agreement(rows: Rows, reference: Rows) -> dict[str, Any]:
  """Compare greedy tokens, row by row.

  Returns:
    shares of rows that are the same throughout and in their first eight tokens, share of tokens
    that are the same at their place, and of the rows that part, the step at which they do: median
    and all.
  """
  pairs = list(zip(rows, reference, strict=True))
  places = [[n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b] for pair in pairs]
  parting = sorted(different[0] for different in places if different)
  tokens = sum(len(row) for row in rows)
  return {
    "rows_identical": 1 - len(parting) / len(pairs),
    "rows_identical_first_8": sum(a[:FIRST] == b[:FIRST] for a, b in pairs) / len(pairs),
    "tokens_identical": 1 - sum(map(len, places)) / tokens,
    "first_divergence_median": statistics.median(parting) if parting else None,
    "first_divergence": parting,
  }


def conditions_told_apart(rows: Rows, grid_rows: Sequence[tuple[int, int]]) -> float:
  """Return the share of rows whose tokens no other condition of the same prompt has."""
  seen: dict[tuple[Any, ...], int] = {}
  keys = [(prompt, *ids) for (prompt, _), ids in zip(grid_rows, rows, strict=True)]
  for key in keys:
    seen[key] = seen.get(key, 0) + 1
  return sum(seen[key] == 1 for key in keys) / len(keys)


def logprob_distance(
  ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> dict[str, float]:
  """Compare log-probabilities of the same tokens: mean and largest absolute difference, nats."""
  differences = [
    abs(a - b)
    for row, other in zip(ours, reference, strict=True)
    for a, b in zip(row, other, strict=True)
  ]
  return {"mean_abs_nats": statistics.fmean(differences), "max_abs_nats": max(differences)}
