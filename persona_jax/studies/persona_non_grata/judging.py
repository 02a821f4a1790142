"""Stage "judge": answers that are there are read again by judges, and labelled by what they say.

Nothing is generated. Judges may be changed, and added later: what each of them said is kept by its
description, and the labels follow from what the settings ask for now.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from persona_jax.data.abilities import load_capabilities
from persona_jax.data.hashing import content_hash
from persona_jax.data.labelled import load_labelled
from persona_jax.engine.grid import Condition, Grid
from persona_jax.engine.model import Model
from persona_jax.runs.run import run, write_json, write_parquet
from persona_jax.scorers.base import Scorer
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.fluency import Fluency, answers_needed, least_logprob
from persona_jax.scorers.judges import Endpoint, EndpointJudge, LocalJudge, load_rubric
from persona_jax.scorers.kept import Kept
from persona_jax.scorers.labels import Labels
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.refusal_ensemble import RefusalEnsemble
from persona_jax.studies.fields import settings_of
from persona_jax.studies.persona_non_grata.gates import Competence
from persona_jax.studies.persona_non_grata.generation import PARTS
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.restyling import retold_refusals
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.style import StyleInvariance
from persona_jax.studies.persona_non_grata.style_tests import style_tests

RUBRICS = ("harm", "coherence", "specificity", "competence")
LABELLED = ("pyrit/refusal", "pyrit/refusal_extra")
Load = Callable[[str], Model]


@dataclasses.dataclass(frozen=True)
class Judges:
  """Who reads the answers.

  Attributes:
    refusal: "rules" finds refusals by phrases; "ensemble" by phrases, a probe and the question's
      part in the answer (`scorers.refusal_ensemble`), fitted to people's labels of PyRIT's sets.
    reader: the model that the ensemble reads with; "" for the one that is studied, unedited.
    rubrics: that a judge is asked: "harm" (an answer is a success only if it is of use),
      "coherence" (below 50 an answer is degenerate), "specificity" (decides nothing), "competence"
      (of answers to harmless tasks, for gate G6).
    model: that the rubrics are asked of: another one than the studied, unedited; or its name at
      the endpoint. "" for none.
    endpoint: address of an OpenAI-compatible API; "" for our own engine.
    endpoint_name: what stands for the address where replies are kept (`judges.Endpoint`); "" for
      its host and path.
    key_variable: environment variable with its key; "" for none.
    least_mass: probability that a rubric's options need together.
    fluency: whether an answer is degenerate that the unedited model without a persona finds less
      likely than nearly all of its own (`scorers.fluency`): a pass over all answers.
    fluency_percentile: in per cent, the share of its own answers that lie below the threshold: of
      all judged parts but "confirm", so that opening it changes no label.
    parts: of the grid that are judged.
    tasks: everyday requests (`data.abilities`) that gate G6 is measured on, at most 30.
    retold: refusals of PyRIT's sets that each persona retells, to test labels for style; people
      then read them (`restyling`). 0 for none: style is then tested on twins alone, and only if
      there is a judge of harm.
    reteller: the model that retells them, unedited; "" for the one that is studied.
  """

  refusal: Literal["rules", "ensemble"]
  reader: str
  rubrics: tuple[str, ...]
  model: str
  endpoint: str
  endpoint_name: str
  key_variable: str
  least_mass: float
  fluency: bool
  fluency_percentile: float
  parts: tuple[str, ...]
  tasks: int
  retold: int
  reteller: str

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> Judges:
    """Make them of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or as the class says.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    for name in ("rubrics", "parts"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.refusal not in ("rules", "ensemble"):
      raise ValueError(f"judges.refusal={self.refusal!r}: use 'rules' or 'ensemble'.")
    for name, known in (("rubrics", RUBRICS), ("parts", PARTS)):
      given = getattr(self, name)
      if not set(given) <= set(known) or len(set(given)) < len(given):
        raise ValueError(f"judges.{name}={given}: name some of {list(known)}, once.")
    if not 0 < self.fluency_percentile < 100:
      raise ValueError(
        f"judges.fluency_percentile={self.fluency_percentile}: between 0 and 100 fits."
      )
    if bool(self.rubrics) != bool(self.model):
      raise ValueError(
        f"judges.rubrics={self.rubrics} and judges.model={self.model!r}: give both, or neither."
      )
    if self.endpoint and not self.model:
      raise ValueError(f"judges.endpoint={self.endpoint!r} without judges.model.")
    if self.tasks < 1 or not 0 <= self.least_mass <= 1:
      raise ValueError(
        f"judges.tasks={self.tasks}, judges.least_mass={self.least_mass}: at least 1, and a share."
      )
    if self.endpoint_name and not self.endpoint:
      raise ValueError(f"judges.endpoint_name={self.endpoint_name!r} without judges.endpoint.")
    if self.retold < 0 or (self.reteller and not self.retold):
      raise ValueError(
        f"judges.retold={self.retold}, judges.reteller={self.reteller!r}: some refusals, or none "
        "and nobody."
      )

  @property
  def is_any(self) -> bool:
    """Whether anything is read again."""
    asked = self.refusal == "ensemble" or self.fluency or bool(self.rubrics) or self.retold > 0
    return bool(self.parts) and asked

  @property
  def key(self) -> str:
    """What labels depend on, as a hash; "" where nothing is read again."""
    if not self.is_any:
      return ""
    fields = dataclasses.asdict(self)
    for name in ("endpoint_name", "retold", "reteller"):
      del fields[name]
    return content_hash(fields)

  @property
  def read_prompts(self) -> bool:
    """Whether they read an answer's question, too."""
    return bool(self.parts) and (self.refusal == "ensemble" or bool(self.rubrics))

  @property
  def tests_style(self) -> bool:
    """Whether anything is read that shows whether style takes the judges in."""
    return bool(self.parts) and ("harm" in self.rubrics or self.retold > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
  """What the judges said.

  Attributes:
    table: the tidy table with the judges' labels where there are some, and their columns.
    labels: the scorer that made them, for gate G5; None where nothing was read again.
    competence: of answers to harmless tasks; None where it was not asked.
    about: who judged, and how often they failed.
    style: tests of the judges' style invariance, for gate G5.
  """

  table: pd.DataFrame
  labels: Labels | None
  competence: Competence | None
  about: dict[str, Any]
  style: tuple[StyleInvariance, ...] = ()


def judge(
  model: Model,
  settings: Settings,
  judges: Judges,
  material: Material,
  table: pd.DataFrame,
  directory: Path,
  load: Load,
  *,
  progress: bool = True,
) -> Judged:
  """Read the answers of the grid again.

  Args:
    model: that was studied.
    settings, judges: of the study.
    material: that it read.
    table: of `generation.generate`.
    directory: of the study.
    load: makes a model of a name, for readers and judges other than `model`.
    progress: whether to show bars.

  Raises:
    ValueError: a part is judged that was not generated, or more refusals are retold than there are.
  """
  if not judges.is_any:
    return Judged(table, None, None, {})
  lacking = [part for part in judges.parts if part not in settings.generate]
  if lacking:
    raise ValueError(
      f"judges.parts={list(judges.parts)}: of {lacking} no answers are generated "
      f"(generate={list(settings.generate)})."
    )
  folder = directory / "judgements"
  reader = load(judges.reader) if judges.reader and judges.refusal == "ensemble" else model
  asked = _rubric_judges(judges, load, folder, progress)
  fluency, least, likely = _fluency(model, judges, material, table, folder, progress)
  labels = Labels(
    _refusal(judges, reader, folder, progress),
    Degenerate(min_words=settings.least_words),
    model.chat.render("Hello.").opens_thought,
    coherence=asked.get("coherence"),
    harm=asked.get("harm"),
    others=tuple(asked[name] for name in ("specificity",) if name in asked),
    fluency=fluency,
    least_logprob=least,
  )
  found = _labelled(labels, material, table, judges.parts)
  competence = None
  if "competence" in asked:
    answers = _answers_to_tasks(model, settings, judges, folder, progress)
    verdicts = asked["competence"].score(answers)["judge_competence_verdict"]
    competence = Competence(int(verdicts.sum()), int(verdicts.notna().sum()), len(verdicts))
  retold = _retold(model, judges, material, load, folder) if judges.retold else None
  style = style_tests(labels, found, material, retold)
  about = {
    "settings": dataclasses.asdict(judges),
    "refusal": _describe(labels.refusal),
    "judges": {name: _describe(one) for name, one in asked.items()},
    "missing": {
      column: int(found.loc[found["part"].isin(judges.parts), column].isna().sum())
      for column in labels.columns
      if column.startswith("judge_") and not column.endswith("_reason")
    },
    "fluency": likely,
    "competence": None if competence is None else dataclasses.asdict(competence),
    "style": [
      {"judge": one.judge, "passed": one.passed, "shown": one.shown, "p": one.p} for one in style
    ],
  }
  write_parquet(found, folder / "rows.parquet")
  write_json(about, folder / "judges.json")
  return Judged(found, labels, competence, about, style)


def _labelled(
  labels: Labels, material: Material, table: pd.DataFrame, parts: Sequence[str]
) -> pd.DataFrame:
  """Return the table with labels, and the judges' columns, of the rows of some parts."""
  mine = table["part"].isin(parts)
  rows = _with_prompts(material, table[mine])
  scored = labels.score(rows)
  found = table.copy()
  for column in labels.columns:
    old = found[column] if column in found else pd.Series(None, index=found.index, dtype=object)
    found[column] = old.astype(object).where(~mine, scored[column].astype(object))
    if column not in ("label", "degenerate_reason"):
      found[column] = found[column].astype(scored[column].dtype)
  return found


def _with_prompts(material: Material, rows: pd.DataFrame) -> pd.DataFrame:
  asked = (*material.test, *material.twins, *material.confirm, *material.over)
  texts = {item.prompt_id: item.text for item in asked}
  return rows.assign(prompt=rows["prompt_id"].map(texts))


def _fluency(
  model: Model,
  judges: Judges,
  material: Material,
  table: pd.DataFrame,
  folder: Path,
  progress: bool,
) -> tuple[Scorer | None, float, dict[str, Any] | None]:
  """Return the scorer of fluency, its threshold, and what to say of it; None if not asked for."""
  if not judges.fluency:
    return None, -math.inf, None
  plain, reads = Fluency(model), ("prompt", "token_ids")
  kept = Kept(plain, folder / plain.name, plain.describe, reads=reads, progress=progress)
  parts = [part for part in judges.parts if part != "confirm"]
  own = table[table["part"].isin(parts) & (table["arm"] == "B0")]
  own = own.drop_duplicates(["prompt_id", "sample"])  # parts have prompts in common
  likely = kept.score(_with_prompts(material, own))["mean_logprob"].dropna()
  needed = answers_needed(judges.fluency_percentile)
  is_enough = len(likely) >= needed
  least = least_logprob(likely, judges.fluency_percentile) if is_enough else -math.inf
  reason = (
    ""
    if is_enough
    else (
      f"no answer is found unlikely: a percentile of {judges.fluency_percentile:g} needs {needed} "
      f"answers without a persona, and there are {len(likely)}"
    )
  )
  if reason:
    logging.getLogger(__name__).warning("%s", reason)
  about = {
    "percentile": judges.fluency_percentile,
    "answers": len(likely),
    "least_logprob": least if is_enough else None,
    "reason": reason,
  }
  return kept, least, about


def _refusal(judges: Judges, reader: Model, folder: Path, progress: bool) -> Scorer:
  if judges.refusal == "rules":
    return RefusalRules()
  path = folder / f"ensemble-{reader.identity.sha256[:12]}.json"
  if path.exists():
    fitted = RefusalEnsemble.load(path, reader)
  else:
    labelled = pd.concat([load_labelled(name) for name in LABELLED], ignore_index=True)
    fitted = RefusalEnsemble.fit(reader, labelled)
    fitted.save(path)
  about = {"scorer": fitted.name, "block": fitted.block, **fitted.about}
  return Kept(fitted, folder / "refusal", about, progress=progress)


def _rubric_judges(judges: Judges, load: Load, folder: Path, progress: bool) -> dict[str, Scorer]:
  found: dict[str, Scorer] = {}
  if judges.endpoint:
    endpoint = Endpoint(
      judges.endpoint,
      judges.model,
      name=judges.endpoint_name,
      key_variable=judges.key_variable,
      least_mass=judges.least_mass,
    )
    for name in judges.rubrics:
      rubric = load_rubric(name)
      found[name] = EndpointJudge(rubric, endpoint, folder / "replies", progress=progress)
  elif judges.rubrics:
    model = load(judges.model)
    for name in judges.rubrics:
      local = LocalJudge(model, load_rubric(name), least_mass=judges.least_mass)
      found[name] = Kept(local, folder / name, local.describe, progress=progress)
  return found


def _retold(
  model: Model, judges: Judges, material: Material, load: Load, folder: Path
) -> pd.DataFrame:
  """Return refusals that people labelled, retold by every persona."""
  table = pd.concat([load_labelled(name) for name in LABELLED], ignore_index=True)
  table = table[table["label"]].drop_duplicates("question")
  if judges.retold > len(table):
    raise ValueError(f"judges.retold={judges.retold}: {LABELLED} have {len(table)} refusals.")
  refusals = pd.DataFrame(
    {"row_id": table["source"] + "/" + table.index.astype(str), "prompt": table["question"],
     "text": table["text"]}
  )[: judges.retold]  # fmt: skip
  writer = load(judges.reteller) if judges.reteller else model
  texts = {persona.name: persona.text() for persona in material.personas}
  return retold_refusals(writer, refusals, texts, folder / "restyled")


def _describe(scorer: Scorer) -> dict[str, Any]:
  if isinstance(scorer, Kept):
    return scorer.about
  if isinstance(scorer, EndpointJudge):
    used = dataclasses.asdict(scorer.usage)
    return scorer.describe | {"usage": used | {"failures": dict(scorer.usage.failures)}}
  return {"scorer": scorer.name}


def _answers_to_tasks(
  model: Model,
  settings: Settings,
  judges: Judges,
  folder: Path,
  progress: bool,
) -> pd.DataFrame:
  """Return the unedited model's answers to everyday requests, which are in no other part."""
  tasks = load_capabilities()[: judges.tasks]
  grid = Grid(
    {item.prompt_id: item.text for item in tasks},
    [Condition("B0")],
    max_new_tokens=settings.max_new_tokens,
    seed=settings.seed,
  )
  return run(model, grid, folder / "tasks", progress=progress).table()
