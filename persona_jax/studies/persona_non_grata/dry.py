"""What the study will take, before anything runs: rows, tokens, memory, by part of the grid."""

import numpy as np
import pandas as pd

from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose
from persona_jax.engine.accelerators import accelerator
from persona_jax.engine.model import Model
from persona_jax.engine.plan import plan
from persona_jax.personas.persona import Persona
from persona_jax.personas.wording import check_texts
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.conditions import both_arms, dose_arms, test_arms
from persona_jax.studies.persona_non_grata.contrasts import contrasts_of
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.generation import Part
from persona_jax.studies.persona_non_grata.hours import Hours
from persona_jax.studies.persona_non_grata.judging import Judges
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import common_categories
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.specification import choices

_SHOWN = 4  # problems of persona texts


def describe(
  model: Model,
  settings: Settings,
  material: Material,
  on: str | None = None,
  judges: Judges | None = None,
) -> str:
  """Return a report of what every stage will run, with the plan of each generated part.

  Directions are not there yet: random ones stand in for them, all matches are taken as met, and if
  the block is not given it is taken as the middle of the depth it is chosen from. Shapes, and so
  rows, tokens and memory, do not depend on it. Controls are counted, not planned.

  Args:
    model: the model, which needs no weights.
    settings: of the study.
    material: that it reads.
    on: name of an accelerator that the study is planned for (`engine.accelerators`): adds hours.
    judges: of the study, if it has any.
  """
  blocks = model.arch.num_blocks
  block = settings.block
  if block is None:
    block = round(sum(settings.depth) / 2 * blocks)
  extracted, calibrated = _stand_ins(model, settings, material, block)
  arms = test_arms(settings, material, extracted, calibrated)
  parts = [Part("test", tuple(arms), material.test)]
  if settings.twin_prompts:
    parts.append(Part("twins", tuple(arms), material.twins))
  if settings.dose_prompts:
    doses = (arms[0], *dose_arms(settings, material, extracted, calibrated))
    parts.append(Part("dose", doses, material.test[: settings.dose_prompts]))
  if settings.confirm_prompts:
    parts.append(Part("confirm", tuple(arms), material.confirm))
  if settings.over_prompts:
    parts.append(Part("over", tuple(both_arms(arms)), material.over))
  hours = None if on is None else Hours(model, settings, material, accelerator(on))
  lines = [*stages(settings, material, blocks), ""]
  answers = {part.name: part.num_rows * settings.samples for part in parts}
  for part in parts:
    once = " (when it is opened)" if part.name == "confirm" else ""
    exact = f"{part.name}{once}: {len(part.arms)} conditions x {len(part.prompts)} prompts"
    lines.append(f"{exact}: {part.num_rows} exact first tokens")
    if hours is not None:
      hours.first_tokens(part.name, part.num_rows)
    if part.name in settings.generate:
      planned = plan(model, part.grid(settings), on=on)
      lines += ["", str(planned), ""]
      if hours is not None and planned.seconds is not None:
        hours.add(part.name, planned.seconds)
  if settings.control_prompts:
    count = _num_controls(settings, material)
    rows = count * settings.control_prompts
    answers["controls"] = rows * settings.samples
    exact = f"controls: {count} conditions x {settings.control_prompts} prompts"
    lines.append(f"{exact}: {rows} exact first tokens")
    if hours is not None:
      hours.first_tokens("controls", rows)
      if "controls" in settings.generate:
        hours.answers("controls", rows * settings.samples, settings.max_new_tokens)
  if material.util:
    count = len(both_arms(arms))
    rows = count * len(material.util)
    lines.append(
      f"mmlu: {count} conditions x {len(material.util)} questions: {rows} answers scored"
    )
  if settings.spec_prompts:
    ways = choices(settings, extracted, calibrated, blocks)
    rows = len(ways) * len(material.personas) * settings.spec_prompts
    lines.append(f"specification curve: {len(ways)} ways: {rows} exact first tokens at most")
    if hours is not None:
      hours.first_tokens("specification curve", rows)
  if judges is not None and judges.fluency:
    rows = sum(answers.get(p, 0) for p in judges.parts if p in settings.generate)
    lines.append(f"fluency: {rows} answers scored under the unedited model, without a persona")
    if hours is not None:
      hours.readings("fluency", rows, settings.max_new_tokens)
  if hours is not None:
    lines += ["", *hours.lines()]
  lines += ["", *unmeasured(settings, judges)]
  problems = [p for p in check_texts(material.personas[0].lexicon) if not p.declared]
  lines += [f"persona texts: {p.kind} {p.where}: {p.detail}" for p in problems[:_SHOWN]]
  if len(problems) > _SHOWN:
    lines.append(f"persona texts: {len(problems)} such problems in all")
  return "\n".join(lines)


def unmeasured(
  settings: Settings,
  judges: Judges | None = None,
  *,
  labelled: bool = False,
  annotated: bool = False,
) -> list[str]:
  """Return what the study will lack whatever the model does, a line each.

  First what will keep hypotheses from being tested, then which tables will be empty.

  Args:
    settings: of the study.
    judges: of the study, if it has any.
    labelled: whether answers with known labels are given.
    annotated: whether people's labels of this study's own rows are.
  """
  notes = {
    "G4": "gate G4 blocks every hypothesis: no answers of the test are generated (generate)",
    "G5": "gate G5 blocks every hypothesis unless people's labels are given (--annotations of this "
    "study's rows, or --labelled answers)",
    "style": "gate G5 blocks every hypothesis: whether style takes the judges in is not tested; "
    "ask a judge of harm about answers to twins (judges.rubrics, generate), or have refusals "
    "retold (judges.retold)",
    "G6": "gate G6 blocks every hypothesis: no judge is asked for competence (judges.rubrics)",
  }
  if judges is not None and "competence" in judges.rubrics:
    del notes["G6"]
  if labelled or annotated:
    del notes["G5"]
  if judges is not None and _tests_style(settings, judges):
    del notes["style"]
  if "test" in settings.generate:
    del notes["G4"]
  asked = (*settings.gates, *(["style"] if "G5" in settings.gates else []))
  found = [note for gate, note in notes.items() if gate in asked]
  if not settings.spec_prompts:
    found.append("hypothesis H3 cannot be tested without a specification curve (spec_prompts)")
  if "test" in settings.generate and not annotated:
    found.append(
      "T2 and T8: rates are not corrected for the judge's errors, nor annotators compared, without "
      "people's labels of this study's rows (--annotations)"
    )
  return found


def _tests_style(settings: Settings, judges: Judges) -> bool:
  """Say whether there is a test, and for a judge of harm the answers that it needs."""
  if "harm" in judges.rubrics and "twins" not in settings.generate:
    return False
  return judges.tests_style


def stages(settings: Settings, material: Material, blocks: int) -> list[str]:
  """Return what the stages before the grid will run, a line each."""
  contrasts = contrasts_of(settings, material)
  pairs = len(contrasts) * material.replicates * settings.questions_each
  if settings.source == "answers":
    pairs *= settings.answer_samples
    extraction = (
      f"{2 * pairs} answers of up to {settings.answer_tokens} tokens, rated and read twice"
    )
  else:
    extraction = f"{2 * pairs} prompts"
  cells = len(material.personas) * material.replicates
  return [
    f"extract: {len(contrasts)} contrasts x {material.replicates} replicates: {extraction}",
    f"refusal: {settings.train_prompts} + {settings.held_out_prompts} prompts of either kind, "
    "candidates at every template token and block of the first 80 %",
    f"calibrate: {cells} cells, matched by {', '.join(settings.matches)}, on "
    f"{settings.calibration_prompts} prompts; a scan of {len(settings.kappas)} doses, then solved"
    + ("" if settings.block is not None else f"; block chosen of {blocks}"),
  ]


def _num_controls(settings: Settings, material: Material) -> int:
  perpendicular = 2 if common_categories(material.harmful) else 1
  own = {"-v": 1, "v_perp_r": perpendicular, "v_par_r": 1, "floor": 2}
  once = dict.fromkeys(("R-iso", "R-cov", "R-shuf"), settings.num_controls)
  once |= {"R-plac": sum(len(p.poles) == 1 for p in material.placebo), "+-r": 3}
  each = 1 + sum(own.get(code, 0) for code in settings.controls)
  return 1 + sum(once.get(code, 0) for code in settings.controls) + each * len(material.personas)


def _stand_ins(
  model: Model, settings: Settings, material: Material, block: int
) -> tuple[Extracted, Calibrated]:
  """Return random directions, opposite poles with one vector, and matches that are all met."""
  blocks, width = model.arch.num_blocks, model.arch.width
  rng = np.random.default_rng(settings.seed)

  shape = material.replicates, blocks, width
  bases = {trait: rng.normal(size=shape) for trait in material.traits}

  def direction(persona: Persona) -> Direction:
    vectors = np.sum([pole.sign * bases[pole.trait] for pole in persona.poles], axis=0)
    mirrored = settings.contrast == "high_low"  # so the dose curve runs one of two opposites
    return Direction(vectors if mirrored else rng.normal(size=shape), persona.name)

  personas = {p.name: direction(p) for p in material.personas}
  others = {p.name: personas[p.name] for p in material.personas if len(p.poles) > 1}
  nothing = pd.DataFrame()
  extracted = Extracted({}, personas, others, {}, nothing, nothing)
  scale = Dose(np.ones(blocks, np.float32), rng.normal(size=(blocks, 2, width)), 2, {})
  matches = pd.DataFrame(
    [
      {"persona": name, "replicate": k, "by": by, "coef": 0.1, "status": "ok", "target_norm": 0.1}
      for by in settings.matches
      for name in personas
      for k in range(material.replicates)
    ]
  )
  read_block = settings.read_out_block(blocks, block)
  limits = dict.fromkeys(personas, max(settings.kappas))
  return extracted, Calibrated(scale, scale, block, "planned", read_block, limits, matches)
