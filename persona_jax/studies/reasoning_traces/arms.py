"""The arms of the study: who thinks, and under what the answer behind a thought is given.

An arm is a thinker and a condition of the answer. Thoughts do not depend on edits of the answer, so
the arms "steer, answer" share the thoughts of no persona, and "steer, both" those of "steer,
think". A steered thinker is edited on the tokens of its thought, tags included, and on the last
token of the prompt, where templates put the opening tag. The closing tag, which the first answer
token is predicted from, is a part of the thought.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from persona_jax.directions.direction import Direction, compose
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.extract import extract_each
from persona_jax.directions.load import load_direction
from persona_jax.edits.operations import add
from persona_jax.edits.window import Window
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.personas.persona import Persona, Pole, load_poles, load_questions
from persona_jax.studies.dose_file import read_dose, write_dose
from persona_jax.studies.reasoning_traces.settings import Settings

BASELINE = "B0"
# What steering acts on in an answer's row, whose thought is given.
_WINDOWS: dict[str, str | Window] = {
  "both": "answer",
  "think": Window(("template", "think"), start=-1),
  "answer": "after-think",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """A way to think and to answer.

  Attributes:
    name: of the arm.
    method: "none", "prompt" or "steer".
    persona: its name; "" for none.
    edited: "neither", "think", "answer" or "both".
    thinker: the condition of the thought.
    answerer: the condition of the answer, which reads the thought as part of its row.
  """

  name: str
  method: str
  persona: str
  edited: str
  thinker: Condition
  answerer: Condition


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
  """What steering needs.

  Attributes:
    directions: {persona: direction}.
    scale: residual norms.
  """

  directions: Mapping[str, Direction]
  scale: Dose


def make_arms(settings: Settings, steering: Steering) -> list[Arm]:
  """Return the arms: no persona, and each persona by prompt and by steering."""
  plain = Condition(BASELINE)
  made = [Arm(BASELINE, "none", "", "neither", plain, plain)]
  for persona in settings.chosen_personas():
    text, name = persona.text(settings.replicate), persona.name
    prompted = _placed(settings, f"{name} prompt", text)
    made.append(Arm(prompted.name, "prompt", name, "neither", prompted, prompted))
    for edited in settings.edited:
      answerer = _steered(f"{name} steer {edited}", name, _WINDOWS[edited], settings, steering)
      thinker = _steered(f"{name} steer", name, _WINDOWS["think"], settings, steering)
      thinks = plain if edited == "answer" else thinker
      made.append(Arm(answerer.name, "steer", name, edited, thinks, answerer))
  return made


def _steered(
  name: str, persona: str, window: str | Window, settings: Settings, steering: Steering
) -> Condition:
  if settings.block is None:
    raise ValueError("block=None: settings for a model are those of settings.at_block(num_blocks).")
  edit = add(
    steering.directions[persona],
    settings.kappa,
    unit="resid",
    blocks=settings.block,
    tokens=window,
    scale=steering.scale,
  )
  return Condition(name, edits=edit, replicate=settings.replicate)


def _placed(settings: Settings, name: str, text: str) -> Condition:
  """Return a condition with a text where persona texts stand."""
  system = settings.persona_in == "system"
  return Condition(
    name,
    system=text if system else None,
    prefix=None if system else text,
    replicate=settings.replicate,
  )


def thinkers(arms: Sequence[Arm]) -> dict[str, Condition]:
  """Return the conditions of thoughts, each once, by name."""
  return {arm.thinker.name: arm.thinker for arm in arms}


def whole(arms: Sequence[Arm], method: str, persona: str) -> Arm:
  """Return the arm of a method that is one from beginning to end.

  Args:
    arms: of `make_arms`.
    method: of the arm.
    persona: of the arm; whichever for the method "none".
  """
  return next(
    arm
    for arm in arms
    if arm.method == method
    and arm.edited in ("neither", "both")
    and (method == "none" or arm.persona == persona)
  )


def prepare(model: Model, settings: Settings, directory: Path) -> Steering:
  """Read directions and residual norms, or make and keep them.

  Raises:
    ValueError: a direction is of another model.
    FileNotFoundError: a direction is not in the folder that was given.
  """
  given = Path(settings.directions or directory / "directions")
  personas = settings.chosen_personas()
  if not settings.directions:
    _extract(model, settings, personas, given)
  directions = {persona.name: _direction(model, persona, given) for persona in personas}
  path = directory / "dose.npz"
  if not path.exists():
    prompts = [q.text for q in load_questions("dose")[: settings.dose_prompts]]
    write_dose(dose(model, prompts, answer_tokens=settings.dose_tokens), path)
  return Steering(directions, read_dose(path))


def _direction(model: Model, persona: Persona, folder: Path) -> Direction:
  own = folder / f"{persona.name}.safetensors"
  if own.exists():
    return load_direction(own, model=model)
  parts = [folder / f"{trait}+.safetensors" for trait in persona.traits]
  lacking = [str(part) for part in parts if not part.exists()]
  if lacking:
    raise FileNotFoundError(f"persona {persona.name} needs {own}, or {', '.join(lacking)}.")
  found = [load_direction(part, model=model) for part in parts]
  return compose(found, [float(pole.sign) for pole in persona.poles], concept=persona.label)


def _extract(model: Model, settings: Settings, personas: Sequence[Persona], folder: Path) -> None:
  """Contrast opposite pole texts at the last prompt token; what is there is kept."""
  lexicon = load_poles(settings.personas)
  questions = [q.text for q in load_questions("self")[: settings.extract_questions]]
  traits = list(dict.fromkeys(trait for persona in personas for trait in persona.traits))

  def asked(pole: Pole) -> list[object]:
    text = " ".join(lexicon[pole][settings.replicate])
    return [_placed(settings, "asked", text).apply(question) for question in questions]

  lacking = [trait for trait in traits if not (folder / f"{trait}+.safetensors").exists()]
  if not lacking:
    return
  contrasts = {f"{t}+": (asked(Pole(t, 1)), asked(Pole(t, -1))) for t in lacking}
  folder.mkdir(parents=True, exist_ok=True)
  for name, direction in extract_each(model, contrasts, tokens="last").items():  # type: ignore[arg-type]
    direction.save(folder / f"{name}.safetensors")


def stand_in(model: Model, settings: Settings) -> Steering:
  """Return random directions for a plan: shapes do not depend on what they are."""
  blocks, width = model.arch.num_blocks, model.arch.width
  rng = np.random.default_rng(settings.seed)
  directions = {
    p.name: Direction(rng.normal(size=(1, blocks, width)), p.name)
    for p in settings.chosen_personas()
  }
  scale = Dose(np.ones(blocks, np.float32), rng.normal(size=(blocks, 2, width)), 2, {})
  return Steering(directions, scale)
