"""Which stages of a study have been run, so that one can be run by itself."""

import json
from collections.abc import Sequence
from pathlib import Path

from persona_jax.runs.run import Run
from persona_jax.studies.persona_non_grata.confirm import RECORD
from persona_jax.studies.persona_non_grata.generation import PARTS
from persona_jax.studies.persona_non_grata.judging import Judges
from persona_jax.studies.persona_non_grata.settings import Settings

STAGES = ("extract", "calibrate", "generate", "judge", "analyse", "report")


def require(
  settings: Settings, asked: Sequence[str], directory: Path, judges: Judges | None = None
) -> None:
  """Check that every stage before the last one asked for is asked for too, or has been run.

  Args:
    settings: of the study.
    asked: names of stages to run.
    directory: of the study.
    judges: of the study, if it has any.

  Raises:
    ValueError: no stage, an unknown one, or one before the last that was not run to its end.
  """
  unknown = [stage for stage in asked if stage not in STAGES]
  if unknown or not asked:
    raise ValueError(f"stages {unknown or 'are none'}: use some of {list(STAGES)}.")
  last = max(STAGES.index(stage) for stage in asked)
  lacking = [
    stage
    for stage in STAGES[:last]
    if stage not in asked and not _is_done(settings, stage, directory, judges)
  ]
  if lacking:
    raise ValueError(
      f"{directory}: the stages {lacking} have not been run to their end; name them too (--stages)."
    )


def _is_done(settings: Settings, stage: str, directory: Path, judges: Judges | None) -> bool:
  if stage == "extract":
    return (directory / "directions" / "refusal.json").exists()
  if stage == "calibrate":
    files = [directory / "calibration" / f"match-{by}.parquet" for by in settings.matches]
    return all(file.exists() for file in files)
  if stage == "analyse":
    return (directory / "tables" / "verdicts.json").exists()
  if stage == "judge":
    file = directory / "judgements" / "judges.json"
    if judges is None or not judges.is_any:
      return True
    return file.exists() and Judges.of(json.loads(file.read_text())["settings"]) == judges
  prompts = {
    "test": settings.test_prompts,
    "twins": settings.twin_prompts,
    "dose": settings.dose_prompts,
    "controls": settings.control_prompts,
    "confirm": settings.confirm_prompts if (directory / RECORD).exists() else 0,
    "over": settings.over_prompts,
  }
  wanted = [part for part in PARTS if part in settings.generate and prompts[part]]
  grids = [directory / "grids" / part for part in wanted]
  return all((grid / "grid.json").exists() and Run.open(grid).is_complete for grid in grids)
