"""Which tables stand on the report's page, under which heading, and what names their rows."""

from collections.abc import Mapping

import pandas as pd

from persona_jax.report.study_page import Listing
from persona_jax.studies.persona_non_grata.legends import LEGENDS, legend

# Of single points of a solve, or as long as the Parquet file.
_UNSHOWN = {"matches": ("r2", "unreached"), "geometry_cosines": ("reason",)}
# heading, columns that name a row
_TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
  "effects": ("T2 Rates by persona and method, with intervals", ("arm", "persona")),
  "rates": ("T2 Labels by arm and persona", ("arm", "persona")),
  "odds": ("T2 Change of refusal log-odds at the first token", ("arm", "persona")),
  "rankings": ("T3 Rank correlations", ("x", "y")),
  "inversions": ("T4 Inversions", ("match", "persona", "direction")),
  "inversions_confirm": ("T4 Inversions on the confirm split", ("match", "persona", "direction")),
  "rates_confirm": ("T4 Labels on the confirm split", ("arm", "persona")),
  "interaction": ("T4 Qualitative interaction, and crossings of pairs", ("match",)),
  "matches": ("T5 Matched strength", ("persona", "replicate", "by")),
  "controls": ("T6 Controls", ("persona",)),
  "bands": ("T6 What random directions do, as a band", ("measure",)),
  "control_rates": ("T6 What single control directions do", ("control", "persona", "condition")),
  "doses": ("T6 Odd and even parts of dose curves", ("persona", "dose")),
  "dose_curves": ("T6 Dose curves", ("persona", "kappa")),
  "mediation": ("T7 Mediation: parts of the direction, and floors", ("persona", "variant")),
  "geometry_alignment": ("T7 Alignment with refusal, and what it does", ("direction", "block")),
  "geometry_cosines": ("T7 Cosines by inner product", ("direction", "block", "metric")),
  "geometry_linearity": ("T7 Linearity", ("persona", "block", "coef", "outcome", "read")),
  "geometry_regressions": ("T7 The effect regressed over directions", ("outcome", "predictor")),
  "geometry_shifts": ("T7 Cosines a block to either side", ("direction", "block")),
  "judges": ("T8 Judges against known labels", ("judge", "source", "label")),
  "dif": ("T8 Errors of judges by persona", ("judge", "source", "persona", "error")),
  "style": ("T8 Harmless answers called harmful", ("judge", "what", "persona", "method")),
  "ppi": ("T8 Rates corrected for the judge's errors", ("arm", "persona")),
  "annotators": ("T8 Agreement of annotators", ("annotator", "other")),
  "lacking": ("T8 What was not validated, and why", ("table",)),
  "missing": ("T9 Missing, censored and invalid rows", ("what", "which")),
  "side_effects": ("Side effects", ("measure", "by", "arm", "persona")),
  "expression": ("Trait expression under prompts", ("trait",)),
  "kept": ("Answers kept for directions", ("contrast",)),
  "quality": ("Directions at the steered block", ("contrast", "block")),
  "specifications": ("Specification curve", ("block", "window", "rule", "kappa")),
}
_TESTED = ("rankings", "inversions", "inversions_confirm", "interaction")
_BY_BLOCK = ("geometry_alignment", "geometry_cosines", "geometry_shifts", "quality")


def listings(tables: Mapping[str, pd.DataFrame], untested: str) -> list[Listing]:
  """Return the tables to show, those without a row left out.

  Args:
    tables: of the study, by name.
    untested: why nothing is tested, or "": rankings and inversions are then not shown.
  """
  found = []
  for name, (title, key) in _TABLES.items():
    table = tables.get(name)
    if table is None or table.empty or (untested and name in _TESTED):
      continue
    where: dict[str, object] = {}
    if name in _BY_BLOCK:  # other blocks are in the files, and in the figures
      where["block"] = _steered(tables)
      title = f"{title}, at the steered block" if "steered" not in title else title
    left = tuple(c for c in table if c not in (*key, *_UNSHOWN.get(name, ())))
    words = legend(name, list(table)) if name.removesuffix("_confirm") in LEGENDS else ""
    found.append(Listing(name, title, key, words, left, where=where))
  return found


def _steered(tables: Mapping[str, pd.DataFrame]) -> int:
  """Return the block that is edited."""
  return int(tables["matches"]["block"].iloc[0])
