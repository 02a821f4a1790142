"""Counting checks: each compares one error with its limit; a group prints its worst in a line."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
  """Returns ‖ours − reference‖ / ‖reference‖ over whole arrays of one shape, in float64."""
  if ours.shape != reference.shape:
    raise ValueError(f"shapes {ours.shape} and {reference.shape} differ.")
  expected = reference.astype(np.float64)
  return float(np.linalg.norm(ours.astype(np.float64) - expected) / np.linalg.norm(expected))


@dataclasses.dataclass
class Group:
  """Checks of one kind, which share a limit.

  Attributes:
    limit: the largest error that passes.
    worst: the largest error so far; a NaN counts as infinite.
    at: what it belongs to.
    passed, failed: how many checks.
    note: added to the printed line.
  """

  limit: float
  worst: float = 0.0
  at: str = ""
  passed: int = 0
  failed: int = 0
  note: str = ""

  def check(self, what: str, error: float) -> None:
    """Counts one error; prints it if it is over the limit."""
    error = float("inf") if np.isnan(error) else error
    if error >= self.worst:
      self.worst, self.at = error, what
    if error <= self.limit:
      self.passed += 1
    else:
      self.failed += 1
      print(f"  FAILED {what}: {error:.3g}, limit {self.limit:.3g}")

  def equal(self, what: str, ours: object, reference: object) -> None:
    """Counts one comparison of things that must be equal; their error is 0 or 1."""
    if ours != reference:
      print(f"  {what}: ours {str(ours)[:200]!r}, reference {str(reference)[:200]!r}")
    self.check(what, float(ours != reference))


def compare_greedy(
  group: Group,
  name: str,
  ours: Sequence[int],
  reference: Sequence[int],
  lead: Callable[[int, int], float],
  near_tie: float,
) -> bool:
  """Counts one comparison of greedy tokens: they are equal, or part at a near tie.

  Args:
    group: takes it.
    name: of the prompt.
    ours, reference: tokens, a stop token included.
    lead: (step, token) → by how much the reference's choice there leads that token.
    near_tie: lead up to which a token may differ.

  Returns:
    Whether they are equal.
  """
  if list(ours) == list(reference):
    group.check(repr(name), 0)
    return True
  pairs = enumerate(zip(ours, reference, strict=False))
  step = next((n for n, (a, b) in pairs if a != b), None)
  if step is None:
    group.equal(repr(name), list(ours), list(reference))  # one side stopped early
    return False
  margin = lead(step, ours[step])
  print(
    f"  {name!r}: token {step} is {ours[step]}, reference {reference[step]}, which leads there by "
    f"{margin:.1e}"
  )
  group.check(repr(name), 0 if margin < near_tie else margin)
  return False


@dataclasses.dataclass
class Tally:
  """All groups of a run.

  Attributes:
    worst: the largest relative error of the float32 groups, those with `relative=True`.
    passed, failed: checks over all groups.
  """

  worst: float = 0.0
  passed: int = 0
  failed: int = 0

  @contextlib.contextmanager
  def group(self, title: str, limit: float, *, relative: bool = False) -> Iterator[Group]:
    """Opens a group; at its end, adds it up and prints its line."""
    group, start = Group(limit), time.monotonic()
    yield group
    self.passed += group.passed
    self.failed += group.failed
    if relative:
      self.worst = max(self.worst, group.worst)
    figure = f"worst {group.worst:.3g} ({group.at}), limit {limit:g}; " if limit else ""
    print(
      f"{title}: {figure}{group.passed} passed, {group.failed} failed{group.note} "
      f"[{time.monotonic() - start:.0f} s]",
      flush=True,
    )
