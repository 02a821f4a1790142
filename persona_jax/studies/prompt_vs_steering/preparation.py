"""Directions of traits and personas, random controls, residual norms: read, or made and kept."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tqdm

from persona_jax.directions.direction import Direction, compose
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.extract import extract_each
from persona_jax.directions.load import load_direction
from persona_jax.engine.model import Model
from persona_jax.engine.rows import derive_seed
from persona_jax.personas.persona import Pole, load_poles, load_questions
from persona_jax.studies.dose_file import read_dose, write_dose
from persona_jax.studies.prompt_vs_steering.settings import Settings


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
  contrasts = {f"{t}+": (asked(Pole(t, 1)), asked(Pole(t, -1))) for t in traits}
  total = 2 * len(traits) * len(questions)
  with tqdm.tqdm(total=total, unit="row", disable=not progress, desc="extract") as bar:
    found = extract_each(model, contrasts, tokens="last", progress=bar.update)
  return dict(zip(traits, found.values(), strict=True))


def _dose(model: Model, settings: Settings, directory: Path) -> Dose:
  path = directory / "dose.npz"
  if not path.exists():
    prompts = [q.text for q in load_questions("dose")[: settings.dose_prompts]]
    write_dose(dose(model, prompts, answer_tokens=settings.dose_tokens), path)
  return read_dose(path)
