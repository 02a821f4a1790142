"""`pj.plan`: what a grid will take, found by going through the run with shapes in place of arrays.

Nothing runs on the device and nothing is compiled; prompts are rendered and tokenised, tiles are
cut, and the host code of prefill and decoding is gone through dry (`engine.memory.DryMemory`).
"""

import dataclasses
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.engine.checks import as_whole, check_lengths, naming
from persona_jax.engine.gates import read_dry, settle, taken_as_on
from persona_jax.engine.grid import Cell, Grid, check_grid
from persona_jax.engine.memory import DryMemory, memory_limit, params_bytes, size_text
from persona_jax.engine.prefill import BATCH_TOKENS, prefill
from persona_jax.engine.programs import PROGRAMS, Dry, Live, Need
from persona_jax.engine.rows import (
  Row,
  derive_seed,
  length_bucket,
  make_row,
  most_rows,
  row_bucket,
  tiles,
)
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.segments import Work, decode_rows, levels
from persona_jax.engine.settings import Settings
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
  decoding: Work
  peak_bytes: int
  needs: tuple[Need, ...]
  smaller: tuple[int, ...] = ()
  early_needs: tuple[Need, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a grid will be run; `str(plan)` is the report.

  Attributes:
    grid: the grid.
    model_name: name and dtype of the model.
    num_blocks: L.
    row_tokens: prompt tokens of each row.
    tiles: the tiles, in order.
    least_passes: fewest token-block passes that give every row its prompt's keys and values.
    memory_bytes: what may be filled.
    params_bytes: of the model.
    assumed: what answers' lengths were taken to be, in words.
    undecided: rows with a gate that only their prompt's activations can decide; taken as on.
    gate_needs: the programs that read these prompts.
  """

  grid: Grid
  model_name: str
  num_blocks: int
  row_tokens: tuple[int, ...]
  tiles: tuple[TilePlan, ...]
  least_passes: int
  memory_bytes: int
  params_bytes: int
  assumed: str
  undecided: int
  gate_needs: tuple[Need, ...] = ()

  @property
  def needs(self) -> list[Need]:
    """The programs of gates and of all tiles, each once, in the order of first use."""
    tiles = [need for tile in self.tiles for need in tile.needs]
    return list({need.key: need for need in (*self.gate_needs, *tiles)}.values())

  @property
  def early_needs(self) -> list[Need]:
    """The programs that may be needed besides if answers end early, where they were asked for."""
    known = {need.key for need in self.needs}
    early = {need.key: need for tile in self.tiles for need in tile.early_needs}
    return [need for key, need in early.items() if key not in known]

  @property
  def passes(self) -> int:
    """Times that a prompt's token is sent through a block, padding aside."""
    return sum(tile.passes for tile in self.tiles)

  @property
  def unshared_passes(self) -> int:
    """The same if every row computed its own prompt."""
    return sum(tile.unshared_passes for tile in self.tiles)

  @property
  def padding(self) -> float:
    """Share of prefill that is padding."""
    padded = sum(tile.padded_passes for tile in self.tiles)
    return 1 - self.passes / padded if padded else 0.0

  @property
  def wasted_row_steps(self) -> float:
    """Share of decoding's row-steps that serve no row."""
    row_steps = sum(tile.decoding.row_steps for tile in self.tiles)
    used = sum(tile.decoding.used_row_steps for tile in self.tiles)
    return 1 - used / row_steps if row_steps else 0.0

  @property
  def peak_bytes(self) -> int:
    """Most device memory at one time, predicted."""
    return max(tile.peak_bytes for tile in self.tiles)

  def __str__(self) -> str:
    grid, blocks = self.grid, self.num_blocks
    saved = self.unshared_passes / self.passes if self.passes else 1.0
    over = self.passes / self.least_passes if self.least_passes else 1.0
    sizes: dict[tuple[int, int], int] = {}
    for tile in self.tiles:
      key = (len(tile.rows), tile.batch)
      sizes[key] = sizes.get(key, 0) + 1
    lines = [
      f"{len(self.row_tokens):,} rows = {len(grid.prompts)} prompts x {len(grid.conditions)} "
      f"conditions x {grid.samples} samples, {self.model_name}",
      f"prompts   {sum(self.row_tokens):,} tokens, {self.unshared_passes / blocks:,.0f} to prefill "
      f"without sharing, {self.passes / blocks:,.0f} with (whole passes of {blocks} blocks; "
      f"{saved:.2f}x fewer, {over:.2f}x the least possible); {self.padding:.1%} of prefill is "
      "padding",
      f"decoding  {grid.max_new_tokens} tokens a row; {self.wasted_row_steps:.1%} of row-steps "
      f"wasted if {self.assumed}",
      "tiles     "
      + ", ".join(
        f"{count} of {rows} rows (batch {batch})" for (rows, batch), count in sizes.items()
      ),
    ]
    for first, lanes in self.tiles[0].lanes.items():
      shown = " + ".join(f"({p}, {m})" for p, m in lanes)
      lines.append(f"  lanes from block {first}: {shown or 'none: prompts of one token'}")
    lines.append(
      f"memory    {size_text(self.peak_bytes)} at most predicted (parameters "
      f"{size_text(self.params_bytes)}), {size_text(self.memory_bytes)} may be filled"
    )
    if self.undecided:
      lines.append(
        f"gates     {self.undecided} rows have a gate that is decided by their prompt's "
        "activations when the grid runs; taken as on here"
      )
    needs = self.needs
    lines.append(f"programs  {len(needs)}")
    for need in needs:
      lines.append(f"  {need.name:<16} {need.shapes}")
    smaller = sorted({size for tile in self.tiles for size in tile.smaller}, reverse=True)
    if early := self.early_needs:
      lines.append(f"          {len(early)} more may be needed if answers end early")
      lines += [f"  {need.name:<16} {need.shapes}" for need in early]
    elif smaller:
      lines.append(
        f"          if answers end early, batches shrink to {', '.join(map(str, smaller))} rows; "
        "programs for these are not listed (early_ends=True)"
      )
    return "\n".join(lines)


def grid_rows(
  model: "Model", grid: Grid, *, decide_gates: bool = True
) -> tuple[list[Cell], list[Row]]:
  """Return the cells of a grid and the row of each.

  Args:
    model: the model.
    grid: the grid.
    decide_gates: whether gates that depend on the prompt are decided, which runs the model.
  """
  check_grid(grid)
  assert isinstance(grid.prompts, dict)
  cells = grid.cells()
  names = [f"{cell.prompt_id!r} of condition {cell.condition.name!r}" for cell in cells]
  rows = []
  for cell, name in zip(cells, names, strict=True):
    with naming(f"prompt {name}"):
      encoded = model.encode(cell.condition.apply(grid.prompts[cell.prompt_id]))
      rows.append(make_row(encoded, cell.condition.edits, cell.seed))
  check_lengths(model, rows, grid.max_new_tokens, names=names)
  return cells, settle(model, rows) if decide_gates else rows


def grid_settings(model: "Model", grid: Grid) -> Settings:
  """Return how the rows of a grid are decoded."""
  ids, texts = model.stops()
  return Settings(grid.max_new_tokens, Sampling(grid.temperature), ids, texts)


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
  if settings.stop_ids or settings.stop_texts:
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


def cut(
  model: "Model", rows: Sequence[Row], settings: Settings, *, sharing: Sharing = ALL_SHARED
) -> list[list[int]]:
  """Cut rows into the largest tiles that fit into memory."""
  return tiles(rows, tile_rows(model, rows, settings, sharing=sharing))


def tile_rows(
  model: "Model", rows: Sequence[Row], settings: Settings, *, sharing: Sharing = ALL_SHARED
) -> int:
  """Return how many rows a tile may have, so that all fit into memory.

  It depends on the rows, the model, the kind of device and the size of its memory; a run stores it,
  so that it makes the same tiles when it goes on elsewhere.
  """
  limit = memory_limit(model.mesh)
  sizes = levels(most_rows(model.mesh))
  failed: list[list[int]] = []
  for size in sizes:
    tiled = tiles(rows, size)
    if tiled == failed:  # tiles are of equal size, so several of the largest sizes make the same
      continue
    # The tile that takes most: of those with the most rows the one with the most tokens.
    largest = max(tiled, key=lambda tile: (len(tile), sum(len(rows[n].ids) for n in tile)))
    if size == sizes[-1] or _surely_fits(model, [rows[n] for n in largest], settings, limit):
      return size
    table = None if model.mesh else PROGRAMS
    planned = plan_tile(model, rows, largest, settings, sharing=sharing, table=table)
    if planned.peak_bytes <= limit:
      return size
    failed = tiled
  raise AssertionError("the smallest size is always taken")


def _surely_fits(model: "Model", rows: Sequence[Row], settings: Settings, limit: int) -> bool:
  """Whether a tile fits even if its rows share nothing, which takes no dry run to know.

  On a mesh all but the parameters is taken to lie on one device, so that it is an upper bound.
  """
  arch = model.arch
  item = model.params["blocks"][0]["k_DKH"].dtype.itemsize
  token_bytes = 2 * item * arch.num_blocks * arch.num_kv_heads * arch.head_dim
  longest = length_bucket(max(len(row.ids) for row in rows))
  # Prompts and caches twice: while they are copied, the old ones are still there.
  slots = 2 * row_bucket(len(rows)) * (longest + settings.max_new_tokens)
  logits = 4 * 4 * row_bucket(len(rows)) * arch.vocab_size
  block = 4 * BATCH_TOKENS * (2 * arch.num_heads * 2 * longest + 4 * arch.ffw_width)
  stream = 4 * 4 * row_bucket(len(rows)) * longest * arch.width
  return params_bytes(model.params) + token_bytes * slots + logits + block + stream <= limit


def plan(
  model: "Model",
  grid: Grid,
  *,
  lengths: Sequence[int] | None = None,
  sharing: Sharing = ALL_SHARED,
  early_ends: bool = False,
) -> Plan:
  """Work out how a grid will be run, without running any of it.

  Programs are those of a run whose answers are as long as assumed. Where answers end earlier, the
  batch shrinks, and each size that it comes to has a decoding program of its own. They are many
  (sizes times lengths of caches) and few are needed, so they are listed if asked for; `pj.run`
  compiles those that come up, the likely next one in the background. What moves rows and caches
  from one size to another ("leave out", "take classes", "lengthen") is listed for the first step
  from the whole batch: each takes some hundredths of a second to compile.

  Args:
    model: the model.
    grid: the grid.
    lengths: answer lengths to reckon with, in tokens, such as `n_tokens` of an earlier run; a
      row's is drawn from them, with the grid's seed. Default: every answer takes its budget.
    sharing: what rows may have in common (`engine.tree.Sharing`), to see what each kind saves;
      `pj.run` shares all.
    early_ends: whether to list the programs of smaller batches too (`Plan.early_needs`), for
      `pj.compile` to compile. Tracing and compiling them can take longer than the run.

  Returns:
    The plan; print it.

  Raises:
    ValueError: as `pj.run`; or `lengths` holds none, or one that is no integer of at least 1.
  """
  _, rows = grid_rows(model, grid, decide_gates=False)
  settings = grid_settings(model, grid)
  assumed = "every answer takes its whole budget"
  length_R = np.full(len(rows), grid.max_new_tokens)
  if lengths is not None:
    if isinstance(lengths, str) or not isinstance(lengths, Iterable):
      raise ValueError(f"lengths={lengths!r}: give a list of answer lengths in tokens.")
    given = np.asarray([as_whole(f"lengths[{i}]", n, 1) for i, n in enumerate(lengths)], int)
    if not given.size:
      raise ValueError("lengths=[]: give answer lengths in tokens, each at least 1.")
    drawn = np.random.default_rng(derive_seed(grid.seed, "lengths")).choice(given, len(rows))
    length_R = np.minimum(drawn, grid.max_new_tokens)
    assumed = f"answers are as long as the {given.size} given (mean {given.mean():.1f} tokens)"
  reading = Dry()
  read_dry(model, rows, reading)
  rows, undecided = taken_as_on(rows)
  tiled = cut(model, rows, settings, sharing=sharing)
  whole = Tree(rows, [len(row.ids) - 1 for row in rows], min_run=1)
  return Plan(
    grid,
    f"{model.identity.name} in {model.dtype}",
    model.arch.num_blocks,
    tuple(len(row.ids) for row in rows),
    tuple(
      plan_tile(
        model,
        rows,
        tile,
        settings,
        lengths=length_R[tile].tolist(),
        sharing=sharing,
        early_ends=early_ends,
      )
      for tile in tiled
    ),
    whole.passes(model.arch.num_blocks),
    memory_limit(model.mesh),
    params_bytes(model.params),
    assumed,
    undecided,
    tuple(reading),
  )
