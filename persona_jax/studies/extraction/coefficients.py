"""How large a coefficient may be: the first method's direction is tried out at its block."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import tqdm

import persona_jax.directions.selection as selection
from persona_jax.directions.dose import Dose, dose
from persona_jax.directions.formats.rows import file_name
from persona_jax.edits.operations import add
from persona_jax.engine.model import Model
from persona_jax.personas.persona import load_questions
from persona_jax.runs.run import write_parquet
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.studies.extraction.evidence import Evidence
from persona_jax.studies.extraction.settings import Settings


def try_out(
  model: Model,
  settings: Settings,
  evidence: Mapping[str, Sequence[Evidence]],
  directory: Path,
  *,
  progress: bool = True,
) -> dict[str, pd.DataFrame]:
  """Steer harmless questions with every coefficient, both ways; see `selection.try_coefficients`.

  Coefficients count in median norms of the activations that the questions' answers have, at the
  chosen block of each concept's first method.

  Returns:
    A table a concept; none where no coefficient is asked for. Tables are kept, and read again where
    they are there.
  """
  if not settings.coefficients:
    return {}
  both = sorted({*settings.coefficients, *(-c for c in settings.coefficients)})
  found, scale = {}, None
  for concept, (first, *_) in evidence.items():
    path = directory / "coefficients" / f"{file_name(concept)}.parquet"
    if not path.exists():
      if scale is None:
        tokens = max(16, settings.coefficient_tokens)
        scale = dose(model, _prompts(settings), site=settings.site, answer_tokens=tokens)
      name = f"coefficients {concept}"
      with tqdm.tqdm(total=len(both) + 1, unit="dose", disable=not progress, desc=name) as bar:
        table = _try(model, settings, first, both, scale, bar.update)
      write_parquet(table, path)
    found[concept] = pd.read_parquet(path)
  return found


def _try(
  model: Model,
  settings: Settings,
  first: Evidence,
  coefficients: Sequence[float],
  scale: Dose,
  progress: Callable[[int], object],
) -> pd.DataFrame:
  rules = Degenerate()
  return selection.try_coefficients(
    model,
    lambda at, c: add(first.direction, c, unit="resid", blocks=at, tokens="answer", scale=scale),
    [first.block],
    coefficients,
    _prompts(settings),
    max_new_tokens=settings.coefficient_tokens,
    degenerate=lambda text: bool(rules.reason_of(text)),
    progress=progress,  # type: ignore[arg-type]
  )


def _prompts(settings: Settings) -> list[str]:
  """Return harmless questions that no direction is made of."""
  return [q.text for q in load_questions("dose")][: settings.coefficient_prompts]
