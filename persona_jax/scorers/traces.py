"""Cues in reasoning traces: how often, how early, and whether still at the end.

Phrase lists are data (`cues.toml`). What they find goes together with refusals or does not; it says
nothing about what made the model refuse. Call it a heuristic, and drop a cue that human readers do
not confirm (`TraceCues.validate`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.scorers import base
from persona_jax.scorers.thoughts import Splitter, Thought

LEAST_KAPPA = 0.6
TENTHS = 10
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\u0060\uff07\u2032", "'"))


@dataclasses.dataclass(frozen=True)
class CueLists:
  """Phrases by cue.

  Attributes:
    version: of the lists.
    patterns: (name, regular expressions) of each cue.

  Raises:
    ValueError: no cue, one without a pattern or twice, or a bad expression.
  """

  version: int
  patterns: tuple[tuple[str, tuple[str, ...]], ...]

  def __post_init__(self) -> None:
    names = [name for name, _ in self.patterns]
    if not names or len(set(names)) < len(names) or any(not p for _, p in self.patterns):
      raise ValueError(f"cue lists need unique names with patterns; got {names}")
    for name, patterns in self.patterns:
      try:
        _compiled(patterns)
      except re.error as error:
        raise ValueError(f"cue {name!r} holds no regular expression: {error}") from None

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the cues, in order."""
    return tuple(name for name, _ in self.patterns)

  def starts(self, text: str) -> dict[str, list[float]]:
    """Return where matches of each cue begin, as shares of the text's characters."""
    plain = " ".join(text.translate(_APOSTROPHES).lower().split())
    return {
      name: [match.start() / len(plain) for match in _compiled(patterns).finditer(plain)]
      for name, patterns in self.patterns
    }


@functools.cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
  return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def load_cues(path: str | Path | None = None) -> CueLists:
  """Return the cue lists of a TOML file: `version`, and a table `cues` of lists of patterns.

  Args:
    path: of a file of that form; None for our own lists.

  Raises:
    ValueError: the file is not of that form.
  """
  own = importlib.resources.files(__package__) / "cues.toml"
  file = own if path is None else Path(path)
  content = tomllib.loads(file.read_text(encoding="utf-8"))
  version, cues = content.get("version"), content.get("cues")
  if (
    set(content) != {"version", "cues"}
    or not isinstance(version, int)
    or not isinstance(cues, dict)
    or not all(isinstance(p, str) for found in cues.values() for p in _listed(found))
  ):
    raise ValueError(f"{file}: a number 'version' and a table 'cues' of lists of patterns fit")
  return CueLists(version, tuple((name, tuple(found)) for name, found in cues.items()))


def _listed(value: object) -> list[Any]:
  return value if isinstance(value, list) else [None]


@dataclasses.dataclass(frozen=True)
class TraceCues:
  """Segment rows into thought and answer, and measure cues in the thought.

  Attributes:
    splitter: tells thought and answer apart.
    cues: the phrase lists.
    ends_at_budget: whether a thought that reaches the budget is ended there (a closing tag is
      written for it), and so is whole.

  Of a thought that is not whole, rates are those of what there is; first positions and last thirds
  are missing, for where its end lies is not known.
  """

  splitter: Splitter
  cues: CueLists = dataclasses.field(default_factory=load_cues)
  ends_at_budget: bool = False

  @property
  def name(self) -> str:
    """Name of the scorer."""
    return "trace_cues"

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of a row.

    thought ("ended", "truncated", "unended", "none"), trace, answer (texts), n_think_tokens,
    n_answer_tokens, n_thought_ends, trace_reason (why measures are missing, or empty), cue_version;
    and of each cue CUE_per_100 (matches in 100 tokens of the thought), CUE_first (share of the
    trace before the first; missing where there is none), CUE_last_third (whether one begins in the
    last third; nullable boolean), CUE_at (positions, a list of shares).
    """
    parts = (
      "thought", "trace", "answer", "n_think_tokens", "n_answer_tokens", "n_thought_ends",
      "trace_reason", "cue_version",
    )  # fmt: skip
    measures = ("per_100", "first", "last_third", "at")
    return (*parts, *(f"{cue}_{measure}" for cue in self.cues.names for measure in measures))

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns for token_ids and finish_reason; a row without tokens is missing.

    Raises:
      ValueError: a column is lacking.
    """
    base.require_columns(table, ["token_ids", "finish_reason"], self.name)
    records = []
    for ids, reason in zip(table["token_ids"], table["finish_reason"], strict=True):
      absent = base.is_missing(ids) or base.is_missing(reason)
      records.append(self._record(None if absent else self.splitter.split(ids, reason)))
    found = pd.DataFrame(records, columns=list(self.columns), index=table.index)
    kinds = {f"{cue}_last_third": "boolean" for cue in self.cues.names}
    kinds |= {f"n_{n}": "Int64" for n in ("think_tokens", "answer_tokens", "thought_ends")}
    return found.astype(kinds)

  def _record(self, thought: Thought | None) -> dict[str, Any]:
    record: dict[str, Any] = {"cue_version": self.cues.version}
    for cue in self.cues.names:
      nothing = {"per_100": math.nan, "first": math.nan, "last_third": None, "at": None}
      record |= {f"{cue}_{measure}": value for measure, value in nothing.items()}
    if thought is None:
      nones = dict.fromkeys(self.columns[:6])
      return record | nones | {"trace_reason": "no generated tokens"}
    whole = thought.status == "ended" or (
      self.ends_at_budget and thought.status in ("truncated", "unended")
    )
    record |= {
      "thought": thought.status,
      "trace": thought.trace,
      "answer": thought.answer,
      "n_think_tokens": thought.num_think,
      "n_answer_tokens": thought.num_answer,
      "n_thought_ends": thought.num_ends,
      "trace_reason": _reason(thought, whole),
    }
    if thought.status == "none" or not thought.trace:
      return record
    for cue, at in self.cues.starts(thought.trace).items():
      record[f"{cue}_per_100"] = 100 * len(at) / thought.num_think
      if whole:
        record[f"{cue}_at"] = at
        record[f"{cue}_first"] = at[0] if at else math.nan
        record[f"{cue}_last_third"] = any(share >= 2 / 3 for share in at)
    return record

  def validate(self, labelled: pd.DataFrame) -> dict[str, Any]:
    """Return {"cues": `validate_cues` of judged spans, "cue_version"}."""
    return {"cues": validate_cues(self.cues, labelled), "cue_version": self.cues.version}


def validate_cues(cues: CueLists, labelled: pd.DataFrame) -> pd.DataFrame:
  """Return how well each cue agrees with judged spans, and whether it may be kept.

  Args:
    cues: the phrase lists.
    labelled: a row a judged span of a trace and cue: text, cue, label (True where the judge finds
      the cue in the span; missing allowed).

  Returns:
    A row a cue: cue, n, precision, recall, kappa, kept, reason. kept is kappa >= .6; a cue without
    a kappa is not kept.

  Raises:
    ValueError: a column is lacking, or a cue is not in the lists.
  """
  base.require_columns(labelled, ["text", "cue", "label"], "validate_cues")
  unknown = sorted(set(labelled["cue"]) - set(cues.names))
  if unknown:
    raise ValueError(f"no cues {unknown}; there are {list(cues.names)}")
  rows = []
  for cue in cues.names:
    mine = labelled[labelled["cue"] == cue]
    found = [
      None if base.is_missing(text) else bool(cues.starts(text)[cue]) for text in mine["text"]
    ]
    measured = base.agreement(mine["label"], pd.Series(found, dtype=object))
    kappa, reason = measured["kappa"], measured["reason"]
    kept = bool(kappa >= LEAST_KAPPA)
    if not kept and not reason:
      reason = f"kappa {kappa:.2f} < {LEAST_KAPPA}"
    rows.append(
      {
        "cue": cue,
        "n": measured["n_compared"],
        "precision": measured["classes"][True]["precision"],
        "recall": measured["classes"][True]["recall"],
        "kappa": kappa,
        "kept": kept,
        "reason": reason,
      }
    )
  return pd.DataFrame(rows)


def tenths(at: list[float] | np.ndarray) -> np.ndarray:
  """Count positions, shares of a trace, in each tenth of it: int64 [10]."""
  place = np.minimum((np.asarray(at, float) * TENTHS).astype(int), TENTHS - 1)
  return np.bincount(place, minlength=TENTHS)


def _reason(thought: Thought, whole: bool) -> str:
  if thought.status == "none":
    return "the answer began without a thought"
  if not thought.trace:
    return "the thought is empty"
  if whole:
    return ""
  why = "the budget ended" if thought.status == "truncated" else "the model stopped"
  return f"{why} inside the thought: its end, and so positions in it, are not known"
