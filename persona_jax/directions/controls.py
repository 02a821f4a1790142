"""`pj.controls`: what a direction's effect is compared with.

Random directions of the same size tell what any push would do, in all of activation space ("R-iso")
or where the data vary ("R-cov"); the direction of shuffled labels ("R-shuf") tells what extraction
finds in noise. The parts of a direction at right angles to refusal and along it tell which of them
an effect is due to.

Draws do not depend on the direction, so all directions of a model share theirs up to their size,
and the first k of n draws are the draws of n = k.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_jax.directions.activations import Activations
from persona_jax.directions.direction import Direction, in_common
from persona_jax.directions.dose import Dose
from persona_jax.directions.methods import METHODS, NoComponent
from persona_jax.engine.moments import Moments
from persona_jax.engine.rows import derive_seed

KINDS = ("R-iso", "R-cov", "R-shuf", "R-plac", "-v", "v_perp_r", "v_par_r", "+-r", "floor")
_SPELLINGS = {"v⊥r": "v_perp_r", "v∥r": "v_par_r", "±r": "+-r", "−v": "-v"}
_NEEDS = {
  "R-cov": ("moments", "pj.Moments with covariance, or a pj.Dose, of the direction's site"),
  "R-shuf": ("pairs", "the activations (x_NLD, y_NLD) that the direction was made of"),
  "R-plac": ("placebo", "directions of contrasts that are no trait"),
  "v_perp_r": ("against", "a refusal direction, or several"),
  "v_par_r": ("against", "a refusal direction, or several"),
  "+-r": ("against", "a refusal direction"),
  "floor": ("against", "a refusal direction"),
}
_NOTHING = 1e-5  # share of a vector's length that is left of float32 vectors by rounding alone

_Floats = NDArray[np.float64]
Pairs = tuple[np.ndarray, np.ndarray] | tuple[Activations, Activations]


def controls(
  d: Direction,
  kinds: str | Sequence[str],
  *,
  n: int = 64,
  against: Direction | Sequence[Direction] | None = None,
  moments: Moments | Dose | None = None,
  pairs: Pairs | None = None,
  placebo: Sequence[Direction] | None = None,
  seed: int = 0,
) -> dict[str, list[Direction]]:
  """Make the control directions of a direction.

  Random ones are [1, L, D], as long as `d` at each block (at each head, at "head_out"), and have
  its class gap, so that every unit but "sigma", which is a property of each vector, is the same
  dose. They are zero where `d` is.

  Args:
    d: the direction v.
    kinds: codes, one or several:
      "R-iso": n isotropic vectors.
      "R-cov": n draws from N(0, Σ) at each block. Of a `Dose` they are Gaussian combinations of the
        sample, the same at every block, so that blocks vary together as they do in the data.
      "R-shuf": n vectors extracted anew after the two sides of random pairs have been swapped, by
        the method that `d` was made with where that reads pairs, else as differences of means.
      "R-plac": the directions of `placebo`, as they are.
      "-v": v turned round.
      "v_perp_r" (or "v⊥r"): v less its component in the span of `against`, as long as v, at each
        block and replicate; zero where a direction of `against` is or where nothing is left.
      "v_par_r" (or "v∥r"): that component, at its own length. Its unit vector added with the dose
        of v is more than v holds of it: use unit="raw" or "gap", or scale the dose.
      "+-r" (or "±r"): r = `against` and -r, at their own length.
      "floor": r and a random direction of its length, to put a floor under: of the covariance if
        `moments` is given, else isotropic.
    n: number of random directions.
    against: the refusal direction r; for the two parts of v also several, whose span it is.
    moments: covariance of activations at the site of `d`, or a dose's sample; labels are pooled.
    pairs: activations of positives and negatives, each [N, L, D] or `Activations`.
    placebo: directions of contrasts that are no trait.
    seed: of the draws; each kind has a stream of its own.

  Returns:
    {kind as it was spelled: its directions}. Provenance has kind, seed, index and parent's hash.

  Raises:
    ValueError: an unknown kind, one whose argument is missing, or arguments of other types, shapes,
      blocks or sites than `d`.
  """
  asked = [kinds] if isinstance(kinds, str) else list(kinds)
  unknown = [kind for kind in asked if _SPELLINGS.get(kind, kind) not in KINDS]
  if unknown or not asked:
    raise ValueError(f"control kinds {unknown or asked}: use some of {list(KINDS)}.")
  if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
    raise ValueError(f"n={n!r} random directions; give at least 1.")
  if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
    raise ValueError(f"seed={seed!r}; give an int.")
  if not isinstance(d, Direction):
    raise ValueError(f"d is a {type(d).__name__}; give a pj.Direction.")
  if not isinstance(moments, (Moments, Dose, type(None))):
    raise ValueError(f"moments is a {type(moments).__name__}; give pj.Moments or a pj.Dose.")
  given = {"moments": moments, "pairs": pairs, "placebo": placebo, "against": against}
  for kind in asked:
    name, what = _NEEDS.get(_SPELLINGS.get(kind, kind), ("", ""))
    if name and (given[name] is None or (name == "placebo" and not placebo)):
      raise ValueError(f"control {kind!r} needs {name}=: {what}.")
  refusals = [against] if isinstance(against, Direction) else list(against or ())
  for where, others in (("against", refusals), ("placebo", placebo or ())):
    for other in others:
      _check_alike(d, other, where)
  made: dict[str, list[Direction]] = {}
  for spelled in asked:
    kind = _SPELLINGS.get(spelled, spelled)
    if kind in ("+-r", "floor") and len(refusals) != 1:
      raise ValueError(f"control {spelled!r} needs one refusal direction, got {len(refusals)}.")
    if kind == "R-plac":
      made[spelled] = list(placebo or ())
    elif kind == "-v":
      made[spelled] = [_turned(d, kind)]
    elif kind == "+-r":
      made[spelled] = [refusals[0], _turned(refusals[0], kind)]
    elif kind == "floor":
      made[spelled] = [refusals[0], *_random(kind, refusals[0], 1, moments, None, seed)]
    elif kind.startswith("v_"):
      made[spelled] = [_part(d, kind, refusals)]
    else:
      made[spelled] = _random(kind, d, int(n), moments, pairs, seed)
  return made


def _check_alike(d: Direction, other: Direction, where: str) -> None:
  if not isinstance(other, Direction):
    raise ValueError(f"{where} holds a {type(other).__name__}; give pj.Directions.")
  mine, theirs = ((x.vectors_SLD.shape[1:], x.site, x.num_heads) for x in (d, other))
  if mine != theirs:
    raise ValueError(
      f"direction {other.concept!r} has (blocks, width), site and heads {theirs}; {d.concept!r} "
      f"has {mine}."
    )


def _about(kind: str, parent: Direction, **more: Any) -> dict[str, Any]:
  known = {"method": f"control:{kind}", "kind": kind, "parent": parent.hash}
  return known | {"parent_concept": parent.concept, **in_common([parent]), **more}


def _by_part(x_D: np.ndarray, d: Direction) -> _Floats:
  """Return arrays [..., D] as [..., X, D']: a part for each head at "head_out", else one."""
  parts = d.num_heads or 1
  found: _Floats = np.asarray(x_D, np.float64).reshape(*x_D.shape[:-1], parts, -1)
  return found


def _length(x_XD: _Floats) -> _Floats:
  found: _Floats = np.linalg.norm(x_XD, axis=-1, keepdims=True)
  return found


def _as_long_as(x_RLD: _Floats, d: Direction) -> _Floats:
  """Return vectors scaled, part by part, to the length of the mean of a direction."""
  x_RLXD, mean_LXD = _by_part(x_RLD, d), _by_part(d.mean_LD, d)
  length = _length(x_RLXD)
  scaled = x_RLXD / np.where(length > 0, length, 1.0) * _length(mean_LXD)
  found: _Floats = scaled.reshape(x_RLD.shape)
  return found


def _turned(d: Direction, kind: str) -> Direction:
  about = _about(kind, d)
  return Direction(
    -d.vectors_SLD, f"-{d.concept}", d.site, about, d.gap_L, d.reliability_L, d.num_heads
  )


def _random(
  kind: str,
  d: Direction,
  n: int,
  moments: Moments | Dose | None,
  pairs: Pairs | None,
  seed: int,
) -> list[Direction]:
  """Make n random directions as long as `d`; a "floor" is of the covariance if there is one."""
  source: dict[str, Any] = {}
  if kind == "R-shuf":
    assert pairs is not None
    x_RLD, method = _shuffled(d, n, pairs, seed)
    source["extracted_by"] = method
  elif moments is not None and kind != "R-iso":
    x_RLD = _of_covariance(kind, d, n, moments, seed)
    source["drawn_from"] = "covariance"
  else:
    rng = np.random.default_rng(derive_seed("controls", kind, seed))
    x_RLD = rng.normal(size=(n, *d.vectors_SLD.shape[1:]))
    source["drawn_from"] = "isotropic"
  about = _about(kind, d, seed=seed, **source)
  return [
    Direction(
      x_LD[None],
      f"{kind} {i}",
      d.site,
      about | {"index": i},
      gap_L=d.gap_L,
      num_heads=d.num_heads,
    )
    for i, x_LD in enumerate(_as_long_as(x_RLD, d))
  ]


def _of_covariance(kind: str, d: Direction, n: int, moments: Moments | Dose, seed: int) -> _Floats:
  """Draw from N(0, Σ) at each block, [n, L, D]."""
  _, num_blocks, width = d.vectors_SLD.shape
  draws = np.empty((n, num_blocks, width))
  if isinstance(moments, Dose):
    found = (moments.sample_LND.shape[0], moments.sample_LND.shape[2], moments.site)
    if found != (num_blocks, width, d.site):
      raise ValueError(
        f"the dose has (blocks, width, site) {found}; direction {d.concept!r} has "
        f"{(num_blocks, width, d.site)}."
      )
    count = moments.sample_LND.shape[1]
    weight_RN = np.random.default_rng(derive_seed("controls", kind, seed)).normal(size=(n, count))
    for block, x_ND in enumerate(moments.sample_LND.astype(np.float64)):
      draws[:, block] = weight_RN @ (x_ND - x_ND.mean(axis=0)) / np.sqrt(count)
    return draws
  pooled = moments.pooled() if len(moments.labels) > 1 else moments
  if pooled.covariance is None:
    raise ValueError("moments= has no covariance; take them with covariance=True.")
  for block in range(num_blocks):
    cov_GDD = pooled.covariance.get((d.site, block))
    if cov_GDD is None or cov_GDD.shape[1:] != (width, width):
      raise ValueError(
        f"moments= has no covariance of width {width} at site {d.site!r} of block {block}; it has "
        f"{sorted(pooled.covariance)[:4]}."
      )
    value_D, basis_DD = np.linalg.eigh(cov_GDD[0])
    rng = np.random.default_rng(derive_seed("controls", kind, seed, block))
    z_RD = rng.normal(size=(n, width)) * np.sqrt(np.maximum(value_D, 0.0))
    draws[:, block] = z_RD @ basis_DD.T
  return draws


def _shuffled(d: Direction, n: int, pairs: Pairs, seed: int) -> tuple[_Floats, str]:
  """Extract from pairs whose sides were swapped at random, [n, L, D]; and the method's name."""
  if len(pairs) != 2:
    raise ValueError(f"pairs= has {len(pairs)} parts; give (positives, negatives).")
  _, num_blocks, width = d.vectors_SLD.shape

  def side(x: np.ndarray | Activations, block: int) -> _Floats:
    x_ND = x[:, block] if isinstance(x, np.ndarray) else x.block(block)
    return np.asarray(x_ND, np.float64)

  for x in pairs:
    if isinstance(x, np.ndarray) and (x.ndim != 3 or x.shape[1:] != (num_blocks, width)):
      raise ValueError(f"pairs= has shape {x.shape}; direction {d.concept!r} needs [N, L, D].")
  count, other = (len(side(x, 0)) for x in pairs)
  if count != other or count < 2:
    raise ValueError(f"pairs= has {count} positives and {other} negatives; give as many, 2 or more")
  rng = np.random.default_rng(derive_seed("controls", "R-shuf", seed))
  swapped_RN = rng.integers(0, 2, size=(n, count)).astype(bool)
  method = str(d.provenance.get("method"))
  method = method if method in METHODS else "diff_means"
  known = dict(METHODS[method].options)
  options = {name: d.provenance.get(name, default) for name, default in known.items()}
  found = np.zeros((n, num_blocks, width))
  for block in range(num_blocks):
    x_ND, y_ND = (side(x, block) for x in pairs)
    if method == "diff_means":
      found[:, block] = np.where(swapped_RN, -1.0, 1.0) @ (x_ND - y_ND) / count
      continue
    for r, swapped_N in enumerate(swapped_RN):
      sides = np.where(swapped_N[:, None], [y_ND, x_ND], [x_ND, y_ND])
      try:
        found[r, block] = METHODS[method].make(*sides, **options)
      except NoComponent:  # as in extraction: zero where there is nothing to find
        pass
  return found, method


def _part(d: Direction, kind: str, refusals: Sequence[Direction]) -> Direction:
  """Return the part of a direction in the span of others, or what is left, at its length."""
  v_SLXD = _by_part(d.vectors_SLD, d)
  r_KLXD = _by_part(np.stack([r.mean_LD for r in refusals]), d)
  there_LX1 = (_length(r_KLXD) > 0).all(axis=0)
  inside_SLXD = _inside(v_SLXD, r_KLXD)
  x_SLXD = inside_SLXD if kind == "v_par_r" else v_SLXD - inside_SLXD
  left = there_LX1 & (_length(x_SLXD) > _NOTHING * _length(v_SLXD))
  x_SLXD = np.where(left, x_SLXD, 0.0)
  gap_L = d.gap_L
  if kind == "v_perp_r":
    x_SLXD = x_SLXD / np.where(left, _length(x_SLXD), 1.0) * _length(v_SLXD)
  elif gap_L is not None:  # so that the unit "gap" counts as many as in v
    whole_LX = _length(v_SLXD.mean(axis=0))[..., 0]
    share_LX = _length(x_SLXD.mean(axis=0))[..., 0] / np.where(whole_LX > 0, whole_LX, 1.0)
    gap_L = gap_L * (share_LX if d.num_heads is not None else share_LX[:, 0])
  about: Mapping[str, Any] = _about(kind, d, against=[r.hash for r in refusals])
  names = " + ".join(r.concept for r in refusals)
  sign = "along" if kind == "v_par_r" else "at right angles to"
  return Direction(
    x_SLXD.reshape(d.vectors_SLD.shape),
    f"{d.concept} {sign} {names}",
    d.site,
    about,
    gap_L,
    num_heads=d.num_heads,
  )


def _inside(v_SLXD: _Floats, r_KLXD: _Floats) -> _Floats:
  """Return the component of v in the span of the K vectors at each block and part."""
  length = _length(r_KLXD)
  unit_LXKD = np.moveaxis(r_KLXD / np.where(length > 0, length, 1.0), 0, -2)
  _, s_LXK, basis_LXKD = np.linalg.svd(unit_LXKD, full_matrices=False)
  basis_LXKD = basis_LXKD * (s_LXK > _NOTHING)[..., None]
  along_SLXK = np.einsum("...lxd,lxkd->...lxk", v_SLXD, basis_LXKD)
  found: _Floats = np.einsum("...lxk,lxkd->...lxd", along_SLXK, basis_LXKD)
  return found
