"""SentencePiece's BPE from scores, against a plain implementation of its definition."""

import itertools

import numpy as np
import pytest

from persona_jax.checkpoints.sentencepiece_bpe import sentencepiece_bpe
from persona_jax.checkpoints.tokenizer import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
USER = ("\n\n", "\n\n\n", "<h1>", "  ")
BYTES = tuple(f"<0x{b:02X}>" for b in range(256))
LETTERS = (*"abcde", "\u2581", "é")


def pieces(seed: int = 0):
  """Tokens, scores and kinds: letters, and two hundred random words of them with random scores."""
  rng = np.random.default_rng(seed)
  words = {"".join(rng.choice(LETTERS, n)) for n in rng.integers(2, 5, 200)}
  tokens = [*SPECIAL, *USER, *BYTES, *LETTERS, *sorted(words)]
  kinds = [3, 3, 3, 2] + [4] * len(USER) + [6] * 256 + [1] * (len(LETTERS) + len(words))
  scores = (-1.0 - rng.permutation(len(tokens))).tolist()
  return tokens, scores, kinds


def by_definition(text, tokens, scores, kinds):
  """Ids of a text without special or user-defined pieces: join the best pair until none is left."""
  score = {t: s for t, s, k in zip(tokens, scores, kinds, strict=True) if k == 1}
  parts = list(text.replace(" ", "\u2581"))
  while True:
    pairs = [
      (-score[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score
    ]
    if not pairs:
      break
    _, i = min(pairs)
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
  spelt = [[p] if p in score else [f"<0x{b:02X}>" for b in p.encode()] for p in parts]
  return [tokens.index(piece) for part in spelt for piece in part]


@pytest.mark.parametrize("seed", range(5))
def test_ids_follow_the_definition(seed):
  tokens, scores, kinds = pieces(seed)
  backend = sentencepiece_bpe(tokens, scores, kinds, "<unk>")
  rng = np.random.default_rng(100 + seed)
  for _ in range(200):
    text = "".join(rng.choice([*"abcde e", "é", "z", "😀", "\n"], rng.integers(1, 25)))
    while "  " in text or "\n\n" in text:
      text = text.replace("  ", " ").replace("\n\n", "\n")
    ids = backend.encode(text, add_special_tokens=False).ids
    assert ids == by_definition(text, tokens, scores, kinds), text
    assert backend.decode(ids, skip_special_tokens=False) == text


def test_user_defined_and_control_pieces_are_cut_out_first():
  tokens, scores, kinds = pieces()
  backend = sentencepiece_bpe(tokens, scores, kinds, "<unk>")
  spell = lambda text: [tokens[i] for i in backend.encode(text, add_special_tokens=False).ids]
  assert spell("<bos>\n\n\n<h1>") == ["<bos>", "\n\n\n", "<h1>"]
  assert spell("  ") == ["  "]


def test_pieces_that_do_not_fit_are_refused():
  tokens, scores, kinds = pieces()
  with pytest.raises(ValueError, match="all must be equal"):
    sentencepiece_bpe(tokens, scores[:-1], kinds, "<unk>")
  with pytest.raises(ValueError, match=r"token_type has \[9\]"):
    sentencepiece_bpe(tokens, scores, [9, *kinds[1:]], "<unk>")
  without = [t for t in tokens if t != "<0x0A>"]
  with pytest.raises(ValueError, match="lacks 1 bytes, <0x0A> first"):
    sentencepiece_bpe(without, scores[:-1], kinds[:-1], "<unk>")


def test_gguf_fields_make_it():
  tokens, scores, kinds = pieces()
  fields = {
    "model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": kinds,
    "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "add_bos_token": True,
    "add_space_prefix": False,
  }  # fmt: skip
  fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
  tokenizer = Tokenizer.from_gguf(fields)
  assert tokenizer.add_bos and tokenizer.bos_id == 2 and tokenizer.eos_ids == (1,)
  assert tokenizer.decode(tokenizer.encode("abc de")) == "abc de"
  del fields["tokenizer.ggml.add_space_prefix"]
  with pytest.raises(ValueError, match="add_space_prefix is true"):
    Tokenizer.from_gguf(fields)
