"""The engine's tap: edits and reads of one block, in plain XLA or in a fused kernel.

Which one is a matter of the device (`choose`). A kernel serves a site where a branch is added to
the residual stream and all edits are of projections; additions never need one, XLA folds them into
what is there.
"""

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from persona_jax.edits.apply import Delivery, TokenInfo, apply_site, rounded, slots_of
from persona_jax.edits.table import Site
from persona_jax.engine.capture import CaptureSpec, read
from persona_jax.models.tap import Norm, Tap
from persona_kernels.edit_norm import Implementation, edit_norm

Kernels = Literal["auto", "xla", "mosaic_tpu", "mosaic_gpu"]
KERNELS: tuple[str, ...] = ("auto", "xla", "mosaic_tpu", "mosaic_gpu")

# What "auto" means: the kernel, and the step of tokens from which on it pays, by kind of device;
# what is not here is plain XLA. BENCHMARKS.md has the figures. For prompts, by the TPU compiler's
# estimate, the kernel saves 6 % of an edited block on v5e and up to 3 % on v5p; on v6e and tpu7x
# there is nothing in it. For a step of decoding XLA is the cheaper everywhere, since the kernel
# reads tokens by sixteens. On an H200 the kernel by itself is 6 to 12 % faster than XLA on prompts
# and slower on steps of decoding with many edits (measured); of whole blocks too little is known.
_AUTO: dict[str, tuple[Implementation, int]] = {
  "TPU v5 lite": ("mosaic_tpu", 32),
  "TPU v5": ("mosaic_tpu", 32),  # v5p
}


class Fused(NamedTuple):
  """A kernel to run edits of projections with; static.

  Attributes:
    implementation: of `persona_kernels.edit_norm`.
    interpret: whether its device is simulated on the host.
    mesh: devices that the rows are split over, or None.
    token_step: passes over a number of tokens that is no multiple of this are left to XLA.
  """

  implementation: Implementation
  interpret: bool
  mesh: Mesh | None
  token_step: int = 1


def choose(kernels: Kernels, mesh: Mesh | None, device: jax.Device) -> Fused | None:
  """Resolve `Model.kernels` for a device, the first of a mesh if there is one; None is plain XLA.

  Raises:
    ValueError: `kernels` is unknown.
  """
  if kernels not in KERNELS:
    raise ValueError(f"kernels={kernels!r}: use one of {KERNELS}.")
  name, step = _AUTO.get(device.device_kind, ("xla", 1)) if kernels == "auto" else (kernels, 1)
  return None if name == "xla" else Fused(name, device.platform == "cpu", mesh, step)


class SiteTap(Tap):
  """Applies the edits of one block and reads its sites.

  Attributes:
    reads: what was read, by site.
    changes: float32 [B, T] by edited site, the length of the change, if `trace`.
    deliveries: what each edited site delivered.
  """

  def __init__(
    self,
    sites: Mapping[str, Site],
    tokens: TokenInfo,
    spec: CaptureSpec | None,
    bank_RD: jax.Array | None,
    fused: Fused | None,
    trace: bool = False,
    sets_BCT: jax.Array | None = None,
  ):
    self._sites, self._tokens, self._spec = sites, tokens, spec
    self._bank_RD, self._fused, self._trace = bank_RD, fused, trace
    self._sets_BCT = sets_BCT
    self.reads: dict[str, jax.Array] = {}
    self.changes: dict[str, jax.Array] = {}
    self.deliveries: list[Delivery] = []

  @property
  def delivery(self) -> Delivery | None:
    """The sum of what the sites delivered, None without an edit."""
    return functools.reduce(Delivery.plus, self.deliveries) if self.deliveries else None

  def __call__(self, site: str, x: jax.Array) -> jax.Array:
    """Edit the activation of a site, then read it."""
    if site in self._sites:
      before = x
      x, delivery = apply_site(self._sites[site], x, self._tokens)
      self.deliveries.append(delivery)
      self._note(site, before, x)
    return self._read(site, x)

  def add(self, site: str, h_BTD: jax.Array, branch_BTD: jax.Array) -> jax.Array:
    """Add a branch to the stream, edit the sum, read it."""
    h_BTD, _ = self._fuse(site, h_BTD, branch_BTD, None)
    return h_BTD

  def add_and_norm(
    self, site: str, h_BTD: jax.Array, branch_BTD: jax.Array, norm: Norm
  ) -> tuple[jax.Array, jax.Array]:
    """Add a branch to the stream, edit the sum, read it, normalise it."""
    h_BTD, y_BTD = self._fuse(site, h_BTD, branch_BTD, norm)
    return h_BTD, norm(h_BTD) if y_BTD is None else y_BTD

  def _fuse(
    self, site: str, h_BTD: jax.Array, branch_BTD: jax.Array, norm: Norm | None
  ) -> tuple[jax.Array, jax.Array | None]:
    stage = self._sites[site].proj if site in self._sites else None
    fused = self._fused
    if fused is None or stage is None or h_BTD.shape[1] % fused.token_step:
      return self(site, h_BTD + branch_BTD), None
    slots = slots_of(stage, self._tokens)
    out = edit_norm(
      h_BTD,
      branch_BTD,
      slots,
      None if norm is None else norm.scale_D,
      eps=0.0 if norm is None else norm.eps,
      offset=0.0 if norm is None else norm.offset,
      dtype=None if norm is None else norm.dtype,
      implementation=fused.implementation,
      interpret=fused.interpret,
      mesh=fused.mesh,
    )
    on_BT = jnp.any(slots.strength_BTS != 0, axis=-1)
    realised_B, requested_B = (jnp.sum(x, axis=1) for x in (out.realised_BT, out.requested_BT))
    self.deliveries.append(Delivery(realised_B, requested_B, on_BT))
    self._note(site, h_BTD + branch_BTD, out.h_BTD)
    return self._read(site, out.h_BTD), out.y_BTD

  def _note(self, site: str, before: jax.Array, after: jax.Array) -> None:
    if self._trace:
      change = rounded(after) - rounded(before)
      axes = tuple(range(2, change.ndim))
      self.changes[site] = jnp.sqrt(jnp.sum(change * change, axis=axes))

  def _read(self, site: str, x: jax.Array) -> jax.Array:
    if self._spec is not None and site in self._spec.sites:
      self.reads[site] = read(self._spec, x, self._bank_RD, self._tokens, self._sets_BCT)
    return x
