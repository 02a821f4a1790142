"""Turns lists of edits, one list a row, into one `EditTable`."""

from collections.abc import Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from persona_jax.edits.edit import Edit
from persona_jax.edits.table import ALL_ROLES, MAX_SLOTS, AddEdit, EditTable, ProjEdit, Site
from persona_jax.edits.window import Window
from persona_jax.models.arch import Arch

RowEdits = Edit | Sequence[Edit] | None


class HasArch(Protocol):
  """Anything with an architecture: a `Model`."""

  @property
  def arch(self) -> Arch: ...


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


def _num_slots(needed: int, where: tuple[str, int], like: Site | None) -> int:
  """Return the slots of a site: of `like`, or a power of two, so that few programs serve all."""
  if needed > MAX_SLOTS:
    raise ValueError(
      f"{needed} edits meet at site {where[0]!r} of block {where[1]}; at most {MAX_SLOTS} may."
    )
  if like is None:
    return 1 << max(0, needed - 1).bit_length()
  given = like.num_slots
  if needed > given:
    raise ValueError(
      f"like= has {given} slots at site {where[0]!r} of block {where[1]}; the new edits "
      f"need {needed}."
    )
  return given


def _add_site(
  slots_B: list[list[tuple[Edit, int]]], width: int, where: tuple[str, int], like: Site | None
) -> AddEdit:
  num_rows = len(slots_B)
  merged: list[dict[Window, np.ndarray]] = []
  for slots in slots_B:
    by_window: dict[Window, np.ndarray] = {}
    for edit, i in slots:
      delta_D = edit.shift_L[i] * edit.unit_LD[i].astype(np.float64)
      by_window[edit.window] = by_window.get(edit.window, 0.0) + delta_D
    merged.append(by_window)
  num = _num_slots(max(len(windows) for windows in merged), where, like)
  u_BWD = np.full((num_rows, num, width), -0.0, np.float32)
  start, stop, roles = (np.zeros((num_rows, num), np.int32) for _ in range(3))
  for b, windows in enumerate(merged):
    for w, (window, delta_D) in enumerate(windows.items()):
      u_BWD[b, w] = np.where(delta_D == 0, -0.0, delta_D)  # a coefficient of 0 keeps every bit
      start[b, w], stop[b, w] = window.interval
      roles[b, w] = window.role_mask
  return AddEdit(*map(jnp.asarray, (u_BWD, start, stop, roles)))


def _proj_site(
  slots_B: list[list[tuple[Edit, int]]], width: int, where: tuple[str, int], like: Site | None
) -> ProjEdit:
  num_rows = len(slots_B)
  num = _num_slots(max(len(slots) for slots in slots_B), where, like)
  p_BSD = np.zeros((num_rows, num, width), np.float32)
  beta, shift = (np.zeros((num_rows, num), np.float32) for _ in range(2))
  lo = np.full((num_rows, num), -np.inf, np.float32)
  hi = np.full((num_rows, num), np.inf, np.float32)
  start, stop, roles = (np.zeros((num_rows, num), np.int32) for _ in range(3))
  for b, slots in enumerate(slots_B):
    for s, (edit, i) in enumerate(slots):
      p_BSD[b, s] = edit.unit_LD[i]
      beta[b, s] = edit.beta
      shift[b, s] = edit.shift_L[i]
      lo[b, s] = edit.lo_L[i]
      hi[b, s] = edit.hi_L[i]
      start[b, s], stop[b, s] = edit.window.interval
      roles[b, s] = edit.window.role_mask
  gram_BSS = np.einsum("BRD,BSD->BRS", p_BSD.astype(np.float64), p_BSD).astype(np.float32)
  return ProjEdit(*map(jnp.asarray, (p_BSD, gram_BSS, beta, shift, lo, hi, start, stop, roles)))


def compile_edits(
  model: HasArch, edits_per_row: Sequence[RowEdits], *, like: EditTable | None = None
) -> EditTable:
  """Build the table that a batch of rows threads through the model.

  Args:
    model: anything with `.arch`; widths and block numbers are checked against it.
    edits_per_row: per row None, one edit or several; several act in list order, as hooks would.
    like: a table whose shape (sites, kinds, slots) the new one takes, so that a program traced with
      the one serves the other.

  Returns:
    The table; leaves have B = len(edits_per_row) rows.

  Raises:
    ValueError: a direction has another width or number of blocks than the model, a block does not
      exist, more than 8 edits meet at a site, an amount per row has another number of rows, or the
      edits do not fit `like`.
  """
  rows, arch = as_rows(edits_per_row), model.arch
  at_site: dict[tuple[str, int], list[list[tuple[Edit, int]]]] = {}
  for b, row in enumerate(rows):
    for edit in row:
      if edit.unit_LD.shape[1] != arch.width:
        raise ValueError(
          f"direction {edit.concept!r} has width {edit.unit_LD.shape[1]}; "
          f"this model's is {arch.width}."
        )
      if edit.num_blocks != arch.num_blocks:
        raise ValueError(
          f"direction {edit.concept!r} has {edit.num_blocks} blocks; this model has "
          f"{arch.num_blocks}."
        )
      arch.block_numbers(edit.blocks)
      for i, block in enumerate(edit.blocks):
        slots_B = at_site.setdefault((edit.site, block), [[] for _ in rows])
        slots_B[b].append((edit, i))
  if like is not None:
    extra = set(at_site) - set(like.sites)
    if extra:
      raise ValueError(f"like= has sites {sorted(like.sites)}, not {sorted(extra)}.")
    for where in like.sites:
      at_site.setdefault(where, [[] for _ in rows])
  sites = {}
  for where in sorted(at_site):
    slots_B = at_site[where]
    proto = like.sites[where] if like is not None else None
    only_add = all(edit.op == "add" for slots in slots_B for edit, _ in slots)
    if proto is not None and proto.add is not None and not only_add:
      raise ValueError(f"like= has only additions at site {where}; the new edits do more there.")
    if only_add and (proto is None or proto.add is not None):
      sites[where] = Site(add=_add_site(slots_B, arch.width, where, proto))
    else:
      sites[where] = Site(proj=_proj_site(slots_B, arch.width, where, proto))
  return EditTable(sites)


def needs_roles(table: EditTable) -> bool:
  """Return whether some window of a concrete table asks for certain roles."""
  for site in table.sites.values():
    start, stop, roles = site.windows
    used = np.asarray(start) < np.asarray(stop)
    if np.any(used & (np.asarray(roles) != ALL_ROLES)):
      return True
  return False
