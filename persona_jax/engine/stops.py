"""Texts that end an answer; they may begin and end inside tokens."""

import bisect
from collections.abc import Sequence

from persona_jax.checkpoints.tokenizer import Tokenizer


def stop_place(text: str, stop_texts: Sequence[str]) -> int | None:
  """Return where the first stop text begins in `text`, None if it holds none."""
  places = [place for stop in stop_texts if (place := text.find(stop)) >= 0]
  return min(places, default=None)


def special_in(tokenizer: Tokenizer, text: str) -> str | None:
  """Return the longest special token that a text holds, None if it holds none."""
  added = tokenizer.backend.get_added_tokens_decoder().values()
  held = [token.content for token in added if token.special and token.content in text]
  return max(held, key=len, default=None)


def stop_length(tokenizer: Tokenizer, ids: Sequence[int], stop_texts: Sequence[str]) -> int | None:
  """Return how many tokens of an answer it takes until a stop text is whole, None if none is.

  Special tokens are no part of the text.
  """

  def holds(n: int) -> bool:
    return stop_place(tokenizer.decode(list(ids[:n])), stop_texts) is not None

  if not holds(len(ids)):
    return None
  return bisect.bisect_left(range(len(ids)), True, key=holds)
