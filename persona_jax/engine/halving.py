"""Tiles that ran out of memory: they are run in halves, and later ones are cut before."""

import collections
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import jax

T = TypeVar("T")
R = TypeVar("R")


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that the device had too little memory."""
  if isinstance(error, MemoryError):
    return True
  text = str(error)
  known = ("RESOURCE_EXHAUSTED", "Out of memory", "exceeds available HBM")
  return isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in known)


@dataclasses.dataclass
class Limit:
  """The most that a tile may have, as one that was too large has shown.

  Attributes:
    most: rows times the weight of the heaviest; None as long as every tile did fit.
  """

  most: int | None = None


class Halving(Generic[T]):
  """Runs tiles; where memory does not suffice, their halves, and so on, with a warning.

  What was too large once is not tried again: later tiles are cut before.
  """

  def __init__(
    self,
    run: Callable[[list[int]], T],
    single: Callable[[int], str],
    *,
    weight: Callable[[int], int] = lambda row: 1,
    limit: Limit | None = None,
  ):
    """Begin.

    Args:
      run: takes row numbers and returns their results; must change nothing before it is done.
      single: says of one row what it needs and what would help, if it does not fit by itself.
      weight: what a row takes, by its number, in any unit.
      limit: what was found out before, and takes what is found out; default nothing.
    """
    self._run, self._single, self._weight = run, single, weight
    self._limit = Limit() if limit is None else limit

  def cut(self, numbers: Sequence[int]) -> list[list[int]]:
    """Cut a tile into parts that none has shown to be too large."""
    most = self._limit.most
    rows = len(numbers)
    if most is not None:
      rows = max(1, most // max(map(self._weight, numbers)))
    return [list(numbers[i : i + rows]) for i in range(0, len(numbers), rows)]

  def __call__(self, numbers: Sequence[int]) -> Iterator[T]:
    """Run a tile.

    Args:
      numbers: of the tile's rows.

    Yields:
      The result of the tile, or of each of its parts, in order.

    Raises:
      MemoryError: one row by itself is too large.
    """
    todo = collections.deque([list(numbers)])
    while todo:
      part, *others = self.cut(todo.popleft())
      todo.extendleft(reversed(others))
      if out := self._tried(part, functools.partial(self._run, part)):
        yield out[0]
      else:
        todo.appendleft(part)
      out = None  # lets its arrays go

  def ahead(self, tiles: Iterable[Sequence[int]], wait: Callable[[T], object]) -> Iterator[T]:
    """Run tiles, of which one more is always handed to the device before the last is waited for.

    So the host prepares while the device computes, and a device that runs out of memory only then
    is noticed all the same. What fails beside another is run again with nothing beside it, and is
    cut only if it fails then too.

    Args:
      tiles: numbers of each one's rows.
      wait: waits for a result; raises what the device did.

    Yields:
      The result of every tile or part, when it has been waited for.

    Raises:
      MemoryError: one row by itself is too large.
    """
    more = iter(tiles)
    todo: collections.deque[list[int]] = collections.deque()
    begun: collections.deque[tuple[list[int], T, bool]] = collections.deque()
    most = 2  # at one time on the device
    while True:
      if not todo:
        todo.extend(list(tile) for tile in itertools.islice(more, 1))
      beside = bool(begun)
      if todo and len(begun) < most:
        part, *others = self.cut(todo.popleft())
        todo.extendleft(reversed(others))
        if out := self._tried(part, functools.partial(self._run, part), beside):
          begun.append((part, out[0], beside))
        else:
          todo.appendleft(part)
          most = 1 if beside else most
        out = None
        continue
      if not begun:
        return
      part, result, beside = begun.popleft()
      beside = beside or bool(begun)
      if self._tried(part, functools.partial(wait, result), beside):
        yield result
        most = most if beside else 2
      else:
        todo.appendleft(part)
        most = 1 if beside else 2
      del result  # lets its arrays go

  def _tried(self, part: list[int], call: Callable[[], R], beside: bool = False) -> tuple[R] | None:
    """Return what a call gives, in a tuple; None, with a warning, if memory does not suffice.

    If another tile took memory beside this one, nothing is concluded from that.
    """
    try:
      return (call(),)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
      if not is_out_of_memory(error):
        raise
      if beside:
        return None
      if len(part) == 1:
        raise MemoryError(f"{self._single(part[0])} ({error})") from error
    # Outside the handler: the error's traceback would keep the arrays of the failed tile.
    warnings.warn(
      f"a tile of {len(part)} rows ran out of memory; running it in halves", stacklevel=3
    )
    half = -(-len(part) // 2) * max(map(self._weight, part))
    self._limit.most = half if self._limit.most is None else min(half, self._limit.most)
    return None


def cut_to_fit(numbers: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[list[int]]:
  """Cut a tile into halves, and these again, until each is predicted to fit, or is one row."""
  if len(numbers) <= 1 or fits(numbers):
    return [list(numbers)]
  half = -(-len(numbers) // 2)
  return [*cut_to_fit(numbers[:half], fits), *cut_to_fit(numbers[half:], fits)]
