"""The decoder that the families share: pre-norm blocks of attention and gated feed-forward.

What differs is in `Arch`: grouped queries, biases, norms of queries and keys, norms after as well
as before, soft-caps, sliding windows, several rotary bases. A family is `parse` and `weight_map`;
one whose blocks compute something else brings its own `block`.

The module classes say which parameters a model has and how a block uses them. They are split once
into a graph definition and plain arrays; everything after works on the arrays under plain
`jax.jit`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from persona_jax.models import attention, layers
from persona_jax.models.arch import Arch, Weight
from persona_jax.models.attention import Slots
from persona_jax.models.layers import KV
from persona_jax.models.tap import Norm, Tap


def _gelu_tanh(x: jax.Array) -> jax.Array:
  """GELU in its tanh approximation (Hendrycks & Gimpel 2016), as 1 + tanh(u) = 2 sigmoid(2u).

  For negative x, 1 + tanh(u) loses in float32 what the sigmoid keeps: 5 to 6 times the error.
  """
  return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu_tanh": _gelu_tanh,
}


class Block(nnx.Module):
  """One decoder layer: attention and feed-forward, each behind a norm, each added to the stream."""

  def __init__(self, arch: Arch):
    d, n, k, h, f = arch.width, arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.ffw_width
    self.arch = arch
    self.attn_norm_D = nnx.Param(jnp.ones((d,)))
    self.q_DNH = nnx.Param(jnp.zeros((d, n, h)))
    self.k_DKH = nnx.Param(jnp.zeros((d, k, h)))
    self.v_DKH = nnx.Param(jnp.zeros((d, k, h)))
    self.o_NHD = nnx.Param(jnp.zeros((n, h, d)))
    self.ffw_norm_D = nnx.Param(jnp.ones((d,)))
    self.gate_DF = nnx.Param(jnp.zeros((d, f)))
    self.up_DF = nnx.Param(jnp.zeros((d, f)))
    self.down_FD = nnx.Param(jnp.zeros((f, d)))
    if arch.qkv_bias:
      self.q_bias_NH = nnx.Param(jnp.zeros((n, h)))
      self.k_bias_KH = nnx.Param(jnp.zeros((k, h)))
      self.v_bias_KH = nnx.Param(jnp.zeros((k, h)))
    if arch.o_bias:
      self.o_bias_D = nnx.Param(jnp.zeros((d,)))
    if arch.ffw_bias:
      self.gate_bias_F = nnx.Param(jnp.zeros((f,)))
      self.up_bias_F = nnx.Param(jnp.zeros((f,)))
      self.down_bias_D = nnx.Param(jnp.zeros((d,)))
    if arch.qk_norm:
      self.q_norm_H = nnx.Param(jnp.ones((h,)))
      self.k_norm_H = nnx.Param(jnp.ones((h,)))
    if arch.post_norms:
      self.attn_post_norm_D = nnx.Param(jnp.ones((d,)))
      self.ffw_post_norm_D = nnx.Param(jnp.ones((d,)))

  def __call__(self, h_BTD: jax.Array, slots: Slots, tap: Tap) -> tuple[jax.Array, KV]:
    """Run the block; see `block`."""
    resid_dtype = h_BTD.dtype
    h_BTD = tap("resid_pre", h_BTD)
    x_BTD = tap("attn_in", self._norm(h_BTD, "attn_norm_D"))
    attn_BTD, kv = self._attention(x_BTD, slots, tap)
    if self.arch.post_norms:
      attn_BTD = self._norm(attn_BTD, "attn_post_norm_D")
    attn_BTD = tap("attn_out", attn_BTD.astype(resid_dtype))
    h_BTD, x_BTD = tap.add_and_norm("resid_mid", h_BTD, attn_BTD, self._norm_of("ffw_norm_D"))

    ffw_BTD = self._feed_forward(tap("mlp_in", x_BTD))
    if self.arch.post_norms:
      ffw_BTD = self._norm(ffw_BTD, "ffw_post_norm_D")
    ffw_BTD = tap("mlp_out", ffw_BTD.astype(resid_dtype))
    return tap.add("resid_post", h_BTD, ffw_BTD), kv

  def _attention(self, x_BTD: jax.Array, slots: Slots, tap: Tap) -> tuple[jax.Array, KV]:
    arch, dtype = self.arch, self.q_DNH[...].dtype
    q_BTNH = self._product(x_BTD, "q_DNH", "BTD,DNH->BTNH", "q_bias_NH")
    k_BTKH = self._product(x_BTD, "k_DKH", "BTD,DKH->BTKH", "k_bias_KH")
    v_BTKH = self._product(x_BTD, "v_DKH", "BTD,DKH->BTKH", "v_bias_KH")
    if arch.qk_norm:
      q_BTNH, k_BTKH = self._norm(q_BTNH, "q_norm_H"), self._norm(k_BTKH, "k_norm_H")
    q_BTNH, k_BTKH = layers.rotate(q_BTNH, slots.rope), layers.rotate(k_BTKH, slots.rope)
    if slots.kv is None:
      kv = KV.of(k_BTKH, v_BTKH, dtype)
    else:
      new = KV.of(k_BTKH, v_BTKH, slots.kv.dtype)
      kv = layers.write_cache(slots.kv, new, slots.cursor)
    mixed_BTNH = attention.attend(
      q_BTNH, kv, slots, dtype, scale=arch.attn_scale, cap=arch.attn_softcap
    )
    mixed_BTNH = tap("head_out", mixed_BTNH)
    return self._output(mixed_BTNH), kv

  def _output(self, mixed_BTNH: jax.Array) -> jax.Array:
    """Multiply by the output projection, heads one after another; float32.

    Left as a product over two axes, XLA for CPUs transposes the weights at every step.
    """
    x_BTX = mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1)
    out_BTD = layers.dot(x_BTX, self.o_NHD[...].reshape(x_BTX.shape[-1], -1), "BTX,XD->BTD")
    return out_BTD + self.o_bias_D[...].astype(jnp.float32) if self.arch.o_bias else out_BTD

  def _feed_forward(self, x_BTD: jax.Array) -> jax.Array:
    """Gate one product by the other (GLU variants, Shazeer 2020); float32."""
    gate_BTF = self._product(x_BTD, "gate_DF", "BTD,DF->BTF", "gate_bias_F")
    up_BTF = self._product(x_BTD, "up_DF", "BTD,DF->BTF", "up_bias_F")
    inner_BTF = _ACTIVATIONS[self.arch.activation](gate_BTF) * up_BTF
    # Without the barrier the compiler for v6e computes `up` anew for every tile of the product
    # below, which makes a block of prefill 1.7 times as long (BENCHMARKS.md).
    inner_BTF = jax.lax.optimization_barrier(inner_BTF.astype(self.down_FD[...].dtype))
    return self._product(inner_BTF, "down_FD", "BTF,FD->BTD", "down_bias_D")

  def _product(self, x: jax.Array, weight: str, equation: str, bias: str) -> jax.Array:
    """Multiply by a weight and add its bias if the model has one; float32."""
    out = layers.dot(x, getattr(self, weight)[...], equation)
    return out + getattr(self, bias)[...].astype(jnp.float32) if hasattr(self, bias) else out

  def _norm_of(self, scale: str) -> Norm:
    arch, dtype = self.arch, self.q_DNH[...].dtype
    return Norm(getattr(self, scale)[...], arch.norm_eps, dtype, arch.norm_offset)

  def _norm(self, x: jax.Array, scale: str) -> jax.Array:
    return self._norm_of(scale)(x)


class Decoder(nnx.Module):
  """Embedding, blocks, final norm, and a head of its own unless it is tied to the embedding."""

  def __init__(self, arch: Arch):
    self.embed_VD = nnx.Param(jnp.zeros((arch.vocab_size, arch.width)))
    self.blocks = nnx.List([Block(arch) for _ in range(arch.num_blocks)])
    self.final_norm_D = nnx.Param(jnp.ones((arch.width,)))
    if not arch.tied_head:
      self.head_VD = nnx.Param(jnp.zeros((arch.vocab_size, arch.width)))


def abstract_params(arch: Arch) -> dict[str, Any]:
  """Return the parameters as shapes: {"embed_VD": …, "blocks": [{"q_DNH": …}, …], …}."""
  state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(arch))))
  state["blocks"] = [state["blocks"][i] for i in range(arch.num_blocks)]
  return state


@functools.cache
def _block_graph(arch: Arch) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: Block(arch)))[0]


def block(
  arch: Arch,
  i: int,
  params: Mapping[str, jax.Array],
  h_BTD: jax.Array,
  slots: Slots,
  tap: Tap,
) -> tuple[jax.Array, KV]:
  """Run block i on its plain arrays; pure.

  `tap(site, x)` is called at every site with the activation there, [B, T, D] ("head_out":
  [B, T, N, H]), and returns what to go on with. "attn_out" and "mlp_out" are what is added to the
  stream, after the post norms of a family that has them.

  Returns:
    The residual stream [B, T, D], and the keys and values of all slots.
  """
  del i  # what differs between blocks is in `slots`
  return nnx.merge(_block_graph(arch), params)(h_BTD, slots, tap)


# Per block: tensor name → (parameter, axes as stored).
_BLOCK_WEIGHTS = {
  "input_layernorm.weight": ("attn_norm_D", "D"),
  "self_attn.q_proj.weight": ("q_DNH", "NH,D"),
  "self_attn.k_proj.weight": ("k_DKH", "KH,D"),
  "self_attn.v_proj.weight": ("v_DKH", "KH,D"),
  "self_attn.o_proj.weight": ("o_NHD", "D,NH"),
  "post_attention_layernorm.weight": ("ffw_norm_D", "D"),
  "mlp.gate_proj.weight": ("gate_DF", "F,D"),
  "mlp.up_proj.weight": ("up_DF", "F,D"),
  "mlp.down_proj.weight": ("down_FD", "D,F"),
}
_QKV_BIASES = {
  "self_attn.q_proj.bias": ("q_bias_NH", "NH"),
  "self_attn.k_proj.bias": ("k_bias_KH", "KH"),
  "self_attn.v_proj.bias": ("v_bias_KH", "KH"),
}
_O_BIAS = {"self_attn.o_proj.bias": ("o_bias_D", "D")}
_FFW_BIASES = {
  "mlp.gate_proj.bias": ("gate_bias_F", "F"),
  "mlp.up_proj.bias": ("up_bias_F", "F"),
  "mlp.down_proj.bias": ("down_bias_D", "D"),
}
_QK_NORMS = {
  "self_attn.q_norm.weight": ("q_norm_H", "H"),
  "self_attn.k_norm.weight": ("k_norm_H", "H"),
}
# Gemma's names: its norm before the feed-forward is another one than Llama's of that name.
_POST_NORMS = {
  "post_attention_layernorm.weight": ("attn_post_norm_D", "D"),
  "pre_feedforward_layernorm.weight": ("ffw_norm_D", "D"),
  "post_feedforward_layernorm.weight": ("ffw_post_norm_D", "D"),
}


def weight_map(arch: Arch) -> dict[str, Weight]:
  """Map the tensor names of Hugging Face checkpoints to the parameters."""
  per_block = dict(_BLOCK_WEIGHTS)
  for present, more in (
    (arch.qkv_bias, _QKV_BIASES),
    (arch.o_bias, _O_BIAS),
    (arch.ffw_bias, _FFW_BIASES),
    (arch.qk_norm, _QK_NORMS),
    (arch.post_norms, _POST_NORMS),
  ):
    if present:
      per_block |= more
  weights = {
    "model.embed_tokens.weight": Weight(("embed_VD",), "V,D"),
    "model.norm.weight": Weight(("final_norm_D",), "D"),
  }
  if not arch.tied_head:
    weights["lm_head.weight"] = Weight(("head_VD",), "V,D")
  for i in range(arch.num_blocks):
    for name, (leaf, axes) in per_block.items():
      weights[f"model.layers.{i}.{name}"] = Weight(("blocks", i, leaf), axes)
  return weights


def embed(
  arch: Arch, params: Mapping[str, Any], tokens_BT: jax.Array, resid_dtype: Any
) -> jax.Array:
  """Look tokens up in the embedding table; [B, T, D] in the residual stream's dtype."""
  table_VD = params["embed_VD"]
  h_BTD = jnp.take(table_VD, tokens_BT, axis=0, mode="clip")
  if arch.embed_scale != 1:
    # Gemma multiplies in the weights' dtype, by a factor rounded to it.
    h_BTD = h_BTD * jnp.asarray(arch.embed_scale, table_VD.dtype)
  return h_BTD.astype(resid_dtype)


def unembed(arch: Arch, params: Mapping[str, Any], h_BTD: jax.Array) -> jax.Array:
  """Turn residuals of any leading shape into float32 logits [..., V]."""
  table_VD = params["embed_VD" if arch.tied_head else "head_VD"]
  x = layers.rms_norm(
    h_BTD, params["final_norm_D"], arch.norm_eps, table_VD.dtype, arch.norm_offset
  )
  return layers.softcap(layers.dot(x, table_VD, "...D,VD->...V"), arch.final_softcap)
