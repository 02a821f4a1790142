"""Rows run in batches of like length, for what is read on the way."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import Where
from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.forward import run_rows
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import Prefix
from persona_jax.engine.rows import TILE_ROWS, Row, length_bucket, row_bucket, tiles
from persona_jax.engine.tree import Tree

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

_BATCH_ROWS = 32


def batches(
  model: "Model", rows: Sequence[Row], capture: Capture
) -> Iterator[tuple[list[int], dict[tuple[str, int], jax.Array]]]:
  """Run rows in batches of like length; yield row numbers and their reads, padded rows last.

  Raises:
    ValueError: the rows or the capture do not fit the model, or a row did not get the edit that it
      asked for.
  """
  check_lengths(model, rows, 0)
  spec, banks = resolve(capture, model.arch)
  if capture.reduce == "last":
    # Only last tokens are read: what comes before is a prefix, which rows share.
    for tile in tiles(rows, TILE_ROWS):
      mine = [rows[n] for n in tile]
      tree = Tree(mine, [len(row.ids) for row in mine])
      out = prefill(model, tree, spec=spec, banks=banks)
      _check_delivered(tile, mine, out.realised_R, out.requested_R)
      yield tile, _last_reads(tree, out)
    return
  for tile in tiles(rows, _BATCH_ROWS):
    size = row_bucket(len(tile))
    filled = [rows[n] for n in tile] + [rows[tile[0]]] * (size - len(tile))
    t = length_bucket(max(len(row.ids) for row in filled))
    ids_BT, roles_BT = np.zeros((size, t), np.int32), np.zeros((size, t), np.int32)
    for b, row in enumerate(filled):
      ids_BT[b, : len(row.ids)] = row.ids
      roles_BT[b, : len(row.ids)] = row.roles
    table = (
      compile_edits(model, [r.edits for r in filled]) if any(r.edits for r in filled) else None
    )
    length_B1, end_B1 = (
      np.asarray(x, np.int32)[:, None]
      for x in zip(*((len(row.ids), row.prompt_length) for row in filled), strict=True)
    )
    position_T = np.arange(t, dtype=np.int32)
    tokens = TokenInfo(
      jnp.asarray(position_T - end_B1), jnp.asarray(roles_BT), jnp.asarray(position_T < length_B1)
    )
    ids = jnp.asarray(ids_BT)
    run = run_rows(model, ids, tokens, edits=table, spec=spec, banks=banks, fused=model.fused)
    delivery = run.delivery
    _check_delivered(tile, [rows[n] for n in tile], delivery.realised_B, delivery.requested_B)
    yield tile, run.reads


def _last_reads(tree: Tree, prefix: Prefix) -> dict[Where, jax.Array]:
  """Return what was read of each row's last token, [R, ·]."""
  found: dict[Where, list[tuple[int, jax.Array, int]]] = {}
  for groups, reads in prefix.reads:
    for where, x in reads.items():
      for g, group in enumerate(groups):
        last = [row for row in group.rows if tree.chain(row)[-1] == group.node]
        found.setdefault(where, []).extend((row, x, g) for row in last)
  out = {}
  for where, items in found.items():
    arrays = {id(x): np.asarray(x) for _, x, _ in items}
    by_row = {row: arrays[id(x)][g] for row, x, g in items}
    out[where] = jnp.asarray(np.stack([by_row[row] for row in range(len(tree.rows))]))
  return out


def _check_delivered(
  numbers: Sequence[int],
  rows: Sequence[Row],
  realised_B: jax.Array | np.ndarray,
  requested_B: jax.Array | np.ndarray,
) -> None:
  """Refuse reads of rows that were not edited as asked: no flag goes with them."""
  if not any(row.edits for row in rows):
    return
  realised, requested = np.asarray(realised_B), np.asarray(requested_B)
  for b, (n, row) in enumerate(zip(numbers, rows, strict=True)):
    problem = problem_of(row, (), dose_of(realised[b], requested[b]))
    if problem:
      raise ValueError(f"prompt {n}: {problem}.")
