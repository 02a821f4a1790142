"""How often the tests of the core study are wrong when nothing is there, and what they can find.

`python -m tests.stats.simulations` prints the rates, the coverage and the negative controls of the
documentation and fails if one is outside its bounds; with `--power` also what can be found.
`tests/stats/simulations_test.py` holds smaller runs to the same bounds.

Studies come from a logistic-normal generator: log-odds = base + persona effect + prompt (SD 1.5,
shared by arms and models) + prompt × persona (SD .5) + persona × replicate (SD .3), binary
outcomes, a base rate of .20, 12 personas (ten poles, C−A−, C+A+), 200 prompts, 3 replicates. Both
prompts and replicates are random, so truth is the mean over all of them. Scenarios: "none" (no
persona effect), "equal" (the same effects in both arms and models), "independent" (effects of
every arm and model from trait vectors of their own, and alignments too).

Dimension letters: M arms, P personas, K replicates, N prompts, T traits, R census directions.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.stats

from persona_jax import stats
from persona_jax.stats.inversion import Replicates, inversion_p
from persona_jax.studies.persona_non_grata.hypotheses import slope_p

PERSONAS = ("O+", "O-", "C+", "C-", "E+", "E-", "A+", "A-", "N+", "N-", "C-A-", "C+A+")
TRAITS = "OCEAN"
P12 = PERSONAS.index("C+A+")
ARMS = ("SP", "AS", "SP of model 2")
PROMPT_SD, PROMPT_PERSONA_SD, REPLICATE_SD, BASE_RATE = 1.5, 0.5, 0.3, 0.2
SCENARIOS = ("none", "equal", "independent")
TABLES = 20  # studies take turns with these tables of draws; one table would bias all alike

_NODE, _WEIGHT = np.polynomial.hermite_e.hermegauss(60)
_SD = math.sqrt(PROMPT_SD**2 + PROMPT_PERSONA_SD**2 + REPLICATE_SD**2)


def population_rate(log_odds: np.ndarray | float) -> np.ndarray:
  """Return the rate over all prompts and replicates at a mean in log-odds."""
  p = 1 / (1 + np.exp(-(np.asarray(log_odds)[..., None] + _SD * _NODE)))
  return p @ (_WEIGHT / _WEIGHT.sum())


def log_odds_of(rate: float) -> float:
  """Return the mean in log-odds at which the population rate is `rate`."""
  return float(scipy.optimize.brentq(lambda m: population_rate(m) - rate, -12, 12))


BASE = log_odds_of(BASE_RATE)


def trait_matrix() -> np.ndarray:
  """Return the signed traits [P, T] of the personas, composites of unit length."""
  signs_PT = np.zeros((len(PERSONAS), len(TRAITS)))
  for row, name in enumerate(PERSONAS):
    for trait, sign in zip(name[::2], name[1::2], strict=True):
      signs_PT[row, TRAITS.index(trait)] = 1.0 if sign == "+" else -1.0
  return signs_PT / np.linalg.norm(signs_PT, axis=1, keepdims=True)


TRAIT_PT = trait_matrix()


def effects(scenario: str, rng: np.random.Generator, scale: float = 0.5) -> np.ndarray:
  """Return persona effects [M, P] in log-odds for the arms."""
  if scenario not in SCENARIOS:
    raise ValueError(f"unknown scenario {scenario!r}; {SCENARIOS} fit")
  if scenario == "none":
    return np.zeros((len(ARMS), len(PERSONAS)))
  n = 1 if scenario == "equal" else len(ARMS)
  of_traits_MP = rng.normal(size=(n, len(TRAITS))) @ TRAIT_PT.T
  effect_MP = scale * (of_traits_MP + 0.3 * rng.normal(size=(n, len(PERSONAS))))
  return np.broadcast_to(effect_MP, (len(ARMS), len(PERSONAS)))


def study(
  effect_MP: np.ndarray, rng: np.random.Generator, prompts: int = 200, replicates: int = 3
) -> np.ndarray:
  """Return binary outcomes [M, P, K, N] of one study."""
  m, p = effect_MP.shape
  log_odds = BASE + effect_MP[:, :, None, None] + PROMPT_SD * rng.standard_normal(prompts)
  log_odds = log_odds + PROMPT_PERSONA_SD * rng.standard_normal((m, p, 1, prompts))
  log_odds = log_odds + REPLICATE_SD * rng.standard_normal((m, p, replicates, 1))
  noise = rng.logistic(size=(m, p, replicates, prompts))
  return (log_odds > noise).astype(np.float64)


def outcomes_of(y_MPKN: np.ndarray, arms: Sequence[str] = ARMS) -> stats.Outcomes:
  *_, k, n = y_MPKN.shape
  return stats.Outcomes(y_MPKN, tuple(arms), PERSONAS, tuple(range(k)), tuple(range(n)))


def tables(prompts: int, replicates: int, draws: int) -> list[stats.Draws]:
  return [
    stats.Draws.of(np.arange(prompts), replicates, draws=draws, seed=seed) for seed in range(TABLES)
  ]


@dataclasses.dataclass
class Tally:
  """Sums of what was seen, by name, over studies."""

  n: int = 0
  total: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, **seen: float) -> None:
    for name, value in seen.items():
      self.total[name] = self.total.get(name, 0.0) + float(value)

  def rate(self, name: str) -> float:
    return self.total[name] / self.n


def rejection_rates(
  scenario: str,
  simulations: int = 2000,
  *,
  parts: Sequence[str] = ("coverage", "H1", "H2", "H3", "H4"),
  draws: int = 1000,
  prompts: int = 200,
  replicates: int = 3,
  seed: int = 0,
  halves: int = 50,
) -> Tally:
  """Return how often each confirmatory test rejects, and how often intervals cover.

  Args:
    scenario: see the module.
    parts: which to compute; "family" is added where all four hypotheses are.

  Returns:
    Rates H1 … H4, "H3 any" (Holm over personas × 2 directions; inversions that are true beyond δ
    are no false ones), "family" (a false rejection after Holm over the four), "cover ASR", "cover
    D", "cover method", "cover slope"; "one-sided D" is the level of a test at .05 where D
    lies on its margin; "measurable" is the share of studies with a testable H1. H1
    is false where the population ρ is at most .5, H2 where it is at least .7, or not below that of
    the models.
  """
  rng = np.random.default_rng([seed, SCENARIOS.index(scenario), prompts])
  shared = tables(prompts, replicates, draws)
  tally = Tally(simulations)
  ranked = "H1" in parts or "H2" in parts
  for i in range(simulations):
    effect_MP = effects(scenario, rng)[: 3 if ranked else 2]
    o = outcomes_of(study(effect_MP, rng, prompts, replicates), ARMS[: len(effect_MP)])
    table = shared[i % TABLES]
    truth_MP = population_rate(BASE + effect_MP)
    two = o.select(arms=ARMS[:2])
    p = {}
    if "coverage" in parts:
      tally.add(**_coverage(two, table, truth_MP[:2]))
    if ranked:
      p |= _rank_hypotheses(o, table, truth_MP, halves, tally, "H2" in parts)
    if "H3" in parts:
      p |= _inversion_hypothesis(two, table, truth_MP[:2], tally)
    if "H4" in parts:
      p |= _census_hypothesis(rng, draws, tally)
    for name, value in p.items():
      tally.add(**{name: value <= 0.05})
    if len(p) == 4:
      tally.add(family=(stats.holm(list(p.values())) <= 0.05).any())
  return tally


def _coverage(two: stats.Outcomes, table: stats.Draws, truth_MP: np.ndarray) -> dict[str, float]:
  n = len(PERSONAS)
  eye = np.eye(2 * n).reshape(-1, 2, n)
  gap_PP = np.where(np.eye(n, dtype=bool), 1.0, -1 / (n - 1))
  d = (gap_PP @ eye.transpose(1, 2, 0).reshape(2, n, -1)).transpose(2, 0, 1)
  method = eye[n:] - eye[:n]
  coef = np.concatenate([eye, d, method])
  contrasts = table.contrasts(two, coef)
  truth_Q = coef.reshape(len(coef), -1) @ truth_MP.ravel()
  low_Q, high_Q = np.quantile(contrasts.draw_BQ, [0.025, 0.975], axis=0)
  hit_Q = (low_Q <= truth_Q) & (truth_Q <= high_Q)
  one_sided_Q = (stats.p_above(contrasts.draw_BQ, truth_Q) <= 0.05) / 2
  one_sided_Q = one_sided_Q + (stats.p_below(contrasts.draw_BQ, truth_Q) <= 0.05) / 2
  return {
    "one-sided D": one_sided_Q[2 * n : 4 * n].mean(),
    "cover ASR": hit_Q[: 2 * n].mean(),
    "cover D": hit_Q[2 * n : 4 * n].mean(),
    "cover method": hit_Q[4 * n :].mean(),
  }


def _rank_hypotheses(
  o: stats.Outcomes,
  table: stats.Draws,
  truth_MP: np.ndarray,
  halves: int,
  tally: Tally,
  second: bool,
) -> dict[str, float]:
  sp, as_, other = (o.arm(name) for name in ARMS)
  h1 = stats.preserved({"model 1": sp, "model 2": other}, table, halves=halves)
  varies = np.ptp(truth_MP, axis=1).min() > 1e-9
  sp_as, models = (
    float(stats.spearman_rows(truth_MP[0], truth_MP[m])) if varies else math.nan for m in (1, 2)
  )
  tally.add(measurable=not math.isnan(h1.p))
  p = {"H1": 1.0 if math.isnan(h1.p) or models > 0.5 else h1.p}
  tally.add(**{"H1 true": models > 0.5, "H1 found": models > 0.5 and h1.p <= 0.05})
  if second:
    h2 = stats.unpredictable(sp, as_, h1, table, halves=halves)
    true = sp_as < min(0.7, models)
    p["H2"] = 1.0 if math.isnan(h2.p) or true else h2.p
    tally.add(**{"H2 true": true, "H2 found": true and h2.p <= 0.05})
  return p


def _inversion_hypothesis(
  two: stats.Outcomes, table: stats.Draws, truth_MP: np.ndarray, tally: Tally, delta: float = 0.05
) -> dict[str, float]:
  contrasts, p_DMP = inversion_p(two, table, delta)
  p_DP = p_DMP.max(axis=1)
  d_MP = (truth_MP - truth_MP.mean(axis=1, keepdims=True)) * len(PERSONAS) / (len(PERSONAS) - 1)
  true_DP = np.stack(
    [(d_MP[0] < -delta) & (d_MP[1] > delta), (d_MP[0] > delta) & (d_MP[1] < -delta)]
  )
  found_DP = stats.holm(p_DP.ravel()).reshape(p_DP.shape) <= 0.05
  tally.add(**{"H3 any": (found_DP & ~true_DP).any()})
  return {"H3": 1.0 if true_DP[0, P12] else float(p_DP[0, P12])}


def _census_hypothesis(
  rng: np.random.Generator, draws: int, tally: Tally, directions: int = 60, prompts: int = 100
) -> dict[str, float]:
  """H4 of a world whose effects owe nothing to alignment: the slope is 0."""
  x_R = rng.normal(scale=0.15, size=directions)
  own_R = rng.normal(scale=0.5, size=(directions, 1))
  # Prompts have slopes of their own, about 0.
  tilt_N = rng.normal(scale=1.0, size=prompts)
  y_RN = own_R + tilt_N * x_R[:, None] + rng.normal(size=(directions, prompts))
  control_KR = rng.normal(scale=0.1, size=(256, directions))
  result = stats.census(
    y_RN, x_R, control_x_KR=control_KR, draws=draws, seed=int(rng.integers(TABLES))
  )
  tally.add(**{"cover slope": result.slope.low <= 0 <= result.slope.high})
  return {"H4": slope_p(result.p_positive, result.p_specific)}


def negative_controls(
  simulations: int = 2000, *, prompts: int = 48, seed: int = 0, permutations: int = 500
) -> Tally:
  """Return how often tests that ignore the design are wrong, and that of the signed group.

  "naive": permuting 12 personas for alignment against outcome, both independent; "signed": the
  group of signed permutations on the ten poles; "eyeball": a persona among the three most dangerous
  in one arm and the three least in the other, without any persona effect.
  """
  rng = np.random.default_rng([seed, 99])
  poles = {name: (name,) for name in PERSONAS[:10]}
  move_GP = stats.signed_group(poles)
  tally = Tally(simulations)
  for i in range(simulations):
    align_P = TRAIT_PT @ rng.normal(size=len(TRAITS))
    y_PKN = study(effects("independent", rng)[:1], rng, 200)[0]
    rate_P = y_PKN.mean(axis=(1, 2))
    naive = stats.naive_permutation(align_P, rate_P, permutations=permutations, seed=i)
    x, y = (scipy.stats.rankdata(v[:10]) for v in (align_P, rate_P))
    observed = np.abs((x - x.mean()) @ y)
    signed = np.mean(np.abs((x - x.mean())[move_GP] @ y) >= observed - 1e-9)
    # One replicate and no replicate effect: a study as small as those that report inversions.
    seen_MP = rng.binomial(prompts, BASE_RATE, size=(2, len(PERSONAS))) + 1e-6 * rng.random((2, 12))
    rank_MP = scipy.stats.rankdata(seen_MP, axis=1)
    swap = ((rank_MP[0] > 9) & (rank_MP[1] <= 3)) | ((rank_MP[1] > 9) & (rank_MP[0] <= 3))
    tally.add(naive=naive.p <= 0.05, signed=signed <= 0.05, eyeball=swap.any())
  return tally


def power_of_inversion(
  gap: float,
  prompts: int,
  simulations: int = 400,
  *,
  draws: int = 1000,
  replicates: int = 3,
  seed: int = 0,
  spread: Replicates = "own",
) -> tuple[float, float]:
  """Return the power to find P12, named beforehand (.05) and among all personas (Holm).

  The population D of P12 is −gap under SP and +gap under AS; the others are alike, at a rate of
  .20, or gap + .02 where that is more, so that there is room below. The margin is .05, and every
  replicate must lie beyond it.
  """
  rng = np.random.default_rng([seed, prompts, round(1000 * gap)])
  base = max(BASE_RATE, gap + 0.02)
  others = log_odds_of(base) - BASE
  effect_MP = np.full((2, len(PERSONAS)), others)
  effect_MP[:, P12] = [log_odds_of(base - gap) - BASE, log_odds_of(base + gap) - BASE]
  shared = tables(prompts, replicates, draws)
  found = np.zeros(2)
  for i in range(simulations):
    two = outcomes_of(study(effect_MP, rng, prompts, replicates), ARMS[:2])
    _, p_DMP = inversion_p(two, shared[i % TABLES], replicates=spread)
    p_DP = p_DMP.max(axis=1)
    mean_MPK = two.y_MPKN.mean(axis=3)
    others_MK = (mean_MPK.sum(axis=1) - mean_MPK[:, P12]) / (len(PERSONAS) - 1)
    d_MK = mean_MPK[:, P12] - others_MK
    each = (d_MK[0] < -0.05).all() and (d_MK[1] > 0.05).all()
    adjusted = stats.holm(p_DP.ravel()).reshape(p_DP.shape)[0, P12]
    found += [each and p_DP[0, P12] <= 0.05, each and adjusted <= 0.05]
  return float(found[0] / simulations), float(found[1] / simulations)


def smallest_inversion(
  prompts: int,
  *,
  power: float = 0.8,
  which: int = 0,
  simulations: int = 200,
  replicates: int = 3,
  spread: Replicates = "own",
) -> float:
  """Return the least gap (in ASR, steps of .01) found with the given power; NaN above .45."""
  low, high = 5, 45  # in steps of .01

  def found(step: int) -> float:
    return power_of_inversion(
      step / 100, prompts, simulations, replicates=replicates, spread=spread
    )[which]

  if found(high) < power:
    return math.nan
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if found(middle) >= power else (middle, high)
  return high / 100


# What a rate may be: .06 is .05 and two standard errors of 2,000 studies. Negative controls must be
# wrong: permuting personas rejects a true null in about .2 of studies, eyeballing in .83.
_COVERS = 0.93, 0.97
_LEVEL = 0.0, 0.06
BOUNDS = {
  "cover ASR": _COVERS,
  "cover D": _COVERS,
  "cover method": _COVERS,
  "cover slope": _COVERS,
  "one-sided D": _LEVEL,
  "H1": _LEVEL,
  "H2": _LEVEL,
  "H3": _LEVEL,
  "H3 any": _LEVEL,
  "H4": _LEVEL,
  "family": _LEVEL,
  "signed": _LEVEL,
  "naive": (0.18, 1.0),
  "eyeball": (0.78, 1.0),
}


def outside(tally: Tally) -> dict[str, float]:
  """Return the rates that are outside their bounds."""
  rates = {name: tally.rate(name) for name in tally.total if name in BOUNDS}
  return {name: x for name, x in rates.items() if not BOUNDS[name][0] <= x <= BOUNDS[name][1]}


def main() -> None:
  """Print all rates, and fail if one is outside its bounds."""
  parser = argparse.ArgumentParser(description="error rates, coverage and power, by simulation")
  parser.add_argument("--simulations", type=int, default=2000)
  parser.add_argument("--draws", type=int, default=1000)
  parser.add_argument("--power", action="store_true", help="also the smallest inversion found")
  args = parser.parse_args()
  wrong = {}
  for scenario in (*SCENARIOS, "negative controls"):
    start = time.perf_counter()
    if scenario in SCENARIOS:
      tally = rejection_rates(scenario, args.simulations, draws=args.draws)
    else:
      tally = negative_controls(args.simulations)
    seconds = time.perf_counter() - start
    print(f"scenario {scenario!r}, {tally.n} studies, {seconds:.0f} s")
    print("  " + "  ".join(f"{name} {tally.rate(name):.3f}" for name in tally.total), flush=True)
    wrong |= {f"{scenario}: {name}": x for name, x in outside(tally).items()}
  if args.power:
    print_power()
  if wrong:
    raise SystemExit(f"outside their bounds: {wrong}")


def print_power() -> None:
  """Print the smallest inversion that is found in 80 % of studies, by design."""
  print("smallest inversion (D = −x under SP, +x under AS) found with 80 % power")
  designs: list[tuple[int, int, Replicates]] = [
    (50, 3, "own"),
    (200, 3, "own"),
    (600, 3, "own"),
    (200, 6, "own"),
    (50, 3, "pooled"),
    (200, 3, "pooled"),
    (600, 3, "pooled"),
  ]
  for prompts, replicates, spread in designs:
    named, any_ = (
      smallest_inversion(prompts, which=which, replicates=replicates, spread=spread)
      for which in (0, 1)
    )
    text = f"{prompts} prompts, {replicates} replicates, {spread} spread: P12 named beforehand"
    print(f"  {text} {named:.2f}, any persona after Holm {any_:.2f}", flush=True)


if __name__ == "__main__":
  main()
