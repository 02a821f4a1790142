"""Log-probabilities of given continuations, sharing each prompt's prefix between them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from persona_jax.edits.compile import RowEdits
from persona_jax.engine.checks import as_int, check_lengths, dose_of, problem_of
from persona_jax.engine.encode import check_prompts, encode_rows
from persona_jax.engine.forward import head
from persona_jax.engine.halving import Halving, cut_to_fit
from persona_jax.engine.memory import DryMemory, does_not_fit, memory_limit
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import Prefix
from persona_jax.engine.programs import PROGRAMS, Runner
from persona_jax.engine.rows import TILE_ROWS, Row, round_up
from persona_jax.engine.settings import Settings
from persona_jax.engine.tile_plan import most_bytes
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree
from persona_jax.models.arch import Arch
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Logits are [tokens, V] float32: 1024 x 49,152 of them are 200 MB.
_HEAD_TOKENS, _HEAD_STEP = 1024, 32


class Scored(NamedTuple):
  """Scores of N rows, and what their edits delivered on the prompt and the fed tokens.

  A pass runs over the prompt and all but the last token of the continuation, which predicts
  nothing; those tokens are what an edit can act on. The delivery is that of `Generation`.

  Attributes:
    logprobs: per row, float64, in nats, one value a token of the continuation.
    tokens_edited: int [N], tokens on which an edit was on.
    delivered_dose: float64 [N], NaN where nothing was requested.
    problems: for each row "", or why it is not valid: an edit met no token, or the dose is off.
    passes: times that a token was sent through a block, for all rows.
    padded_passes: the same with padding.
  """

  logprobs: list[np.ndarray]
  tokens_edited: np.ndarray
  delivered_dose: np.ndarray
  problems: list[str]
  passes: int = 0
  padded_passes: int = 0

  @property
  def valid(self) -> np.ndarray:
    """Bool [N], rows that got what they asked for."""
    return np.asarray([not problem for problem in self.problems], bool)


@functools.partial(jax.jit, static_argnames=("arch", "size"))
def _logprobs(
  params: Mapping[str, Any],
  h_MD: jax.Array,
  start: jax.Array,
  pick_Q: jax.Array,
  target_Q: jax.Array,
  *,
  arch: Arch,
  size: int,
) -> jax.Array:
  """Return the log-probabilities of Q next tokens, each after one of `size` activations."""
  logits_MV = head(params, jax.lax.dynamic_slice_in_dim(h_MD, start, size), arch=arch)
  return logits_MV[pick_Q, target_Q] - jax.nn.logsumexp(logits_MV, axis=-1)[pick_Q]


class _Pass(NamedTuple):
  """A row that is fed tokens after its own, and the tokens that may follow them."""

  row: Row
  fed: tuple[int, ...]
  finals: list[int]

  def whole(self, model: "Model") -> Row:
    """Return the row with the fed tokens."""
    row, roles = self.row, self.row.answer_roles(self.fed, model.think_ids)
    return dataclasses.replace(row, ids=row.ids + self.fed, roles=(*row.roles, *roles))


class _Scores(NamedTuple):
  """What a tile of passes gave; no array of it is on the device.

  Attributes:
    passes: their numbers.
    fed, finals: of each pass, float32, log-probabilities of the fed tokens and of the finals.
    doses: of each pass, the delivered dose.
    edited: int, of each pass, tokens on which an edit was on.
    cost: times that a token was sent through a block, and the same with padding.
  """

  passes: list[int]
  fed: list[np.ndarray]
  finals: list[np.ndarray]
  doses: list[float]
  edited: np.ndarray
  cost: tuple[int, int]


class _Asked(NamedTuple):
  """A next token that is asked for.

  Attributes:
    row: of the tile.
    position: of the token before it.
    place: in the continuation.
    token: its id.
  """

  row: int
  position: int
  place: int
  token: int


def _asked(tile: Sequence[_Pass]) -> list[_Asked]:
  """Return all next tokens that passes are asked for."""
  return [
    _Asked(r, len(row.ids) - 1 + n, n, token)
    for r, (row, ids, ends) in enumerate(tile)
    for n, token in [*enumerate(ids), *((len(ids), end) for end in ends)]
  ]


def _next_tokens(
  model: "Model", prefix: Prefix, asked: Sequence[_Asked], run: Runner
) -> Iterator[tuple[list[_Asked], jax.Array]]:
  """Yield what is asked in parts, with log-probabilities [Q] of each, Q being rounded up."""
  for chosen in prefix.chosen:
    mine = [item for item in asked if item[:2] in chosen.place]
    mine.sort(key=lambda item: chosen.place[item[:2]])
    for first in range(0, chosen.count, _HEAD_TOKENS):
      last = min(first + _HEAD_TOKENS, chosen.count)
      part = [item for item in mine if first <= chosen.place[item[:2]] < last]
      size = min(_HEAD_TOKENS, round_up(last - first, _HEAD_STEP), len(chosen.h_MD))
      pick_Q, target_Q = np.zeros((2, round_up(len(part), _HEAD_STEP)), np.int32)
      pick_Q[: len(part)] = [chosen.place[item[:2]] - first for item in part]
      target_Q[: len(part)] = [item.token for item in part]
      start = min(first, len(chosen.h_MD) - size)
      pick_Q[: len(part)] += first - start
      yield part, run(
        "log-probs", _logprobs, model.top, chosen.h_MD, np.int32(start), pick_Q, target_Q,
        arch=model.arch, size=size,
      )  # fmt: skip


def _score_tile(
  model: "Model", passes: Sequence[_Pass], sharing: Sharing, numbers: list[int]
) -> _Scores:
  """Score some of the passes."""
  tile = [passes[p] for p in numbers]
  whole = [one.whole(model) for one in tile]
  asked = _asked(tile)
  tree = Tree(whole, [len(row.ids) for row in whole], sharing=sharing)
  prefix = prefill(model, tree, chosen=[item[:2] for item in asked])
  values: dict[tuple[int, int, int], float] = {}
  for part, logprob_Q in _next_tokens(model, prefix, asked, model.runner(PROGRAMS)):
    for (r, _, n, token), value in zip(part, np.asarray(logprob_Q), strict=False):
      values[r, n, token] = value
  of_fed = [
    np.asarray([values[r, n, token] for n, token in enumerate(ids)], np.float32)
    for r, (_, ids, _) in enumerate(tile)
  ]
  of_finals = [
    np.asarray([values[r, len(ids), token] for token in ends], np.float32)
    for r, (_, ids, ends) in enumerate(tile)
  ]
  done = prefix.delivered
  doses = [dose_of(*both) for both in zip(done.realised_R, done.requested_R, strict=True)]
  cost = prefix.passes, prefix.padded_passes
  return _Scores(numbers, of_fed, of_finals, doses, done.edited_R, cost)


def _peak(model: "Model", tile: Sequence[_Pass], sharing: Sharing = ALL_SHARED) -> int:
  """Predict the most memory that some passes take at one time."""
  whole, dry = [one.whole(model) for one in tile], DryMemory(model.arch, model.params, model.mesh)
  tree, asked = Tree(whole, [len(row.ids) for row in whole], sharing=sharing), _asked(tile)
  prefix = prefill(model, tree, chosen=[item[:2] for item in asked], run=dry)
  for _ in _next_tokens(model, prefix, asked, model.runner(dry)):
    pass
  return dry.peak_bytes


def _too_large(model: "Model", one: _Pass, prompt: int) -> str:
  """Say what a pass needs that does not fit into memory by itself."""
  name, advice = f"prompt {prompt} with its continuation", "a shorter prompt or continuation,"
  tokens = len(one.row.ids) + len(one.fed)
  return does_not_fit(name, tokens, _peak(model, [one]), model.device, advice)


def _tiles(
  model: "Model", passes: Sequence[_Pass], order: Sequence[int], sharing: Sharing
) -> Iterator[list[int]]:
  """Cut passes into tiles that are predicted to fit."""
  limit = memory_limit(model.device)

  def fits(numbers: Sequence[int]) -> bool:
    tile = [passes[p] for p in numbers]
    fed = max(len(one.fed) for one in tile)
    if most_bytes(model, [one.row for one in tile], Settings(fed + 1)) <= limit:
      return True
    return _peak(model, tile, sharing) <= limit

  for first in range(0, len(order), TILE_ROWS):
    yield from cut_to_fit(order[first : first + TILE_ROWS], fits)


def _continuation_ids(
  model: "Model", number: int, continuation: str | Sequence[int]
) -> tuple[int, ...]:
  """Return a continuation as token ids.

  Raises:
    ValueError: it has no token, or items that are no ids of the vocabulary.
  """
  items = model.tokenizer.encode(continuation) if isinstance(continuation, str) else continuation
  vocab = model.arch.vocab_size
  if not isinstance(items, Iterable):
    raise ValueError(f"continuation {number} is {items!r}; give a text or a list of token ids.")
  try:
    ids = tuple(as_int(f"ids[{n}]", i) for n, i in enumerate(items))
  except ValueError as error:
    raise ValueError(f"continuation {number}: token ids must be integers ({error})") from error
  if not ids:
    raise ValueError(f"continuation {number} has no token; there is nothing to score.")
  wrong = [i for i in ids if not 0 <= i < vocab]
  if wrong:
    raise ValueError(
      f"continuation {number}: ids {wrong[:8]} lie outside the vocabulary [0, {vocab})."
    )
  return ids


def _all_ids(model: "Model", continuations: Sequence[str | Sequence[int]]) -> list[tuple[int, ...]]:
  """Return all continuations as token ids; raises as `_continuation_ids`."""
  texts: dict[str, tuple[int, ...]] = {}  # few answers to many questions
  found = []
  for n, continuation in enumerate(continuations):
    if not isinstance(continuation, str):
      found.append(_continuation_ids(model, n, continuation))
      continue
    if continuation not in texts:
      texts[continuation] = _continuation_ids(model, n, continuation)
    found.append(texts[continuation])
  return found


def _passes(
  rows: Sequence[Row], conts: Sequence[tuple[int, ...]], sharing: Sharing
) -> tuple[list[_Pass], list[tuple[int, int]], list[int]]:
  """Put rows together: one pass serves all continuations that differ in their last token only.

  Returns:
    The passes; of each row the number of its pass and which of the pass's finals is its own; and of
    each pass the first row that it serves.
  """
  found: dict[tuple[object, ...], int] = {}
  passes: list[_Pass] = []
  place: list[tuple[int, int]] = []
  owner: list[int] = []
  for n, (row, cont) in enumerate(zip(rows, conts, strict=True)):
    mine = tuple(id(e) for e in row.edits)
    own = None if sharing.prefix else n
    key = (row.ids, row.prompt_length, mine, row.roles if mine else (), cont[:-1], own)
    p = found.setdefault(key, len(passes))
    if p == len(passes):
      passes.append(_Pass(row, cont[:-1], []))
      owner.append(n)
    finals = passes[p].finals
    if cont[-1] not in finals:
      finals.append(cont[-1])
    place.append((p, finals.index(cont[-1])))
  return passes, place, owner


def score_rows(
  model: "Model",
  prompts: Sequence[Prompt],
  continuations: Sequence[str | Sequence[int]],
  *,
  edits: Sequence[RowEdits] | None = None,
  progress: Callable[[int], None] | None = None,
  sharing: Sharing = ALL_SHARED,
) -> Scored:
  """Score continuations as `Model.score` does, and say what the edits of each row delivered.

  `sharing` can be switched off, to compare: without prefixes every continuation is a pass of its
  own.

  Raises:
    ValueError: lengths differ, a continuation is empty or holds ids outside the vocabulary, or the
      prompts or edits do not fit.
    MemoryError: a row by itself does not fit; the message names it and what it needs. A tile that
      does not is run in halves, with a warning.
  """
  check_prompts(prompts)
  if isinstance(continuations, str) or not isinstance(continuations, (Sequence, np.ndarray)):
    raise ValueError(
      "continuations must be a list with one item (a text or token ids) a prompt, not "
      f"{continuations!r}."
    )
  if len(prompts) != len(continuations):
    raise ValueError(
      f"{len(prompts)} prompts and {len(continuations)} continuations; they are zipped."
    )
  rows = encode_rows(model, prompts, edits)
  conts = _all_ids(model, continuations)
  if not rows:
    return Scored([], np.zeros(0, int), np.zeros(0), [])
  check_lengths(model, rows, [len(c) for c in conts])
  passes, place, owner = _passes(rows, conts, sharing)

  fed_logprob: dict[int, np.ndarray] = {}
  final_logprob: dict[int, np.ndarray] = {}
  edited_P = np.zeros(len(passes), int)
  dose_P = np.full(len(passes), np.nan)
  total = padded = 0
  users = np.bincount([p for p, _ in place], minlength=len(passes))
  order = sorted(range(len(passes)), key=lambda p: (passes[p].row.ids, conts[owner[p]], p))
  run = functools.partial(_score_tile, model, passes, sharing)

  def single(p: int) -> str:
    return _too_large(model, passes[p], owner[p])

  in_parts = Halving(run, single)
  for tile in _tiles(model, passes, order, sharing):
    for out in in_parts(tile):
      total, padded = total + out.cost[0], padded + out.cost[1]
      edited_P[out.passes], dose_P[out.passes] = out.edited, out.doses
      for r, p in enumerate(out.passes):
        fed_logprob[p] = out.fed[r].astype(np.float64)
        final_logprob[p] = out.finals[r].astype(np.float64)
      if progress is not None:
        progress(int(users[out.passes].sum()))
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
    total,
    padded,
  )
