"""What every call checks of its rows: that they fit, and that they got the edits they asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.engine.rows import Row

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# A row's delivered dose must lie here, else bfloat16 swallowed (or rounding inflated) the edit.
DOSE_RANGE = (0.95, 1.05)


def problem_of(row: Row, fed_roles: Sequence[int], dose: float) -> str:
  """Say what a row did not get of what it asked for, "" if nothing is amiss.

  Args:
    row: the row.
    fed_roles: roles of the answer tokens that went through the model.
    dose: as `dose_of`.
  """
  for edit, held in zip(row.edits, row.tokens_in_windows(fed_roles), strict=True):
    if not held:
      return (
        f"the window {edit.window} of its edit {edit.op!r} holds none of its "
        f"{len(row.ids) + len(fed_roles)} tokens, {row.prompt_length} of them prompt"
      )
  if np.isinf(dose):
    return "its edits turned activations into NaN or infinity; make them smaller"
  if not (np.isnan(dose) or DOSE_RANGE[0] <= dose <= DOSE_RANGE[1]):
    return (
      f"{dose:.3f} of the requested edit arrived, outside {list(DOSE_RANGE)}: rounding to the "
      "model's dtype swallowed or inflated it; pj.load(resid_dtype='float32') keeps it"
    )
  return ""


def dose_of(realised: float, requested: float) -> float:
  """Return realised / requested, NaN if nothing was requested, infinity if either is not finite."""
  if not (np.isfinite(realised) and np.isfinite(requested)):
    return float("inf")
  return float(realised) / float(requested) if requested > 0 else float("nan")


def check_lengths(model: "Model", rows: Sequence[Row], room: int) -> None:
  """Raise a ValueError if a row and what follows it exceed the model's positions."""
  longest = max(len(row.ids) for row in rows)
  if longest + room > model.arch.max_positions:
    raise ValueError(
      f"a prompt of {longest} tokens and {room} more exceed the model's "
      f"{model.arch.max_positions} positions; shorten it or generate less."
    )
