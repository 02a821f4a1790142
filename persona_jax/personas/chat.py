"""Chat prompts: messages to text by the model's own template, text to tokens with their roles."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from persona_jax.edits.table import ROLES
from persona_jax.personas.template import compile_template, option_names
from persona_jax.personas.thinking import (
  CLOSING,
  OPENING,
  ends_in_opening,
  mark_thinking,
  thought_of,
)

_SYSTEM_DEFAULTS = ("keep", "empty", "drop")
_SPEAKERS = ("system", "user", "assistant")
_SENTINEL = "A system message that is cut out again."
# Unicode noncharacters: never part of a text, no white space, left alone by `trim`.
_NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclasses.dataclass(frozen=True)
class Raw:
  """An already rendered text, taken as it is: no template is applied."""

  text: str


Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Raw
Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and [start, end) of each in characters


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A rendered prompt.

  Attributes:
    text: what the model reads before it answers, generation prompt included.
    answer: a final assistant message, the start of the answer; "" if there is none. It is kept
      open: no end token follows it. Where the template has opened a thought (DeepSeek-R1 and QwQ
      end their prompts with "<think>\\n"), the answer goes on with it: it is a thought up to its
      "</think>", all of it if there is none. An opening of its own is then cut off, with the white
      space after it that the prompt has too.
    role_spans: (start, end, role) that divide text + answer, in characters, without gaps. Roles
      are the keys of `ROLES`; what the template wrote, a default system message and the opening of
      a thought too, is "template". A thought at the beginning of an assistant message is "think",
      tags included; a "<think>" further on is a word like any other.
  """

  text: str
  answer: str
  role_spans: tuple[tuple[int, int, str], ...]

  @property
  def opens_thought(self) -> bool:
    """Whether text + answer leave a thought open, which the model then continues."""
    thought = thought_of(self.answer, ends_in_opening(self.text))
    return thought is not None and not thought["end"]


@dataclasses.dataclass(frozen=True)
class Chat:
  """How a model wants its chats written.

  Attributes:
    template: Jinja source, or None for a model without one: then only `Raw` can be rendered.
    bos_token, eos_token: what the template sees under these names; None is undefined there.
    system_default: what happens without a system message. "keep": what the template does, which for
      Llama 3, Qwen 2.5 and SmolLM2 is a text of its own; "empty": a system message "" is given;
      "drop": the whole system block is cut out; the same as "keep" where the template writes none,
      as DeepSeek-R1's and QwQ's.
    options: (name, value) of variables that this template reads, such as ("enable_thinking", False)
      of Qwen3's.
  """

  template: str | None
  bos_token: str | None = None
  eos_token: str | None = None
  system_default: str = "keep"
  options: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self) -> None:
    if self.system_default not in _SYSTEM_DEFAULTS:
      raise ValueError(
        f"system_default={self.system_default!r}; it must be one of {', '.join(_SYSTEM_DEFAULTS)}."
      )
    if self.template is not None:
      compile_template(self.template)
    given = {name for name, _ in self.options}
    known = option_names(self.template) if self.template is not None else frozenset()
    if given - known:
      raise ValueError(
        f"the chat template has no options {sorted(given - known)}; it reads {sorted(known)}."
      )

  @classmethod
  def of(
    cls,
    tokenizer: "ChatTokenizer",
    system_default: str = "keep",
    options: Mapping[str, Any] | None = None,
  ) -> "Chat":
    """Return the chat format that a tokenizer's files describe."""
    bos = tokenizer.bos_id
    eos = next((i for i in (tokenizer.eos_id, *tokenizer.eos_ids) if i is not None), None)
    return cls(
      tokenizer.chat_template,
      bos_token=None if bos is None else tokenizer.id_to_token(bos),
      eos_token=None if eos is None else tokenizer.id_to_token(eos),
      system_default=system_default,
      options=tuple(sorted((options or {}).items())),
    )

  def render(self, prompt: Prompt) -> Rendered:
    """Render a string (one user turn), a list of {"role", "content"} messages, or a `Raw` text.

    Raises:
      ValueError: a message that cannot be used, a model without a template, a template that fails
        or refuses, or a system block that cannot be cut out (system_default "drop").
    """
    if isinstance(prompt, Raw):
      return Rendered(prompt.text, "", _runs(bytes([ROLES["user"]]) * len(prompt.text)))
    messages, answer = _split_answer(as_messages(prompt))
    if self.template is None:
      raise ValueError(
        "this model has no chat template; give Raw(text), which is used as it is, or load a chat "
        "model."
      )
    if messages[0]["role"] != "system" and self.system_default == "empty":
      messages = [{"role": "system", "content": ""}, *messages]
    text = self._write(messages)
    roles = self._roles(messages, text)
    opened = ends_in_opening(text)
    if opened and answer.lstrip().startswith(OPENING):
      answer = answer.lstrip()
      answer = answer[_common_prefix(answer, text[text.rindex(OPENING) :]) :]
    answer_roles = bytearray([ROLES["assistant"]]) * len(answer)
    mark_thinking(answer, answer_roles, 0, opened)
    return Rendered(text, answer, _runs(roles + answer_roles))

  def _write(self, messages: Sequence[Message]) -> str:
    if messages[0]["role"] != "system" and self.system_default == "drop":
      return self._without_system(messages)
    return self.apply(messages, generation_prompt=True)

  def apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
    """Return what the template itself makes of messages; `system_default` does not matter.

    Raises:
      ValueError: the template fails on them or refuses them.
    """
    assert self.template is not None
    tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
    try:
      return compile_template(self.template).render(
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=generation_prompt,
        **{name: token for name, token in tokens.items() if token is not None},
        **dict(self.options),
      )
    except Exception as error:  # the template is foreign code: it may fail in any way
      roles = ", ".join(message["role"] for message in messages)
      raise ValueError(
        f"the chat template failed on messages of {roles}: {type(error).__name__}: {error}"
      ) from error

  def _without_system(self, messages: Sequence[Message]) -> str:
    """Render with a system message, then cut what a system message alone renders to."""
    system = {"role": "system", "content": _SENTINEL}
    try:
      block = self.apply([system], generation_prompt=False)
      text = self.apply([system, *messages], generation_prompt=True)
    except ValueError as error:
      raise ValueError(
        f"system_default='drop': the template has no system block that can be cut out ({error}); "
        f"use 'keep'."
      ) from error
    rest = text.removeprefix(block)
    if _SENTINEL not in block or rest == text or _SENTINEL in rest:
      raise ValueError(
        "system_default='drop': the template does not write a system message as a block of its "
        "own; use 'keep'."
      )
    bos = self.bos_token or ""
    # SmolLM2's BOS is "<|im_start|>", which opens every turn: then the rest begins with it already.
    written = block.startswith(bos) and not rest.startswith(bos)
    return bos + rest if written else rest

  def _roles(self, messages: Sequence[Message], text: str) -> bytearray:
    """Return the role of each character of `text`, a byte each.

    Searching for a message would find the word "user" in "<|im_start|>user". Instead the chat is
    rendered again with marks around each message, and one after each thought, where templates cut.
    A template that trims what it writes would trim less with white space inside the marks; then the
    marks go inside the white space.
    """
    everything = text + "".join(message["content"] for message in messages)
    free = [mark for mark in _NONCHARACTERS if mark not in everything][:4]
    if len(free) < 4:
      raise ValueError("the prompt uses the noncharacters U+FDD0 to U+FDEF; remove them.")
    opening, start, cut, end = free
    mark = re.compile(f"{opening}(\\d+)([{start}{cut}{end}])")
    for trimmed, trimmed_after_thought in ((False, False), (False, True), (True, True)):
      closing = re.compile(CLOSING + (r"\s*" if trimmed_after_thought else ""))
      marked = []
      for i, message in enumerate(messages):
        content = message["content"]
        core = content.strip() if trimmed else content
        if core:
          head, tail = content.split(core, 1) if trimmed else ("", "")
          core = closing.sub(rf"\g<0>{opening}{i}{cut}", core)
          content = f"{head}{opening}{i}{start}{core}{opening}{i}{end}{tail}"
        marked.append({"role": message["role"], "content": content})
      written = self._write(marked)
      if mark.sub("", written) == text:
        return _roles_of_marks(messages, text, mark, written, (start, cut))
    raise ValueError(
      "the chat template writes a message differently depending on what it says, so the tokens' "
      "roles cannot be told; give Raw(text)."
    )


class ChatTokenizer(Protocol):
  """What is needed of a tokenizer here; `persona_jax.checkpoints.Tokenizer` has it."""

  @property
  def bos_id(self) -> int | None: ...

  @property
  def eos_id(self) -> int | None: ...

  @property
  def eos_ids(self) -> tuple[int, ...]: ...

  @property
  def add_bos(self) -> bool: ...

  @property
  def chat_template(self) -> str | None: ...

  def encode_with_offsets(self, texts: Sequence[str]) -> list[Tokens]: ...

  def id_to_token(self, token_id: int) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
  """A prompt as tokens.

  Attributes:
    ids: tokens of the prompt, then of the answer if it has one.
    prompt_length: number of tokens before the answer.
    roles: int8 [len(ids)], values of `ROLES`. A token is "template" only if all of it is: " Hi" in
      "[INST] Hi" is the user's.
    opens_thought: whether they leave a thought open, which the model then continues.
  """

  ids: list[int]
  prompt_length: int
  roles: np.ndarray
  opens_thought: bool


def encode_prompt(tokenizer: ChatTokenizer, chat: Chat, prompt: Prompt) -> EncodedPrompt:
  """Render and tokenise a prompt; its answer by itself, so that it never changes the prompt.

  A template writes its own BOS. Before `Raw` text, BOS is added if the model expects it and it is
  absent.

  Raises:
    ValueError: as `Chat.render`, or a prompt without tokens.
  """
  rendered = chat.render(prompt)
  tokens, answer = tokenizer.encode_with_offsets([rendered.text, rendered.answer])
  return encode_rendered(tokenizer, prompt, rendered, tokens, answer)


def encode_rendered(
  tokenizer: ChatTokenizer, prompt: Prompt, rendered: Rendered, tokens: Tokens, answer: Tokens
) -> EncodedPrompt:
  """Put a prompt together from the tokens of what it renders to: of its text, and of its answer.

  Raises:
    ValueError: a prompt without tokens.
  """
  roles_by_char = np.repeat(
    np.asarray([ROLES[role] for _, _, role in rendered.role_spans], np.int8),
    [end - start for start, end, _ in rendered.role_spans],
  )
  (ids, offsets), (answer_ids, answer_offsets) = tokens, answer
  shift = len(rendered.text)
  offsets = [*offsets, *((shift + start, shift + end) for start, end in answer_offsets)]
  roles = _token_roles(roles_by_char, offsets)
  if isinstance(prompt, Raw) and tokenizer.add_bos and ids[:1] != [tokenizer.bos_id]:
    assert tokenizer.bos_id is not None
    ids, roles = [tokenizer.bos_id, *ids], np.insert(roles, 0, ROLES["user"])
  if not ids:
    raise ValueError(f"{prompt!r} has no tokens; a prompt needs at least one.")
  return EncodedPrompt([*ids, *answer_ids], len(ids), roles, rendered.opens_thought)


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
  """Return a string (one user turn) or a chat as its messages.

  Raises:
    ValueError: it is neither, or a message cannot be used; the message says which.
  """
  if isinstance(prompt, str):
    return [{"role": "user", "content": prompt}]
  if not isinstance(prompt, Sequence) or not prompt:
    raise ValueError(
      f"a prompt is a string, a non-empty list of messages, or Raw(text); got {prompt!r}."
    )
  messages: list[Message] = []
  for i, message in enumerate(prompt):
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
      raise ValueError(f"message {i} is {message!r}; it must have the keys 'role' and 'content'.")
    if message["role"] not in _SPEAKERS:
      raise ValueError(
        f"message {i} has the role {message['role']!r}; it must be one of {', '.join(_SPEAKERS)}."
      )
    if not isinstance(message["content"], str):
      raise ValueError(f"message {i} has the content {message['content']!r}; it must be a string.")
    if message["role"] == "system" and i > 0:
      raise ValueError(f"message {i} is a system message; only the first may be one.")
    messages.append(message)
  return messages


def _split_answer(messages: list[Message]) -> tuple[list[Message], str]:
  if messages[-1]["role"] != "assistant":
    return messages, ""
  if len(messages) == 1:
    raise ValueError("the only message is an assistant's; an answer needs a prompt before it.")
  return messages[:-1], messages[-1]["content"]


def _roles_of_marks(
  messages: Sequence[Message],
  text: str,
  mark: re.Pattern[str],
  written: str,
  kinds: tuple[str, str],
) -> bytearray:
  roles = bytearray([ROLES["template"]]) * len(text)
  opened: dict[int, int] = {}
  cuts: dict[int, int] = {}
  spans: list[tuple[int, int, int]] = []
  removed = 0
  for match in mark.finditer(written):
    i, position = int(match[1]), match.start() - removed
    removed += len(match[0])
    if match[2] in kinds:
      (opened if match[2] == kinds[0] else cuts)[i] = position
    elif i in opened:
      spans.append((i, opened.pop(i), position))
    else:  # the template cut the front of the message off
      kept = text[:position].rstrip()
      size = _common_prefix(messages[i]["content"].rstrip()[::-1], kept[::-1])
      size = len(kept[len(kept) - size :].lstrip())  # white space may be the template's
      begin = len(kept) - size
      # After an old thought the mark is surer: that what the template wrote before ends in ">", as
      # "</think>" does, means nothing.
      if i in cuts and begin > cuts[i] - len(CLOSING):
        begin = cuts[i]
      spans.append((i, begin, position))
  for i, position in opened.items():  # the template cut the back of the message off
    size = _common_prefix(messages[i]["content"], text[position:])
    spans.append((i, position, position + len(text[position : position + size].rstrip())))
  for i, start, end in spans:
    role = messages[i]["role"]
    roles[start:end] = bytes([ROLES[role]]) * (end - start)
    if role == "assistant":
      mark_thinking(text[start:end], roles, start)
  return roles


def _common_prefix(a: str, b: str) -> int:
  return sum(
    1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
  )


def _runs(roles: bytes | bytearray) -> tuple[tuple[int, int, str], ...]:
  if not len(roles):
    return ()
  names = {value: name for name, value in ROLES.items()}
  role_C = np.frombuffer(roles, np.int8)
  edges = [0, *(np.flatnonzero(np.diff(role_C)) + 1).tolist(), len(role_C)]
  return tuple((start, end, names[int(role_C[start])]) for start, end in itertools.pairwise(edges))


def _token_roles(role_C: np.ndarray, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
  """Return the role of each token, of characters [start, end): its first that is no template's."""
  if not offsets:
    return np.zeros(0, np.int8)
  flat = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets))
  start_T, end_T = flat.reshape(-1, 2).T
  # For each character the next that is spoken, itself or a later one; the last stands for "none".
  none, template = len(role_C), ROLES["template"]
  next_C = np.full(none + 1, none)
  next_C[:none][role_C != template] = np.flatnonzero(role_C != template)
  next_C = np.minimum.accumulate(next_C[::-1])[::-1]
  spoken_T = next_C[start_T]
  role_C = np.append(role_C, template)
  return np.where(spoken_T < end_T, role_C[spoken_T], template).astype(np.int8)
