"""Decode: one compiled `while_loop` over steps, blocks unrolled inside.

It stops when all rows are done.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.table import ROLES, EditTable, Where
from persona_jax.engine.forward import Layout, Part, run_blocks
from persona_jax.engine.sampling import Sampling, next_token
from persona_jax.engine.taps import Fused
from persona_jax.models.arch import Arch
from persona_jax.models.layers import KV


class Start(NamedTuple):
  """Where each row's decoding begins.

  Attributes:
    token_B: int32, the last token of the prompt (or of the answer so far).
    role_B: int32, its role.
    position_B: int32, its position in the row.
    offset_B: int32, its offset from the end of the prompt (-1, or more in a started answer).
    thinking_B: bool, whether the answer goes on with a thought of the prompt.
    done_B: bool, rows that only fill the tile.
    key_B: sampling keys.
  """

  token_B: jax.Array
  role_B: jax.Array
  position_B: jax.Array
  offset_B: jax.Array
  thinking_B: jax.Array
  done_B: jax.Array
  key_B: jax.Array


class State(NamedTuple):
  """The loop's carry; after the loop, its result.

  Attributes:
    step: int32, tokens generated so far by the longest row.
    token_B: int32, what is fed next.
    thinking_B: bool, whether the token that is fed next stands inside a thought.
    done_B: bool, rows that met a stop token.
    caches: the rows' own keys and values by block; the t-th token that was fed stands at slot t.
    ids_BN: int32, generated ids; beyond `length_B` they mean nothing.
    logprob_BN: float32, log-probability of each under the model (temperature 1, no filter), or
      None.
    length_B: int32, generated tokens of each row, the stop token included.
    realised_B, requested_B: float32, delivery of edits (`edits.apply.Delivery`).
    edited_B: int32, tokens on which an edit was on.
    changes: float32 [B, N] by (site, block), how far each fed token was moved, if traced.
  """

  step: jax.Array
  token_B: jax.Array
  thinking_B: jax.Array
  done_B: jax.Array
  caches: list[KV]
  ids_BN: jax.Array
  logprob_BN: jax.Array | None
  length_B: jax.Array
  realised_B: jax.Array
  requested_B: jax.Array
  edited_B: jax.Array
  changes: dict[Where, jax.Array]


@functools.partial(
  jax.jit,
  static_argnames=(
    "arch",
    "sampling",
    "num_steps",
    "with_logprobs",
    "resid_dtype",
    "fused",
    "trace",
  ),
)
def decode(
  params: Mapping[str, Any],
  shared: Mapping[int, Sequence[Part]],
  layouts: Sequence[Layout],
  start: Start,
  edits: EditTable | None,
  stop_ids_E: jax.Array,
  think_ids_2: jax.Array,
  *,
  arch: Arch,
  sampling: Sampling,
  num_steps: int,
  with_logprobs: bool,
  resid_dtype: Any,
  fused: Fused | None = None,
  trace: bool = False,
) -> State:
  """Generate up to `num_steps` tokens for B rows.

  Args:
    params, arch, resid_dtype: the model.
    shared, layouts: keys and values of the prompts but for their last tokens, and how the rows
      read them.
    start: where each row begins.
    edits: the rows' edit table.
    stop_ids_E: int32, ids that end a row.
    think_ids_2: int32, ids of "<think>" and "</think>", see `Row.answer_roles`; -1 for none.
    sampling: how a token is chosen.
    num_steps: N.
    with_logprobs: whether to compute log-probabilities (one more pass over the vocabulary).
    fused: the kernel for edits of projections, or None.
    trace: whether to note how far each token was moved at each edited place.
  """
  num_rows = start.token_B.shape[0]
  # Slots of tokens to come hold later positions than any query's, so they are not seen.
  slot_position_BS = start.position_B[:, None] + jnp.arange(num_steps)

  def body(state: State) -> State:
    t = state.step
    live_B = ~state.done_B
    opens_B = (state.token_B == think_ids_2[0]) & (start.offset_B + t == 0)
    thinking_B = (state.thinking_B | opens_B) & (t > 0)
    role_B = jnp.where(thinking_B, ROLES["think"], ROLES["assistant"])
    role_B = jnp.where(t == 0, start.role_B, role_B)
    closes_B = (t > 0) & (state.token_B == think_ids_2[1])
    tokens = TokenInfo((start.offset_B + t)[:, None], role_B[:, None], live_B[:, None])
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
    token_B = next_token(sampling, logits_BV, start.key_B, t)
    logprob_BN = state.logprob_BN
    if logprob_BN is not None:
      chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
      logprob_B = chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
      logprob_BN = jax.lax.dynamic_update_slice(logprob_BN, logprob_B[:, None], (0, t))
    return State(
      step=t + 1,
      token_B=token_B,
      thinking_B=jnp.where(t == 0, state.thinking_B, thinking_B & ~closes_B),
      done_B=state.done_B | jnp.any(token_B[:, None] == stop_ids_E, axis=1),
      caches=out.caches,
      ids_BN=jax.lax.dynamic_update_slice(state.ids_BN, token_B[:, None], (0, t)),
      logprob_BN=logprob_BN,
      length_B=state.length_B + live_B,
      realised_B=state.realised_B + out.delivery.realised_B,
      requested_B=state.requested_B + out.delivery.requested_B,
      edited_B=state.edited_B + out.delivery.edited_BT[:, 0],
      changes={
        place: jax.lax.dynamic_update_slice(change_BN, out.changes[place], (0, t))
        for place, change_BN in state.changes.items()
      },
    )

  zero_B = jnp.zeros((num_rows,), jnp.float32)
  own = KV.empty(num_rows, arch.num_kv_heads, num_steps, arch.head_dim, _kv_dtype(params))
  empty_B = jnp.zeros((num_rows,), jnp.int32)
  state = State(
    step=jnp.int32(0),
    token_B=start.token_B,
    thinking_B=start.thinking_B,
    done_B=start.done_B,
    caches=[own for _ in range(arch.num_blocks)],
    ids_BN=jnp.zeros((num_rows, num_steps), jnp.int32),
    logprob_BN=jnp.zeros((num_rows, num_steps), jnp.float32) if with_logprobs else None,
    length_B=empty_B,
    realised_B=zero_B,
    requested_B=zero_B,
    edited_B=empty_B,
    changes=dict.fromkeys(
      edits.sites if trace and edits is not None else (),
      jnp.zeros((num_rows, num_steps), jnp.float32),
    ),
  )
  return jax.lax.while_loop(lambda s: (s.step < num_steps) & ~jnp.all(s.done_B), body, state)


def _kv_dtype(params: Mapping[str, Any]) -> Any:
  return params["blocks"][0]["k_DKH"].dtype
