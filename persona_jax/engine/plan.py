"""`pj.plan`: what a grid will take, found by going through the run with shapes in place of arrays.

Nothing runs on the device and nothing is compiled; prompts are rendered and tokenised, tiles are
cut, and the host code of prefill and decoding is gone through dry (`engine.memory.DryMemory`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.edits.compile import check_calls
from persona_jax.engine.accelerators import Accelerator, Clock, accelerator, duration
from persona_jax.engine.checks import as_whole, check_lengths, naming
from persona_jax.engine.encode import encode_each, interned
from persona_jax.engine.gates import read_dry, settle, taken_as_on
from persona_jax.engine.grid import Cell, Grid, check_grid
from persona_jax.engine.memory import DryMemory, params_bytes, size_text
from persona_jax.engine.need import Need
from persona_jax.engine.rows import Row, derive_seed, make_row
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import TilePlan, cut, limit_of, plan_tile
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

_SHOWN = 4  # shapes of programs of one name in a report


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
  """How a grid will be run; `str(plan)` is the report.

  Attributes:
    grid: the grid.
    model_name: name and dtypes of the model.
    model_hash: of its parameters' file.
    num_blocks: L.
    row_tokens: prompt tokens of each row.
    tiles: the tiles, in order.
    least_passes: fewest token-block passes that give every row its prompt's keys and values.
    memory_bytes: what may be filled.
    params_bytes: of the model.
    assumed: what answers' lengths were taken to be, in words.
    undecided: rows with a gate that only their prompt's activations can decide; taken as on.
    gate_passes: token-block passes that read these prompts, beside `passes`.
    gate_needs: the programs that do.
    gate_bytes: most memory at one time meanwhile, predicted.
    sharing: what rows have in common.
    on: the accelerator that it is made for, or None for the model's device.
    seconds: that it will take there, estimated (`engine.accelerators`); None without one.
  """

  grid: Grid
  model_name: str
  model_hash: str
  num_blocks: int
  row_tokens: tuple[int, ...]
  tiles: tuple[TilePlan, ...]
  least_passes: int
  memory_bytes: int
  params_bytes: int
  assumed: str
  undecided: int
  gate_passes: int = 0
  gate_needs: tuple[Need, ...] = ()
  gate_bytes: int = 0
  sharing: Sharing = ALL_SHARED
  on: Accelerator | None = None
  seconds: float | None = None

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
    return max(self.gate_bytes, *(tile.peak_bytes for tile in self.tiles))

  def __repr__(self) -> str:
    return f"<Plan of {len(self.row_tokens)} rows in {len(self.tiles)} tiles for {self.model_name}>"

  def __str__(self) -> str:
    grid, blocks = self.grid, self.num_blocks
    padded = sum(tile.padded_passes for tile in self.tiles)
    fewer, really = (self.unshared_passes / n if n else 1.0 for n in (self.passes, padded))
    over = self.passes / self.least_passes if self.least_passes else 1.0
    sizes: dict[tuple[int, int], int] = {}
    for tile in self.tiles:
      key = (len(tile.rows), tile.batch)
      sizes[key] = sizes.get(key, 0) + 1
    compared = self.sharing != ALL_SHARED
    switched = [f"sharing   {self.sharing} (pj.run shares all)"] if compared else []
    lines = [
      f"{len(self.row_tokens):,} rows = {len(grid.prompts)} prompts x {len(grid.conditions)} "
      f"conditions x {grid.samples} samples, {self.model_name}",
      *switched,
      f"prompts   {sum(self.row_tokens):,} tokens, {self.unshared_passes / blocks:,.0f} to prefill "
      f"without sharing, {self.passes / blocks:,.0f} with (whole passes of {blocks} blocks; "
      f"{fewer:.2f}x fewer, {over:.2f}x the least possible)",
      f"padding   {self.padding:.1%} of prefill, {padded / blocks:,.0f} tokens with it "
      f"({really:.2f}x fewer than without sharing)",
      f"decoding  {grid.max_new_tokens} tokens a row; {self.wasted_row_steps:.1%} of row-steps "
      f"wasted if {self.assumed}",
      "tiles     "
      + ", ".join(
        f"{count} of {rows} rows (batch {batch})" for (rows, batch), count in sizes.items()
      ),
    ]
    which = " of the first tile" if len(self.tiles) > 1 else ""
    for first, lanes in self.tiles[0].lanes.items():
      shown = " + ".join(f"({p}, {m})" for p, m in lanes)
      lines.append(f"  lanes{which} from block {first}: {shown or 'none: prompts of one token'}")
    lines.append(
      f"memory    {size_text(self.peak_bytes)} at most predicted (parameters "
      f"{size_text(self.params_bytes)}), {size_text(self.memory_bytes)} may be filled"
    )
    if self.on is not None and self.seconds is not None:
      lines.append(f"time      {duration(self.seconds)} estimated on one {self.on.name}")
    if self.undecided:
      lines.append(
        f"gates     {self.undecided} rows have a gate that is decided by their prompt's "
        f"activations when the grid runs ({self.gate_passes / blocks:,.0f} tokens to prefill "
        "before); taken as on here"
      )
    lines.append(f"programs  {len(self.needs)}")
    lines += _listed(self.needs)
    smaller = sorted({size for tile in self.tiles for size in tile.smaller}, reverse=True)
    if early := self.early_needs:
      lines.append(f"          {len(early)} more may be needed if answers end early")
      lines += _listed(early)
    elif smaller:
      lines.append(
        f"          if answers end early, batches shrink to {', '.join(map(str, smaller))} rows; "
        "programs for these are not listed (early_ends=True)"
      )
    return "\n".join(lines)


def _listed(needs: Sequence[Need]) -> list[str]:
  """Return lines that list programs by name: how many there are, and the shapes of some."""
  by_name: dict[str, dict[str, int]] = {}
  for need in needs:
    shapes = by_name.setdefault(need.name, {})
    shapes[need.shapes] = shapes.get(need.shapes, 0) + 1
  lines = []
  for name, shapes in by_name.items():
    shown = list(shapes)[:_SHOWN]
    for n, text in enumerate(shown):
      count = sum(shapes.values()) if n == 0 else ""
      lines.append(f"  {name if n == 0 else '':<16} {count:>3}  {text}")
    if len(shapes) > len(shown):
      lines.append(f"  {'':<16}      and {len(shapes) - len(shown)} other shapes")
  return lines


def model_name(model: "Model") -> str:
  """Return the name of a model and its dtypes, for people."""
  stream = "" if model.resid_dtype == model.dtype else f", residual stream {model.resid_dtype}"
  return f"{model.identity.name} in {model.dtype}{stream}"


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
  conditions = grid.conditions
  edits_of = dict(
    zip((c.name for c in conditions), interned([c.edits for c in conditions]), strict=True)
  )
  for name, edits in edits_of.items():  # before the work: decoding comes last
    with naming(f"condition {name!r}"):
      check_calls(edits, model.arch)
  keys = [(cell.prompt_id, cell.condition.system, cell.condition.prefix) for cell in cells]
  first: dict[tuple[str, str | None, str | None], Cell] = {}  # conditions that steer share chats
  for key, cell in zip(keys, cells, strict=True):
    first.setdefault(key, cell)
  chats: dict[str, Prompt] = {}
  for cell in first.values():
    with naming(f"prompt {cell.name}"):
      chats[f"prompt {cell.name}"] = cell.condition.apply(grid.prompts[cell.prompt_id])
  plain = dict(zip(first, map(make_row, encode_each(model, chats)), strict=True))
  rows = [
    dataclasses.replace(plain[key], edits=edits_of[cell.condition.name], seed=cell.seed)
    for key, cell in zip(keys, cells, strict=True)
  ]
  names = [cell.name for cell in cells]
  check_lengths(model, rows, grid.max_new_tokens, names=names)
  return cells, settle(model, rows, names=names) if decide_gates else rows


def grid_settings(model: "Model", grid: Grid) -> Settings:
  """Return how the rows of a grid are decoded."""
  ids, texts = model.stops()
  return Settings(grid.max_new_tokens, Sampling(grid.temperature), ids, texts)


def plan(
  model: "Model",
  grid: Grid,
  *,
  lengths: Sequence[int] | None = None,
  sharing: Sharing = ALL_SHARED,
  early_ends: bool = False,
  on: str | None = None,
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
    sharing: what rows may have in common, to see what each kind saves; `pj.run` shares all, so
      `pj.compile` takes no plan of another.
    early_ends: whether to list the programs of smaller batches too (`Plan.early_needs`), for
      `pj.compile` to compile. Tracing and compiling them can take longer than the run.
    on: name of an accelerator of `engine.accelerators` ("h200", "h100"), if the plan is for one
      that is not at hand: tiles are cut for its memory, and the seconds are estimated. The model
      may be one without weights (`pj.load(…, weights=False)`). Programs are listed, and caches
      counted, as for this machine's device, on which such a plan is not to be compiled.

  Returns:
    The plan; print it.

  Raises:
    ValueError: as `pj.run`; `lengths` holds none, or one that is no integer of at least 1;
      `sharing` is no `pj.Sharing`; or no accelerator is called `on`.
  """
  if not isinstance(sharing, Sharing):
    raise ValueError(f"sharing={sharing!r}: give a pj.Sharing, such as pj.Sharing(trunk=False).")
  device = None if on is None else accelerator(on)
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
  reading = DryMemory(model.arch, model.params, model.mesh)
  gate_passes = read_dry(model, rows, reading)
  rows, undecided = taken_as_on(rows)
  tiled = cut(model, rows, settings, sharing=sharing, on=device)
  whole = Tree(rows, [len(row.ids) - 1 for row in rows], min_run=1)
  blocks = model.arch.num_blocks
  row_tokens = tuple(len(row.ids) for row in rows)
  planned = tuple(
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
  )
  seconds = None
  if device is not None:
    clock = Clock(model.params, model.arch, device)
    seconds = clock.tiles(planned, row_tokens, blocks) + clock.prefill(gate_passes / blocks)
  return Plan(
    grid,
    model_name(model),
    model.identity.sha256,
    blocks,
    row_tokens,
    planned,
    whole.passes(blocks),
    limit_of(model, device),
    params_bytes(model.params),
    assumed,
    undecided,
    gate_passes,
    tuple(reading),
    reading.peak_bytes,
    sharing,
    device,
    seconds,
  )
