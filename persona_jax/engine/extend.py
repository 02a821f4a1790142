"""Teacher forcing: known tokens after each row's shared prefix, in one pass over the blocks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import ROLES
from persona_jax.engine.capture import CaptureSpec
from persona_jax.engine.forward import Pass, run_blocks
from persona_jax.engine.prefill import prefill
from persona_jax.engine.rows import Row

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


class Extended(NamedTuple):
  """What teacher forcing gives: the pass, and what edits did on the prefix and in it, added up.

  Attributes:
    run: the pass over the last prompt tokens and the fed ones, [B, T].
    realised_B, requested_B: float32, delivery (`edits.apply.Delivery`).
    edited_B: int32, tokens on which an edit was on.
  """

  run: Pass
  realised_B: jax.Array
  requested_B: jax.Array
  edited_B: jax.Array


def extend(
  model: "Model",
  rows: Sequence[Row],
  fed: Sequence[Sequence[int]],
  num_rows: int,
  num_tokens: int,
  *,
  spec: CaptureSpec | None = None,
  banks: Mapping[int, jax.Array] | None = None,
) -> Extended:
  """Feed each row its last token and then the tokens `fed`, left-aligned in T slots.

  Args:
    model: the model.
    rows: the rows; all but their last tokens come from `prefill`.
    fed: answer tokens of each row, fewer than T.
    num_rows: B ≥ len(rows); the rows beyond repeat the first.
    num_tokens: T.
    spec, banks: what to read of these T tokens (`engine.capture.resolve`).

  Returns:
    The pass over [B, T], with the delivery of the prefix and the pass together.
  """
  prefix = prefill(model, rows, num_rows, room=num_tokens)
  filled = list(range(len(rows))) + [0] * (num_rows - len(rows))
  ids_BT = np.zeros((num_rows, num_tokens), np.int32)
  role_BT = np.full((num_rows, num_tokens), ROLES["assistant"], np.int32)
  valid_BT = np.zeros((num_rows, num_tokens), bool)
  for b, n in enumerate(filled):
    given = (rows[n].ids[-1], *fed[n])
    ids_BT[b, : len(given)] = given
    roles = rows[n].roles[-1], *rows[n].answer_roles(fed[n], model.think_ids)
    role_BT[b, : len(given)] = roles
    valid_BT[b, : len(given)] = True
  first_B = np.asarray([len(rows[n].ids) - 1 for n in filled], np.int32)
  end_B = np.asarray([rows[n].prompt_length for n in filled], np.int32)
  position_BT = first_B[:, None] + np.arange(num_tokens, dtype=np.int32)
  edits = [rows[n].edits for n in filled]
  tokens = TokenInfo(
    jnp.asarray(position_BT - end_B[:, None]), jnp.asarray(role_BT), jnp.asarray(valid_BT)
  )
  slot_position_BS = np.concatenate([prefix.position_BS, position_BT], axis=1)
  run = run_blocks(
    model.arch,
    model.params,
    model.embed(jnp.asarray(ids_BT)),
    jnp.asarray(position_BT),
    tokens,
    slot_position_BS=jnp.asarray(slot_position_BS),
    caches=prefix.caches,
    cursor=prefix.num_slots,
    edits=compile_edits(model, edits) if any(edits) else None,
    spec=spec,
    banks=banks,
    fused=model.fused,
  )
  return Extended(
    run,
    run.delivery.realised_B + prefix.realised_B,
    run.delivery.requested_B + prefix.requested_B,
    jnp.sum(run.delivery.edited_BT, axis=1) + prefix.edited_B,
  )
