"""Decode: segments of one compiled `while_loop` over steps, blocks unrolled inside.

A segment runs until its caches are full, or until so few rows are left that a smaller batch holds
them; then the host makes the caches longer or leaves out the rows that are done:

  rows      96  ┌───────────┐
            72  │           └──────────────┐            one program a (rows, slots)
            48  │  32 slots    │ 64 slots  └──────┐
                └──────────────┴──────────────────┴── steps
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.table import ALWAYS, ROLES, EditTable, Where
from persona_jax.engine.forward import Layout, Part, run_blocks
from persona_jax.engine.sampling import Sampling, choose
from persona_jax.engine.taps import Fused
from persona_jax.models.arch import Arch
from persona_jax.models.layers import KV

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


class Start(NamedTuple):
  """Where each row's decoding begins.

  Attributes:
    token_B: int32, the last token of the prompt (or of the answer so far).
    role_B: int32, its role.
    position_B: int32, its position in the row.
    offset_B: int32, its offset from the end of the prompt (-1, or more in a started answer).
    thinking_B: bool, whether the answer goes on with a thought of the prompt.
    after_B: int32, its offset from the end of the thought before it, see
      `edits.window.after_thought`.
    key_B2: uint32, the words of the sampling keys.
  """

  token_B: jax.Array
  role_B: jax.Array
  position_B: jax.Array
  offset_B: jax.Array
  thinking_B: jax.Array
  after_B: jax.Array
  key_B2: jax.Array


class State(NamedTuple):
  """The loop's carry, which goes from segment to segment.

  Attributes:
    step: int32, tokens generated so far by the rows that are not done.
    token_B: int32, what is fed next.
    thinking_B: bool, whether the token that is fed next stands inside a thought.
    after_B: int32, its offset from the end of the thought before it.
    done_B: bool, rows that met a stop token, or that only fill the batch.
    caches: the rows' own keys and values by block; the t-th token that was fed stands at slot t.
    ids_BS: int32, generated ids; beyond `length_B` they mean nothing.
    logprob_BS: float32, log-probability of each under the model (temperature 1, no filter), or
      None.
    length_B: int32, generated tokens of each row, the stop token included.
    realised_BS, requested_BS: float32, delivery of edits (`edits.apply.Delivery`) on the token that
      was fed at each step.
    edited_BS: bool, whether an edit was on there.
    changes: float32 [B, S] by (site, block), how far each fed token was moved, if traced.
  """

  step: jax.Array
  token_B: jax.Array
  thinking_B: jax.Array
  after_B: jax.Array
  done_B: jax.Array
  caches: list[KV]
  ids_BS: jax.Array
  logprob_BS: jax.Array | None
  length_B: jax.Array
  realised_BS: jax.Array
  requested_BS: jax.Array
  edited_BS: jax.Array
  changes: dict[Where, jax.Array]


def cache_dtype(model: "Model") -> np.dtype:
  """Return the dtype of the rows' own keys and values: that of the weights, on a CPU float32.

  XLA for CPUs writes no slice of a 16-bit array: for every slot it widens the whole cache and makes
  it narrow again. Kept in float32, a step of 128 rows takes 0.85 to 0.9 of the time (SmolLM2 in
  bfloat16, 2 cores, measured).
  """
  on_cpu = model.device.platform == "cpu"
  return np.dtype(np.float32 if on_cpu else model.params["blocks"][0]["k_DKH"].dtype)


@functools.partial(jax.jit, static_argnames=("arch", "slots", "dtype", "places", "with_logprobs"))
def begin(
  start: Start,
  done_B: jax.Array,
  *,
  arch: Arch,
  slots: int,
  dtype: Any,
  places: tuple[Where, ...],
  with_logprobs: bool,
) -> State:
  """Return the state before the first step, with room for `slots` tokens a row.

  `dtype` is that of the caches (`cache_dtype`); `places` are those whose changes are to be traced.
  """
  num_rows = start.token_B.shape[0]
  blank_BS = jnp.zeros((num_rows, slots), jnp.float32)
  own = KV.empty(num_rows, arch.num_kv_heads, slots, arch.head_dim, dtype)
  return State(
    step=jnp.int32(0),
    token_B=start.token_B,
    thinking_B=start.thinking_B,
    after_B=start.after_B,
    done_B=done_B,
    caches=[own for _ in range(arch.num_blocks)],
    ids_BS=jnp.zeros((num_rows, slots), jnp.int32),
    logprob_BS=blank_BS if with_logprobs else None,
    length_B=jnp.zeros((num_rows,), jnp.int32),
    realised_BS=blank_BS,
    requested_BS=blank_BS,
    edited_BS=jnp.zeros((num_rows, slots), bool),
    changes=dict.fromkeys(places, blank_BS),
  )


@functools.partial(
  jax.jit,
  static_argnames=("arch", "sampling", "resid_dtype", "fused", "trace"),
  donate_argnames=("state",),
)
def segment(
  params: Mapping[str, Any],
  shared: Mapping[int, Sequence[Part]],
  layouts: Sequence[Layout],
  start: Start,
  edits: EditTable | None,
  state: State,
  until: jax.Array,
  leave: jax.Array,
  stop_ids_E: jax.Array,
  think_ids_2: jax.Array,
  *,
  arch: Arch,
  sampling: Sampling,
  resid_dtype: Any,
  fused: Fused | None = None,
  trace: bool = False,
) -> State:
  """Generate tokens for B rows until step `until`, or until at most `leave` rows are not done.

  Args:
    params, arch, resid_dtype: the model.
    shared, layouts: keys and values of the prompts but for their last tokens, and how the rows
      read them.
    start: where each row began.
    edits: the rows' edit table.
    state: where they are; its arrays are reused.
    until: int32, at most the slots of the state.
    leave: int32.
    stop_ids_E: int32, ids that end a row.
    think_ids_2: int32, ids of "<think>" and "</think>", see `Row.answer_roles`; -1 for none.
    sampling: how a token is chosen.
    fused: the kernel for edits of projections, or None.
    trace: whether to note how far each token was moved at each edited place.
  """
  # Slots of tokens to come hold later positions than any query's, so they are not seen.
  slot_position_BS = start.position_B[:, None] + jnp.arange(state.ids_BS.shape[1])
  key_B = jax.random.wrap_key_data(start.key_B2, impl="threefry2x32")

  def noted(x_BS: jax.Array, x_B: jax.Array, t: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(x_BS, x_B[:, None], (0, t))

  def body(state: State) -> State:
    t = state.step
    live_B = ~state.done_B
    opens_B = (state.token_B == think_ids_2[0]) & (start.offset_B + t == 0)
    thinking_B = (state.thinking_B | opens_B) & (t > 0)
    role_B = jnp.where(thinking_B, ROLES["think"], ROLES["assistant"])
    role_B = jnp.where(t == 0, start.role_B, role_B)
    closes_B = state.token_B == think_ids_2[1]
    goes_on_B = jnp.where(t == 0, state.thinking_B, thinking_B & ~closes_B)
    in_thought_B = role_B == ROLES["think"]
    after_B = jnp.where(in_thought_B, ALWAYS, state.after_B)
    tokens = TokenInfo(*(x[:, None] for x in (start.offset_B + t, role_B, live_B, after_B)))
    next_B = jnp.where(in_thought_B & ~goes_on_B, 0, jnp.where(after_B < 0, ALWAYS, after_B + 1))
    out = run_blocks(
      arch,
      params,
      arch.family.embed(arch, params, state.token_B[:, None], resid_dtype),
      (start.position_B + t)[:, None],
      tokens,
      slot_position_BS=slot_position_BS,
      caches=state.caches,
      cursor=t,
      edits=edits,
      fused=fused,
      trace=trace,
      shared=shared,
      layouts=layouts,
    )
    logits_BV = arch.family.unembed(arch, params, out.h_BTD[:, 0])
    logprob_BS = state.logprob_BS
    token_B, logprob_B = choose(sampling, logits_BV, key_B, t, with_logprobs=logprob_BS is not None)
    if logprob_BS is not None and logprob_B is not None:
      logprob_BS = noted(logprob_BS, logprob_B, t)
    delivery = out.delivery
    return State(
      step=t + 1,
      token_B=token_B,
      thinking_B=goes_on_B,
      after_B=next_B,
      done_B=state.done_B | jnp.any(token_B[:, None] == stop_ids_E, axis=1),
      caches=out.caches,
      ids_BS=noted(state.ids_BS, token_B, t),
      logprob_BS=logprob_BS,
      length_B=state.length_B + live_B,
      realised_BS=noted(state.realised_BS, delivery.realised_B, t),
      requested_BS=noted(state.requested_BS, delivery.requested_B, t),
      edited_BS=noted(state.edited_BS, delivery.edited_BT[:, 0], t),
      changes={
        place: noted(change_BS, out.changes[place][:, 0], t)
        for place, change_BS in state.changes.items()
      },
    )

  def goes_on(state: State) -> jax.Array:
    return (state.step < until) & (jnp.sum(~state.done_B) > leave)

  return jax.lax.while_loop(goes_on, body, state)


@functools.partial(jax.jit, static_argnames=("slots",))
def lengthen(state: State, *, slots: int) -> State:
  """Make room for `slots` tokens a row."""

  def padded(x_BS: jax.Array) -> jax.Array:
    return jnp.pad(x_BS, [(0, 0), (0, slots - x_BS.shape[1])])

  notes = (state.ids_BS, state.logprob_BS, state.realised_BS, state.requested_BS, state.edited_BS)
  ids_BS, logprob_BS, realised_BS, requested_BS, edited_BS = jax.tree.map(padded, notes)
  return state._replace(
    caches=[kv.padded(slots) for kv in state.caches],
    ids_BS=ids_BS,
    logprob_BS=logprob_BS,
    realised_BS=realised_BS,
    requested_BS=requested_BS,
    edited_BS=edited_BS,
    changes=jax.tree.map(padded, state.changes),
  )


@jax.jit
def leave_out(
  start: Start, edits: EditTable | None, state: State, index_B: jax.Array, done_B: jax.Array
) -> tuple[Start, EditTable | None, State]:
  """Keep the rows `index_B`, in that order; `done_B` says which of them are done."""
  start = jax.tree.map(lambda x: x[index_B], start)
  rows = jax.tree.map(lambda x: x if x.ndim == 0 else x[index_B], state)
  return start, None if edits is None else edits.rows(index_B), rows._replace(done_B=done_B)
