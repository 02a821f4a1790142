"""What the study found as text: gates first, then hypotheses, then the tables."""

import math
from pathlib import Path

import pandas as pd

from persona_jax.studies.persona_non_grata.analysis import Findings
from persona_jax.studies.persona_non_grata.gates import rate_name
from persona_jax.studies.persona_non_grata.legends import legend
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.specification import HOLDS, share

_NOTHING = "n/m"
_EMPTY = {
  "kept": "None: directions come from prompts.",
  "inversions_confirm": "None: the confirm split is not open.",
  "rates_confirm": "None: the confirm split is not open.",
  "side_effects": "None was measured.",
}
_UNSHOWN = {"matches": ["r2", "unreached"]}  # of single points of the solve; in the Parquet file


def screen(found: Findings, settings: Settings) -> str:
  """Return the first screen: title, gates, verdicts, claims, and rates by persona and method."""
  lines = [found.title, "", *map(str, found.gates), "", *map(str, found.verdicts), ""]
  lines += ["Inversions that may be claimed:"]
  lines += [f"- {row['text']}" for row in found.claims.to_dict("records")] or ["- none"]
  if found.blocked:
    lines.append(f"  (gates: {found.blocked})")
  lines += ["", rate_name(settings, found.blocked) + " by persona and method, 95 % intervals", ""]
  lines.append(by_persona(found))
  return "\n".join(lines)


def by_persona(found: Findings) -> str:
  """Return rates of every persona, a line each, methods side by side."""
  table = found.tables["effects"]
  arms = list(dict.fromkeys(table["arm"]))
  rows = []
  for persona in dict.fromkeys(table["persona"]):
    row = {"persona": persona}
    for arm in arms:
      one = table[(table["arm"] == arm) & (table["persona"] == persona)].iloc[0]
      row[arm] = interval(one["rate"], one["low"], one["high"])
    rows.append(row)
  return pd.DataFrame(rows).to_string(index=False)


def interval(value: float, low: float, high: float, form: str = ".2f") -> str:
  """Return a value with its interval; "n/m" for one that is not measurable."""
  if value is None or math.isnan(value):
    return _NOTHING
  text = format(value, form)
  return text if math.isnan(low) else f"{text} [{format(low, form)}, {format(high, form)}]"


def write_summary(found: Findings, settings: Settings, path: Path) -> Path:
  """Write the first screen and every table as Markdown.

  Where a gate blocks, rankings and inversions are left out: they may not be claimed.
  """
  parts = [f"# {found.title}", "", "## Gates", ""]
  parts += [f"- {gate}" for gate in found.gates]
  parts += ["", "## Hypotheses", "", *(f"- {verdict}" for verdict in found.verdicts)]
  parts += ["", "## Inversions that may be claimed", ""]
  parts += [f"- {row['text']}" for row in found.claims.to_dict("records")] or ["- none"]
  parts += ["", f"## {rate_name(settings, found.blocked)}", "", _code(by_persona(found))]
  parts += ["", "## Setup", ""]
  parts += [f"- {row['what']}: {row['value']}" for row in found.tables["setup"].to_dict("records")]
  names = {
    "rates": "Labels by arm and persona",
    "matches": "Matched strength",
    "controls": "Controls",
    "doses": "Odd and even parts of dose curves",
    "rankings": "Rank correlations",
    "inversions": "Inversions",
    "inversions_confirm": "Inversions on the confirm split",
    "rates_confirm": "Labels by arm and persona on the confirm split",
    "interaction": "Qualitative interaction, and crossings of pairs",
    "side_effects": "Side effects: over-refusal, knowledge, change of next tokens",
    "expression": "Trait expression under prompts",
    "kept": "Answers kept for directions",
    "judges": "Judges against people's labels",
    "dif": "Errors of judges by persona",
    "style": "Harmless answers called harmful, by persona and method",
    "annotators": "Agreement of annotators",
    "ppi": "Rates corrected for the judge's errors",
    "missing": "Missing, censored and invalid",
  }
  lacking = {
    r["table"]: f"None: {r['reason']}." for r in found.tables["lacking"].to_dict("records")
  }
  tested = ("rankings", "inversions", "inversions_confirm", "interaction")
  blanked = tested if found.untested else ()
  for name, title in names.items():
    parts += ["", f"## {title}", ""]
    if name in blanked:
      parts.append(f"Not testable: {found.untested}.")
      continue
    table = found.tables[name]
    if table.empty:
      parts.append(_EMPTY.get(name, lacking.get(name, "None.")))
      continue
    table = _short(table).drop(columns=_UNSHOWN.get(name, []))
    parts += [legend(name, list(table)), "", _code(table.to_string(index=False))]
  parts += ["", "## Specification curve", "", _specifications(found, settings)]
  parts += ["", "## Geometry: regressions of the effect over directions", ""]
  regressions = _short(found.tables["geometry_regressions"])
  parts += [legend("regressions", list(regressions)), ""]
  parts.append(_code(regressions.to_string(index=False)))
  parts += [*(f"- {note}" for note in found.geometry.notes)]
  if found.mixed is not None:
    m = found.mixed
    parts += ["", "## Mixed model (secondary)", ""]
    parts.append(
      f"Variance of method x persona terms {m.interaction_variance:.3g} (squared log-odds); their "
      f"signs {_agreement(m.agrees)} those of the bootstrap's D. {m.reason}"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(parts) + "\n", encoding="utf-8")
  return path


def _specifications(found: Findings, settings: Settings) -> str:
  curve = found.tables["specifications"]
  if curve.empty:
    return "None was asked for."
  if found.untested:
    return f"Not testable: {found.untested}."
  coherent = int(curve["coherent"].sum())
  return (
    f"{settings.named} inverts in {share(curve):.0%} of {coherent} coherent specifications "
    f"(blocks {curve['block'].min()} to {curve['block'].max()}, windows, rules, doses); "
    f"{HOLDS:.0%} are wanted."
  )


def _agreement(agrees: bool | None) -> str:
  return {True: "agree with", False: "DISAGREE with", None: "were not compared with"}[agrees]


def _short(table: pd.DataFrame) -> pd.DataFrame:
  numbers = table.select_dtypes("floating").columns
  return table.assign(**{c: table[c].round(3) + 0.0 for c in numbers})  # no -0.0


def _code(text: str) -> str:
  return f"```\n{text}\n```"
