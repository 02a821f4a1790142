"""How large a coefficient may be: the first method's direction is tried out at its block."""

from pathlib import Path

import pandas as pd
import tqdm

import persona_jax.directions.selection as selection
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.formats.rows import file_name
from persona_jax.edits.operations import add
from persona_jax.engine.model import Model
from persona_jax.personas.persona import load_questions
from persona_jax.runs.run import write_parquet
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.studies.extraction.settings import Settings


def scale_of(model: Model, settings: Settings) -> Dose | None:
  """Measure the residual norms that coefficients count in; None where none is tried."""
  if not settings.coefficients:
    return None
  return dose(model, _prompts(settings), site=settings.site, answer_tokens=_tokens(settings))


def try_out(
  model: Model,
  settings: Settings,
  direction: Direction,
  block: int,
  scale: Dose | None,
  directory: Path,
  *,
  progress: bool = True,
) -> pd.DataFrame | None:
  """Steer harmless questions with every coefficient, both ways; see `selection.try_coefficients`.

  The table is kept, and read again where it is there. None where no coefficient is asked for.
  """
  if scale is None:
    return None
  path = directory / "coefficients" / f"{file_name(direction.concept)}.parquet"
  if path.exists():
    return pd.read_parquet(path)
  both = sorted({*settings.coefficients, *(-c for c in settings.coefficients)})
  rules = Degenerate()
  name = f"coefficients {direction.concept}"
  with tqdm.tqdm(total=len(both) + 1, unit="dose", disable=not progress, desc=name) as bar:
    table = selection.try_coefficients(
      model,
      lambda at, c: add(direction, c, unit="resid", blocks=at, tokens="answer", scale=scale),
      [block],
      both,
      _prompts(settings),
      max_new_tokens=settings.coefficient_tokens,
      degenerate=lambda text: bool(rules.reason_of(text)),
      progress=bar.update,
    )
  write_parquet(table, path)
  return table


def _prompts(settings: Settings) -> list[str]:
  """Return harmless questions that no direction is made of."""
  return [q.text for q in load_questions("dose")][: settings.coefficient_prompts]


def _tokens(settings: Settings) -> int:
  return max(16, settings.coefficient_tokens)
