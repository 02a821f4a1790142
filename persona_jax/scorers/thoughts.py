"""Thought and answer of a generated row, told apart by token ids.

Where the tags are single tokens of the vocabulary, as DeepSeek-R1's, QwQ's and Qwen3's, they are
found as the engine finds them (`engine.rows.Row.answer_roles`), so that what is counted here is
what windows on roles edit. In other vocabularies they are found in the decoded text.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

from persona_jax.personas.thinking import CLOSING, OPENING, thought_of

Status = Literal["ended", "truncated", "unended", "none"]


class Decoder(Protocol):
  """What is needed of a tokenizer here; `persona_jax.checkpoints.Tokenizer` has it."""

  def encode(self, text: str) -> list[int]: ...

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclasses.dataclass(frozen=True)
class Thought:
  """A row in its two parts.

  Attributes:
    status: "ended"; "truncated", the budget ended inside it; "unended", the model stopped inside
      it; "none", the answer began without one.
    trace: text of the thought, without tags and white space around it.
    answer: text behind it; "" where it did not end.
    num_think: tokens of the thought, tags not counted.
    num_answer: tokens of the answer, a stop token not counted.
    num_ends: closing tags in all. The first ends the thought; later ones are words of the answer.
    ids: tokens of the thought, closing tag included.
    prefill: text with which an assistant message begins that goes on behind the thought: the
      thought with its tags. Where there was no end, one is written; "" where there is no thought.
  """

  status: Status
  trace: str
  answer: str
  num_think: int
  num_answer: int
  num_ends: int
  ids: tuple[int, ...]
  prefill: str


@dataclasses.dataclass(frozen=True)
class Splitter:
  """Splits token ids of generated rows.

  Attributes:
    tokenizer: of the model.
    think_ids: ids of the two tags, -1 where the vocabulary has no such token (`Model.think_ids`).
    stop_ids: ids that end a row (`Model.stops`).
    opens_thought: whether prompts leave a thought open, so that rows begin inside it.
  """

  tokenizer: Decoder
  think_ids: tuple[int, int]
  stop_ids: frozenset[int]
  opens_thought: bool

  def split(self, ids: Sequence[int], finish_reason: str) -> Thought:
    """Split one row.

    Args:
      ids: the generated tokens.
      finish_reason: "length" where the budget ended it.

    Raises:
      ValueError: another reason than "length" or "stop".
    """
    if finish_reason not in ("length", "stop"):
      raise ValueError(f"finish_reason is {finish_reason!r}; 'length' or 'stop' fits.")
    ids = [int(token) for token in ids]
    if ids and ids[-1] in self.stop_ids:
      ids = ids[:-1]
    begin, end, after, num_ends = self._places(ids)
    if begin is None:
      answer = self._text(ids)
      return Thought("none", "", answer, 0, len(ids), num_ends, (), "")
    if end is None:
      status: Status = "truncated" if finish_reason == "length" else "unended"
      trace = self._text(ids[begin:])
      written = self.tokenizer.decode(ids, skip_special=False).rstrip() + f"\n{CLOSING}"
      return Thought(status, trace.strip(), "", len(ids) - begin, 0, 0, tuple(ids), written)
    trace, answer = self._inner(ids, begin, end, after)
    written = self.tokenizer.decode(ids[:after], skip_special=False)
    written = written[: written.index(CLOSING) + len(CLOSING)]
    return Thought(
      "ended",
      trace.strip(),
      answer.lstrip(),
      end - begin,
      len(ids) - after,
      num_ends,
      tuple(ids[:after]),
      written,
    )

  def _text(self, ids: Sequence[int]) -> str:
    return self.tokenizer.decode(ids)

  def _inner(self, ids: list[int], begin: int, end: int, after: int) -> tuple[str, str]:
    if self.think_ids[1] >= 0:
      return self._text(ids[begin:end]), self._text(ids[after:])
    thought = thought_of(self._text(ids), self.opens_thought)
    assert thought is not None
    return thought["said"], self._text(ids)[thought.end() :]

  def _places(self, ids: list[int]) -> tuple[int | None, int | None, int, int]:
    """Return where the thought begins, where its end tag begins and ends, and how many there are.

    None for a beginning is no thought, for an end one that does not end.
    """
    opening, closing = self.think_ids
    if closing < 0:
      return self._places_in_text(ids)
    written = bool(ids) and ids[0] == opening
    begin = int(written) if written or self.opens_thought else None
    num_ends = ids.count(closing)
    if begin is None or not num_ends:
      return begin, None, len(ids), num_ends
    end = ids.index(closing)
    return begin, end, end + 1, num_ends

  def _places_in_text(self, ids: list[int]) -> tuple[int | None, int | None, int, int]:
    text = self._text(ids)
    num_ends = text.count(CLOSING)
    thought = thought_of(text, self.opens_thought)
    if thought is None:
      return None, None, len(ids), num_ends
    opened = OPENING in text[: thought.start("said")]
    begin = self._tokens_up_to(ids, thought.start("said")) if opened else 0
    if not thought["end"]:
      return begin, None, len(ids), 0
    # A token in which the tag begins or ends is the tag's.
    before = self._tokens_up_to(ids, thought.start("end") + 1) - 1
    return begin, max(begin, before), self._tokens_up_to(ids, thought.end("end")), num_ends

  def _tokens_up_to(self, ids: list[int], characters: int) -> int:
    """Return how many tokens make the first `characters` of the text, at least."""
    counts = range(len(ids) + 1)
    return bisect.bisect_left(counts, characters, key=lambda n: len(self._text(ids[:n])))
