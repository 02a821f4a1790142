"""Which tokens of a prompt directions are read at: their names, and what captures them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from persona_jax.edits.window import Window, as_window
from persona_jax.engine.capture import Bank, Capture

# Means over these windows, within a prompt first. A window of one token is that token.
_WINDOWS = {
  "answer_mean": Window(start=0),
  "answer_first": Window(start=0, stop=1),
  "prompt_mean": Window(stop=0),
}
NAMES = ("last", *_WINDOWS)


def window_of(tokens: str | Window | Mapping[str, Any]) -> Window | None:
  """Return the window that is averaged over; None for the last token of a row.

  Args:
    tokens: "last", "answer_mean", "answer_first", "prompt_mean", "prompt:-k" for the k-th last
      token of the prompt, a name of `edits.window.as_window`, a window, or what `described` made of
      one.

  Raises:
    ValueError: none of these.
  """
  if isinstance(tokens, Mapping):
    return Window(**tokens)
  if tokens == "last":
    return None
  if isinstance(tokens, str):
    if tokens in _WINDOWS:
      return _WINDOWS[tokens]
    start, _, number = tokens.partition("prompt:-")
    if not start and number.isdecimal() and int(number):
      return Window(start=-int(number), stop=1 - int(number))
  try:
    return as_window(tokens)
  except ValueError as error:
    raise ValueError(f"{error} Directions are also read at {NAMES} and 'prompt:-k'.") from error


def described(tokens: str | Window) -> str | dict[str, Any]:
  """Return the tokens as plain values, for a provenance."""
  return tokens if isinstance(tokens, str) else dataclasses.asdict(tokens)


def capture_at(
  site: str,
  tokens: str | Window | Mapping[str, Any],
  *,
  blocks: int | list[int] | str = "all",
  bank: Bank | None = None,
) -> Capture:
  """Return the capture of a site at these tokens, one activation or projection a prompt.

  Raises:
    ValueError: as `window_of`.
  """
  window = window_of(tokens)
  if window is None:
    return Capture((site,), blocks=blocks, reduce="last", bank=bank)  # type: ignore[arg-type]
  return Capture((site,), blocks=blocks, reduce="mean", tokens=window, bank=bank)  # type: ignore[arg-type]
