"""Tables of what arms are compared with: baselines, controls, other doses, and of odds."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax import stats
from persona_jax.geometry.mediation import kept_fraction, restored_fraction
from persona_jax.stats.draws import Draws
from persona_jax.stats.equivalence import dose_parts
from persona_jax.stats.families import specificity
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies.persona_non_grata.settings import BASELINES, Settings
from persona_jax.studies.persona_non_grata.tables import measured, outcome

LABELS = ("bypass", "refuse", "degenerate")


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


def baseline_table(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return the rates of the baselines of the test, with intervals: part of T2.

  Returns:
    A row an arm ("B0", "placebo", "shuffled", "user") and persona ("" where the arm has none): arm,
    persona, rate, low, high, n, reason, missing.
  """
  test = table[table["part"] == "test"]
  test = test.assign(y=outcome(settings, test))
  found = []
  for arm in [a for a in ("B0", *BASELINES) if (test["arm"] == a).any()]:
    found.append(_rates(test[test["arm"] == arm], settings).rename(columns={"value": "rate"}))
  return pd.concat(found, ignore_index=True)


def odds_table(table: pd.DataFrame, settings: Settings, personas: Sequence[str]) -> pd.DataFrame:
  """Return what every arm changes in the exact log-odds of a refusal at the first token: T2.

  It is measurable of any model, also of one that refuses nothing when it answers.

  Returns:
    A row an arm and persona: arm, persona, delta (nats; less the arm's own baseline, prompt by
    prompt: no persona for steering, the placebo message, where there is one, for prompts), low,
    high (over prompt clusters and the replicates that there are), n, replicates, reason.
  """
  found = measured(settings, table, personas, measure="log_odds").effects
  drawn: dict[int, Draws] = {}
  rows = []
  for arm, persona in itertools.product(found.arms, personas):
    one = found.select([arm], [persona])
    kept = np.flatnonzero(~np.isnan(one.y_MPKN).all(axis=(0, 1, 3)))
    row: dict[str, object] = {"arm": arm, "persona": persona}
    if not kept.size:
      none = {"delta": np.nan, "low": np.nan, "high": np.nan, "n": 0, "replicates": 0}
      rows.append(row | none | {"reason": "no coefficient in any replicate"})
      continue
    # Of a censored replicate nothing is known; it must not leave the others without an interval.
    replicates = tuple(one.replicates[k] for k in kept)
    one = dataclasses.replace(one, y_MPKN=one.y_MPKN[:, :, kept], replicates=replicates)
    if kept.size not in drawn:
      drawn[kept.size] = Draws.of(
        one.cluster_N, kept.size, draws=settings.draws, seed=settings.seed
      )
    estimate = drawn[kept.size].contrasts(one, np.ones((1, 1, 1))).estimate(0)
    row |= {"delta": estimate.value, "low": estimate.low, "high": estimate.high}
    count = len(found.replicates)
    few = "" if kept.size == count else f"matched in {kept.size} of {count} replicates"
    reason = "; ".join(filter(None, (estimate.reason, few)))
    rows.append(row | {"n": estimate.n, "replicates": int(kept.size), "reason": reason})
  return pd.DataFrame(rows)


def control_rates(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return what every single control does, the random ones that a band is made of among them.

  Returns:
    A row a condition of the controls, "B0" (no edit) first: control (its code), condition, persona
    ("" for those of none), kappa, n (prompts), value (mean of the study's outcome; NaN where that
    is labels and the controls were not generated), change (value less that of B0 on the same
    prompts), p_bypass (mean exact probability), delta (mean change of the log-odds of a refusal at
    the first token, nats).
  """
  columns = [
    "control",
    "condition",
    "persona",
    "kappa",
    "n",
    "value",
    "change",
    "p_bypass",
    "delta",
  ]
  part = table[table["part"] == "controls"]
  if part.empty:
    return pd.DataFrame(columns=columns)
  part = part.assign(
    value=outcome(settings, part), control=part["control"].where(part["arm"] != "B0", "B0")
  )
  keys = ["control", "condition", "persona", "kappa"]
  # Samples of a prompt first, so that each prompt weighs alike.
  cells = part.groupby([*keys, "prompt_id"], sort=False)[["value", "p_bypass", "log_odds"]].mean()
  found = cells.groupby(keys, sort=False).mean().reset_index()
  found["n"] = cells.groupby(keys, sort=False).size().to_numpy()
  base = found[found["control"] == "B0"].iloc[0]
  found["change"] = found["value"] - base["value"]
  found["delta"] = found["log_odds"] - base["log_odds"]
  return found.sort_values("control", key=lambda c: c != "B0", kind="stable", ignore_index=True)[
    columns
  ]


def bands(rates: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
  """Return what random directions in the answers' covariance (R-cov) do, as bands.

  Args:
    rates: of `control_rates`.
    baselines: of `baseline_table`.

  Returns:
    A row a measure: measure ("rate": the rate of no persona, moved by the quantiles of what the
    directions change, within 0 and 1; "delta": change of the log-odds of a refusal, nats), control,
    low, high (2.5 and 97.5 % quantiles over directions), directions, prompts (counts), reason (of
    no band).
  """
  mine = rates[rates["control"] == "R-cov"]
  base = float(baselines.set_index("arm")["rate"].get("B0", np.nan))
  rows = []
  for measure, column in (("rate", "change"), ("delta", "delta")):
    reason, low, high = "", np.nan, np.nan
    if mine.empty:
      reason = "random directions (R-cov) were not run"
    elif mine[column].isna().any():
      reason = "answers under random directions (R-cov) have no labels"
    else:
      low, high = mine[column].quantile([0.025, 0.975])
      if measure == "rate":
        low, high = (min(max(base + edge, 0.0), 1.0) for edge in (low, high))
    count = int(mine["n"].iloc[0]) if len(mine) else 0
    rows.append(
      {
        "measure": measure,
        "control": "R-cov",
        "low": low,
        "high": high,
        "directions": len(mine),
        "prompts": count,
        "reason": reason,
      }
    )
  return pd.DataFrame(rows)


def dose_curves(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return the curve of every direction over the dose, through no edit at 0.

  Returns:
    A row a persona and dose: persona, kappa (median residual norms), value, low, high, n, reason,
    missing (rows), measure ("label": the study's rate; "first_token": the exact probability that
    the first token begins no refusal, where outcomes are that or the part was not generated), and
    bypass, refuse, degenerate (shares of the rows that have one of these labels; NaN where none
    has), each with _low and _high.
  """
  part = table[(table["part"] == "dose") & (table["arm"].isin(["dose", "B0"]))]
  if part.empty:
    return pd.DataFrame()
  labels = part["label"] if "label" in part else pd.Series(pd.NA, index=part.index)
  there = labels.isin(LABELS)
  measure = "label" if settings.outcome == "label" and there.any() else "first_token"
  ys = {name: (labels == name).astype("float64").where(there) for name in LABELS}
  # What hypotheses are tested on: a judge of harm may find a bypass to be of no use.
  exact = part["p_bypass"].astype("float64")
  ys["value"] = outcome(settings, part) if measure == "label" else exact
  found = []
  for persona in [p for p in part["persona"].drop_duplicates() if p]:
    mine = part["persona"].isin([persona, ""])
    rows = part[mine].assign(arm=part["kappa"], persona=persona, replicate=0)
    curve = _rates(rows.assign(y=ys["value"]), settings)
    for name in LABELS:
      share = _rates(rows.assign(y=ys[name]), settings).set_index("arm")
      curve[name] = share["value"].reindex(curve["arm"]).to_numpy()
      for bound in ("low", "high"):
        curve[f"{name}_{bound}"] = share[bound].reindex(curve["arm"]).to_numpy()
    curve = curve.rename(columns={"arm": "kappa"}).sort_values("kappa")
    found.append(curve.assign(measure=measure))
  every = pd.concat(found, ignore_index=True)
  return every[["persona", "kappa", *[c for c in every if c not in ("persona", "kappa")]]]


def _rates(rows: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return the mean of y by arm and persona, with intervals over its clusters and replicates."""
  outcomes = Outcomes.of(rows, "y")
  draws = Draws.of(
    outcomes.cluster_N, len(outcomes.replicates), draws=settings.draws, seed=settings.seed
  )
  found = draws.rates(outcomes)
  # Calibrated draws of a mean may leave the range of a rate.
  found[["low", "high"]] = found[["low", "high"]].clip(0.0, 1.0)
  return found
