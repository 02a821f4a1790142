"""Moments of prompts: a stream of them, tile by tile, into running moments on the device.

Prompts are tokenised some thousands at a time and sorted within these, by common beginning and
length; rows that fill no tile wait for the next ones, so that a long stream has few shapes. Two
tiles are under way at most, so that nothing piles up however long it is; meanwhile a thread
tokenises the next prompts.
"""

import collections
import concurrent.futures
import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.edits.edit import Edit
from persona_jax.engine.batches import ReadTile, batches, cut
from persona_jax.engine.capture import Capture, CaptureSpec, resolve
from persona_jax.engine.encode import edited_rows, plain_rows
from persona_jax.engine.halving import Limit
from persona_jax.engine.moments import Moments, RunningMoments, Work
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.reads import NodeReads, held_tokens
from persona_jax.engine.rows import Row
from persona_jax.engine.tree import ALL_SHARED, Sharing
from persona_jax.personas.chat import Prompt, Raw

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

_PIECE = 4096  # prompts that are tokenised and sorted together
_WAITING = 16384  # rows that may wait for others to fill a tile with


class _Waiting(NamedTuple):
  """A prompt that has been tokenised: its row, its label, and its number in the stream."""

  row: Row
  label: Hashable
  number: int


def moments(
  model: "Model",
  prompts: Iterable[Prompt],
  what: Capture,
  *,
  groups: Iterable[Hashable] | None = None,
  covariance: bool = False,
  edits: Iterable[RowEdits] | None = None,
  progress: Callable[[int], None] | None = None,
  sharing: Sharing = ALL_SHARED,
) -> Moments:
  """Take moments of activations of prompts; see `Model.moments`.

  `sharing` can be switched off, to compare.
  """
  spec, banks = resolve(what, model.arch)
  running, work = RunningMoments(covariance=covariance, run=model.runner(PROGRAMS)), Work()
  waiting: list[_Waiting] = []
  limit = Limit()
  under_way: collections.deque[tuple[jax.Array, int]] = collections.deque()

  def finish(most: int) -> None:
    """Wait until at most so many tiles are under way."""
    while len(under_way) > most:
      ready, count = under_way.popleft()
      jax.block_until_ready(ready)
      if progress is not None:
        progress(count)

  for piece, last in _pieces(model, prompts, groups, edits, spec):
    waiting += piece
    rows, names = [x.row for x in waiting], [x.number for x in waiting]
    tiles, rest = cut(rows, full=not last)
    if len(rest) > _WAITING:  # too many kinds of rows: take them as they are
      tiles, rest = cut(rows)
    for tile in batches(
      model, rows, what, tiles=tiles, names=names, sharing=sharing, ahead=True, limit=limit
    ):
      number_B = np.asarray([running.number(waiting[n].label) for n in tile.numbers])
      under_way.append((_add(running, tile, number_B, spec), len(tile.numbers)))
      running.flush()
      tokens = sum(len(row.ids) for row in tile.tree.rows)
      done = tile.prefix.passes, tile.prefix.padded_passes
      work = work.plus(Work(len(tile.numbers), tokens, *done))
      finish(1)
    waiting = [waiting[n] for n in rest]
  finish(0)
  return running.moments(_source(model, spec, banks), work)


def _pieces(
  model: "Model",
  prompts: Iterable[Prompt],
  groups: Iterable[Hashable] | None,
  edits: Iterable[RowEdits] | None,
  spec: CaptureSpec,
) -> Iterator[tuple[list[_Waiting], bool]]:
  """Tokenise the stream some thousands of prompts at a time; say which are the last.

  Raises:
    ValueError: no prompt, a single prompt or edit, not as many labels or edits as prompts, or as
      `_rows`.
  """
  if isinstance(prompts, (str, Raw, Mapping)):
    raise ValueError("prompts must be many prompts (strings, chats or pj.Raw), not a single one.")
  if not isinstance(prompts, Iterable):
    raise ValueError(
      "prompts must be many prompts (strings, chats or pj.Raw), as a list or another iterable, got "
      f"a {type(prompts).__name__}."
    )
  if isinstance(edits, Edit):
    raise ValueError("edits must hold one item (edits of that row) a prompt; got a single edit.")
  if isinstance(prompts, Sized):
    _check_count("groups", groups, len(prompts))
    _check_count("edits", edits, len(prompts))
  feed = iter(prompts)
  label_feed = itertools.repeat(None) if groups is None else iter(groups)
  edit_feed = itertools.repeat(None) if edits is None else iter(edits)
  first = 0
  with concurrent.futures.ThreadPoolExecutor(1, "persona_jax tokeniser") as pool:

    def begin() -> tuple[int, concurrent.futures.Future[list[Row]]]:
      piece = list(itertools.islice(feed, _PIECE))
      return len(piece), pool.submit(plain_rows, model, piece)

    count, tokenised = begin()
    if not count:
      raise ValueError("moments need at least one prompt.")
    last = False
    while not last:
      labels = list(itertools.islice(label_feed, count))
      its_edits = list(itertools.islice(edit_feed, count))
      for name, values in (("groups", labels), ("edits", its_edits)):
        if len(values) < count:
          raise ValueError(f"{name} ends at prompt {first + len(values)}; give one item a prompt.")
      rows = _rows(model, first, tokenised, its_edits, spec)
      last = count < _PIECE
      numbers = range(first, first + count)
      first += count
      if not last:
        count, tokenised = begin()
      yield (
        [_Waiting(r, _label(n, x), n) for r, x, n in zip(rows, labels, numbers, strict=True)],
        last,
      )
  _check_count("groups", groups, first)
  _check_count("edits", edits, first)


def _check_count(name: str, values: Any, num_prompts: int) -> None:
  if isinstance(values, Sized) and len(values) != num_prompts:
    raise ValueError(f"{len(values)} {name} for {num_prompts} prompts; give one item a prompt.")


def _label(number: int, label: Any) -> Hashable:
  """Return a label in a form that is equal for equal ones: numbers of numpy as plain ones."""
  label = label.item() if isinstance(label, np.generic) else label
  if not isinstance(label, Hashable):
    raise ValueError(
      f"the group {label!r} of prompt {number} can't be a label; use a string or int."
    )
  return label


def _rows(
  model: "Model",
  first: int,
  tokenised: concurrent.futures.Future[list[Row]],
  edits: list[RowEdits],
  spec: CaptureSpec,
) -> list[Row]:
  """Return the rows of a piece of the stream with their edits.

  Raises:
    ValueError: as `encode_rows`, or the window holds no token of a prompt.
  """
  try:
    rows = edited_rows(model, tokenised.result(), edits)
  except ValueError as error:
    if not first:
      raise
    last = first + len(edits) - 1
    raise ValueError(f"prompts {first} to {last}, counted from {first}: {error}") from error
  for n, row in enumerate(rows):
    if not held_tokens(row, spec).any():
      raise ValueError(
        f"prompt {first + n}: the window {spec.window} of the capture holds none of its "
        f"{len(row.ids)} tokens, {row.prompt_length} of them prompt."
      )
  return rows


def _add(
  running: RunningMoments, tile: ReadTile, number_B: np.ndarray, spec: CaptureSpec
) -> jax.Array:
  """Add a tile; return what is ready when it is in."""
  if spec.reduce != "all":
    size = next(iter(tile.reads.values())).shape[0]
    label_E, weight_E = np.zeros((2, size), int)
    label_E[: len(number_B)], weight_E[: len(number_B)] = number_B, 1
    return running.add(tile.reads, label_E, weight_E=weight_E)
  for note in tile.notes:
    index_E, label_E, weight_E = _tokens(tile, note, number_B)
    ready = running.add(note.arrays, label_E, index_E=index_E, weight_E=weight_E)
  return ready


def _tokens(
  tile: ReadTile, note: NodeReads, number_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return which tokens of a pass count for which labels, and for how many rows."""
  groups, length = next(iter(note.arrays.values())).shape[:2]
  index, label, weight = [], [], []
  for g, group in enumerate(note.groups):
    node = tile.tree.nodes[group.node]
    held: dict[int, np.ndarray] = {}
    for row in group.rows:
      count_T = held.setdefault(int(number_B[row]), np.zeros(node.length, int))
      count_T += tile.held[row][node.start : node.stop]
    for number, count_T in held.items():
      at = np.flatnonzero(count_T)
      index.append(g * length + at)
      label.append(np.full(len(at), number))
      weight.append(count_T[at])
  count = sum(map(len, index))
  size = groups * length
  while size < count:  # a shared beginning counts for several labels
    size *= 2
  pad = [np.zeros(size - count, int)]
  index_E, label_E, weight_E = (np.concatenate(x + pad) for x in (index, label, weight))
  return index_E, label_E, weight_E


def _source(
  model: "Model", spec: CaptureSpec, banks: Mapping[int, jax.Array] | None
) -> dict[str, Any]:
  """Say what moments are of."""
  bank = None
  if banks is not None:
    digest = hashlib.sha256()
    for block in spec.blocks:
      digest.update(np.asarray(banks[block]).tobytes())
    bank = digest.hexdigest()
  return {
    "model": model.identity.name,
    "model_hash": model.identity.sha256,
    "dtype": model.dtype,
    "resid_dtype": model.resid_dtype,
    "reduce": spec.reduce,
    "tokens": str(spec.window),
    "bank": bank,
  }
