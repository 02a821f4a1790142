"""Makes and checks reference token ids of SmolLM2's vocabulary, without `tokenizers`.

  python -m tests.reference.make_tokenizer_reference MODEL.gguf          writes the golden file
  python -m tests.reference.make_tokenizer_reference MODEL.gguf --check  compares Tokenizer, live

Needs `tiktoken`, `regex` and `gguf`. Byte-pair merging is tiktoken's. The splitting is staged here
as llama.cpp does it: special tokens first, then digits (for `smollm`), then the words of GPT-2 or
Llama 3. The three splitters are checked on one vocabulary: splitting is all they differ in.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.reference.tokenizer_strings import STRINGS

GOLDEN = Path(__file__).with_name("smollm2_token_ids.json")
PRES = ("smollm", "gpt-2", "llama-bpe")
FULL = 12  # strings whose ids are written out

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ids_digest(ids: Sequence[int]) -> str:
  """Returns the sha256 of token ids written as decimals with commas."""
  return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def reference_encoder(fields: Mapping[str, Any], pre: str) -> Callable[[str], list[int]]:
  """Returns text → token ids for the vocabulary in GGUF fields and the splitter `pre`."""
  import regex
  import tiktoken

  byte_of = _bytes_by_character()
  tokens = fields["tokenizer.ggml.tokens"]
  kinds = fields["tokenizer.ggml.token_type"]
  special = {token: i for i, token in enumerate(tokens) if kinds[i] == 3}
  plain = {
    bytes(byte_of[character] for character in token): i
    for i, token in enumerate(tokens)
    if kinds[i] == 1
  }
  # tiktoken ranks are merge numbers here: 256 single bytes, then the merges in order.
  ranks = {bytes([value]): value for value in range(256)}
  for number, merge in enumerate(fields["tokenizer.ggml.merges"]):
    ranks[bytes(byte_of[character] for character in merge.replace(" ", ""))] = 256 + number
  id_of = {rank: plain[piece] for piece, rank in ranks.items() if piece in plain}
  absent = {value for value in range(256) if value not in id_of}

  words = LLAMA3_WORDS if pre == "llama-bpe" else GPT2_WORDS
  encoding = tiktoken.Encoding(pre, pat_str=words, mergeable_ranks=ranks, special_tokens={})
  by_special = regex.compile("|".join(regex.escape(token) for token in special))
  by_digit = regex.compile(r"\p{N}|\P{N}+")
  by_word = regex.compile(words)

  def encode_plain(text: str) -> list[int]:
    if not absent & set(text.encode()):
      return [id_of[rank] for rank in encoding.encode_ordinary(text)]
    ids = []
    for word in by_word.findall(text):  # a byte that the vocabulary lacks is dropped from its word
      kept = bytes(value for value in word.encode() if value not in absent)
      ids += [id_of[rank] for rank in encoding._encode_single_piece(kept)] if kept else []
    return ids

  def encode(text: str) -> list[int]:
    ids, start = [], 0
    for match in [*by_special.finditer(text), None]:
      part = text[start : match.start() if match else None]
      for piece in by_digit.findall(part) if pre == "smollm" else [part]:
        ids += encode_plain(piece)
      if match:
        ids.append(special[match[0]])
        start = match.end()
    return ids

  return encode


def make_golden(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the golden file holds: per splitter a digest and a length for each string."""
  encoders = {pre: reference_encoder(fields, pre) for pre in PRES}
  ids = {pre: [encode(text) for text in STRINGS] for pre, encode in encoders.items()}
  short = [i for i, text in enumerate(STRINGS) if 8 <= len(text) <= 80]
  return {
    "strings_sha256": hashlib.sha256(json.dumps(STRINGS).encode()).hexdigest(),
    "digests": {pre: [f"{len(row)}:{ids_digest(row)[:16]}" for row in ids[pre]] for pre in PRES},
    "ids": {str(i): ids["smollm"][i] for i in short[:: max(1, len(short) // FULL)][:FULL]},
  }


def check_tokenizer(gguf_path: str | Path) -> tuple[int, int]:
  """Compares `Tokenizer` with the reference on every string and splitter; (checked, failed)."""
  from persona_jax.checkpoints.tokenizer import Tokenizer

  fields = read_tokenizer_fields(gguf_path)
  checked = failed = 0
  for pre in PRES:
    encode = reference_encoder(fields, pre)
    tokenizer = Tokenizer.from_gguf({**fields, "tokenizer.ggml.pre": pre})
    for text in STRINGS:
      checked += 1
      ours, theirs = tokenizer.encode(text), encode(text)
      if ours != theirs:
        failed += 1
        print(f"token ids differ ({pre}, {text[:60]!r}): {ours[:20]}, reference {theirs[:20]}")
  return checked, failed


def read_tokenizer_fields(gguf_path: str | Path) -> dict[str, Any]:
  """Returns the tokenizer fields of a GGUF file, read by the `gguf` package alone."""
  import gguf

  fields = gguf.GGUFReader(gguf_path).fields.items()
  return {name: field.contents() for name, field in fields if name.startswith("tokenizer.")}


def _bytes_by_character() -> dict[str, int]:
  """Returns the byte behind each of GPT-2's characters: printable Latin-1 stands for itself."""
  same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  moved = [value for value in range(256) if value not in same]
  return {chr(v): v for v in same} | {chr(256 + i): value for i, value in enumerate(moved)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
  parser.add_argument("--check", action="store_true", help="compare the Tokenizer, write nothing")
  args = parser.parse_args()
  if args.check:
    checked, failed = check_tokenizer(args.gguf)
    print(f"{checked} strings checked, {failed} failed")
    return
  golden = make_golden(read_tokenizer_fields(args.gguf))
  GOLDEN.write_text(json.dumps(golden, indent=0, separators=(",", ":")) + "\n", encoding="utf-8")
  print(f"{GOLDEN.name}: {len(STRINGS)} strings, {len(PRES)} splitters")


if __name__ == "__main__":
  main()
