"""Where a chat template puts a system message, and what it writes when there is none.

A system prompt and a steered chat are compared fairly only if their contexts are known. Some
templates write a system text of their own when none is given, so that a persona's system message
replaces it and a steered chat keeps it; others put a system message into the user's turn, or refuse
it. All of it is found by rendering chats with sentinels, whatever the model is called.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from persona_jax.personas.chat import Chat

Placement = Literal["system", "user", "none"]

# In Unicode noncharacters, so that no text of a template begins or ends like a sentinel.
_SYSTEM, _QUESTION, _ANSWER, _NEXT = (
  f"\ufdd0{word}\ufdd1" for word in ("system", "question", "answer", "next")
)
_ASK = {"role": "user", "content": _QUESTION}


@dataclasses.dataclass(frozen=True)
class _Heads:
  """What stands before a chat's first question, without its BOS and the opening of the turn.

  Attributes:
    default: of a chat without a system message.
    given: of a chat with the sentinel as system message; None if the template refuses it or leaves
      it out.
    apart: whether that system message stands before the opening of the user's turn.
  """

  default: str
  given: str | None
  apart: bool


def system_placement(chat: Chat) -> Placement:
  """Return where a system message lands.

  "system": before the opening of the user's turn, as a block of its own. "user": within the user's
  turn, as Gemma's and Llama 2's. "none": the template refuses system messages or leaves them out,
  or there is no template.

  Raises:
    ValueError: the template fails on a plain question, or it opens turns so differently that it
      cannot be told where one begins.
  """
  heads = _probe(chat)
  if heads.given is None:
    return "none"
  return "system" if heads.apart else "user"


def system_default_text(chat: Chat) -> str:
  """Return what the template writes when no system message is given; "" if nothing.

  It is literal, with the marks of its block: all that stands before the first question but BOS and
  the opening of the user's turn. `Chat.system_default` does not matter here.

  Raises:
    ValueError: as `system_placement`.
  """
  return _probe(chat).default


def describe_system_default(chat: Chat) -> str:
  """Say what is written without a system message, and what a system message changes.

  A sentence for a report, about `chat.system_default` on this template.

  Raises:
    ValueError: as `system_placement`.
  """
  if chat.template is None:
    return "There is no chat template, so nothing is written before a text."
  heads = _probe(chat)
  kept = repr(heads.default) if heads.default else "nothing"
  try:
    text = chat.render(_QUESTION).text
  except ValueError:
    return (
      f"system_default={chat.system_default!r} does not fit this template, which writes {kept} "
      "without a system message; 'keep' fits."
    )
  written = _without_opening(chat, text.partition(_QUESTION)[0], _opening(chat))
  words = f"Without a system message, {repr(written) if written else 'nothing'} is written"
  if chat.system_default != "keep":
    words += f" (system_default={chat.system_default!r}; the template alone writes {kept})"
  if heads.given is None:
    return f"{words}; the template takes no system message."
  words += f"; with one, {heads.given.replace(_SYSTEM, '{message}')!r}"
  replaced = _replaced(written, heads.given)
  return f"{words}, where the message replaces {replaced!r}." if replaced else f"{words}."


def _probe(chat: Chat) -> _Heads:
  if chat.template is None:
    return _Heads("", None, False)
  opening = _opening(chat)
  head = chat.apply([_ASK], generation_prompt=True).partition(_QUESTION)[0]
  default = _without_opening(chat, head, opening)
  try:
    text = chat.apply([{"role": "system", "content": _SYSTEM}, _ASK], generation_prompt=True)
  except ValueError:
    return _Heads(default, None, False)
  if _SYSTEM not in text:
    return _Heads(default, None, False)
  head = text.partition(_QUESTION)[0]
  before, found, after = head.partition(_SYSTEM)
  return _Heads(default, _without_opening(chat, head, opening), bool(found) and opening in after)


def _opening(chat: Chat) -> str:
  """Return what opens a user's turn.

  That is what stands between an answer and the next question, less what closes an answer.
  """
  answer = {"role": "assistant", "content": _ANSWER}
  following = {"role": "user", "content": _NEXT}
  closing = chat.apply([_ASK, answer], generation_prompt=False).partition(_ANSWER)[2]
  text = chat.apply([_ASK, answer, following], generation_prompt=True)
  between = text.partition(_ANSWER)[2].partition(_NEXT)[0]
  opening = between.removeprefix(closing)
  head = chat.apply([_ASK], generation_prompt=True).partition(_QUESTION)[0]
  if opening in head:
    return opening
  # A last answer is closed otherwise: then what the first turn and a later one share.
  opening = os.path.commonprefix([_less_bos(chat, head)[::-1], between[::-1]])[::-1]
  if not opening:
    raise ValueError(
      "it cannot be told where the chat template opens a user's turn: the first begins after "
      f"{head!r}, a later one after {between!r}."
    )
  return opening


def _without_opening(chat: Chat, head: str, opening: str) -> str:
  before, found, after = head.rpartition(opening) if opening else (head, "", "")
  # SmolLM2's BOS is "<|im_start|>", which opens every turn: what is before a turn keeps it then.
  opens_turns = chat.bos_token is not None and opening.startswith(chat.bos_token)
  return before + after if opens_turns else _less_bos(chat, before + after)


def _less_bos(chat: Chat, text: str) -> str:
  return text.removeprefix(chat.bos_token or "")


def _replaced(default: str, given: str) -> str:
  """Return the part of `default` that is not in `given`, between their like beginning and end."""
  start = len(os.path.commonprefix([default, given]))
  end = len(os.path.commonprefix([default[start:][::-1], given[start:][::-1]]))
  return default[start : len(default) - end]
