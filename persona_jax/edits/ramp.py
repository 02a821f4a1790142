"""Ramps: how much of an edit acts at each step of generation."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

NUM_NUMBERS = 7


def _is_int(n: object) -> bool:
  return isinstance(n, (int, np.integer)) and not isinstance(n, bool)


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A factor on an edit that changes with the step, n = offset - start (0 = first answer token).

  "linear": first + (last - first) * clip((n + 1) / steps, 0, 1). "ema", the exponential moving
  average of a step from `first` to `last`: last + (first - last) * (1 - rate)^(n + 1). Before
  `start` the factor is `first`. Afterwards a dead band and a cap apply to its size.

  Attributes:
    steps: steps that a linear ramp takes.
    rate: share of the way that is left which an exponential one goes at each step, in (0, 1).
    first, last: factor before the ramp, and the one it goes to.
    start: offset of the step with which it begins.
    dead_band: a factor smaller than this, in size, is 0.
    cap: a factor larger than this, in size, is this.

  Raises:
    ValueError: neither or both of `steps` and `rate`, or a number out of its range.
  """

  steps: int | None = None
  rate: float | None = None
  first: float = 0.0
  last: float = 1.0
  start: int = 0
  dead_band: float = 0.0
  cap: float = math.inf

  def __post_init__(self) -> None:
    if (self.steps is None) == (self.rate is None):
      raise ValueError(f"{self}: give steps= (linear) or rate= (exponential), one of them.")
    if not all(_is_int(n) for n in (self.start, 1 if self.steps is None else self.steps)):
      raise ValueError(f"steps={self.steps}, start={self.start}: give whole numbers.")
    if self.steps is not None and self.steps < 1:
      raise ValueError(f"steps={self.steps}: a linear ramp takes at least 1 step.")
    if self.rate is not None and not 0 < self.rate < 1:
      raise ValueError(f"rate={self.rate}: an exponential ramp needs a number between 0 and 1.")
    if not (math.isfinite(self.first) and math.isfinite(self.last)):
      raise ValueError(f"first={self.first}, last={self.last}: give finite numbers.")
    if not 0 <= self.dead_band <= self.cap or not self.cap > 0:
      raise ValueError(f"dead_band={self.dead_band}, cap={self.cap}: 0 <= dead_band <= cap.")

  @property
  def shape(self) -> Literal["linear", "ema"]:
    """Its form."""
    return "linear" if self.steps is not None else "ema"

  @property
  def numbers(self) -> tuple[float, ...]:
    """(start, first, last, 1 / steps or 0, 1 - rate or 0, dead band, cap), as `factor` takes."""
    slope = 0.0 if self.steps is None else 1.0 / self.steps
    decay = 0.0 if self.rate is None else 1.0 - self.rate
    return (self.start, self.first, self.last, slope, decay, self.dead_band, self.cap)

  def at(self, offset_T: np.ndarray) -> np.ndarray:
    """Return the factor at tokens of these offsets, float32 [T]."""
    numbers = jnp.asarray(self.numbers, jnp.float32)[None, None]
    return np.asarray(factor(numbers, jnp.asarray(offset_T)[None]))[0, :, 0]

  def describe(self) -> dict[str, float | str]:
    """Return what was given as plain values for a config, log or hash."""
    given = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    }
    plain = {name: int(n) if _is_int(n) else float(n) for name, n in given.items()}
    return {"shape": self.shape, **plain}


# A factor of 1 at every step.
STEADY = (0.0, 1.0, 1.0, 0.0, 0.0, 0.0, math.inf)


def factor(ramp_BSR: jax.Array, offset_BT: jax.Array) -> jax.Array:
  """Return the factor of every slot at every token, float32 [B, T, S]."""
  start, first, last, slope, decay, band, cap = (
    ramp_BSR[:, None, :, r] for r in range(NUM_NUMBERS)
  )
  n_BTS = jnp.maximum(offset_BT[..., None].astype(jnp.float32) - start + 1, 0)
  done_BTS = jnp.where(decay > 0, 1 - decay**n_BTS, jnp.minimum(slope * n_BTS, 1))
  factor_BTS = first + (last - first) * done_BTS
  size_BTS = jnp.abs(factor_BTS)
  return jnp.where(size_BTS < band, 0.0, jnp.sign(factor_BTS) * jnp.minimum(size_BTS, cap))
