"""Log-probabilities of given continuations, sharing each prompt's prefix between them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import RowEdits, compile_edits
from persona_jax.edits.table import ROLES
from persona_jax.engine.forward import head, run_blocks
from persona_jax.engine.generate import check_lengths, encode_rows
from persona_jax.engine.prefill import prefill
from persona_jax.engine.rows import Row, block_row_bucket, round_up
from persona_jax.models import families
from persona_jax.models.arch import Arch
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

_TILE_ROWS = 64  # logits of a tile are [rows, T, V] float32: 64 x 8 x 49,152 is 100 MB
_TOKEN_STEP = 4  # continuations are padded to a multiple of this


@functools.partial(jax.jit, static_argnames=("arch",))
def _logprobs(
  params: Mapping[str, Any], h_BTD: jax.Array, targets_BTM: jax.Array, *, arch: Arch
) -> jax.Array:
  """Return the log-probability of M candidate next tokens at each position, [B, T, M]."""
  logits_BTV = head(params, h_BTD, arch=arch)
  chosen_BTM = jnp.take_along_axis(logits_BTV, targets_BTM, axis=-1)
  return chosen_BTM - jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True)


def _score_tile(
  model: "Model", rows: Sequence[Row], fed: Sequence[tuple[int, ...]], finals: Sequence[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
  """Score passes: row b is fed `fed[b]` after its prompt, `finals[b]` may follow.

  Returns:
    log-probs of the fed tokens [B, T - 1] and of the finals [B, M], float32; padding means nothing.
  """
  num_rows = block_row_bucket(len(rows))
  t = round_up(1 + max(len(f) for f in fed), _TOKEN_STEP) if any(fed) else 1
  prefix = prefill(model, rows, num_rows, room=t)
  filled = list(range(len(rows))) + [0] * (num_rows - len(rows))
  ids_BT = np.zeros((num_rows, t), np.int32)
  role_BT = np.full((num_rows, t), ROLES["assistant"], np.int32)
  valid_BT = np.zeros((num_rows, t), bool)
  targets_BTM = np.zeros((num_rows, t, max(len(f) for f in finals)), np.int32)
  first_B = np.asarray([len(rows[n].ids) - 1 for n in filled], np.int32)
  end_B = np.asarray([rows[n].prompt_length for n in filled], np.int32)
  for b, n in enumerate(filled):
    given = (rows[n].ids[-1], *fed[n])
    ids_BT[b, : len(given)] = given
    role_BT[b, 0] = rows[n].roles[-1]
    valid_BT[b, : len(given)] = True
    targets_BTM[b, : len(fed[n]), 0] = fed[n]
    targets_BTM[b, len(fed[n]), : len(finals[n])] = finals[n]
  position_BT = first_B[:, None] + np.arange(t, dtype=np.int32)
  edits = [rows[n].edits for n in filled]
  table = compile_edits(model, edits) if any(edits) else None
  tokens = TokenInfo(
    jnp.asarray(position_BT - end_B[:, None]), jnp.asarray(role_BT), jnp.asarray(valid_BT)
  )
  slots = prefix.num_slots
  slot_S, query_T = np.arange(slots + t), slots + np.arange(t)
  mask_BTS = (slot_S >= prefix.pad_B[:, None])[:, None] & (slot_S <= query_T[:, None])
  out = run_blocks(
    model.arch,
    model.params,
    families.family(model.arch.family).embed(model.params, jnp.asarray(ids_BT), model.resid_dtype),
    jnp.asarray(position_BT),
    jnp.asarray(mask_BTS),
    tokens,
    caches=prefix.caches,
    cursor=slots,
    edits=table,
  )
  top = {name: leaf for name, leaf in model.params.items() if name != "blocks"}
  logprob_BTM = np.asarray(_logprobs(top, out.h_BTD, jnp.asarray(targets_BTM), arch=model.arch))
  last_B = np.asarray([len(fed[n]) for n in filled])
  return logprob_BTM[:, :, 0], logprob_BTM[np.arange(num_rows), last_B]


@overload
def score(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  per_token: Literal[False] = False,
  progress: Callable[[int], None] | None = None,
) -> np.ndarray: ...


@overload
def score(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  per_token: Literal[True],
  progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]: ...


@overload
def score(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  per_token: bool,
  progress: Callable[[int], None] | None = None,
) -> np.ndarray | list[np.ndarray]: ...


def score(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  per_token: bool = False,
  progress: Callable[[int], None] | None = None,
) -> np.ndarray | list[np.ndarray]:
  """Score continuations; see `Model.score`."""
  if len(prompts) != len(continuations):
    raise ValueError(
      f"{len(prompts)} prompts and {len(continuations)} continuations; they are zipped."
    )
  rows = encode_rows(model, prompts, edits)
  conts = [
    tuple(model.tokenizer.encode(c) if isinstance(c, str) else (int(i) for i in c))
    for c in continuations
  ]
  empty = [n for n, cont in enumerate(conts) if not cont]
  if empty:
    raise ValueError(f"continuations {empty[:8]} have no token; there is nothing to score.")
  if not rows:
    return [] if per_token else np.zeros(0)
  check_lengths(model, rows, max(len(c) for c in conts))

  # One pass serves all continuations of a row that differ in their last token only.
  passes: dict[tuple[object, ...], int] = {}
  finals: list[list[int]] = []
  place: list[tuple[int, int]] = []
  owner: list[int] = []
  for n, (row, cont) in enumerate(zip(rows, conts, strict=True)):
    key = (row.ids, row.prompt_length, tuple(id(e) for e in row.edits), cont[:-1])
    p = passes.setdefault(key, len(passes))
    if p == len(finals):
      finals.append([])
      owner.append(n)
    if cont[-1] not in finals[p]:
      finals[p].append(cont[-1])
    place.append((p, finals[p].index(cont[-1])))

  fed_logprob: dict[int, np.ndarray] = {}
  final_logprob: dict[int, np.ndarray] = {}
  users = np.bincount([p for p, _ in place], minlength=len(finals))
  order = sorted(
    range(len(finals)), key=lambda p: (len(rows[owner[p]].ids), len(conts[owner[p]]), p)
  )
  for i in range(0, len(order), _TILE_ROWS):
    tile = order[i : i + _TILE_ROWS]
    tile_rows = [rows[owner[p]] for p in tile]
    fed = [conts[owner[p]][:-1] for p in tile]
    fed_BT, final_BM = _score_tile(model, tile_rows, fed, [finals[p] for p in tile])
    for b, p in enumerate(tile):
      fed_logprob[p] = fed_BT[b, : len(fed[b])].astype(np.float64)
      final_logprob[p] = final_BM[b].astype(np.float64)
    if progress is not None:
      progress(int(users[tile].sum()))
  out = [np.append(fed_logprob[p], final_logprob[p][m]) for p, m in place]
  return out if per_token else np.asarray([x.sum() for x in out])
