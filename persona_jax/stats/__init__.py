"""Statistics with intervals, and the tests of the core study on one table of bootstrap draws.

`intervals`: rates, means, paired differences, rank correlations, dose slopes of plain columns. The
rest works on `Outcomes` (arms × personas × replicates × prompts) and shared `Draws`.
"""

from persona_jax.stats.association import (
  Association,
  clustered_logit,
  length_matched,
  matched_difference,
)
from persona_jax.stats.calibration import calibrated, two_way_error
from persona_jax.stats.census import Census, census, cross_validated_r2, predict
from persona_jax.stats.draws import Contrasts, Draws, interval, p_above, p_below
from persona_jax.stats.equivalence import (
  DoseParts,
  Equivalence,
  dose_parts,
  equivalence,
  equivalence_of_estimate,
)
from persona_jax.stats.families import adjust, holm, specificity
from persona_jax.stats.intervals import (
  Estimate,
  difference,
  dose_slope,
  mean,
  rate,
  spearman,
)
from persona_jax.stats.inversion import (
  GailSimon,
  crossings,
  gail_simon,
  inversion_p,
  inversions,
  qualitative_interaction,
)
from persona_jax.stats.mixed import MixedModel, mixed_model
from persona_jax.stats.outcomes import Outcomes
from persona_jax.stats.permutation import (
  PermutationTest,
  naive_permutation,
  rank_permutation,
  signed_group,
  signed_permutation,
)
from persona_jax.stats.ppi import ppi_mean, ppi_sampled_mean
from persona_jax.stats.rankings import (
  Preserved,
  RankCorrelation,
  Unpredictable,
  distinguishable_pairs,
  preserved,
  rank_correlation,
  reliability,
  spearman_rows,
  unpredictable,
)

__all__ = [
  "Association",
  "Census",
  "Contrasts",
  "DoseParts",
  "Draws",
  "Equivalence",
  "Estimate",
  "GailSimon",
  "MixedModel",
  "Outcomes",
  "PermutationTest",
  "Preserved",
  "RankCorrelation",
  "Unpredictable",
  "adjust",
  "calibrated",
  "census",
  "clustered_logit",
  "cross_validated_r2",
  "crossings",
  "difference",
  "distinguishable_pairs",
  "dose_parts",
  "dose_slope",
  "equivalence",
  "equivalence_of_estimate",
  "gail_simon",
  "holm",
  "interval",
  "inversion_p",
  "inversions",
  "length_matched",
  "matched_difference",
  "mean",
  "mixed_model",
  "naive_permutation",
  "p_above",
  "p_below",
  "ppi_mean",
  "ppi_sampled_mean",
  "predict",
  "preserved",
  "qualitative_interaction",
  "rank_correlation",
  "rank_permutation",
  "rate",
  "reliability",
  "signed_group",
  "signed_permutation",
  "spearman",
  "spearman_rows",
  "specificity",
  "two_way_error",
  "unpredictable",
]
