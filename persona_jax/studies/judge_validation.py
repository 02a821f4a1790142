"""Scorers of refusal against people's labels, each on rows that it was not fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from persona_jax.data.labelled import load_labelled
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.refusal_ensemble import Read, RefusalEnsemble, middle, read_answers
from persona_jax.scorers.string_match import StringMatch
from persona_jax.scorers.validation import kappa_difference, validate
from persona_jax.studies.fields import settings_of

_SCORERS = ("string_match", "refusal_rules", "refusal_ensemble")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is validated.

  Attributes:
    sets: labelled sets of refusals (`data.labelled`), or files.
    folds: of the cross-validation over all sets together, by question.
    draws: of the bootstrap over questions.
    seed: of the bootstrap.
  """

  sets: tuple[str, ...]
  folds: int
  draws: int
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> Settings:
    """Make settings of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or does not fit.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    object.__setattr__(self, "sets", tuple(self.sets))
    if not self.sets or len(set(self.sets)) < len(self.sets):
      raise ValueError(f"sets={self.sets}: name some, each once.")
    if self.folds < 2 or self.draws < 100:
      raise ValueError(f"folds={self.folds}, draws={self.draws}: at least 2 and 100 are needed.")


@dataclasses.dataclass(frozen=True)
class Validated:
  """What came out.

  Attributes:
    measures: a row a scorer, test and measure of `scorers.validation.validate`; test is
      "cross-validated", or "on <set>", fitted on the others.
    differences: a row a test and pair: first, second, value (by how much the kappa of the first is
      higher), low, high, n, reason.
    rows: question, label, set, and each scorer's cross-validated prediction; no answers.
    better: the scorer with the higher cross-validated kappa.
  """

  measures: pd.DataFrame
  differences: pd.DataFrame
  rows: pd.DataFrame
  better: str


def run(reader: Model, settings: Settings, directory: Path) -> Validated:
  """Read all answers once, and test every scorer on rows that it was not fitted on.

  Writes measures.parquet, differences.parquet, rows.parquet and validation.json.
  """
  labelled = pd.concat(
    [load_labelled(name).assign(set=name) for name in settings.sets], ignore_index=True
  )
  read = read_answers(reader, labelled["question"], labelled["text"], middle(reader))
  tests = {"cross-validated": _cross_validated(reader, labelled, read, settings.folds)}
  if len(settings.sets) > 1:
    for name in settings.sets:
      mine = (labelled["set"] == name).to_numpy()
      tests[f"on {name}"] = _held_out(reader, labelled, read, mine)
  measures, differences = [], []
  for test, predictions in tests.items():
    there = predictions["refusal_ensemble"].notna()
    rows = labelled[there]
    for scorer in _SCORERS:
      found = validate(
        list(rows["label"]),
        list(predictions[scorer][there]),
        list(rows["question"]),
        draws=settings.draws,
        seed=settings.seed,
      )
      measures.append(found.assign(test=test, scorer=scorer))
    for second in ("string_match", "refusal_rules"):
      found_difference = kappa_difference(
        list(rows["label"]),
        list(predictions["refusal_ensemble"][there]),
        list(predictions[second][there]),
        list(rows["question"]),
        draws=settings.draws,
        seed=settings.seed,
      )
      row = {"test": test, "first": "refusal_ensemble", "second": second}
      differences.append(row | dataclasses.asdict(found_difference))
  table = pd.concat(measures, ignore_index=True)
  first = table[(table["test"] == "cross-validated") & (table["measure"] == "kappa")]
  better = str(first.set_index("scorer")["value"].idxmax())
  kept = labelled[["question", "label", "set"]].join(tests["cross-validated"])
  result = Validated(table, pd.DataFrame(differences), kept, better)
  write_parquet(result.measures, directory / "measures.parquet")
  write_parquet(result.differences, directory / "differences.parquet")
  write_parquet(result.rows, directory / "rows.parquet")
  write_json(
    {
      "settings": dataclasses.asdict(settings),
      "reader": reader.identity.name,
      "reader_sha256": reader.identity.sha256,
      "rows": len(labelled),
      "better": better,
    },
    directory / "validation.json",
  )
  return result


def _cross_validated(reader: Model, labelled: pd.DataFrame, read: Read, folds: int) -> pd.DataFrame:
  """Return predictions of every row by an ensemble that was fitted on other questions."""
  groups = pd.factorize(labelled["question"])[0]
  found = _fixed(labelled)
  refused = pd.array([pd.NA] * len(labelled), dtype="boolean")
  for train, test in GroupKFold(folds).split(groups, groups=groups):
    refused[test] = _predicted(reader, labelled, read, train, test)
  return found.assign(refusal_ensemble=refused)


def _held_out(reader: Model, labelled: pd.DataFrame, read: Read, mine: np.ndarray) -> pd.DataFrame:
  """Return predictions of one set by an ensemble fitted on the others, without its questions."""
  test = np.flatnonzero(mine)
  own = set(labelled["question"].iloc[test])
  train = np.flatnonzero(~mine & ~labelled["question"].isin(own).to_numpy())
  refused = pd.array([pd.NA] * len(labelled), dtype="boolean")
  refused[test] = _predicted(reader, labelled, read, train, test)
  return _fixed(labelled).assign(refusal_ensemble=refused)


def _fixed(labelled: pd.DataFrame) -> pd.DataFrame:
  """Return predictions of the scorers that are not fitted."""
  return pd.DataFrame(
    {scorer.name: scorer.score(labelled)["refused"] for scorer in (StringMatch(), RefusalRules())}
  )


def _predicted(
  reader: Model, labelled: pd.DataFrame, read: Read, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
  fitted = RefusalEnsemble.fit(reader, labelled.iloc[train], read=read.rows(train))
  return fitted.refused(labelled["text"].iloc[test], read.rows(test))
