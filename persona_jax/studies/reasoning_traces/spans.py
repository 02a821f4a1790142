"""Sentences of traces for human judges, out as a blind sheet and in again."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.scorers.base import is_missing
from persona_jax.scorers.traces import CueLists

SPANS = 200  # protocol A9
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_COLUMNS = ("span_id", "text", "cue", "label")


def write_spans(
  thoughts: pd.DataFrame, lists: CueLists, path: Path, *, number: int = SPANS, seed: int = 0
) -> int:
  """Write a sheet of sentences to be judged; return how many there are.

  Of each cue as many, half of them sentences that its phrases match as far as there are any; in an
  order of chance, without arm or match. So many matches make precision sharp; recall and kappa are
  those of this sample, in which cues are more frequent than in traces. The column label is empty:
  1 where the sentence does what the cue is called, 0 where it does not.
  """
  sentences = sorted(
    {
      sentence.strip()
      for trace in thoughts["trace"]
      if not is_missing(trace)
      for sentence in _SENTENCE.findall(trace)
      if len(sentence.split()) >= 3
    }
  )
  rng, rows = np.random.default_rng([seed, 200]), []
  for cue in lists.names:
    matches = [bool(lists.starts(sentence)[cue]) for sentence in sentences]
    sides = [[s for s, m in zip(sentences, matches, strict=True) if m == side] for side in (1, 0)]
    each = number // len(lists.names)
    hits = min(len(sides[0]), each // 2)
    for side, count in zip(sides, (hits, min(len(sides[1]), each - hits)), strict=True):
      rows += [(side[n], cue) for n in rng.permutation(len(side))[:count]]
  order = rng.permutation(len(rows))
  sheet = pd.DataFrame(
    [(f"span-{k:03d}", *rows[n], "") for k, n in enumerate(order)], columns=list(_COLUMNS)
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  sheet.to_csv(path, index=False)
  return len(sheet)


def read_judged(lists: CueLists, path: str | Path) -> pd.DataFrame:
  """Read a sheet back: text, cue, label (True, False, or None where it was left empty).

  Raises:
    ValueError: a column is lacking, a cue is not in the lists, or a label is not 0, 1 or empty.
  """
  sheet = pd.read_csv(path, dtype=str, keep_default_na=False)
  lacking = sorted({"text", "cue", "label"} - set(sheet.columns))
  if lacking:
    raise ValueError(f"{path} lacks the columns {lacking}; it has {list(sheet.columns)}")
  unknown = sorted(set(sheet["cue"]) - set(lists.names))
  if unknown:
    raise ValueError(f"{path}: no cues {unknown}; there are {list(lists.names)}")
  values = {"1": True, "0": False, "": None}
  wrong = sorted(set(sheet["label"].str.strip()) - set(values))
  if wrong:
    raise ValueError(f"{path}: labels {wrong}; 1, 0 or nothing fits")
  labels = [values[label.strip()] for label in sheet["label"]]
  return sheet.assign(label=pd.Series(labels, dtype=object))
