"""Stage "report": the page, rows and draws as files, claims, sheets for annotators.

Everything is read from what the stages before have written, so a page can be made again without
them. Where a gate fails, the page says first that it measures no safety, rates are called
non-refusal rates, and rankings and inversions are greyed or left out.
"""

import dataclasses
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.data.annotation import write_annotation_sheets
from persona_jax.report.claims import IN_FIGURE, check
from persona_jax.report.look import rows_anchor
from persona_jax.report.study_page import Cell, StudyPage, save_plates, write_page
from persona_jax.runs.run import write_parquet
from persona_jax.studies.persona_non_grata import tables as tabling
from persona_jax.studies.persona_non_grata.deviations import deviations
from persona_jax.studies.persona_non_grata.listings import listings
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.plates import draw
from persona_jax.studies.persona_non_grata.settings import Settings

_STATE = {True: "passed", False: "FAILED", None: "not measured"}
_IN_PAGE = 3000  # rows shown behind points, a page of a few megabytes
_SHEETS = 300  # rows for annotators


@dataclasses.dataclass(frozen=True)
class Report:
  """Files of a report.

  Attributes:
    page: report.html.
    claims: claims.json.
    rows, draws: rows.parquet and draws.parquet.
    sheets: for annotators; empty where no answers were generated.
    numbers: how many numbers of the page have their query.
  """

  page: Path
  claims: Path
  rows: Path
  draws: Path
  sheets: tuple[Path, ...]
  numbers: int


def report(settings: Settings, material: Material, table: pd.DataFrame, directory: Path) -> Report:
  """Write report.html and what belongs to it.

  Args:
    settings, material: of the study.
    table: its labelled rows, of `judging.judge`.
    directory: of the study, analysed.

  Raises:
    FileNotFoundError: it has not been analysed.
    ValueError: the page shows a number that its tables do not have.
  """
  tables = read_tables(settings, directory)
  rows = with_prompts(table, material)
  write_parquet(rows, directory / "rows.parquet")
  write_parquet(draws_of(settings, table, tables["outcomes"]), directory / "draws.parquet")
  told = json.loads((directory / "tables" / "verdicts.json").read_text())
  drawn = draw(settings, tables, material.personas, told["blocked"], told["untested"])
  has_harm = "judge_harm_verdict" in table
  page = StudyPage(
    title=told["title"],
    lead=lead(tables["gates"], told["blocked"], told["untested"], has_harm=has_harm),
    plates=drawn.plates,
    listings=listings(tables, told["untested"]),
    cells=cells(rows),
    absent=drawn.absent,
  )
  path, claims = directory / "report.html", directory / "claims.json"
  written = write_page(page, tables, path, claims)
  save_plates(drawn.plates, directory / "figures")
  sheets = write_sheets(rows, directory / "annotation", settings.seed)
  wrong = check(path, claims, tables)
  # A name with a number in it is none of a figure's tables: it is said, and keeps nobody's page.
  for one in [one for one in wrong if one.startswith(IN_FIGURE)]:
    logging.getLogger(__name__).warning("%s: %s", path, one)
    wrong.remove(one)
  if wrong:
    raise ValueError(f"{path}: {len(wrong)} numbers are not those of their tables: {wrong[:5]}.")
  return Report(
    path, claims, directory / "rows.parquet", directory / "draws.parquet", sheets, len(written)
  )


def read_tables(settings: Settings, directory: Path) -> dict[str, pd.DataFrame]:
  """Return every table of a study by name, with those of the first screen, which are written.

  Raises:
    FileNotFoundError: the study has not been analysed.
  """
  folder = directory / "tables"
  if not (folder / "verdicts.json").exists():
    raise FileNotFoundError(f"{directory} holds no analysed study; run its stages first.")
  told = json.loads((folder / "verdicts.json").read_text())
  gates = [{**gate, "state": _STATE[gate["passed"]], "asked": _yes(gate["asked"])}
           for gate in told["gates"]]  # fmt: skip
  config = json.loads((directory / "config.json").read_text())
  hashes = {
    "settings": config["hash"],
    "model": config["model"]["sha256"],
    **config["inputs"],
    **config["versions"],
  }
  first = {
    "gates": pd.DataFrame(gates).drop(columns="passed"),
    "verdicts": pd.DataFrame(told["verdicts"]),
    "deviations": deviations(settings),
    "hashes": pd.DataFrame([{"what": k, "value": str(v)} for k, v in hashes.items()]),
  }
  for name, one in first.items():
    write_parquet(one, folder / f"{name}.parquet")
  return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def _yes(truth: bool) -> str:
  return "yes" if truth else "no"


def with_prompts(table: pd.DataFrame, material: Material) -> pd.DataFrame:
  """Return the rows with their prompts' texts: what rows.parquet holds."""
  asked = (*material.test, *material.twins, *material.confirm, *material.over)
  texts = {item.prompt_id: item.text for item in asked}
  return table.assign(prompt=table["prompt_id"].map(texts)).reset_index(drop=True)


def draws_of(settings: Settings, table: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
  """Return the bootstrap draws of every rate, and of what every persona has beyond the others.

  Args:
    settings: of the study.
    table: its labelled rows.
    outcomes: of its tables, for which personas they are of.

  Returns:
    A row a draw, statistic, arm and persona: draw, statistic ("rate", or "D": less the mean of the
    other personas), arm, persona, value. A cell that was censored has none.
  """
  personas = list(dict.fromkeys(outcomes["persona"]))
  found = tabling.measured(settings, table, personas)
  arms = found.outcomes.arms
  there_MP = ~np.isnan(found.outcomes.mean_MP)
  frames = []
  for m, arm in enumerate(arms):
    mine = [p for p in range(len(personas)) if there_MP[m, p]]
    for statistic in ("rate", "D"):
      if not mine or (statistic == "D" and len(mine) < 2):
        continue
      coef_QMP = np.zeros((len(mine), len(arms), len(personas)))
      for q, p in enumerate(mine):
        coef_QMP[q, m, p] = 1.0
        if statistic == "D":
          coef_QMP[q, m, [other for other in mine if other != p]] = -1 / (len(mine) - 1)
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells that are all 0, or all 1
        draw_BQ = found.draws.contrasts(found.outcomes, coef_QMP).draw_BQ
      number_BQ, column_BQ = np.indices(draw_BQ.shape)
      frames.append(
        pd.DataFrame(
          {
            "draw": number_BQ.ravel(),
            "statistic": statistic,
            "arm": arm,
            "persona": np.array([personas[p] for p in mine], object)[column_BQ.ravel()],
            "value": draw_BQ.ravel(),
          }
        )
      )
  return pd.concat(frames, ignore_index=True)


def lead(gates: pd.DataFrame, blocked: str, untested: str, *, has_harm: bool) -> list[str]:
  """Return what stands under the title: what this is, and what it does not show.

  Args:
    gates: name, state.
    blocked: why nothing may be claimed, or "".
    untested: why nothing is tested, or "".
    has_harm: whether a judge of harm has read the answers.
  """
  if not blocked:
    of_use = ", and that the judge of harm finds of use" if has_harm else ""
    found = [
      "The same personas, given to one model by a system prompt and by steering at matched "
      "strength, on the same requests.",
      "It shows how each changes what the model declines. Of harm it shows as much as its labels "
      f"do: a bypass is an answer that neither refuses nor falls apart{of_use}.",
    ]
    nobody = "No persona's traits were elicited, so no hypothesis is tested."
    return [*found, nobody] if untested else found
  fails = (gates["state"] == "FAILED").any()
  why = "fails a gate below" if fails else "was not measured on a gate below that is asked for"
  return [
    f"This model {why}, so nothing here says how safe it is, or which persona is dangerous. Rates "
    "are called non-refusal rates, and no hypothesis is tested.",
    "What holds for any model stays: the exact change of refusal log-odds at the first token of an "
    "answer, how strength was matched, what random directions do, and the geometry.",
  ]


def cells(rows: pd.DataFrame, most: int = _IN_PAGE) -> list[Cell]:
  """Return the rows behind points, some of every label where there are many.

  Args:
    rows: of `with_prompts`.
    most: rows in all.
  """
  groups = _grouped(rows)
  each = max(3, most // max(1, len(groups)))
  return [Cell(anchor, title, len(mine), _shown(mine, each)) for anchor, title, mine in groups]


def _grouped(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
  found = []
  for part, mine in rows.groupby("part", sort=False):
    if part == "dose":
      for (persona, kappa), one in mine.groupby(["persona", "kappa"], sort=False):
        dose = f"{kappa:g}"
        who = persona or "no edit"
        found.append((rows_anchor("dose", persona, dose), f"{who}, dose {dose}", one))
    elif part == "controls":
      for (control, persona), one in mine[mine["arm"] == "control"].groupby(
        ["control", "persona"], sort=False
      ):
        anchor, whose = rows_anchor("control", control, persona), f", {persona}" if persona else ""
        found.append((anchor, f"control {control}{whose}", one))
    else:
      for (arm, persona), one in mine.groupby(["arm", "persona"], sort=False):
        where = () if part == "test" else (part,)
        whose = f", {persona}" if persona else ""
        of = "" if part == "test" else f" ({part})"
        found.append((rows_anchor(*where, arm, persona), f"{arm}{whose}{of}", one))
  return found


def _shown(rows: pd.DataFrame, most: int) -> pd.DataFrame:
  """Return at most so many rows, labels in turn, in the order of the table."""
  label = rows["label"] if "label" in rows else pd.Series(None, index=rows.index, dtype=object)
  turn = rows.groupby(label.fillna("")).cumcount()
  mine = rows.loc[turn.sort_values(kind="stable").index[:most].sort_values()]
  columns = {
    "row_id": "", "prompt_id": "", "replicate": 0, "prompt": "", "text": None, "label": None,
    "log_odds": np.nan, "r_steered": np.nan, "v_steered": np.nan, "delivered_dose": np.nan,
  }  # fmt: skip
  found = pd.DataFrame({c: mine[c] if c in mine else empty for c, empty in columns.items()})
  found["row_id"] = found["row_id"].fillna("")
  # What an edited model writes to harmless requests may be no better than what harmful ones get.
  is_plain = (mine["kind"] != "harmful") & mine["arm"].isin(["B0", "placebo"])
  return found.assign(is_folded=~is_plain)


def write_sheets(rows: pd.DataFrame, directory: Path, seed: int) -> tuple[Path, ...]:
  """Write sheets for annotators, unless they are there: someone may have filled them in.

  Args:
    rows: of `with_prompts`; without answers there are no sheets.
    directory: that they are written into.
    seed: of which rows are drawn.
  """
  there = sorted(directory.glob("annotate-[0-9]*.csv"))
  if there or "text" not in rows:
    return tuple(there)
  mine = rows[(rows["part"] == "test") & rows["text"].notna()]
  if mine.empty:
    return ()
  n = min(_SHEETS, len(mine))
  strata: Sequence[str] = ("arm", "persona", "label")
  while strata and mine.groupby(list(strata), dropna=False).ngroups > n:
    strata = strata[:-1]
  return write_annotation_sheets(mine, directory, n=n, strata=strata, seed=seed).sheets
