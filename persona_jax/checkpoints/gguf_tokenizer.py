"""Tokenizers out of the `tokenizer.*` fields of GGUF files, on the `tokenizers` package.

Two kinds: byte-level BPE ("gpt2"), whose merges the file lists and whose way of splitting a text
into words it names (`tokenizer.ggml.pre`), and SentencePiece's BPE ("llama"), from scores.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from gguf import TokenType
from tokenizers import decoders, models, normalizers, pre_tokenizers

from persona_jax.checkpoints.sentencepiece_bpe import add_special_pieces, sentencepiece_bpe

# Fields that change neither token ids nor where a generation stops.
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
# Words of Llama 3 and of Qwen2, which differ in how many digits make one.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def gguf_backend(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Build the tokenizer of a GGUF file, without the tokens that are put before or after a text.

  Args:
    fields: the file's `tokenizer.*` fields.

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
    raise ValueError(f"the tokenizer lacks the fields {[f'tokenizer.ggml.{n}' for n in missing]}.")
  return builder(ggml)


def _from_merges(ggml: Mapping[str, Any]) -> tokenizers.Tokenizer:
  pre = ggml.get("pre", "")
  if pre not in _SPLITTERS:
    raise ValueError(
      f"tokenizer.ggml.pre is {ggml.get('pre')!r}; handled: {', '.join(map(repr, _SPLITTERS))}."
    )
  # Llama 3's vocabulary has words that no merges lead to: a word in it is one token.
  backend = _byte_level_bpe(
    ggml["tokens"], ggml["merges"], ggml["token_type"], ignore_merges=pre == "llama-bpe"
  )
  backend.pre_tokenizer = _SPLITTERS[pre]
  if pre in _COMPOSED:
    backend.normalizer = normalizers.NFC()
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


def _split_at(words: str) -> pre_tokenizers.PreTokenizer:
  """Return the splitter into what a regular expression finds, and then bytes."""
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


# tokenizer.ggml.pre → how a text is split into words.
_SPLITTERS: dict[str, pre_tokenizers.PreTokenizer] = {
  "gpt-2": _GPT2,
  "llama-bpe": _split_at(_WORDS.format(digits="{1,3}")),
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
  # Qwen2, 2.5 and 3; the second with the special tokens of DeepSeek-R1.
  "qwen2": _split_at(_WORDS.format(digits="")),
  "deepseek-r1-qwen": _split_at(_WORDS.format(digits="")),
}
# Their tokenizer.json composes characters first ("e\u0301" becomes "é"), as the model was trained;
# GGUF files do not say so, and llama.cpp leaves it out.
_COMPOSED = ("qwen2", "deepseek-r1-qwen")


def _byte_level_bpe(
  tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int], ignore_merges: bool
) -> tokenizers.Tokenizer:
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
    raise ValueError(
      f"tokenizer.ggml.tokens has {len(tokens)} entries, {len(vocabulary)} distinct, and "
      f"tokenizer.ggml.token_type has {len(kinds)}; all must be equal."
    )
  handled = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
  odd = sorted(set(kinds) - set(handled))
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
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges)
  except Exception as error:  # the package raises bare Exception
    raise ValueError(
      f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}"
    ) from error
  backend = tokenizers.Tokenizer(model)
  backend.decoder = decoders.ByteLevel()
  add_special_pieces(backend, tokens, kinds)
  return backend
