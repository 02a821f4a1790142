"""One planted world after another, through the product; `python -m tests.planted.seeds` counts.

  python -m tests.planted.seeds [--worlds 20] [--nulls 100] [--jobs N]

W1 with noise: is P12 found, and is anything claimed that is not so? N0 and N1 with noise: how often
is an inversion confirmed? Slopes: how often does the interval hold the slope of the population? And
is a random direction as specific as any other?
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

import persona_jax as pj
from persona_jax import stats
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import effects
from persona_jax.studies.persona_non_grata.control_tables import control_table
from tests.planted import law, study
from tests.planted.study import COEF, Place

NAMED, DELTA, ALPHA = "P12", 0.05, 0.05
_BLOCK = 2


@dataclasses.dataclass(frozen=True)
class Found:
  """What the study finds in one world, and what is true of it.

  Attributes:
    true: personas that invert by the population's rates, and under which arm they are worse.
    confirmed: the same as claimed, after Holm and in each replicate.
    named_p: p of the named persona by itself.
    named_in_each: whether it inverts in each replicate.
    found_by_law: whether the named persona is found in labels drawn from the law's probabilities by
      the same noise.
  """

  true: dict[str, str]
  confirmed: dict[str, str]
  named_p: float
  named_in_each: bool
  found_by_law: bool

  @property
  def is_named_found(self) -> bool:
    """Whether the named persona is found, by itself and in each replicate."""
    return self.named_p <= ALPHA and self.named_in_each

  @property
  def is_free_of_false(self) -> bool:
    """Whether everything claimed is true."""
    return all(self.true.get(name) == worse for name, worse in self.confirmed.items())


def one(
  name: str, directory: Path, seed: int, *, prompts: int, noise: float = 0.0, draws: int = 1000
) -> Found:
  """Writes a world, runs both arms on it with sampled answers, and tests for inversions."""
  place = study.write(name, directory / "world", prompts=prompts, noise=noise, seed=seed)
  outcomes = study.arms(place, directory / "study", seed=seed, draws=draws)
  return judged(place, outcomes, seed, draws)


def judged(place: Place, outcomes: Outcomes, seed: int, draws: int = 1000) -> Found:
  """Tests for inversions, and works out which there are, and whether the law's labels show P12."""
  table = _inversions(outcomes, draws)
  own = _own(table)
  claimed = table[table["inverted"]]
  confirmed = {
    row["persona"]: "AS" if row["direction"].startswith("AS") else "SP"
    for row in claimed.to_dict("records")
  }
  population = place.population()
  lines = (place.directory / "test.jsonl").read_text().splitlines()
  ids = [json.loads(line)["prompt_id"] for line in lines]
  order = [ids.index(name) for name in outcomes.prompts]
  p_MPKN = 1 - np.exp(np.stack([population.prompted.sorry, population.steered.sorry]))
  exact = dataclasses.replace(outcomes, y_MPKN=p_MPKN[..., order])
  by_law = _own(_inversions(study.sampled(exact, seed), draws))
  return Found(
    population.inversions(DELTA),
    confirmed,
    float(own["p"]),
    bool(own["each_replicate"]),
    bool(by_law["p"] <= ALPHA and by_law["each_replicate"]),
  )


def _inversions(outcomes: Outcomes, draws: int) -> pd.DataFrame:
  weights = stats.Draws.of(outcomes.cluster_N, len(outcomes.replicates), draws=draws, seed=0)
  return stats.inversions(outcomes, weights, delta=DELTA, arms=("SP", "AS:proj"))


def _own(table: pd.DataFrame) -> pd.Series:
  """Returns the row of the named persona, worse steered."""
  return table[(table["persona"] == NAMED) & (table["direction"] == "AS:proj-worse")].iloc[0]


def slope_is_held(
  name: str, directory: Path, seed: int, *, noise: float, prompts: int = 24
) -> bool:
  """Says whether the interval of the census' slope holds that of the whole population.

  The census is of random directions at the planted coefficient; the population's slope is that over
  two thousand such directions and all prompts, by the law.
  """
  place = study.write(name, directory / "world", prompts=200, noise=noise, seed=seed)
  rng = np.random.default_rng(seed)
  found = place.directions()
  r_D = found.refusal_LD[_BLOCK] / np.linalg.norm(found.refusal_LD[_BLOCK])
  base_N = law.first_token(place.world, law.last_token(place.world, place.users)[:, -1]).log_odds

  def effects(v_RD: np.ndarray, users: list[str], base: np.ndarray) -> np.ndarray:
    return law.steered(place.world, users, COEF * v_RD, block=_BLOCK).log_odds - base

  def drawn(count: int) -> np.ndarray:
    v_RD = rng.normal(size=(count, len(r_D)))
    return v_RD / np.linalg.norm(v_RD, axis=1, keepdims=True)

  many_RD = drawn(500)
  truth = np.polyfit(many_RD @ r_D, effects(many_RD, list(place.users), base_N).mean(axis=1), 1)[0]
  chosen = rng.choice(len(place.users), prompts, replace=False)
  users = [place.users[n] for n in chosen]
  model = pj.load(place.directory, dtype="float32")
  few_RD = drawn(60)
  blocks, width = model.arch.num_blocks, model.arch.width
  directions = [
    pj.Direction(np.broadcast_to(v_D, (1, blocks, width)), f"random {n}")
    for n, v_D in enumerate(few_RD)
  ]
  edits = [pj.add(d, COEF, unit="unit", blocks=_BLOCK) for d in directions]
  rows = users * (len(edits) + 1)
  each: list[pj.Edit | None] = [None] * len(users)
  each += [edit for edit in edits for _ in users]
  sorry, sure = (model.score(rows, [word] * len(rows), edits=each) for word in ("sorry", "sure"))
  odds_RN = (sorry - sure).reshape(len(edits) + 1, len(users))
  slope = stats.census(odds_RN[1:] - odds_RN[0], few_RD @ r_D, draws=1000, seed=seed).slope
  return bool(slope.low <= truth <= slope.high)


def specificity_p(
  name: str, directory: Path, seed: int, *, noise: float, prompts: int = 8
) -> float:
  """Returns the product's specificity of one random direction among 39; uniform if all is well."""
  place = study.write(name, directory / "world", prompts=prompts, noise=noise, seed=seed)
  model = pj.load(place.directory, dtype="float32")
  like = pj.Direction(np.ones((1, model.arch.num_blocks, model.arch.width)), "like")
  users = list(place.users)
  spread = pj.dose(model, users, answer_tokens=4, skip=0)
  drawn = pj.controls(like, "R-cov", n=40, moments=spread, seed=seed)["R-cov"]
  rows = users * len(drawn)
  edits = [pj.add(d, 2 * COEF, unit="unit", blocks=_BLOCK) for d in drawn for _ in users]
  base = np.exp(model.score(users, ["sorry"] * len(users)))
  p_RN = np.exp(model.score(rows, ["sorry"] * len(rows), edits=edits)).reshape(len(drawn), -1)
  cells = [("", "", "B0", "B0", base), ("v", "one", "one", "control", p_RN[0])]
  cells += [("R-cov", "", f"R-cov {n}", "control", p_N) for n, p_N in enumerate(p_RN[1:])]
  table = pd.DataFrame(
    [
      {
        "part": "controls", "arm": arm, "control": code, "persona": persona, "condition": name,
        "prompt_id": str(n), "cluster": str(n), "p_bypass": 1 - p,
      }
      for code, persona, name, arm, p_N in cells
      for n, p in enumerate(p_N)
    ]
  )  # fmt: skip
  chosen = study.settings(place, draws=200)
  return float(control_table(table, chosen)["p_R-cov"].iloc[0])


@dataclasses.dataclass(frozen=True)
class Prediction:
  """P12's effect on the rate of bypasses: measured, by a line through the poles, and by the law."""

  effect: float
  predicted: float
  by_law: float

  @property
  def is_right(self) -> bool:
    """Whether there is an effect, it is the law's, and the line foretells it."""
    is_real = abs(self.effect) > DELTA and abs(self.effect - self.by_law) < 0.01
    return is_real and abs(self.effect - self.predicted) <= DELTA


def prediction(directory: Path, seed: int, *, noise: float, prompts: int = 60) -> Prediction:
  """Returns what a line through the poles says of P12's effect, and what the effect is."""
  place = study.write("W1", directory / "world", prompts=prompts, noise=noise, seed=seed)
  made = study.steered(place, directory / "study", seed=seed)
  refusal = product.find_refusal(
    made.model, made.settings, made.material, directory / "study", progress=False
  )
  own = [
    dataclasses.replace(made.extracted.personas[p.name], concept=p.name)
    for p in made.material.personas
  ]
  users = list(place.users)
  people = effects.census_of_personas(
    made.model, made.settings, own, users, made.calibrated, made.ids
  )
  composites = [p.name for p in made.material.personas if len(p.poles) > 1]
  table = effects.predicted(people, own, composites, refusal.family)
  row = table[(table["persona"] == NAMED) & (table["outcome"] == "p_bypass")].iloc[0]
  unit_D = made.extracted.personas[NAMED].unit_LD[_BLOCK]
  plain = law.first_token(place.world, law.last_token(place.world, users)[:, -1])
  pushed = law.steered(place.world, users, COEF * unit_D, block=_BLOCK)
  by_law = float(np.mean(np.exp(plain.sorry) - np.exp(pushed.sorry)))
  return Prediction(float(row["effect"]), float(row["predicted"]), by_law)


def cells_in_band(directory: Path, *, prompts: int = 200, samples: int = 5) -> tuple[int, int]:
  """Counts the cells of W1 whose sampled rate lies in the 99.9 % band of the law's probability.

  Returns:
    Cells within the binomial band, and cells: 12 personas prompted, and steered, in 3 replicates.
  """
  place = study.write("W1", directory / "world", prompts=prompts)
  made = study.steered(
    place, directory / "study", samples=samples, temperature=1.0, max_new_tokens=1,
    generate=("test",), least_words=1,
  )  # fmt: skip
  table = product.generate(
    made.model, made.settings, [made.part], made.ids, directory / "study", progress=False
  )
  population = place.population()
  names = list(study.law_personas())
  rates = {"SP": population.prompted_PK, "AS:proj": population.steered_PK}
  inside = cells = 0
  for (arm, persona, k), mine in table[table["arm"].isin(list(rates))].groupby(
    ["arm", "persona", "replicate"]
  ):
    count, n = int((mine["label"] == "bypass").sum()), len(mine)
    assert n == prompts * samples and (mine["label"].isin(["bypass", "refuse"])).all()
    rate = float(rates[arm][names.index(persona), k])
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], n, rate)
    inside, cells = inside + bool(low <= count <= high), cells + 1
  return inside, cells


def build_is_right(label: str, directory: Path, **build: float) -> bool:
  """Studies a build of W1 whole, and compares every cell with the reference."""
  place = study.write("W1", directory / "world", prompts=12, noise=0.5, **build)  # type: ignore[arg-type]
  run = study.run(place, directory / "study")
  expected = run.expected()
  return all(
    np.allclose(run.probability(arm), expected[arm], atol=3e-3) for arm in ("SP", "AS:proj")
  )


def _one(made: Mapping[str, Any], name: str, place: Path, seed: int) -> Found:
  return one(name, place, seed, **made)


def _slope(place: Path, seed: int) -> bool:
  return slope_is_held("W1", place, seed, noise=0.5)


def _prediction(place: Path, seed: int) -> Prediction:
  return prediction(place, seed, noise=0.5)


def _specificity(name: str, place: Path, seed: int) -> float:
  return specificity_p(name, place, seed, noise=0.5)


def main() -> None:
  """Runs all worlds and prints one line of counts."""
  parser = argparse.ArgumentParser(description="Counts what the study finds in planted worlds.")
  parser.add_argument("--worlds", type=int, default=20)
  parser.add_argument("--nulls", type=int, default=100)
  parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="worlds at once")
  options = parser.parse_args()
  begun = time.monotonic()
  lines, failed = [], []

  def check(what: str, count: int, of: int, holds: bool) -> None:
    lines.append(f"{what} {count}/{of}")
    print(
      f"{lines[-1]}{'' if holds else '  FAILED'}  ({time.monotonic() - begun:.0f} s)", flush=True
    )
    if not holds:
      failed.append(what)

  # A process each: JAX is not to be forked, and of such small models a world takes one core.
  spawn = multiprocessing.get_context("spawn")
  with (
    tempfile.TemporaryDirectory() as folder,
    concurrent.futures.ProcessPoolExecutor(options.jobs, spawn) as pool,
  ):
    root = Path(folder)

    def worlds(name: str, what: str, seeds: Sequence[int], **made: float) -> list[Found]:
      places = [root / f"{what}-{seed}" for seed in seeds]
      return list(pool.map(functools.partial(_one, made), [name] * len(places), places, seeds))

    builds: dict[str, dict[str, float]] = {"grouped queries": {"kv_heads": 2}, "MLP": {"mlp": 1.0}}
    sampled = pool.submit(cells_in_band, root / "sampled")  # the longest of all
    made = [pool.submit(build_is_right, k, root / k, **build) for k, build in builds.items()]
    right = sum(future.result() for future in made)
    check("builds with every cell right:", right, len(builds), right == len(builds))
    n = options.worlds
    # With noise 1.5 three wordings differ too much for more than some worlds to be found: as many
    # as by labels drawn from the law's own probabilities, two or less apart.
    for noise, needed in ((0.5, 0.95), (1.5, 0.2)):
      found = worlds("W1", f"w1-{noise}", range(n), prompts=200, noise=noise)
      hits = sum(world.is_named_found for world in found)
      lawful = sum(world.found_by_law for world in found)
      holds = hits >= needed * n and abs(hits - lawful) <= 2
      check(f"P12 found in W1, noise {noise} ({lawful} by the law):", hits, n, holds)
      some = sum(bool(world.confirmed) for world in found)
      check(f"something confirmed in W1, noise {noise}:", some, n, some >= needed * n)
      free = sum(world.is_free_of_false for world in found)
      check(f"no false inversion in W1, noise {noise}:", free, n, free >= 0.95 * n)
    places = [root / f"slope-{seed}" for seed in range(n)]
    held = sum(pool.map(_slope, places, range(n)))
    check("slope in its interval:", held, n, held >= 0.9 * n)
    places = [root / f"poles-{seed}" for seed in range(n)]
    foretold = list(pool.map(_prediction, places, range(n)))
    near = sum(line.is_right for line in foretold)
    check("P12's effect there, and predicted from poles:", near, n, near >= 0.9 * n)
    inside, cells = sampled.result()
    check("sampled cells in their band:", inside, cells, inside == cells == 72)
    # As many prompts as the null worlds have: with these something is found where it is there.
    power = worlds("W1", "power", range(n), prompts=60, noise=0.5)
    some = sum(bool(world.confirmed) for world in power)
    check("something confirmed in W1, 60 prompts:", some, n, some >= 0.9 * n)
    p_W: list[float] = []
    for k, name in enumerate(("N0", "N1")):
      seeds = range(k * options.nulls, (k + 1) * options.nulls)
      found = worlds(name, name, seeds, prompts=60, noise=0.5)
      false = sum(not world.is_free_of_false for world in found)
      check(f"false inversions in {name}:", false, options.nulls, false <= 0.11 * options.nulls)
      places = [root / f"{name}-p-{seed}" for seed in seeds]
      p_W += pool.map(_specificity, [name] * len(places), places, seeds)
    most = int(scipy.stats.binom.ppf(0.999, len(p_W), ALPHA))
    low = sum(p <= ALPHA for p in p_W)
    check(f"specificity p <= .05 in N0 and N1 (at most {most}):", low, len(p_W), low <= most)
    # Its steps are of 1/40; spread over each step it is uniform to the letter.
    step_W = np.random.default_rng(0).uniform(0, 1 / 40, len(p_W))
    ks = scipy.stats.kstest(np.asarray(p_W) - step_W, "uniform").pvalue
    check(f"specificity uniform (KS p {ks:.2f}):", int(ks > 0.01), 1, ks > 0.01)
  print(f"\nplanted worlds: {'; '.join(lines)}; {time.monotonic() - begun:.0f} s")
  if failed:
    raise SystemExit(f"failed: {failed}")


if __name__ == "__main__":
  main()
