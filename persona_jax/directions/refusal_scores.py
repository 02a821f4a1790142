"""What candidates for the refusal direction do to the next token, many of them in one batch."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp

from persona_jax.directions.direction import Direction
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import ablate, add
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import NotDelivered, next_logits
from persona_jax.engine.rows import TILE_ROWS, Row

# Where a direction is ablated so that nothing writes it to the stream or reads it there.
ABLATED_SITES = ("resid_pre", "attn_out", "mlp_out")
_AT_ONCE = 64  # rows of logits in float64
_SHARE_EPSILON, _KL_EPSILON = 1e-8, 1e-6  # of the authors' code


class Scores(NamedTuple):
  """What one candidate does, see `refusal.Candidate`; NaN where there is nothing to be had."""

  bypass: float
  induce: float
  kl: float


_NONE = Scores(math.nan, math.nan, math.nan)


def score_all(
  model: Model,
  vectors: Sequence[tuple[np.ndarray, int]],
  harmful: Sequence[Row],
  harmless: Sequence[Row],
  refusal_ids: Sequence[int],
  progress: Callable[[int, int], None] | None = None,
  *,
  least_induce: float | None = None,
) -> list[Scores]:
  """Score candidates; the rows of as many of them as fill a tile run together.

  One candidate by itself is some twenty rows, for which the host lays out tables of edits at every
  site of every block; a tile of them lays out as many tables once. What is added runs block by
  block: rows part where they are edited, and tiles that part at one block have the same shapes.

  Args:
    model: the model.
    vectors: of each candidate, [D], and the block at which it is added.
    harmful, harmless: prompts to try them on.
    refusal_ids: tokens with which refusals begin.
    progress: called with the candidates tried and their number.
    least_induce: candidates that induce less are not ablated, which is most of the work: they have
      no bypass and no KL (NaN).
  """
  found = [_NONE] * len(vectors)
  there = [n for n, (v_D, _) in enumerate(vectors) if v_D.any()]
  done = len(vectors) - len(there)

  def tell(count: int) -> None:
    nonlocal done
    done += count
    if progress is not None:
      progress(done, len(vectors))

  passed = []
  for part in _of_one_block(vectors, there, max(1, TILE_ROWS // len(harmless))):
    induced = _induced(model, [vectors[n] for n in part], harmless, refusal_ids)
    for n, value in zip(part, induced, strict=True):
      if math.isnan(value):
        continue
      found[n] = _NONE._replace(induce=value)
      if least_induce is None or value >= least_induce:
        passed.append(n)
    tell(sum(n not in passed for n in part))
  if not passed:
    return found
  passed.sort()
  plain_NV = next_logits(model, harmless)
  size = max(1, TILE_ROWS // (len(harmful) + len(harmless)))
  for first in range(0, len(passed), size):
    part = passed[first : first + size]
    removed = []
    for n in part:
      both = _ablations(model, vectors[n][0])
      removed += [*_edited(harmful, both), *_edited(harmless, both)]
    # A harmless prompt may hold nothing of the candidate but rounding.
    logits_MV = next_logits(model, removed, check_delivery=False)
    shape = len(part), len(harmful) + len(harmless), -1
    for n, logits_NV in zip(part, logits_MV.reshape(shape), strict=True):
      found[n] = found[n]._replace(
        bypass=float(published_log_odds(logits_NV[: len(harmful)], refusal_ids).mean()),
        kl=float(divergence(plain_NV, logits_NV[len(harmful) :]).mean()),
      )
    tell(len(part))
  return found


def _of_one_block(
  vectors: Sequence[tuple[np.ndarray, int]], numbers: Sequence[int], most: int
) -> Iterator[list[int]]:
  """Give the numbers of candidates of one block at a time, at most so many."""
  for block in sorted({vectors[n][1] for n in numbers}):
    mine = [n for n in numbers if vectors[n][1] == block]
    for first in range(0, len(mine), most):
      yield mine[first : first + most]


def _induced(
  model: Model,
  vectors: Sequence[tuple[np.ndarray, int]],
  harmless: Sequence[Row],
  ids: Sequence[int],
) -> list[float]:
  """Add some candidates in one batch; one by one where one is not delivered, whose score is NaN."""
  added = [row for v in vectors for row in _edited(harmless, _addition(model, *v))]
  try:
    logits_MV = next_logits(model, added)
  except NotDelivered:
    if len(vectors) == 1:
      return [math.nan]
    return [value for v in vectors for value in _induced(model, [v], harmless, ids)]
  odds_CN = published_log_odds(logits_MV, ids).reshape(len(vectors), -1)
  return [float(x) for x in odds_CN.mean(axis=1)]


def _everywhere(model: Model, v_D: np.ndarray) -> Direction:
  return Direction(np.broadcast_to(v_D, (1, model.arch.num_blocks, len(v_D))), "candidate")


def _ablations(model: Model, v_D: np.ndarray) -> tuple[Edit, ...]:
  """Return the edits that ablate a candidate everywhere."""
  direction = _everywhere(model, v_D)
  return tuple(
    ablate(direction, blocks="all", tokens="all", site=site, allow_other_site=True)
    for site in ABLATED_SITES
  )


def _addition(model: Model, v_D: np.ndarray, block: int) -> tuple[Edit, ...]:
  """Return the edit that adds a candidate at its block."""
  return (add(_everywhere(model, v_D), 1.0, unit="raw", blocks=block, tokens="all"),)


def _edited(rows: Sequence[Row], edits: tuple[Edit, ...]) -> list[Row]:
  return [dataclasses.replace(row, edits=edits) for row in rows]


def log_odds(logits_NV: np.ndarray, refusal_ids: Sequence[int]) -> np.ndarray:
  """Return log(p / (1 - p)) of the refusal tokens' share p of the next token, float64 [N]."""
  refuses_V = np.zeros(logits_NV.shape[1], bool)
  refuses_V[list(refusal_ids)] = True
  found = np.empty(len(logits_NV))
  for first in range(0, len(found), _AT_ONCE):  # in float64 whole, they would not fit beside them
    z_NV = logits_NV[first : first + _AT_ONCE].astype(np.float64)
    yes_N, no_N = (logsumexp(z_NV[:, side_V], axis=1) for side_V in (refuses_V, ~refuses_V))
    found[first : first + _AT_ONCE] = yes_N - no_N
  return found


def published_log_odds(logits_NV: np.ndarray, refusal_ids: Sequence[int]) -> np.ndarray:
  """Return the same with the epsilon of the authors' code, which ends at 18.4 nats either way."""
  p_N = expit(log_odds(logits_NV, refusal_ids))
  return np.log(p_N + _SHARE_EPSILON) - np.log(1 - p_N + _SHARE_EPSILON)


def divergence(p_NV: np.ndarray, q_NV: np.ndarray) -> np.ndarray:
  """Return KL of next tokens by their logits, epsilon as in the authors' code, float64 [N]."""

  def share(z_NV: np.ndarray) -> np.ndarray:
    z_NV = z_NV.astype(np.float64)
    e_NV = np.exp(z_NV - z_NV.max(axis=1, keepdims=True))
    found: np.ndarray = e_NV / e_NV.sum(axis=1, keepdims=True)
    return found

  p, q = share(p_NV), share(q_NV)
  kl: np.ndarray = (p * (np.log(p + _KL_EPSILON) - np.log(q + _KL_EPSILON))).sum(axis=1)
  return kl
