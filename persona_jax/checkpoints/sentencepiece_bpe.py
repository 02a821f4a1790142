"""SentencePiece's BPE (Kudo & Richardson 2018) out of pieces and scores, as GGUF files carry it.

SentencePiece joins, again and again, the two neighbouring pieces whose union has the highest score,
the leftmost first; what no piece covers becomes its UTF-8 bytes. The same is a BPE whose merges are
all pairs of pieces that make a piece, ranked by the score of what they make.
"""

from collections.abc import Sequence

import tokenizers
from gguf import TokenType
from tokenizers import decoders, models, normalizers

_SPACE = "\u2581"


def sentencepiece_bpe(
  tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: str
) -> tokenizers.Tokenizer:
  """Build the tokenizer.

  Args:
    tokens: the pieces; a space is "\u2581" in them, except in user-defined ones.
    scores: of the pieces.
    kinds: of the pieces: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 a byte.
    unknown: the piece for what cannot be spelt.

  Raises:
    ValueError: lists of different length, a piece twice, an unknown kind, or bytes missing.
  """
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if not len(vocabulary) == len(tokens) == len(scores) == len(kinds):
    raise ValueError(
      f"tokenizer.ggml.tokens has {len(tokens)} entries, {len(vocabulary)} distinct, scores "
      f"{len(scores)}, token_type {len(kinds)}; all must be equal."
    )
  odd = sorted(set(kinds) - set(TokenType))
  if odd:
    raise ValueError(f"tokenizer.ggml.token_type has {odd}; handled: 1 to 6.")
  lacking = [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in vocabulary]
  if lacking:
    raise ValueError(f"tokenizer.ggml.tokens lacks {len(lacking)} bytes, {lacking[0]} first.")
  # What user-defined pieces spell is cut out before, so only normal ones are made by merging. The
  # pair with the highest score comes first; of one piece's, the one with the shortest left part.
  made = [i for i, kind in enumerate(kinds) if kind == TokenType.NORMAL]
  normal = {tokens[i] for i in made}
  made.sort(key=lambda i: -scores[i])
  merges = [
    (left, right)
    for i in made
    for cut in range(1, len(tokens[i]))
    if (left := tokens[i][:cut]) in normal and (right := tokens[i][cut:]) in normal
  ]
  model = models.BPE(
    vocab=vocabulary,
    merges=merges,
    unk_token=unknown,
    fuse_unk=True,
    byte_fallback=True,
  )
  backend = tokenizers.Tokenizer(model)
  backend.normalizer = normalizers.Replace(" ", _SPACE)
  backend.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  add_special_pieces(backend, tokens, kinds)
  return backend


def add_special_pieces(
  backend: tokenizers.Tokenizer, tokens: Sequence[str], kinds: Sequence[int]
) -> None:
  """Have control and user-defined pieces cut out of texts as they are written.

  Args:
    backend: with these pieces in its vocabulary.
    tokens, kinds: as `sentencepiece_bpe` takes them.
  """
  for wanted, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
    added = [
      tokenizers.AddedToken(token, special=special, normalized=False)
      for token, kind in zip(tokens, kinds, strict=True)
      if kind == wanted
    ]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
