"""Stage "generate": every arm on the same prompts; labels, and exact first-token probabilities."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.prompts import data_hash
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.grid import Grid
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.runs.run import run, write_parquet
from persona_jax.scorers.base import Scorer
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.labels import FirstToken, Labels
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.conditions import (
  Arm,
  both_arms,
  control_arms,
  dose_arms,
  frame,
  test_arms,
)
from persona_jax.studies.persona_non_grata.contrasts import (
  answer_pairs,
  contrasts_of,
  prompt_pairs,
)
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal
from persona_jax.studies.persona_non_grata.settings import Settings

PARTS = ("test", "twins", "dose", "controls", "confirm", "over")
_AT_ONCE = 8  # conditions of one file of first tokens: what an interruption can cost


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """One part of the grid: some arms on some prompts.

  Attributes:
    name: out of `PARTS`.
    arms: its conditions.
    prompts: its prompts.
  """

  name: str
  arms: tuple[Arm, ...]
  prompts: tuple[PromptItem, ...]

  @property
  def num_rows(self) -> int:
    """Rows of one sample."""
    return len(self.arms) * len(self.prompts)

  @property
  def split_hash(self) -> str:
    """Hash of the prompts; of a whole split the beginning of its hash in config.json."""
    return data_hash(self.prompts)[:16]

  def grid(self, settings: Settings) -> Grid:
    """Return the part as a grid of answers."""
    return Grid(
      {item.prompt_id: item.text for item in self.prompts},
      [arm.condition for arm in self.arms],
      samples=settings.samples,
      max_new_tokens=settings.max_new_tokens,
      temperature=settings.temperature,
      seed=settings.seed,
    )


def parts_of(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  refusal: Refusal,
  calibrated: Calibrated,
  directory: Path,
  *,
  with_confirm: bool = False,
) -> list[Part]:
  """Return the parts of the grid that have prompts, "confirm" among them only if it is asked for.

  Whoever asks has opened it (`confirm.open_confirm`).
  """
  arms = test_arms(settings, material, extracted, calibrated)
  parts = [Part("test", tuple(arms), material.test)]
  if settings.twin_prompts:
    parts.append(Part("twins", tuple(arms), material.twins))
  if settings.dose_prompts:
    doses = [arms[0], *dose_arms(settings, material, extracted, calibrated)]
    parts.append(Part("dose", tuple(doses), material.test[: settings.dose_prompts]))
  if settings.control_prompts:
    chats = _named_pairs(settings, material, directory)
    folder = directory / "calibration"
    made = control_arms(model, settings, material, extracted, refusal, calibrated, chats, folder)
    parts.append(Part("controls", (arms[0], *made), material.test[: settings.control_prompts]))
  if with_confirm:
    parts.append(Part("confirm", tuple(arms), material.confirm))
  if settings.over_prompts:
    parts.append(Part("over", tuple(both_arms(arms)), material.over))
  return parts


def _named_pairs(
  settings: Settings, material: Material, directory: Path
) -> tuple[Sequence[object], Sequence[object]]:
  """Return the chats that the named persona's direction was made of, or its first trait's."""
  contrasts = {c.name: c for c in contrasts_of(settings, material)}
  persona = next(p for p in material.personas if p.name == settings.named)
  labels = [persona.label, persona.contrast().label, *map(str, persona.poles)]
  labels += [str(pole.opposite) for pole in persona.poles]
  name = next(label for label in labels if label in contrasts)
  if settings.source == "prompts":
    pairs = prompt_pairs(contrasts[name], material.questions, settings.persona_in)
  else:
    table = pd.read_parquet(directory / "directions" / "answers.parquet")
    pairs = answer_pairs(table, name, settings.context, settings.persona_in)
  return pairs.positive, pairs.negative


def labeller(model: Model, settings: Settings, ids: Sequence[int]) -> Labels:
  """Return the scorer that labels answers.

  Raises:
    ValueError: answers are to be judged by their first token, which the template makes a thought's.
  """
  refusal: Scorer = RefusalRules() if settings.labels == "rules" else FirstToken(tuple(ids))
  opens_thought = model.chat.render("Hello.").opens_thought
  if opens_thought and "first_token" in (settings.labels, settings.outcome):
    raise ValueError(
      f"labels={settings.labels!r}, outcome={settings.outcome!r}: this model's prompts open a "
      "thought, so that the first token begins no answer; use 'rules' and 'label'."
    )
  return Labels(refusal, Degenerate(min_words=settings.least_words), opens_thought)


def generate(
  model: Model,
  settings: Settings,
  parts: Sequence[Part],
  ids: Sequence[int],
  directory: Path,
  *,
  scorer: Scorer | None = None,
  progress: bool = True,
) -> pd.DataFrame:
  """Run the grid and return its tidy table.

  Args:
    model: the model.
    settings: of the study.
    parts: of `parts_of`.
    ids: tokens with which refusals begin.
    directory: of the study.
    scorer: gives the columns label, bypass and degenerate_reason; default by the settings.

  Returns:
    A row a prompt, condition and sample: part, split_hash, the columns of `conditions.frame`,
    prompt_id, kind, category, cluster, sample, log_odds (of a refusal at the first token, exact),
    p_bypass (one minus its probability), and where the part is generated label, bypass,
    degenerate_reason, text, token_ids, row_id, valid, delivered_dose, tokens_edited, n_tokens.
  """
  tables = []
  for part in parts:
    exact = first_tokens(model, part, ids, directory, progress=progress)
    table = exact
    if part.name in settings.generate:
      done = run(
        model,
        part.grid(settings),
        directory / "grids" / part.name,
        scorers=[scorer or labeller(model, settings, ids)],
        progress=progress,
      ).table()
      columns = [
        "condition", "prompt_id", "sample", "label", "bypass", "degenerate_reason", "text",
        "token_ids", "row_id", "valid", "delivered_dose", "tokens_edited", "n_tokens",
      ]  # fmt: skip
      table = done[columns].merge(exact, on=["condition", "prompt_id"], validate="many_to_one")
    else:
      table = table.assign(sample=0)
    tables.append(table.assign(part=part.name, split_hash=part.split_hash))
  found = pd.concat(tables, ignore_index=True)
  if "bypass" in found:
    found["bypass"] = found["bypass"].astype("boolean")
  return found


def first_tokens(
  model: Model, part: Part, ids: Sequence[int], directory: Path, *, progress: bool = True
) -> pd.DataFrame:
  """Measure refusal log-odds of the first token of every cell, some conditions a file."""
  about = frame(part.arms)
  prompts = pd.DataFrame(
    [
      {
        "prompt_id": i.prompt_id,
        "kind": i.kind,
        "category": i.category,
        "cluster": i.cluster or i.prompt_id,
      }
      for i in part.prompts
    ]
  )
  folder = directory / "first_token" / part.name
  found = []
  with tqdm.tqdm(
    total=part.num_rows, unit="row", disable=not progress, desc=f"first token, {part.name}"
  ) as bar:
    for first in range(0, len(part.arms), _AT_ONCE):
      mine = part.arms[first : first + _AT_ONCE]
      found.append(_measured(model, mine, part.prompts, ids, folder, bar.update))
  odds = pd.concat(found, ignore_index=True)
  table = odds.merge(about, on="condition", validate="many_to_one")
  table = table.merge(prompts, on="prompt_id", validate="many_to_one")
  return table.assign(p_bypass=1 / (1 + np.exp(table["log_odds"])))


def _measured(
  model: Model,
  arms: Sequence[Arm],
  prompts: Sequence[PromptItem],
  ids: Sequence[int],
  folder: Path,
  progress: Callable[[int], object],
) -> pd.DataFrame:
  key = content_hash(
    [
      [arm.condition.describe() for arm in arms],
      [item.text for item in prompts],
      list(ids),
      model.identity.sha256,
    ]
  )[:16]
  path = folder / f"part-{key}.parquet"
  if not path.exists():
    odds_AN = np.empty((len(arms), len(prompts)))
    for free in (False, True):
      mine = [a for a, arm in enumerate(arms) if arm.may_do_nothing == free]
      if mine:
        chats = [arms[a].condition.apply(item.text) for a in mine for item in prompts]
        edits = [arms[a].condition.edits for a in mine for _ in prompts]
        logits_NV = next_logits(model, encode_rows(model, chats, edits), check_delivery=not free)
        odds_AN[mine] = log_odds(logits_NV, ids).reshape(len(mine), -1)
    table = pd.DataFrame(
      {
        "condition": [arm.condition.name for arm in arms for _ in prompts],
        "prompt_id": [item.prompt_id for _ in arms for item in prompts],
        "log_odds": odds_AN.ravel(),
      }
    )
    write_parquet(table, path)
  progress(len(arms) * len(prompts))
  return pd.read_parquet(path)
