"""The arms of the study as conditions: baseline, prompt, steer, random, and doses of a trait."""

import dataclasses
from collections.abc import Sequence

from persona_jax.directions.direction import Direction
from persona_jax.edits.operations import add
from persona_jax.engine.grid import Condition
from persona_jax.personas.persona import Persona
from persona_jax.studies.prompt_vs_steering.preparation import Prepared
from persona_jax.studies.prompt_vs_steering.settings import Settings


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
