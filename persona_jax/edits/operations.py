"""The operations along a direction, as functions that make an `Edit`.

For example `pj.add(direction, 0.3, unit="resid", blocks=15, scale=dose)`. Amounts are given in a
named unit, which is never guessed. With a = <h, p>, p the unit vector, in float32, the projection
of a token's activation h becomes:

  add      a + c           ablate   0                set_to   c
  scale    gamma a         clamp    min(max(a, lo), hi)
  cap      min(a, hi)      floor    max(a, lo)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from persona_jax.edits.edit import DirectionLike, Edit
from persona_jax.edits.target import (
  Amount,
  Blocks,
  Heads,
  ScaleTable,
  Unit,
  along,
  as_amount,
  joint_hash,
  make_target,
  orthonormal,
)
from persona_jax.edits.window import Window


def add(
  d: DirectionLike,
  coef: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
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
    heads: at "head_out" the heads to edit, each along its own part of the direction and in units of
      its own; default all.
    scale: the table of `pj.dose`, measured at the site at which the edit acts.
    allow_other_site: accept a site other than the one `d` was read at.

  Raises:
    ValueError: an unknown unit, block, window, site or replicate; a zero, NaN or infinite vector or
      amount; a scale of another site, number of blocks or width.
  """
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("add", target, {"shift": ("coef", coef)}, unit=unit, scale=scale)


def ablate(
  d: DirectionLike,
  *,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that removes the projection on the direction (Arditi et al. 2024).

  Arguments as `add`.
  """
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("ablate", target, beta=-1.0)


def ablate_subspace(
  ds: Sequence[DirectionLike],
  *,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  heads: Heads | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that removes every projection on the span of several directions.

  The directions are orthonormalised first (QR, float64); each takes one of the 8 slots of a site.
  Other arguments as `add`.

  Raises:
    ValueError: no direction, or they are linearly dependent; else as `add`.
  """
  ds = list(ds)
  if not ds:
    raise ValueError("ablate_subspace needs directions, got none.")
  targets = [make_target(d, blocks, tokens, site, None, heads, allow_other_site) for d in ds]
  edits = [along("ablate_subspace", target, beta=-1.0) for target in targets]
  shapes = {(edit.num_blocks, edit.width, edit.site) for edit in edits}
  if len(shapes) > 1:
    raise ValueError(f"the directions differ in (blocks, width, site): {sorted(map(str, shapes))}.")
  p_LKXD, chosen = orthonormal([target.unit_LXD for target in targets], targets[0].head_mask_N)
  first = edits[0]
  numbers = {n: np.repeat(x, len(ds), axis=1) for n, x in first.numbers.items()} | {"p": p_LKXD}
  if not chosen:
    names = ", ".join(repr(d.concept) for d in ds)
    raise ValueError(f"directions {names} are linearly dependent at blocks {list(first.blocks)}.")
  return dataclasses.replace(
    first,
    numbers=numbers,
    concept=" + ".join(d.concept for d in ds),
    direction_hash=joint_hash(ds),
  )


def set_to(
  d: DirectionLike,
  value: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that sets the projection to `value` units (mean ablation if that is a mean).

  With `.where(below=…)` it steers to a target projection only what falls short. Other arguments as
  `add`.
  """
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("set_to", target, {"shift": ("value", value)}, unit=unit, scale=scale, beta=-1.0)


def scale(
  d: DirectionLike,
  factor: Amount,
  *,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that multiplies the projection by `factor`, a number or one a row.

  Other arguments as `add`.
  """
  gamma = as_amount("factor", factor)
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("scale", target, beta=gamma - 1.0, factor=gamma.tolist())


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
  heads: Heads | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection within [lo, hi] units. Other arguments as `add`.

  Raises:
    ValueError: lo exceeds hi; else as `add`.
  """
  low, high = as_amount("lo", lo), as_amount("hi", hi)
  if low.ndim and high.ndim and low.size != high.size:
    raise ValueError(f"clamp bounds: {low.size} values of lo, {high.size} of hi; give one a row.")
  if np.any(low > high):
    raise ValueError(f"clamp bounds lo={lo!r} > hi={hi!r}.")
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("clamp", target, {"lo": ("lo", lo), "hi": ("hi", hi)}, unit=unit, scale=scale)


def cap(
  d: DirectionLike,
  hi: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection at or below `hi` units (activation capping).

  Other arguments as `add`.
  """
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("cap", target, {"hi": ("hi", hi)}, unit=unit, scale=scale)


def floor(
  d: DirectionLike,
  lo: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that keeps the projection at or above `lo` units. Other arguments as `add`."""
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  return along("floor", target, {"lo": ("lo", lo)}, unit=unit, scale=scale)


def renorm_add(
  d: DirectionLike,
  coef: Amount,
  *,
  unit: Unit,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  replicate: int | None = None,
  heads: Heads | None = None,
  scale: ScaleTable | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit h + Δ, scaled back to the length of h. Arguments as `add`."""
  target = make_target(d, blocks, tokens, site, replicate, heads, allow_other_site)
  edit = along("renorm_add", target, {"shift": ("coef", coef)}, unit=unit, scale=scale)
  return edit.keep_norm()
