"""The edit table: which row is edited where, how and on which tokens, all as arrays.

A leaf module: it knows neither models nor directions. What is static is the set of (site, block)
pairs and the kinds and number of slots at each; vectors, amounts, bounds, windows, gates, ramps and
which row has which edit are data, so one compiled program serves every table of the same shape.

At "head_out" every array has an axis N of heads after that of rows, D is the width H of a head, and
each head is edited by itself.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

# Places in a block where the residual stream or a branch of it, [B, T, D], can be read and edited;
# "head_out" is [B, T, N, H], each head's output before the output projection.
Where: TypeAlias = tuple[str, int]  # a site and a block

SITES = (
  "resid_pre", "attn_in", "head_out", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post",
)  # fmt: skip
HEAD_SITE = "head_out"

# Every token has a role, given when a chat is rendered; generated tokens are the assistant's.
ROLES = {"system": 0, "user": 1, "assistant": 2, "think": 3, "template": 4}
ALL_ROLES = (1 << len(ROLES)) - 1
# Set in a mask of roles where the window counts from the end of a thought, not of the prompt.
AFTER_THOUGHT = 1 << 8

MAX_SLOTS = 8
FOREVER = np.iinfo(np.int32).max
ALWAYS = np.iinfo(np.int32).min


class When(NamedTuple):
  """On which tokens each slot acts, and how much of its change it makes there.

  Attributes:
    start_BS, stop_BS: int32 [B, S], half-open interval of token offsets from the end of the prompt
      (0 = first generated token); an unused slot's is empty.
    roles_BS: int32 [B, S], bit mask of the roles (`ROLES`) that the window covers, and whether it
      counts from the end of a thought (`AFTER_THOUGHT`).
    gate_BS: float32 [B, S], factor on the change, from a condition on the prompt; 0 is off.
    ramp_BSR: float32 [B, S, 7], the factor over the steps, see `edits.ramp.Ramp.numbers`; None
      where no slot has a ramp.
  """

  start_BS: jax.Array
  stop_BS: jax.Array
  roles_BS: jax.Array
  gate_BS: jax.Array
  ramp_BSR: jax.Array | None = None


class AddEdit(NamedTuple):
  """Additive edits of a site, merged per window: h += u[b, w] on the tokens of window w.

  Attributes:
    u_BWD: float32 [B, W, D], what is added (gates multiplied in); -0.0 where row b has no window w.
    start_BW, stop_BW: int32 [B, W], half-open interval of token offsets from the end of the prompt
      (0 = first generated token); an unused window is empty.
    roles_BW: int32 [B, W], bit mask of the roles (`ROLES`) that the window covers.
  """

  u_BWD: jax.Array
  start_BW: jax.Array
  stop_BW: jax.Array
  roles_BW: jax.Array


class ProjEdit(NamedTuple):
  """Edits of a projection, applied slot after slot.

  h += strength * clip(beta a + shift, lo - a, hi - a) p with a = <h, p>, on tokens where above <= a
  < below. A neutral slot has beta = shift = 0 and infinite bounds.

  Attributes:
    p_BSD: float32 [B, S, D], unit vectors (zero in unused slots).
    gram_BSS: float32 [B, S, S], <p_r, p_s>; a leaf of its own, so whoever changes `p_BSD` (or takes
      gradients in it) makes it anew.
    beta_BS, shift_BS, lo_BS, hi_BS: float32 [B, S].
    above_BS, below_BS: float32 [B, S], the projections on which a slot acts.
    keep_norm_B: bool [B], whether the length of h is restored after the slots; None where no row
      asks for it.
    when: where the slots act and how strongly.
  """

  p_BSD: jax.Array
  gram_BSS: jax.Array
  beta_BS: jax.Array
  shift_BS: jax.Array
  lo_BS: jax.Array
  hi_BS: jax.Array
  above_BS: jax.Array
  below_BS: jax.Array
  keep_norm_B: jax.Array | None
  when: When


class RotateEdit(NamedTuple):
  """Rotations in a plane, slot after slot; lengths are kept.

  Attributes:
    pair_BS2D: float32 [B, S, 2, D], an orthonormal pair (zero in unused slots).
    angle_BS: float32 [B, S], in radians.
    to_BS: bool [B, S], whether the angle is the one to arrive at, measured from the first vector,
      instead of the one to turn by.
    above_BS: float32 [B, S], a slot acts on tokens whose projection on the first vector exceeds it.
    keep_norm_B: bool [B], as in `ProjEdit`; of use where a gate or ramp takes part of a rotation.
    when: where the slots act and how strongly.
  """

  pair_BS2D: jax.Array
  angle_BS: jax.Array
  to_BS: jax.Array
  above_BS: jax.Array
  keep_norm_B: jax.Array | None
  when: When


class FeatureEdit(NamedTuple):
  """Edits of features of a sparse autoencoder, slot after slot.

  With the feature's activation z = x if x > threshold else 0, x = <h, encode> + bias:
  h += strength * clip(beta z + shift, lo - z, hi - z) decode. The rest of the reconstruction, and
  its error, stay as they are.

  Attributes:
    encode_BSD, decode_BSD: float32 [B, S, D].
    bias_BS, threshold_BS: float32 [B, S].
    beta_BS, shift_BS, lo_BS, hi_BS: float32 [B, S], in units of the feature's activation.
    keep_norm_B: bool [B], whether the length of h is restored after the slots; None where no row
      asks for it.
    when: where the slots act and how strongly.
  """

  encode_BSD: jax.Array
  decode_BSD: jax.Array
  bias_BS: jax.Array
  threshold_BS: jax.Array
  beta_BS: jax.Array
  shift_BS: jax.Array
  lo_BS: jax.Array
  hi_BS: jax.Array
  keep_norm_B: jax.Array | None
  when: When


class AffineEdit(NamedTuple):
  """One low-rank affine map, shared by the rows that have it: h += strength * (h A + c) B.

  Attributes:
    in_DR, bias_R, out_RD: float32, A, c and B. At "head_out" [N, D, R], [N, R], [N, R, D].
    keep_norm_B: bool [B], whether the length of h is restored; None where no row asks for it.
    when: where it acts and how strongly; S = 1.
  """

  in_DR: jax.Array
  bias_R: jax.Array
  out_RD: jax.Array
  keep_norm_B: jax.Array | None
  when: When


class CustomEdit(NamedTuple):
  """A user's function, shared by its rows: h += strength * (fn(h, params, offset) - h).

  Attributes:
    fn: `jax.tree_util.Partial` of the function; static.
    params: any pytree of arrays.
    keep_norm_B: bool [B], whether the length of h is restored; None where no row asks for it.
    when: where it acts and how strongly; S = 1.
  """

  fn: jax.tree_util.Partial
  params: Any
  keep_norm_B: jax.Array | None
  when: When


Stage = AddEdit | ProjEdit | RotateEdit | FeatureEdit | AffineEdit | CustomEdit


def windows(stage: Stage) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return (start, stop, roles) of every slot of a stage, each int32 [B, S]."""
  if isinstance(stage, AddEdit):
    return stage.start_BW, stage.stop_BW, stage.roles_BW
  return stage.when.start_BS, stage.when.stop_BS, stage.when.roles_BS


def stage_rows(stage: Stage, index_B: Any) -> Stage:
  """Return the rows `index_B` of a stage; what its rows share stays as it is."""
  if isinstance(stage, AffineEdit | CustomEdit):
    keep_norm_B, when = jax.tree.map(lambda leaf: leaf[index_B], (stage.keep_norm_B, stage.when))
    return stage._replace(keep_norm_B=keep_norm_B, when=when)
  taken: Stage = jax.tree.map(lambda leaf: leaf[index_B], stage)
  return taken


class Site(NamedTuple):
  """The edits of one (site, block): one of the three is there.

  Attributes:
    add: where every edit is an addition.
    proj: where every edit is one of a projection.
    chain: otherwise, stages that act one after another.
  """

  add: AddEdit | None = None
  proj: ProjEdit | None = None
  chain: tuple[Stage, ...] = ()

  @property
  def stages(self) -> tuple[Stage, ...]:
    """What acts at the site, in order."""
    if self.add is not None:
      return (self.add,)
    return self.chain if self.proj is None else (self.proj,)

  @property
  def num_slots(self) -> int:
    """S, the slots of each row, summed over stages."""
    return sum(windows(stage)[0].shape[-1] for stage in self.stages)

  def rows(self, index_B: Any) -> "Site":
    """Return the rows `index_B`, in that order."""
    add, proj = (None if x is None else stage_rows(x, index_B) for x in (self.add, self.proj))
    return Site(add, proj, tuple(stage_rows(stage, index_B) for stage in self.chain))  # type: ignore[arg-type]


class EditTable(NamedTuple):
  """All edits of a batch of rows: a pytree, keyed by (site, block)."""

  sites: dict[Where, Site]

  @property
  def num_rows(self) -> int:
    """B, the rows that the table describes (0 if it has no site)."""
    for site in self.sites.values():
      return windows(site.stages[0])[0].shape[0]
    return 0

  def rows(self, index_B: np.ndarray | jax.Array) -> "EditTable":
    """Return the table of the rows `index_B`, in that order."""
    return EditTable({where: site.rows(index_B) for where, site in self.sites.items()})

  def of_block(self, block: int) -> dict[str, Site]:
    """Return the sites of one block by name."""
    return {site: edit for (site, b), edit in self.sites.items() if b == block}
