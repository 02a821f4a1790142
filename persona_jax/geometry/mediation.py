"""Whether a direction acts through refusal: with its refusal part alone, without, and held back.

Five arms add v at one block: v itself, v at right angles to r, v along r, v with a floor under the
projection on r at the blocks above, and v with a floor under that on a random direction. What the
first floor restores of v's effect went through r, as far as the second restores nothing.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from persona_jax import stats
from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.directions.space import Floors, floors
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import add
from persona_jax.edits.target import ScaleTable, Unit
from persona_jax.edits.window import Window
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt
from persona_jax.stats import Estimate

_Floats = NDArray[np.float64]


def floors_above(
  model: Model,
  chats: Sequence[Prompt],
  axis: Direction,
  block: int,
  *,
  percentile: float = 25.0,
  tokens: str | Window = "last",
) -> Floors:
  """Measure floors under the projection on an axis at all blocks above one.

  Args:
    model: the model, unedited.
    chats: of the baseline; with answers, where `tokens` are of answers.
    axis: refusal, or a random direction.
    block: below the first floor.
    percentile: of the baseline's projections.
    tokens: which are read: "last", "answer_mean", … (`directions.tokens.window_of`).

  Raises:
    ValueError: nothing is above the block where the axis has a vector; else as `space.floors`.
  """
  above = [b for b in range(block + 1, len(axis.mean_LD)) if axis.mean_LD[b].any()]
  if not above:
    raise ValueError(f"{axis.concept!r} has no vector above block {block}.")
  return floors(model, chats, axis, above, percentile=percentile, tokens=tokens)


def mediation_edits(
  d: Direction,
  r: Direction,
  block: int,
  coef: float,
  *,
  unit: Unit,
  floors_r: Floors,
  floors_random: Floors,
  scale: ScaleTable | None = None,
  tokens: str | Window = "answer",
) -> dict[str, list[Edit]]:
  """Make the edits of the five arms.

  A floor holds back what lowers the projection; give v the sign that lowers refusal.

  Args:
    d: the direction v.
    r: the refusal direction.
    block: where v is added.
    coef, unit, scale: its dose, as of `pj.add`.
    floors_r, floors_random: floors above the block (`floors_above`).
    tokens: the window of all edits.

  Returns:
    {"v", "v_perp_r" (as long as v), "v_par_r" (as long as that part of v is), "v+floor_r",
    "v+floor_random": edits}. A part that v has nothing of is an arm of no edits.

  Raises:
    ValueError: a floor at or below the block or along something else than r, r without a vector at
      the block, or as `pj.add`.
  """
  low = [b for both in (floors_r, floors_random) for b in both.floor if b <= block]
  if low:
    raise ValueError(f"floors at blocks {sorted(set(low))}; they must be above block {block}.")
  if floors_r.axis.hash != r.hash:
    raise ValueError(f"floors_r are of {floors_r.axis.concept!r}, not of {r.concept!r}.")
  if not r.mean_LD[block].any():
    raise ValueError(f"{r.concept!r} has no vector at block {block}.")
  whole = add(d, coef, unit=unit, blocks=block, scale=scale, tokens=tokens)
  assert whole.factor_LX is not None
  alpha = float(coef) * float(whole.factor_LX[0])
  made = controls(d, ("v_perp_r", "v_par_r"), against=r)
  arms = {"v": [whole]}
  for name, (part,) in made.items():
    norm = float(part.norm_L[block])
    share = norm / float(d.norm_L[block]) if name == "v_par_r" else 1.0
    kept = add(part, alpha * share, unit="unit", blocks=block, tokens=tokens) if norm else None
    arms[name] = [] if kept is None else [kept]
  arms["v+floor_r"] = [whole, *floors_r.edits(tokens=tokens)]
  arms["v+floor_random"] = [whole, *floors_random.edits(tokens=tokens)]
  return arms


def restored_fraction(
  y_v: ArrayLike,
  y_floor: ArrayLike,
  y_0: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return what a floor restores of v's effect: mean(y_v - y_floor) / mean(y_v - y_0).

  Args:
    y_v, y_floor, y_0: [N], an outcome of each prompt with v, with v and the floor, with neither.
    clusters: N labels; prompts with one label are drawn together.
    confidence: of the percentile interval of the bootstrap over clusters.
    draws, seed: of the bootstrap.

  Returns:
    1 where all is restored, 0 where nothing is. NaN with a reason where a value is missing or v has
    no effect; no interval where the interval of v's effect holds 0, for the fraction has no bounds.

  Raises:
    ValueError: arrays that are not [N] of one length, or an option that does not fit.
  """
  v_N, floor_N, base_N = _alike(y_v=y_v, y_floor=y_floor, y_0=y_0)
  options = {"confidence": confidence, "draws": draws, "seed": seed}
  return ratio_of_means(v_N - floor_N, v_N - base_N, clusters, **options)  # type: ignore[arg-type]


def kept_fraction(
  y_part: ArrayLike,
  y_v: ArrayLike,
  y_0: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return what a part of v has of v's effect: mean(y_part - y_0) / mean(y_v - y_0).

  Other arguments and errors as `restored_fraction`.
  """
  part_N, v_N, base_N = _alike(y_part=y_part, y_v=y_v, y_0=y_0)
  options = {"confidence": confidence, "draws": draws, "seed": seed}
  return ratio_of_means(part_N - base_N, v_N - base_N, clusters, **options)  # type: ignore[arg-type]


def _alike(**series: ArrayLike) -> list[_Floats]:
  arrays = [np.asarray(x, np.float64) for x in series.values()]
  shapes = {name: x.shape for name, x in zip(series, arrays, strict=True)}
  if len(set(shapes.values())) > 1 or arrays[0].ndim != 1 or not len(arrays[0]):
    raise ValueError(f"outcomes must be [N] of one length, N above 0; got {shapes}.")
  return arrays


def ratio_of_means(
  a_N: ArrayLike,
  b_N: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  confidence: float = 0.95,
  draws: int = 4000,
  seed: int = 0,
) -> Estimate:
  """Return mean(a) / mean(b) with a percentile interval of a bootstrap over clusters.

  Args and errors as `restored_fraction`.
  """
  a_N, b_N = _alike(a=a_N, b=b_N)
  n = len(a_N)
  below = stats.mean(b_N, clusters, confidence=confidence, draws=draws, seed=seed)
  missing = int((np.isnan(a_N) | np.isnan(b_N)).sum())
  if missing or below.value == 0:
    reason = f"{missing} of {n} values are missing" if missing else "the effect is 0"
    return Estimate(math.nan, math.nan, math.nan, n, reason)
  value = float(a_N.mean() / b_N.mean())
  _, cluster_N = np.unique(np.arange(n) if clusters is None else clusters, return_inverse=True)
  if cluster_N.max() == 0:
    return Estimate(value, math.nan, math.nan, n, "one cluster gives no interval")
  constant = math.isnan(below.low)  # all draws of the effect are the same
  if not constant and not below.excludes(0.0):
    return Estimate(value, math.nan, math.nan, n, "the interval of the effect holds 0")
  sums = [np.bincount(cluster_N, weights=x_N) for x_N in (a_N, b_N)]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
    interval = scipy.stats.bootstrap(
      sums,
      lambda a_K, b_K, axis=-1: a_K.sum(axis=axis) / b_K.sum(axis=axis),
      paired=True,
      vectorized=True,
      n_resamples=draws,
      confidence_level=confidence,
      method="percentile",
      rng=np.random.default_rng(seed),
    ).confidence_interval
  if interval.low == interval.high:
    return Estimate(
      value, math.nan, math.nan, n, "every draw is the same, so its spread is unknown"
    )
  return Estimate(value, float(interval.low), float(interval.high), n)
