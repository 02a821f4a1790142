"""What an edit is: one operation at a site of some blocks, as numbers that a table can hold.

The constructors stand beside it: `operations` (along a direction), `rotation`, `learned` (low-rank
maps, features of autoencoders, users' functions).
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from persona_jax.edits.ramp import Ramp
from persona_jax.edits.window import Window

if TYPE_CHECKING:
  from persona_jax.edits.gate import Rule

Kind = Literal["proj", "rotate", "feature", "affine", "custom"]


class DirectionLike(Protocol):
  """What an edit needs of a `persona_jax.Direction`."""

  @property
  def vectors_SLD(self) -> np.ndarray: ...
  @property
  def mean_LD(self) -> np.ndarray: ...
  @property
  def gap_L(self) -> np.ndarray | None: ...
  @property
  def num_heads(self) -> int | None: ...
  @property
  def site(self) -> str: ...
  @property
  def concept(self) -> str: ...
  @property
  def hash(self) -> str: ...


def as_float32(what: str, array: np.ndarray) -> np.ndarray:
  """Return an array in float32.

  Raises:
    ValueError: a finite number of it is too large for that.
  """
  with np.errstate(over="ignore"):
    single = np.asarray(array, np.float32)
  if (np.isfinite(array) & ~np.isfinite(single)).any():
    raise ValueError(f"{what} is {np.abs(array).max():.3g}, more than float32 holds.")
  return single


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """One operation on one site of some blocks; made by `pj.add` and its kin.

  In array names L counts the blocks of `blocks`, K the slots that the edit takes at each, and X
  stands for nothing or, at "head_out", for the heads N.

  Attributes:
    op: "add", "ablate", "set_to", …: the function that made it.
    kind: the stage of the edit table that carries it out.
    site: one of `edits.table.SITES`.
    blocks: 0-based block numbers; the edit acts at that site of each.
    numbers: name → array [L, K, X, …] of what the stage computes with, in the units of h; for the
      names in `per_row` [L, K, X, B]. Names and meaning: `edits.stages.SLOT_NUMBERS`.
    width: D that the activation must have; N H at "head_out".
    window: the tokens it acts on.
    amounts: what the user wrote, e.g. {"coef": 0.3}.
    unit: the unit it was written in.
    factor_LX: one such unit in the units of h, None for an operation without one.
    concept, direction_hash: of the direction, or of whatever it was made from.
    num_blocks: L of the direction, which must be the model's; None if it has none.
    per_row: names of numbers that were given for each row.
    head_mask_N: bool, the heads it acts on; None at other sites.
    ramp: how much of it acts at each step.
    gate: a rule on the prompt, or its outcome: factor on the change.
    norm_kept: whether the length of h is restored afterwards.
    call: (function, parameters) of a custom edit.
  """

  op: str
  kind: Kind
  site: str
  blocks: tuple[int, ...]
  numbers: Mapping[str, np.ndarray]
  width: int | None
  window: Window
  amounts: Mapping[str, Any]
  unit: str | None
  factor_LX: np.ndarray | None
  concept: str
  direction_hash: str
  num_blocks: int | None
  per_row: frozenset[str] = frozenset()
  head_mask_N: np.ndarray | None = None
  ramp: Ramp | None = None
  gate: "Rule | float" = 1.0
  norm_kept: bool = False
  call: tuple[Callable[..., Any], Any] | None = None

  def __post_init__(self) -> None:
    for name, array in self.numbers.items():
      as_float32(f"{self.op!r} of {self.concept!r} with {dict(self.amounts)}: its {name}", array)

  @property
  def num_rows(self) -> int | None:
    """Rows that amounts were given for, None where they are the same for any row."""
    sizes = {self.numbers[name].shape[-1] for name in self.per_row}
    return max(sizes) if sizes else None

  @property
  def num_slots(self) -> int:
    """K."""
    return 1 if self.call is not None else next(iter(self.numbers.values())).shape[1]

  @property
  def is_plain_addition(self) -> bool:
    """Whether it adds the same vector to every token of its window."""
    return self.op == "add" and self.ramp is None and not self.norm_kept and not self._is_partial

  @property
  def _is_partial(self) -> bool:
    limits = (self.numbers.get(name) for name in ("above", "below"))
    return any(x is not None and np.isfinite(x).any() for x in limits)

  @property
  def delta_LD(self) -> np.ndarray:
    """What an addition adds at each block, float64 [L, D] ([L, N, H] at "head_out").

    Raises:
      ValueError: it is no addition, or has an amount for each row.
    """
    if self.op != "add" or self.per_row:
      raise ValueError(f"{self.op!r} edits with one amount only have a delta if they add.")
    shift_LKX, p_LKXD = self.numbers["shift"], self.numbers["p"].astype(np.float64)
    total: np.ndarray = (shift_LKX[..., None] * p_LKXD).sum(axis=1)
    return total

  def at_row(self, row: int, num_rows: int) -> "Edit":
    """Return the edit with the amounts of one row of a batch.

    Raises:
      ValueError: amounts were given for another number of rows.
    """
    if self.num_rows is None:
      return self
    wrong = {self.numbers[name].shape[-1] for name in self.per_row} - {num_rows}
    if wrong:
      raise ValueError(
        f"amounts of {self.op!r} were given for {sorted(wrong)[0]} rows; this batch has {num_rows}."
      )
    numbers = {n: x[..., row] if n in self.per_row else x for n, x in self.numbers.items()}
    amounts = dict(self.amounts)
    amounts.update({k: v[row] for k, v in self.amounts.items() if isinstance(v, list)})
    return dataclasses.replace(self, numbers=numbers, amounts=amounts, per_row=frozenset())

  def ramped(self, ramp: Ramp) -> "Edit":
    """Return the edit with a factor on its change that depends on the step."""
    if not isinstance(ramp, Ramp):
      raise ValueError(f"ramped takes a pj.Ramp, got {ramp!r}.")
    return dataclasses.replace(self, ramp=ramp)

  def when(self, rule: "Rule") -> "Edit":
    """Return the edit, switched on only for rows whose prompt fulfils a rule of `pj.Probe`s.

    `generate`, `score`, `capture` and `run` read the prompts and decide row by row before they
    begin; for `pj.forward` `pj.resolve_gates` does.
    """
    from persona_jax.edits.gate import Rule

    if not isinstance(rule, Rule):
      raise ValueError(f"when takes a pj.Probe or probes joined by & | ~, got {rule!r}.")
    if not isinstance(self.gate, float):
      rule = self.gate & rule
    return dataclasses.replace(self, gate=rule)

  def where(self, *, above: float | None = None, below: float | None = None) -> "Edit":
    """Return the edit, acting only on tokens with a projection in [above, below).

    `set_to(d, target, …).where(below=threshold)` is steering to a target projection (StTP).

    Args:
      above, below: in the edit's own unit; for an operation without one, in the units of h along
        the unit vector. Give one or both.

    Raises:
      ValueError: an edit of another kind than one of projections, no bound, or crossed bounds.
    """
    if self.kind != "proj":
      raise ValueError(f"where needs an edit of a projection; {self.op!r} has none.")
    if self.num_slots > 1:
      raise ValueError(f"where needs one projection; this {self.op!r} has {self.num_slots}.")
    bounds = (above, below)
    if bounds == (None, None) or any(b is not None and not math.isfinite(b) for b in bounds):
      raise ValueError(f"where(above={above}, below={below}): give a finite bound, or both.")
    if above is not None and below is not None and above >= below:
      raise ValueError(f"where(above={above}, below={below}): no projection lies between.")
    shape = self.numbers["beta"].shape
    factor = np.ones(shape) if self.factor_LX is None else self.factor_LX[:, None]
    numbers = dict(self.numbers)
    for name, bound in (("above", above), ("below", below)):
      if bound is not None:
        numbers[name] = np.broadcast_to(factor * bound, shape)
    amounts = dict(self.amounts) | {
      k: float(v) for k, v in (("above", above), ("below", below)) if v is not None
    }
    if "above" in numbers and "below" in numbers and (numbers["above"] >= numbers["below"]).any():
      kept = {k: amounts[k] for k in ("above", "below") if k in amounts}
      raise ValueError(f"{self.op!r} would act where {kept}: no projection lies between.")
    return dataclasses.replace(self, numbers=numbers, amounts=amounts)

  def keep_norm(self) -> "Edit":
    """Return the edit, after which every edited token's length is what it was before it."""
    return dataclasses.replace(self, norm_kept=True)

  def describe(self) -> dict[str, Any]:
    """Return the edit as plain values for a config, log or hash; vectors appear by their hash."""
    digest = hashlib.sha256()
    for name in sorted(self.numbers):
      digest.update(name.encode() + np.ascontiguousarray(self.numbers[name]).tobytes())
    more: dict[str, Any] = {}
    if self.head_mask_N is not None:
      more["heads"] = np.flatnonzero(self.head_mask_N).tolist()
    if self.ramp is not None:
      more["ramp"] = self.ramp.describe()
    if self.gate != 1.0:
      more["gate"] = self.gate if isinstance(self.gate, float) else self.gate.describe()
    if self.norm_kept:
      more["keep_norm"] = True
    return {
      "op": self.op,
      "concept": self.concept,
      "direction_hash": self.direction_hash,
      "site": self.site,
      "blocks": list(self.blocks),
      "tokens": str(self.window),
      "unit": self.unit,
      **self.amounts,
      **more,
      "numbers": digest.hexdigest()[:16],
    }
