"""The operations that users write, as functions that make an `Edit`.

For example `pj.add(direction, 0.3, unit="resid", blocks=15, scale=dose)`. Amounts are given in a
named unit, which is never guessed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from persona_jax.edits.edit import DirectionLike, Edit
from persona_jax.edits.table import SITES
from persona_jax.edits.window import Window, as_window

Unit = Literal["raw", "unit", "resid", "sigma", "gap"]
Amount = float | Sequence[float] | np.ndarray
Blocks = int | Sequence[int] | Literal["all"]


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
class _Target:
  """Where an edit acts: the pieces that all operations share."""

  direction: DirectionLike
  blocks: tuple[int, ...]
  vectors_LD: np.ndarray  # float64, not normalised
  norm_L: np.ndarray
  site: str
  window: Window

  @property
  def unit_LD(self) -> np.ndarray:
    return self.vectors_LD / self.norm_L[:, None]


def _target(
  direction: DirectionLike,
  blocks: Blocks,
  tokens: str | Window,
  site: str | None,
  replicate: int | None,
  allow_other_site: bool,
) -> _Target:
  site = direction.site if site is None else site
  if site not in SITES:
    raise ValueError(f"site={site!r} is unknown; edits act at one of {SITES}.")
  if site != direction.site and not allow_other_site:
    raise ValueError(
      f"direction {direction.concept!r} was read at site {direction.site!r} and is to act at "
      f"{site!r}; pass allow_other_site=True if that is meant."
    )
  num_replicates, num_blocks, _ = direction.vectors_SLD.shape
  if blocks == "all":
    chosen = tuple(range(num_blocks))
  else:
    chosen = (blocks,) if isinstance(blocks, (int, np.integer)) else tuple(blocks)  # type: ignore[arg-type]
  wrong = [b for b in chosen if not isinstance(b, (int, np.integer)) or not 0 <= b < num_blocks]
  if wrong or not chosen or len(set(chosen)) != len(chosen):
    raise ValueError(
      f"blocks={blocks!r}: name different blocks from 0 to {num_blocks - 1}, or 'all' "
      f"(direction {direction.concept!r} has {num_blocks})."
    )
  if replicate is not None and not 0 <= replicate < num_replicates:
    raise ValueError(
      f"replicate={replicate}: direction {direction.concept!r} has replicates 0 to "
      f"{num_replicates - 1}."
    )
  source_LD = direction.mean_LD if replicate is None else direction.vectors_SLD[replicate]
  vectors_LD = np.asarray(source_LD, np.float64)[list(chosen)]
  if not np.isfinite(vectors_LD).all():
    raise ValueError(
      f"direction {direction.concept!r} holds a NaN or an infinity at blocks {chosen}."
    )
  norm_L = np.linalg.norm(vectors_LD, axis=-1)
  zero = [b for b, n in zip(chosen, norm_L, strict=True) if n == 0]
  if zero:
    raise ValueError(
      f"direction {direction.concept!r} is the zero vector at blocks {zero}; it has no axis."
    )
  return _Target(
    direction, tuple(int(b) for b in chosen), vectors_LD, norm_L, site, as_window(tokens)
  )


def _check_scale(target: _Target, scale: ScaleTable) -> None:
  direction = target.direction
  if scale.site != target.site:
    raise ValueError(
      f"scale was measured at site {scale.site!r}; the edit acts at {target.site!r}. Measure it "
      f"there: pj.dose(model, prompts, site={target.site!r})."
    )
  measured = (scale.sample_LND.shape[0], scale.sample_LND.shape[-1])
  expected = direction.vectors_SLD.shape[1:]
  if measured != expected or np.shape(scale.resid_L) != expected[:1]:
    raise ValueError(
      f"scale has (blocks, width) {measured} and {len(scale.resid_L)} norms; direction "
      f"{direction.concept!r} has (blocks, width) {expected}."
    )


def _factor_L(target: _Target, unit: str, scale: ScaleTable | None) -> np.ndarray:
  """Return, per block, how long one unit along p is in the units of h."""
  direction, blocks = target.direction, list(target.blocks)
  if unit == "raw":
    return target.norm_L
  if unit == "unit":
    return np.ones(len(blocks))
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
  return np.asarray([scale.sigma(b, p_D) for b, p_D in zip(blocks, target.unit_LD, strict=True)])


def _amount_L(name: str, value: Amount, factor_L: np.ndarray) -> np.ndarray:
  """Scale a scalar, or one value per row, to the units of h: [blocks] or [blocks, B]."""
  array = np.asarray(value, np.float64)
  if array.ndim > 1 or not np.isfinite(array).all():
    raise ValueError(f"{name}={value!r}: give a finite number, or one a row.")
  return factor_L * array if array.ndim == 0 else factor_L[:, None] * array


def _plain(value: Amount) -> float | list[float]:
  return np.asarray(value, np.float64).tolist()


def _edit(
  op: str,
  target: _Target,
  *,
  unit: str | None = None,
  beta: float = 0.0,
  shift_L: np.ndarray | None = None,
  lo_L: np.ndarray | None = None,
  hi_L: np.ndarray | None = None,
  **amounts: Amount,
) -> Edit:

  def full(x_L: np.ndarray | None, value: float) -> np.ndarray:
    return np.full(len(target.blocks), value) if x_L is None else x_L

  return Edit(
    op=op,
    site=target.site,
    blocks=target.blocks,
    unit_LD=target.unit_LD.astype(np.float32),
    beta=beta,
    shift_L=full(shift_L, 0.0),
    lo_L=full(lo_L, -np.inf),
    hi_L=full(hi_L, np.inf),
    window=target.window,
    amounts={name: _plain(value) for name, value in amounts.items()},
    unit=unit,
    concept=target.direction.concept,
    direction_hash=target.direction.hash,
    num_blocks=target.direction.vectors_SLD.shape[1],
  )


def add(
  d: DirectionLike,
  coef: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit h + Δ, Δ along the direction: activation addition.

  Turner et al. 2023, Rimsky et al. 2024.

  Args:
    d: the direction v, [S, L, D]; its mean over replicates is used unless `replicate` names one.
    coef: c, a number, or one a row of the batch.
    unit: what c counts. "raw": Δ = c v. "unit": c v/‖v‖. "resid": c times the median residual norm
      of the block. "sigma": c standard deviations of the projection. "gap": c times the distance of
      the class means along v. "resid" and "sigma" need `scale`.
    blocks: 0-based block numbers, one, several or "all".
    tokens: "all", "prompt", "generated", "answer", "last:k" or a `pj.Window`.
    site: where in the block; default the site at which `d` was read.
    replicate: index into S.
    scale: the table of `pj.dose`, measured at the site at which the edit acts.
    allow_other_site: accept a site other than the one `d` was read at.

  Raises:
    ValueError: an unknown unit, block, window, site or replicate; a zero, NaN or infinite vector or
      amount; a scale of another site, number of blocks or width.
  """
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  shift_L = _amount_L("coef", coef, _factor_L(target, unit, scale))
  return _edit("add", target, unit=unit, shift_L=shift_L, coef=coef)


def ablate(
  d: DirectionLike,
  *,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that removes the projection on the direction (Arditi et al. 2024).

  Arguments as `add`.
  """
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  return _edit("ablate", target, beta=-1.0)


def set_to(
  d: DirectionLike,
  value: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that sets the projection to `value` units (mean ablation if that is a mean).

  Other arguments as `add`.
  """
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  shift_L = _amount_L("value", value, _factor_L(target, unit, scale))
  return _edit("set_to", target, unit=unit, beta=-1.0, shift_L=shift_L, value=value)


def scale(
  d: DirectionLike,
  factor: float,
  *,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that multiplies the projection by `factor`. Other arguments as `add`."""
  if not np.isfinite(factor):
    raise ValueError(f"factor={factor!r}: give a finite number.")
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  return _edit("scale", target, beta=float(factor) - 1.0, factor=factor)


def clamp(
  d: DirectionLike,
  lo: Amount,
  hi: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection within [lo, hi] units. Other arguments as `add`.

  Raises:
    ValueError: lo exceeds hi; else as `add`.
  """
  if np.any(np.asarray(lo) > np.asarray(hi)):
    raise ValueError(f"clamp bounds lo={lo!r} > hi={hi!r}.")
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  factor_L = _factor_L(target, unit, scale)
  lo_L, hi_L = _amount_L("lo", lo, factor_L), _amount_L("hi", hi, factor_L)
  return _edit("clamp", target, unit=unit, lo_L=lo_L, hi_L=hi_L, lo=lo, hi=hi)


def cap(
  d: DirectionLike,
  hi: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection at or below `hi` units (activation capping).

  Other arguments as `add`.
  """
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  hi_L = _amount_L("hi", hi, _factor_L(target, unit, scale))
  return _edit("cap", target, unit=unit, hi_L=hi_L, hi=hi)


def floor(
  d: DirectionLike,
  lo: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection at or above `lo` units. Other arguments as `add`."""
  target = _target(d, blocks, tokens, site, replicate, allow_other_site)
  lo_L = _amount_L("lo", lo, _factor_L(target, unit, scale))
  return _edit("floor", target, unit=unit, lo_L=lo_L, lo=lo)
