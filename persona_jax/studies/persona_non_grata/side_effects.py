"""What personas do besides: refusals of harmless prompts, knowledge, change of what is said."""

import numpy as np
import pandas as pd

from persona_jax.stats.draws import Draws
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies.persona_non_grata.settings import Settings

COLUMNS = (
  "measure", "by", "arm", "persona", "n", "value", "low", "high", "missing", "reason",
)  # fmt: skip
_NO_INTERVAL = "mean over replicates; no interval"


def side_effects(
  settings: Settings, table: pd.DataFrame, utility: pd.DataFrame, matches: pd.DataFrame
) -> pd.DataFrame:
  """Return side effects by arm and persona; a measure that was not taken has no row.

  Args:
    settings: of the study.
    table: tidy rows of `generation.generate`.
    utility: of `utility.ask_items`.
    matches: of calibration.

  Returns:
    measure: "over_refusal" (share of harmless prompts that sound risky which are refused),
    "accuracy" (share of questions of MMLU answered right), "kl" (nats a token from the unedited
    model on harmless prompts), "trait" (shift on the questionnaire's items of the persona's own
    traits, as matches measure it; items of other traits are not asked, so that there is no
    cross-talk). by: how it was measured: "label" and "first_token" (exact probability that the
    answer begins as a refusal) for over_refusal, "letter" for accuracy, "match" for kl and trait.
    arm, persona ("" for none), n (values), value, low and high (95 % interval over prompts or
    questions crossed with replicates), missing (count), reason.
  """
  over = table[table["part"] == "over"]
  found = []
  if len(over):
    found.append(_rates(settings, "over_refusal", "first_token", over, 1 - over["p_bypass"]))
    if "label" in over and over["label"].notna().any():
      there = over["label"].isin(["bypass", "refuse", "degenerate"])
      refused = (over["label"] == "refuse").astype("float64").where(there)
      found.append(_rates(settings, "over_refusal", "label", over, refused))
  if len(utility):
    asked = utility.rename(columns={"item_id": "prompt_id"})
    found.append(_rates(settings, "accuracy", "letter", asked, asked["correct"]))
  found += [_matched(matches, scale) for scale in ("kl", "trait")]
  found = [one for one in found if len(one)]
  columns = list(COLUMNS)
  return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _rates(
  settings: Settings, measure: str, by: str, table: pd.DataFrame, y: pd.Series
) -> pd.DataFrame:
  """Return the mean of every arm and persona with its interval, from draws of one seed."""
  rows = []
  for arm, mine in table.assign(y=y).groupby("arm", sort=False):
    outcomes = Outcomes.of(mine, "y", arms=[arm])
    replicates = len(outcomes.replicates)
    draws = Draws.of(outcomes.cluster_N, replicates, draws=settings.draws, seed=settings.seed)
    rows.append(draws.rates(outcomes))
  found = pd.concat(rows, ignore_index=True).assign(measure=measure, by=by)
  found[["low", "high"]] = found[["low", "high"]].clip(0.0, 1.0)  # draws may leave the range
  return found


def _matched(matches: pd.DataFrame, scale: str) -> pd.DataFrame:
  """Return what matches have measured on a scale, prompted and steered: means over replicates."""
  rows = []
  target, achieved = f"target_{scale}", f"achieved_{scale}"
  if {target, achieved} <= set(matches.columns):
    for by, of_match in matches.groupby("by", sort=False):
      for persona, mine in of_match.groupby("persona", sort=False):
        rows.append((f"AS:{by}", persona, mine[achieved]))
    prompted = matches.drop_duplicates(["persona", "replicate"])
    for persona, mine in prompted.groupby("persona", sort=False):
      rows.append(("SP", persona, mine[target]))
  return pd.DataFrame(
    [
      {
        "measure": scale,
        "by": "match",
        "arm": arm,
        "persona": persona,
        "n": int(values.notna().sum()),
        "value": float(values.mean()),
        "low": np.nan,
        "high": np.nan,
        "missing": int(values.isna().sum()),
        "reason": _NO_INTERVAL,
      }
      for arm, persona, values in rows
      if values.notna().any()
    ],
    columns=list(COLUMNS),
  )
