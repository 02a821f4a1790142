"""Moments of activations over streams of prompts: counts, means, variances, covariances.

The sums live on the device, in float32, and no activation of a prompt leaves it. What makes that
safe over long streams where |mean| >> std (residual streams have such dimensions):

* all values are taken relative to a fixed reference, the mean of a label's first batch, so that
  what is summed is of the size of the spread and the mean is kept in two floats, reference + rest;
* a batch is reduced by the corrected two-pass algorithm and merged pairwise (Chan, Golub and
  LeVeque 1983, Am. Stat. 37: 242-247).

Measured against float64 on the same 50,000 rows, in batches of 100, with mean 1000 and std 1:
relative error of the mean 1e-10 (4e-9 where the first rows lie 5 std off), of variances 2e-6.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.table import Where
from persona_jax.engine.programs import PROGRAMS, Runner

# Observations after which the sums of a label go to the host: counts are int32, and sums of more
# batches lose digits.
_FLUSH = 1 << 28


class Work(NamedTuple):
  """What a stream cost.

  Attributes:
    prompts: prompts read.
    tokens: their tokens.
    passes: times that a token was sent through a block; shared beginnings are sent once.
    padded_passes: the same with padding.
  """

  prompts: int = 0
  tokens: int = 0
  passes: int = 0
  padded_passes: int = 0

  @property
  def padding(self) -> float:
    """Share of what was computed that is padding."""
    return 1 - self.passes / self.padded_passes if self.padded_passes else 0.0

  def plus(self, other: "Work") -> "Work":
    """Return the sum."""
    return Work(*(a + b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Moments of observations, by (site, block) and label; G labels.

  Attributes:
    labels: the labels, in the order in which they first came.
    count_G: int64, observations of each label.
    mean: float64 [G, D] by (site, block); [G, R] of projections.
    variance: float64 [G, D], mean squared deviation (divided by the count).
    covariance: float64 [G, D, D], the same for pairs of dimensions, or None.
    source: model, capture and bank that they are of; moments of other sources do not merge.
    work: what they cost.
  """

  labels: tuple[Hashable, ...]
  count_G: np.ndarray
  mean: dict[Where, np.ndarray]
  variance: dict[Where, np.ndarray]
  covariance: dict[Where, np.ndarray] | None = None
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  work: Work = Work()

  def __repr__(self) -> str:
    counts = ", ".join(f"{x!r}: {n}" for x, n in zip(self.labels, self.count_G, strict=True))
    return f"Moments({{{counts}}} at {len(self.mean)} places)"

  def index(self, label: Hashable) -> int:
    """Return the place of a label.

    Raises:
      ValueError: there is none of that name.
    """
    if label not in self.labels:
      raise ValueError(f"no label {label!r}; there are {list(self.labels)[:16]}.")
    return self.labels.index(label)

  def merge(self, other: "Moments") -> "Moments":
    """Return the moments of both streams together (Chan et al. 1983).

    Raises:
      ValueError: they are of other models, captures or banks, or only one has covariances.
    """
    if dict(self.source) != dict(other.source):
      raise ValueError(
        f"moments of {dict(self.source)} and of {dict(other.source)} do not merge; only shards of "
        "one stream do."
      )
    shapes = [{where: x.shape[1:] for where, x in m.mean.items()} for m in (self, other)]
    if shapes[0] != shapes[1]:
      raise ValueError(f"moments at {shapes[0]} and at {shapes[1]} do not merge.")
    if (self.covariance is None) != (other.covariance is None):
      raise ValueError("one of the moments has covariances and the other has none.")
    labels = tuple(dict.fromkeys((*self.labels, *other.labels)))
    a, b = self._spread(labels), other._spread(labels)
    count_G = a.count_G + b.count_G
    share_G1 = (b.count_G / count_G)[:, None]
    keep_G1 = 1 - share_G1
    mean, variance, covariance = {}, {}, {}
    for where in self.mean:
      delta_GD = b.mean[where] - a.mean[where]
      mean[where] = a.mean[where] + delta_GD * share_G1
      variance[where] = keep_G1 * a.variance[where] + share_G1 * b.variance[where]
      variance[where] += keep_G1 * share_G1 * delta_GD**2
      if a.covariance is not None and b.covariance is not None:
        outer_GDD = delta_GD[:, :, None] * delta_GD[:, None]
        share_G11, keep_G11 = share_G1[..., None], keep_G1[..., None]
        covariance[where] = keep_G11 * a.covariance[where] + share_G11 * b.covariance[where]
        covariance[where] += keep_G11 * share_G11 * outer_GDD
    return Moments(
      labels,
      count_G,
      mean,
      variance,
      None if self.covariance is None else covariance,
      self.source,
      self.work.plus(other.work),
    )

  def pooled(self) -> "Moments":
    """Return the moments of all observations together, under the label None."""
    one = [self._only(g) for g in range(len(self.labels))]
    whole = functools.reduce(Moments.merge, one)
    return dataclasses.replace(whole, work=self.work)

  def _only(self, g: int) -> "Moments":
    """Return one label's moments as those of None."""

    def pick(by_place: dict[Where, np.ndarray]) -> dict[Where, np.ndarray]:
      return {where: x[g : g + 1] for where, x in by_place.items()}

    covariance = None if self.covariance is None else pick(self.covariance)
    parts = self.count_G[g : g + 1], pick(self.mean), pick(self.variance), covariance
    return Moments((None,), *parts, self.source)

  def _spread(self, labels: Sequence[Hashable]) -> "Moments":
    """Return the same in the order of more labels, with counts of 0 where there is nothing."""
    place = {label: g for g, label in enumerate(self.labels)}
    index_G = np.asarray([place.get(label, -1) for label in labels])

    def spread(x: np.ndarray) -> np.ndarray:
      out = np.zeros((len(labels), *x.shape[1:]), x.dtype)
      out[index_G >= 0] = x[index_G[index_G >= 0]]
      return out

    mean, variance = (
      {where: spread(x) for where, x in m.items()} for m in (self.mean, self.variance)
    )
    covariance = None
    if self.covariance is not None:
      covariance = {where: spread(x) for where, x in self.covariance.items()}
    return Moments(tuple(labels), spread(self.count_G), mean, variance, covariance, self.source)


class _Sums(NamedTuple):
  """Running sums of one place; G labels, the last of them perhaps without an observation.

  Attributes:
    count_G: int32.
    reference_GD: float32, what values are taken relative to.
    mean_GD: float32, mean relative to the reference.
    square_GD: float32, sum of squared deviations from the mean.
    product_GDD: float32, sum of products of deviations, or None.
  """

  count_G: jax.Array
  reference_GD: jax.Array
  mean_GD: jax.Array
  square_GD: jax.Array
  product_GDD: jax.Array | None


class RunningMoments:
  """Moments of a stream of batches, on the device."""

  def __init__(self, *, covariance: bool = False, flush: int = _FLUSH, run: Runner = PROGRAMS):
    """Begin with nothing.

    Args:
      covariance: whether to keep second moments of pairs of dimensions.
      flush: observations after which sums are merged into float64 on the host.
      run: calls the device.
    """
    self._covariance, self._flush, self._run = covariance, flush, run
    self._numbers: dict[Hashable, int] = {}
    self._sums: dict[Where, _Sums] = {}
    self._held: dict[Where, int] = {}  # observations in the sums
    self._done: Moments | None = None

  def number(self, label: Hashable) -> int:
    """Return the number of a label, a new one for a new label."""
    return self._numbers.setdefault(label, len(self._numbers))

  def add(
    self,
    values: Mapping[Where, jax.Array],
    label_E: np.ndarray,
    *,
    index_E: np.ndarray | None = None,
    weight_E: np.ndarray | None = None,
  ) -> jax.Array:
    """Add a batch of E observations.

    Args:
      values: arrays [..., D] by place; the leading axes count as one, of N values.
      label_E: int, number of the label of each observation (`number`).
      index_E: int, which of the N values it is; default in order.
      weight_E: int, how often it counts; default once, 0 for padding.

    Returns:
      A scalar that is ready when the batch is in.
    """
    label_E = np.asarray(label_E, np.int32)
    size = len(label_E)
    index_E = np.arange(size, dtype=np.int32) if index_E is None else index_E.astype(np.int32)
    weight_E = np.ones(size, np.int32) if weight_E is None else weight_E.astype(np.int32)
    labels = 1 << max(0, len(self._numbers) - 1).bit_length()  # few shapes as labels come
    before = {where: self._ready(where, x.shape[-1], labels) for where, x in values.items()}
    after, ready = self._run("moments", _update, before, dict(values), index_E, label_E, weight_E)
    self._sums |= after
    for where in values:
      self._held[where] = self._held.get(where, 0) + int(weight_E.sum())
    return ready

  def flush(self) -> None:
    """Move the sums to the host if they are of many observations; all places must be complete."""
    if max(self._held.values(), default=0) >= self._flush:
      self._drain()

  def _ready(self, where: Where, width: int, labels: int) -> _Sums:
    """Return the sums of a place, with room for so many labels."""
    sums = self._sums.pop(where, None)
    if sums is None:
      return self._run(
        "begin moments", _begin, labels=labels, width=width, covariance=self._covariance
      )
    if len(sums.count_G) == labels:
      return sums
    return self._run("widen moments", _widen, sums, labels=labels)

  def _drain(self) -> None:
    """Move what the device holds to the host."""
    now = self._on_host()
    if now is not None:
      self._done = now if self._done is None else self._done.merge(now)
    self._sums, self._held = {}, {}

  def _on_host(self) -> Moments | None:
    """Return what the device holds, in float64."""
    if not self._sums:
      return None
    labels = list(self._numbers)
    sums: dict[Where, _Sums] = jax.tree.map(np.asarray, self._sums)
    counts = {where: np.asarray(x.count_G, np.int64)[: len(labels)] for where, x in sums.items()}
    count_G = next(iter(counts.values()))
    assert all(np.array_equal(count_G, other) for other in counts.values()), "a place was left out"
    there = np.flatnonzero(count_G)
    n_G1 = count_G[there, None].astype(np.float64)

    def of(x: Any) -> np.ndarray:
      return np.asarray(x, np.float64)[there]

    mean = {where: of(x.reference_GD) + of(x.mean_GD) for where, x in sums.items()}
    for where, x in mean.items():
      if not np.isfinite(x).all():
        raise ValueError(
          f"activations at {where} hold a NaN or an infinity (or squares beyond float32)."
        )
    return Moments(
      tuple(labels[g] for g in there),
      count_G[there],
      mean,
      {where: of(x.square_GD) / n_G1 for where, x in sums.items()},
      {where: of(x.product_GDD) / n_G1[..., None] for where, x in sums.items()}
      if self._covariance
      else None,
    )

  def moments(self, source: Mapping[str, Any] | None = None, work: Work | None = None) -> Moments:
    """Return the moments so far, with what they are of and cost.

    Raises:
      ValueError: there was no observation, or one with a NaN or an infinity.
    """
    self._drain()
    if self._done is None:
      raise ValueError("there are no observations to take moments of.")
    return dataclasses.replace(self._done, source=dict(source or {}), work=work or Work())


@functools.partial(jax.jit, static_argnames=("labels", "width", "covariance"))
def _begin(*, labels: int, width: int, covariance: bool) -> _Sums:
  """Return the sums of no observation."""
  product = jnp.zeros((labels, width, width), jnp.float32) if covariance else None
  reference, mean, square = (jnp.zeros((labels, width), jnp.float32) for _ in range(3))
  return _Sums(jnp.zeros(labels, jnp.int32), reference, mean, square, product)


@functools.partial(jax.jit, static_argnames=("labels",))
def _widen(sums: _Sums, *, labels: int) -> _Sums:
  """Make room for more labels."""
  room = labels - len(sums.count_G)
  return jax.tree.map(lambda x: jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)), sums)


_dot = functools.partial(
  jnp.dot, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


@functools.partial(jax.jit, donate_argnames="sums")
def _update(
  sums: dict[Where, _Sums],
  values: dict[Where, jax.Array],
  index_E: jax.Array,
  label_E: jax.Array,
  weight_E: jax.Array,
) -> tuple[dict[Where, _Sums], jax.Array]:
  """Merge a batch into the sums of all places: one dispatch, in place."""
  after = {
    where: _merge(sums[where], x.reshape(-1, x.shape[-1]), index_E, label_E, weight_E)
    for where, x in values.items()
  }
  return after, jnp.sum(weight_E)


def _merge(
  sums: _Sums, x_ND: jax.Array, index_E: jax.Array, label_E: jax.Array, weight_E: jax.Array
) -> _Sums:
  weight_GE = jnp.where(label_E == jnp.arange(len(sums.count_G))[:, None], weight_E, 0)
  batch_G = jnp.sum(weight_GE, axis=1)
  weight_GE = weight_GE.astype(jnp.float32)
  batch_G1 = jnp.maximum(batch_G, 1).astype(jnp.float32)[:, None]
  # What does not count may be anything, also an infinity.
  x_ED = jnp.where(weight_E[:, None] > 0, x_ND[index_E].astype(jnp.float32), 0.0)

  fresh_G1 = sums.count_G[:, None] == 0
  reference_GD = jnp.where(fresh_G1, _dot(weight_GE, x_ED) / batch_G1, sums.reference_GD)
  z_ED = x_ED - reference_GD[label_E]
  mean_GD = _dot(weight_GE, z_ED) / batch_G1
  z_ED -= mean_GD[label_E]
  left_GD = _dot(weight_GE, z_ED)  # 0 but for rounding
  square_GD = jnp.maximum(_dot(weight_GE, z_ED * z_ED) - left_GD * left_GD / batch_G1, 0.0)

  count_G = sums.count_G + batch_G
  share_G1 = (batch_G / jnp.maximum(count_G, 1)).astype(jnp.float32)[:, None]
  cross_G1 = sums.count_G[:, None].astype(jnp.float32) * share_G1
  delta_GD = mean_GD - sums.mean_GD
  product_GDD = sums.product_GDD
  if product_GDD is not None:

    def products(weight_E: jax.Array) -> jax.Array:
      return _dot(z_ED.T, z_ED * weight_E[:, None])

    outer_GDD = delta_GD[:, :, None] * delta_GD[:, None] * cross_G1[..., None]
    product_GDD += jax.lax.map(products, weight_GE) + outer_GDD
  return _Sums(
    count_G,
    reference_GD,
    sums.mean_GD + delta_GD * share_G1,
    sums.square_GD + square_GD + delta_GD * delta_GD * cross_G1,
    product_GDD,
  )
