"""Turns lists of edits, one list a row, into one `EditTable`.

Rows may have different edits in different orders at a site. Their kinds are laid out as one chain
of stages that every row's list is a part of; a row has neutral slots in stages that it skips.
"""

import collections
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

import jax
import numpy as np

from persona_jax.edits.edit import Edit
from persona_jax.edits.learned import array_hash
from persona_jax.edits.stages import (
  SLOT_NUMBERS,
  Key,
  Placed,
  add_stage,
  as_arrays,
  shared_stage,
  slot_stage,
  slots_needed,
)
from persona_jax.edits.table import (
  ALL_ROLES,
  HEAD_SITE,
  MAX_SLOTS,
  AddEdit,
  AffineEdit,
  CustomEdit,
  EditTable,
  ProjEdit,
  Site,
  Stage,
  Where,
  windows,
)
from persona_jax.models.arch import Arch

RowEdits = Edit | Sequence[Edit] | None


class HasArch(Protocol):
  """Anything with an architecture: a `Model`."""

  @property
  def arch(self) -> Arch: ...


_STAGES = {kind: made for kind, (made, _) in SLOT_NUMBERS.items()} | {
  "affine": AffineEdit,
  "custom": CustomEdit,
}


def _key(placed: Placed) -> Key:
  """Return the key of an edit at one of its blocks, where a map may be another than elsewhere."""
  edit, i = placed
  shared = ""
  if edit.kind == "affine":
    shared = array_hash(*(edit.numbers[name][i] for name in ("in", "bias", "out")))
  elif edit.call is not None:
    shared = f"{edit.direction_hash} {id(edit.call[0])}"
  return Key(edit.kind, edit.norm_kept, shared)


def as_rows(edits_per_row: Sequence[RowEdits]) -> list[tuple[Edit, ...]]:
  """Normalise each row's edits (None, one edit, or several) to a tuple; resolve amounts per row.

  Raises:
    ValueError: an item is no edit, or amounts were given for another number of rows.
  """
  rows = []
  for b, edits in enumerate(edits_per_row):
    row = () if edits is None else (edits,) if isinstance(edits, Edit) else tuple(edits)
    wrong = [type(e).__name__ for e in row if not isinstance(e, Edit)]
    if wrong:
      raise ValueError(f"row {b}: edits must be made by pj.add and its kin, got {wrong}.")
    rows.append(tuple(edit.at_row(b, len(edits_per_row)) for edit in row))
  return rows


def _alone(key: Key) -> bool:
  """Whether a stage holds one edit a row: its length is restored after it, or it has no slots."""
  return key.keep_norm or bool(key.shared)


def _take(row: collections.deque[Placed], key: Key) -> list[Placed]:
  """Take from the front of a row what the next stage, of this key, carries out."""
  taken: list[Placed] = []
  while row and _key(row[0]) == key and not (taken and _alone(key)):
    taken.append(row.popleft())
  return taken


def _chain(
  placed_B: Iterable[Iterable[Placed]], like: Site | None
) -> tuple[list[Key], list[list[list[Placed]]], bool]:
  """Lay the edits of every row out in stages.

  Args:
    placed_B: the edits of each row, in order.
    like: the stages there are; None to find them: always the one that most rows need next.

  Returns:
    The stages' keys, for each stage the edits of each row, and whether all found a place.
  """
  rows = [collections.deque(placed) for placed in placed_B]
  keys: list[Key] = []
  stages: list[list[list[Placed]]] = []

  def carry_out(key: Key) -> None:
    keys.append(key)
    stages.append([_take(row, key) for row in rows])

  if like is not None:
    for stage in like.stages:
      fronts = (row[0] for row in rows if row)
      carry_out(next((_key(f) for f in fronts if _serves(stage, f)), _key_of(stage)))
  else:
    while counts := collections.Counter(_key(row[0]) for row in rows if row):
      carry_out(counts.most_common(1)[0][0])
  return keys, stages, not any(rows)


def _key_of(stage: Stage) -> Key:
  """Return a key for a stage that no row needs; a shared one's is no edit's."""
  kind = next(kind for kind, made in _STAGES.items() if isinstance(stage, made))
  keep_norm = not isinstance(stage, AddEdit) and stage.keep_norm_B is not None
  return Key(kind, keep_norm, "no edit" if kind in ("affine", "custom") else "")


def _serves(stage: Stage, placed: Placed) -> bool:
  """Whether an edit is data to a stage, so that a program traced for the one serves the other."""
  edit, i = placed
  if isinstance(stage, AddEdit) or not isinstance(stage, _STAGES[edit.kind]):
    return False
  if edit.norm_kept != (stage.keep_norm_B is not None):
    return False
  if isinstance(stage, AffineEdit):
    return stage.in_DR.shape == edit.numbers["in"][i, 0].shape
  if isinstance(stage, CustomEdit):
    assert edit.call is not None
    fn, params = edit.call
    old, new = (jax.eval_shape(lambda x=x: x) for x in (stage.params, as_arrays(params)))
    return stage.fn.func == fn and old == new
  return True


def _make_site(
  placed_B: Sequence[Sequence[Placed]], shape: tuple[int, ...], where: Where, like: Site | None
) -> Site:
  needed = slots_needed(placed_B)
  if needed > MAX_SLOTS:
    raise ValueError(
      f"{needed} edits meet at site {where[0]!r} of block {where[1]}; at most {MAX_SLOTS} may."
    )
  only_add = all(edit.is_plain_addition for row in placed_B for edit, _ in row)
  if like is None and only_add or like is not None and like.add is not None:
    if not only_add:
      raise ValueError(f"like= has only additions at site {where}; the new edits do more there.")
    proto = None if like is None else like.add
    return Site(add=add_stage(placed_B, shape, where, proto))
  keys, stages, fits = _chain(placed_B, like)
  if not fits:
    raise ValueError(
      f"like= has the stages {[k.kind for k in keys]} at site {where[0]!r} of block {where[1]}; "
      "the new edits need others, or another order."
    )
  protos = [None] * len(keys) if like is None else list(like.stages)
  made = tuple(
    shared_stage(key, slots_B, shape, proto)
    if key.shared
    else slot_stage(key, slots_B, shape, where, proto)
    for key, slots_B, proto in zip(keys, stages, protos, strict=True)
  )
  if len(made) == 1 and isinstance(made[0], ProjEdit):
    return Site(proj=made[0])
  return Site(chain=made)


def _check_fit(edit: Edit, arch: Arch) -> None:
  """Raise a ValueError where an edit was made for a model of other sizes."""
  expected = arch.site_width(edit.site)
  heads = None if edit.head_mask_N is None else edit.head_mask_N.size
  if edit.width is not None and edit.width != expected:
    raise ValueError(
      f"direction {edit.concept!r} has width {edit.width}; this model's is {expected} at site "
      f"{edit.site!r}."
    )
  if heads not in (None, arch.num_heads):
    raise ValueError(f"direction {edit.concept!r} has {heads} heads; this model {arch.num_heads}.")
  if edit.num_blocks not in (None, arch.num_blocks):
    raise ValueError(
      f"direction {edit.concept!r} has {edit.num_blocks} blocks; this model has {arch.num_blocks}."
    )
  arch.block_numbers(edit.blocks)


def check_calls(edits: Iterable[Edit], arch: Arch) -> None:
  """Trace the functions of custom edits on one token, as a step of decoding will.

  Raises:
    ValueError: a function changes the shape; or what it raises itself.
  """
  for edit in edits:
    if edit.call is not None:
      fn, params = edit.call
      width = (arch.num_heads, arch.head_dim) if edit.site == HEAD_SITE else (arch.width,)
      h = jax.ShapeDtypeStruct((1, 1, *width), np.float32)
      offset_BT = jax.ShapeDtypeStruct((1, 1), np.int32)
      out = jax.eval_shape(fn, h, as_arrays(params), offset_BT)
      if np.shape(out) != h.shape:
        raise ValueError(
          f"custom edit {edit.concept!r} turns shape {h.shape} into {np.shape(out)}; it must stay."
        )


def compile_edits(
  model: HasArch,
  edits_per_row: Sequence[RowEdits],
  *,
  like: EditTable | None = None,
  blocks: Container[int] | None = None,
) -> EditTable:
  """Build the table that a batch of rows threads through the model.

  Args:
    model: anything with `.arch`; widths and block numbers are checked against it.
    edits_per_row: per row None, one edit or several; several act in list order, as hooks would.
    like: a table whose shape (sites, kinds, slots) the new one takes, so that a program traced with
      the one serves the other.
    blocks: those whose sites are wanted, for a pass through them alone; default all.

  Returns:
    The table; leaves have B = len(edits_per_row) rows.

  Raises:
    ValueError: a direction has another width or number of blocks than the model, a block does not
      exist, more than 8 edits meet at a site, an amount per row has another number of rows, an edit
      depends on the prompt, or the edits do not fit `like`.
  """
  rows, arch = as_rows(edits_per_row), model.arch
  for edit in {id(edit): edit for row in rows for edit in row}.values():
    _check_fit(edit, arch)
  at_site: dict[Where, list[list[Placed]]] = {}
  for b, row in enumerate(rows):
    for edit in row:
      for i, block in enumerate(edit.blocks):
        if blocks is None or block in blocks:
          where = edit.site, block
          if where not in at_site:
            at_site[where] = [[] for _ in rows]
          at_site[where][b].append(Placed(edit, i))
  if like is not None:
    extra = set(at_site) - set(like.sites)
    if extra:
      raise ValueError(f"like= has sites {sorted(like.sites)}, not {sorted(extra)}.")
    for where in like.sites:
      at_site.setdefault(where, [[] for _ in rows])
  sites = {}
  for where in sorted(at_site):
    shape = (arch.num_heads, arch.head_dim) if where[0] == HEAD_SITE else (arch.width,)
    proto = None if like is None else like.sites[where]
    sites[where] = _make_site(at_site[where], shape, where, proto)
  return EditTable(sites)


def needs_roles(table: EditTable) -> bool:
  """Return whether some window of a concrete table asks for certain roles."""
  for site in table.sites.values():
    for stage in site.stages:
      start, stop, roles = (np.asarray(leaf) for leaf in windows(stage))
      if np.any((start < stop) & (roles != ALL_ROLES)):
        return True
  return False
