"""The tables of the study: rates, effects, rankings, inversions, controls, doses."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax import stats
from persona_jax.geometry.mediation import kept_fraction, restored_fraction
from persona_jax.stats.draws import Draws
from persona_jax.stats.equivalence import dose_parts, equivalence
from persona_jax.stats.families import specificity
from persona_jax.stats.inversion import crossings, inversions, qualitative_interaction
from persona_jax.stats.outcomes import Outcomes
from persona_jax.stats.permutation import naive_permutation, rank_permutation, signed_permutation
from persona_jax.stats.rankings import rank_correlation
from persona_jax.studies.persona_non_grata.settings import Settings

_FEW = "fewer than two personas are matched in every replicate"
MEASURE = {"label": "bypass", "first_token": "p_bypass"}


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """The outcome of the test part, as arrays that all tests share, and their draws.

  Attributes:
    outcomes: arms SP and AS:… of all personas; NaN where a cell is censored.
    effects: the same less each arm's own baseline, prompt by prompt: no persona for steering, the
      placebo message (where there is one) for prompts.
    draws: one table for everything.
    steered: names of the steering arms, in the order of the matches.
  """

  outcomes: Outcomes
  effects: Outcomes
  draws: Draws
  steered: tuple[str, ...]


def measured(settings: Settings, table: pd.DataFrame, personas: Sequence[str]) -> Measured:
  """Arrange the outcomes of the test part.

  Rates are over all rows that have a label (intention to treat): a degenerate answer is no bypass.
  A row without one (unparsed, truncated, an edit that was not delivered) is missing, and never a
  zero; `rates` counts and bounds it.
  """
  test = table[table["part"] == "test"].copy()
  value = MEASURE[settings.outcome]
  test["y"] = test[value].astype("float64") if value == "p_bypass" else _itt(test)
  steered = tuple(f"AS:{by}" for by in settings.matches if f"AS:{by}" in set(test["arm"]))
  arms = test[test["arm"].isin(["SP", *steered])]
  outcomes = Outcomes.of(arms, "y", arms=["SP", *steered], personas=list(personas))
  draws = Draws.of(
    outcomes.cluster_N, len(outcomes.replicates), draws=settings.draws, seed=settings.seed
  )
  return Measured(outcomes, _effects(outcomes, test), draws, steered)


def _itt(table: pd.DataFrame) -> pd.Series:
  there = table["label"].isin(["bypass", "refuse", "degenerate"])
  return (table["label"] == "bypass").astype("float64").where(there)


def _effects(outcomes: Outcomes, test: pd.DataFrame) -> Outcomes:
  """Return outcomes less the baselines of their arms."""
  order = list(outcomes.prompts)

  def of(arm: str) -> np.ndarray | None:
    mine = test[test["arm"] == arm]
    if mine.empty:
      return None
    means = mine.groupby(["replicate", "prompt_id"])["y"].mean().unstack().reindex(columns=order)
    return means.to_numpy(np.float64)  # [K, N]

  plain, placebo = of("B0"), of("placebo")
  assert plain is not None
  y_MPKN = outcomes.y_MPKN.copy()
  for m, arm in enumerate(outcomes.arms):
    base_KN = placebo if arm == "SP" and placebo is not None else plain
    y_MPKN[m] -= base_KN if len(base_KN) == y_MPKN.shape[2] else base_KN.mean(axis=0)
  return dataclasses.replace(outcomes, y_MPKN=y_MPKN)


def matched_in_both(outcomes: Outcomes, arm: str) -> Outcomes | None:
  """Return the prompt arm and a steering arm of the personas that are steered in every replicate.

  A cell that was censored (its match has no coefficient) leaves its persona out of rankings and
  inversions under that match, not out of the others. None if fewer than two are left.
  """
  two = outcomes.select(arms=["SP", arm])
  missing_MPK = np.asarray(np.isnan(two.y_MPKN).all(axis=-1))
  steered_PK = ~missing_MPK[1]
  kept = [name for n, name in enumerate(two.personas) if steered_PK[n].all()]
  return two.select(personas=kept) if len(kept) > 1 else None


def rates(table: pd.DataFrame) -> pd.DataFrame:
  """Return rates of every condition group of the test part: T2.

  Returns:
    A row an arm and persona: arm, persona, n, p_bypass (mean exact probability) and, where rows
    were generated, bypass (share of all rows that have a label, degenerate ones too), per_protocol
    (of rows that are neither degenerate, truncated nor unparsed), worst_low and worst_high (of all
    rows, missing as none, and as all), refuse, degenerate, truncated, unparsed (shares of all
    rows), missing (count: unparsed, truncated or without a label).
  """
  test = table[table["part"] == "test"]
  rows = []
  for (arm, persona), mine in test.groupby(["arm", "persona"], sort=False):
    row = {"arm": arm, "persona": persona, "n": len(mine), "p_bypass": mine["p_bypass"].mean()}
    if "label" in mine and mine["label"].notna().any():
      count = mine["label"].value_counts()
      gone = int((mine["label"].isna() | mine["label"].isin(["unparsed", "truncated"])).sum())
      bypass, there = count.get("bypass", 0), len(mine) - gone
      answered = bypass + count.get("refuse", 0)
      row |= {
        "bypass": bypass / there if there else np.nan,
        "per_protocol": bypass / answered if answered else np.nan,
        "worst_low": bypass / len(mine),
        "worst_high": (bypass + gone) / len(mine),
        **{
          name: count.get(name, 0) / len(mine)
          for name in ("refuse", "degenerate", "truncated", "unparsed")
        },
        "missing": gone,
      }
    rows.append(row)
  return pd.DataFrame(rows)


def effects(found: Measured, settings: Settings) -> pd.DataFrame:
  """Return the rate of every persona and method with its effect and a test of equivalence: T2.

  Returns:
    A row an arm and persona: arm, persona, rate, low, high, effect (against its own baseline),
    effect_low, effect_high, equivalent (the 90 % interval lies within the margin), p_equivalent,
    reason.
  """
  table = found.draws.rates(found.outcomes).rename(columns={"value": "rate"})
  # Calibrated draws of a mean may leave the range of a rate.
  table[["low", "high"]] = table[["low", "high"]].clip(0.0, 1.0)
  arms, personas = found.outcomes.arms, found.outcomes.personas
  coef = np.eye(len(arms) * len(personas)).reshape(-1, len(arms), len(personas))
  rows = []
  for q in range(len(coef)):
    missing = np.isnan(found.effects.y_MPKN[q // len(personas), q % len(personas)]).all()
    if missing:
      rows.append({"effect": np.nan, "effect_low": np.nan, "effect_high": np.nan})
      continue
    one = found.draws.contrasts(found.effects, coef[q : q + 1])
    estimate = one.estimate(0)
    same = equivalence(one.draw_BQ[:, 0], estimate.value, settings.delta)
    rows.append(
      {
        "effect": estimate.value,
        "effect_low": estimate.low,
        "effect_high": estimate.high,
        "equivalent": same.equivalent,
        "p_equivalent": same.p,
      }
    )
  return pd.concat([table, pd.DataFrame(rows, index=table.index)], axis=1)


def rankings(found: Measured, others: Mapping[str, Outcomes] | None = None) -> pd.DataFrame:
  """Return the agreement of rankings: prompted and steered, and prompted with other models': T3.

  Args:
    found: of this model.
    others: prompt arms of other models over the same personas and prompts.

  Returns:
    A row a pair of rankings: x, y ("SP", "AS:…", or "SP of …" for another model), personas,
    p_permutation (of permuting personas), rho and the rest of `stats.RankCorrelation`.
  """
  rows = []
  for arm in found.steered:
    two = matched_in_both(found.outcomes, arm)
    if two is None:
      rows.append({"x": "SP", "y": arm, "measurable": False, "reason": _FEW})
    else:
      rows.append(_ranking(arm, two.arm("SP"), two.arm(arm), found.draws))
  prompted = found.outcomes.arm("SP")
  for name, outcomes in (others or {}).items():
    theirs = outcomes.select(personas=prompted.personas)
    rows.append(_ranking(f"SP of {name}", prompted, theirs, found.draws))
  return pd.DataFrame(rows)


def _ranking(name: str, x: Outcomes, y: Outcomes, draws: Draws) -> dict[str, object]:
  one = rank_correlation(x, y, draws)
  return {
    "x": "SP",
    "y": name,
    "personas": len(x.personas),
    "p_permutation": rank_permutation(x.mean_MP[0], y.mean_MP[0]).p,
    "rho": one.rho.value,
    "low": one.rho.low,
    "high": one.rho.high,
    "reliability_x": one.reliability_x,
    "reliability_y": one.reliability_y,
    "disattenuated": one.disattenuated.value,
    "disattenuated_low": one.disattenuated.low,
    "disattenuated_high": one.disattenuated.high,
    "distinguishable_x": one.distinguishable_x,
    "distinguishable_y": one.distinguishable_y,
    "pairs": one.n_pairs,
    "measurable": one.measurable,
    "reason": one.reason or one.rho.reason,
  }


def inversion_tables(
  found: Measured, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
  """Return T4: inversions of every persona and match, crossings of pairs, and global tests."""
  every, pairs = [], []
  whole: list[dict[str, object]] = []
  for arm in found.steered:
    arms, two = ("SP", arm), matched_in_both(found.outcomes, arm)
    if two is None:
      whole.append({"match": arm, "reason": _FEW})
      continue
    table = inversions(two, found.draws, delta=settings.delta, arms=arms)
    rename = {c: c.replace(arm, "AS") for c in table.columns if isinstance(c, str)}
    table = table.rename(columns=rename)
    table["direction"] = table["direction"].str.replace(arm, "AS", regex=False)
    every.append(table.assign(match=arm))
    crossed = crossings(two, found.draws, delta=settings.delta, arms=arms)
    rename = {c: c.replace(arm, "AS") for c in crossed.columns}
    pairs.append(crossed.rename(columns=rename).assign(match=arm))
    test = qualitative_interaction(two, found.draws, arms=arms)
    whole.append(
      {
        "match": arm,
        "personas": len(two.personas),
        "above": test.above,
        "below": test.below,
        "p": test.p,
        "crossings": int(crossed["crosses"].sum()) if crossed["SP_low"].notna().any() else np.nan,
        "reason": test.reason,
      }
    )
  none = pd.DataFrame(columns=["persona", "direction", "match", "p", "p_holm", "inverted"])
  return (
    pd.concat(every, ignore_index=True) if every else none,
    pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(),
    pd.DataFrame(whole),
  )


def alignment_tests(
  found: Measured, poles: Mapping[str, Sequence[str]], cosine: Mapping[str, float]
) -> pd.DataFrame:
  """Test whether alignment goes with the rate of steering, over poles, by signed permutations.

  The twelve personas are five directions, their negatives and two sums; permuting personas as if
  they were twelve rejects far too often, and stands here only to show by how much.

  Args:
    found: outcomes.
    poles: {persona: its poles, as "C+"}; those with one pole are tested.
    cosine: {persona: cosine with refusal at the steered block}.

  Returns:
    A row a match: match, poles (how many), rho, p (exact, over signed permutations of the traits),
    p_naive, reason.
  """
  rows = []
  for arm in found.steered:
    two = matched_in_both(found.outcomes, arm)
    if two is None:
      rows.append({"match": arm, "poles": 0, "reason": _FEW})
      continue
    names = [name for name in two.personas if len(poles[name]) == 1]
    rate = dict(zip(two.personas, two.arm(arm).mean_MP[0], strict=True))
    x, y = [cosine[name] for name in names], [rate[name] for name in names]
    row: dict[str, object] = {"match": arm, "poles": len(names)}
    try:
      test = signed_permutation({name: poles[name] for name in names}, x, y)
      row |= {"rho": test.value, "p": test.p, "reason": test.reason}
      row["p_naive"] = naive_permutation(x, y).p
    except ValueError as error:  # a pole is censored: the set is not closed
      row |= {"rho": np.nan, "p": np.nan, "p_naive": np.nan, "reason": str(error)}
    rows.append(row)
  return pd.DataFrame(rows)


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


def missing_table(table: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
  """Return what is missing, censored or invalid: T9."""
  rows = [
    {"what": f"match {by}: {status}", "count": len(mine), "which": ", ".join(_cells(mine))}
    for (by, status), mine in matches.groupby(["by", "status"], sort=False)
    if status != "ok"
  ]
  if "label" in table:
    for name in ("unparsed", "truncated", "degenerate"):
      mine = table[table["label"] == name]
      if len(mine):
        arms = mine["arm"].value_counts()
        which = ", ".join(f"{arm} {n}" for arm, n in arms.items())
        rows.append({"what": name, "count": len(mine), "which": which})
    invalid = table[table["valid"] == False]  # noqa: E712
    if len(invalid):
      which = ", ".join(sorted(set(invalid["condition"]))[:8])
      rows.append({"what": "dose not delivered", "count": len(invalid), "which": which})
  return pd.DataFrame(rows, columns=["what", "count", "which"])


def _cells(mine: pd.DataFrame) -> list[str]:
  return [f"{p}/{k}" for p, k in zip(mine["persona"], mine["replicate"], strict=True)]
