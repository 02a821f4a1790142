"""Thoughts of reasoning models: where they stand in a text, between "<think>" and "</think>"."""

import re

from persona_jax.edits.table import ROLES

OPENING, CLOSING = "<think>", "</think>"
_THOUGHT = rf"(?P<said>.*?)(?P<end>{CLOSING}|\Z)"
_OPENED_BY_ANSWER = re.compile(rf"\s*(?P<all>{OPENING}{_THOUGHT})", re.DOTALL)
_OPENED_BY_PROMPT = re.compile(rf"(?P<all>(?:\s*{OPENING})?{_THOUGHT})", re.DOTALL)


def split_thinking(text: str, opened: bool = False) -> tuple[str, str]:
  """Split what a model generated into (thought, answer), without tags and white space around them.

  Only a thought at the beginning counts. One that is never closed leaves the answer ""; a text
  without a thought is the answer, unchanged.

  Args:
    text: the generated text.
    opened: whether the prompt left a thought open (`Rendered.opens_thought`). The text then begins
      inside it, and a "<think>" with which the model repeats the opening is no part of it.
  """
  thought = thought_of(text, opened)
  if thought is None:
    return "", text
  return thought["said"].strip(), text[thought.end() :].lstrip()


def ends_in_opening(text: str) -> bool:
  """Return whether a rendered prompt leaves a thought open."""
  return text.rstrip().endswith(OPENING)


def thought_of(text: str, opened: bool) -> re.Match[str] | None:
  """Match the thought at the beginning of an answer; `opened` if the prompt has its opening."""
  return (_OPENED_BY_PROMPT if opened else _OPENED_BY_ANSWER).match(text)


def mark_thinking(text: str, roles: bytearray, start: int, opened: bool = False) -> None:
  """Give the characters of an answer's thought their role; `roles` are those from `start` on."""
  thought = thought_of(text, opened)
  if thought is not None:
    begin, end = thought.span("all")
    roles[start + begin : start + end] = bytes([ROLES["think"]]) * (end - begin)
