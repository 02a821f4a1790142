"""Tables of steering beside its controls, and of dose curves, in exact probabilities."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_jax import stats
from persona_jax.geometry.mediation import kept_fraction, restored_fraction
from persona_jax.stats.draws import Draws
from persona_jax.stats.equivalence import dose_parts
from persona_jax.stats.families import specificity
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies.persona_non_grata.settings import Settings


def control_table(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return what each persona's direction does beside its controls: T6, in exact probabilities.

  Returns:
    A row a persona: persona, effect (mean change of the probability of a bypass, v), low, high,
    p_<code> (two-sided specificity among the random controls of a code), odd, even (half difference
    and half sum of v and -v), kept_v_perp_r, kept_v_perp_subspace (where there is one),
    kept_v_par_r (share of the effect that a part has), restored_r and restored_random (share that a
    floor takes back), each with _low and _high.
  """
  part = table[table["part"] == "controls"]
  if part.empty:
    return pd.DataFrame()
  # Samples of a prompt have one exact probability.
  wide = part.groupby(["control", "persona", "condition", "prompt_id"])["p_bypass"].first()
  base = part[part["arm"] == "B0"].groupby("prompt_id")["p_bypass"].first()
  cluster = part.drop_duplicates("prompt_id").set_index("prompt_id")["cluster"].loc[base.index]

  def of(code: str, persona: str) -> np.ndarray | None:
    try:
      return wide.loc[code, persona].groupby("prompt_id").mean().loc[base.index].to_numpy()
    except KeyError:
      return None

  random = {
    code: (wide.loc[code].groupby("condition").mean() - base.mean()).to_numpy()
    for code in ("R-iso", "R-cov", "R-shuf", "R-plac")
    if code in wide.index.get_level_values("control")
  }
  y_0, clusters = base.to_numpy(), cluster.to_numpy()
  options = {"draws": settings.draws, "seed": settings.seed}
  rows = []
  for persona in [p for p in part["persona"].drop_duplicates() if p]:
    y_v = of("v", persona)
    if y_v is None:
      continue
    effect = stats.difference(y_v, y_0, clusters, **options)  # type: ignore[arg-type]
    row: dict[str, object] = {
      "persona": persona,
      "effect": effect.value,
      "low": effect.low,
      "high": effect.high,
    }
    for code, values in random.items():
      row[f"p_{code}"] = specificity(effect.value, values, alternative="two-sided")
    turned = of("-v", persona)
    if turned is not None:
      row["odd"] = float((y_v - turned).mean() / 2)
      row["even"] = float((y_v + turned).mean() / 2 - y_0.mean())
    for name, code, fraction in (
      ("kept_v_perp_r", "v_perp_r", kept_fraction),
      ("kept_v_perp_subspace", "v_perp_subspace", kept_fraction),
      ("kept_v_par_r", "v_par_r", kept_fraction),
      ("restored_r", "floor r", restored_fraction),
      ("restored_random", "floor random", restored_fraction),
    ):
      y = of(code, persona)
      if y is None:
        continue
      pair = (y, y_v) if fraction is kept_fraction else (y_v, y)
      share = fraction(*pair, y_0, clusters, **options)  # type: ignore[arg-type]
      # Of no effect there is no share: the ratio of two chances says nothing.
      value = share.value if effect.excludes(0.0) else np.nan
      row |= {name: value, f"{name}_low": share.low, f"{name}_high": share.high}
    rows.append(row)
  return pd.DataFrame(rows)


def dose_table(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return odd and even parts of every direction's dose curve, in exact probabilities."""
  part = table[(table["part"] == "dose") & (table["arm"].isin(["dose", "B0"]))]
  if part.empty:
    return pd.DataFrame()
  base = part[part["arm"] == "B0"]
  found = []
  for persona in [p for p in part["persona"].drop_duplicates() if p]:
    mine = part[part["persona"] == persona]
    doses = sorted(mine["kappa"].drop_duplicates())
    rows = pd.concat([mine, base.assign(persona=persona)], ignore_index=True)
    rows = rows.assign(arm=[f"{k:+g}" for k in rows["kappa"]], replicate=0)
    names = [f"{k:+g}" for k in (*doses, 0.0)]
    outcomes = Outcomes.of(rows, "p_bypass", arms=names)
    draws = Draws.of(outcomes.cluster_N, 1, draws=settings.draws, seed=settings.seed)
    coefs: Mapping[str, float] = dict(zip(names, (*doses, 0.0), strict=True))
    parts = dose_parts(outcomes, draws, coefs)
    found.append(
      parts.table.assign(
        persona=persona, p_odd=parts.p_odd, p_even=parts.p_even, reason=parts.reason
      )
    )
  return pd.concat(found, ignore_index=True)
