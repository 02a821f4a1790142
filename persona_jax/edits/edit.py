"""What an edit is: one operation along a unit vector p, written for any number of blocks.

With a = <h, p>, in float32, the projection of a token's activation h becomes:

  add      a + c           ablate   0                set_to   c
  scale    gamma a         clamp    min(max(a, lo), hi)
  cap      min(a, hi)      floor    max(a, lo)

`operations` makes them.
"""

import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from persona_jax.edits.window import Window


class DirectionLike(Protocol):
  """What an edit needs of a `persona_jax.Direction`."""

  @property
  def vectors_SLD(self) -> np.ndarray: ...
  @property
  def mean_LD(self) -> np.ndarray: ...
  @property
  def gap_L(self) -> np.ndarray | None: ...
  @property
  def site(self) -> str: ...
  @property
  def concept(self) -> str: ...
  @property
  def hash(self) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """One operation on one site of some blocks; made by `pj.add` and its kin.

  Attributes:
    op: "add", "ablate", "set_to", "scale", "clamp", "cap" or "floor".
    site: one of `edits.table.SITES`.
    blocks: 0-based block numbers; the edit acts at that site of each.
    unit_LD: float32 unit vectors p, one a block of `blocks`.
    beta: factor on the projection.
    shift_L, lo_L, hi_L: float64 amounts in the units of h, one a block, each [len(blocks)] or,
      where one per row was given, [len(blocks), B].
    window: the tokens it acts on.
    amounts: what the user wrote, e.g. {"coef": 0.3}.
    unit: the unit it was written in.
    concept: name of the direction.
    direction_hash: hash of the direction.
    num_blocks: L of the direction, which must be the model's.
  """

  op: str
  site: str
  blocks: tuple[int, ...]
  unit_LD: np.ndarray
  beta: float
  shift_L: np.ndarray
  lo_L: np.ndarray
  hi_L: np.ndarray
  window: Window
  amounts: dict[str, float | list[float]]
  unit: str | None
  concept: str
  direction_hash: str
  num_blocks: int

  @property
  def num_rows(self) -> int | None:
    """Rows that amounts were given for, None where they are the same for any row."""
    sizes = {x.shape[1] for x in (self.shift_L, self.lo_L, self.hi_L) if x.ndim == 2}
    return max(sizes) if sizes else None

  def at_row(self, row: int, num_rows: int) -> "Edit":
    """Return the edit with the amounts of one row of a batch.

    Raises:
      ValueError: amounts were given for another number of rows.
    """
    if self.num_rows is None:
      return self
    arrays = (self.shift_L, self.lo_L, self.hi_L)
    wrong = {x.shape[1] for x in arrays if x.ndim == 2 and x.shape[1] != num_rows}
    if wrong:
      raise ValueError(
        f"amounts of {self.op!r} were given for {sorted(wrong)[0]} rows; this batch has {num_rows}."
      )
    shift_L, lo_L, hi_L = (x if x.ndim == 1 else x[:, row] for x in arrays)
    amounts = dict(self.amounts)
    amounts.update({k: v[row] for k, v in self.amounts.items() if isinstance(v, list)})
    return dataclasses.replace(self, shift_L=shift_L, lo_L=lo_L, hi_L=hi_L, amounts=amounts)

  def describe(self) -> dict[str, object]:
    """Return the edit as plain values for a config, log or hash; vectors appear by their hash."""
    return {
      "op": self.op,
      "concept": self.concept,
      "direction_hash": self.direction_hash,
      "site": self.site,
      "blocks": list(self.blocks),
      "tokens": str(self.window),
      "unit": self.unit,
      **self.amounts,
      "numbers": hashlib.sha256(
        b"".join(
          np.ascontiguousarray(x).tobytes()
          for x in (self.unit_LD, self.shift_L, self.lo_L, self.hi_L)
        )
      ).hexdigest()[:16],
    }
