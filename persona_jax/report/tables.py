"""The numbers of a report in words: each with its interval and n, or why it is not measurable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from persona_jax.personas import TRAITS
from persona_jax.report.data import ARMS, KINDS, ReportData, natural_key

ARM_NAMES = {
  "baseline": "no persona",
  "prompt": "system prompt",
  "steer": "steering",
  "random": "random direction",
}


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts; the first column names the row."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]


def make_tables(data: ReportData) -> list[Table]:
  """Return every table of numbers as texts, each number with its interval and n."""
  orders: dict[str, Callable[[str], Any]] = {
    "arm": ARMS.index,
    "trait": lambda trait: (list(TRAITS).index(trait) if trait in TRAITS else len(TRAITS), trait),
    "persona": natural_key,
    "kind": KINDS.index,
  }

  def ordered(frame: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return sorted(rows, key=lambda row: [orders[column](row[column]) for column in columns])

  percent = f"{100 * data.confidence:g} %"
  names = {trait: f"{trait} {name}" for trait, name in TRAITS.items()}
  measured = [f"value [{percent} interval]", "n"]
  tables = [
    Table(
      "Trait shift against no persona, nats per token, positive towards the persona's pole",
      ["persona", "trait", "arm", "coefficient", *measured],
      [
        [
          *(_persona(row), names.get(row["trait"], row["trait"]), ARM_NAMES[row["arm"]]),
          *(coefficient_text(row["coef"]), _estimate(row), _count(row["n"])),
        ]
        for row in ordered(data.traits, "persona", "trait", "arm")
      ],
    ),
    Table(
      f"Refusals and degenerate answers, share [{percent} interval]",
      [
        "persona",
        "arm",
        "prompts",
        "coefficient",
        "refused",
        "degenerate",
        "n",
        "left out as invalid",
      ],
      [
        [
          *(_persona(row), ARM_NAMES[row["arm"]], row["kind"], coefficient_text(row["coef"])),
          *(
            interval_text(
              row[name],
              row[f"{name}_low"],
              row[f"{name}_high"],
              row.get("reason") or ("" if row["n"] else "no valid row"),
              as_rate=True,
            )
            for name in ("refused", "degenerate")
          ),
          *(_count(row["n"]), _count(row["invalid"])),
        ]
        for row in ordered(data.refusal, "persona", "arm", "kind")
      ],
    ),
    Table(
      "Slopes of the dose curves, nats per token for each unit of residual norm",
      ["trait", "arm", *measured],
      [
        [
          *(names.get(row["trait"], row["trait"]), ARM_NAMES[row["arm"]]),
          *(_estimate(row), _count(row["n"])),
        ]
        for row in ordered(data.slopes, "trait", "arm")
      ],
    ),
    Table(
      "Points of the dose curves, shift towards the high pole in nats per token",
      ["trait", "arm", "coefficient", *measured],
      [
        [
          *(names.get(row["trait"], row["trait"]), ARM_NAMES[row["arm"]]),
          *(coefficient_text(row["coef"]), _estimate(row), _count(row["n"])),
        ]
        for row in ordered(data.curves, "trait", "arm")
      ],
    ),
    Table(
      "Degenerate answers by size of the coefficient",
      ["arm", "|coefficient|", f"share [{percent} interval]", "n"],
      [
        [
          *(ARM_NAMES[row["arm"]], coefficient_text(row["coef"])),
          *(interval_text(row["rate"], row["low"], row["high"], as_rate=True), _count(row["n"])),
        ]
        for row in ordered(data.degeneration, "arm")
      ],
    ),
  ]
  if data.geometry is not None:
    cells = [
      [
        *(names.get(row["trait"], row["trait"]), _count(row["block"])),
        "not measurable" if is_missing(row["value"]) else f"{row['value']:+.3f}",
      ]
      for row in ordered(data.geometry, "trait")
    ]
    tables.append(Table("Geometry of the directions", ["trait", "block", "cosine"], cells))
  return [table for table in tables if table.rows]


def _estimate(row: Mapping[str, Any]) -> str:
  return interval_text(row["value"], row["low"], row["high"], row.get("reason", ""))


def _persona(row: Mapping[str, Any]) -> str:
  return f"{row['persona']} {row['label']}".strip() or ARM_NAMES["baseline"]


# ---- one number ------------------------------------------------------------------------------


def is_missing(value: Any) -> bool:
  """Return whether a cell of a table is NaN, None or NA."""
  return bool(pd.isna(value))


def interval_text(
  value: Any, low: Any, high: Any, reason: Any = "", *, as_rate: bool = False
) -> str:
  """Return "value [low, high]", or what keeps it from being measured."""
  why = reason if isinstance(reason, str) else ""
  if is_missing(value):
    return "not measurable" + (f": {why}" if why else "")
  has_interval = not (is_missing(low) or is_missing(high))
  form = ".1f" if as_rate else "+.3g"
  if has_interval and not as_rate and high > low:
    # Two figures of the interval's width: the digits that the interval leaves standing.
    form = f"+.{max(1 - math.floor(math.log10(high - low)), 0)}f"

  def show(number: float) -> str:
    return format(100 * number if as_rate else number, form).replace("-", "−")

  between = f"{show(low)}, {show(high)}" if has_interval else "no interval"
  return f"{show(value)}{' %' if as_rate else ''} [{between}]" + (f" ({why})" if why else "")


def _count(value: Any) -> str:
  return "unknown" if is_missing(value) else f"{value:,.0f}"


def coefficient_text(value: Any) -> str:
  """Return a coefficient, or "none" for a row that has none."""
  return "none" if is_missing(value) else f"{value:g}".replace("-", "−")
