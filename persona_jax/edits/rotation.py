"""Rotation in the plane of two directions (Angular Steering, Vu & Nguyen 2025)."""

import numpy as np

from persona_jax.edits.edit import DirectionLike, Edit
from persona_jax.edits.target import Blocks, Heads, joint_hash, make_target, orthonormal
from persona_jax.edits.window import Window


def rotate(
  d1: DirectionLike,
  d2: DirectionLike,
  angle: float | None = None,
  *,
  to: float | None = None,
  adaptive: bool = False,
  blocks: Blocks,
  tokens: str | Window = "answer",
  site: str | None = None,
  heads: Heads | None = None,
  allow_other_site: bool = False,
) -> Edit:
  """Make the edit that turns h within the plane of two directions; its length is kept.

  The plane's axes are d1 and the part of d2 at right angles to it; angles count from d1 to d2.

  Args:
    d1: first axis: in Angular Steering the feature.
    d2: second direction: there, the first principal component of the blocks' candidates.
    angle: degrees to turn by.
    to: degrees at which h's part in the plane is to lie; give `angle` or `to`.
    adaptive: turn only tokens with a positive projection on `d1`.
    blocks, tokens, site, heads, allow_other_site: as `pj.add`.

  Raises:
    ValueError: neither or both of `angle` and `to`, an angle that is not finite, parallel
      directions; else as `pj.add`.
  """
  given = [x for x in (angle, to) if x is not None]
  if len(given) != 1 or not np.isfinite(given[0]):
    raise ValueError(f"angle={angle!r}, to={to!r}: give one of them, in degrees, finite.")
  if not isinstance(adaptive, (bool, np.bool_)):
    raise ValueError(f"adaptive={adaptive!r}: give True or False.")
  first, second = (
    make_target(d, blocks, tokens, site, None, heads, allow_other_site) for d in (d1, d2)
  )
  if first.vectors_LXD.shape != second.vectors_LXD.shape or first.site != second.site:
    raise ValueError(
      f"directions {d1.concept!r} and {d2.concept!r} differ in blocks, width or site."
    )
  pair_L2XD, independent = orthonormal([first.unit_LXD, second.unit_LXD], first.head_mask_N)
  if not independent:
    raise ValueError(
      f"directions {d1.concept!r} and {d2.concept!r} are parallel at some of the blocks "
      f"{list(first.blocks)}; they span no plane."
    )
  shape = (len(first.blocks), 1, *first.norm_LX.shape[1:])
  name = "angle" if to is None else "to"
  return Edit(
    op="rotate",
    kind="rotate",
    site=first.site,
    blocks=first.blocks,
    numbers={
      "pair": np.moveaxis(pair_L2XD, 1, -2)[:, None],
      "angle": np.full(shape, np.deg2rad((given[0] + 180) % 360 - 180)),
      "to": np.full(shape, to is not None),
      "above": np.full(shape, 0.0 if adaptive else -np.inf),
    },
    width=d1.vectors_SLD.shape[2],
    window=first.window,
    amounts={name: float(given[0]), "adaptive": adaptive},
    unit="degrees",
    factor_LX=None,
    concept=f"{d1.concept} ^ {d2.concept}",
    direction_hash=joint_hash([d1, d2]),
    num_blocks=d1.vectors_SLD.shape[1],
    head_mask_N=first.head_mask_N,
  )
