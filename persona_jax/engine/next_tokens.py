"""Distributions over the next token: logits behind rows, and KL divergences between two of them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.edits.table import Where
from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.forward import head
from persona_jax.engine.halving import Halving, cut_to_fit
from persona_jax.engine.memory import DryMemory, does_not_fit, memory_limit
from persona_jax.engine.prefill import prefill
from persona_jax.engine.programs import PROGRAMS, Runner
from persona_jax.engine.reads import Reading, Reads, by_row
from persona_jax.engine.rows import TILE_ROWS, Row, round_up
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import most_bytes
from persona_jax.engine.tree import Tree
from persona_jax.models.arch import Arch
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Logits are [tokens, V] float32: 512 x 49,152 of them are 100 MB.
_HEAD_TOKENS, _HEAD_STEP = 512, 32


class NotDelivered(ValueError):
  """A row did not get an edit that it asked for: it met no token, or did not do what it should."""


def next_logprobs(
  model: "Model", prompts: Sequence[Prompt], *, edits: Sequence[RowEdits] | None = None
) -> np.ndarray:
  """Compute log-probabilities of the token after each prompt, over the whole vocabulary.

  What a persona or an edit changes about the first token of an answer is exact here, where answers
  would be samples of it.

  Args:
    model: the model.
    prompts: as in `Model.generate`.
    edits: as in `Model.generate`; one that acts on generated tokens alone meets none.

  Returns:
    float64 [N, V], natural logarithms; a row's probabilities add up to 1.

  Raises:
    ValueError: as `Model.generate`, or a row did not get an edit that it asked for.
    MemoryError: a row by itself does not fit.
  """
  logits_NV = next_logits(model, encode_rows(model, prompts, edits)).astype(np.float64)
  found: np.ndarray = logits_NV - np.logaddexp.reduce(logits_NV, axis=-1, keepdims=True)
  return found


def next_logits(model: "Model", rows: Sequence[Row], *, check_delivery: bool = True) -> np.ndarray:
  """Return the logits of the token after each row, float32 [N, V].

  What rows share is computed once, as everywhere in the engine.

  Args:
    model: the model.
    rows: the rows, with their edits.
    check_delivery: whether a row that did not get its edits is an error. Ablating what a row has
      nothing of asks for a change of the size of rounding, which cannot be delivered; where that is
      no failure, leave the check out.

  Raises:
    ValueError: a row does not fit the model, or (`NotDelivered`) did not get an edit that it asked
      for.
    MemoryError: a row by itself does not fit.
  """
  return _logits_and_reads(model, rows, None, check_delivery)[0]


def next_logits_and_reads(
  model: "Model", rows: Sequence[Row], capture: Capture, *, check_delivery: bool = True
) -> tuple[np.ndarray, dict[Where, np.ndarray]]:
  """Return the logits of the token after each row, and what is read of the rows in the same pass.

  Args:
    model, rows, check_delivery: as of `next_logits`.
    capture: what to read, with reduce="last" or "mean".

  Returns:
    float32 [N, V], and by (site, block) float32 [N, D] or [N, R] as of `Model.capture`.

  Raises:
    ValueError, MemoryError: as `next_logits`; or a capture that does not fit, or of every token.
  """
  if capture.reduce == "all":
    raise ValueError("capture reduce='all': use 'last' or 'mean' beside logits.")
  return _logits_and_reads(model, rows, capture, check_delivery)


def _logits_and_reads(
  model: "Model", rows: Sequence[Row], capture: Capture | None, check_delivery: bool
) -> tuple[np.ndarray, dict[Where, np.ndarray]]:
  out = np.empty((len(rows), model.arch.vocab_size), np.float32)
  read: dict[Where, np.ndarray] = {}
  ends = [[len(row.ids) - 1] for row in rows]
  passes = _behind(model, [(row,) for row in rows], ends, check_delivery, capture)
  for numbers, h_MD, place, reads in passes:
    for first in range(0, len(numbers), _HEAD_TOKENS):
      part = numbers[first : first + _HEAD_TOKENS]
      at_Q = _padded([place[n, 0, len(rows[n].ids) - 1] for n in part])
      logits_QV = model.runner(PROGRAMS)(
        "next logits", _logits, model.top, h_MD, at_Q, arch=model.arch
      )
      out[part] = np.asarray(logits_QV)[: len(part)]
    for where, x_BD in reads.items():
      whole = read.setdefault(where, np.empty((len(rows), x_BD.shape[-1]), np.float32))
      whole[numbers] = np.asarray(x_BD)[: len(numbers)]
  return out, read


def token_kl(
  model: "Model", pairs: Sequence[tuple[Row, Row]], positions: Sequence[Sequence[int]]
) -> list[np.ndarray]:
  """Return KL(p ‖ q) of the next token behind positions of pairs of rows, in nats, float32 [T].

  p is what the first row of a pair predicts there and q what the second does, over the whole
  vocabulary; only the sums leave the device.

  Args:
    model: the model.
    pairs: rows whose next tokens are compared: of the same tokens with other edits, or of the same
      answer behind other prompts.
    positions: of each pair, positions in the rows; negative ones count from each row's end.

  Raises:
    ValueError, MemoryError: as `next_logits`.
  """
  out = [np.empty(len(mine), np.float32) for mine in positions]
  run = model.runner(PROGRAMS)

  def at(n: int, i: int, number: int) -> int:
    return _from_start(pairs[n][i], positions[n][number])

  for numbers, h_MD, place, _ in _behind(model, pairs, positions):
    asked = [(n, t) for n in numbers for t in range(len(positions[n]))]
    for first in range(0, len(asked), _HEAD_TOKENS // 2):
      part = asked[first : first + _HEAD_TOKENS // 2]
      p_Q, q_Q = (_padded([place[n, i, at(n, i, t)] for n, t in part]) for i in (0, 1))
      kl_Q = np.asarray(run("token kl", _kl, model.top, h_MD, p_Q, q_Q, arch=model.arch))
      for (n, t), value in zip(part, kl_Q, strict=False):
        out[n][t] = value
  return out


def kl_of_activations(model: "Model", p_TD: np.ndarray, q_TD: np.ndarray) -> np.ndarray:
  """Return KL(p ‖ q) of the next token behind activations of the last block, in nats, float32 [T].

  The same as `token_kl` for rows that were run and read before ("resid_post" of the last block).

  Args:
    model: the model.
    p_TD, q_TD: activations, T of either.

  Raises:
    ValueError: not as many of the one as of the other, or of another width.
  """
  if p_TD.shape != q_TD.shape or p_TD.shape[1:] != (model.arch.width,):
    raise ValueError(
      f"activations {p_TD.shape} and {q_TD.shape}: give as many of both, {model.arch.width} wide."
    )
  out = np.empty(len(p_TD), np.float32)
  for first in range(0, len(out), _HEAD_TOKENS // 2):
    part = range(first, min(first + _HEAD_TOKENS // 2, len(out)))
    at_Q = _padded(part)
    h_MD = np.concatenate([p_TD[at_Q], q_TD[at_Q]]).astype(model.resid_dtype)
    p_Q = np.arange(len(at_Q), dtype=np.int32)
    kl_Q = model.runner(PROGRAMS)(
      "token kl", _kl, model.top, h_MD, p_Q, p_Q + len(at_Q), arch=model.arch
    )
    out[part.start : part.stop] = np.asarray(kl_Q)[: len(part)]
  return out


def _from_start(row: Row, position: int) -> int:
  """Return a position that may count from a row's end, from its start."""
  return position if position >= 0 else len(row.ids) + position


def _padded(numbers: Sequence[int]) -> np.ndarray:
  """Return numbers, padded to few sizes with the first."""
  out = np.full(round_up(len(numbers), _HEAD_STEP), numbers[0], np.int32)
  out[: len(numbers)] = numbers
  return out


@functools.partial(jax.jit, static_argnames=("arch",))
def _logits(
  params: Mapping[str, Any], h_MD: jax.Array, at_Q: jax.Array, *, arch: Arch
) -> jax.Array:
  return head(params, h_MD[at_Q], arch=arch)


@functools.partial(jax.jit, static_argnames=("arch",))
def _kl(
  params: Mapping[str, Any], h_MD: jax.Array, p_Q: jax.Array, q_Q: jax.Array, *, arch: Arch
) -> jax.Array:
  p_QV, q_QV = (jax.nn.log_softmax(head(params, h_MD[at], arch=arch)) for at in (p_Q, q_Q))
  return jnp.sum(jnp.exp(p_QV) * (p_QV - q_QV), axis=-1)


@jax.jit
def _join(parts: Sequence[jax.Array]) -> jax.Array:
  return jnp.concatenate(parts)


def _behind(
  model: "Model",
  groups: Sequence[tuple[Row, ...]],
  positions: Sequence[Sequence[int]],
  check_delivery: bool = True,
  capture: Capture | None = None,
) -> Iterator[tuple[list[int], jax.Array, dict[tuple[int, int, int], int], Reads]]:
  """Run groups of rows tile by tile, a group's rows together.

  Yields:
    Numbers of the groups, activations [M, D] behind the last block, the place among them of (group,
    row in it, position), and what the capture reads of the rows.
  """
  check_lengths(model, [row for rows in groups for row in rows], 0)
  spec, banks = (None, None) if capture is None else resolve(capture, model.arch)
  limit = memory_limit(model.device)

  def rows_of(numbers: Sequence[int]) -> list[Row]:
    return [row for n in numbers for row in groups[n]]

  def asked(numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return (row of the tile, position, group, row of the group)."""
    owners = [(n, i) for n in numbers for i in range(len(groups[n]))]
    return [
      (r, _from_start(groups[n][i], t), n, i)
      for r, (n, i) in enumerate(owners)
      for t in positions[n]
    ]

  def pass_over(numbers: Sequence[int], run: Runner) -> Any:
    mine = rows_of(numbers)
    tree = Tree(mine, [len(row.ids) for row in mine])
    reading = None if spec is None else Reading(mine, spec, banks)
    prefix = prefill(
      model, tree, reading=reading, chosen=[item[:2] for item in asked(numbers)], run=run
    )
    reads: Reads = {}
    if spec is not None and reading is not None:
      places = spec.places(banks, model.arch)
      reads = by_row(prefix.reads, reading.held, places, run=model.runner(run))
    return mine, prefix, reads, model.runner(run)("join", _join, [c.h_MD for c in prefix.chosen])

  def peak(numbers: Sequence[int]) -> int:
    dry = DryMemory(model.arch, model.params, model.mesh)
    pass_over(numbers, dry)
    return dry.peak_bytes

  def fits(numbers: Sequence[int]) -> bool:
    return most_bytes(model, rows_of(numbers), Settings(1)) <= limit or peak(numbers) <= limit

  def read(
    numbers: list[int],
  ) -> tuple[list[int], jax.Array, dict[tuple[int, int, int], int], Reads]:
    mine, prefix, reads, h_MD = pass_over(numbers, PROGRAMS)
    prefix.waves.clear()
    done = prefix.delivered
    for row, realised, requested in zip(mine, done.realised_R, done.requested_R, strict=True):
      problem = problem_of(row, (), dose_of(realised, requested))
      if problem and check_delivery:
        raise NotDelivered(f"a row did not get its edits: {problem}.")
    starts = np.cumsum([0, *(len(c.h_MD) for c in prefix.chosen)])
    place: dict[tuple[int, int], int] = {}
    for start, chosen in zip(starts, prefix.chosen, strict=False):
      place |= {key: int(start) + at for key, at in chosen.place.items()}
    return numbers, h_MD, {(n, i, t): place[r, t] for r, t, n, i in asked(numbers)}, reads

  def single(n: int) -> str:
    tokens = max(len(row.ids) for row in groups[n])
    return does_not_fit(f"prompt {n}", tokens, peak([n]), model.device, "a shorter prompt")

  most = max(1, TILE_ROWS // max(map(len, groups)))
  order = sorted(range(len(groups)), key=lambda n: (groups[n][0].ids, n))
  in_parts = Halving(read, single)
  for first in range(0, len(order), most):
    for tile in cut_to_fit(order[first : first + most], fits):
      yield from in_parts(tile)
