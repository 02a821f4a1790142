"""Turns lists of edits, one list a row, into one `EditTable`.

Rows may have different edits in different orders at a site. Their kinds are laid out as one chain
of stages that every row's list is a part of; a row has neutral slots in stages that it skips.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.edit import Edit
from persona_jax.edits.learned import array_hash
from persona_jax.edits.ramp import NUM_NUMBERS, STEADY
from persona_jax.edits.table import (
  ALL_ROLES,
  HEAD_SITE,
  MAX_SLOTS,
  AddEdit,
  AffineEdit,
  CustomEdit,
  EditTable,
  FeatureEdit,
  ProjEdit,
  RotateEdit,
  Site,
  Stage,
  When,
  Where,
  windows,
)
from persona_jax.edits.window import Window
from persona_jax.models.arch import Arch

RowEdits = Edit | Sequence[Edit] | None


class HasArch(Protocol):
  """Anything with an architecture: a `Model`."""

  @property
  def arch(self) -> Arch: ...


# Per kind: the stage, and for each number of an edit the leaf that holds it and its value in a slot
# that does nothing. Axes after [B, S] are those of the number.
SLOT_NUMBERS: Mapping[str, tuple[Any, Mapping[str, tuple[str, Any]]]] = {
  "proj": (
    ProjEdit,
    {
      "p": ("p_BSD", 0.0),
      "beta": ("beta_BS", 0.0),
      "shift": ("shift_BS", 0.0),
      "lo": ("lo_BS", -np.inf),
      "hi": ("hi_BS", np.inf),
      "above": ("above_BS", -np.inf),
      "below": ("below_BS", np.inf),
    },
  ),
  "rotate": (
    RotateEdit,
    {
      "pair": ("pair_BS2D", 0.0),
      "angle": ("angle_BS", 0.0),
      "to": ("to_BS", False),
      "above": ("above_BS", -np.inf),
    },
  ),
  "feature": (
    FeatureEdit,
    {
      "encode": ("encode_BSD", 0.0),
      "decode": ("decode_BSD", 0.0),
      "bias": ("bias_BS", 0.0),
      "threshold": ("threshold_BS", 0.0),
      "beta": ("beta_BS", 0.0),
      "shift": ("shift_BS", 0.0),
      "lo": ("lo_BS", -np.inf),
      "hi": ("hi_BS", np.inf),
    },
  ),
}


class _Placed(NamedTuple):
  """An edit at one of its blocks: the i-th."""

  edit: Edit
  i: int


class _Key(NamedTuple):
  """What edits must share to be slots of one stage; `shared` is the one that fills it alone."""

  kind: str
  keep_norm: bool
  shared: str


_STAGES = {kind: made for kind, (made, _) in SLOT_NUMBERS.items()} | {
  "affine": AffineEdit,
  "custom": CustomEdit,
}


def _key(placed: _Placed) -> _Key:
  """Return the key of an edit at one of its blocks, where a map may be another than elsewhere."""
  edit, i = placed
  shared = ""
  if edit.kind == "affine":
    shared = array_hash(*(edit.numbers[name][i] for name in ("in", "bias", "out")))
  elif edit.call is not None:
    shared = f"{edit.direction_hash} {id(edit.call[0])}"
  return _Key(edit.kind, edit.norm_kept, shared)


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


def _alone(key: _Key) -> bool:
  """Whether a stage holds one edit a row: its length is restored after it, or it has no slots."""
  return key.keep_norm or bool(key.shared)


def _take(row: collections.deque[_Placed], key: _Key) -> list[_Placed]:
  """Take from the front of a row what the next stage, of this key, carries out."""
  taken: list[_Placed] = []
  while row and _key(row[0]) == key and not (taken and _alone(key)):
    taken.append(row.popleft())
  return taken


def _chain(
  placed_B: Iterable[Iterable[_Placed]], like: Site | None
) -> tuple[list[_Key], list[list[list[_Placed]]], bool]:
  """Lay the edits of every row out in stages.

  Args:
    placed_B: the edits of each row, in order.
    like: the stages there are; None to find them: always the one that most rows need next.

  Returns:
    The stages' keys, for each stage the edits of each row, and whether all found a place.
  """
  rows = [collections.deque(placed) for placed in placed_B]
  keys: list[_Key] = []
  stages: list[list[list[_Placed]]] = []

  def carry_out(key: _Key) -> None:
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


def _key_of(stage: Stage) -> _Key:
  """Return a key for a stage that no row needs; a shared one's is no edit's."""
  kind = next(kind for kind, made in _STAGES.items() if isinstance(stage, made))
  keep_norm = not isinstance(stage, AddEdit) and stage.keep_norm_B is not None
  return _Key(kind, keep_norm, "no edit" if kind in ("affine", "custom") else "")


def _serves(stage: Stage, placed: _Placed) -> bool:
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
    old, new = (jax.eval_shape(lambda x=x: x) for x in (stage.params, _arrays(params)))
    return stage.fn.func == fn and old == new
  return True


def _arrays(params: Any) -> Any:
  return jax.tree.map(jnp.asarray, params)


def _slots_needed(placed_B: Iterable[Sequence[_Placed]]) -> int:
  return max(sum(placed.edit.num_slots for placed in row) for row in placed_B)


def _power_of_two(needed: int) -> int:
  """Return a number of slots, few different ones so that few programs serve all."""
  return 1 << max(0, needed - 1).bit_length()


def _room(needed: int, where: Where, like: Stage | None) -> int:
  """Return the slots of a stage: those of `like`, or a power of two."""
  if like is None:
    return _power_of_two(needed)
  given = windows(like)[0].shape[-1]
  if needed > given:
    raise ValueError(
      f"like= has {given} slots at site {where[0]!r} of block {where[1]}; the new edits "
      f"need {needed}."
    )
  return int(given)


def _gate(edit: Edit) -> float:
  if not isinstance(edit.gate, float):
    raise ValueError(
      f"edit {edit.op!r} depends on its prompt; generate, score, capture and run decide that by "
      "themselves, for pj.forward call pj.resolve_gates(model, prompts, edits) first."
    )
  return edit.gate


def _add_stage(
  slots_B: Sequence[Sequence[_Placed]], shape: tuple[int, ...], where: Where, like: Stage | None
) -> AddEdit:
  """Merge additions per window; `shape` is (D,), or (N, H) at heads."""
  num_rows, heads = len(slots_B), shape[:-1]
  # The heads an edit acts on are a window's too: unchosen ones stay untouched, bit by bit.
  merged: list[dict[tuple[Window, bytes], np.ndarray]] = []
  for slots in slots_B:
    by_window: dict[tuple[Window, bytes], np.ndarray] = {}
    for edit, i in slots:
      if _gate(edit) == 0:
        continue  # switched off: no token counts as edited
      delta = _gate(edit) * edit.delta_LD[i]
      mask_N = edit.head_mask_N
      key = edit.window, b"" if mask_N is None else mask_N.tobytes()
      by_window[key] = by_window.get(key, 0.0) + delta
    merged.append(by_window)
  num = _room(max(len(found) for found in merged), where, like)
  u = np.full((num_rows, *heads, num, shape[-1]), -0.0, np.float32)
  start, stop, roles = (np.zeros((num_rows, *heads, num), np.int32) for _ in range(3))
  for b, found in enumerate(merged):
    for w, ((window, mask), delta) in enumerate(found.items()):
      on = np.frombuffer(mask, bool) if heads else ...
      u[b, ..., w, :] = np.where(delta == 0, -0.0, delta)  # a coefficient of 0 keeps every bit
      start[b, on, w], stop[b, on, w] = window.interval
      roles[b, on, w] = window.role_mask
  return AddEdit(*map(jnp.asarray, (u, start, stop, roles)))


def _when(
  slots_B: Sequence[Sequence[_Placed]], heads: tuple[int, ...], num: int, ramped: bool
) -> When:
  num_rows = len(slots_B)
  start, stop, roles = (np.zeros((num_rows, *heads, num), np.int32) for _ in range(3))
  gate = np.zeros((num_rows, *heads, num), np.float32)
  ramp = np.broadcast_to(
    np.asarray(STEADY, np.float32), (num_rows, *heads, num, NUM_NUMBERS)
  ).copy()
  for b, slots in enumerate(slots_B):
    s = 0
    for edit, _ in slots:
      on = edit.head_mask_N if heads and edit.head_mask_N is not None else ...
      for _ in range(edit.num_slots):
        start[b, on, s], stop[b, on, s] = edit.window.interval
        roles[b, on, s] = edit.window.role_mask
        gate[b, on, s] = _gate(edit)
        if edit.ramp is not None:
          ramp[b, on, s, :] = edit.ramp.numbers
        s += 1
  return When(
    jnp.asarray(start),
    jnp.asarray(stop),
    jnp.asarray(roles),
    jnp.asarray(gate),
    jnp.asarray(ramp) if ramped else None,
  )


def _slot_stage(
  key: _Key,
  slots_B: Sequence[Sequence[_Placed]],
  shape: tuple[int, ...],
  where: Where,
  like: Stage | None,
) -> Stage:
  """Fill the slots of one stage for every row."""
  num_rows, heads = len(slots_B), shape[:-1]
  num = _room(_slots_needed(slots_B), where, like)
  ramped = any(edit.ramp is not None for slots in slots_B for edit, _ in slots)
  if like is not None:
    assert not isinstance(like, AddEdit)
    if ramped and like.when.ramp_BSR is None:
      raise ValueError(f"like= has no ramp at site {where[0]!r} of block {where[1]}.")
    ramped = like.when.ramp_BSR is not None
  made, spec = SLOT_NUMBERS[key.kind]
  leaves: dict[str, Any] = {}
  across: tuple[Any, ...] = (slice(None),) * len(heads)
  for name, (leaf, neutral) in spec.items():
    vector = (2, shape[-1]) if leaf.endswith("2D") else shape[-1:] if leaf.endswith("D") else ()
    dtype = bool if neutral is False else np.float32
    filled = np.full((num_rows, *heads, num, *vector), neutral, dtype)
    for b, slots in enumerate(slots_B):
      s = 0
      for edit, i in slots:
        for k in range(edit.num_slots):
          # A number is [X, …]; the axis of slots comes after that of heads.
          filled[(b, *across, s)] = edit.numbers[name][i, k]
          s += 1
    leaves[leaf] = jnp.asarray(filled)
  if key.kind == "proj":
    p = np.asarray(leaves["p_BSD"], np.float64)
    leaves["gram_BSS"] = jnp.asarray((p @ np.swapaxes(p, -1, -2)).astype(np.float32))
  stage: Stage = made(
    **leaves,
    keep_norm_B=_norm_kept(key, slots_B, heads),
    when=_when(slots_B, heads, num, ramped),
  )
  return stage


def _norm_kept(
  key: _Key, slots_B: Sequence[Sequence[_Placed]], heads: tuple[int, ...]
) -> jax.Array | None:
  """Return which rows keep their length, [B] or [B, N]; None where the stage keeps none."""
  if not key.keep_norm:
    return None
  has_B = np.asarray([bool(slots) for slots in slots_B]).reshape(-1, *(1 for _ in heads))
  return jnp.asarray(np.broadcast_to(has_B, (len(slots_B), *heads)))


def _shared_stage(
  key: _Key, slots_B: Sequence[Sequence[_Placed]], shape: tuple[int, ...], like: Stage | None
) -> Stage:
  """Make the stage of a map or function that its rows share."""
  heads = shape[:-1] if key.kind == "affine" else ()
  ramped = any(edit.ramp is not None for slots in slots_B for edit, _ in slots)
  if like is not None:
    assert not isinstance(like, AddEdit)
    if ramped and like.when.ramp_BSR is None:
      raise ValueError("like= has no ramp where the new edits have one.")
    ramped = like.when.ramp_BSR is not None
  rest: dict[str, Any] = {
    "keep_norm_B": _norm_kept(key, slots_B, heads),
    "when": _when(slots_B, heads, 1, ramped),
  }
  placed = next((slots[0] for slots in slots_B if slots), None)
  if placed is None:  # every row skips it: what it would do does not matter, only its shape
    assert isinstance(like, AffineEdit | CustomEdit)
    return like._replace(**rest)
  edit, i = placed
  if key.kind == "affine":
    in_DR, bias_R, out_RD = (
      jnp.asarray(edit.numbers[name][i, 0], jnp.float32) for name in ("in", "bias", "out")
    )
    return AffineEdit(in_DR, bias_R, out_RD, **rest)
  assert edit.call is not None
  fn, params = edit.call
  return CustomEdit(jax.tree_util.Partial(fn), _arrays(params), **rest)


def _make_site(
  placed_B: Sequence[Sequence[_Placed]], shape: tuple[int, ...], where: Where, like: Site | None
) -> Site:
  needed = _slots_needed(placed_B)
  if needed > MAX_SLOTS:
    raise ValueError(
      f"{needed} edits meet at site {where[0]!r} of block {where[1]}; at most {MAX_SLOTS} may."
    )
  only_add = all(edit.is_plain_addition for row in placed_B for edit, _ in row)
  if like is None and only_add or like is not None and like.add is not None:
    if not only_add:
      raise ValueError(f"like= has only additions at site {where}; the new edits do more there.")
    proto = None if like is None else like.add
    return Site(add=_add_stage(placed_B, shape, where, proto))
  keys, stages, fits = _chain(placed_B, like)
  if not fits:
    raise ValueError(
      f"like= has the stages {[k.kind for k in keys]} at site {where[0]!r} of block {where[1]}; "
      "the new edits need others, or another order."
    )
  protos = [None] * len(keys) if like is None else list(like.stages)
  made = tuple(
    _shared_stage(key, slots_B, shape, proto)
    if key.shared
    else _slot_stage(key, slots_B, shape, where, proto)
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
      exist, more than 8 edits meet at a site, an amount per row has another number of rows, an edit
      depends on the prompt, or the edits do not fit `like`.
  """
  rows, arch = as_rows(edits_per_row), model.arch
  at_site: dict[Where, list[list[_Placed]]] = {}
  for b, row in enumerate(rows):
    for edit in row:
      _check_fit(edit, arch)
      for i, block in enumerate(edit.blocks):
        at_site.setdefault((edit.site, block), [[] for _ in rows])[b].append(_Placed(edit, i))
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
