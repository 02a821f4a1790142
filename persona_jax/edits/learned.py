"""Edits that were trained elsewhere, and users' own: low-rank maps and functions."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from persona_jax.edits.edit import Edit, Kind, as_float32
from persona_jax.edits.identity import function_hash
from persona_jax.edits.table import HEAD_SITE, SITES
from persona_jax.edits.target import Blocks
from persona_jax.edits.window import Window, as_window


def array_hash(*arrays: np.ndarray) -> str:
  """Return the sha256 of arrays, of their shapes and bytes."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def make_edit(
  op: str,
  kind: Kind,
  site: str,
  blocks: Blocks,
  tokens: str | Window,
  numbers: dict[str, np.ndarray],
  *,
  width: int | None,
  source: str,
  source_hash: str,
  call: tuple[Callable[..., Any], Any] | None = None,
  **amounts: Any,
) -> Edit:
  """Make an edit that has no direction: the same numbers at each block, or [len(blocks), …] ones.

  Raises:
    ValueError: an unknown site or window, or no, repeated or negative blocks.
  """
  if site not in SITES:
    raise ValueError(f"site={site!r} is unknown; edits act at one of {SITES}.")
  chosen = (blocks,) if isinstance(blocks, (int, np.integer)) else blocks
  wrong = (
    isinstance(chosen, str)
    or not len(chosen)
    or len(set(chosen)) != len(chosen)
    or any(not isinstance(b, (int, np.integer)) or b < 0 for b in chosen)
  )
  if wrong:
    raise ValueError(f"blocks={blocks!r}: name different 0-based blocks; {op} has none of its own.")
  assert not isinstance(chosen, str)
  return Edit(
    op=op,
    kind=kind,
    site=site,
    blocks=tuple(int(b) for b in chosen),
    numbers=numbers,
    width=width,
    window=as_window(tokens),
    amounts=amounts,
    unit=None,
    factor_LX=None,
    concept=source,
    direction_hash=source_hash,
    num_blocks=None,
    call=call,
  )


def _number_of(blocks: Blocks) -> int:
  return 1 if isinstance(blocks, (int, np.integer)) else len(blocks)


def low_rank(
  in_DR: np.ndarray,
  out_RD: np.ndarray,
  bias_R: np.ndarray | None = None,
  *,
  coef: float = 1.0,
  blocks: int | Sequence[int],
  tokens: str | Window = "answer",
  site: str = "resid_post",
  name: str = "low-rank map",
) -> Edit:
  """Make the edit h + coef (h A + c) B, a low-rank affine map.

  Rows that share the map share its arrays, so its rank may be large.

  Args:
    in_DR: A, [D, R]; or [len(blocks), D, R], one a block.
    out_RD: B, [R, D] or [len(blocks), R, D].
    bias_R: c, [R] or [len(blocks), R]; default 0.
    coef: factor on the change.
    blocks, tokens, site: as `pj.add`; any site but "head_out".
    name: what it is, for tables.

  Raises:
    ValueError: shapes that do not fit, a NaN or an infinity, or a map that changes nothing.
  """
  if site == HEAD_SITE:
    raise ValueError(f"low-rank maps act on whole activations, not at {HEAD_SITE!r}.")
  num_blocks = _number_of(blocks)

  def per_block(array: np.ndarray, ndim: int) -> np.ndarray:
    array = np.asarray(array, np.float32)
    full = np.broadcast_to(array, (num_blocks, *array.shape)) if array.ndim == ndim else array
    if full.ndim != ndim + 1 or len(full) != num_blocks or not np.isfinite(full).all():
      raise ValueError(
        f"{name}: an array of shape {array.shape} must have {ndim} axes, or {ndim + 1} with one "
        f"entry for each of the {num_blocks} blocks, and finite values."
      )
    return full

  in_LDR, out_LRD = per_block(in_DR, 2), per_block(out_RD, 2)
  bias = np.zeros(in_LDR.shape[-1]) if bias_R is None else bias_R
  bias_LR = per_block(bias, 1)
  width, rank = in_LDR.shape[1:]
  if out_LRD.shape[1:] != (rank, width) or bias_LR.shape[1:] != (rank,):
    raise ValueError(
      f"{name}: A is [{width}, {rank}], B {list(out_LRD.shape[1:])}, c {list(bias_LR.shape[1:])}; "
      f"B must be [{rank}, {width}] and c [{rank}]."
    )
  if not np.isfinite(coef) or coef == 0 or not out_LRD.any():
    raise ValueError(f"{name}: coef={coef!r} and B must be finite and not zero.")
  if not (in_LDR.any() or bias_LR.any()):
    raise ValueError(f"{name}: A and c are zero; the map changes nothing.")
  out_LRD = as_float32(f"{name}: coef times B", float(coef) * out_LRD.astype(np.float64))
  return make_edit(
    "low_rank",
    "affine",
    site,
    blocks,
    tokens,
    {"in": in_LDR[:, None], "bias": bias_LR[:, None], "out": out_LRD[:, None]},
    width=width,
    source=name,
    source_hash=array_hash(in_LDR, bias_LR, out_LRD),
    coef=float(coef),
    rank=rank,
  )


def loreft(
  rotation_RD: np.ndarray,
  weight_RD: np.ndarray,
  bias_R: np.ndarray,
  *,
  blocks: int | Sequence[int],
  tokens: str | Window = "answer",
  site: str = "resid_post",
  name: str = "LoReFT",
) -> Edit:
  """Make the edit h + Rᵀ (W h + c - R h) of a trained LoReFT (Wu et al. 2024).

  Args:
    rotation_RD: R, with orthonormal rows (pyreft stores its transpose as `rotate_layer.weight`).
    weight_RD: W (`learned_source.weight`).
    bias_R: c (`learned_source.bias`).
    blocks, tokens, site: as `pj.add`. LoReFT is trained on prompt positions, such as "last:4".
    name: what it is, for tables.

  Raises:
    ValueError: R's rows are not orthonormal to 1e-3, shapes that do not fit; as `low_rank`.
  """
  rotation = np.asarray(rotation_RD, np.float64)
  weight = np.asarray(weight_RD, np.float64)
  if rotation.ndim not in (2, 3) or rotation.shape != weight.shape:
    raise ValueError(f"{name}: R is {rotation.shape} and W {weight.shape}; both are [R, D].")
  gram = rotation @ np.swapaxes(rotation, -1, -2)
  off = np.abs(gram - np.eye(rotation.shape[-2])).max()
  if not off < 1e-3:
    raise ValueError(f"{name}: the rows of R are not orthonormal (off by {off:.2g}).")
  return low_rank(
    np.swapaxes(weight - rotation, -1, -2), rotation, bias_R,
    blocks=blocks, tokens=tokens, site=site, name=name,
  )  # fmt: skip


def lm_steer(
  projector1_DR: np.ndarray,
  projector2_RD: np.ndarray,
  epsilon: float,
  *,
  blocks: int | Sequence[int],
  tokens: str | Window = "all",
  site: str = "resid_post",
  name: str = "LM-Steer",
) -> Edit:
  """Make the edit h + ε (h P₁) P₂ of a trained LM-Steer matrix (Han et al. 2024).

  The paper applies it to the last hidden state; here it acts at a site of a block, before the final
  norm, so a matrix should be trained there.

  Args:
    projector1_DR, projector2_RD: factors of the matrix.
    epsilon: strength; its sign is the direction of steering.
    blocks, tokens, site: as `pj.add`.
    name: what it is, for tables.

  Raises:
    ValueError: as `low_rank`.
  """
  return low_rank(
    projector1_DR, projector2_RD, coef=epsilon, blocks=blocks, tokens=tokens, site=site, name=name
  )


def custom_edit(
  fn: Callable[..., jax.Array],
  params: Any = None,
  *,
  site: str = "resid_post",
  blocks: int | Sequence[int],
  tokens: str | Window = "answer",
  name: str | None = None,
) -> Edit:
  """Make an edit of a function: how a user adds an operation.

  Args:
    fn: fn(h_BTD, params, offset_BT) → h of the same shape; pure and traceable. h is float32;
      `offset_BT` counts tokens from the end of the prompt. At "head_out" h is [B, T, N, H]. It must
      treat tokens by themselves: the engine calls it on part of a sequence at a time.
    params: a pytree of arrays, passed on; new values need no new trace.
    site, blocks, tokens: as `pj.add`. Rows and tokens that are not edited keep their bits.
    name: what it is, for tables; default the function's name. A run that is resumed knows the
      function again by its code and all that it closes over, or by `name` alone where you give one:
      then give another function another name.

  Raises:
    ValueError: `fn` cannot be called, `params` holds something that is no number or array, or,
      without a name, `fn` closes over something that cannot be hashed by what it holds.
  """
  if not callable(fn):
    raise ValueError(f"custom_edit needs a function fn(h_BTD, params, offset_BT), got {fn!r}.")
  leaves = jax.tree.leaves(params)
  for leaf in leaves:
    if not isinstance(leaf, (np.ndarray, jax.Array, int, float, np.generic)):
      raise ValueError(f"params of a custom edit hold {leaf!r}; use numbers and arrays.")
  label = name or str(getattr(fn, "__qualname__", type(fn).__name__))
  identity = f"named {name}" if name is not None else function_hash(fn)
  digest = hashlib.sha256(identity.encode() + str(jax.tree.structure(params)).encode())
  digest.update(array_hash(*(np.asarray(leaf) for leaf in leaves)).encode())
  return make_edit(
    "custom",
    "custom",
    site,
    blocks,
    tokens,
    {},
    width=None,
    source=label,
    source_hash=digest.hexdigest(),
    call=(fn, params),
  )
