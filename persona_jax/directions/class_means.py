"""Means of the classes of contrasts, from sums on the device: no activation is kept."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.directions.contrasts import Found, Pairs
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.model import Model, Progress
from persona_jax.engine.rows import Row

Means = tuple[np.ndarray, np.ndarray]  # of positives and of negatives


def from_sums(
  model: Model,
  rows: Sequence[Row],
  capture: Capture,
  pairs: Mapping[str, Pairs],
  methods: Sequence[str],
  progress: Progress | None,
) -> dict[tuple[str, str], Found]:
  """Make directions of means: rows are summed on the device, by half of a replicate."""
  group_N = np.zeros(len(rows), int)
  first = 0
  firsts: dict[str, tuple[int, np.ndarray]] = {}
  for concept, pair in pairs.items():
    own_N = pair.label_N * 2 + pair.half_N
    count_G = np.bincount(own_N)
    firsts[concept] = first, count_G
    positives, negatives = pair.rows
    group_N[positives], group_N[negatives] = first + own_N, first + len(count_G) + own_N
    first += 2 * len(count_G)
  sums_GLD = _group_sums(model, rows, capture, group_N, progress)

  def means(concept: str, chosen_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class means of some groups of a contrast, [L, D] each."""
    first, count_G = firsts[concept]
    x, y = np.split(sums_GLD[first : first + 2 * len(count_G)], 2)
    count = count_G[chosen_G].sum()
    return x[chosen_G].sum(axis=0) / count, y[chosen_G].sum(axis=0) / count

  by_subset: dict[str, list[Means]] = {}
  for concept, pair in pairs.items():
    groups = np.arange(len(firsts[concept][1]))
    chosen = [groups // 2 == s for s in range(pair.num_replicates)]
    if pair.has_halves:
      chosen += [groups % 2 == 0, groups % 2 == 1]
    by_subset[concept] = [means(concept, groups[mine]) for mine in chosen]
  whole = {concept: means(concept, np.arange(len(firsts[concept][1]))) for concept in pairs}
  centred = centre(by_subset, whole, {c: pair.num_replicates for c, pair in pairs.items()})
  out = {}
  for concept, both in by_subset.items():
    gaps = [x - y for x, y in both]
    for method in methods:
      out[method, concept] = Found(gaps if method == "diff_means" else centred[concept], gaps)
  return out


def centre(
  means: Mapping[str, Sequence[Means]], whole: Mapping[str, Means], replicates: Mapping[str, int]
) -> dict[str, list[np.ndarray]]:
  """Return mean(positives) less the mean of all classes, of each contrast and subset of its pairs.

  The centre is that of all contrasts. A half of the pairs has a centre of its own, made of the same
  half of every contrast: with one centre in common, halves would agree about its error.

  Args:
    means: class means [..., D] of each contrast and subset (`Pairs.subsets`).
    whole: the same of all its pairs.
    replicates: S of each contrast: after so many subsets come the halves, if there are any.
  """

  def centre_of(half: int | None) -> np.ndarray:
    both = [
      whole[c] if half is None or len(mine) == replicates[c] else mine[replicates[c] + half]
      for c, mine in means.items()
    ]
    found: np.ndarray = np.mean([mean for pair in both for mean in pair], axis=0)
    return found

  centres = {None: centre_of(None), 0: centre_of(0), 1: centre_of(1)}
  return {
    c: [x - centres[None if n < replicates[c] else n - replicates[c]] for n, (x, _) in enumerate(m)]
    for c, m in means.items()
  }


def _group_sums(
  model: Model,
  rows: Sequence[Row],
  capture: Capture,
  group_N: np.ndarray,
  progress: Progress | None,
) -> np.ndarray:
  """Sum activations within groups of rows, on the device; return float64 [G, L, D].

  They are relative to the mean of the first tile, since a residual stream has dimensions whose mean
  is a thousand times their spread, and float32 would lose it. Differences of means do not see it.
  """
  num_groups, arch = int(group_N.max()) + 1, model.arch
  sums_GLD = np.zeros((num_groups, arch.num_blocks, arch.site_width(capture.sites[0])))
  reference_LD = None
  for tile in batches(model, rows, capture):
    h_LBD = [tile.reads[capture.sites[0], block] for block in range(arch.num_blocks)]
    group_B = np.full(len(h_LBD[0]), num_groups, np.int32)  # padding is in no group
    group_B[: len(tile.numbers)] = group_N[tile.numbers]
    if reference_LD is None:
      reference_LD = tile.run("mean of rows", _mean_rows, h_LBD, group_B < num_groups)
    # Only the sums of a tile leave the device; tiles are added in float64.
    sums_GLD += np.asarray(
      tile.run("sum groups", _sum_groups, h_LBD, reference_LD, group_B, groups=num_groups)
    )
    if progress is not None:
      progress(len(tile.numbers))
  return sums_GLD


@jax.jit
def _mean_rows(h_LBD: list[jax.Array], real_B: jax.Array) -> list[jax.Array]:
  """Return the mean of the rows that are none of padding, [D] of each block."""
  return [jnp.mean(h_BD, axis=0, where=real_B[:, None]) for h_BD in h_LBD]


@functools.partial(jax.jit, static_argnames=("groups",))
def _sum_groups(
  h_LBD: list[jax.Array], reference_LD: list[jax.Array], group_B: jax.Array, *, groups: int
) -> jax.Array:
  """Sum rows, less the reference, within groups at every block, [G, L, D]."""
  sums = [
    jax.ops.segment_sum(h_BD - reference_D, group_B, groups)
    for h_BD, reference_D in zip(h_LBD, reference_LD, strict=True)
  ]
  return jnp.stack(sums, axis=1)
