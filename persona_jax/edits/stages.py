"""Fills the stages of a site's chain: arrays of which each row has its slots, or a neutral one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.edit import Edit
from persona_jax.edits.ramp import NUM_NUMBERS, STEADY
from persona_jax.edits.table import (
  AddEdit,
  AffineEdit,
  CustomEdit,
  FeatureEdit,
  ProjEdit,
  RotateEdit,
  Stage,
  When,
  Where,
  windows,
)
from persona_jax.edits.window import Window

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


class Placed(NamedTuple):
  """An edit at one of its blocks: the i-th."""

  edit: Edit
  i: int


class Key(NamedTuple):
  """What edits must share to be slots of one stage; `shared` is the one that fills it alone."""

  kind: str
  keep_norm: bool
  shared: str


def as_arrays(params: Any) -> Any:
  """Return the parameters of a function as JAX arrays."""
  return jax.tree.map(jnp.asarray, params)


def slots_needed(placed_B: Iterable[Sequence[Placed]]) -> int:
  """Return the most slots that a row needs."""
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


def _by_window(slots: Sequence[Placed]) -> dict[tuple[Window, bytes], np.ndarray]:
  """Add up what a row's additions add, for each window and set of heads."""
  found: dict[tuple[Window, bytes], np.ndarray] = {}
  for edit, i in slots:
    if _gate(edit) == 0:
      continue  # switched off: no token counts as edited
    delta = _gate(edit) * edit.delta_LD[i]
    mask_N = edit.head_mask_N
    key = edit.window, b"" if mask_N is None else mask_N.tobytes()
    found[key] = found.get(key, 0.0) + delta
  return found


def _distinct(
  slots_B: Sequence[Sequence[Placed]],
) -> tuple[list[Sequence[Placed]], np.ndarray]:
  """Return what is distinct among rows, and which of it each row has, int [B].

  Rows of a condition have the same edits: their numbers are laid out once and copied.
  """
  place: dict[tuple[tuple[int, int], ...], int] = {}
  distinct: list[Sequence[Placed]] = []
  index_B = np.empty(len(slots_B), int)
  for b, slots in enumerate(slots_B):
    same = tuple((id(edit), i) for edit, i in slots)
    index_B[b] = place.setdefault(same, len(distinct))
    if index_B[b] == len(distinct):
      distinct.append(slots)
  return distinct, index_B


def _of_rows(x_K: np.ndarray, index_B: np.ndarray) -> jax.Array:
  """Return the numbers of each row, of those of what is distinct.

  They are sent to the device as they are: `jnp.asarray` compiles a program for each new shape.
  """
  return jax.device_put(x_K if len(x_K) == len(index_B) else x_K[index_B])


def add_stage(
  slots_B: Sequence[Sequence[Placed]], shape: tuple[int, ...], where: Where, like: Stage | None
) -> AddEdit:
  """Merge additions per window; `shape` is (D,), or (N, H) at heads."""
  heads = shape[:-1]
  distinct, index_B = _distinct(slots_B)
  # The heads an edit acts on are a window's too: unchosen ones stay untouched, bit by bit.
  merged = [_by_window(slots) for slots in distinct]
  num = _room(max(len(found) for found in merged), where, like)
  u = np.full((len(distinct), *heads, num, shape[-1]), -0.0, np.float32)
  start, stop, roles = (np.zeros((len(distinct), *heads, num), np.int32) for _ in range(3))
  for k, found in enumerate(merged):
    for w, ((window, mask), delta) in enumerate(found.items()):
      on = np.frombuffer(mask, bool) if heads else ...
      u[k, ..., w, :] = np.where(delta == 0, -0.0, delta)  # a coefficient of 0 keeps every bit
      start[k, on, w], stop[k, on, w] = window.interval
      roles[k, on, w] = window.role_mask
  return AddEdit(*(_of_rows(x, index_B) for x in (u, start, stop, roles)))


def _when(
  slots_B: Sequence[Sequence[Placed]], heads: tuple[int, ...], num: int, ramped: bool
) -> When:
  distinct, index_B = _distinct(slots_B)
  shape = (len(distinct), *heads, num)
  start, stop, roles = (np.zeros(shape, np.int32) for _ in range(3))
  gate = np.zeros(shape, np.float32)
  ramp = np.broadcast_to(np.asarray(STEADY, np.float32), (*shape, NUM_NUMBERS)).copy()
  for n, slots in enumerate(distinct):
    s = 0
    for edit, _ in slots:
      on = edit.head_mask_N if heads and edit.head_mask_N is not None else ...
      for _ in range(edit.num_slots):
        start[n, on, s], stop[n, on, s] = edit.window.interval
        roles[n, on, s] = edit.window.role_mask
        gate[n, on, s] = _gate(edit)
        if edit.ramp is not None:
          ramp[n, on, s, :] = edit.ramp.numbers
        s += 1
  return When(
    _of_rows(start, index_B),
    _of_rows(stop, index_B),
    _of_rows(roles, index_B),
    _of_rows(gate, index_B),
    _of_rows(ramp, index_B) if ramped else None,
  )


def slot_stage(
  key: Key,
  slots_B: Sequence[Sequence[Placed]],
  shape: tuple[int, ...],
  where: Where,
  like: Stage | None,
) -> Stage:
  """Fill the slots of one stage for every row."""
  heads = shape[:-1]
  distinct, index_B = _distinct(slots_B)
  num = _room(slots_needed(distinct), where, like)
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
    filled = np.full((len(distinct), *heads, num, *vector), neutral, dtype)
    for n, slots in enumerate(distinct):
      s = 0
      for edit, i in slots:
        for k in range(edit.num_slots):
          # A number is [X, …]; the axis of slots comes after that of heads.
          filled[(n, *across, s)] = edit.numbers[name][i, k]
          s += 1
    leaves[leaf] = _of_rows(filled, index_B)
    if leaf == "p_BSD":
      p = filled.astype(np.float64)
      gram = (p @ np.swapaxes(p, -1, -2)).astype(np.float32)
      leaves["gram_BSS"] = _of_rows(gram, index_B)
  stage: Stage = made(
    **leaves,
    keep_norm_B=_norm_kept(key, slots_B, heads),
    when=_when(slots_B, heads, num, ramped),
  )
  return stage


def _norm_kept(
  key: Key, slots_B: Sequence[Sequence[Placed]], heads: tuple[int, ...]
) -> jax.Array | None:
  """Return which rows keep their length, [B] or [B, N]; None where the stage keeps none."""
  if not key.keep_norm:
    return None
  has_B = np.asarray([bool(slots) for slots in slots_B]).reshape(-1, *(1 for _ in heads))
  return jax.device_put(np.broadcast_to(has_B, (len(slots_B), *heads)))


def shared_stage(
  key: Key, slots_B: Sequence[Sequence[Placed]], shape: tuple[int, ...], like: Stage | None
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
      jax.device_put(edit.numbers[name][i, 0].astype(np.float32)) for name in ("in", "bias", "out")
    )
    return AffineEdit(in_DR, bias_R, out_RD, **rest)
  assert edit.call is not None
  fn, params = edit.call
  return CustomEdit(jax.tree_util.Partial(fn), as_arrays(params), **rest)
