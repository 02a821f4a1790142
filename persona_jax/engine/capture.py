"""What to read out of a forward pass: activations, or their projections on a bank of directions."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.edit import DirectionLike
from persona_jax.edits.table import SITES
from persona_jax.edits.window import Window, as_window
from persona_jax.models.arch import Arch

Bank = np.ndarray | jax.Array | DirectionLike | Sequence[DirectionLike]


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
  """A request for activations at sites of blocks.

  Attributes:
    sites: names out of `edits.table.SITES`; what is read is the activation after its edits.
    blocks: "all", an int or ints; block i is layer i from 0.
    reduce: "all" keeps every token [B, T, ·]; "last" the row's last token [B, ·]; "mean" the mean
      over the row's tokens in `tokens` [B, ·] (NaN for a row with none there).
    bank: None for activations [·, D]; vectors [R, D] (the same at each block), one Direction or
      several (their unit vectors, per block) for projections [·, R], in float32.
    tokens: window of the mean; anything but "all" needs reduce="mean".
  """

  sites: tuple[str, ...] = ("resid_post",)
  blocks: int | Sequence[int] | Literal["all"] = "all"
  reduce: Literal["all", "last", "mean"] = "all"
  bank: Bank | None = None
  tokens: str | Window = "all"

  def __post_init__(self) -> None:
    sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
    object.__setattr__(self, "sites", sites)
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
      raise ValueError(f"Capture sites {sites}: use some of {SITES}.")
    if self.reduce not in ("all", "last", "mean"):
      raise ValueError(f"Capture reduce={self.reduce!r}: use 'all', 'last' or 'mean'.")
    if as_window(self.tokens) != Window() and self.reduce != "mean":
      raise ValueError(f"Capture tokens={self.tokens!r} needs reduce='mean', not {self.reduce!r}.")


@dataclasses.dataclass(frozen=True)
class CaptureSpec:
  """The static part of a capture: what a program must be traced for."""

  sites: tuple[str, ...]
  blocks: tuple[int, ...]
  reduce: str
  window: Window

  def reads(self, block: int) -> "CaptureSpec | None":
    """Return the spec if `block` is captured; its number does not enter the block's trace."""
    return dataclasses.replace(self, blocks=()) if block in self.blocks else None


def resolve(capture: Capture, arch: Arch) -> tuple[CaptureSpec, dict[int, jax.Array] | None]:
  """Split a capture into its static spec and its banks {block: float32 [R, D]}.

  Raises:
    ValueError: an unknown block, a bank of the wrong width or number of blocks, or a zero
      direction.
  """
  blocks = arch.block_numbers(capture.blocks)  # type: ignore[arg-type]
  spec = CaptureSpec(capture.sites, blocks, capture.reduce, as_window(capture.tokens))
  if capture.bank is None:
    return spec, None
  return spec, {block: jnp.asarray(_bank_of(capture.bank, block, arch)) for block in blocks}


def _bank_of(bank: Bank, block: int, arch: Arch) -> np.ndarray | jax.Array:
  if isinstance(bank, (np.ndarray, jax.Array)):
    if bank.ndim != 2 or bank.shape[1] != arch.width:
      raise ValueError(f"bank has shape {bank.shape}; it must be [R, {arch.width}].")
    return bank.astype(jnp.float32)
  directions = list(bank) if isinstance(bank, Sequence) else [bank]
  rows = []
  for d in directions:
    mean_LD = np.asarray(d.mean_LD, np.float64)
    if mean_LD.shape != (arch.num_blocks, arch.width):
      raise ValueError(
        f"direction {d.concept!r} is {mean_LD.shape} [L, D]; this model is "
        f"({arch.num_blocks}, {arch.width})."
      )
    norm = np.linalg.norm(mean_LD[block])
    if not norm > 0:
      raise ValueError(
        f"direction {d.concept!r} is zero or NaN at block {block}; nothing projects on it."
      )
    rows.append(mean_LD[block] / norm)
  return np.asarray(rows, np.float32)


def read(
  spec: CaptureSpec, x_BTD: jax.Array, bank_RD: jax.Array | None, tokens: TokenInfo
) -> jax.Array:
  """Reduce (and project) the activation of one site as the spec says."""
  out = x_BTD
  if bank_RD is not None:
    out = jnp.einsum(
      "BTD,RD->BTR", x_BTD.astype(jnp.float32), bank_RD, precision=jax.lax.Precision.HIGHEST
    )
  if spec.reduce == "all":
    return out
  if spec.reduce == "last":
    index_BT = jnp.where(tokens.valid_BT, jnp.arange(tokens.valid_BT.shape[1]), -1)
    last_B = jnp.argmax(index_BT, axis=1)
    return jnp.take_along_axis(out, last_B[:, None, None], axis=1)[:, 0]
  start, stop = spec.window.interval
  inside_BT = tokens.valid_BT & (tokens.offset_BT >= start) & (tokens.offset_BT < stop)
  inside_BT &= ((spec.window.role_mask >> tokens.role_BT) & 1) == 1
  total = jnp.sum(jnp.where(inside_BT[..., None], out.astype(jnp.float32), 0.0), axis=1)
  return total / jnp.sum(inside_BT, axis=1, keepdims=True)
