"""The edit table: which row is edited where, how and on which tokens, all as arrays.

A leaf module: it knows neither models nor directions. What is static is the set of (site, block)
pairs and the number of slots at each; vectors, amounts, bounds, windows and which row has which
edit are data, so one compiled program serves every table of the same shape.
"""

from typing import NamedTuple

import jax
import numpy as np

# Places in a block where the residual stream or a branch of it, [B, T, D], can be read and edited.
SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")

# Every token has a role, given when a chat is rendered; generated tokens are the assistant's.
ROLES = {"system": 0, "user": 1, "assistant": 2, "think": 3, "template": 4}
ALL_ROLES = (1 << len(ROLES)) - 1

MAX_SLOTS = 8
FOREVER = np.iinfo(np.int32).max
ALWAYS = np.iinfo(np.int32).min


class AddEdit(NamedTuple):
  """Additive edits of a site, merged per window: h += u[b, w] on the tokens of window w.

  Attributes:
    u_BWD: float32 [B, W, D], what is added; -0.0 where row b has no window w.
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

  h += clip(beta a + shift, lo - a, hi - a) p with a = <h, p>. A neutral slot has beta = shift = 0
  and infinite bounds.

  Attributes:
    p_BSD: float32 [B, S, D], unit vectors (zero in unused slots).
    gram_BSS: float32 [B, S, S], <p_r, p_s>; a leaf of its own, so whoever changes `p_BSD` (or takes
      gradients in it) makes it anew.
    beta_BS, shift_BS, lo_BS, hi_BS: float32 [B, S].
    start_BS, stop_BS, roles_BS: int32 [B, S], as in `AddEdit`, per slot.
  """

  p_BSD: jax.Array
  gram_BSS: jax.Array
  beta_BS: jax.Array
  shift_BS: jax.Array
  lo_BS: jax.Array
  hi_BS: jax.Array
  start_BS: jax.Array
  stop_BS: jax.Array
  roles_BS: jax.Array


class Site(NamedTuple):
  """The edits of one (site, block): `add` alone where all are additions, else `proj`."""

  add: AddEdit | None = None
  proj: ProjEdit | None = None

  @property
  def windows(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(start, stop, roles) of every slot, each int32 [B, S]."""
    if self.add is not None:
      return self.add.start_BW, self.add.stop_BW, self.add.roles_BW
    assert self.proj is not None
    return self.proj.start_BS, self.proj.stop_BS, self.proj.roles_BS

  @property
  def num_slots(self) -> int:
    """S, the slots of each row."""
    return self.windows[0].shape[1]


class EditTable(NamedTuple):
  """All edits of a batch of rows: a pytree, keyed by (site, block)."""

  sites: dict[tuple[str, int], Site]

  @property
  def num_rows(self) -> int:
    """B, the rows that the table describes (0 if it has no site)."""
    leaves = jax.tree.leaves(self.sites)
    return leaves[0].shape[0] if leaves else 0

  def rows(self, index_B: np.ndarray) -> "EditTable":
    """Return the table of the rows `index_B`, in that order."""
    return jax.tree.map(lambda leaf: leaf[index_B], self)

  def of_block(self, block: int) -> dict[str, Site]:
    """Return the sites of one block by name."""
    return {site: edit for (site, b), edit in self.sites.items() if b == block}
