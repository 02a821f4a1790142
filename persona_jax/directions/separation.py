"""At which blocks held-out positives and negatives lie apart along a direction, with intervals."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of
from persona_jax.directions.tokens import capture_at
from persona_jax.edits.window import Window
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt


def separation(
  model: Model,
  direction: Direction,
  positives: Sequence[Prompt],
  negatives: Sequence[Prompt],
  *,
  tokens: str | Window | None = None,
  factors: Sequence[Sequence[Hashable]] = (),
  draws: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> pd.DataFrame:
  """Say how far held-out positives and negatives lie apart along a direction, by block.

  Args:
    model: the model.
    direction: it; prompts are read at its site.
    positives, negatives: pairs that it was not made of.
    tokens: where prompts are read (`tokens.window_of`); default where the direction was.
    factors: what pairs have in common, such as the question and the wording of each; see
      `separation_of`.
    draws: bootstrap draws.
    confidence: of the intervals.
    seed: of the draws.

  Returns:
    A row a block with a vector: block, auc (the share of positives and negatives that are the right
    way round, ties half) and d (Cohen's, by the pooled standard deviation), each with _low and
    _high.

  Raises:
    ValueError: no pairs, unequal numbers, a prompt without such a token, or tokens that nobody
      knows.
  """
  z_RNK, blocks = projections(model, [direction], [*positives, *negatives], tokens=tokens)
  x_NK, y_NK = halves_of(z_RNK[0], positives, negatives)
  options = {"draws": draws, "confidence": confidence, "seed": seed}
  return separation_of(x_NK, y_NK, factors=factors, **options).assign(block=blocks)  # type: ignore[arg-type]


def projections(
  model: Model,
  directions: Sequence[Direction],
  prompts: Sequence[Prompt],
  *,
  tokens: str | Window | None = None,
) -> tuple[np.ndarray, list[int]]:
  """Project prompts on the unit vectors of directions, at the blocks where all have one.

  Args:
    model: the model.
    directions: R directions of one site.
    prompts: N prompts.
    tokens: where they are read; default where the first direction was.

  Returns:
    Projections, float64 [R, N, K], and the K blocks.

  Raises:
    ValueError: no block in common, a prompt without such a token, or tokens that nobody knows.
  """
  first = directions[0]
  if tokens is None:
    tokens = first.provenance.get("tokens")
  if tokens is None:
    raise ValueError(
      f"direction {first.concept!r} does not say at which tokens it was read; say so (tokens=...)."
    )
  blocks = sorted(set.intersection(*(set(blocks_of(d)) for d in directions)))
  if not blocks:
    raise ValueError(f"{[d.concept for d in directions]} have vectors at no block in common.")
  capture = capture_at(first.site, tokens, blocks=blocks, bank=list(directions))
  reads = model.capture(prompts, capture)
  z_RNK = np.stack([reads[first.site, b].T for b in blocks], axis=-1).astype(np.float64)
  empty = np.flatnonzero(np.isnan(z_RNK).any(axis=(0, 2)))
  if len(empty):
    raise ValueError(f"prompts {empty[:5].tolist()} have no token at {tokens!r}.")
  return z_RNK, blocks


def halves_of(
  z_MK: np.ndarray, positives: Sequence[Any], negatives: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Cut rows of positives followed by negatives in two.

  Raises:
    ValueError: no pairs, or unequal numbers.
  """
  n = len(positives)
  if not n or n != len(negatives):
    raise ValueError(f"{n} positives and {len(negatives)} negatives; give as many of each.")
  return z_MK[:n], z_MK[n:]


def separation_of(
  x_NK: np.ndarray,
  y_NK: np.ndarray,
  *,
  factors: Sequence[Sequence[Hashable]] = (),
  draws: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> pd.DataFrame:
  """Return the table of `separation` for projections of pairs, [N, K].

  The intervals are of a bootstrap over pairs or, where pairs have something in common, over that:
  levels of every factor are drawn by themselves and their weights multiplied (the crossed, or
  "pigeonhole", bootstrap: Owen 2007, Ann. Appl. Stat. 1: 386-411). Pairs of one question are no
  independent evidence. Percentiles are corrected for bias (BC of Efron 1987, JASA 82: 171-185,
  without the acceleration): draws repeat questions, have less spread than all of them, and their d
  lies far above the estimate. Of few questions, of three or four without wordings above all,
  intervals hold the truth less often than they say (docs/directions.md).

  Args:
    x_NK, y_NK: projections of positives and negatives at K blocks.
    factors: labels of the N pairs, a list for each factor; default each pair by itself.
    draws, confidence, seed: as of `separation`.

  Raises:
    ValueError: no pairs, or a factor that does not have one label a pair.
  """
  n, blocks = x_NK.shape
  if not n:
    raise ValueError("there are no pairs to tell apart.")
  weight_BN = _weights(n, factors, draws, np.random.default_rng(seed))
  total_B = weight_BN.sum(axis=1)
  rows: list[dict[str, Any]] = []
  for block in range(blocks):
    x_N, y_N = x_NK[:, block], y_NK[:, block]
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may be empty
      auc_B = ((weight_BN @ wins(x_N, y_N)) * weight_BN).sum(axis=1) / total_B**2
    row: dict[str, Any] = {"block": block}
    for name, value_B in (("auc", auc_B), ("d", _effects(x_N, y_N, weight_BN))):
      row[name] = value_B[0]
      row[f"{name}_low"], row[f"{name}_high"] = _interval(value_B[0], value_B[1:], confidence)
    rows.append(row)
  return pd.DataFrame(rows)


def _interval(estimate: float, drawn_B: np.ndarray, confidence: float) -> tuple[float, float]:
  """Return the percentiles of draws, corrected for the share of them below the estimate."""
  drawn_B = drawn_B[~np.isnan(drawn_B)]  # what was drawn may be empty or have no spread
  if not len(drawn_B) or np.isnan(estimate):
    return np.nan, np.nan
  below = (drawn_B < estimate).mean() + 0.5 * (drawn_B == estimate).mean()
  shift = ndtri(np.clip(below, 1 / len(drawn_B), 1 - 1 / len(drawn_B)))
  tails = ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
  low, high = np.quantile(drawn_B, ndtr(2 * shift + tails))
  return float(low), float(high)


def wins(x_N: np.ndarray, y_M: np.ndarray) -> np.ndarray:
  """Return which positives lie above which negatives, [N, M]; a tie is half."""
  above: np.ndarray = (x_N[:, None] > y_M) + 0.5 * (x_N[:, None] == y_M)
  return above


def _weights(
  n: int, factors: Sequence[Sequence[Hashable]], draws: int, rng: np.random.Generator
) -> np.ndarray:
  """Return how often each pair is drawn, [B, N]; row 0 is the data themselves."""
  weight_BN = np.ones((draws, n))
  for factor in factors or [range(n)]:
    if len(factor) != n:
      raise ValueError(f"a factor has {len(factor)} labels for {n} pairs.")
    codes_N, levels = pd.factorize(pd.Series(list(factor)))
    count = len(levels)
    weight_BN *= rng.multinomial(count, np.full(count, 1 / count), draws)[:, codes_N]
  return np.concatenate([np.ones((1, n)), weight_BN])


def _effects(x_N: np.ndarray, y_N: np.ndarray, weight_BN: np.ndarray) -> np.ndarray:
  """Return Cohen's d of weighted classes, [B]; NaN where neither has a spread."""
  total_B = weight_BN.sum(axis=1)
  means, squares = [], []
  with np.errstate(divide="ignore", invalid="ignore"):
    for z_N in (x_N, y_N):
      mean_B = weight_BN @ z_N / total_B
      means.append(mean_B)
      squares.append((weight_BN * (z_N - mean_B[:, None]) ** 2).sum(axis=1))
    spread_B = np.sqrt((squares[0] + squares[1]) / np.maximum(1, 2 * total_B - 2))
    effects: np.ndarray = np.where(spread_B > 0, (means[0] - means[1]) / spread_B, np.nan)
  return effects
