"""Tokenizers, from GGUF fields or a Hugging Face directory, on the `tokenizers` package."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from persona_jax.checkpoints.gguf_tokenizer import gguf_backend

# What llama.cpp, too, takes for the end of a turn where a file does not say; type 3 is "control".
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>")
_CONTROL = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
  """Text to token ids and back; equal and hashed by content.

  Attributes:
    backend: the `tokenizers` object; its truncation, padding and post-processing are switched off
      here.
    bos_id: beginning-of-sequence token, or None.
    eos_ids: tokens that end a generation; () if the files name none.
    eos_id: the one that a chat template writes as `eos_token`, which may be another than the first
      of those; None for that one.
    pad_id: padding token, or None.
    add_bos: whether the model expects BOS before a text that no chat template rendered.
    chat_template: Jinja source, or None.
  """

  backend: tokenizers.Tokenizer
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None
  add_bos: bool = False
  chat_template: str | None = None
  eos_id: int | None = None

  def __post_init__(self) -> None:
    # A tokenizer.json may say "truncate to 512" or "pad to the longest", left from training.
    self.backend.no_truncation()
    self.backend.no_padding()
    # A ByteLevel post-processor would cut the space from the offsets of " word".
    self.backend.post_processor = None
    ids = {"bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id}
    ids |= {f"eos_ids[{i}]": eos for i, eos in enumerate(self.eos_ids)}
    for name, token in ids.items():
      if token is not None and not 0 <= token < self.vocab_size:
        raise ValueError(f"{name} is {token}; the vocabulary has {self.vocab_size} tokens.")
    if self.add_bos and self.bos_id is None:
      raise ValueError("add_bos is set, but there is no beginning-of-sequence token.")

  @property
  def vocab_size(self) -> int:
    """Number of tokens, special ones included; a model's embedding may have more rows."""
    return self.backend.get_vocab_size(with_added_tokens=True)

  @functools.cached_property
  def content_hash(self) -> str:
    """sha256, in hexadecimal, of everything that decides what this tokenizer does."""
    rest = [self.bos_id, self.eos_ids, self.pad_id, self.add_bos, self.chat_template]
    rest.append(self.eos_id)
    content = self.backend.to_str() + "\0" + json.dumps(rest)
    return hashlib.sha256(content.encode()).hexdigest()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Tokenizer) and self.content_hash == other.content_hash

  def __hash__(self) -> int:
    return hash(self.content_hash)

  def __repr__(self) -> str:
    return f"Tokenizer({self.vocab_size} tokens, {self.content_hash[:12]})"

  def encode(self, text: str) -> list[int]:
    """Return the token ids of a text.

    Special tokens written out in the text ("<|im_end|>") become those tokens; nothing is added.
    Bytes that a byte-level vocabulary lacks are dropped, as Hugging Face does (SmolLM2 lacks six
    control characters).
    """
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_with_offsets(
    self, texts: Sequence[str]
  ) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return `encode` of each text, and each token's [start, end) in characters of the text.

    Several texts are tokenised in parallel. The tokens of one character that takes several (an
    emoji, say) all have that character's offsets.
    """
    encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
    return [(encoding.ids, encoding.offsets) for encoding in encodings]

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """Return the text of token ids; ids beyond the vocabulary stand for nothing."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

  def token_id(self, token: str) -> int:
    """Return the id of one token as the vocabulary spells it (a GPT-2 space is "Ġ").

    Raises:
      ValueError: the vocabulary has no such token.
    """
    found = self.backend.token_to_id(token)
    if found is None:
      raise ValueError(f"{token!r} is not one token of this vocabulary; encode() may take several.")
    return found

  def id_to_token(self, token_id: int) -> str:
    """Return one token as the vocabulary spells it.

    Raises:
      ValueError: no token has that id.
    """
    token = self.backend.id_to_token(int(token_id)) if token_id >= 0 else None
    if token is None:
      raise ValueError(f"no token has the id {token_id}; ids go from 0 to {self.vocab_size - 1}.")
    return token

  @classmethod
  def from_gguf(cls, fields: Mapping[str, Any]) -> "Tokenizer":
    """Build the tokenizer of a GGUF file from its `tokenizer.*` fields.

    A generation stops at the file's eos, eot and eom tokens; a chat model's that names none of the
    latter, at the control tokens that are known to end a turn. Where the file does not say whether
    a text begins with BOS, it does for SentencePiece and for Llama 3, as in llama.cpp.

    Raises:
      ValueError: a tokenizer model, splitter or field that is not handled; the message names it.
    """
    eos, *turn = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    if turn == [None, None] and fields.get("tokenizer.chat_template"):
      turn = [
        token
        for token, (text, kind) in enumerate(
          zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
        )
        if kind == _CONTROL and text in _TURN_ENDS
      ]
    ends = [eos, *turn]
    begins = (
      fields.get("tokenizer.ggml.model") == "llama"
      or fields.get("tokenizer.ggml.pre") == "llama-bpe"
    )
    return cls(
      gguf_backend(fields),
      bos_id=fields.get("tokenizer.ggml.bos_token_id"),
      eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
      pad_id=fields.get("tokenizer.ggml.padding_token_id"),
      add_bos=fields.get(
        "tokenizer.ggml.add_bos_token",
        begins and fields.get("tokenizer.ggml.bos_token_id") is not None,
      ),
      chat_template=fields.get("tokenizer.chat_template"),
      eos_id=eos,
    )

  @classmethod
  def from_directory(cls, directory: str | Path) -> "Tokenizer":
    """Read `tokenizer.json` and the settings beside it, as transformers does.

    A generation stops at `eos_token_id` of generation_config.json, else of config.json, else at the
    `eos_token` of tokenizer_config.json. The chat template is chat_template.jinja, else the one in
    tokenizer_config.json.

    Raises:
      FileNotFoundError: tokenizer.json is missing.
      ValueError: a file cannot be parsed, or names a token that the vocabulary lacks.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} is missing; only fast tokenizers are read (transformers saves tokenizer.json "
        f"with them)."
      )
    try:
      backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
      raise ValueError(f"{path}: not a tokenizer that can be read: {error}") from error
    settings = read_json(directory / "tokenizer_config.json")

    def special(name: str) -> int | None:
      token = settings.get(name)
      token = token.get("content") if isinstance(token, dict) else token
      if token is None:
        return None
      found = backend.token_to_id(token)
      if found is None:
        raise ValueError(
          f"{directory / 'tokenizer_config.json'}: {name} is {token!r}, which {path} lacks."
        )
      return found

    if settings.get("add_eos_token"):
      raise ValueError(
        f"{directory / 'tokenizer_config.json'}: add_eos_token is true; only false is handled."
      )
    bos_id = special("bos_token")
    add_bos = settings.get("add_bos_token")
    if add_bos is None:  # then the post-processor decides, as with Llama 3
      add_bos = bos_id is not None and backend.encode("").ids[:1] == [bos_id]
    return cls(
      backend,
      bos_id=bos_id,
      eos_ids=_end_ids(directory, special("eos_token")),
      pad_id=special("pad_token"),
      add_bos=bool(add_bos),
      chat_template=_directory_template(directory, settings),
      eos_id=special("eos_token"),
    )


def read_json(path: Path) -> dict[str, Any]:
  """Return the JSON object in a file, {} if there is no such file.

  Raises:
    ValueError: the file holds something else.
  """
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not valid JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path}: holds a JSON {type(content).__name__}; an object is needed.")
  return content


def _end_ids(directory: Path, eos_id: int | None) -> tuple[int, ...]:
  for name in ("generation_config.json", "config.json"):
    ends = read_json(directory / name).get("eos_token_id")
    if ends is not None:
      ends = ends if isinstance(ends, list) else [ends]
      if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"{directory / name}: eos_token_id is {ends}; integers are needed.")
      return tuple(dict.fromkeys(ends))
  return () if eos_id is None else (eos_id,)


def _directory_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
  path = directory / "chat_template.jinja"
  if path.is_file():
    return path.read_text(encoding="utf-8")
  template = settings.get("chat_template")
  if isinstance(template, list):
    named = {entry.get("name"): entry.get("template") for entry in template}
    if "default" not in named:
      raise ValueError(
        f"{directory / 'tokenizer_config.json'}: chat_template has the names {sorted(named)}; "
        f"one must be 'default'."
      )
    template = named["default"]
  if template is not None and not isinstance(template, str):
    raise ValueError(
      f"{directory / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}; "
      f"a string is needed."
    )
  return template
