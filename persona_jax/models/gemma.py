"""Gemma 2 (2408.00118) and the text part of Gemma 3 (2503.19786).

Both: norms before and after attention and feed-forward, scales stored as w in 1 + w, embeddings
times √D, GELU, blocks with a sliding window. Gemma 2 alternates window and full attention and caps
scores and logits; Gemma 3 has five windows to one full block, a rotary base for each kind, and
norms of queries and keys.
"""

from collections.abc import Mapping
from typing import Any

from persona_jax.models.arch import Arch, BlockKind, block_pattern
from persona_jax.models.config import Fields, layer_windows, sizes
from persona_jax.models.family import Family
from persona_jax.models.rope import Rope, parse_rope

_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size")
_HANDLED = (
  "model_type", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim",
  "rope_theta", "rope_parameters", "rms_norm_eps", "tie_word_embeddings",
  "max_position_embeddings", "query_pre_attn_scalar", "attn_logit_softcapping",
  "final_logit_softcapping", "sliding_window", "layer_types", "attention_bias",
)  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {
  "hidden_activation": ("gelu_pytorch_tanh", None),
  # Gemma 2's files carry this too; transformers reads hidden_activation.
  "hidden_act": ("gelu_pytorch_tanh",),
  "use_bidirectional_attention": (False, None),
}
# The published files name the window twice; transformers reads sliding_window.
_GEMMA2 = Fields(
  "gemma2",
  _NEEDED,
  _HANDLED,
  {**_FIXED, "rope_scaling": (None,)},
  ignorable=("sliding_window_size",),
  null_is_default=True,
)
_GEMMA3 = Fields(
  "gemma3_text",
  _NEEDED,
  (*_HANDLED, "rope_local_base_freq", "rope_scaling", "sliding_window_pattern",
   "_sliding_window_pattern"),
  _FIXED,
  null_is_default=True,
)  # fmt: skip
# Fields of a Gemma3Config around its text_config; they concern images.
_IMAGE_FIELDS = {
  "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
  "image_token_index", "boi_token_id", "eoi_token_id", "image_token_id",
}  # fmt: skip

# Defaults of the configuration classes, which published files rely on.
_DEFAULTS2: dict[str, Any] = {
  "vocab_size": 256_000, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
  "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 8192,
  "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}  # fmt: skip
_DEFAULTS3 = _DEFAULTS2 | {
  "vocab_size": 262_208, "max_position_embeddings": 131_072, "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
}  # fmt: skip


def _with_defaults(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
  """Fill in what is absent, or null where null means nothing but that."""
  kept = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
  return {**defaults, **{k: v for k, v in config.items() if v is not None or k in kept}}


def _arch(
  config: Mapping[str, Any], family: Family, ropes: Mapping[bool, Rope], every: int, **parts: Any
) -> Arch:
  """`ropes` by whether a block slides; every `every`-th block does not."""
  num_blocks = config["num_hidden_layers"]
  default = [bool((i + 1) % every) for i in range(num_blocks)]
  windows = layer_windows(config, num_blocks, default, config["sliding_window"])
  kinds, pattern = block_pattern(BlockKind(ropes[w is not None], w) for w in windows)
  biased = bool(config.get("attention_bias", False))
  return Arch(
    family=family,
    **sizes(config),
    max_positions=config["max_position_embeddings"],
    kinds=kinds,
    pattern=pattern,
    activation="gelu_tanh",
    attn_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
    qkv_bias=biased,
    o_bias=biased,
    norm_offset=1.0,
    post_norms=True,
    final_softcap=config["final_logit_softcapping"],
    embed_scale=float(config["hidden_size"]) ** 0.5,
    **parts,
  )


def parse_gemma2(config: Mapping[str, Any]) -> Arch:
  """Read a config.json of model type "gemma2".

  Raises:
    ValueError: a field is missing, unknown, or has a value that this port does not implement.
  """
  _GEMMA2.check(config)
  config = _with_defaults(_DEFAULTS2, config)
  rope = parse_rope(
    config.get("rope_theta", 10_000.0),
    config.get("rope_parameters"),
    config["max_position_embeddings"],
  )
  return _arch(
    config, GEMMA2, {True: rope, False: rope}, 2, attn_softcap=config["attn_logit_softcapping"]
  )


def parse_gemma3(config: Mapping[str, Any]) -> Arch:
  """Read a config.json of model type "gemma3_text", or the text part of one of type "gemma3".

  Raises:
    ValueError: a field is missing, unknown, or has a value that this port does not implement.
  """
  if "text_config" in config:
    around = {k: v for k, v in config.items() if k not in _IMAGE_FIELDS and k != "text_config"}
    config = {**around, **config["text_config"]}
  _GEMMA3.check(config)
  config = _with_defaults(_DEFAULTS3, config)
  # transformers has the caps in the class but computes no attention with the first.
  if config["attn_logit_softcapping"] is not None:
    raise ValueError(
      f"config field attn_logit_softcapping={config['attn_logit_softcapping']} of a gemma3 model "
      "is not supported; it must be null."
    )
  longest = config["max_position_embeddings"]
  new = config.get("rope_parameters")
  if new:
    wrong = set(new) - {"sliding_attention", "full_attention"}
    if wrong:
      raise ValueError(
        f"rope_parameters of a gemma3 model has {sorted(wrong)}; it holds one dict for "
        "'sliding_attention' and one for 'full_attention'."
      )
    local = parse_rope(10_000.0, new.get("sliding_attention"), longest)
    full = parse_rope(1_000_000.0, new.get("full_attention"), longest)
  else:
    local = parse_rope(config.get("rope_local_base_freq", 10_000.0), None, longest)
    full = parse_rope(config.get("rope_theta", 1_000_000.0), config.get("rope_scaling"), longest)
  every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
  return _arch(config, GEMMA3, {True: local, False: full}, every, qk_norm=True)


def _text_name(name: str) -> str | None:
  """Return the name of a text tensor as a text-only checkpoint has it, None for the others."""
  for image in ("vision_tower.", "multi_modal_projector."):
    if name.startswith((image, f"model.{image}")):
      return None
  # Older files hold the text model as language_model.model.…, newer ones as model.language_model.….
  for prefix, plain in (("model.language_model.", "model."), ("language_model.", "")):
    if name.startswith(prefix):
      return plain + name.removeprefix(prefix)
  return name


GEMMA2 = Family("gemma2", parse_gemma2)
GEMMA3 = Family("gemma3_text", parse_gemma3, tensor_name=_text_name)
