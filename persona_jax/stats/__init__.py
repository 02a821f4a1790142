"""Statistics with intervals: rates, means, paired differences, rank correlations, dose slopes."""

from persona_jax.stats.intervals import (
  Estimate,
  difference,
  dose_slope,
  mean,
  rate,
  spearman,
)

__all__ = ["Estimate", "difference", "dose_slope", "mean", "rate", "spearman"]
