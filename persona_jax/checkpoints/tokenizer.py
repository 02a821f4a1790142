"""Tokenizers, from GGUF fields or a Hugging Face directory, on the `tokenizers` package."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from persona_jax.checkpoints.sentencepiece_bpe import sentencepiece_bpe

_LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Fields of a GGUF tokenizer that change neither token ids nor where a generation stops.
_NO_EFFECT = re.compile(
  r"tokenizer\.ggml\.(scores|token_type_count|add_sep_token|fim_\w+_token_id"
  r"|(unknown|seperator|separator|cls|mask|prefix|suffix|middle)_token_id)"
)
_HANDLED = {
  "tokenizer.chat_template",
  *(
    f"tokenizer.ggml.{name}"
    for name in (
      "model pre tokens token_type merges scores bos_token_id eos_token_id eot_token_id "
      "eom_token_id padding_token_id add_bos_token add_eos_token add_space_prefix"
    ).split()
  ),
}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer | None:
  """Return the splitter that llama.cpp knows by the name `pre`, or None."""
  if pre == "gpt-2":
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if pre == "smollm":
    return pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
      ]
    )
  if pre == "llama-bpe":
    return pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  return None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
  """Text to token ids and back; equal and hashed by content.

  Attributes:
    backend: the `tokenizers` object; its truncation, padding and post-processing are switched off
      here.
    bos_id: beginning-of-sequence token, or None.
    eos_ids: tokens that end a generation, the main one first; () if the files name none.
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

  def __post_init__(self) -> None:
    # A tokenizer.json may say "truncate to 512" or "pad to the longest", left from training.
    self.backend.no_truncation()
    self.backend.no_padding()
    # A ByteLevel post-processor would cut the space from the offsets of " word".
    self.backend.post_processor = None
    ids = {"bos_id": self.bos_id, "pad_id": self.pad_id}
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

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return `encode(text)` and each token's [start, end) in characters of the text.

    The tokens of one character that takes several (an emoji, say) all have that character's
    offsets.
    """
    encoding = self.backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

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

    Byte-level BPE ("gpt2") from merges, SentencePiece's BPE ("llama") from scores.

    A generation stops at the file's eos, eot and eom tokens.

    Raises:
      ValueError: a tokenizer model, splitter or field that is not handled; the message names it.
    """
    unknown = sorted(n for n in fields if n not in _HANDLED and not _NO_EFFECT.fullmatch(n))
    if unknown:
      raise ValueError(f"tokenizer fields that this reader does not handle: {unknown}.")
    ggml = {n.removeprefix("tokenizer.ggml."): value for n, value in fields.items()}
    kind = ggml.get("model")
    if kind not in _BUILDERS:
      raise ValueError(f"tokenizer.ggml.model is {kind!r}; handled: 'gpt2', 'llama'.")
    for name in ("add_space_prefix", "add_eos_token"):
      if ggml.get(name, False):
        raise ValueError(f"tokenizer.ggml.{name} is true; only false is handled.")
    builder, needed = _BUILDERS[kind]
    missing = [n for n in needed if n not in ggml]
    if missing:
      raise ValueError(
        f"the tokenizer lacks the fields {[f'tokenizer.ggml.{n}' for n in missing]}."
      )
    backend = builder(ggml)
    ends = [ggml.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return cls(
      backend,
      bos_id=ggml.get("bos_token_id"),
      eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
      pad_id=ggml.get("padding_token_id"),
      add_bos=ggml.get("add_bos_token", False),
      chat_template=fields.get("tokenizer.chat_template"),
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
    )


def _from_merges(ggml: Mapping[str, Any]) -> tokenizers.Tokenizer:
  pre_tokenizer = _pre_tokenizer(ggml.get("pre", ""))
  if pre_tokenizer is None:
    raise ValueError(
      f"tokenizer.ggml.pre is {ggml.get('pre')!r}; handled: 'gpt-2', 'llama-bpe', 'smollm'."
    )
  backend = _byte_level_bpe(ggml["tokens"], ggml["merges"], ggml["token_type"], ggml["pre"])
  backend.pre_tokenizer = pre_tokenizer
  return backend


def _from_scores(ggml: Mapping[str, Any]) -> tokenizers.Tokenizer:
  if ggml.get("add_space_prefix", True):
    raise ValueError(
      "tokenizer.ggml.add_space_prefix is true (its default); only false is handled."
    )
  unknown = ggml["tokens"][ggml.get("unknown_token_id", 0)]
  return sentencepiece_bpe(ggml["tokens"], ggml["scores"], ggml["token_type"], unknown)


# tokenizer.ggml.model → (how it is built, fields that it needs).
_BUILDERS: dict[
  str, tuple[Callable[[Mapping[str, Any]], tokenizers.Tokenizer], tuple[str, ...]]
] = {
  "gpt2": (_from_merges, ("tokens", "merges", "token_type")),
  "llama": (_from_scores, ("tokens", "scores", "token_type")),
}


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


def _byte_level_bpe(
  tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int], pre: str
) -> tokenizers.Tokenizer:
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
    raise ValueError(
      f"tokenizer.ggml.tokens has {len(tokens)} entries, {len(vocabulary)} distinct, and "
      f"tokenizer.ggml.token_type has {len(kinds)}; all must be equal."
    )
  odd = sorted(set(kinds) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED})
  if odd:
    raise ValueError(
      f"tokenizer.ggml.token_type has {odd}; handled: 1 normal, 3 control, 4 user-defined, "
      f"5 unused."
    )
  pairs = []
  for merge in merges:
    first, space, second = merge.partition(" ")
    if not space or " " in second:
      raise ValueError(f"tokenizer.ggml.merges has {merge!r}; two tokens and a space are needed.")
    pairs.append((first, second))
  try:
    # Llama 3's vocabulary has words that no merges lead to: a word in it is one token.
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe")
  except Exception as error:  # the package raises bare Exception
    raise ValueError(
      f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}"
    ) from error
  backend = tokenizers.Tokenizer(model)
  backend.decoder = decoders.ByteLevel()
  for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
    added = [
      tokenizers.AddedToken(token, special=special, normalized=False)
      for token, token_kind in zip(tokens, kinds, strict=True)
      if token_kind == kind
    ]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
  return backend


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
