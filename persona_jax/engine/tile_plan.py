"""Tiles: what one takes, found by going through it dry, and how many rows fit into memory."""

import dataclasses
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

from persona_jax.engine.accelerators import Accelerator
from persona_jax.engine.decode import cache_dtype
from persona_jax.engine.memory import MEMORY_SHARE, DryMemory, memory_limit, params_bytes
from persona_jax.engine.need import Need
from persona_jax.engine.prefill import BATCH_TOKENS, prefill
from persona_jax.engine.programs import Dry, Live
from persona_jax.engine.rows import Row, length_bucket, levels, most_rows, row_bucket
from persona_jax.engine.segments import LEAVE_STEPS, DecodeWork, decode_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.tiles import by_beginning, fill, tiles
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """What one tile takes.

  Attributes:
    rows: numbers of its rows.
    batch: rows of the decoding batch, with padding.
    lanes: (P, M) by first block: from that block on, P copies of prompts serve M rows each.
    passes: times that a prompt's token is sent through a block.
    padded_passes: the same with padding.
    unshared_passes: what it would be if every row computed its own.
    decoding: the steps of decoding, if answers are as long as was assumed.
    peak_bytes: most memory at one time, predicted.
    needs: the programs.
    smaller: sizes that the batch may shrink to if answers end early, none if they can't.
    early_needs: the programs that may be needed besides if they do, where they were asked for.
  """

  rows: tuple[int, ...]
  batch: int
  lanes: dict[int, tuple[tuple[int, int], ...]]
  passes: int
  padded_passes: int
  unshared_passes: int
  decoding: DecodeWork
  peak_bytes: int
  needs: tuple[Need, ...]
  smaller: tuple[int, ...] = ()
  early_needs: tuple[Need, ...] = ()


def plan_tile(
  model: "Model",
  rows: Sequence[Row],
  numbers: Sequence[int],
  settings: Settings,
  *,
  lengths: Sequence[int] | None = None,
  sharing: Sharing = ALL_SHARED,
  table: Live | None = None,
  early_ends: bool = False,
) -> TilePlan:
  """Go through one tile dry.

  `numbers` says which of the rows are in it, `table` is as in `Dry`, `early_ends` as in `plan`.
  """
  arch, mine = model.arch, [rows[n] for n in numbers]
  dry = DryMemory(arch, model.params, model.mesh, table)
  tree = Tree(mine, [len(row.ids) - 1 for row in mine], sharing=sharing)
  prefix = prefill(model, tree, run=dry)
  _, work = decode_rows(
    model,
    mine,
    prefix.waves,
    settings,
    order=tree.order,
    copies=not sharing.attention,
    run=dry,
    lengths=lengths,
  )
  first = next((need for need in dry if need.name == "decode"), None)
  lanes = {} if first is None else _lanes(first)
  batch = work.segments[0][0] if work.segments else 0
  needs = tuple(dry)
  smaller: tuple[int, ...] = ()
  early: tuple[Need, ...] = ()
  can_end = bool(settings.stop_ids or settings.stop_texts)
  if can_end and settings.max_new_tokens >= LEAVE_STEPS:
    smaller = tuple(size for size in levels(batch) if size < batch)
    if early_ends:
      early = _early_needs(model, mine, settings, sharing, set(dry.needs), table)
  unshared = arch.num_blocks * sum(len(row.ids) - 1 for row in mine)
  return TilePlan(
    tuple(numbers),
    batch,
    lanes,
    prefix.passes,
    prefix.padded_passes,
    unshared,
    work,
    dry.peak_bytes,
    needs,
    smaller,
    early,
  )


def _early_needs(
  model: "Model",
  rows: Sequence[Row],
  settings: Settings,
  sharing: Sharing,
  known: Collection[Hashable],
  table: Live | None,
) -> tuple[Need, ...]:
  """Return the programs of a tile's smaller batches, in which rows are that end early."""
  dry = Dry(table)
  tree = Tree(rows, [len(row.ids) - 1 for row in rows], sharing=sharing)
  decode_rows(
    model,
    rows,
    prefill(model, tree, run=dry).waves,
    settings,
    order=tree.order,
    copies=not sharing.attention,
    run=dry,
    every_size=True,
  )
  return tuple(need for key, need in dry.needs.items() if key not in known)


def _lanes(need: Need) -> dict[int, tuple[tuple[int, int], ...]]:
  """Read the lanes off the arguments of a decoding program."""
  shared, layouts, start = need.args[1], need.args[2], need.args[3]
  batch = start.token_B.shape[0]
  out: dict[int, tuple[tuple[int, int], ...]] = {}
  last: tuple[tuple[int, int], ...] | None = None
  for block, parts in shared.items():
    found = []
    for part in parts:
      layout = layouts[part.layout]
      p = layout.position_PS.shape[0]
      found.append((p, batch // p if layout.member_PC is None else layout.member_PC.shape[1]))
    if tuple(found) != last:
      last = out[block] = tuple(found)
  return out


def limit_of(model: "Model", on: Accelerator | None = None) -> int:
  """Return how many bytes a plan may take on an accelerator, or on the model's device."""
  return memory_limit(model.device) if on is None else int(MEMORY_SHARE * on.memory_bytes)


def cut(
  model: "Model",
  rows: Sequence[Row],
  settings: Settings,
  *,
  sharing: Sharing = ALL_SHARED,
  table: Live | None = None,
  on: Accelerator | None = None,
) -> list[list[int]]:
  """Cut rows into the largest tiles that fit into memory; `table` is as in `Dry`."""
  return tiles(rows, tile_rows(model, rows, settings, sharing=sharing, table=table, on=on))


def tile_rows(
  model: "Model",
  rows: Sequence[Row],
  settings: Settings,
  *,
  sharing: Sharing = ALL_SHARED,
  table: Live | None = None,
  on: Accelerator | None = None,
) -> int:
  """Return how many rows a tile may have, so that every tile fits into memory.

  The memory is that of the model's device, or of the accelerator `on`.

  It depends on the rows, the model, the kind of device and the size of its memory; a run stores it,
  so that it makes the same tiles when it goes on elsewhere. Where not even one row fits it is 1.
  """
  limit = limit_of(model, on)
  *sizes, least = levels(most_rows(model.device) if on is None else on.rows)
  failed: list[list[int]] = []
  prompts = by_beginning(rows)
  for size in sizes:
    tiled = fill(prompts, size)
    if tiled == failed:  # tiles are of equal size, so several of the largest sizes make the same
      continue
    bounds = [most_bytes(model, [rows[n] for n in tile], settings) for tile in tiled]
    # Those that may not fit, the most demanding first.
    doubtful = sorted((n for n, most in enumerate(bounds) if most > limit), key=bounds.__getitem__)
    plans: list[TilePlan] = []
    for n in reversed(doubtful):
      plans.append(plan_tile(model, rows, tiled[n], settings, sharing=sharing, table=table))
      if plans[-1].peak_bytes > limit:
        break
    else:
      return size
    if table is not None:  # they are not going to be run
      table.discard(need for plan in plans for need in plan.needs)
    failed = tiled
  return least


def most_bytes(model: "Model", rows: Sequence[Row], settings: Settings) -> int:
  """Return what a tile takes at most, if its rows share nothing; it takes no dry run to know.

  On a mesh all but the parameters is taken to lie on one device, so that it is an upper bound.
  """
  arch = model.arch
  # Prompts are counted as wide as the rows' own keys and values, which are at least that.
  token_bytes = (
    2 * cache_dtype(model).itemsize * arch.num_blocks * arch.num_kv_heads * arch.head_dim
  )
  longest = length_bucket(max(len(row.ids) for row in rows))
  # Prompts and caches twice: while they are copied, the old ones are still there.
  slots = 2 * row_bucket(len(rows)) * (longest + settings.max_new_tokens)
  # A step's logits, and the float32 copy of a bfloat16 head that a CPU makes.
  logits = 4 * 4 * row_bucket(len(rows)) * arch.vocab_size + 4 * arch.vocab_size * arch.width
  # A block of prompts takes tokens by the batch, or one row if that has more.
  tokens = max(BATCH_TOKENS, longest)
  block = 4 * tokens * (2 * arch.num_heads * 2 * longest + 4 * arch.ffw_width)
  stream = 4 * 4 * row_bucket(len(rows)) * longest * arch.width
  # The vectors of edits by row, a read and a written one, twice while rows are left out.
  most: dict[tuple[str, int], int] = {}
  for edits in {tuple(map(id, row.edits)): row.edits for row in rows}.values():
    mine: dict[tuple[str, int], int] = {}
    for edit in edits:
      width = 4 * edit.num_slots * arch.site_width(edit.site)
      for block in edit.blocks:
        mine[edit.site, block] = mine.get((edit.site, block), 0) + width
    most = {where: max(most.get(where, 0), mine.get(where, 0)) for where in {**most, **mine}}
  tables = 4 * row_bucket(len(rows)) * sum(most.values())
  return params_bytes(model.params) + token_bytes * slots + logits + block + stream + tables
