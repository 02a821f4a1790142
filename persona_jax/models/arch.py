"""What a decoder is: the sizes and constants that shape its programs.

Dimension letters used all over the package, as suffixes of array names (`h_BTD`, `v_BKSH`):

  B rows · T query tokens · S key/value slots · D model width · F feed-forward width · N query heads
  K key/value heads · G = N / K queries a key head · H head width · V vocabulary · L blocks
  R directions in a bank · W windows at a site · P prompts · C conditions

"Block i" is decoder layer i, counted from 0, and a layer number always means its output.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from persona_jax.edits.table import HEAD_SITE
from persona_jax.models.rope import Rope

if TYPE_CHECKING:
  from persona_jax.models.family import Family


class Weight(NamedTuple):
  """Where a tensor of a checkpoint goes.

  Attributes:
    path: in the parameters, e.g. ("blocks", 3, "q_DNH"); the last name ends in its axes.
    axes: axes of the stored tensor, comma between dimensions, e.g. "NH,D" for a linear layer's
      [N·H, D].
  """

  path: tuple[str | int, ...]
  axes: str


@dataclasses.dataclass(frozen=True)
class BlockKind:
  """What may differ between the blocks of a model.

  Attributes:
    rope: rotary frequencies.
    window: tokens that a token attends to, itself included; None for all before it.
  """

  rope: Rope
  window: int | None = None


@dataclasses.dataclass(frozen=True)
class Arch:
  """The architecture of a decoder-only transformer; hashable, so it can be static under `jax.jit`.

  Attributes:
    family: the adapter.
    width: D, width of the residual stream.
    num_heads: N, query heads.
    num_kv_heads: K, key/value heads; divides N.
    head_dim: H, width of one head.
    ffw_width: F, width of the feed-forward layer.
    vocab_size: V, rows of the embedding table.
    norm_eps: epsilon of the RMS norms.
    tied_head: whether the output head is the embedding table.
    max_positions: longest sequence the checkpoint was made for, in tokens.
    kinds: the different kinds of blocks.
    pattern: for each block, the place of its kind in `kinds`; see `block_pattern`.
    activation: of the gated feed-forward: "silu" or "gelu_tanh".
    attn_scale: of the scores; None for H ** -0.5.
    qkv_bias, o_bias, ffw_bias: which products add a bias.
    qk_norm: RMS norm of each query and key head before the rotation.
    norm_offset: added to the stored scales of norms (Gemma stores them as 1 + w).
    post_norms: norms of the attention's and feed-forward's outputs before they join the stream.
    attn_softcap, final_softcap: c in c · tanh(x / c) of scores and logits, or None.
    embed_scale: factor of the embeddings.
  """

  family: Family
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffw_width: int
  vocab_size: int
  norm_eps: float
  tied_head: bool
  max_positions: int
  kinds: tuple[BlockKind, ...]
  pattern: tuple[int, ...]
  activation: str = "silu"
  attn_scale: float | None = None
  qkv_bias: bool = False
  o_bias: bool = False
  ffw_bias: bool = False
  qk_norm: bool = False
  norm_offset: float = 0.0
  post_norms: bool = False
  attn_softcap: float | None = None
  final_softcap: float | None = None
  embed_scale: float = 1.0

  def __post_init__(self) -> None:
    for name in (
      "width", "num_heads", "num_kv_heads", "head_dim", "ffw_width", "vocab_size", "num_blocks",
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: sizes of a model must be positive.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_attention_heads={self.num_heads} is no multiple of "
        f"num_key_value_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding needs pairs.")

  @property
  def num_blocks(self) -> int:
    """L, decoder layers."""
    return len(self.pattern)

  def kind(self, i: int) -> BlockKind:
    """Return the kind of block i."""
    return self.kinds[self.pattern[i]]

  def first_alike(self, i: int) -> int:
    """Return the first block of the kind of block i; equal blocks share one compiled program."""
    return self.pattern.index(self.pattern[i])

  @property
  def group(self) -> int:
    """G, query heads that share one key/value head."""
    return self.num_heads // self.num_kv_heads

  def site_width(self, site: str) -> int:
    """Return D of the activation at a site; N H at "head_out", the heads one after another."""
    return self.num_heads * self.head_dim if site == HEAD_SITE else self.width

  def block_numbers(
    self, blocks: int | str | tuple[int, ...] | list[int] | range
  ) -> tuple[int, ...]:
    """Return `blocks` ("all", one int or several) as a sorted tuple.

    Raises:
      ValueError: a number outside [0, L) or that is no integer, nothing named, or a word other than
        "all".
    """
    if isinstance(blocks, str):
      if blocks != "all":
        raise ValueError(
          f'blocks={blocks!r}: name "all", an int or ints in [0, {self.num_blocks}).'
        )
      return tuple(range(self.num_blocks))
    items = tuple(blocks) if isinstance(blocks, Iterable) else (blocks,)
    broken = [b for b in items if not hasattr(type(b), "__index__")]
    if broken:
      raise ValueError(f"blocks={blocks!r}: {broken} are no integers; blocks are whole numbers.")
    numbers = tuple(operator.index(b) for b in items)
    wrong = [b for b in numbers if not 0 <= b < self.num_blocks]
    if wrong or not numbers:
      raise ValueError(
        f"blocks={blocks!r}: unknown block {wrong if wrong else '(none given)'}; this model has "
        f"blocks 0 to {self.num_blocks - 1}."
      )
    return tuple(sorted(set(numbers)))


def block_pattern(kinds: Iterable[BlockKind]) -> tuple[tuple[BlockKind, ...], tuple[int, ...]]:
  """Return (distinct kinds, place of each block's kind) of one kind a block."""
  per_block = list(kinds)
  distinct = tuple(dict.fromkeys(per_block))
  return distinct, tuple(distinct.index(kind) for kind in per_block)
