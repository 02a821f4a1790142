"""The specification curve: is the named persona's inversion there under other choices of steering?

Blocks within a tenth of the depth of the steered one, windows, both rules of composites and all
coherent doses, on exact probabilities of the first token (the idea: Simonsohn et al. 2020, Nature
Human Behaviour 4: 1208). The other contrast needs other directions: run the study again with it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.edits.operations import add
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.runs.run import write_parquet
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings

WINDOWS = ("answer", "all")  # edits on generated tokens alone do not touch the first one
_DEPTH = 0.1
HOLDS = 0.75  # share of coherent specifications in which an inversion should be there


@dataclasses.dataclass(frozen=True)
class Choice:
  """One way to steer: block, window, rule of composites, and dose in median residual norms."""

  block: int
  window: str
  rule: str
  kappa: float


def choices(
  settings: Settings, extracted: Extracted, calibrated: Calibrated, num_blocks: int
) -> list[Choice]:
  """Return all specifications; one rule where no composite has a direction by the other."""
  reach = max(1, round(_DEPTH * num_blocks))
  middle = calibrated.block
  blocks = range(max(0, middle - reach), min(num_blocks, middle + reach + 1))
  other = {"sum": "direct", "direct": "sum"}[settings.composites]
  rules = (settings.composites, other) if extracted.others else (settings.composites,)
  return [
    Choice(block, window, rule, kappa)
    for block in blocks
    for window in WINDOWS
    for rule in rules
    for kappa in settings.kappas
  ]


def specification_curve(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  calibrated: Calibrated,
  refusal_ids: Sequence[int],
  prompted: Mapping[str, np.ndarray],
  directory: Path,
  *,
  among: Sequence[str] = (),
  progress: bool = True,
) -> pd.DataFrame:
  """Measure the named persona's excess under every specification.

  Args:
    prompted: {persona: exact probability of a bypass under its prompts}, float64 [N], of the first
      prompts of the test, averaged over replicates.
    directory: of the study; what is there is kept.
    among: the personas that the named one is compared with, as in the test of inversions; default
      all.

  Returns:
    A row a specification: block, window, rule, kappa, d_sp, d_as (excess over the mean of the other
    personas, of the probability of a bypass), coherent (the dose is one at which the named persona
    stays fluent), holds (beyond the margin in both arms), primary (the study's own block, window
    and rule). Empty where no prompts are asked for.
  """
  if not settings.spec_prompts:
    return pd.DataFrame()
  users = [item.text for item in material.test[: settings.spec_prompts]]
  names = [p.name for p in material.personas if not among or p.name in among]
  if settings.named not in names or len(names) < 2:
    return pd.DataFrame()
  p_SP = np.asarray([prompted[name].mean() for name in names])
  at = names.index(settings.named)
  rows = []
  asked = choices(settings, extracted, calibrated, model.arch.num_blocks)
  for choice in tqdm.tqdm(asked, unit="way", disable=not progress, desc="specifications"):
    directions = [_direction(name, choice.rule, settings, extracted) for name in names]
    key = content_hash(
      [dataclasses.asdict(choice), [d.hash for d in directions], users, list(refusal_ids)]
    )[:16]
    path = directory / "specifications" / f"{key}.parquet"
    if not path.exists():
      p_P = _bypass(model, directions, choice, calibrated, users, refusal_ids)
      write_parquet(pd.DataFrame({"persona": names, "p": p_P}), path)
    p_AS = pd.read_parquet(path)["p"].to_numpy(np.float64)
    d_sp, d_as = _excess(p_SP, at), _excess(p_AS, at)
    rows.append(
      {
        **dataclasses.asdict(choice),
        "d_sp": d_sp,
        "d_as": d_as,
        "coherent": choice.kappa <= calibrated.limits.get(settings.named, np.inf),
        "holds": d_sp < -settings.delta and d_as > settings.delta,
        "primary": (choice.block, choice.window, choice.rule)
        == (calibrated.block, settings.window, settings.composites),
      }
    )
  return pd.DataFrame(rows)


def share(curve: pd.DataFrame) -> float:
  """Return in which share of coherent specifications the inversion is there; NaN of none."""
  coherent = curve[curve["coherent"]] if len(curve) else curve
  return float(coherent["holds"].mean()) if len(coherent) else float("nan")


def _direction(name: str, rule: str, settings: Settings, extracted: Extracted) -> Direction:
  other = name in extracted.others and rule != settings.composites
  return extracted.others[name] if other else extracted.personas[name]


def _bypass(
  model: Model,
  directions: Sequence[Direction],
  choice: Choice,
  calibrated: Calibrated,
  users: Sequence[str],
  refusal_ids: Sequence[int],
) -> np.ndarray:
  """Return the mean exact probability that the first token begins no refusal, float64 [P]."""
  edits = [
    add(
      d, choice.kappa, unit="resid", blocks=choice.block, tokens=choice.window,
      scale=calibrated.scale,
    )
    for d in directions
  ]  # fmt: skip
  rows = encode_rows(
    model,
    [user for _ in edits for user in users],
    [[edit] for edit in edits for _ in users],
  )
  odds = log_odds(next_logits(model, rows), refusal_ids).reshape(len(edits), -1)
  mean: np.ndarray = (1 / (1 + np.exp(odds))).mean(axis=1)
  return mean


def _excess(p_P: np.ndarray, at: int) -> float:
  return float(p_P[at] - np.delete(p_P, at).mean())
