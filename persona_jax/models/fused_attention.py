"""Attention of a prompt's tokens to one another by the platform's fused kernel.

JAX's Pallas splash attention on a TPU, cuDNN's flash attention (through
`jax.nn.dot_product_attention`) on a GPU. Neither writes scores to memory. Which one is a matter of
the device (`choose_attention`); what it cannot do is left to plain XLA (`attend` says what that
is). Neither is differentiated here: `pj.forward` is plain XLA.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from persona_jax.models.layers import KV
from persona_jax.sharding import constrain, spec

Implementation = Literal["splash_tpu", "cudnn"]

_LANES = 128
_BLOCKS = (512, 256, 128)  # queries, and keys, of a step of splash attention; the first that fits

# The kernel of each platform; what is not here is plain XLA, in chunks of queries. XLA writes the
# float32 scores of a chunk and reads them again for the softmax and for the product with the
# values, the kernels keep them on the chip. cuDNN is 3 to 12 times as fast on an H200, at the same
# error (measured, BENCHMARKS.md). Splash is not measured: the TPU compiler confirms what is in
# memory (tests/aot/attention_test.py), but has no estimate of the time inside a kernel.
_AUTO: dict[str, Implementation] = {"tpu": "splash_tpu", "gpu": "cudnn"}


class FusedAttention(NamedTuple):
  """A kernel for the attention of tokens in order; static.

  Attributes:
    implementation: "splash_tpu" or "cudnn".
    mesh: devices that rows and heads are split over, or None.
    widest: H, the widest head that it takes.
    interpret: whether a TPU is simulated on the host.
  """

  implementation: Implementation
  mesh: Mesh | None = None
  widest: int = 256
  interpret: bool = False


class Result(NamedTuple):
  """Normalised attention, and the logarithm of the sum of exp(score), float32, if there is one."""

  out_BKGTH: jax.Array
  lse_BKGT: jax.Array | None


def choose_attention(mesh: Mesh | None, device: jax.Device) -> FusedAttention | None:
  """Choose the kernel for a device, the first of a mesh if there is one; None is plain XLA."""
  name = _AUTO.get(device.platform)
  if name is None:
    return None
  if name == "splash_tpu":
    return FusedAttention(name, mesh)
  # cuDNN's flash attention needs an NVIDIA GPU from Ampere on; 256 wide heads, Hopper.
  if "cuda" not in device.client.platform_version:
    return None
  generation = float(device.compute_capability)
  return None if generation < 8 else FusedAttention(name, mesh, 256 if generation >= 9 else 128)


def attend(
  fused: FusedAttention,
  q_BTKGH: jax.Array,
  kv: KV,
  *,
  window: int | None,
  cap: float | None,
  to_join: bool,
) -> Result | None:
  """Attend of T tokens in order to one another; None where plain XLA has to.

  Token t sees those of [t - window + 1, t], or [0, t]. Empty slots behind a row's tokens are seen
  by padding alone, whose result means nothing.

  It is left to plain XLA: float32 weights, for which the kernels' products are not exact enough
  (cuDNN has none); heads of widths that the kernel does not take; heads that a mesh does not
  divide. With cuDNN also soft-capped scores, which it lacks, and what is to be joined with
  attention to other slots: `jax.nn.dot_product_attention` rounds the logarithm that the join needs
  to 8 bits, which would put weights off by several per cent.

  Args:
    fused: the kernel.
    q_BTKGH: queries, multiplied by the scale of the scores.
    kv: keys and values of the tokens.
    window: of the kind of block.
    cap: of the scores, see `layers.softcap`.
    to_join: whether the result is to be joined with attention to other slots.
  """
  b, t, k, g, h = q_BTKGH.shape
  window = None if window is None or window >= t else window
  mesh = fused.mesh
  if mesh is not None and k % mesh.shape["model"]:
    return None
  if fused.implementation == "splash_tpu":
    if q_BTKGH.dtype != jnp.bfloat16 and not fused.interpret:  # where products are exact
      return None
    if h % 64 or h > fused.widest:
      return None
    run = functools.partial(splash, window=window, cap=cap, interpret=fused.interpret)
    if mesh is None:
      return run(q_BTKGH, kv)
    rows, heads = spec("BK", (b, k), mesh)
    queries, others = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    run = jax.shard_map(
      run, mesh=mesh, in_specs=(queries, others), out_specs=others, check_vma=False
    )
    return run(q_BTKGH, kv)
  if q_BTKGH.dtype not in (jnp.bfloat16, jnp.float16) or h % 8 or h > fused.widest:
    return None
  if cap is not None or to_join:
    return None
  return Result(_cudnn(q_BTKGH, kv, window, mesh), None)


def splash(
  q_BTKGH: jax.Array,
  kv: KV,
  *,
  window: int | None = None,
  cap: float | None = None,
  interpret: bool = False,
) -> Result:
  """Run splash attention, the tokens padded to a multiple of its smallest block; see `attend`."""
  # Here, since a machine without a TPU never needs it.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  b, t, k, g, h = q_BTKGH.shape
  padded = -(-t // _LANES) * _LANES
  block = next(size for size in _BLOCKS if padded % size == 0)
  shape = (padded, padded)
  mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
  run = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([mask] * (k * g)),
    # The keys' slots stand last, and so it wants them.
    block_sizes=kernels.BlockSizes(block, block, k_layout=kernels.QKVLayout.SEQ_MINOR),
    save_residuals=True,
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  q_BNTH = jnp.moveaxis(q_BTKGH, 1, 3).reshape(b, k * g, t, h)
  q_BNTH = jnp.pad(q_BNTH, ((0, 0), (0, 0), (0, padded - t), (0, 0)))
  kv = kv.padded(padded)
  out_BNTH, (lse_BNT,) = jax.vmap(run)(q_BNTH, jnp.swapaxes(kv.k_BKHS, 2, 3), kv.v_BKSH)
  return Result(out_BNTH[:, :, :t].reshape(b, k, g, t, h), lse_BNT[:, :, :t].reshape(b, k, g, t))


def _cudnn(q_BTKGH: jax.Array, kv: KV, window: int | None, mesh: Mesh | None) -> jax.Array:
  b, t, k, g, h = q_BTKGH.shape
  q_BTNH = q_BTKGH.reshape(b, t, k * g, h)
  k_BSKH, v_BSKH = jnp.moveaxis(kv.k_BKHS, 3, 1), jnp.moveaxis(kv.v_BKSH, 2, 1)
  out_BTNH = jax.nn.dot_product_attention(
    constrain(q_BTNH, "BTNH", mesh),
    constrain(k_BSKH, "BSKH", mesh),
    constrain(v_BSKH, "BSKH", mesh),
    scale=1.0,
    is_causal=True,
    local_window_size=None if window is None else (window - 1, 0),
    implementation="cudnn",
  )
  return jnp.moveaxis(out_BTNH.reshape(b, t, k, g, h), 1, 3)
