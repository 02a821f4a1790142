"""Log-probabilities of answers behind an edit at the output of one block.

What the blocks up to that one compute does not depend on the edit. It is computed once for each row
and kept, so only the blocks above run again, and the head at the answers' tokens.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax import sharding
from persona_jax.edits.apply import TokenInfo, apply_site
from persona_jax.edits.table import Site
from persona_jax.engine.forward import head, run_blocks, token_info
from persona_jax.engine.model import Model
from persona_jax.engine.rows import length_bucket, round_up
from persona_jax.personas.chat import EncodedPrompt

# Of activations that are kept on the host; beyond, each step computes its own.
_TRUNK_BYTES = 4 << 30


class Batch(NamedTuple):
  """Rows of prompts with answers, as arrays.

  Attributes:
    ids_BT, roles_BT, length_B, prompt_B: the rows, as `pj.forward` takes them.
    at_BA: positions by which the answers' tokens are chosen.
    next_BA: those tokens.
    counted_BA: which of them there are.
  """

  ids_BT: Any
  roles_BT: Any
  length_B: Any
  prompt_B: Any
  at_BA: Any
  next_BA: Any
  counted_BA: Any


def batch_of(rows: Sequence[EncodedPrompt]) -> Batch:
  """Lay rows out, each of a prompt and an answer of at least one token."""
  # Of few lengths, so that the vectors of a study share their programs.
  size = round_up(length_bucket(max(len(row.ids) for row in rows)), 16)
  ids_BT, roles_BT = np.zeros((2, len(rows), size), np.int32)
  length_B = np.asarray([len(row.ids) for row in rows], np.int32)
  prompt_B = np.asarray([row.prompt_length for row in rows], np.int32)
  at_BA = prompt_B[:, None] - 1 + np.arange(round_up(int((length_B - prompt_B).max()), 8))
  counted_BA = at_BA < length_B[:, None] - 1
  at_BA = np.minimum(at_BA, length_B[:, None] - 2).astype(np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, : len(row.ids)], roles_BT[b, : len(row.ids)] = row.ids, row.roles
  next_BA = np.take_along_axis(ids_BT, at_BA + 1, axis=1)
  return Batch(ids_BT, roles_BT, length_B, prompt_B, at_BA, next_BA, counted_BA)


@functools.partial(jax.jit, static_argnames=("block",))
def _trunk(model: Model, batch: Batch, *, block: int) -> jax.Array:
  """Return what a block gives without the edit, [B, T, D] in `resid_dtype`."""
  return _blocks(model, _tokens(batch), model.embed(batch.ids_BT), range(block + 1))


def _tokens(batch: Batch) -> TokenInfo:
  return token_info(batch.length_B, batch.prompt_B, batch.roles_BT, batch.ids_BT.shape[1])


def _blocks(model: Model, tokens: TokenInfo, h_BTD: jax.Array, blocks: range) -> jax.Array:
  """Send whole rows through some blocks."""
  shape_BT = h_BTD.shape[:2]
  position_BT = jnp.broadcast_to(jnp.arange(shape_BT[1], dtype=jnp.int32), shape_BT)
  h_BTD = sharding.constrain(h_BTD, "BTD", model.mesh)  # kept arrays are whole
  return run_blocks(model.arch, model.params, h_BTD, position_BT, tokens, blocks=blocks).h_BTD


def answer_logprobs(
  model: Model, h_BTD: jax.Array, batch: Batch, site: Site | None, block: int
) -> jax.Array:
  """Return the log-probability of each row's answer, float32 [B].

  Args:
    model: the model; differentiable in `site`.
    h_BTD: what the block gives without the edit.
    batch: the rows.
    site: the edit at the block's output, or None.
    block: the block.
  """
  tokens = _tokens(batch)
  if site is not None:
    h_BTD, _ = apply_site(site, h_BTD, tokens)
  h_BTD = _blocks(model, tokens, h_BTD, range(block + 1, model.arch.num_blocks))
  h_BAD = jnp.take_along_axis(h_BTD, batch.at_BA[..., None], axis=1)
  logprob_BAV = jax.nn.log_softmax(head(model.params, h_BAD, arch=model.arch))
  next_BA = jnp.take_along_axis(logprob_BAV, batch.next_BA[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(batch.counted_BA, next_BA, 0.0), axis=1)


_plain_logprobs = jax.jit(functools.partial(answer_logprobs, site=None), static_argnames=("block",))


class Trunk:
  """What a block gives for the rows that are used, kept if there is room."""

  def __init__(self, model: Model, rows: Batch, block: int, size: int, used: np.ndarray):
    self._model, self._rows, self._block, self._size, self._used = model, rows, block, size, used
    self._place = np.zeros(len(rows.ids_BT), int)
    self._place[used] = np.arange(len(used))
    self._kept: np.ndarray | None = None
    shape = (len(used), rows.ids_BT.shape[1], model.arch.width)
    dtype = np.dtype(model.resid_dtype)
    if math.prod(shape) * dtype.itemsize <= _TRUNK_BYTES:
      kept = np.empty(shape, dtype)
      for index in self._pieces():
        kept[self._place[index]], _ = self.of(index)
      self._kept = kept

  def _pieces(self) -> Iterator[np.ndarray]:
    """Give the rows that are used, as many at a time as a step has."""
    for first in range(0, len(self._used), self._size):
      # Of one shape: the last row fills the last piece.
      yield self._used[np.minimum(np.arange(first, first + self._size), len(self._used) - 1)]

  def of(self, index: np.ndarray) -> tuple[np.ndarray | jax.Array, Batch]:
    """Return what is given for some rows, and the rows."""
    batch = Batch(*(x[index] for x in self._rows))
    if self._kept is not None:
      return self._kept[self._place[index]], batch
    return _trunk(self._model, batch, block=self._block), batch

  def logprobs(self) -> np.ndarray:
    """Return the answers' log-probabilities under the unedited model, [B]; 0 of unused rows."""
    out_B = np.zeros(len(self._rows.ids_BT), np.float32)
    for index in self._pieces():
      h_BTD, batch = self.of(index)
      out_B[index] = _plain_logprobs(self._model, h_BTD, batch, block=self._block)
    return out_B
