"""What a decoder is: the sizes and constants that shape its programs.

Dimension letters used all over the package, as suffixes of array names (`h_BTD`, `k_BKSH`):

  B rows · T query tokens · S key/value slots · D model width · F feed-forward width · N query heads
  K key/value heads · G = N / K queries a key head · H head width · V vocabulary · L blocks
  R directions in a bank · W windows at a site · P prompts · C conditions

"Block i" is decoder layer i, counted from 0, and a layer number always means its output.
"""

import dataclasses
import operator
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Arch:
  """The architecture of a decoder-only transformer; hashable, so it can be static under `jax.jit`.

  Attributes:
    family: name of the family adapter, e.g. "llama".
    num_blocks: L, decoder layers.
    width: D, width of the residual stream.
    num_heads: N, query heads.
    num_kv_heads: K, key/value heads; divides N.
    head_dim: H, width of one head.
    ffw_width: F, width of the feed-forward layer.
    vocab_size: V, rows of the embedding table.
    rope_theta: base of the rotary frequencies.
    norm_eps: epsilon of the RMS norms.
    tied_head: whether the output head is the embedding table.
    max_positions: longest sequence the checkpoint was trained for, in tokens.
  """

  family: str
  num_blocks: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffw_width: int
  vocab_size: int
  rope_theta: float
  norm_eps: float
  tied_head: bool
  max_positions: int

  def __post_init__(self) -> None:
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_attention_heads={self.num_heads} is no multiple of "
        f"num_key_value_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding needs pairs.")

  @property
  def group(self) -> int:
    """G, query heads that share one key/value head."""
    return self.num_heads // self.num_kv_heads

  def block_numbers(
    self, blocks: "int | str | tuple[int, ...] | list[int] | range"
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
