"""The HTML report: one file that opens from disk and asks nothing of the network.

Texts of models and prompts are data: the template escapes them, and the page's content policy
allows no script. Prompts of the kind "harmful" and their answers are folded.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from persona_jax.report.data import KINDS, PERSONA_ARMS, ReportData
from persona_jax.report.tables import ARM_NAMES, coefficient_text, is_missing, make_tables

_HASH = re.compile(r"[0-9a-f]{16,}")
# On the first screen; the table at the end has all of them.
_SETUP_ITEMS = 8


@dataclasses.dataclass(frozen=True)
class _Figure:
  """An image with its words; `src` is a data URI."""

  title: str
  caption: str
  alt: str
  src: str = ""


@dataclasses.dataclass(frozen=True)
class _Answer:
  text: str
  tags: Sequence[str]
  source: str


@dataclasses.dataclass(frozen=True)
class _Prompt:
  """One prompt with its answers: the baseline's, and for each persona those of every arm."""

  prompt_id: str
  text: str
  is_harmful: bool
  n_answers: int
  baseline: Sequence[_Answer]
  personas: Sequence[tuple[str, Sequence[Sequence[_Answer]]]]


def write_report(data: ReportData, figures: Mapping[str, Path], path: str | Path) -> Path:
  """Write the report as one self-contained HTML file.

  Args:
    data: the tables of a study.
    figures: what `draw_all` returned: name → PNG file.
    path: the file to write; its directory is made if absent.

  Returns:
    The path.

  Raises:
    ValueError: a figure has a name that the report does not know.
    FileNotFoundError: a figure's file is absent.
  """
  words = _figure_words(data)
  if unknown := sorted(set(figures) - set(words)):
    raise ValueError(f"no figure is named {unknown}; these fit: {', '.join(words)}")
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  source = importlib.resources.files("persona_jax.report").joinpath("template.html.jinja")
  html = environment.from_string(source.read_text(encoding="utf-8")).render(
    title=data.title,
    verdict=data.verdict,
    limits=data.limits,
    setup_line=_setup_line(data.setup),
    setup=[(key, _setup_value(value)) for key, value in data.setup.items()],
    percent=f"{100 * data.confidence:g} %",
    figures=[
      (name, dataclasses.replace(words[name], src=_data_uri(Path(figures[name]))))
      for name in words
      if name in figures
    ],
    prompts=_prompts(data),
    arms=[ARM_NAMES[arm] for arm in PERSONA_ARMS],
    tables=make_tables(data),
  )
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A lone surrogate, which UTF-8 does not have, becomes a question mark.
  path.write_text(html, encoding="utf-8", errors="replace")
  return path


# ---- figures ---------------------------------------------------------------------------------


def _figure_words(data: ReportData) -> dict[str, _Figure]:
  """Return title, caption and alternative text of every figure, in the order of the report."""
  percent = f"{100 * data.confidence:g} %"
  n_personas, traits = len(data.personas()), sorted(set(data.curves["trait"]))
  at = "" if data.main_coef is None else f" at coefficient {data.main_coef:g}"
  return {
    "comparison": _Figure(
      title="The same personas, prompted and steered",
      caption=(
        "Left: a mark to the right of zero has moved towards the persona's own pole, and one whose"
        f" {percent} bar crosses zero has not measurably moved. Right: a filled mark whose bar lies"
        " clear of the grey band refuses harmful prompts measurably more or less often than the"
        " model without persona; hollow marks are the harmless twins, where a refusal is a mistake."
      ),
      alt=(
        f"Forest plot of {n_personas} personas by system prompt, by steering{at} and by a random"
        " direction: trait shift on the left, refusal rate on the right. The numbers are in the"
        " tables of traits and of refusals below."
      ),
    ),
    "dose_response": _Figure(
      title="Dose and response",
      caption=(
        "A steering curve that climbs from left to right through zero moves the self-report with"
        " the dose, towards the low pole on the left and the high pole on the right. The grey curve"
        " is a random direction of the same norm: what it does is not the trait's doing."
      ),
      alt=(
        f"Shift of self-report against steering coefficient, one panel for each of the traits"
        f" {', '.join(traits)}, with the slopes. The slopes are in the table below."
      ),
    ),
    "degeneration": _Figure(
      title="Where the text breaks",
      caption=(
        "Share of answers that are empty, repeat themselves or are no text, by the size of the"
        " coefficient. Trait shifts and refusal rates at doses where this share is high say little"
        " about the persona."
      ),
      alt=(
        "Share of degenerate answers against the absolute coefficient, for steering and for a"
        " random direction. The numbers are in the table below."
      ),
    ),
  }


def _data_uri(path: Path) -> str:
  return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


# ---- setup ------------------------------------------------------------------------------------


def _setup_value(value: str | float | int) -> str:
  if is_missing(value):
    return "not measurable"
  return f"{value:g}" if isinstance(value, float) else str(value)


def _setup_line(setup: Mapping[str, str | float | int]) -> list[tuple[str, str]]:
  """Return the first items of the setup and every hash, hashes shortened."""
  return [
    (key, _HASH.sub(lambda match: match[0][:12] + "…", _setup_value(value)))
    for i, (key, value) in enumerate(setup.items())
    if i < _SETUP_ITEMS or _HASH.search(str(value))
  ]


# ---- completions -----------------------------------------------------------------------------


def _prompts(data: ReportData) -> list[_Prompt]:
  """Return the prompts with their answers, harmless ones first."""
  prompts = []
  personas = data.personas()
  for prompt_id, rows in data.completions.groupby("prompt_id", sort=False):
    by_cell: dict[tuple[str, str], list[_Answer]] = {}
    for row in rows.to_dict("records"):
      by_cell.setdefault((row["persona"], row["arm"]), []).append(_answer(row))
    is_harmful = bool((rows["kind"] == KINDS[0]).any())
    shown = [
      (f"{persona} {label}", [by_cell.get((persona, arm), []) for arm in PERSONA_ARMS])
      for persona, label in personas
    ]
    prompts.append(
      _Prompt(
        prompt_id=str(prompt_id),
        text=rows["prompt"].iloc[0],
        is_harmful=is_harmful,
        n_answers=len(rows),
        baseline=by_cell.get(("", "baseline"), []),
        personas=[(name, cells) for name, cells in shown if any(cells)],
      )
    )
  return sorted(prompts, key=lambda prompt: prompt.is_harmful)


def _answer(row: Mapping[str, Any]) -> _Answer:
  tags = []
  for measure in ("refused", "degenerate"):
    if is_missing(row[measure]):
      tags.append(f"{measure}: not scored")
    elif row[measure]:
      tags.append(measure)
  source = f"row {row['row_id']}"
  if not is_missing(row["coef"]) and row["arm"] != "baseline":
    source = f"coefficient {coefficient_text(row['coef'])} · {source}"
  return _Answer(row["text"], tags, source)
