"""What candidates for the refusal direction do to the next token, many of them in one batch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
) -> list[Scores]:
  """Score candidates; the rows of as many of them as fill a tile run together.

  One candidate by itself is some twenty rows, for which the host lays out tables of edits at every
  site of every block; a tile of them lays out as many tables once.

  Args:
    model: the model.
    vectors: of each candidate, [D], and the block at which it is added.
    harmful, harmless: prompts to try them on.
    refusal_ids: tokens with which refusals begin.
    progress: called with the candidates tried and their number.
  """
  plain_NV = next_logits(model, harmless)
  size = max(1, TILE_ROWS // (len(harmful) + len(harmless)))
  found: list[Scores] = []
  for first in range(0, len(vectors), size):
    part = vectors[first : first + size]
    found += _tried(model, part, harmful, harmless, plain_NV, refusal_ids)
    if progress is not None:
      progress(len(found), len(vectors))
  return found


def _tried(
  model: Model,
  vectors: Sequence[tuple[np.ndarray, int]],
  harmful: Sequence[Row],
  harmless: Sequence[Row],
  plain_NV: np.ndarray,
  ids: Sequence[int],
) -> list[Scores]:
  """Score some candidates in one batch; one by one where something is not delivered."""
  there = [n for n, (v_D, _) in enumerate(vectors) if v_D.any()]
  removed, added = [], []
  for n in there:
    both, alone = _edits(model, *vectors[n])
    # A harmless prompt may hold nothing of the candidate but rounding.
    removed += [*_edited(harmful, both), *_edited(harmless, both)]
    added += _edited(harmless, alone)
  found = [_NONE] * len(vectors)
  if not there:
    return found
  try:
    shape = len(there), len(harmful) + len(harmless), -1
    ablated_CNV = next_logits(model, removed, check_delivery=False).reshape(shape)
    induced_CNV = next_logits(model, added).reshape(len(there), len(harmless), -1)
  except NotDelivered:
    if len(vectors) == 1:
      return found
    return [one for v in vectors for one in _tried(model, [v], harmful, harmless, plain_NV, ids)]
  for n, ablated_NV, induced_NV in zip(there, ablated_CNV, induced_CNV, strict=True):
    found[n] = Scores(
      float(published_log_odds(ablated_NV[: len(harmful)], ids).mean()),
      float(published_log_odds(induced_NV, ids).mean()),
      float(divergence(plain_NV, ablated_NV[len(harmful) :]).mean()),
    )
  return found


def _edits(model: Model, v_D: np.ndarray, block: int) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
  """Return the edits that ablate a candidate everywhere, and that add it at its block."""
  v_SLD = np.broadcast_to(v_D, (1, model.arch.num_blocks, len(v_D)))
  direction = Direction(v_SLD, "candidate")
  removed = tuple(
    ablate(direction, blocks="all", tokens="all", site=site, allow_other_site=True)
    for site in ABLATED_SITES
  )
  return removed, (add(direction, 1.0, unit="raw", blocks=block, tokens="all"),)


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
