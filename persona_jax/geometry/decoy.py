"""Cosine beside coupling: where alignment with refusal says nothing about what an edit does.

A refusal direction that is read out of activations may hold parts that no later block reads; a
direction can align with those and leave refusal alone. So each cosine stands beside the derivative
of the refusal log-odds, each with the band of control directions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_jax import stats
from persona_jax.directions.direction import Direction
from persona_jax.engine.rows import derive_seed
from persona_jax.geometry.cosines import band, cosines, means, specificity
from persona_jax.geometry.gradients import Gradients
from persona_jax.geometry.metrics import EUCLIDEAN, Metric

# (cosine outside its band, coupling outside its band) → what the table says.
VERDICTS = {
  (True, True): "aligned and coupled",
  (True, False): "cosine does not explain",
  (False, True): "coupled, not aligned",
  (False, False): "neither",
}


def alignment_table(
  directions: Sequence[Direction],
  r: Direction,
  gradients: Gradients,
  null: Sequence[Direction],
  *,
  metric: Metric = EUCLIDEAN,
  confidence: float = 0.95,
  draws: int = 2000,
  seed: int = 0,
) -> pd.DataFrame:
  """Put the cosine of directions with refusal beside their coupling to it, block by block.

  Args:
    directions: R directions v.
    r: the refusal direction.
    gradients: of the refusal log-odds, at the blocks that are wanted.
    null: control directions, e.g. `pj.controls(…, "R-cov")`.
    metric: of the cosines.
    confidence: of bands and intervals.
    draws, seed: of the bootstrap over prompts.

  Returns:
    A row a direction and block: direction, block; cos, cos_null_low, cos_null_high, cos_p;
    coupling, d log-odds / dα of adding α v̂, in nats a unit of h, mean over prompts, with low and
    high of a bootstrap over prompts; coupling_null_low, coupling_null_high, coupling_p; verdict,
    one of `VERDICTS` or "undefined" where there is no vector.

  Raises:
    ValueError: directions that do not compare, or no null.
  """
  if not len(null):
    raise ValueError("null= is empty; give control directions, as of pj.controls.")
  v_RLD, null_KLD, r_LD = means(directions, r), means(null, r), r.mean_LD
  num_prompts = len(gradients.log_odds_PLD)
  rng = np.random.default_rng(derive_seed("alignment", seed))
  weight_BP = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), draws)
  tails = [(1 - confidence) / 2, (1 + confidence) / 2]
  parts = []
  for block in gradients.blocks:
    cos_R = cosines(v_RLD[:, block], r_LD[block], block, metric)
    cos_K = cosines(null_KLD[:, block], r_LD[block], block, metric)
    by_prompt_RP = gradients.on_log_odds_of_prompts(directions, block)
    coupling_R = by_prompt_RP.mean(axis=1)
    coupling_K = gradients.on_log_odds_of_prompts(null, block).mean(axis=1)
    rows: dict[str, Any] = {"direction": [d.concept for d in directions], "block": block}
    outside = []
    for name, value_R, null_K in (("cos", cos_R, cos_K), ("coupling", coupling_R, coupling_K)):
      low, high = band(null_K, confidence)
      rows[name] = value_R
      if name == "coupling":
        drawn_RB = by_prompt_RP @ weight_BP.T / num_prompts
        rows["low"], rows["high"] = (
          np.quantile(drawn_RB, tails, axis=1) if num_prompts > 1 else (np.nan, np.nan)
        )
      rows[f"{name}_null_low"], rows[f"{name}_null_high"] = low, high
      rows[f"{name}_p"] = specificity(value_R, null_K)
      outside.append((value_R < low) | (value_R > high))
    undefined_R = np.isnan(cos_R) | np.isnan(coupling_R)
    rows["verdict"] = [
      "undefined" if undefined else VERDICTS[bool(aligned), bool(coupled)]
      for undefined, aligned, coupled in zip(undefined_R, *outside, strict=True)
    ]
    parts.append(pd.DataFrame(rows).assign(order=np.arange(len(cos_R))))
  table = pd.concat(parts, ignore_index=True).sort_values(["order", "block"], kind="stable")
  return table.drop(columns="order").reset_index(drop=True)


def alignment_correlation(
  table: pd.DataFrame, *, confidence: float = 0.95, draws: int = 4000, seed: int = 0
) -> pd.DataFrame:
  """Return Spearman's correlation of cosine and coupling over directions, by block.

  Directions count as independent: leave out negatives and sums of others.

  Args:
    table: of `alignment_table`.
    confidence, draws, seed: of the interval (BCa, over directions).

  Returns:
    A row a block: block, rho, low, high, n, reason.
  """
  rows = []
  for block, part in table.groupby("block"):
    found = stats.spearman(
      part["cos"],
      part["coupling"],
      confidence=confidence,
      missing="drop",
      draws=draws,
      seed=seed,
    )
    rows.append(
      {
        "block": int(block),
        "rho": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "reason": found.reason,
      }
    )
  return pd.DataFrame(rows)
