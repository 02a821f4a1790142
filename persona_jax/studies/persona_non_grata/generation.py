"""Stage "generate": every arm on the same prompts; labels, and exact first-token probabilities."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.prompts import data_hash
from persona_jax.directions.direction import Direction
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.edits.table import Where
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.grid import Grid
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits, next_logits_and_reads
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
class Projections:
  """Unit directions that the last token of every prompt is projected on.

  Attributes:
    refusal: each block's own.
    personas: by name; a row is projected on its persona's.
    blocks: the steered one, and the one that shifts are read at.
  """

  refusal: Direction
  personas: Mapping[str, Direction]
  blocks: tuple[int, int]

  @property
  def bank(self) -> list[Direction]:
    """Directions in the order of what is read: refusal, then the personas'."""
    return [self.refusal, *self.personas.values()]

  def capture(self) -> Capture:
    """Return what the engine is to read."""
    return Capture(
      blocks=sorted(set(self.blocks)), reduce="last", bank=[_without_zeros(d) for d in self.bank]
    )

  def of_rows(
    self, reads: Mapping[Where, np.ndarray], arms: Sequence[Arm], prompts: int
  ) -> dict[str, np.ndarray]:
    """Return the columns of rows, arm by arm, each with so many prompts.

    NaN without a persona, and where a direction is zero, as refusal is before harm is read.
    """
    names = list(self.personas)
    at_A = [1 + names.index(arm.persona) if arm.persona in names else 0 for arm in arms]
    at_N = np.repeat(at_A, prompts)
    found = {}
    for block, place in zip(self.blocks, ("steered", "read"), strict=True):
      there_R = np.array([bool(d.mean_LD[block].any()) for d in self.bank])
      x_NR = np.where(there_R, reads["resid_post", block], np.nan)
      found[f"r_{place}"] = x_NR[:, 0]
      found[f"v_{place}"] = np.where(at_N > 0, x_NR[np.arange(len(x_NR)), at_N], np.nan)
    return found


def _without_zeros(direction: Direction) -> Direction:
  """Return a direction with some unit vector where it is zero: the engine projects on no zero."""
  zero_L = ~direction.mean_LD.any(axis=-1)
  if not zero_L.any():
    return direction
  vectors_SLD = direction.vectors_SLD.copy()
  vectors_SLD[:, zero_L, 0] = 1.0
  return dataclasses.replace(direction, vectors_SLD=vectors_SLD)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """One part of the grid: some arms on some prompts.

  Attributes:
    name: out of `PARTS`.
    arms: its conditions.
    prompts: its prompts.
    projections: what is read of each prompt's last token; None for nothing.
  """

  name: str
  arms: tuple[Arm, ...]
  prompts: tuple[PromptItem, ...]
  projections: Projections | None = None

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
  refusal: Refusal | None,
  calibrated: Calibrated,
  directory: Path,
  *,
  with_confirm: bool = False,
) -> list[Part]:
  """Return the parts of the grid that have prompts, "confirm" among them only if it is asked for.

  Whoever asks has opened it (`confirm.open_confirm`). Without a refusal direction rows hold no
  projections.

  Raises:
    ValueError: there are to be controls, and there is no refusal direction.
  """
  arms = test_arms(settings, material, extracted, calibrated)
  parts = [Part("test", tuple(arms), material.test)]
  if settings.twin_prompts:
    parts.append(Part("twins", tuple(arms), material.twins))
  if settings.dose_prompts:
    doses = [arms[0], *dose_arms(settings, material, extracted, calibrated)]
    parts.append(Part("dose", tuple(doses), material.test[: settings.dose_prompts]))
  if settings.control_prompts:
    if refusal is None:
      raise ValueError(
        f"control_prompts={settings.control_prompts}: controls need the refusal direction."
      )
    chats = _named_pairs(settings, material, directory)
    folder = directory / "calibration"
    made = control_arms(model, settings, material, extracted, refusal, calibrated, chats, folder)
    parts.append(Part("controls", (arms[0], *made), material.test[: settings.control_prompts]))
  if with_confirm:
    parts.append(Part("confirm", tuple(arms), material.confirm))
  if settings.over_prompts:
    parts.append(Part("over", tuple(both_arms(arms)), material.over))
  if refusal is None:
    return parts
  read = Projections(refusal.family, extracted.personas, (calibrated.block, calibrated.read_block))
  return [dataclasses.replace(part, projections=read) for part in parts]


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
    p_bypass (one minus its probability), r_steered, v_steered, r_read and v_read (`Projections`:
    of the prompt's last token after edits, in units of the residual stream), and where the part is
    generated label, bypass, degenerate_reason, text, token_ids, finish_reason, row_id, valid,
    delivered_dose, tokens_edited, n_tokens.
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
        "token_ids", "finish_reason", "row_id", "valid", "delivered_dose", "tokens_edited",
        "n_tokens",
      ]  # fmt: skip
      # A scorer of one's own gives labels, and perhaps no reason why an answer is degenerate.
      there = [c for c in columns if c in done or c != "degenerate_reason"]
      table = done[there].merge(exact, on=["condition", "prompt_id"], validate="many_to_one")
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
      found.append(_measured(model, part, mine, ids, folder, bar.update))
  odds = pd.concat(found, ignore_index=True)
  table = odds.merge(about, on="condition", validate="many_to_one")
  table = table.merge(prompts, on="prompt_id", validate="many_to_one")
  return table.assign(p_bypass=1 / (1 + np.exp(table["log_odds"])))


def _measured(
  model: Model,
  part: Part,
  arms: Sequence[Arm],
  ids: Sequence[int],
  folder: Path,
  progress: Callable[[int], object],
) -> pd.DataFrame:
  """Measure some arms of a part, or read what was measured of them."""
  prompts, read = part.prompts, part.projections
  asked: list[object] = [
    [arm.condition.describe() for arm in arms],
    [item.text for item in prompts],
    list(ids),
    model.identity.sha256,
  ]
  if read is not None:
    whose = [read.personas[arm.persona].hash for arm in arms if arm.persona in read.personas]
    asked.append([read.refusal.hash, whose, read.blocks])
  path = folder / f"part-{content_hash(asked)[:16]}.parquet"
  if not path.exists():
    table = pd.DataFrame(
      {
        "condition": [arm.condition.name for arm in arms for _ in prompts],
        "prompt_id": [item.prompt_id for _ in arms for item in prompts],
      }
    )
    for free in (False, True):
      mine = [a for a, arm in enumerate(arms) if arm.may_do_nothing == free]
      if mine:
        chosen = [arms[a] for a in mine]
        chats = [arm.condition.apply(item.text) for arm in chosen for item in prompts]
        edits = [arm.condition.edits for arm in chosen for _ in prompts]
        rows = encode_rows(model, chats, edits)
        at = np.concatenate([np.arange(a * len(prompts), (a + 1) * len(prompts)) for a in mine])
        if read is None:
          logits_NV = next_logits(model, rows, check_delivery=not free)
        else:
          logits_NV, reads = next_logits_and_reads(
            model, rows, read.capture(), check_delivery=not free
          )
          for column, x_N in read.of_rows(reads, chosen, len(prompts)).items():
            table.loc[at, column] = x_N
        table.loc[at, "log_odds"] = log_odds(logits_NV, ids)
    write_parquet(table, path)
  progress(len(arms) * len(prompts))
  return pd.read_parquet(path)
