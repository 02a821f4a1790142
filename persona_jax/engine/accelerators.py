"""How long a plan will take on an accelerator that need not be at hand: a model of three figures.

A pass streams the weights and the keys and values it reads, and multiplies them with its tokens:
the seconds of both are added, since at the sizes of decoding neither hides the other. On an H200 a
step of 256 rows of Llama-3.1-8B takes 10.1 ms by measurement and 9.9 by this model. The two grids
of BENCHMARKS.md ("On one GPU"), 256 and 160 rows, take 0.92 and 0.70 s, of which weights, products
and caches are 0.77 and 0.58: the rest, 0.6 and 0.7 ms a row, is taken for the host's (templates,
tokens, tables of edits). It knows nothing of compiling, loading, and attention's own products, so a
run takes longer rather than less.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from persona_jax.engine.memory import params_bytes
from persona_jax.models.arch import Arch

if TYPE_CHECKING:
  from persona_jax.engine.tile_plan import TilePlan


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device to plan for.

  Attributes:
    name: for people.
    memory_bytes: that it has.
    flops: bfloat16 products a second that large matrices reach.
    bytes_per_second: that a copy reaches, read and written.
    prefill_share: of `flops` that prefill reaches.
    rows: that a tile of decoding may have.
    host_seconds: of a row, beside what the device does.
    source: where the figures are from.
  """

  name: str
  memory_bytes: int
  flops: float
  bytes_per_second: float
  prefill_share: float
  rows: int
  host_seconds: float
  source: str


_MEASURED = "measured with benchmarks.gpu, BENCHMARKS.md"
ACCELERATORS = {
  "h200": Accelerator("NVIDIA H200", 139 << 30, 750e12, 3.791e12, 0.88, 512, 0.65e-3, _MEASURED),
  "h100": Accelerator(
    "NVIDIA H100 80GB", 78 << 30, 773e12, 2.718e12, 0.88, 512, 0.65e-3, _MEASURED
  ),
}


def accelerator(name: str) -> Accelerator:
  """Return an accelerator by name.

  Raises:
    ValueError: it is not known; the message lists those that are.
  """
  if name not in ACCELERATORS:
    raise ValueError(f"accelerator {name!r} is unknown; known are {sorted(ACCELERATORS)}.")
  return ACCELERATORS[name]


class Clock:
  """Estimates seconds of prefill and decoding of one model on one accelerator."""

  def __init__(self, params: object, arch: Arch, on: Accelerator):
    """Count the model's weights.

    Args:
      params: the parameters, or their shapes.
      arch: of the model.
      on: the accelerator.

    Raises:
      ValueError: the weights are of another type than 16 bits, of which the figures are.
    """
    self._on = on
    blocks = params["blocks"]  # type: ignore[index]
    self._block_weights = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(blocks))
    self._head_weights = arch.vocab_size * arch.width
    self._weight_bytes = params_bytes(params)
    itemsize = min(x.dtype.itemsize for x in jax.tree.leaves(blocks))
    if itemsize != 2:
      raise ValueError(
        f"weights of {8 * itemsize} bits: the figures of {on.name} are of bfloat16 products; load "
        'the model with dtype="bfloat16".'
      )
    self._token_bytes = 2 * itemsize * arch.num_blocks * arch.num_kv_heads * arch.head_dim

  def prefill(self, tokens: float) -> float:
    """Return seconds of sending tokens through all blocks, in large batches."""
    return 2 * self._block_weights * tokens / (self._on.flops * self._on.prefill_share)

  def decode(self, rows: int, steps: float, *, shared: float = 0.0, own: float = 0.0) -> float:
    """Return seconds of decoding.

    Args:
      rows: of the batch.
      steps: tokens of each.
      shared: tokens of prompts whose keys and values a step reads, all prompts together.
      own: tokens of its own that a row's step reads, on average.
    """
    weights = self._block_weights + self._head_weights
    streamed = self._weight_bytes + self._token_bytes * (shared + rows * own)
    return steps * (streamed / self._on.bytes_per_second + 2 * weights * rows / self._on.flops)

  def host(self, rows: int) -> float:
    """Return seconds that rows take beside what the device does."""
    return rows * self._on.host_seconds

  def tiles(self, tiles: Sequence["TilePlan"], row_tokens: Sequence[int], blocks: int) -> float:
    """Return seconds of tiles: of their prefill and decoding, and of the host."""
    seconds = 0.0
    for tile in tiles:
      seconds += self.prefill(tile.padded_passes / blocks) + self.host(len(tile.rows))
      lanes = next(iter(tile.lanes.values()), ())
      prompts = sum(p for p, _ in lanes)
      mean = float(np.mean([row_tokens[n] for n in tile.rows]))
      for rows, slots, steps in tile.decoding.segments:
        seconds += self.decode(rows, steps, shared=prompts * mean, own=slots / 2)
    return seconds


def duration(seconds: float) -> str:
  """Return seconds in words, such as "3.2 h"."""
  for unit, size in (("h", 3600.0), ("min", 60.0)):
    if seconds >= size:
      return f"{seconds / size:.1f} {unit}"
  return f"{seconds:.1f} s"
