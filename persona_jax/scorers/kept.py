"""A scorer whose verdicts are kept on disk, so that rows which were scored are not scored again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.scorers import base
from persona_jax.scorers.base import Scorer

_AT_ONCE = 256  # rows of one file: what an interruption can cost


class Kept:
  """Scores each pair of question and answer once, some hundred a file.

  Of a scorer that reads the columns `reads` and nothing else. What it could not score is kept, too;
  a judge behind an endpoint, whose failures pass, keeps its replies itself.

  Attributes:
    scorer: that is asked.
    directory: of the files; one directory is of one scorer, by `about`.
    about: what the verdicts depend on beside the rows, such as the judge's description.
    reads: columns that the scorer reads: texts, or token ids.
  """

  def __init__(
    self,
    scorer: Scorer,
    directory: str | Path,
    about: dict[str, Any],
    *,
    reads: Sequence[str] = ("prompt", "text"),
    progress: bool = True,
  ):
    """Name the files by what the verdicts depend on."""
    self.scorer, self.about, self.reads = scorer, about, tuple(reads)
    self.directory = Path(directory) / content_hash(about)[:16]
    self._progress = progress

  @property
  def name(self) -> str:
    """Name of the scorer."""
    return self.scorer.name

  @property
  def columns(self) -> tuple[str, ...]:
    """Those of the scorer."""
    return self.scorer.columns

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    """Return the scorer's columns, from disk where they are there.

    Raises:
      ValueError: a column that it reads is lacking.
    """
    base.require_columns(table, self.reads, self.name)
    columns = [table[name] for name in self.reads]
    keys = [content_hash([_plain(v) for v in values]) for values in zip(*columns, strict=True)]
    known = self._read()
    new = pd.DataFrame({"key": keys} | {name: table[name].array for name in self.reads})
    new = new[~new["key"].isin(known.index)].drop_duplicates("key")
    bar = tqdm.tqdm(total=len(new), unit="row", desc=self.name, disable=not self._progress)
    with bar:
      for first in range(0, len(new), _AT_ONCE):
        mine = new.iloc[first : first + _AT_ONCE]
        found = self.scorer.score(mine[list(self.reads)])
        found.index = pd.Index(list(mine["key"]), name="key")
        self._write(found)
        known = pd.concat([known, found]) if len(known) else found
        bar.update(len(mine))
    out = known.loc[keys, list(self.columns)]
    out.index = table.index
    return out

  def validate(self, labelled: pd.DataFrame) -> dict[str, Any]:
    """Return the scorer's own agreement with labels."""
    return self.scorer.validate(labelled)

  def _read(self) -> pd.DataFrame:
    files = sorted(self.directory.glob("*.parquet"))
    if not files:
      return pd.DataFrame(columns=list(self.columns))
    found = pd.concat([pd.read_parquet(file) for file in files])
    return found[~found.index.duplicated()]

  def _write(self, found: pd.DataFrame) -> None:
    self.directory.mkdir(parents=True, exist_ok=True)
    path = self.directory / f"{content_hash(list(found.index))[:16]}.parquet"
    part = path.with_suffix(".part")
    found.to_parquet(part)
    os.replace(part, path)


def _plain(value: Any) -> Any:
  """Return a cell as its key has it: token ids as numbers, all else as text."""
  is_ids = isinstance(value, list | tuple | np.ndarray)
  return [int(v) for v in value] if is_ids else str(value)
