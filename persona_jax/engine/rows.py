"""Rows: what is to be run, as token ids, and the few shapes that batches of them have."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.edits.edit import Edit
from persona_jax.edits.table import ROLES
from persona_jax.edits.window import Window, after_thought
from persona_jax.personas.chat import EncodedPrompt, Prompt, Raw

# Rows of a tile on a CPU: products of 128 rows reach 125 of its 160 GFLOP/s, of 672 rows 165
# (measured, 2 cores, float32). On other devices a step reads all weights whatever the number of
# rows, so a tile takes as many as fit, up to where products are bound by computing.
TILE_ROWS = 256
_MOST_ROWS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One sequence to run.

  Attributes:
    ids: token ids of the prompt and, if the chat ends with an assistant message, of the answer so
      far.
    prompt_length: tokens of the prompt, the origin of token windows.
    roles: role of each token, see `edits.table.ROLES`.
    edits: what acts on the row, in order.
    opens_thought: whether `ids` leave a thought open, which the answer continues.
    seed: 64-bit seed of the row's sampling noise.
  """

  ids: tuple[int, ...]
  prompt_length: int
  roles: tuple[int, ...]
  edits: tuple[Edit, ...] = ()
  seed: int = 0
  opens_thought: bool = False

  def answer_roles(self, ids: Sequence[int], think_ids: tuple[int, int]) -> list[int]:
    """Return the roles of answer tokens that follow the row's own.

    An answer that begins with the token "<think>", or that goes on with a thought of the prompt, is
    "think" up to the token "</think>", both included; the rest is "assistant".

    Args:
      ids: the answer's tokens.
      think_ids: ids of the two tags, -1 where the vocabulary has no such token.
    """
    opening, closing = think_ids
    thinking, roles = self.opens_thought, []
    for n, token in enumerate(ids):
      thinking |= token == opening and len(self.ids) + n == self.prompt_length
      roles.append(ROLES["think" if thinking else "assistant"])
      thinking &= token != closing
    return roles

  def tokens_in_windows(self, fed_roles: Sequence[int] = ()) -> list[int]:
    """Return, for each edit, the tokens in its window on which its ramp is not 0.

    Answer tokens of `fed_roles` are included.
    """
    role_T = np.asarray((*self.roles, *fed_roles))
    offset_T, after_T = np.arange(len(role_T)) - self.prompt_length, after_thought(role_T)
    counts = []
    for edit in self.edits:
      held_T = edit.window.holds(offset_T, role_T, after_T)
      if edit.ramp is not None:
        held_T &= edit.ramp.at(offset_T) != 0
      counts.append(int(held_T.sum()))
    return counts

  @functools.cached_property
  def edit_tokens(self) -> tuple[np.ndarray, ...]:
    """Return, for each edit, the tokens of the row on which it may act, bool [T]."""
    held = [self.held(edit.window) for edit in self.edits]
    return tuple(
      held_T if edit.gate != 0 else np.zeros_like(held_T)
      for edit, held_T in zip(self.edits, held, strict=True)
    )

  def held(self, window: Window) -> np.ndarray:
    """Return which tokens of the row lie in a window, bool [T]."""
    offset_T = np.arange(len(self.ids)) - self.prompt_length
    return window.holds(offset_T, np.asarray(self.roles), self.after_thought_T)

  @functools.cached_property
  def after_thought_T(self) -> np.ndarray:
    """Offset of each token from the end of the thought before it, int32 [T]."""
    return after_thought(np.asarray(self.roles))


def make_row(encoded: EncodedPrompt, edits: tuple[Edit, ...] = (), seed: int = 0) -> Row:
  """Make a row of an encoded prompt.

  Raises:
    ValueError: the prompt has no token.
  """
  if not len(encoded.ids):
    raise ValueError("a prompt has no token; give at least one.")
  return Row(
    tuple(map(int, encoded.ids)),
    int(encoded.prompt_length),
    tuple(encoded.roles.tolist()),
    edits,
    seed,
    bool(encoded.opens_thought),
  )


def plain_prompt(prompt: Prompt) -> Any:
  """Return a prompt as JSON values, for seeds, hashes and tables; a `Raw` differs from its text."""
  if isinstance(prompt, Raw):
    return {"raw": prompt.text}
  return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def derive_seed(*parts: object) -> int:
  """Hash plain values (JSON) to a 63-bit seed; the same on every machine."""
  return int(content_hash(parts)[:16], 16) >> 1


def key_words(seeds: Sequence[int]) -> np.ndarray:
  """Return the two words of a threefry key for each seed, uint32 [B, 2]."""
  return np.asarray([[seed >> 32, seed & 0xFFFFFFFF] for seed in seeds], np.uint32)


def round_up(n: int, step: int) -> int:
  """Round n up to a multiple of `step`."""
  return -(-n // step) * step


def length_bucket(n: int, rows: int = 1) -> int:
  """Round a number of tokens up to one of few: on a CPU 8, 16, …, 128, 144, …, 256, 288, …

  At most an eighth is padding from 64 tokens on. TPUs and the edit kernel want multiples of 32;
  a GPU's products take tokens by 16. A CPU takes finer steps, of 4 at least, where the padding of
  so many rows would cost more than a program.
  """
  least = {"cpu": 8, "gpu": 16}.get(jax.default_backend(), 32)
  step = max(least, 1 << max(0, (n - 1).bit_length() - 4))
  while step > 4 and (round_up(n, step) - n) * rows >= _program_tokens():
    step //= 2
  return round_up(n, step)


def most_rows(device: jax.Device) -> int:
  """Return how many rows a tile of decoding may have on devices of a kind."""
  return TILE_ROWS if device.platform == "cpu" else _MOST_ROWS


def row_bucket(n: int) -> int:
  """Round a number of rows up to 1 or a multiple of 8, so that few programs serve all batches.

  Programs are cheap to compile (a decode loop of 30 blocks: 1.5 s on 2 CPU cores, measured), so
  less padding is worth more shapes.
  """
  return 1 if n <= 1 else round_up(n, 8)


def levels(size: int) -> list[int]:
  """Return the sizes that a batch may shrink to, largest first: three an octave, then 4 and 1.

  Each half is preceded by 5/6 and 2/3 of what it halves, in multiples of 8. Simulated with answers
  that end at a constant rate after 60 tokens on average, of a budget of 256, the wasted share of
  the row-steps and the decoding programs that are met, 128 | 256 rows:

      halves to 8                       29 % of  8 | 27 % of  9
      with 3/4                          18 % of 11 | 16 % of 13
      with 5/6 and 2/3                  15 % of 13 | 12 % of 16
      with 5/6 and 2/3, then 4 and 1    13 % of 14 | 12 % of 17

  Row counts that are multiples of 8 take a CPU the same time a row from 64 on (1.6 to 1.8 ms, 20
  MLPs and a head of SmolLM2-135M's sizes, 2 cores); a single row takes a third of the time of 8.
  """
  found, half = {size}, size
  while half > 8:
    found |= {row_bucket(-(-part * half // 6)) for part in (5, 4, 3)}
    half = -(-half // 2)
  return sorted(found | {n for n in (4, 1) if n < size}, reverse=True)


def group_bucket(n: int, length: int = 1) -> int:
  """Round a number of groups of prefill up to 1, a multiple of 8, or above 64 to 80, 96, 112, …

  Four sizes an octave: many groups of few tokens are padded further than `row_bucket` does. A CPU
  takes finer steps where the padding of so many tokens would cost more than a program.
  """
  step = max(8, 1 << max(0, (n - 1).bit_length() - 3))
  while step > 1 and (round_up(n, step) - n) * length >= _program_tokens():
    step //= 2
  return 1 if n <= 1 else round_up(n, step)


def _program_tokens() -> float:
  """Return what a program costs, in tokens of prefill; infinite where it is never worth it.

  To trace and compile a block takes 2 CPU cores half a second, as long as 250 tokens take in
  SmolLM2 (measured).
  """
  return 256 if jax.default_backend() == "cpu" else math.inf
