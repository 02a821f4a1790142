"""Token windows: on which tokens an edit acts, or a capture reads."""

import dataclasses
import re
from typing import Any, Literal

import numpy as np

from persona_jax.edits.table import AFTER_THOUGHT, ALL_ROLES, ALWAYS, FOREVER, ROLES


@dataclasses.dataclass(frozen=True)
class Window:
  """Tokens with one of `roles` whose offset from the end of the prompt lies in [start, stop).

  Offset 0 is the first answer token, -1 the last prompt token. Generated tokens have the role
  "assistant"; those of a thought at the beginning of an answer "think", tags included, where the
  tags are single tokens of the vocabulary (Qwen3, QwQ, DeepSeek-R1).

  Attributes:
    roles: names out of `edits.table.ROLES`, or None for all.
    start: first offset, or None for the beginning of the sequence.
    stop: offset after the last, or None for no end.
    origin: "prompt", or "thought" to count from the end of the last thought before a token: offset
      0 is then the token after "</think>". Tokens with no thought before them are not in such a
      window, and before its end nobody knows where a thought will end, so `start` is at least 0.

  Raises:
    ValueError: an unknown role, no role, an unknown origin, or an empty interval.
  """

  roles: tuple[str, ...] | None = None
  start: int | None = None
  stop: int | None = None
  origin: Literal["prompt", "thought"] = "prompt"

  def __post_init__(self) -> None:
    if self.roles is not None:
      roles = (self.roles,) if isinstance(self.roles, str) else tuple(self.roles)
      object.__setattr__(self, "roles", roles)
      unknown = [role for role in self.roles if role not in ROLES]
      if unknown or not self.roles:
        raise ValueError(
          f"window roles {self.roles}: use some of {sorted(ROLES)}, or None for all."
        )
    for name, n in (("start", self.start), ("stop", self.stop)):
      if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer))):
        raise ValueError(f"window {name}={n!r}: give a whole number of tokens, or None.")
    if self.origin not in ("prompt", "thought"):
      raise ValueError(f"window origin={self.origin!r}: use 'prompt' or 'thought'.")
    if self.origin == "thought" and self.start is not None and self.start < 0:
      raise ValueError(
        f"window start={self.start} before the end of a thought: which tokens those are is not "
        "known when they are generated; use the role 'think', or a start of at least 0."
      )
    if self.interval[0] >= self.interval[1]:
      raise ValueError(f"window [{self.start}, {self.stop}) is empty; stop must exceed start.")

  @property
  def interval(self) -> tuple[int, int]:
    """(start, stop) as integers."""
    first = 0 if self.origin == "thought" else ALWAYS
    return (
      first if self.start is None else self.start,
      FOREVER if self.stop is None else self.stop,
    )

  @property
  def role_mask(self) -> int:
    """Bit mask over `ROLES`, with `AFTER_THOUGHT` where that is the origin."""
    roles = ALL_ROLES if self.roles is None else sum(1 << ROLES[r] for r in set(self.roles))
    return roles | (AFTER_THOUGHT if self.origin == "thought" else 0)

  def holds(self, offset: Any, role: Any, after: Any) -> Any:
    """Say of tokens whether they lie in the window, bool; arrays of NumPy or of JAX, of one shape.

    Args:
      offset: int, position relative to the end of the prompt.
      role: int, number of the role in `edits.table.ROLES`.
      after: int, position relative to the end of the thought before the token (`after_thought`);
        None where there is no thought.
    """
    start, stop = self.interval
    at = offset if self.origin == "prompt" else ALWAYS if after is None else after
    return (at >= start) & (at < stop) & ((self.role_mask >> role) & 1 == 1)

  def __str__(self) -> str:
    start = "" if self.start is None else self.start
    stop = "" if self.stop is None else self.stop
    roles = "" if self.roles is None else f" {'+'.join(self.roles)}"
    return f"[{start}:{stop}]" + roles + (" after thought" if self.origin == "thought" else "")


def after_thought(role_T: np.ndarray) -> np.ndarray:
  """Return the offset of each token from the end of the thought before it, int32 [..., T].

  0 is the first token after the thought, `ALWAYS` (which no window holds) a token of a thought or
  one with none before it.
  """
  position_T = np.arange(role_T.shape[-1])
  thought_T = role_T == ROLES["think"]
  last_T = np.maximum.accumulate(np.where(thought_T, position_T, -1), axis=-1)
  return np.where(thought_T | (last_T < 0), ALWAYS, position_T - last_T - 1).astype(np.int32)


_NAMED = {
  "all": Window(),
  "prompt": Window(stop=0),
  "generated": Window(start=0),
  "answer": Window(start=-1),
  "think": Window(("think",), start=0),
  "after-think": Window(("assistant",), start=0),
}


def as_window(tokens: "str | Window") -> Window:
  """Resolve a window name: "all", "prompt", "generated", "answer", "think", … or "last:k".

  "answer" is the last prompt token (which produces the first answer token) and all generated ones;
  "generated" leaves the first answer token alone; "last:k" is the last k prompt tokens. "think" is
  the thought of the answer, "after-think" all generated tokens that belong to none.

  Raises:
    ValueError: any other name, or k < 1.
  """
  if isinstance(tokens, Window):
    return tokens
  if tokens in _NAMED:
    return _NAMED[tokens]
  last = re.fullmatch(r"last:([1-9]\d*)", tokens) if isinstance(tokens, str) else None
  if last:
    return Window(start=-int(last[1]), stop=0)
  raise ValueError(f"tokens={tokens!r}: use one of {sorted(_NAMED)}, 'last:k' or a pj.Window.")
