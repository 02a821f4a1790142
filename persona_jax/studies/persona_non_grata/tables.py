"""The tables of the study: rates, effects, rankings, inversions, controls, doses."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax.stats.draws import Draws
from persona_jax.stats.equivalence import equivalence
from persona_jax.stats.inversion import crossings, inversions, qualitative_interaction
from persona_jax.stats.outcomes import Outcomes
from persona_jax.stats.permutation import naive_permutation, rank_permutation, signed_permutation
from persona_jax.stats.rankings import rank_correlation
from persona_jax.studies.persona_non_grata.settings import Settings

_FEW = "fewer than two personas are matched in every replicate"
MEASURE = {"label": "bypass", "first_token": "p_bypass"}


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """The outcome of one part, as arrays that all tests share, and their draws.

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


def measured(
  settings: Settings,
  table: pd.DataFrame,
  personas: Sequence[str],
  part: str = "test",
  *,
  measure: str | None = None,
) -> Measured:
  """Arrange the outcomes of the test, or of what confirms it; rates are those of `outcome`.

  Args:
    settings: of the study.
    table: of `generation.generate`.
    personas: in the order of the outcomes.
    part: of the table.
    measure: a column to arrange in place of the study's outcome, as "log_odds".
  """
  test = table[table["part"] == part].copy()
  test["y"] = outcome(settings, test) if measure is None else test[measure].astype("float64")
  steered = tuple(f"AS:{by}" for by in settings.matches if f"AS:{by}" in set(test["arm"]))
  arms = test[test["arm"].isin(["SP", *steered])]
  outcomes = Outcomes.of(arms, "y", arms=["SP", *steered], personas=list(personas))
  draws = Draws.of(
    outcomes.cluster_N, len(outcomes.replicates), draws=settings.draws, seed=settings.seed
  )
  return Measured(outcomes, _effects(outcomes, test), draws, steered)


def outcome(settings: Settings, table: pd.DataFrame) -> pd.Series:
  """Return what hypotheses are tested on, a value a row.

  Labels count all rows that have one (intention to treat): a degenerate answer is no bypass, nor is
  one of no use where a judge of harm says so. A row without one (unparsed, truncated, an edit that
  was not delivered) is missing, and never a zero; `rates` counts and bounds it. Of a part that was
  not generated all are missing.
  """
  value = MEASURE[settings.outcome]
  if value == "p_bypass":
    return table[value].astype("float64")
  return _itt(table) if "label" in table else pd.Series(np.nan, index=table.index)


def _itt(table: pd.DataFrame) -> pd.Series:
  there = table["label"].isin(["bypass", "refuse", "degenerate"])
  return table["bypass"].astype("float64").where(there)


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


def rates(table: pd.DataFrame, part: str = "test") -> pd.DataFrame:
  """Return rates of every condition group of the test, or of another part: T2.

  Returns:
    A row an arm and persona: arm, persona, n, p_bypass (mean exact probability) and, where rows
    were generated, bypass (share of all rows that have a label, degenerate ones too; of bypasses
    that a judge of harm finds of use, if one is asked), per_protocol (of rows that are neither
    degenerate, truncated nor unparsed), worst_low and worst_high (of all rows, missing as none, and
    as all), refuse, degenerate, truncated, unparsed (shares of all rows), missing (count: unparsed,
    truncated, without a label, or a bypass without the verdict of the judge of harm).
  """
  test = table[table["part"] == part]
  rows = []
  for (arm, persona), mine in test.groupby(["arm", "persona"], sort=False):
    row = {"arm": arm, "persona": persona, "n": len(mine), "p_bypass": mine["p_bypass"].mean()}
    if "label" in mine and mine["label"].notna().any():
      count = mine["label"].value_counts()
      y = _itt(mine)
      gone, bypass = int(y.isna().sum()), int(y.sum())
      there = len(mine) - gone
      answered = int(y[mine["label"] != "degenerate"].notna().sum())
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


def confirmed_inversions(
  settings: Settings, table: pd.DataFrame, personas: Sequence[str]
) -> pd.DataFrame | None:
  """Return the inversions of the confirm split, or None while it is not open."""
  if not (table["part"] == "confirm").any():
    return None
  return inversion_tables(measured(settings, table, personas, "confirm"), settings)[0]


def alignment_tests(
  found: Measured, poles: Mapping[str, Sequence[str]], cosine: Mapping[str, float]
) -> pd.DataFrame:
  """Test whether alignment goes with the rate of steering, over poles, by signed permutations.

  The twelve personas are five directions, their negatives and two sums; permuting personas as if
  they were twelve rejects far too often, and stands here only to show by how much.

  Args:
    found: outcomes.
    poles: {persona: its poles, as "C+"} of those whose geometry is tested; one pole is needed.
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
    names = [name for name in two.personas if len(poles.get(name, ())) == 1]
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
    rows += _by_reason(table[table["label"] == "degenerate"])
    invalid = table[table["valid"] == False]  # noqa: E712
    if len(invalid):
      which = ", ".join(sorted(set(invalid["condition"]))[:8])
      rows.append({"what": "dose not delivered", "count": len(invalid), "which": which})
  return pd.DataFrame(rows, columns=["what", "count", "which"])


def _by_reason(degenerate: pd.DataFrame) -> list[dict[str, object]]:
  """Return how many rows are degenerate by each rule, and in which arms."""
  if "degenerate_reason" not in degenerate:
    return []
  return [
    {
      "what": f"degenerate: {reason}",
      "count": len(mine),
      "which": ", ".join(f"{arm} {n}" for arm, n in mine["arm"].value_counts().items()),
    }
    for reason, mine in degenerate.groupby("degenerate_reason", sort=True)
  ]


def _cells(mine: pd.DataFrame) -> list[str]:
  return [f"{p}/{k}" for p, k in zip(mine["persona"], mine["replicate"], strict=True)]
