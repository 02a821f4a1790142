"""Tests of what a report accepts."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from persona_jax.report import ReportData
from persona_jax.report.data import natural_key

Make = Callable[..., ReportData]


def test_personas_come_in_order_of_their_number(data: ReportData) -> None:
  assert [persona for persona, _ in data.personas()] == [f"P{i}" for i in range(1, 13)]
  assert data.personas()[-1] == ("P12", "C+ A+")


def test_natural_key_sorts_numbers_as_numbers() -> None:
  assert sorted(["P10", "P2", "base", "P1"], key=natural_key) == ["P1", "P2", "P10", "base"]


@pytest.mark.parametrize(
  ("table", "column"), [("traits", "reason"), ("refusal", "invalid"), ("completions", "row_id")]
)
def test_missing_column_is_named(make: Make, data: ReportData, table: str, column: str) -> None:
  with pytest.raises(ValueError, match=rf"{table} lacks the columns \['{column}'\]"):
    make(**{table: getattr(data, table).drop(columns=column)})


@pytest.mark.parametrize(
  ("table", "column", "value", "message"),
  [
    ("traits", "arm", "prompted", r"traits.arm has \['prompted'\]; these fit: prompt, steer"),
    ("refusal", "kind", "odd", "these fit: harmful, harmless"),
    ("refusal", "refused", 31.0, r"refusal.refused has 31.0; numbers from 0 to 1 fit"),
    ("degeneration", "coef", -0.1, "degeneration.coef has -0.1; numbers from 0 to inf fit"),
    ("traits", "persona", "", "the arm 'prompt' with the persona ''"),
    ("refusal", "persona", "P1", "the arm 'baseline' with the persona 'P1'"),
  ],
)
def test_bad_cell_is_refused(
  make: Make, data: ReportData, table: str, column: str, value: object, message: str
) -> None:
  frame = getattr(data, table).copy()
  frame.loc[frame.index[0], column] = value
  with pytest.raises(ValueError, match=message):
    make(**{table: frame})


def test_second_coefficient_needs_main_coef(make: Make, data: ReportData) -> None:
  doubled = _with_second_coefficient(data.traits)
  with pytest.raises(ValueError, match="traits has more than one row .* main_coef picks one"):
    make(traits=doubled)
  chosen = make(traits=doubled, main_coef=0.1)
  assert set(chosen.main_rows("traits")["coef"].dropna()) == {0.1}
  assert len(chosen.main_rows("traits")) == len(data.traits)
  with pytest.raises(ValueError, match=r"main_coef=0.3 is .* of refusal; these fit: \[0.1\]"):
    make(traits=doubled, main_coef=0.3)


def _with_second_coefficient(traits: pd.DataFrame) -> pd.DataFrame:
  steered = traits[traits["arm"] == "steer"]
  return pd.concat([traits, steered.assign(coef=0.2)], ignore_index=True)
