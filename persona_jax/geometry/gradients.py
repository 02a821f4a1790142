"""Gradients of refusal in what is added to the last prompt token, at every block: backwards.

What any direction does at any block is then a product of matrices. For the first answer token the
window "answer" is the last prompt token alone, and no token before it feels an edit there; so the
tokens before are run once, without derivatives, and the last is differentiated behind their keys
and values.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from persona_jax.directions.direction import Direction
from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.operations import add
from persona_jax.edits.table import AddEdit, EditTable, Site
from persona_jax.edits.target import Blocks, choose_blocks
from persona_jax.engine.capture import Capture, CaptureSpec, resolve
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.forward import head, run_blocks, token_info
from persona_jax.engine.model import Model
from persona_jax.engine.rows import Row, length_bucket
from persona_jax.geometry.cosines import means
from persona_jax.models.arch import Arch
from persona_jax.models.layers import KV
from persona_jax.personas.chat import Prompt

_Floats = NDArray[np.float64]
_TOKENS = 4096  # of a batch, padding included; keys and values of SmolLM2-135M take 190 MB
LAST = "last:1"  # the window of an addition


@dataclasses.dataclass(frozen=True, eq=False)
class Gradients:
  """Gradients of refusal in what is added to the last prompt token, at every block.

  Attributes:
    blocks: where is added, L' of them.
    read: where projections are read, J of them.
    site: of additions and reads.
    log_odds_PLD: float32 [P, L', D], of the first-token refusal log-odds of each prompt, in nats a
      unit of h.
    projection_JLD: float64 [J, L', D], of <h_j, r̂_j>, mean over prompts; zero where j < l.
    base_P: float64 [P], log-odds without an edit.
    base_JP: float64 [J, P], projections without an edit.
    refusal: hash of r.
  """

  blocks: tuple[int, ...]
  read: tuple[int, ...]
  site: str
  log_odds_PLD: np.ndarray
  projection_JLD: _Floats
  base_P: _Floats
  base_JP: _Floats
  refusal: str

  def on_log_odds(self, directions: Sequence[Direction]) -> _Floats:
    """Return d log-odds / dα of adding α v̂, mean over prompts, float64 [R, L']; NaN of no vector.

    Raises:
      ValueError: a direction of another site, width or number of blocks.
    """
    mean_LD = self.log_odds_PLD.mean(axis=0, dtype=np.float64)
    places = range(len(self.blocks))
    return np.stack([self._units(directions, n) @ mean_LD[n] for n in places], axis=-1)

  def on_log_odds_of_prompts(self, directions: Sequence[Direction], block: int) -> _Floats:
    """Return the same at one block for each prompt, float64 [R, P]."""
    if block not in self.blocks:
      raise ValueError(f"block {block}: gradients are known at blocks {list(self.blocks)}.")
    n = self.blocks.index(block)
    found: _Floats = self._units(directions, n) @ self.log_odds_PLD[:, n].T.astype(np.float64)
    return found

  def on_projection(self, directions: Sequence[Direction]) -> _Floats:
    """Return d<h_j, r̂_j> / dα of adding α v̂ at l, mean over prompts, float64 [R, J, L']."""
    places = range(len(self.blocks))
    by_block = [self._units(directions, n) @ self.projection_JLD[:, n].T for n in places]
    return np.stack(by_block, axis=-1)  # of [R, J] each

  def _units(self, directions: Sequence[Direction], place: int) -> _Floats:
    """Return unit vectors at one of the blocks, [R, D]; NaN where there is none."""
    width = self.log_odds_PLD.shape[-1]
    wrong = [
      d.concept
      for d in directions
      if d.site != self.site
      or d.vectors_SLD.shape[2] != width
      or d.vectors_SLD.shape[1] <= max(self.blocks)
    ]
    if wrong or not directions:
      raise ValueError(
        f"directions {wrong[:5]}: give some of width {width} at site {self.site!r} with all blocks."
      )
    block = self.blocks[place]
    v_RD = np.stack([d.vectors_SLD[:, block].mean(axis=0) for d in directions]).astype(np.float64)
    norm_R1 = np.linalg.norm(v_RD, axis=-1, keepdims=True)
    return np.divide(v_RD, norm_R1, out=np.full_like(v_RD, np.nan), where=norm_R1 > 0)


class Batch(NamedTuple):
  """Rows of prompts, padded to one length and number.

  Attributes:
    numbers: of the prompts; rows after them are padding.
    ids_BT, roles_BT, length_B: int32, as `pj.forward` takes them.
  """

  numbers: list[int]
  ids_BT: Any
  roles_BT: Any
  length_B: Any


def batches(rows: Sequence[Row], most: int) -> Iterator[Batch]:
  """Lay rows out, of like lengths together, all batches of a length of one number of rows."""
  order = sorted(range(len(rows)), key=lambda n: (len(rows[n].ids), n))
  first = 0
  while first < len(order):
    # The longest of the batch decides how many fit.
    size = min(most, len(rows))
    while size > 1:
      last = order[min(first + size, len(order)) - 1]
      if size * length_bucket(len(rows[last].ids)) <= _TOKENS:
        break
      size -= 1
    numbers = order[first : first + size]
    width = length_bucket(len(rows[numbers[-1]].ids))
    ids_BT, roles_BT = np.zeros((2, size, width), np.int32)
    length_B = np.ones(size, np.int32)
    for b, n in enumerate(numbers):
      ids_BT[b, : len(rows[n].ids)], roles_BT[b, : len(rows[n].ids)] = rows[n].ids, rows[n].roles
      length_B[b] = len(rows[n].ids)
    yield Batch(numbers, ids_BT, roles_BT, length_B)
    first += len(numbers)


def prompt_rows(model: Model, prompts: Sequence[Prompt]) -> list[Row]:
  """Tokenise prompts.

  Raises:
    ValueError: there are none, or some end with an answer.
  """
  rows = encode_rows(model, prompts, None)
  if not rows:
    raise ValueError("there are no prompts to measure.")
  answered = [n for n, row in enumerate(rows) if len(row.ids) != row.prompt_length]
  if answered:
    raise ValueError(f"prompts {answered[:5]} end with an answer; refusal is measured before one.")
  return rows


def refusal_mask(model: Model, refusal_ids: Sequence[int]) -> np.ndarray:
  """Return which tokens begin a refusal, bool [V].

  Raises:
    ValueError: none, all, or ids outside the vocabulary.
  """
  ids = sorted({int(i) for i in refusal_ids})
  size = model.arch.vocab_size
  if not ids or not 0 <= ids[0] <= ids[-1] < size or len(ids) == size:
    raise ValueError(f"refusal_ids {ids[:8]}: give ids below {size}, at least one and not all.")
  return np.isin(np.arange(size), ids)


@functools.partial(jax.jit, static_argnames=("arch",))
def _head_gradient(
  top: Mapping[str, Any], h_BD: jax.Array, refusal_V: jax.Array, *, arch: Arch
) -> tuple[jax.Array, jax.Array]:
  """Return each row's log-odds and their gradient in what enters the final norm."""

  def total(h_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
    odds_B = traced_log_odds(head(top, h_BD, arch=arch), refusal_V)
    return jnp.sum(odds_B), odds_B

  (_, odds_B), gradient_BD = jax.value_and_grad(total, has_aux=True)(h_BD)
  return odds_B, gradient_BD


def traced_log_odds(z_BV: jax.Array, refusal_V: jax.Array) -> jax.Array:
  """Return the same as `refusal_scores.log_odds`, under a trace; float32 [B]."""
  yes_B = jax.nn.logsumexp(z_BV, axis=-1, where=refusal_V)
  return yes_B - jax.nn.logsumexp(z_BV, axis=-1, where=~refusal_V)


class _Behind(NamedTuple):
  """The last token of each row, and what it attends to.

  Attributes:
    h_B1D: the token embedded.
    position_B1: int32.
    tokens: what windows need to know of it.
    slot_BS: int32, position of the token in each slot; the last slot is its own.
    caches: keys and values of S slots a block, the last slot empty.
  """

  h_B1D: jax.Array
  position_B1: jax.Array
  tokens: TokenInfo
  slot_BS: jax.Array
  caches: list[KV]


def gradients(
  model: Model,
  prompts: Sequence[Prompt],
  r: Direction,
  blocks: Blocks,
  refusal_ids: Sequence[int],
  *,
  read: Blocks | None = None,
  batch: int = 32,
) -> Gradients:
  """Differentiate refusal in additions at many blocks: a pass forwards, one back for each outcome.

  Args:
    model: the model.
    prompts: P prompts, harmful ones as a rule.
    r: the refusal direction, at whose site is added and read.
    blocks: where is added.
    refusal_ids: tokens with which refusals begin.
    read: where projections on r are read; default none, and log-odds alone are differentiated.
    batch: prompts at a time, fewer where they are long.

  Returns:
    `Gradients`.

  Raises:
    ValueError: no prompts, some with an answer, unknown blocks or ids, a direction of heads, or r
      without a vector where it is read.
  """
  arch = model.arch
  means([r], r)  # no direction of heads
  added = choose_blocks(blocks, arch.num_blocks, "the model")
  reads = () if read is None else choose_blocks(read, arch.num_blocks, "the model")
  refusal_V = jnp.asarray(refusal_mask(model, refusal_ids))
  rows = prompt_rows(model, prompts)
  spec, banks = None, None
  if reads:
    spec, banks = resolve(Capture((r.site,), blocks=reads, reduce="last", bank=r), arch)
  width = arch.site_width(r.site)
  odds_PLD = np.empty((len(rows), len(added), width), np.float32)
  projection_JLD = np.zeros((len(reads), len(added), width))
  base_P, base_JP = np.empty(len(rows)), np.empty((len(reads), len(rows)))
  for part in batches(rows, batch):
    size, here = len(part.ids_BT), len(part.numbers)
    outcomes = functools.partial(
      _outcomes, model, _prefix(model, part), _window(model, r, size), r.site, added, spec, banks
    )
    zero_LBD = [jnp.zeros((size, width), jnp.float32) for _ in added]
    (h_BD, projection_JB), back = jax.vjp(outcomes, zero_LBD)
    odds_B, gradient_BD = _head_gradient(model.top, h_BD, refusal_V, arch=arch)
    none_JB = [jnp.zeros_like(p_B) for p_B in projection_JB]
    (u_LBD,) = back((gradient_BD, none_JB))
    odds_PLD[part.numbers] = np.stack([np.asarray(u_BD)[:here] for u_BD in u_LBD], axis=1)
    base_P[part.numbers] = np.asarray(odds_B, np.float64)[:here]
    for j, p_B in enumerate(projection_JB):
      base_JP[j, part.numbers] = np.asarray(p_B, np.float64)[:here]
      one_JB = [*none_JB[:j], jnp.ones_like(p_B), *none_JB[j + 1 :]]
      (u_LBD,) = back((jnp.zeros_like(h_BD), one_JB))
      projection_JLD[j] += [np.asarray(u_BD, np.float64)[:here].sum(axis=0) for u_BD in u_LBD]
  return Gradients(
    added, reads, r.site, odds_PLD, projection_JLD / len(rows), base_P, base_JP, r.hash
  )


def _prefix(model: Model, part: Batch) -> _Behind:
  """Run all tokens and keep the keys and values of those before the last."""
  size, length = part.ids_BT.shape
  position_T = np.arange(length, dtype=np.int32)
  position_BT = jnp.broadcast_to(position_T, (size, length))
  tokens = token_info(part.length_B, part.length_B, part.roles_BT, length)
  h_BTD = model.embed(part.ids_BT)
  run = run_blocks(model.arch, model.params, h_BTD, position_BT, tokens, only_kv=True)
  last_B1 = (part.length_B - 1)[:, None]
  # The last token comes again, in a slot of its own; its old slot and the padding are not seen.
  slot_BT = np.where(position_T < last_B1, position_T, -1)
  role_B1 = np.take_along_axis(part.roles_BT, last_B1, axis=1)
  return _Behind(
    model.embed(np.take_along_axis(part.ids_BT, last_B1, axis=1)),
    jnp.asarray(last_B1, jnp.int32),
    TokenInfo(jnp.full((size, 1), -1, jnp.int32), jnp.asarray(role_B1), jnp.ones((size, 1), bool)),
    jnp.asarray(np.concatenate([slot_BT, last_B1], axis=1), jnp.int32),
    [kv.padded(length + 1) for kv in run.caches],
  )


def _outcomes(
  model: Model,
  behind: _Behind,
  window: AddEdit,
  site: str,
  added: tuple[int, ...],
  spec: CaptureSpec | None,
  banks: Mapping[int, jax.Array] | None,
  u_LBD: list[jax.Array],
) -> tuple[jax.Array, list[jax.Array]]:
  """Return what the last block gives, [B, D], and the projections, [B] each, with u added."""
  sites = {
    (site, block): Site(add=window._replace(u_BWD=u_BD[:, None]))
    for block, u_BD in zip(added, u_LBD, strict=True)
  }
  run = run_blocks(
    model.arch,
    model.params,
    behind.h_B1D,
    behind.position_B1,
    behind.tokens,
    slot_position_BS=behind.slot_BS,
    caches=behind.caches,
    cursor=np.int32(behind.slot_BS.shape[1] - 1),
    edits=EditTable(sites),
    spec=spec,
    banks=banks,
  )
  reads = () if spec is None else spec.blocks
  return run.h_BTD[:, 0], [run.reads[site, j][:, 0] for j in reads]


def _window(model: Model, r: Direction, rows: int) -> AddEdit:
  """Return an addition to the last prompt token of each row, to be filled."""
  d = Direction(np.ones((1, *r.vectors_SLD.shape[1:])), "to differentiate", r.site)
  edit = add(d, 1.0, unit="raw", blocks=0, tokens=LAST)
  stage = compile_edits(model, [[edit]] * rows).sites[r.site, 0].add
  assert stage is not None
  return stage
