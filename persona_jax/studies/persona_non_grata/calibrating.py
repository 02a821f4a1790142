"""Stage "calibrate": residual norms, the steered block, coherent doses, matches of both arms."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.calibration.answers import Answers
from persona_jax.calibration.block import choose_block
from persona_jax.calibration.match import PromptArm, match_to
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.selection import (
  Fluency,
  largest_fluent,
  middle,
  try_coefficients,
)
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import add
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.studies.dose_file import read_dose, write_dose
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings

_GIVEN = "given in the config"
_SAMPLE = 512
_LIMIT_PROMPTS = 6  # harmless prompts that a dose is called coherent by


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
  """What steering is set to.

  Attributes:
    scale: median residual norms.
    spread: the sample whose covariance random directions are drawn from.
    block: that is steered.
    why: why that one.
    read_block: at which shifts are matched and, under every match, projections reported.
    limits: by persona, the largest coherent dose, in median residual norms; 0 where not even the
      smallest of the scan is.
    matches: tables of `calibration.match.match`, of all scales, one under the other.
    given_kappa: the dose that the settings give, or None.
    num_answers: calibration prompts with an answer, which all this is measured on.
    num_empty: those that the unedited model answers with no text, which are left out.
  """

  scale: Dose
  spread: Dose
  block: int
  why: str
  read_block: int
  limits: Mapping[str, float]
  matches: pd.DataFrame
  given_kappa: float | None = None
  num_answers: int = 0
  num_empty: int = 0

  @property
  def kappa(self) -> float:
    """The dose of the match "norm", of controls and of the census."""
    if self.given_kappa is not None:
      return self.given_kappa
    norm = self.matches[self.matches["by"] == "norm"]["target"]
    return float(norm.iloc[0]) if len(norm) else float(self.matches["target_norm"].median())


def with_text(settings: Settings, name: str, text: str, replicate: int) -> Condition:
  """Return a condition with a text where persona texts stand."""
  if settings.persona_in == "user":
    return Condition(name, prefix=text, replicate=replicate)
  return Condition(name, system=text, replicate=replicate)


def prompt_conditions(settings: Settings, material: Material) -> dict[str, list[Condition]]:
  """Return the prompt arm of every persona, a condition a paraphrase."""
  return {
    p.name: [
      with_text(settings, f"{p.name} prompt {k}", p.text(k), k) for k in range(material.replicates)
    ]
    for p in material.personas
  }


def calibrate(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  directory: Path,
  *,
  progress: bool = True,
) -> Calibrated:
  """Calibrate, or read what is there.

  Raises:
    ValueError: no persona's trait moves at any block, or no prompt is answered.
  """
  folder = directory / "calibration"
  scale = residual_norms(model, settings, material, directory)
  answers = calibration_answers(model, settings, material, folder)
  with tqdm.tqdm(unit="condition", disable=not progress, desc="calibrate") as bar:
    block, why = _block(model, settings, material, extracted, scale, answers, folder, bar.update)
    read_block = settings.read_out_block(model.arch.num_blocks, block)
    limits = _limits(model, settings, material, extracted, scale, block, folder)
    paths = {by: folder / f"match-{by}.parquet" for by in settings.matches}
    todo = [by for by, path in paths.items() if not path.exists()]
    arm = None
    for by in todo:
      if arm is None:  # its prompts are measured once for all scales
        arm = PromptArm.of(
          model,
          prompt_conditions(settings, material),
          extracted.personas,
          prompts=answers,
          blocks=block,
          read_block=read_block,
          tokens=settings.window,
          scale=scale,
          questionnaire=material.questionnaire,
          poles=material.poles,
          progress=bar.update,
        )
      table = match_to(
        arm,
        by=by,  # type: ignore[arg-type]
        kappa=settings.kappa,
        most={name: x or min(settings.kappas) for name, x in limits.items()},
        scan=settings.kappas,
        seed=settings.seed,
        progress=bar.update,
      )
      write_parquet(without_incoherent(table, limits), paths[by])
  tables = [pd.read_parquet(path) for path in paths.values()]
  spread = scale if settings.covariance == "answers" else _spread(model, material, folder)
  matches = pd.concat(tables, ignore_index=True)
  return Calibrated(
    scale, spread, block, why, read_block, limits, matches, settings.kappa,
    num_answers=len(answers), num_empty=answers.num_empty,
  )  # fmt: skip


def find_block(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  directory: Path,
  *,
  progress: bool = True,
) -> tuple[int, str]:
  """Return the block that is steered and why, without matching anything; what is there is read.

  Raises:
    ValueError: as `calibrate` does.
  """
  if settings.block is not None:
    return settings.steered_block(model.arch.num_blocks), _GIVEN
  folder = directory / "calibration"
  scale = residual_norms(model, settings, material, directory)
  with tqdm.tqdm(unit="condition", disable=not progress, desc="choose a block") as bar:
    answers = calibration_answers(model, settings, material, folder)
    return _block(model, settings, material, extracted, scale, answers, folder, bar.update)


def calibration_answers(
  model: Model, settings: Settings, material: Material, folder: Path
) -> Answers:
  """Return the unedited model's answers that all is measured on, generated once."""
  path = folder / "answers.json"
  if not path.exists():
    made = Answers.of(
      model, [i.text for i in material.calibration], max_new_tokens=settings.calibration_tokens
    )
    write_json({"chats": made.chats, "num_empty": made.num_empty}, path)
  kept = json.loads(path.read_text())
  return Answers(model, tuple(kept["chats"]), kept["num_empty"])


def without_incoherent(table: pd.DataFrame, limits: Mapping[str, float]) -> pd.DataFrame:
  """Censor the cells of personas of whose doses not even the smallest leaves answers fluent."""
  fluent = ~table["persona"].isin([name for name, limit in limits.items() if limit == 0])
  own = [c for c in table.columns if c.startswith(("coef", "achieved_")) and c != "coef_pooled"]
  ok = fluent & (table["status"] == "ok")
  return table.assign(
    **{c: table[c].where(fluent) for c in own},
    coef_pooled=table["coef"].where(ok).groupby(table["by"]).transform("median"),
    status=table["status"].where(fluent, "unreachable"),
    reason=table["reason"].where(fluent, "not even the smallest dose leaves answers fluent"),
  )


def residual_norms(model: Model, settings: Settings, material: Material, directory: Path) -> Dose:
  """Measure residual norms on answers to calibration prompts, or read what is there."""
  path = directory / "calibration" / "dose.npz"
  if not path.exists():
    prompts = [i.text for i in material.calibration]
    measured = dose(
      model, prompts, answer_tokens=settings.calibration_tokens, skip=settings.dose_skip
    )
    write_dose(measured, path)
  return read_dose(path)


def _spread(model: Model, material: Material, folder: Path) -> Dose:
  """Return a sample of the tokens of calibration prompts, those of the template left out."""
  path = folder / "spread.npz"
  if not path.exists():
    prompts = [i.text for i in material.calibration]
    window = Window(("user",), stop=0)
    reads = model.capture(prompts, Capture(tokens=window))
    there = ~np.isnan(reads["resid_post", 0][..., 0])
    h_LND = np.stack([reads["resid_post", b][there] for b in range(model.arch.num_blocks)])
    kept = np.unique(np.linspace(0, h_LND.shape[1] - 1, _SAMPLE).astype(int))
    norm_L = np.median(np.linalg.norm(h_LND, axis=-1), axis=1)
    about = {"model_hash": model.identity.sha256, "window": str(window), "prompts": len(prompts)}
    write_dose(Dose(norm_L, h_LND[:, kept], h_LND.shape[1], about), path)
  return read_dose(path)


def _block(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  scale: Dose,
  answers: Answers,
  folder: Path,
  progress: Callable[[int], None],
) -> tuple[int, str]:
  """Return the block that is steered, and why."""
  blocks = model.arch.num_blocks
  if settings.block is not None:
    return settings.steered_block(blocks), _GIVEN
  path = folder / "block.json"
  if not path.exists():
    poles = {p.name: material.poles[p.name] for p in material.personas if len(p.poles) == 1}
    choice = choose_block(
      answers,
      {name: extracted.personas[name] for name in poles},
      poles,
      material.questionnaire,
      list(middle(blocks, *settings.depth))[:: settings.block_step],
      scale=scale,
      tokens=settings.window,
      scan=settings.kappas,
      most=max(settings.kappas),
      progress=progress,
    )
    write_parquet(choice.table, folder / "block.parquet")
    write_parquet(choice.by_block, folder / "by_block.parquet")
    write_json({"block": choice.block, "why": choice.why}, path)
  found = json.loads(path.read_text())
  return settings.steered_block(blocks, found["block"]), found["why"]


def _limits(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  scale: Dose,
  block: int,
  folder: Path,
) -> dict[str, float]:
  """Return the largest dose of every persona up to which answers stay fluent.

  Of the doses of the scan; 0 for a persona whose smallest is not fluent.
  """
  most = max(settings.kappas)
  names = [persona.name for persona in material.personas]
  if settings.limit == "none":
    return dict.fromkeys(names, most)
  path = folder / "limits.json"
  if not path.exists():
    prompts = [i.text for i in material.calibration[:_LIMIT_PROMPTS]]
    degenerate = Degenerate(min_words=settings.least_words)
    limits, tables = {}, []
    for name in names:
      make = _maker(extracted.personas[name], settings, scale)
      trials = try_coefficients(
        model,
        make,
        [block],
        settings.kappas,
        prompts,
        max_new_tokens=settings.calibration_tokens,
        degenerate=lambda text: bool(degenerate.reason_of(text)),
      )
      tables.append(trials.assign(persona=name))
      # One degenerate answer of six is more than the usual tenth.
      bounds = Fluency(most_degenerate=max(0.1, 1 / len(prompts)))
      limits[name] = float(largest_fluent(trials, bounds)["coefficient"].iloc[0])
    write_parquet(pd.concat(tables, ignore_index=True), folder / "limits.parquet")
    write_json(limits, path)
  return {name: float(x) for name, x in json.loads(path.read_text()).items()}


def _maker(direction: Direction, settings: Settings, scale: Dose) -> Callable[[int, float], Edit]:
  def make(block: int, coef: float) -> Edit:
    return add(direction, coef, unit="resid", blocks=block, tokens=settings.window, scale=scale)

  return make
