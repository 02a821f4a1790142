"""What a block calls at its sites, so that activations can be read and edited there."""

from typing import NamedTuple

import jax
from jax.typing import DTypeLike

from persona_jax.models import layers


class Norm(NamedTuple):
  """An RMSNorm that follows the residual stream; the fields are those of `layers.rms_norm`."""

  scale_D: jax.Array
  eps: float
  dtype: DTypeLike
  offset: float = 0.0

  def __call__(self, h_BTD: jax.Array) -> jax.Array:
    """Normalise an activation."""
    return layers.rms_norm(h_BTD, self.scale_D, self.eps, self.dtype, self.offset)


class Tap:
  """The hooks of one block; this one leaves every activation as it is.

  A block calls `tap(site, x)` at every site and goes on with what it gets. Where a branch is added
  to the residual stream it may call `add` or `add_and_norm` in its place, which lets one kernel
  do the addition, the edit and the norm.
  """

  def __call__(self, site: str, x: jax.Array) -> jax.Array:
    """Pass the activation of a site through: [B, T, D], or [B, T, N, H] at "head_out"."""
    del site
    return x

  def add(self, site: str, h_BTD: jax.Array, branch_BTD: jax.Array) -> jax.Array:
    """Return `tap(site, h + branch)`; both in the dtype of the stream."""
    return self(site, h_BTD + branch_BTD)

  def add_and_norm(
    self, site: str, h_BTD: jax.Array, branch_BTD: jax.Array, norm: Norm
  ) -> tuple[jax.Array, jax.Array]:
    """Return the stream h = `add(site, h, branch)` and `norm(h)`."""
    h_BTD = self.add(site, h_BTD, branch_BTD)
    return h_BTD, norm(h_BTD)
