"""Where an edit along a direction acts, and how long one of its units is there."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from persona_jax.edits.edit import DirectionLike, Edit
from persona_jax.edits.table import HEAD_SITE, SITES
from persona_jax.edits.window import Window, as_window

Unit = Literal["raw", "unit", "resid", "sigma", "gap"]
Amount = float | Sequence[float] | np.ndarray
Blocks = int | Sequence[int] | Literal["all"]
Heads = int | Sequence[int] | Literal["all"]


class ScaleTable(Protocol):
  """What an edit needs of a `persona_jax.Dose`: sizes per block, measured on a model."""

  @property
  def resid_L(self) -> np.ndarray: ...
  @property
  def sample_LND(self) -> np.ndarray: ...
  @property
  def site(self) -> str: ...
  def sigma(self, block: int, unit_D: np.ndarray) -> float: ...


@dataclasses.dataclass(frozen=True)
class Target:
  """The pieces that all operations along a direction share.

  X stands for nothing or, at "head_out", for the heads N, D then for the width of a head: each head
  is edited by itself, along its own part of the direction.

  Attributes:
    direction: the direction.
    blocks: 0-based numbers.
    vectors_LXD: float64, not normalised; zero in heads that were not chosen.
    norm_LX: their lengths.
    site, window: where and on which tokens.
    head_mask_N: bool, the chosen heads; None at other sites.
  """

  direction: DirectionLike
  blocks: tuple[int, ...]
  vectors_LXD: np.ndarray
  norm_LX: np.ndarray
  site: str
  window: Window
  head_mask_N: np.ndarray | None

  @property
  def unit_LXD(self) -> np.ndarray:
    """Unit vectors, float64; zero in heads that were not chosen."""
    return self.vectors_LXD / np.where(self.norm_LX > 0, self.norm_LX, 1)[..., None]


def is_index(value: object, size: int) -> bool:
  """Whether a value is a whole number from 0 to `size` - 1; a bool is none."""
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  return whole and 0 <= value < size  # type: ignore[operator]


def choose_blocks(blocks: Blocks, num_blocks: int, whose: str) -> tuple[int, ...]:
  """Return block numbers as a tuple.

  Raises:
    ValueError: none, a repeated or an unknown one.
  """
  if isinstance(blocks, str):
    chosen: tuple[Any, ...] = tuple(range(num_blocks)) if blocks == "all" else ()
  else:
    chosen = tuple(blocks) if isinstance(blocks, (Sequence, np.ndarray, range)) else (blocks,)
  wrong = [b for b in chosen if not is_index(b, num_blocks)]
  if wrong or not chosen or len(set(chosen)) != len(chosen):
    raise ValueError(
      f"blocks={blocks!r}: name different blocks from 0 to {num_blocks - 1}, or 'all' "
      f"({whose} has {num_blocks})."
    )
  return tuple(int(b) for b in chosen)


def choose_heads(heads: Heads | None, site: str, num_heads: int | None) -> np.ndarray | None:
  """Return the mask of the heads of an edit, bool [N]; None at a site that has none.

  Raises:
    ValueError: heads were named at another site, or are repeated or unknown.
  """
  if site != HEAD_SITE:
    if heads is not None:
      raise ValueError(f"heads={heads!r} needs site={HEAD_SITE!r}; the edit acts at {site!r}.")
    return None
  if num_heads is None:
    raise ValueError(f"site={HEAD_SITE!r} needs a direction that was read there, with num_heads.")
  if heads is None or (isinstance(heads, str) and heads == "all"):
    return np.ones(num_heads, bool)
  chosen: tuple[Any, ...] = (
    tuple(heads) if isinstance(heads, (Sequence, np.ndarray, range)) else (heads,)
  )
  wrong = [h for h in chosen if not is_index(h, num_heads)]
  if wrong or not chosen or len(set(chosen)) != len(chosen):
    raise ValueError(f"heads={heads!r}: name different heads from 0 to {num_heads - 1}, or 'all'.")
  return np.isin(np.arange(num_heads), chosen)


def make_target(
  direction: DirectionLike,
  blocks: Blocks,
  tokens: str | Window,
  site: str | None,
  replicate: int | None,
  heads: Heads | None,
  allow_other_site: bool,
) -> Target:
  """Check and resolve where an edit acts; arguments as `operations.add`.

  Raises:
    ValueError: an unknown site, block, window, replicate or head, or a vector that is zero, NaN or
      infinite.
  """
  site = direction.site if site is None else site
  name = direction.concept
  if site not in SITES:
    raise ValueError(f"site={site!r} is unknown; edits act at one of {SITES}.")
  if site != direction.site and (not allow_other_site or HEAD_SITE in (site, direction.site)):
    raise ValueError(
      f"direction {name!r} was read at site {direction.site!r} and is to act at {site!r}; "
      + (
        f"{HEAD_SITE!r} has a width of its own."
        if HEAD_SITE in (site, direction.site)
        else "pass allow_other_site=True if that is meant."
      )
    )
  num_replicates, num_blocks, _ = direction.vectors_SLD.shape
  chosen = choose_blocks(blocks, num_blocks, f"direction {name!r}")
  mask_N = choose_heads(heads, site, direction.num_heads)
  if replicate is not None and not 0 <= replicate < num_replicates:
    raise ValueError(
      f"replicate={replicate}: direction {name!r} has replicates 0 to {num_replicates - 1}."
    )
  source_LD = direction.mean_LD if replicate is None else direction.vectors_SLD[replicate]
  vectors = np.asarray(source_LD, np.float64)[list(chosen)]
  if not np.isfinite(vectors).all():
    raise ValueError(f"direction {name!r} holds a NaN or an infinity at blocks {chosen}.")
  if mask_N is not None:
    vectors = vectors.reshape(len(chosen), mask_N.size, -1) * mask_N[:, None]
  norm = np.linalg.norm(vectors, axis=-1)
  needed = np.ones(norm.shape, bool) if mask_N is None else np.broadcast_to(mask_N, norm.shape)
  zero = np.argwhere((norm == 0) & needed)
  if len(zero):
    places = [chosen[z[0]] if len(z) == 1 else (chosen[z[0]], int(z[1])) for z in zero]
    what = "blocks" if mask_N is None else "(block, head)"
    raise ValueError(
      f"direction {name!r} is the zero vector at {what} {places[:8]}; it has no axis."
    )
  return Target(direction, chosen, vectors, norm, site, as_window(tokens), mask_N)


def _check_scale(target: Target, scale: ScaleTable) -> None:
  direction = target.direction
  if scale.site != target.site:
    raise ValueError(
      f"scale was measured at site {scale.site!r}; the edit acts at {target.site!r}. Measure it "
      f"there: pj.dose(model, prompts, site={target.site!r})."
    )
  measured = (scale.sample_LND.shape[0], scale.sample_LND.shape[-1])
  expected = direction.vectors_SLD.shape[1:]
  heads = () if target.head_mask_N is None else (target.head_mask_N.size,)
  if measured != expected or np.shape(scale.resid_L) != (*expected[:1], *heads):
    raise ValueError(
      f"scale has (blocks, width) {measured} and {len(scale.resid_L)} norms; direction "
      f"{direction.concept!r} has (blocks, width) {expected}."
    )


def factor_of(target: Target, unit: str, scale: ScaleTable | None) -> np.ndarray:
  """Return how long one unit along the direction is in the units of h, float64 [L, X].

  Raises:
    ValueError: an unknown unit, or one that needs what is not there.
  """
  direction, blocks = target.direction, list(target.blocks)
  if unit == "raw":
    return target.norm_LX
  if unit == "unit":
    return np.ones(target.norm_LX.shape)
  if unit == "gap":
    if direction.gap_L is None:
      raise ValueError(
        f"unit='gap' needs a direction with a class gap; {direction.concept!r} was not "
        "made from two classes."
      )
    return np.asarray(direction.gap_L, np.float64)[blocks]
  if unit not in ("resid", "sigma"):
    raise ValueError(f"unit={unit!r}: use 'raw', 'unit', 'resid', 'sigma' or 'gap'.")
  if scale is None:
    raise ValueError(f"unit={unit!r} needs scale=pj.dose(model, prompts).")
  _check_scale(target, scale)
  if unit == "resid":
    return np.asarray(scale.resid_L, np.float64)[blocks]
  if target.head_mask_N is None:
    return np.asarray([scale.sigma(b, p) for b, p in zip(blocks, target.unit_LXD, strict=True)])
  alone = np.eye(target.head_mask_N.size)[:, :, None]  # each head's vector, zero in the others
  return np.asarray(
    [
      [scale.sigma(b, p_ND.ravel()) for p_ND in alone * unit_ND]
      for b, unit_ND in zip(blocks, target.unit_LXD, strict=True)
    ]
  )


def as_amount(name: str, value: Amount) -> np.ndarray:
  """Return a number, [], or one a row, [B]; float64.

  Raises:
    ValueError: anything else, a NaN or an infinity.
  """
  try:
    array = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    array = np.full((), np.nan)
  if array.ndim > 1 or not array.size or not np.isfinite(array).all():
    raise ValueError(f"{name}={value!r}: give a finite number, or one a row.")
  return array


def scaled(name: str, value: Amount, factor_LX: np.ndarray) -> np.ndarray:
  """Scale a scalar, or one value per row, to the units of h: [L, 1, X] or [L, 1, X, B]."""
  array = as_amount(name, value)
  out: np.ndarray = factor_LX * array if array.ndim == 0 else factor_LX[..., None] * array
  return out[:, None]


def along(
  op: str,
  target: Target,
  amounts: dict[str, tuple[str, Amount]] | None = None,
  *,
  unit: str | None = None,
  scale: ScaleTable | None = None,
  beta: float | np.ndarray = 0.0,
  **written: float | list[float],
) -> Edit:
  """Make an edit of the projection on a direction.

  Args:
    op: its name.
    target: where it acts.
    amounts: number ("shift", "lo" or "hi") → (its name for the user, its value in `unit`).
    unit: what the amounts count.
    scale: the table that `unit` may need.
    beta: factor on the projection, a number or one a row.
    **written: what else the user wrote.
  """
  factor_LX = None if unit is None else factor_of(target, unit, scale)
  shape = (len(target.blocks), 1, *target.norm_LX.shape[1:])
  numbers = {
    "p": target.unit_LXD[:, None].astype(np.float32),
    "beta": np.full(shape, beta) if np.ndim(beta) == 0 else np.ones((*shape, 1)) * beta,
    "shift": np.zeros(shape),
    "lo": np.full(shape, -np.inf),
    "hi": np.full(shape, np.inf),
    "above": np.full(shape, -np.inf),
    "below": np.full(shape, np.inf),
  }
  per_row, shown = {"beta"} if np.ndim(beta) else set[str](), dict[str, Any](written)
  for number, (name, value) in (amounts or {}).items():
    assert factor_LX is not None
    numbers[number] = scaled(name, value, factor_LX)
    shown[name] = np.asarray(value, np.float64).tolist()
    if np.ndim(value):
      per_row.add(number)
  return Edit(
    op=op,
    kind="proj",
    site=target.site,
    blocks=target.blocks,
    numbers=numbers,
    width=target.direction.vectors_SLD.shape[2],
    window=target.window,
    amounts=shown,
    unit=unit,
    factor_LX=factor_LX,
    concept=target.direction.concept,
    direction_hash=target.direction.hash,
    num_blocks=target.direction.vectors_SLD.shape[1],
    per_row=frozenset(per_row),
    head_mask_N=target.head_mask_N,
  )


def orthonormal(
  units: Sequence[np.ndarray], head_mask_N: np.ndarray | None
) -> tuple[np.ndarray, bool]:
  """Orthonormalise K unit vectors per place, in order; sources [L, X, D].

  Returns:
    float32 [L, K, X, D], the k-th the part of vector k at right angles to those before it; and
    whether they were independent wherever they are needed.
  """
  v = np.stack(units, axis=-1)  # [L, X, D, K]
  if v.shape[-1] > v.shape[-2]:
    return np.zeros(0), False
  q, r = np.linalg.qr(v)
  diagonal = np.diagonal(r, axis1=-2, axis2=-1)
  needed = np.ones(diagonal.shape, bool) if head_mask_N is None else head_mask_N[:, None]
  q = q * np.where(diagonal < 0, -1.0, 1.0)[..., None, :]
  if head_mask_N is not None:
    q = q * head_mask_N[:, None, None]
  independent = bool((np.abs(diagonal) > 1e-5)[np.broadcast_to(needed, diagonal.shape)].all())
  return np.moveaxis(q, -1, 1).astype(np.float32), independent


def joint_hash(ds: Sequence[DirectionLike]) -> str:
  """Return the hash of several directions in order, hex."""
  return hashlib.sha256("|".join(d.hash for d in ds).encode()).hexdigest()
