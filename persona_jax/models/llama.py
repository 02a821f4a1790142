"""Llama (Touvron et al. 2023; SmolLM2 is one): GQA, RoPE, SwiGLU, pre-norms, tied or untied head.

The module classes say which parameters a model has and how a block uses them. They are split once
into a graph definition and plain arrays; everything after works on the arrays under plain
`jax.jit`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from persona_jax.models import layers
from persona_jax.models.arch import Arch
from persona_jax.models.layers import KV, Rotation

Tap = Callable[[str, jax.Array], jax.Array]

# Fields of a Hugging Face LlamaConfig. Handled: they shape the model below. Ignored: they concern
# training, serving or bookkeeping. Required: they have one value that this port implements. Others
# are refused.
_HANDLED = {
  "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
  "head_dim", "intermediate_size", "vocab_size", "rope_theta", "rms_norm_eps",
  "tie_word_embeddings", "max_position_embeddings",
}  # fmt: skip
_IGNORED = {
  "architectures", "torch_dtype", "dtype", "use_cache", "bos_token_id", "eos_token_id",
  "pad_token_id", "unk_token_id", "initializer_range", "transformers_version", "_name_or_path",
  "attention_dropout", "pretraining_tp", "is_llama_config", "transformers.js_config",
  "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id",
  "chunk_size_feed_forward", "problem_type", "is_encoder_decoder",
}  # fmt: skip
_REQUIRED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu",),
  "attention_bias": (False,),
  "mlp_bias": (False,),
  "rope_interleaved": (False,),
  "rope_scaling": (None,),
}


def parse(config: Mapping[str, Any]) -> Arch:
  """Read a Hugging Face `config.json` of model type "llama" as an `Arch`.

  Raises:
    ValueError: a field is missing, unknown, or has a value that this port does not implement.
  """
  config = dict(config)
  rope = config.pop("rope_parameters", None) or {}
  if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
    raise ValueError(f"config field rope_parameters={rope}: only the default RoPE is supported.")
  config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
  unknown = set(config) - _HANDLED - _IGNORED - set(_REQUIRED)
  if unknown:
    raise ValueError(
      f"config of a llama model has fields that this port does not know: "
      f"{ {name: config[name] for name in sorted(unknown)} }. "
      f"Known: {sorted(_HANDLED | set(_REQUIRED))}."
    )
  for name, allowed in _REQUIRED.items():
    if name in config and config[name] not in allowed:
      raise ValueError(
        f"config field {name}={config[name]!r} is not supported; it must be one of {allowed}."
      )
  needed = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
  )
  missing = [name for name in needed if name not in config]
  if missing:
    raise ValueError(f"config of a llama model lacks the fields {missing}.")
  heads = config["num_attention_heads"]
  return Arch(
    family="llama",
    num_blocks=config["num_hidden_layers"],
    width=config["hidden_size"],
    num_heads=heads,
    num_kv_heads=config.get("num_key_value_heads") or heads,
    head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    ffw_width=config["intermediate_size"],
    vocab_size=config["vocab_size"],
    rope_theta=float(config["rope_theta"]),
    norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    tied_head=bool(config.get("tie_word_embeddings", False)),
    max_positions=config.get("max_position_embeddings", 2048),
  )


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

  def __call__(
    self,
    h_BTD: jax.Array,
    rope: Rotation,
    mask_BTS: jax.Array,
    cache: KV | None,
    cursor: jax.Array | int,
    tap: Tap,
  ) -> tuple[jax.Array, KV]:
    """Run the block on T tokens a row; with a cache, their keys and values go to slot `cursor` on.

    `tap(site, x)` is called at every site with the activation there and returns what to go on with.
    """
    dtype = self.q_DNH[...].dtype
    eps = self.arch.norm_eps

    h_BTD = tap("resid_pre", h_BTD)
    x_BTD = tap("attn_in", layers.rms_norm(h_BTD, self.attn_norm_D[...], eps, dtype))
    q_BTNH = layers.rotate(layers.dot(x_BTD, self.q_DNH[...], "BTD,DNH->BTNH"), rope)
    k_BTKH = layers.rotate(layers.dot(x_BTD, self.k_DKH[...], "BTD,DKH->BTKH"), rope)
    v_BTKH = layers.dot(x_BTD, self.v_DKH[...], "BTD,DKH->BTKH")
    kv = KV(*(jnp.moveaxis(z, 1, 2).astype(dtype) for z in (k_BTKH, v_BTKH)))
    if cache is not None:
      kv = layers.write_cache(cache, kv, cursor)
    mixed_BTNH = layers.attend(q_BTNH, kv, mask_BTS, dtype)
    attn_BTD = layers.dot(mixed_BTNH, self.o_NHD[...], "BTNH,NHD->BTD").astype(h_BTD.dtype)
    h_BTD = tap("resid_mid", h_BTD + tap("attn_out", attn_BTD))

    x_BTD = tap("mlp_in", layers.rms_norm(h_BTD, self.ffw_norm_D[...], eps, dtype))
    ffw_BTD = layers.gated_ffw(x_BTD, self.gate_DF[...], self.up_DF[...], self.down_FD[...])
    h_BTD = tap("resid_post", h_BTD + tap("mlp_out", ffw_BTD.astype(h_BTD.dtype)))
    return h_BTD, kv


class Llama(nnx.Module):
  """Embedding, blocks, final norm, and a head of its own unless it is tied to the embedding."""

  def __init__(self, arch: Arch):
    self.embed_VD = nnx.Param(jnp.zeros((arch.vocab_size, arch.width)))
    self.blocks = nnx.List([Block(arch) for _ in range(arch.num_blocks)])
    self.final_norm_D = nnx.Param(jnp.ones((arch.width,)))
    if not arch.tied_head:
      self.head_VD = nnx.Param(jnp.zeros((arch.vocab_size, arch.width)))


def abstract_params(arch: Arch) -> dict[str, Any]:
  """Return the parameters as shapes: {"embed_VD": …, "blocks": [{"q_DNH": …}, …], …}."""
  state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Llama(arch))))
  state["blocks"] = [state["blocks"][i] for i in range(arch.num_blocks)]
  return state


@functools.cache
def _block_graph(arch: Arch) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: Block(arch)))[0]


def block(
  arch: Arch,
  params: Mapping[str, jax.Array],
  h_BTD: jax.Array,
  rope: Rotation,
  mask_BTS: jax.Array,
  cache: KV | None,
  cursor: jax.Array | int,
  tap: Tap,
) -> tuple[jax.Array, KV]:
  """Run one block on its plain arrays; pure. See `Block.__call__`."""
  return nnx.merge(_block_graph(arch), params)(h_BTD, rope, mask_BTS, cache, cursor, tap)


def weight_map(arch: Arch) -> dict[str, tuple[tuple[str | int, ...], Callable[[Any], Any]]]:
  """Map each Hugging Face tensor name to (path in the parameters, array transform).

  Checkpoints store linear weights as [out, in]; ours are [in, out] with heads split.
  """
  d, n, k, h = arch.width, arch.num_heads, arch.num_kv_heads, arch.head_dim

  def same(w: Any) -> Any:
    return w

  def transpose(w: Any) -> Any:
    return w.T

  names: dict[str, tuple[tuple[str | int, ...], Callable[[Any], Any]]] = {
    "model.embed_tokens.weight": (("embed_VD",), same),
    "model.norm.weight": (("final_norm_D",), same),
  }
  if not arch.tied_head:
    names["lm_head.weight"] = (("head_VD",), same)
  for i in range(arch.num_blocks):
    per_block: dict[str, tuple[str, Callable[[Any], Any]]] = {
      "input_layernorm": ("attn_norm_D", same),
      "self_attn.q_proj": ("q_DNH", lambda w: w.T.reshape(d, n, h)),
      "self_attn.k_proj": ("k_DKH", lambda w: w.T.reshape(d, k, h)),
      "self_attn.v_proj": ("v_DKH", lambda w: w.T.reshape(d, k, h)),
      "self_attn.o_proj": ("o_NHD", lambda w: w.T.reshape(n, h, d)),
      "post_attention_layernorm": ("ffw_norm_D", same),
      "mlp.gate_proj": ("gate_DF", transpose),
      "mlp.up_proj": ("up_DF", transpose),
      "mlp.down_proj": ("down_FD", transpose),
    }
    for name, (leaf, transform) in per_block.items():
      names[f"model.layers.{i}.{name}.weight"] = (("blocks", i, leaf), transform)
  return names


def embed(params: Mapping[str, Any], tokens_BT: jax.Array, resid_dtype: Any) -> jax.Array:
  """Look tokens up in the embedding table; [B, T, D] in the residual stream's dtype."""
  return jnp.take(params["embed_VD"], tokens_BT, axis=0, mode="clip").astype(resid_dtype)


def unembed(arch: Arch, params: Mapping[str, Any], h_BTD: jax.Array) -> jax.Array:
  """Turn residuals of any leading shape into float32 logits [..., V]."""
  table_VD = params["embed_VD" if arch.tied_head else "head_VD"]
  x = layers.rms_norm(h_BTD, params["final_norm_D"], arch.norm_eps, table_VD.dtype)
  return layers.dot(x, table_VD, "...D,VD->...V")
