"""Means of the classes of contrasts, from sums on the device: no activation is kept."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.directions.contrasts import LEAST_HALVES, Found, Pairs
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.model import Model, Progress
from persona_jax.engine.rows import Row


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
    own_N = pair.label_N * 2 + np.arange(len(pair.label_N)) % 2
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

  whole = {concept: means(concept, np.arange(len(firsts[concept][1]))) for concept in pairs}
  centre_LD = np.mean([mean for both in whole.values() for mean in both], axis=0)
  out = {}
  for concept, pair in pairs.items():
    groups = np.arange(len(firsts[concept][1]))
    chosen = [groups // 2 == s for s in range(int(pair.label_N.max()) + 1)]
    if len(pair.label_N) >= LEAST_HALVES:
      chosen += [groups % 2 == 0, groups % 2 == 1]
    both = [means(concept, groups[mine]) for mine in chosen]
    gaps = [x - y for x, y in both]
    for method in methods:
      vectors = gaps if method == "diff_means" else [x - centre_LD for x, _ in both]
      out[method, concept] = Found(vectors, gaps)
  return out


def _group_sums(
  model: Model,
  rows: Sequence[Row],
  capture: Capture,
  group_N: np.ndarray,
  progress: Progress | None,
) -> np.ndarray:
  """Sum activations within groups of rows, on the device; return float64 [G, L, D]."""
  num_groups, arch = int(group_N.max()) + 1, model.arch
  sums_GLD = np.zeros((num_groups, arch.num_blocks, arch.site_width(capture.sites[0])))
  for tile in batches(model, rows, capture):
    h_LBD = [tile.reads[capture.sites[0], block] for block in range(arch.num_blocks)]
    group_B = np.full(len(h_LBD[0]), num_groups, np.int32)  # padding is in no group
    group_B[: len(tile.numbers)] = group_N[tile.numbers]
    # Only the sums of a tile leave the device; tiles are added in float64.
    sums_GLD += np.asarray(tile.run("sum groups", _sum_groups, h_LBD, group_B, groups=num_groups))
    if progress is not None:
      progress(len(tile.numbers))
  return sums_GLD


@functools.partial(jax.jit, static_argnames=("groups",))
def _sum_groups(h_LBD: list[jax.Array], group_B: jax.Array, *, groups: int) -> jax.Array:
  """Sum rows within groups at every block, [G, L, D]."""
  return jnp.stack([jax.ops.segment_sum(h_BD, group_B, groups) for h_BD in h_LBD], axis=1)
