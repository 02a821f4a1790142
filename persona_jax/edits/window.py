"""Token windows: on which tokens an edit acts, or a capture reads."""

import dataclasses
import re
from typing import Any

import numpy as np

from persona_jax.edits.table import ALL_ROLES, ALWAYS, FOREVER, ROLES


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

  Raises:
    ValueError: an unknown role, no role, or an empty interval.
  """

  roles: tuple[str, ...] | None = None
  start: int | None = None
  stop: int | None = None

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
    if self.interval[0] >= self.interval[1]:
      raise ValueError(f"window [{self.start}, {self.stop}) is empty; stop must exceed start.")

  @property
  def interval(self) -> tuple[int, int]:
    """(start, stop) as integers."""
    return (
      ALWAYS if self.start is None else self.start,
      FOREVER if self.stop is None else self.stop,
    )

  @property
  def role_mask(self) -> int:
    """Bit mask over `ROLES`."""
    return ALL_ROLES if self.roles is None else sum(1 << ROLES[r] for r in set(self.roles))

  def holds(self, offset: Any, role: Any) -> Any:
    """Say of tokens whether they lie in the window, bool; arrays of numpy or of JAX.

    Args:
      offset: int, position relative to the end of the prompt.
      role: int, number of the role in `edits.table.ROLES`.
    """
    start, stop = self.interval
    return (offset >= start) & (offset < stop) & ((self.role_mask >> role) & 1 == 1)

  def __str__(self) -> str:
    start = "" if self.start is None else self.start
    stop = "" if self.stop is None else self.stop
    return f"[{start}:{stop}]" + ("" if self.roles is None else f" {'+'.join(self.roles)}")


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
