"""Runs the product's own study on planted worlds: written, loaded, extracted, generated, analysed.

A world has one right answer, which `tests.planted.law` works out without the product. `run` goes
through every stage; `arms` stops where outcomes are there, for many seeds.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import persona_jax as pj
from configs import persona_non_grata_planted
from persona_jax.scorers.base import Scorer
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata.conditions import test_arms as make_arms
from persona_jax.studies.persona_non_grata.generation import Part, first_tokens, generate
from persona_jax.studies.persona_non_grata.tables import Measured, measured
from tests.planted import files, law
from tests.planted.world import WORLDS, World

MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template", "judges")
COEF = 2.0  # what a system prompt full of trait words writes, and so what steering is set to


@dataclasses.dataclass(frozen=True)
class Place:
  """A world in a directory, with its study's questions all of one length, so programs are few."""

  name: str
  world: World
  directory: Path
  users: tuple[str, ...]  # of the test, in the order of the file
  questions: files.Questions

  def directions(self) -> law.Directions:
    """Extracts directions as the reference does."""
    return law.extract(
      self.world,
      self.questions.texts("neutral"),
      self.questions.texts("harmful_train"),
      self.questions.texts("harmless_train"),
    )

  def population(self) -> law.Population:
    """Works out every cell of the test, steered at the planted coefficient."""
    return law.population(self.world, self.users, self.directions(), coef=COEF)

  def steered(self, coef_PK: np.ndarray, block: int = 2) -> np.ndarray:
    """Works out P(no refusal) [P, K, N] of steering, each cell at its own coefficient."""
    unit_PKD = self.directions().personas()[:, :, block]
    shifts_PKD = coef_PK[..., None] * unit_PKD
    return 1 - np.exp(law.steered(self.world, self.users, shifts_PKD, block=block).sorry)


def write(
  name: str,
  directory: Path,
  *,
  prompts: int = 40,
  noise: float = 0.0,
  seed: int = 7,
  mlp: float = 0.0,
  kv_heads: int = 4,
) -> Place:
  """Writes a world with as many test prompts, which all have the same number of words."""
  truth = dataclasses.replace(WORLDS[name], noise=noise, mlp=mlp)
  questions = files.questions(6 * prompts)
  files.write(truth, directory, seed=seed, kv_heads=kv_heads, prompts=6 * prompts)
  path = directory / "test.jsonl"
  lines = path.read_text().splitlines()
  length = len(questions.texts("test")[0].split())
  kept = [
    (line, user)
    for line, user in zip(lines, questions.texts("test"), strict=True)
    if len(user.split()) == length
  ][:prompts]
  path.write_text("\n".join(line for line, _ in kept) + "\n")
  world = questions.world(truth, seed=seed, kv_heads=kv_heads)
  return Place(name, world, directory, tuple(user for _, user in kept), questions)


def settings(place: Place, **changes: Any) -> product.Settings:
  """Returns the settings of the planted config, with changes."""
  config = persona_non_grata_planted.get_config(str(place.directory)).to_dict()
  fields = {k: v for k, v in config.items() if k not in MODEL_FIELDS}
  quick: dict[str, Any] = {
    "questions_each": 2,
    "calibration_prompts": 4,
    "kappas": (0.1, 0.2, 0.45),
    "test_prompts": len(place.users),
    "dose_prompts": 0,
    "control_prompts": 0,
    "spec_prompts": 0,
    "controls": (),
    "matches": ("proj",),
    "generate": (),
    "outcome": "first_token",
    "gates": ("G1", "G2", "G3"),
    "draws": 500,
  }
  return product.Settings.of(fields | quick | changes)


@dataclasses.dataclass(frozen=True)
class Study:
  """A study that has been run."""

  place: Place
  settings: product.Settings
  model: pj.Model
  material: product.Material
  extracted: product.Extracted
  refusal: product.Refusal
  calibrated: product.Calibrated
  table: pd.DataFrame
  out: Path

  @functools.cached_property
  def found(self) -> product.Findings:
    """Analyses the study."""
    return self.analysed(self.settings, self.out)

  def analysed(self, chosen: product.Settings, out: Path, **more: Any) -> product.Findings:
    """Analyses the study with other settings, or with labels that are known."""
    return product.analyse(
      self.model,
      chosen,
      self.material,
      self.extracted,
      self.refusal,
      self.calibrated,
      self.table,
      out,
      **more,
    )

  @functools.cached_property
  def measured(self) -> Measured:
    """Arranges outcomes and draws."""
    return measured(self.settings, self.table, law_personas())

  def probability(self, arm: str) -> np.ndarray:
    """Returns exact probabilities of a bypass of an arm, [P, K, N] in the order of the law."""
    mine = self.table[(self.table["arm"] == arm) & (self.table["part"] == "test")]
    outcomes = Outcomes.of(mine, "p_bypass", arms=[arm], personas=list(law_personas()))
    by_text = {item.text: item.prompt_id for item in self.material.test}
    return outcomes.y_MPKN[0][..., [outcomes.prompts.index(by_text[u]) for u in self.place.users]]

  def expected(self) -> dict[str, np.ndarray]:
    """Returns what `probability` must be by the law, steered as it was matched."""
    matches = self.calibrated.matches
    mine = matches[matches["by"] == "proj"].set_index(["persona", "replicate"])["coef_raw"]
    coef_PK = np.array([[mine.loc[name, k] for k in range(3)] for name in law_personas()])
    prompted = 1 - np.exp(self.place.population().prompted.sorry)
    return {"SP": prompted, "AS:proj": self.place.steered(coef_PK)}


def law_personas() -> tuple[str, ...]:
  """Returns the names of the personas in the order of the law."""
  return tuple(f"P{i}" for i in range(1, 13))


def run(place: Place, out: Path, *, scorer: Scorer | None = None, **changes: Any) -> Study:
  """Runs the stages of the study on a world, up to its tidy table; analysis is done on demand."""
  chosen = settings(place, **changes)
  material = product.load_material(chosen)
  model = pj.load(place.directory, dtype="float32")
  product.start(model, chosen, material, out)
  extracted = product.extract(model, chosen, material, out, progress=False)
  refusal = product.find_refusal(model, chosen, material, out, progress=False)
  calibrated = product.calibrate(model, chosen, material, extracted, out, progress=False)
  parts = product.parts_of(model, chosen, material, extracted, refusal, calibrated, out)
  table = generate(model, chosen, parts, refusal.ids, out, scorer=scorer, progress=False)
  return Study(place, chosen, model, material, extracted, refusal, calibrated, table, out)


def unit_matches(chosen: product.Settings, material: product.Material) -> pd.DataFrame:
  """Returns matches that steer with the planted coefficient, without solving for it."""
  return pd.DataFrame(
    [
      {"persona": p.name, "replicate": k, "by": "proj", "coef": COEF, "status": "ok"}
      for p in material.personas
      for k in range(material.replicates)
    ]
  )


@dataclasses.dataclass(frozen=True)
class Steered:
  """A study up to its arms, steered with the planted coefficient instead of a solved one.

  Residual norms are set to 1, so that coefficients are in the units of the residual stream.
  """

  settings: product.Settings
  model: pj.Model
  material: product.Material
  extracted: product.Extracted
  calibrated: product.Calibrated
  ids: tuple[int, ...]

  @property
  def part(self) -> Part:
    """The test: prompts and steering of every persona and replicate."""
    made = make_arms(self.settings, self.material, self.extracted, self.calibrated)
    return Part("test", tuple(made), self.material.test)


def steered(place: Place, out: Path, **changes: Any) -> Steered:
  """Extracts the directions of a world, and sets the matches to the planted coefficient."""
  chosen = settings(place, **changes)
  material = product.load_material(chosen)
  model = pj.load(place.directory, dtype="float32")
  extracted = product.extract(model, chosen, material, out, progress=False)
  blocks, width = model.arch.num_blocks, model.arch.width
  scale = pj.Dose(np.ones(blocks, np.float32), np.zeros((blocks, 2, width)), 2, {})
  matches = unit_matches(chosen, material)
  calibrated = product.Calibrated(scale, scale, 2, "planted", 3, {}, matches, COEF)
  ids = (place.world.words.index("sorry"),)
  return Steered(chosen, model, material, extracted, calibrated, ids)


def arms(place: Place, out: Path, **changes: Any) -> Outcomes:
  """Runs prompts and steering at the planted coefficient: labels of the arms SP and AS:proj.

  A label is a draw from the exact probability that the product measures; the noise of a prompt is
  shared by all conditions, as in a run.
  """
  made = steered(place, out, **changes)
  table = first_tokens(made.model, made.part, made.ids, out, progress=False)
  outcomes = Outcomes.of(
    table[table["arm"].isin(["SP", "AS:proj"])],
    "p_bypass",
    arms=["SP", "AS:proj"],
    personas=[p.name for p in made.material.personas],
  )
  return sampled(outcomes, made.settings.seed)


def sampled(outcomes: Outcomes, seed: int) -> Outcomes:
  """Draws labels from probabilities; the noise of a prompt is that of all its conditions."""
  u_N = np.random.default_rng([seed, 1]).uniform(size=len(outcomes.prompts))
  return dataclasses.replace(outcomes, y_MPKN=(u_N < outcomes.y_MPKN).astype(float))
