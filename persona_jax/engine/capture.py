"""What to read out of a forward pass: activations, or their projections on a bank of directions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.edit import DirectionLike
from persona_jax.edits.table import SITES, Where
from persona_jax.edits.window import Window, as_window
from persona_jax.models.arch import Arch

Bank = np.ndarray | jax.Array | DirectionLike | Sequence[DirectionLike]


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
  """A request for activations at sites of blocks.

  Attributes:
    sites: names out of `edits.table.SITES`; what is read is the activation after its edits. At
      "head_out" D is N H: the heads' outputs one after another.
    blocks: "all", an int or ints; block i is layer i from 0.
    reduce: "all" keeps every token in `tokens` [B, T, ·] (NaN for the others); "last" the row's
      last token [B, ·]; "mean" the mean over the row's tokens in `tokens` [B, ·] (NaN for a row
      with none there).
    bank: None for activations [·, D]; vectors [R, D] (the same at each block), one Direction or
      several (their unit vectors, per block) for projections [·, R], in float32.
    tokens: which tokens are read; for reduce="last" leave it at "all".
    allow_other_site: accept a bank of directions that were read at another site than `sites`.

  Raises:
    ValueError: an unknown site, reduction or window, or a window with reduce="last".
  """

  sites: tuple[str, ...] = ("resid_post",)
  blocks: int | Sequence[int] | Literal["all"] = "all"
  reduce: Literal["all", "last", "mean"] = "all"
  bank: Bank | None = None
  tokens: str | Window = "all"
  allow_other_site: bool = False

  def __post_init__(self) -> None:
    sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
    object.__setattr__(self, "sites", sites)
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
      raise ValueError(f"Capture sites {sites}: use some of {SITES}.")
    if self.reduce not in ("all", "last", "mean"):
      raise ValueError(f"Capture reduce={self.reduce!r}: use 'all', 'last' or 'mean'.")
    if as_window(self.tokens) != Window() and self.reduce == "last":
      raise ValueError(f"Capture tokens={self.tokens!r} needs reduce='mean' or 'all', not 'last'.")


@dataclasses.dataclass(frozen=True)
class CaptureSpec:
  """The static part of a capture: what a program must be traced for.

  `reduce` may also be "sets": sums over sets of tokens that the program is given (`engine.reads`).
  """

  sites: tuple[str, ...]
  blocks: tuple[int, ...]
  reduce: str
  window: Window

  def width(self, arch: Arch) -> int:
    """Return D at the sites.

    Raises:
      ValueError: they have different ones, so no bank serves all.
    """
    widths = {arch.site_width(site) for site in self.sites}
    if len(widths) > 1:
      raise ValueError(f"sites {self.sites} have widths {sorted(widths)}; one bank has one width.")
    return widths.pop()

  def places(self, banks: Mapping[int, jax.Array] | None, arch: Arch) -> dict[Where, int]:
    """Return the width of what is read, by (site, block)."""
    return {
      (site, block): arch.site_width(site) if banks is None else banks[block].shape[0]
      for block in self.blocks
      for site in self.sites
    }

  def reads(self, block: int) -> "CaptureSpec | None":
    """Return the spec if `block` is captured; its number does not enter the block's trace."""
    return dataclasses.replace(self, blocks=()) if block in self.blocks else None


def resolve(capture: Capture, arch: Arch) -> tuple[CaptureSpec, dict[int, jax.Array] | None]:
  """Split a capture into its static spec and its banks {block: float32 [R, D]}.

  Raises:
    ValueError: no `Capture`, an unknown block, a bank that holds nothing or what is no direction,
      of the wrong width or number of blocks, with a NaN or an infinity, or of another site; or a
      zero direction.
  """
  if not isinstance(capture, Capture):
    raise ValueError(f"capture is {capture!r:.60}; give a pj.Capture, as pj.Capture('resid_post').")
  blocks = arch.block_numbers(capture.blocks)  # type: ignore[arg-type]
  spec = CaptureSpec(capture.sites, blocks, capture.reduce, as_window(capture.tokens))
  if capture.bank is None:
    return spec, None
  bank = capture.bank
  if isinstance(bank, (np.ndarray, jax.Array)):
    return spec, dict.fromkeys(blocks, _array_bank(bank, spec.width(arch)))
  directions = list(bank) if isinstance(bank, Sequence) else [bank]
  strange = [type(d).__name__ for d in directions if not hasattr(d, "mean_LD")]
  if strange or not directions:
    raise ValueError(
      "bank must be vectors in one array [R, D], a pj.Direction or a list of them; got "
      f"{f'items of type {sorted(set(strange))}' if strange else 'an empty list'}."
    )
  for d in directions:
    others = [site for site in spec.sites if site != d.site]
    if others and not capture.allow_other_site:
      raise ValueError(
        f"direction {d.concept!r} was read at site {d.site!r} and is to be projected on at "
        f"{others}; pass allow_other_site=True if that is meant."
      )
  width = spec.width(arch)
  return spec, {block: jax.device_put(_units(directions, block, arch, width)) for block in blocks}


def _array_bank(bank: np.ndarray | jax.Array, width: int) -> jax.Array:
  if bank.ndim != 2 or bank.shape[1] != width or not bank.shape[0]:
    raise ValueError(f"bank has shape {bank.shape}; it must be [R, {width}] with R at least 1.")
  with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
    bank_RD = bank.astype(jnp.float32)
  if not isinstance(bank_RD, jax.core.Tracer):
    values_RD = np.asarray(bank_RD)
    wrong = np.flatnonzero(~np.isfinite(values_RD).all(axis=1)).tolist()
    if wrong:
      raise ValueError(
        f"bank rows {wrong[:8]} hold a NaN or an infinity; nothing projects on them."
      )
    zero = np.flatnonzero(~values_RD.any(axis=1)).tolist()
    if zero:
      raise ValueError(f"bank rows {zero[:8]} are zero; nothing projects on them.")
  return jnp.asarray(bank_RD)


def _units(directions: Sequence[DirectionLike], block: int, arch: Arch, width: int) -> np.ndarray:
  """Return the unit vectors of directions at one block, float32 [R, D]."""
  rows = []
  for d in directions:
    mean_LD = np.asarray(d.mean_LD, np.float64)
    if mean_LD.shape != (arch.num_blocks, width):
      raise ValueError(
        f"direction {d.concept!r} is {mean_LD.shape} [L, D]; this model is "
        f"({arch.num_blocks}, {width})."
      )
    norm = np.linalg.norm(mean_LD[block])
    if not norm > 0:
      raise ValueError(
        f"direction {d.concept!r} is zero or NaN at block {block}; nothing projects on it."
      )
    rows.append(mean_LD[block] / norm)
  return np.asarray(rows, np.float32)


def _product(sets_BCT: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """Sum over sets of tokens: 0 and 1 are exact in every dtype, and so are the products."""
  return jnp.einsum(
    "BCT,BTD->BCD",
    sets_BCT.astype(x_BTD.dtype),
    x_BTD,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def _choice(sets_BCT: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """Sum over sets of tokens, some of which are NaN or infinite; set by set, to keep it small."""

  def total(set_BT: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(set_BT[..., None], x_BTD.astype(jnp.float32), 0.0), axis=1)

  return jnp.moveaxis(jax.lax.map(total, jnp.moveaxis(sets_BCT, 1, 0)), 0, 1)


def read(
  spec: CaptureSpec,
  x_BTD: jax.Array,
  bank_RD: jax.Array | None,
  tokens: TokenInfo,
  sets_BCT: jax.Array | None = None,
) -> jax.Array:
  """Reduce (and project) the activation of one site as the spec says; heads side by side.

  Args:
    spec: what to read.
    x_BTD: the activation.
    bank_RD: what to project it on.
    tokens: what the window needs to know.
    sets_BCT: bool, sets of tokens to sum over, for reduce="sets".

  Returns:
    [B, T, ·], [B, ·], or for sets [B, C, ·] in float32.
  """
  x_BTD = x_BTD.reshape(*x_BTD.shape[:2], -1)
  inside_BT = tokens.valid_BT & spec.window.holds(tokens.offset_BT, tokens.role_BT, tokens.after_BT)
  out = x_BTD
  if spec.reduce == "sets":
    assert sets_BCT is not None
    # The product is 20 times as fast as a choice (2 cores, 16 x 4 sets of 256 tokens of width 576),
    # but 0 x infinity is NaN: a set must not feel what it does not hold.
    out = jax.lax.cond(jnp.isfinite(x_BTD).all(), _product, _choice, sets_BCT, x_BTD)
  elif spec.reduce == "last":
    index_BT = jnp.where(tokens.valid_BT, jnp.arange(tokens.valid_BT.shape[1]), -1)
    last_B = jnp.argmax(index_BT, axis=1)
    out = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
  elif spec.reduce == "mean":
    total = jnp.sum(jnp.where(inside_BT[..., None], x_BTD.astype(jnp.float32), 0.0), axis=1)
    out = total / jnp.sum(inside_BT, axis=1, keepdims=True)
  if bank_RD is not None:
    out = jnp.einsum(
      "...D,RD->...R", out.astype(jnp.float32), bank_RD, precision=jax.lax.Precision.HIGHEST
    )
  if spec.reduce == "all" and spec.window != Window():
    out = jnp.where(inside_BT[..., None], out, jnp.nan)
  return out
