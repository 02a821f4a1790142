"""The stages that run the model on the arms: generations with labels, and self-report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.data.items import SelfReportItem, load_ipip120
from persona_jax.data.prompts import PromptItem, data_hash
from persona_jax.engine.grid import Grid
from persona_jax.engine.model import Model
from persona_jax.personas.persona import TRAITS
from persona_jax.runs.run import run, write_parquet
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.self_report import SelfReport
from persona_jax.studies.prompt_vs_steering.conditions import Arm
from persona_jax.studies.prompt_vs_steering.settings import Settings

_CHUNK = 16  # conditions of one self-report file: what an interruption can cost


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
  questionnaire: Sequence[SelfReportItem] | None = None,
  progress: bool = True,
) -> pd.DataFrame:
  """Measure self-report expression under every arm, some conditions a file.

  `questionnaire` defaults to the IPIP-NEO-120; each arm is asked the items of its own traits.

  Returns:
    The columns of `scorers.self_report`, with arm, persona, coef, direction_hash and config_hash.
  """
  questionnaire = load_ipip120() if questionnaire is None else questionnaire
  report = SelfReport(questionnaire)
  # Like lengths together: the prompt arm's persona texts make its rows longer than the others'.
  names = sorted(by_name, key=lambda name: by_name[name].arm == "prompt")
  traits = {name: _traits(arm, by_name) for name, arm in by_name.items()}
  items = sum(item.trait in asked for asked in traits.values() for item in questionnaire)
  bar = tqdm.tqdm(total=items, unit="item", disable=not progress, desc="self-report")
  parts = []
  with bar:
    for i in range(0, len(names), _CHUNK):
      chunk = names[i : i + _CHUNK]
      measured = [[by_name[name].condition.describe(), list(traits[name])] for name in chunk]
      key = content_hash([config_hash, data_hash(questionnaire), measured])[:16]
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
