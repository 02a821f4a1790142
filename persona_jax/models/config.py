"""Reading a Hugging Face config.json: every field is handled, ignorable, fixed, or refused."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

# They concern training, serving or bookkeeping, not what the model computes.
IGNORABLE = frozenset(
  """
  architectures torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id unk_token_id
  initializer_range transformers_version _name_or_path attention_dropout pretraining_tp
  is_llama_config transformers.js_config output_attentions output_hidden_states return_dict id2label
  label2id chunk_size_feed_forward problem_type is_encoder_decoder cache_implementation
  _attn_implementation attn_implementation
  """.split()
)

# Fields that all families name alike; each must be a positive number if it is there.
_WHOLE = (
  "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
  "intermediate_size", "vocab_size", "max_position_embeddings", "sliding_window_pattern",
)  # fmt: skip
_REAL = (
  "rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar",
  "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
# Of these, null means something: as many key heads as heads, the width by heads, no cap.
_NULLABLE = {
  "num_key_value_heads", "head_dim", "attn_logit_softcapping", "final_logit_softcapping",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fields:
  """What a family does with the fields of its config.

  Attributes:
    family: its name, for messages.
    needed: handled, and must be there.
    handled: handled if there.
    fixed: fields that may have only the values named here, which the port implements.
    ignorable: beside `IGNORABLE`.
    null_is_default: whether null stands for the default of a number, instead of being refused.
  """

  family: str
  needed: Collection[str]
  handled: Collection[str]
  fixed: Mapping[str, tuple[Any, ...]]
  ignorable: Collection[str] = ()
  null_is_default: bool = False

  def check(self, config: Mapping[str, Any]) -> None:
    """Refuse what the port does not implement.

    Raises:
      ValueError: a field is missing, unknown, or has another value than those it may have.
    """
    known = {*self.needed, *self.handled, *self.fixed}
    unknown = {
      name: value
      for name, value in config.items()
      if name not in known and name not in IGNORABLE and name not in self.ignorable
    }
    if "auto_map" in unknown:
      raise ValueError(
        f"config field auto_map={config['auto_map']!r}: this checkpoint brings code of its own, "
        "which is never run; pj.load(family=...) takes an adapter that you write."
      )
    if unknown:
      raise ValueError(
        f"config of a {self.family} model has fields that this port does not know: {unknown}. "
        f"Known: {sorted(known)}."
      )
    for name, allowed in self.fixed.items():
      if name in config and config[name] not in allowed:
        raise ValueError(
          f"config field {name}={config[name]!r} of a {self.family} model is not supported; it "
          f"must be one of {allowed}."
        )
    missing = [name for name in self.needed if config.get(name) is None]
    if missing:
      raise ValueError(f"config of a {self.family} model lacks the fields {missing}.")
    wrong = {
      name: config[name]
      for name in (*_WHOLE, *_REAL)
      if name in config and not self._fits(name, config[name])
    }
    if wrong:
      shown = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
      raise ValueError(f"config of a {self.family} model: {shown}; positive numbers are needed.")

  def _fits(self, name: str, value: Any) -> bool:
    if value is None:
      return self.null_is_default or name in _NULLABLE
    kinds = int if name in _WHOLE else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf")


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return what all families name alike in config.json, as fields of `Arch`."""
  heads = config["num_attention_heads"]
  return {
    "width": config["hidden_size"],
    "num_heads": heads,
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    "ffw_width": config["intermediate_size"],
    "vocab_size": config["vocab_size"],
    "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
    "tied_head": bool(config.get("tie_word_embeddings", False)),
  }


def layer_windows(
  config: Mapping[str, Any], num_blocks: int, default: Collection[bool], window: int | None
) -> tuple[int | None, ...]:
  """Return the sliding window of each block, None for full attention.

  `layer_types` says which blocks slide; without it, `default` does.

  Raises:
    ValueError: an unknown layer type, another number of them than blocks, or a window that is no
      positive integer where a block slides.
  """
  types = config.get("layer_types")
  if types is None:
    slides = list(default)
  else:
    known = {"sliding_attention": True, "full_attention": False}
    if len(types) != num_blocks or not set(types) <= set(known):
      raise ValueError(
        f"layer_types={types}: give one of {sorted(known)} for each of the {num_blocks} blocks."
      )
    slides = [known[name] for name in types]
  if any(slides) and (not isinstance(window, int) or window < 1):
    raise ValueError(f"sliding_window={window!r}: blocks slide, so a positive integer is needed.")
  return tuple(window if slide else None for slide in slides)
