"""Log-probabilities of given continuations, sharing each prompt's prefix between them."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.extend import Extended, extend
from persona_jax.engine.forward import head
from persona_jax.engine.rows import Row, round_up, row_bucket
from persona_jax.models.arch import Arch
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Logits of a tile are [rows, T, V] float32: 1024 x 49,152 of them are 200 MB.
_TILE_ROWS, _TILE_TOKENS = 64, 1024
# Continuations are padded to a multiple of this. Of 2: a fifth of the tokens of questionnaire items
# is padding, of 8: half as many as there are; a shape more takes a second to compile.
_TOKEN_STEP = 2


class Scored(NamedTuple):
  """Scores of N rows, and what their edits delivered on the prompt and the fed tokens.

  A pass runs over the prompt and all but the last token of the continuation, which predicts
  nothing; those tokens are what an edit can act on. The delivery is that of `Generation`.

  Attributes:
    logprobs: per row, float64, one value a token of the continuation.
    tokens_edited: int [N], tokens on which an edit was on.
    delivered_dose: float64 [N], NaN where nothing was requested.
    problems: for each row "", or why it is not valid: an edit met no token, or the dose is off.
  """

  logprobs: list[np.ndarray]
  tokens_edited: np.ndarray
  delivered_dose: np.ndarray
  problems: list[str]

  @property
  def valid(self) -> np.ndarray:
    """Bool [N], rows that got what they asked for."""
    return np.asarray([not problem for problem in self.problems], bool)


@functools.partial(jax.jit, static_argnames=("arch",))
def _logprobs(
  params: Mapping[str, Any], h_BTD: jax.Array, targets_BTM: jax.Array, *, arch: Arch
) -> jax.Array:
  """Return the log-probability of M candidate next tokens at each position, [B, T, M]."""
  logits_BTV = head(params, h_BTD, arch=arch)
  chosen_BTM = jnp.take_along_axis(logits_BTV, targets_BTM, axis=-1)
  return chosen_BTM - jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True)


def _score_tile(
  model: "Model", rows: Sequence[Row], fed: Sequence[tuple[int, ...]], finals: Sequence[list[int]]
) -> tuple[np.ndarray, np.ndarray, Extended]:
  """Score passes: row b is fed `fed[b]` after its prompt, `finals[b]` may follow.

  Returns:
    log-probs of the fed tokens [B, T] and of the finals [B, M], float32, where padding means
    nothing; and the pass with its delivery.
  """
  num_rows = row_bucket(len(rows))
  t = round_up(1 + max(len(f) for f in fed), _TOKEN_STEP) if any(fed) else 1
  out = extend(model, rows, fed, num_rows, t)
  targets_BTM = np.zeros((num_rows, t, max(len(f) for f in finals)), np.int32)
  for b, (tokens, final) in enumerate(zip(fed, finals, strict=True)):
    targets_BTM[b, : len(tokens), 0] = tokens
    targets_BTM[b, len(tokens), : len(final)] = final
  top = {name: leaf for name, leaf in model.params.items() if name != "blocks"}
  logprob_BTM = np.asarray(_logprobs(top, out.run.h_BTD, jnp.asarray(targets_BTM), arch=model.arch))
  last_B = np.asarray([len(tokens) for tokens in fed])
  return logprob_BTM[:, :, 0], logprob_BTM[np.arange(len(rows)), last_B], out


def _continuation_ids(
  model: "Model", number: int, continuation: str | Sequence[int]
) -> tuple[int, ...]:
  """Return a continuation as token ids.

  Raises:
    ValueError: it has no token, or items that are no ids of the vocabulary.
  """
  items = model.tokenizer.encode(continuation) if isinstance(continuation, str) else continuation
  vocab = model.arch.vocab_size
  try:
    ids = tuple(operator.index(i) for i in items)
  except TypeError as error:
    raise ValueError(f"continuation {number}: token ids must be integers ({error}).") from error
  if not ids:
    raise ValueError(f"continuation {number} has no token; there is nothing to score.")
  wrong = [i for i in ids if not 0 <= i < vocab]
  if wrong:
    raise ValueError(
      f"continuation {number}: ids {wrong[:8]} lie outside the vocabulary [0, {vocab})."
    )
  return ids


def _tiles(order: Sequence[int], length_P: Sequence[int]) -> list[list[int]]:
  """Cut passes, in this order, into tiles that are bounded in rows and in padded tokens."""
  tiles: list[list[int]] = []
  longest = 0
  for p in order:
    longest = max(longest, length_P[p]) if tiles else length_P[p]
    if not tiles or (len(tiles[-1]) + 1) * longest > _TILE_TOKENS or len(tiles[-1]) == _TILE_ROWS:
      tiles.append([])
      longest = length_P[p]
    tiles[-1].append(p)
  return tiles


def score_rows(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  progress: Callable[[int], None] | None = None,
) -> Scored:
  """Score continuations as `Model.score` does, and say what the edits of each row delivered.

  Raises:
    ValueError: lengths differ, a continuation is empty or holds ids outside the vocabulary, or the
      prompts or edits do not fit.
  """
  if len(prompts) != len(continuations):
    raise ValueError(
      f"{len(prompts)} prompts and {len(continuations)} continuations; they are zipped."
    )
  rows = encode_rows(model, prompts, edits)
  conts = [_continuation_ids(model, n, c) for n, c in enumerate(continuations)]
  if not rows:
    return Scored([], np.zeros(0, int), np.zeros(0), [])
  check_lengths(model, rows, max(len(c) for c in conts))

  # One pass serves all continuations of a row that differ in their last token only.
  passes: dict[tuple[object, ...], int] = {}
  finals: list[list[int]] = []
  place: list[tuple[int, int]] = []
  owner: list[int] = []
  for n, (row, cont) in enumerate(zip(rows, conts, strict=True)):
    mine = tuple(id(e) for e in row.edits)
    key = (row.ids, row.prompt_length, mine, row.roles if mine else (), cont[:-1])
    p = passes.setdefault(key, len(passes))
    if p == len(finals):
      finals.append([])
      owner.append(n)
    if cont[-1] not in finals[p]:
      finals[p].append(cont[-1])
    place.append((p, finals[p].index(cont[-1])))

  fed_logprob: dict[int, np.ndarray] = {}
  final_logprob: dict[int, np.ndarray] = {}
  edited_P = np.zeros(len(finals), int)
  dose_P = np.full(len(finals), np.nan)
  users = np.bincount([p for p, _ in place], minlength=len(finals))
  order = sorted(
    range(len(finals)), key=lambda p: (len(rows[owner[p]].ids), len(conts[owner[p]]), p)
  )
  for tile in _tiles(order, [len(conts[owner[p]]) for p in range(len(finals))]):
    tile_rows = [rows[owner[p]] for p in tile]
    fed = [conts[owner[p]][:-1] for p in tile]
    fed_BT, final_BM, out = _score_tile(model, tile_rows, fed, [finals[p] for p in tile])
    edited_P[tile] = np.asarray(out.edited_B)[: len(tile)]
    realised_B, requested_B = np.asarray(out.realised_B), np.asarray(out.requested_B)
    for b, p in enumerate(tile):
      dose_P[p] = dose_of(realised_B[b], requested_B[b])
      fed_logprob[p] = fed_BT[b, : len(fed[b])].astype(np.float64)
      final_logprob[p] = final_BM[b].astype(np.float64)
    if progress is not None:
      progress(int(users[tile].sum()))
  pass_N = [p for p, _ in place]
  edited_N, dose_N = edited_P[pass_N], dose_P[pass_N]
  return Scored(
    [np.append(fed_logprob[p], final_logprob[p][m]) for p, m in place],
    edited_N,
    dose_N,
    [
      problem_of(row, row.answer_roles(cont[:-1], model.think_ids), dose)
      for row, cont, dose in zip(rows, conts, dose_N, strict=True)
    ],
  )
