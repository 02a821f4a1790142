"""The forward pass: a Python loop over one jitted block, with edits going in and reads coming out.

Equal blocks share one trace, so a pass over L blocks compiles once (23 µs dispatch a block,
measured on 2 CPU cores). Called under the user's own `jax.jit`, the loop unrolls into that program.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import Delivery, TokenInfo
from persona_jax.edits.compile import needs_roles
from persona_jax.edits.table import ALWAYS, ROLES, EditTable, Site, Where
from persona_jax.engine.capture import Capture, CaptureSpec, resolve
from persona_jax.engine.forward_checks import checked_lengths, checked_roles, checked_tokens
from persona_jax.engine.programs import DIRECT, Runner
from persona_jax.engine.taps import Fused, SiteTap
from persona_jax.models import layers
from persona_jax.models.arch import Arch
from persona_jax.models.attention import Shared, Slots, masks_are_whole, shared_mask
from persona_jax.models.fused_attention import FusedAttention
from persona_jax.models.layers import KV, Rotation

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

Reads = dict[tuple[str, int], jax.Array]
_FIRST_SLOT = np.int32(0)


class Pass(NamedTuple):
  """What a pass over the blocks gives.

  Attributes:
    h_BTD: residual stream after the last block, before the final norm; None if only the keys and
      values were asked for.
    caches: keys and values, one entry a block that was run.
    reads: captured arrays by (site, block).
    deliveries: what the edits did, one entry an edited block.
    changes: float32 [B, T] by (site, block), the lengths of the changes, if `trace`.
    shape_BT: rows and tokens.
  """

  h_BTD: Any
  caches: list[KV]
  reads: Reads
  deliveries: list[Delivery]
  changes: dict[Where, jax.Array]
  shape_BT: tuple[int, int]

  @property
  def delivery(self) -> Delivery:
    """What the edits did, summed over blocks."""
    return functools.reduce(Delivery.plus, self.deliveries, Delivery.none(self.shape_BT))


class Layout(NamedTuple):
  """How rows read keys and values that they share; see `models.attention.Shared`.

  The host makes them as NumPy arrays.

  Attributes:
    position_PS: int32, position of the token in each slot; negative where it is empty.
    member_PC, place_B: int32, or None if the rows stand in order.
  """

  position_PS: Any
  member_PC: Any
  place_B: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
  """Shared keys and values of one block, and the number of the layout that rows read them by."""

  kv: KV
  layout: int = dataclasses.field(metadata={"static": True})


@functools.partial(jax.jit, static_argnames=("arch", "i", "spec", "fused", "trace", "only_kv"))
def _block(
  params: Mapping[str, jax.Array],
  h_BTD: jax.Array,
  slots: Slots,
  sites: dict[str, Site],
  tokens: TokenInfo,
  bank_RD: jax.Array | None,
  sets_BCT: jax.Array | None,
  *,
  arch: Arch,
  i: int,
  spec: CaptureSpec | None,
  fused: Fused | None,
  trace: bool,
  only_kv: bool,
) -> tuple[jax.Array | None, KV, dict[str, jax.Array], Delivery | None, dict[str, jax.Array]]:
  tap = SiteTap(sites, tokens, spec, bank_RD, fused, trace, sets_BCT)
  h_BTD, kv = arch.family.block(arch, i, params, h_BTD, slots, tap)
  # The compiler drops what leads to nothing that is returned.
  return None if only_kv else h_BTD, kv, tap.reads, tap.delivery, tap.changes


@functools.partial(jax.jit, static_argnames=("arch",))
def _by_kind(
  position_BT: jax.Array,
  slot_position_BS: jax.Array,
  layouts: tuple[Layout, ...],
  *,
  arch: Arch,
) -> tuple[list[Rotation], list[jax.Array | None], list[list[jax.Array | None]]]:
  """Compute rotations and masks, one a kind of block, which its blocks share.

  Returns:
    By kind: rotations, masks of the rows' own slots, and masks of each layout; None for masks that
    attention is to make of a long prompt, chunk by chunk.
  """
  ropes = [layers.rotation(position_BT, kind.rope, arch.head_dim) for kind in arch.kinds]
  if not masks_are_whole(position_BT.shape[1]):
    return ropes, [None for _ in arch.kinds], [[None for _ in layouts] for _ in arch.kinds]
  return (
    ropes,
    [layers.visible(position_BT, slot_position_BS, kind.window) for kind in arch.kinds],
    [
      [shared_mask(position_BT, x.position_PS, x.member_PC, kind.window) for x in layouts]
      for kind in arch.kinds
    ],
  )


def run_blocks(
  arch: Arch,
  params: Mapping[str, Any],
  h_BTD: jax.Array,
  position_BT: jax.Array,
  tokens: TokenInfo,
  *,
  slot_position_BS: jax.Array | None = None,
  caches: list[KV] | None = None,
  cursor: jax.Array | np.int32 = _FIRST_SLOT,
  edits: EditTable | None = None,
  spec: CaptureSpec | None = None,
  banks: Mapping[int, jax.Array] | None = None,
  sets_BCT: jax.Array | None = None,
  fused: Fused | None = None,
  attention: FusedAttention | None = None,
  trace: bool = False,
  blocks: range | None = None,
  shared: Mapping[int, Sequence[Part]] | None = None,
  layouts: Sequence[Layout] = (),
  only_kv: bool = False,
  run: Runner = DIRECT,
) -> Pass:
  """Send embedded tokens through the blocks.

  Args:
    arch, params: the model.
    h_BTD: embedded tokens.
    position_BT: int32, position of each token in its row, ascending; a token attends to slots of
      positions up to its own.
    tokens: what edit windows need to know.
    slot_position_BS: int32, position of the token in each slot of the caches, the T tokens' own
      included; negative where a slot is empty. Without caches, empty slots may only follow the
      filled ones, and the default is the tokens' own positions.
    caches: per block, keys and values of S slots; the T tokens are written from slot `cursor` on.
    edits: the edit table of the B rows, or None for the model without hooks.
    spec, banks: what to read (see `engine.capture.resolve`).
    sets_BCT: sets of tokens to sum over, if `spec` says so (see `engine.reads`).
    fused: the kernel for edits of projections; None is plain XLA, which has derivatives.
    attention: the kernel for attention of long prompts; None is plain XLA, which has derivatives.
    trace: whether to note how far each token was moved at each edited place.
    blocks: those to run; default all.
    shared: by block, the keys and values that rows share, beside their own.
    layouts: how they read them.
    only_kv: whether of the last block only the keys and values are wanted.
    run: calls the device.
  """
  if slot_position_BS is None:
    slot_position_BS = position_BT
  blocks = range(arch.num_blocks) if blocks is None else blocks
  ropes, masks, seen = run(
    "positions", _by_kind, position_BT, slot_position_BS, tuple(layouts), arch=arch
  )
  deliveries = []
  new_caches, reads = [], {}
  changes: dict[Where, jax.Array] = {}
  for n, i in enumerate(blocks):
    kind = arch.pattern[i]
    kv = None if caches is None else caches[n]
    parts = []
    for part in () if shared is None else shared[i]:
      layout, mask_PCTS = layouts[part.layout], seen[kind][part.layout]
      parts.append(Shared(part.kv, layout.position_PS, mask_PCTS, layout.member_PC, layout.place_B))
    block_spec = None if spec is None else spec.reads(i)
    h_BTD, kv, block_reads, delivered, block_changes = run(
      "block",
      _block,
      params["blocks"][i],
      h_BTD,
      Slots(
        position_BT=position_BT,
        slot_position_BS=slot_position_BS,
        rope=ropes[kind],
        mask_BTS=masks[kind],
        kv=kv,
        cursor=cursor,
        shared=tuple(parts),
        window=arch.kinds[kind].window,
        fused=attention,
      ),
      {} if edits is None else edits.of_block(i),
      tokens,
      None if banks is None else banks.get(i),
      None if block_spec is None else sets_BCT,
      arch=arch,
      i=arch.first_alike(i),
      spec=block_spec,
      fused=fused,
      trace=trace,
      only_kv=only_kv and i == blocks[-1],
    )
    new_caches.append(kv)
    reads.update({(site, i): value for site, value in block_reads.items()})
    changes.update({(site, i): change for site, change in block_changes.items()})
    if delivered is not None:
      deliveries.append(delivered)
  return Pass(h_BTD, new_caches, reads, deliveries, changes, np.shape(position_BT))  # type: ignore[arg-type]


def run_rows(
  model: "Model",
  tokens_BT: jax.Array,
  tokens: TokenInfo,
  *,
  edits: EditTable | None = None,
  spec: CaptureSpec | None = None,
  banks: Mapping[int, jax.Array] | None = None,
  fused: Fused | None = None,
) -> Pass:
  """Send left-aligned rows of token ids, [B, T], through every block; see `run_blocks`."""
  position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
  return run_blocks(
    model.arch,
    model.params,
    model.embed(tokens_BT),
    position_BT,
    tokens,
    edits=edits,
    spec=spec,
    banks=banks,
    fused=fused,
  )


def forward(
  model: "Model",
  tokens_BT: jax.Array,
  edits: EditTable | None = None,
  capture: Capture | None = None,
  *,
  lengths_B: jax.Array | None = None,
  prompt_lengths_B: jax.Array | None = None,
  roles_BT: jax.Array | None = None,
  logits: Literal["all", "last"] | None = "all",
) -> tuple[jax.Array | None, Reads]:
  """Run the model on left-aligned rows; pure, so it works under `jit`, `vmap` and `grad`.

  Args:
    model: a `pj.Model`.
    tokens_BT: int32 token ids [B, T]; what stands at or after `lengths_B` is padding, any token of
      the vocabulary, and changes nothing.
    edits: table of `pj.compile_edits` for these B rows; None compiles to the model without hooks.
    capture: what to read on the way.
    lengths_B: integers, valid tokens of each row, 1 to T; default T.
    prompt_lengths_B: integers, where the prompt ends, the origin of token windows, 0 to the row's
      length; default `lengths_B`.
    roles_BT: int32 roles (`edits.table.ROLES`); default user within the prompt, assistant after it.
    logits: "all" positions, the "last" valid one of each row, or None.

  Returns:
    (logits, reads): float32 [B, T, V], [B, V] or None; and {(site, block): array} with arrays as
    `pj.Capture` says.

  Raises:
    ValueError: wrong ranks, rows or dtypes, no row or no token, an unknown `logits`; and where they
      are concrete: ids outside the vocabulary, rows of no token or of more than T or than the
      model's positions, prompts longer than their rows, numbers that are no roles, a table whose
      windows ask for roles when `roles_BT` is absent.
  """
  arch, params = model.arch, model.params
  tokens_BT = checked_tokens(tokens_BT, arch.vocab_size)
  b, t = tokens_BT.shape
  if logits not in ("all", "last", None):
    raise ValueError(f"logits={logits!r}: use 'all', 'last' or None.")
  if edits is not None and edits.sites and edits.num_rows != b:
    raise ValueError(f"the edit table has {edits.num_rows} rows, tokens_BT has {b}.")
  if edits is not None and roles_BT is None:
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(edits))
    if not traced and needs_roles(edits):
      raise ValueError("the edits' windows ask for token roles; pass roles_BT.")
  lengths_B, ends_B = checked_lengths(lengths_B, prompt_lengths_B, (b, t), arch.max_positions)
  if roles_BT is not None:
    roles_BT = checked_roles(roles_BT, (b, t))
  tokens = token_info(lengths_B, ends_B, roles_BT, t)
  spec, banks = (None, None) if capture is None else resolve(capture, arch)

  out = run_rows(model, tokens_BT, tokens, edits=edits, spec=spec, banks=banks)
  if logits is None:
    return None, out.reads
  h_BTD = out.h_BTD
  if logits == "last":
    h_BTD = jnp.take_along_axis(h_BTD, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)[:, 0]
  return head(params, h_BTD, arch=arch), out.reads


def token_info(
  lengths_B: jax.Array, ends_B: jax.Array, roles_BT: jax.Array | None, num_tokens: int
) -> TokenInfo:
  """Return what windows need to know of left-aligned rows, of their lengths and prompts' ends.

  Without roles, a prompt is the user's and what follows it the assistant's.
  """
  position_T = jnp.arange(num_tokens, dtype=jnp.int32)
  offset_BT = position_T - ends_B[:, None].astype(jnp.int32)
  if roles_BT is None:
    roles_BT = jnp.where(offset_BT >= 0, ROLES["assistant"], ROLES["user"]).astype(jnp.int32)
  valid_BT = position_T < lengths_B[:, None]
  return TokenInfo(offset_BT, roles_BT, valid_BT, _after_thought(roles_BT))


def _after_thought(roles_BT: jax.Array) -> jax.Array:
  """Return what `edits.window.after_thought` does, of traced roles."""
  position_T = jnp.arange(roles_BT.shape[1], dtype=jnp.int32)
  thought_BT = jnp.asarray(roles_BT) == ROLES["think"]
  last_BT = jax.lax.cummax(jnp.where(thought_BT, position_T, -1), axis=1)
  return jnp.where(thought_BT | (last_BT < 0), ALWAYS, position_T - last_BT - 1)


@functools.partial(jax.jit, static_argnames=("arch",))
def head(params: Mapping[str, Any], h_BTD: jax.Array, *, arch: Arch) -> jax.Array:
  """Turn residuals [..., D] into float32 logits [..., V]."""
  top = {name: leaf for name, leaf in params.items() if name != "blocks"}
  return arch.family.unembed(arch, top, h_BTD)
