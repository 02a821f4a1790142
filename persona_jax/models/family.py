"""What a model family is: a few functions between a checkpoint and the engine.

To add one (docs/families.md has Qwen3 as an example):

  1. `parse(config)` reads the fields of config.json, refuses those it does not know, and returns an
     `Arch` (or a subclass with fields of your own).
  2. If the parameters differ from those of `decoder.Block`, write a block module, and with it
     `abstract_params(arch)`: names whose suffix gives the dimensions, as `q_DNH`.
  3. `weight_map(arch)` says where each tensor of the checkpoint goes and what its axes are.
  4. `block(arch, i, params, h, slots, tap)` runs block i and calls `tap(site, x)` at every site
     (`models.tap.Tap`).
  5. `pj.load(source, family=pj.Family("my_type", parse, …))`. What is left out is `decoder`'s.

Nothing else needs to know: edits, captures, caches and sharding work through `tap` and the names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from persona_jax.models import decoder
from persona_jax.models.arch import Arch, Weight


def _same(name: str) -> str:
  return name


@dataclasses.dataclass(frozen=True)
class Family:
  """An adapter between checkpoints of one `model_type` and the engine.

  Attributes:
    name: the `model_type` of config.json.
    parse: config → Arch; raises ValueError for a field that it does not know.
    weight_map: arch → {tensor name: Weight}.
    abstract_params: arch → parameters as `jax.ShapeDtypeStruct`.
    embed: (arch, params, tokens_BT, resid_dtype) → h_BTD.
    block: (arch, i, params of block i, h_BTD, slots, tap) → (h_BTD, KV); see `decoder.block`.
    unembed: (arch, params, h) → float32 logits.
    tensor_name: name in the file → name in `weight_map`, or None for a tensor that is no part of
      the text model (a vision tower) and is left unread.
  """

  name: str
  parse: Callable[[Mapping[str, Any]], Arch]
  weight_map: Callable[[Arch], dict[str, Weight]] = decoder.weight_map
  abstract_params: Callable[[Arch], dict[str, Any]] = decoder.abstract_params
  embed: Callable[..., Any] = decoder.embed
  block: Callable[..., Any] = decoder.block
  unembed: Callable[..., Any] = decoder.unembed
  tensor_name: Callable[[str], str | None] = _same
