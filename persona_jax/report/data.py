"""What a report is made from: the tables of a study, checked when they are handed over."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

ARMS = ("baseline", "prompt", "steer", "random")
PERSONA_ARMS = ARMS[1:]
DOSED_ARMS = ("steer", "random")
KINDS = ("harmful", "harmless")

_INTERVAL = ("value", "low", "high", "n")
_COLUMNS: dict[str, tuple[str, ...]] = {
  "refusal": (
    *("arm", "persona", "label", "kind", "coef", "n", "refused", "refused_low", "refused_high"),
    *("degenerate", "degenerate_low", "degenerate_high", "invalid"),
  ),
  "traits": ("arm", "persona", "label", "trait", "coef", *_INTERVAL, "reason"),
  "curves": ("trait", "arm", "coef", *_INTERVAL),
  "slopes": ("trait", "arm", *_INTERVAL, "reason"),
  "degeneration": ("coef", "arm", "rate", "low", "high", "n"),
  "completions": (
    *("prompt_id", "prompt", "kind", "arm", "persona", "label", "text", "refused", "degenerate"),
    *("row_id", "coef"),
  ),
  "geometry": ("trait", "block", "value"),
}
_ARMS: dict[str, tuple[str, ...]] = {
  "refusal": ARMS,
  "traits": PERSONA_ARMS,
  "curves": DOSED_ARMS,
  "slopes": DOSED_ARMS,
  "degeneration": DOSED_ARMS,
  "completions": ARMS,
}
# A row of the forest is one of these; so is a point of a curve.
_KEYS: dict[str, tuple[str, ...]] = {
  "refusal": ("arm", "persona", "kind"),
  "traits": ("arm", "persona", "trait"),
  "curves": ("trait", "arm", "coef"),
  "slopes": ("trait", "arm"),
  "degeneration": ("arm", "coef"),
  "completions": ("row_id",),
}


@dataclasses.dataclass(frozen=True)
class ReportData:
  """Everything that a report shows.

  Intervals are in columns named `low` and `high` (or `*_low`, `*_high`), all of one confidence.
  What is not measurable is NaN, with a `reason` where the table has that column (`refusal` may
  have it too). The arm "baseline" has the persona "", every other arm names one.

  Attributes:
    title: the heading.
    verdict: one-line sentences for the first screen.
    limits: what this model can and cannot show, with the numbers.
    setup: what was run, most important first; hashes in full.
    refusal: arm, persona, label, kind ("harmful" | "harmless"), coef, n, refused, refused_low,
      refused_high, degenerate, degenerate_low, degenerate_high (rates in [0, 1]), invalid (count of
      rows that are in neither n nor the rates).
    traits: arm, persona, label, trait, coef (NaN for the prompt arm), value, low, high, n, reason;
      mean shift against baseline of keyed log-prob in nats per token, positive towards the
      persona's pole.
    curves: trait, arm, coef (signed, units of the median residual norm), value, low, high, n; shift
      towards the high pole.
    slopes: trait, arm, value, low, high, n, reason; nats per token per unit of residual norm.
    degeneration: coef (|coefficient|), arm, rate, low, high, n; may be empty.
    completions: prompt_id, prompt, kind, arm, persona, label, text, refused, degenerate, row_id,
      coef. A kind other than "harmful" is shown unfolded.
    geometry: trait, block, value (a cosine); shown as a table if given.
    main_coef: the coefficient whose steer and random rows the forest shows, if `refusal` or
      `traits` hold several; the tables show all.
    confidence: confidence of every interval.

  Raises:
    ValueError: a column is missing, an arm or kind is unknown, a rate is outside [0, 1], a row is
      doubled, a persona is named or missing against the arm, or `main_coef` matches no row.
  """

  title: str
  verdict: Sequence[str]
  limits: Sequence[str]
  setup: Mapping[str, str | float | int]
  refusal: pd.DataFrame
  traits: pd.DataFrame
  curves: pd.DataFrame
  slopes: pd.DataFrame
  degeneration: pd.DataFrame
  completions: pd.DataFrame
  geometry: pd.DataFrame | None = None
  main_coef: float | None = None
  confidence: float = 0.95

  def __post_init__(self) -> None:
    for table, columns in _COLUMNS.items():
      frame = getattr(self, table)
      if frame is None:
        continue
      if missing := [column for column in columns if column not in frame]:
        raise ValueError(
          f"{table} lacks the columns {missing}; it has {list(frame.columns)} and needs"
          f" {list(columns)}"
        )
      _check_values(table, "arm", frame, _ARMS.get(table, ()))
      if "persona" in columns:
        _check_personas(table, frame)
    _check_values("refusal", "kind", self.refusal, KINDS)
    _check_range("refusal", "refused", self.refusal, 0.0, 1.0)
    _check_range("refusal", "degenerate", self.refusal, 0.0, 1.0)
    _check_range("degeneration", "rate", self.degeneration, 0.0, 1.0)
    _check_range("degeneration", "coef", self.degeneration, 0.0, np.inf, nan_fits=False)
    for table, key in _KEYS.items():
      _check_unique(table, self.main_rows(table), key)

  def main_rows(self, table: str) -> pd.DataFrame:
    """Return the rows of a table that the forest shows: all of them if `main_coef` is None.

    Raises:
      ValueError: no steered row has the coefficient `main_coef`.
    """
    frame = getattr(self, table)
    if self.main_coef is None or table not in ("refusal", "traits"):
      return frame
    dosed = frame["arm"].isin(DOSED_ARMS)
    matches = dosed & np.isclose(frame["coef"].astype(float), self.main_coef)
    if dosed.any() and not matches.any():
      raise ValueError(
        f"main_coef={self.main_coef:g} is the coefficient of no row of {table}; these fit:"
        f" {sorted(set(frame.loc[dosed, 'coef'].tolist()))}"
      )
    return frame[~dosed | matches]

  def personas(self) -> list[tuple[str, str]]:
    """Return (persona, label) of every persona in the tables, P2 ahead of P10."""
    tables = (self.traits, self.refusal, self.completions)
    pairs = pd.concat([frame[["persona", "label"]] for frame in tables])
    named = pairs[pairs["persona"] != ""].drop_duplicates("persona")
    return sorted(named.itertuples(index=False, name=None), key=lambda pair: natural_key(pair[0]))


def natural_key(name: str) -> list[tuple[int, int, str]]:
  """Return a sorting key under which the numbers in a name count as numbers."""
  parts = re.split(r"(\d+)", name)
  return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _check_values(table: str, column: str, frame: pd.DataFrame, expected: tuple[str, ...]) -> None:
  if not expected:
    return
  if unknown := sorted(set(map(str, frame[column])) - set(expected)):
    raise ValueError(f"{table}.{column} has {unknown}; these fit: {', '.join(expected)}")


def _check_personas(table: str, frame: pd.DataFrame) -> None:
  for arm, persona in frame[["arm", "persona"]].drop_duplicates().itertuples(index=False):
    if not isinstance(persona, str) or (arm == "baseline") != (persona == ""):
      raise ValueError(
        f'{table} has the arm {arm!r} with the persona {persona!r}; baseline goes with "",'
        " every other arm with a name"
      )


def _check_range(
  table: str,
  column: str,
  frame: pd.DataFrame,
  low: float,
  high: float,
  nan_fits: bool = True,
) -> None:
  values = frame[column].astype(float)
  fits = values.between(low, high) | (values.isna() & nan_fits)
  if not fits.all():
    raise ValueError(
      f"{table}.{column} has {values[~fits].iloc[0]}; numbers from {low:g} to {high:g} fit"
    )


def _check_unique(table: str, frame: pd.DataFrame, key: tuple[str, ...]) -> None:
  doubled = frame[frame.duplicated(list(key))]
  if len(doubled):
    row = {column: doubled[column].iloc[0] for column in key}
    hint = "; main_coef picks one of several coefficients" if table in ("refusal", "traits") else ""
    raise ValueError(f"{table} has more than one row of {row}{hint}")
