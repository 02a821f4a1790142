"""The arms of the study as conditions: baselines, both methods, doses, controls.

Every steering arm acts at one block and window, in median residual norms of it; the arms of one
grid differ in nothing else.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.directions.activations import ActivationsInMemory
from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.directions.load import load_direction
from persona_jax.directions.space import Floors
from persona_jax.directions.tokens import capture_at
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import add
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.geometry.mediation import floors_above
from persona_jax.personas.baselines import shuffled_words
from persona_jax.personas.persona import Persona
from persona_jax.runs.run import write_json
from persona_jax.studies.persona_non_grata.calibrating import (
  Calibrated,
  prompt_conditions,
  with_text,
)
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal, ablations
from persona_jax.studies.persona_non_grata.settings import Settings

_RANDOM = ("R-iso", "R-cov", "R-shuf")
_OWN = ("-v", "v_perp_r", "v_par_r", "floor")  # controls that each persona has its own of
MATCHED = ("ok",)  # an overshoot misses its target, and is censored with the rest


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """One condition of the study, with what it stands for.

  Attributes:
    condition: what is run.
    arm: "B0" (no persona), "placebo", "shuffled", "user", "SP" (system prompt), "AS:norm" …
      (steered, matched on a scale), "BOTH", "dose", "control".
    persona: its name; "" for baselines and controls of no persona.
    replicate: paraphrase; 0 where there is none.
    kappa: dose in median residual norms; 0 for prompts.
    control: code of a control, else "".
    may_do_nothing: whether an edit that changes nothing is no error, as where it ablates what a
      prompt has nothing of.
  """

  condition: Condition
  arm: str
  persona: str = ""
  replicate: int = 0
  kappa: float = 0.0
  control: str = ""
  may_do_nothing: bool = False


def frame(arms: Sequence[Arm]) -> pd.DataFrame:
  """Return a row an arm: condition, arm, persona, replicate, kappa, control, direction_hash."""
  return pd.DataFrame(
    [
      {
        "condition": a.condition.name,
        "arm": a.arm,
        "persona": a.persona,
        "replicate": a.replicate,
        "kappa": a.kappa,
        "control": a.control,
        "arm_direction_hash": a.condition.direction_hash,
      }
      for a in arms
    ]
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
  """Makes steering edits at the study's block and window."""

  settings: Settings
  calibrated: Calibrated

  def edit(self, direction: Direction, kappa: float) -> Edit:
    """Return the addition of a direction's unit vector times kappa median residual norms."""
    return add(
      direction,
      kappa,
      unit="resid",
      blocks=self.calibrated.block,
      tokens=self.settings.window,
      scale=self.calibrated.scale,
    )

  def part(self, direction: Direction, kappa: float) -> Edit:
    """Return the addition of a vector as it is, in place of a unit vector at the dose kappa."""
    size = kappa * float(self.calibrated.scale.resid_L[self.calibrated.block])
    return add(
      direction,
      size,
      unit="raw",
      blocks=self.calibrated.block,
      tokens=self.settings.window,
    )


def replicate_of(direction: Direction, k: int) -> Direction:
  """Return one replicate of a direction by itself."""
  return dataclasses.replace(direction, vectors_SLD=direction.vectors_SLD[k : k + 1])


def unit_vectors(direction: Direction) -> Direction:
  """Return the mean of a direction as unit vectors, of every block."""
  return dataclasses.replace(
    direction, vectors_SLD=direction.unit_LD[None], gap_L=None, reliability_L=None
  )


def test_arms(
  settings: Settings, material: Material, extracted: Extracted, calibrated: Calibrated
) -> list[Arm]:
  """Return baselines and both methods of every persona and replicate.

  Cells of a match without a coefficient (unreachable, not monotone) have no arm; they stay in the
  table of matches.
  """
  steering = Steering(settings, calibrated)
  arms = [Arm(Condition("B0"), "B0")]
  if "placebo" in settings.baselines:
    arms += [
      Arm(with_text(settings, f"placebo {k}", text, k), "placebo", replicate=k)
      for k, text in enumerate(material.placebo_texts)
    ]
  for persona in material.personas:
    arms += _text_baselines(settings, persona, material.replicates)
  prompts = prompt_conditions(settings, material)
  for persona in material.personas:
    arms += [
      Arm(condition, "SP", persona.name, k) for k, condition in enumerate(prompts[persona.name])
    ]
  for row in calibrated.matches.to_dict("records"):
    if row["status"] not in MATCHED:
      continue
    name, k = row["persona"], int(row["replicate"])
    edit = steering.edit(replicate_of(extracted.personas[name], k), row["coef"])
    condition = Condition(f"{name} {row['by']} {k}", edits=edit, replicate=k)
    arms.append(Arm(condition, f"AS:{row['by']}", name, k, row["coef"]))
    if settings.both and row["by"] == settings.matches[0]:
      own = prompts[name][k]
      both = Condition(
        f"{name} both {k}", system=own.system, prefix=own.prefix, edits=edit, replicate=k
      )
      arms.append(Arm(both, "BOTH", name, k, row["coef"]))
  return arms


def both_arms(arms: Sequence[Arm]) -> list[Arm]:
  """Return the arms that side effects are measured in: no persona, prompted, steered."""
  return [arm for arm in arms if arm.arm in ("B0", "SP") or arm.arm.startswith("AS:")]


def _text_baselines(settings: Settings, persona: Persona, replicates: int) -> list[Arm]:
  arms = []
  for k in range(replicates):
    text = persona.text(k)
    if "shuffled" in settings.baselines:
      mixed = shuffled_words(text, settings.seed)
      condition = with_text(settings, f"{persona.name} shuffled {k}", mixed, k)
      arms.append(Arm(condition, "shuffled", persona.name, k))
    # Where personas stand in the user's turn anyway, this is the prompt arm itself.
    if "user" in settings.baselines and settings.persona_in == "system":
      arms.append(
        Arm(
          Condition(f"{persona.name} user {k}", prefix=text, replicate=k), "user", persona.name, k
        )
      )
  return arms


def dose_arms(
  settings: Settings, material: Material, extracted: Extracted, calibrated: Calibrated
) -> list[Arm]:
  """Return every persona's direction at every dose, with both signs.

  Under "high_low" the opposite pole is the same vector with the other sign and is not run again.
  """
  steering = Steering(settings, calibrated)
  arms, done = [], set()
  for persona in material.personas:
    direction = extracted.personas[persona.name]
    mirrored = dataclasses.replace(direction, vectors_SLD=-direction.vectors_SLD)
    if settings.contrast == "high_low" and _key(mirrored) in done:
      continue
    done.add(_key(direction))
    for kappa in (*(-k for k in reversed(settings.kappas)), *settings.kappas):
      condition = Condition(
        f"{persona.name} dose {kappa:+g}", edits=steering.edit(direction, kappa)
      )
      arms.append(Arm(condition, "dose", persona.name, 0, kappa))
  return arms


def _key(direction: Direction) -> bytes:
  return np.round(direction.unit_LD, 5).tobytes()


def control_arms(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  refusal: Refusal,
  calibrated: Calibrated,
  pair_chats: tuple[Sequence[Any], Sequence[Any]],
  folder: Path,
) -> list[Arm]:
  """Return the controls: random ones once, parts of a persona's direction for every persona.

  All at one dose, that of the match "norm", which every persona's own direction has too ("v").

  Args:
    pair_chats: positives and negatives that the named persona's direction was made of, for R-shuf.
    folder: where what is measured for controls is kept, so that a study that goes on, on another
      device say, goes on with the same edits.
  """
  steering, kappa = Steering(settings, calibrated), calibrated.kappa
  named = unit_vectors(extracted.personas[settings.named])
  moments = calibrated.spread
  arms = []

  def control(code: str, name: str, edits: Sequence[Edit], persona: str = "") -> None:
    arms.append(Arm(Condition(name, edits=edits), "control", persona, 0, kappa, code))

  for code in [c for c in settings.controls if c in _RANDOM]:
    if code == "R-shuf":
      drawn = _shuffled(model, settings, named, pair_chats, folder / "R-shuf")
    else:
      drawn = controls(named, code, n=settings.num_controls, moments=moments, seed=settings.seed)[
        code
      ]
    for n, direction in enumerate(drawn):
      control(code, f"{code} {n}", [steering.edit(direction, kappa)])
  if "R-plac" in settings.controls:
    for label, direction in extracted.placebo.items():
      control("R-plac", f"R-plac {label}", [steering.edit(direction, kappa)])
  if "+-r" in settings.controls:
    for direction, sign in zip(
      controls(named, "+-r", against=refusal.family)["+-r"], ("+", "-"), strict=True
    ):
      control("+-r", f"{sign}r", [steering.edit(direction, kappa)])
    removed = Condition("r ablated", edits=ablations(refusal.causal))
    arms.append(Arm(removed, "control", control="+-r", may_do_nothing=True))
  floors = (
    _floors(model, material, named, refusal, calibrated, folder / "floors.json")
    if "floor" in settings.controls
    else {}
  )
  for persona in material.personas:
    own = unit_vectors(extracted.personas[persona.name])
    whole = steering.edit(own, kappa)
    control("v", f"{persona.name} v", [whole], persona.name)
    for code in [c for c in settings.controls if c in _OWN]:
      if code == "floor":
        for name, floor in floors.items():
          edits = [whole, *floor.edits(tokens=settings.window)]
          control(f"floor {name}", f"{persona.name} floor {name}", edits, persona.name)
        continue
      # The rest also without the span of refusal's kinds, where there are several.
      spans = {code: [refusal.family]}
      if code == "v_perp_r" and refusal.subspace:
        spans["v_perp_subspace"] = [refusal.family, *refusal.subspace]
      for name, against in spans.items():
        (part,) = controls(own, code, against=against)[code]
        there = bool(part.mean_LD[calibrated.block].any())
        edits = [steering.part(part, kappa)] if there else []
        control(name, f"{persona.name} {name}", edits, persona.name)
  return arms


def _shuffled(
  model: Model,
  settings: Settings,
  named: Direction,
  pair_chats: tuple[Sequence[Any], Sequence[Any]],
  folder: Path,
) -> list[Direction]:
  """Return the directions of shuffled labels, made once."""
  paths = [folder / f"{n:03d}.safetensors" for n in range(settings.num_controls)]
  if not all(path.exists() for path in paths):
    pairs = _activations(model, settings, pair_chats)
    drawn = controls(named, "R-shuf", n=settings.num_controls, pairs=pairs, seed=settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for path, direction in zip(paths, drawn["R-shuf"], strict=True):
      direction.save(path)
  return [load_direction(path, model=model) for path in paths]


def _activations(
  model: Model, settings: Settings, pair_chats: tuple[Sequence[Any], Sequence[Any]]
) -> tuple[ActivationsInMemory, ActivationsInMemory]:
  """Read the pairs' activations where directions are read."""
  tokens = "last" if settings.source == "prompts" else settings.tokens
  blocks = range(model.arch.num_blocks)
  sides = []
  for chats in pair_chats:
    reads = model.capture(list(chats), capture_at("resid_post", tokens))
    sides.append(ActivationsInMemory([reads["resid_post", b] for b in blocks]))
  return sides[0], sides[1]


def _floors(
  model: Model,
  material: Material,
  named: Direction,
  refusal: Refusal,
  calibrated: Calibrated,
  path: Path,
) -> Mapping[str, Floors]:
  """Return floors at the baseline's 25th percentile, along refusal and a random direction.

  They are measured once.
  """
  axes = controls(named, "floor", against=refusal.family, moments=calibrated.spread)["floor"]
  by_name = dict(zip(("r", "random"), axes, strict=True))
  if not path.exists():
    prompts = [item.text for item in material.test]
    made = {n: floors_above(model, prompts, a, calibrated.block) for n, a in by_name.items()}
    write_json(
      {n: {"floor": dict(f.floor), "percentile": f.percentile} for n, f in made.items()}, path
    )
  kept = json.loads(path.read_text())
  return {
    name: Floors(
      axis, {int(b): low for b, low in kept[name]["floor"].items()}, kept[name]["percentile"]
    )
    for name, axis in by_name.items()
  }
