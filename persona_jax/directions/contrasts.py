"""The pairs of contrasts: which prompts, which replicate, which half."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from persona_jax.personas.chat import Prompt

Replicates = int | Sequence[int] | None

LEAST_HALVES = 4  # pairs from which halves are compared


class Pairs(NamedTuple):
  """The pairs of a contrast.

  Attributes:
    start: number of its first positive among all prompts; the negatives follow the positives.
    label_N: int, the replicate of each pair.
    half_N: int, 0 or 1, the half that each pair is in when halves are compared.
  """

  start: int
  label_N: np.ndarray
  half_N: np.ndarray

  @property
  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the positives and of the negatives."""
    n = len(self.label_N)
    return self.start + np.arange(n), self.start + n + np.arange(n)

  @property
  def num_replicates(self) -> int:
    """S."""
    return int(self.label_N.max()) + 1

  @property
  def subsets(self) -> list[np.ndarray]:
    """Pairs of each replicate and, if they can be compared, of both halves."""
    found = [np.flatnonzero(self.label_N == s) for s in range(self.num_replicates)]
    halves = [np.flatnonzero(self.half_N == h) for h in (0, 1)]
    return found + halves if self.has_halves else found

  @property
  def has_halves(self) -> bool:
    """Whether there are pairs enough to compare halves."""
    least = min(int(np.count_nonzero(self.half_N == h)) for h in (0, 1))
    return len(self.half_N) >= LEAST_HALVES and least >= LEAST_HALVES // 2


class Found(NamedTuple):
  """What a method makes of a contrast.

  Attributes:
    vectors: float64 [L, D], by subset of the pairs (`Pairs.subsets`).
    gaps: float64 [L, D], difference of the class means, by subset.
  """

  vectors: list[np.ndarray]
  gaps: list[np.ndarray]


def contents_of(
  contrasts: Mapping[str, tuple[Sequence[Prompt], Sequence[Prompt]]],
) -> dict[str, tuple[list[Prompt], list[Prompt]]]:
  """Return the prompts of each contrast.

  Raises:
    ValueError: no contrast, none of its prompts, or unequal numbers.
  """
  if not contrasts:
    raise ValueError("extraction needs at least one contrast.")
  out = {}
  for concept, (positives, negatives) in contrasts.items():
    sides = list(positives), list(negatives)
    if not sides[0] or len(sides[0]) != len(sides[1]):
      raise ValueError(
        f"{concept!r}: {len(sides[0])} positives and {len(sides[1])} negatives; give as many of "
        "each, at least one."
      )
    out[concept] = sides
  return out


def pairs_of(
  contents: Mapping[str, tuple[list[Prompt], list[Prompt]]],
  replicates: Replicates | Mapping[str, Replicates],
  halves: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Pairs]:
  """Return the pairs of each contrast.

  Args:
    contents: of `contents_of`.
    replicates: None, a number or a label for each pair; for all contrasts, or by concept.
    halves: by concept, 0 or 1 for each pair; default even and odd pairs.

  Raises:
    ValueError: a concept is left out, or labels that do not fit its pairs.
  """
  if halves is not None and set(halves) != set(contents):
    raise ValueError(f"halves are of {list(halves)}; the contrasts are {list(contents)}.")
  if isinstance(replicates, Mapping) and set(replicates) != set(contents):
    raise ValueError(f"replicates are of {list(replicates)}; the contrasts are {list(contents)}.")
  pairs, start = {}, 0
  for concept, (positives, _) in contents.items():
    mine = replicates[concept] if isinstance(replicates, Mapping) else replicates
    try:
      n = len(positives)
      half_N = np.arange(n) % 2 if halves is None else np.asarray(halves[concept])
      if half_N.shape != (n,) or not np.isin(half_N, (0, 1)).all():
        raise ValueError(f"halves: give 0 or 1 for each of the {n} pairs.")
      pairs[concept] = Pairs(start, _labels(mine, n), half_N)
    except ValueError as error:
      raise ValueError(f"{concept!r}: {error}") from error
    start += 2 * len(positives)
  return pairs


def _labels(replicates: Replicates, n: int) -> np.ndarray:
  """Return the replicate of each pair, 0 … S - 1."""
  if replicates is None:
    return np.zeros(n, int)
  if isinstance(replicates, (int, np.integer)):
    if not 1 <= replicates <= n:
      raise ValueError(
        f"replicates={replicates}: give 1 to {n} (the number of pairs), or a label for each pair."
      )
    return np.arange(n) % int(replicates)
  labels = np.asarray(replicates)
  if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"replicates: give one int label for each of the {n} pairs; got shape {labels.shape}."
    )
  present = np.unique(labels)
  if not np.array_equal(present, np.arange(present.size)):
    raise ValueError(
      f"replicates: labels must be 0 … S - 1 with none left out; got {present.tolist()}."
    )
  return labels
