"""A few whole blocks of Llama-3.1-8B with edits, as programs to compile or to time."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.table import AddEdit, EditTable, ProjEdit, Site, When
from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.forward import run_blocks
from persona_jax.engine.taps import Fused
from persona_jax.models import llama
from persona_jax.models.layers import KV

LLAMA_8B = {
  "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
  "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
  "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 8192,
  "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
# 16384 tokens as short rows: attention is then a small part, and the edit's share is not flattered.
PREFILL = (128, 128)
DECODE_ROWS, DECODE_SLOTS, DIRECTIONS = 256, 1024, 300

Phase = Literal["prefill", "decode"]
Kind = Literal["add", "projection", "keep norm"]
KINDS: tuple[tuple[Kind, int], ...] = (
  ("add", 1),
  ("projection", 1),
  ("projection", 4),
  ("projection", 8),
  ("keep norm", 1),
)
Shape = Callable[..., jax.ShapeDtypeStruct]


def shape_on(sharding: jax.sharding.Sharding | None) -> Shape:
  """Return what makes shapes on a device: sizes and `dtype`, float32 by default."""

  def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)

  return shape


def label(kind: Kind, slots: int) -> str:
  """Name an edit as the tables do."""
  return f"{kind}, {slots} slot{'s' * (slots > 1)}"


class Blocks:
  """Blocks of Llama-3.1-8B on 16384 tokens of prompts, or in a step of decoding 256 rows.

  Attributes:
    rows: rows of the batch.
    stream: shape of the residual stream.
    shape: makes shapes on the device.
  """

  def __init__(self, shape: Shape, phase: Phase, num_blocks: int):
    self.shape = shape
    self._arch = arch = llama.parse({**LLAMA_8B, "num_hidden_layers": num_blocks})
    rows, tokens = PREFILL if phase == "prefill" else (DECODE_ROWS, 1)
    self.rows = rows
    self.stream = shape(rows, tokens, 4096, dtype="bfloat16")
    self._params = jax.tree.map(
      lambda x: shape(*x.shape, dtype="bfloat16"), arch.family.abstract_params(arch)
    )
    self._caches, self._cursor, self._slot_BS = None, 0, None
    if phase == "decode":
      kv = KV(*(shape(rows, 8, DECODE_SLOTS, 128, dtype="bfloat16") for _ in range(2)))
      self._caches, self._cursor = [kv] * num_blocks, DECODE_SLOTS - 1
      self._slot_BS = shape(rows, DECODE_SLOTS, dtype="int32")

  def site(self, kind: Kind, slots: int) -> Site:
    """Return an edit of every row, as shapes."""

    def number(dtype: str = "float32") -> jax.ShapeDtypeStruct:
      return self.shape(self.rows, slots, dtype=dtype)

    start, stop, roles = (number("int32") for _ in range(3))
    vectors = self.shape(self.rows, slots, 4096)
    if kind == "add":
      return Site(add=AddEdit(vectors, start, stop, roles))
    gram = self.shape(self.rows, slots, slots)
    keep = self.shape(self.rows, dtype="bool") if kind == "keep norm" else None
    when = When(start, stop, roles, number())
    return Site(proj=ProjEdit(vectors, gram, *(number() for _ in range(6)), keep, when))

  def program(
    self,
    edits: Mapping[tuple[str, int], Site] | None = None,
    fused: Fused | None = None,
    directions: int = 0,
  ) -> tuple[Any, tuple[Any, ...]]:
    """Return a jitted function and its arguments as shapes.

    Args:
      edits: sites by name and block.
      fused: the kernel, or None.
      directions: how many to read out at the output of every block.

    Returns:
      fn(h_BTD, caches, params, position_BT, slot_BS, info, edits, banks) → (h_BTD, caches, rest);
      the first two are donated, so that calls can be chained.
    """
    spec = resolve(Capture(), self._arch)[0] if directions else None
    bank = self.shape(directions, 4096)
    banks = dict.fromkeys(range(self._arch.num_blocks), bank) if directions else None

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(h_BTD, caches, params, position_BT, slot_BS, info, edits, banks):  # type: ignore[no-untyped-def]
      out = run_blocks(
        self._arch, params, h_BTD, position_BT, info, slot_position_BS=slot_BS, caches=caches,
        cursor=self._cursor, edits=None if edits is None else EditTable(edits), spec=spec,
        banks=banks, fused=fused,
      )  # fmt: skip
      return out.h_BTD, None if caches is None else out.caches, (out.delivery, out.reads)

    whole = self.shape(*self.stream.shape[:2], dtype="int32")
    info = TokenInfo(whole, whole, self.shape(*whole.shape, dtype="bool"))
    head = (self.stream, self._caches, self._params, whole, self._slot_BS)
    return run, (*head, info, edits, banks)
