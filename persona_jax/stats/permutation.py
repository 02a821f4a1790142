"""Permutation tests for rankings of personas, and of alignment against outcome.

Permuting twelve personas is right where they are exchangeable: for the agreement of two rankings.
It is wrong for alignment against outcome: the personas are signed sums of five traits, so both
sides are near-linear functions of five numbers, and 12 points pretend to more freedom than there
is. The null of that test is that the five traits could have been swapped and flipped: the group of
signed permutations (hyperoctahedral group, 5!·2⁵ = 3,840 elements for five traits). It is exact on
a set of personas that the group maps to itself: the ten poles, or poles and all pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Alternative = Literal["two-sided", "greater", "less"]


@dataclasses.dataclass(frozen=True)
class PermutationTest:
  """A statistic with its permutation p.

  Attributes:
    value: the observed correlation; NaN if it is undefined.
    p: share of arrangements at least as extreme, the observed one among them.
    arrangements: how many were looked at.
    reason: why something is NaN; empty if nothing is amiss.
  """

  value: float
  p: float
  arrangements: int
  reason: str = ""


def rank_permutation(
  x_P: ArrayLike,
  y_P: ArrayLike,
  *,
  permutations: int = 20_000,
  alternative: Alternative = "two-sided",
  seed: int = 0,
) -> PermutationTest:
  """Return Spearman's ρ of two rankings with the p of permuting personas.

  Args:
    x_P, y_P: one mean a persona, of two models say. Whole means are permuted, so what one prompt
      gave to every persona stays together.
    permutations: number of random permutations; the identity is added.
    alternative: side of the test.
    seed: seed of the permutations.

  Raises:
    ValueError: series of different length, or an unknown alternative.
  """
  x, y, reason = _pair(x_P, y_P)
  _check_alternative(alternative)
  if reason:
    return PermutationTest(math.nan, math.nan, 0, reason)
  x, y = _standard(scipy.stats.rankdata(x)), _standard(scipy.stats.rankdata(y))
  rng = np.random.default_rng(seed)
  order_BP = rng.permuted(np.tile(np.arange(len(x)), (permutations, 1)), axis=1)
  value, null_B = float(x @ y), y[order_BP] @ x
  p = (1 + int(_extreme(null_B, value, alternative).sum())) / (permutations + 1)
  return PermutationTest(value, p, permutations + 1)


def naive_permutation(
  x_P: ArrayLike, y_P: ArrayLike, *, permutations: int = 20_000, seed: int = 0
) -> PermutationTest:
  """Return the p of permuting personas for alignment against outcome: a test that FAILS.

  Kept to show that it fails: with alignments and effects that are independent over five traits it
  rejects a true null in about a quarter of studies at level .05, because poles of one trait are
  mirror images and composites are sums. Use `signed_permutation`, or a census of many directions.
  """
  return rank_permutation(x_P, y_P, permutations=permutations, seed=seed)


def signed_group(poles: Mapping[str, Sequence[str]]) -> NDArray[np.intp]:
  """Return how every signed permutation of the traits moves the personas: indices [G, P].

  Args:
    poles: the signed traits of each persona, as ("C+", "A+"): a name and a last character + or −
      ("-" and "−" are the same).

  Raises:
    ValueError: a trait without a sign, a trait twice in one persona, two personas with the same
      traits, or a set of personas that the group does not map to itself.
  """
  signed = {name: _signed_traits(name, traits) for name, traits in poles.items()}
  return _moves(tuple(signed.items())).copy()


@functools.lru_cache(maxsize=8)
def _moves(signed: tuple[tuple[str, frozenset[tuple[str, int]]], ...]) -> NDArray[np.intp]:
  number = {traits: i for i, (_, traits) in enumerate(signed)}
  if len(number) != len(signed):
    raise ValueError("two personas have the same signed traits")
  traits = sorted({trait for _, one in signed for trait, _ in one})
  if len(traits) > 7:
    raise ValueError(f"{len(traits)} traits give too many signed permutations; at most 7 fit")
  rows = []
  for order in itertools.permutations(traits):
    to = dict(zip(traits, order, strict=True))
    for flips in itertools.product((1, -1), repeat=len(traits)):
      flip = dict(zip(traits, flips, strict=True))
      moved = []
      for name, one in signed:
        image = frozenset((to[trait], sign * flip[trait]) for trait, sign in one)
        if image not in number:
          missing = " ".join(f"{t}{'+' if s > 0 else '-'}" for t, s in sorted(image))
          raise ValueError(
            f"the personas are not closed under signed permutations: {name} would become "
            f"{missing}, which is not there; the poles alone, or poles and all pairs, fit"
          )
        moved.append(number[image])
      rows.append(moved)
  return np.array(rows, dtype=np.intp)


def signed_permutation(
  poles: Mapping[str, Sequence[str]],
  x_P: ArrayLike,
  y_P: ArrayLike,
  *,
  ranks: bool = True,
  alternative: Alternative = "two-sided",
) -> PermutationTest:
  """Return the exact test of alignment x against outcome y over signed permutations of traits.

  Args:
    poles: signed traits of each persona in the order of x and y; see `signed_group`.
    x_P, y_P: alignment (cosine with refusal, say) and outcome (ASR, say) of each persona.
    ranks: correlate ranks (Spearman) or the values themselves (Pearson).
    alternative: side of the test. The group holds the flip of all signs, so the two-sided p is a
      multiple of 2/G wherever x is odd.

  Raises:
    ValueError: as `signed_group`; series that do not fit the personas.
  """
  _check_alternative(alternative)
  move_GP = signed_group(poles)
  x, y, reason = _pair(x_P, y_P)
  if len(x) != move_GP.shape[1]:
    raise ValueError(f"{len(x)} values for {move_GP.shape[1]} personas")
  if reason:
    return PermutationTest(math.nan, math.nan, 0, reason)
  if ranks:
    x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
  x, y = _standard(x), _standard(y)
  value, null_G = float(x @ y), x[move_GP] @ y
  return PermutationTest(value, float(_extreme(null_G, value, alternative).mean()), len(null_G))


def _signed_traits(name: str, traits: Sequence[str]) -> frozenset[tuple[str, int]]:
  signs = {"+": 1, "-": -1, "−": -1}
  if isinstance(traits, str):
    raise ValueError(
      f"the traits of {name} are the string {traits!r}; a tuple such as ('C+',) fits"
    )
  faulty = [trait for trait in traits if len(trait) < 2 or trait[-1] not in signs]
  if faulty or not traits:
    raise ValueError(f"the traits of {name} are {list(traits)}; a name and a sign each, as C+, fit")
  one = frozenset((trait[:-1], signs[trait[-1]]) for trait in traits)
  if len({trait for trait, _ in one}) != len(traits):
    raise ValueError(f"{name} names a trait twice: {list(traits)}")
  return one


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
  x_P, y_P = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
  if x_P.ndim != 1 or x_P.shape != y_P.shape:
    raise ValueError(f"x and y have shapes {x_P.shape} and {y_P.shape}; one row of equal length")
  if np.isnan(x_P).any() or np.isnan(y_P).any():
    return x_P, y_P, "a value is missing"
  if len(x_P) < 3:
    return x_P, y_P, f"{len(x_P)} personas are too few"
  constant = [name for name, v in (("x", x_P), ("y", y_P)) if np.ptp(v) == 0]
  return x_P, y_P, f"{' and '.join(constant)} constant" if constant else ""


def _standard(values_P: NDArray[np.float64]) -> NDArray[np.float64]:
  centred_P = values_P - values_P.mean()
  return centred_P / np.sqrt((centred_P**2).sum())


def _extreme(null_B: NDArray[np.float64], value: float, alternative: str) -> NDArray[np.bool_]:
  # The tolerance counts equal arrangements as equal in spite of rounding.
  if alternative == "two-sided":
    return np.abs(null_B) >= abs(value) - 1e-9
  return null_B >= value - 1e-9 if alternative == "greater" else null_B <= value + 1e-9


def _check_alternative(alternative: str) -> None:
  if alternative not in ("two-sided", "greater", "less"):
    raise ValueError(f"unknown alternative {alternative!r}; two-sided, greater or less fits")
