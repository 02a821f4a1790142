"""What every call checks of its rows: that they fit, and that they got the edits they asked for."""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_jax.edits.window import as_window
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
  held_by_edit = row.tokens_in_windows(fed_roles) if row.edits else []
  for edit, held in zip(row.edits, held_by_edit, strict=True):
    if not held:
      tokens = len(row.ids) + len(fed_roles)
      problem = (
        f"the window {edit.window} of its edit {edit.op!r} holds none of its {tokens} tokens, "
        f"{row.prompt_length} of them prompt"
      )
      if edit.ramp is not None:
        problem += ", on which its ramp is not 0"
      if edit.window == as_window("generated") and tokens == row.prompt_length:
        problem += (
          "; of an answer all tokens but the last go through the model, so here none did: "
          "tokens='answer' acts on the prompt's last token too"
        )
      return problem
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


def check_lengths(
  model: "Model",
  rows: Sequence[Row],
  room: int | Sequence[int],
  *,
  names: Sequence[object] | None = None,
) -> None:
  """Check that each row and what follows it fit into the model's positions.

  Args:
    model: the model.
    rows: the rows.
    room: tokens that follow, one number or one a row.
    names: what to call the prompts of the rows in messages; default their numbers.

  Raises:
    ValueError: one does not fit.
  """
  most = model.arch.max_positions
  rooms = [room] * len(rows) if isinstance(room, int) else room
  for name, row, more in zip(names or range(len(rows)), rows, rooms, strict=True):
    if len(row.ids) + more > most:
      follows = f" and the {more} that follow exceed" if more else " exceed"
      raise ValueError(
        f"prompt {name}: its {len(row.ids)} tokens{follows} the model's {most} positions; shorten "
        f"{'the prompt or what follows' if more else 'it'}."
      )


def as_int(name: str, value: Any, least: int | None = None) -> int:
  """Return an integer, of NumPy or not, as a plain one.

  Raises:
    ValueError: it is a bool or no integer, or below `least`.
  """
  fits = "an integer" if least is None else f"an integer of at least {least}"
  try:
    number = None if isinstance(value, bool) else int(operator.index(value))
  except TypeError:
    number = None
  if number is None or (least is not None and number < least):
    raise ValueError(f"{name}={value!r}: give {fits}.")
  return number


def as_whole(name: str, value: Any, least: int | None = None) -> int:
  """Return a whole number, also one that a table holds as a float, as a plain integer.

  Raises:
    ValueError: it is a bool, NaN, no number or no whole one, or below `least`.
  """
  if isinstance(value, (float, np.floating)):
    if np.isnan(value):
      raise ValueError(f"{name} is NaN; leave out what has no value.")
    value = int(value) if float(value).is_integer() else value
  return as_int(name, value, least)


def as_number(name: str, value: Any) -> float:
  """Return a number, of NumPy or not, as a plain float.

  Raises:
    ValueError: it is a bool, a text or no number.
  """
  try:
    number = None if isinstance(value, (bool, np.bool_, str, bytes)) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = None
  if number is None:
    raise ValueError(f"{name}={value!r}: give a number.")
  return number


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
  """Put a name before the message of a ValueError."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{what}: {error}") from error
