"""How personas' directions lie to refusal, what that does, and whether it explains the effect."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.engine.model import Model
from persona_jax.geometry.census import Census, census, direction_bank, predictors
from persona_jax.geometry.cosines import cosine_table, means, shift_table
from persona_jax.geometry.coupling import Derivative, finite_differences
from persona_jax.geometry.decoy import alignment_correlation, alignment_table
from persona_jax.geometry.gradients import Gradients, gradients
from persona_jax.geometry.gram import PairDifferences
from persona_jax.geometry.metrics import EUCLIDEAN, Metric, unembedding, whitening
from persona_jax.runs.run import write_parquet
from persona_jax.stats.census import census as regress
from persona_jax.stats.census import predict
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.extraction import Extracted, pair_differences
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal
from persona_jax.studies.persona_non_grata.settings import Settings

_TABLES = (
  "alignment", "traits", "cosines", "shifts", "correlation", "linearity", "regressions", "predicted"
)  # fmt: skip
_COMPONENTS = 8
_AGREES = 0.99  # cosine of a direction with the mean of its pairs
_LINEAR = 16  # prompts of finite differences
_NULL = 256  # R-cov draws of the bands


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
  """What the geometry of personas and refusal is.

  Attributes:
    alignment: a row a persona and block: cosine and coupling with their null bands
      (`geometry.decoy.alignment_table`).
    traits: the same of one direction a trait, at the steered block.
    cosines: a row a persona, block and metric (`geometry.cosines.cosine_table`).
    shifts: cosines with both directions a block off to either side.
    correlation: of cosine and coupling over independent directions, by block.
    linearity: a row a persona and dose: finite difference over what the derivative predicts.
    census: what was added where, and what it did.
    regressions: a row a predictor: slope of the change of refusal log-odds on it, with interval.
    predicted: a row a composite: its effect, and what a line through the poles predicts.
    notes: what could not be measured, and why.
  """

  alignment: pd.DataFrame
  traits: pd.DataFrame
  cosines: pd.DataFrame
  shifts: pd.DataFrame
  correlation: pd.DataFrame
  linearity: pd.DataFrame
  census: Census
  regressions: pd.DataFrame
  predicted: pd.DataFrame
  notes: tuple[str, ...] = ()

  def write(self, folder: Path) -> None:
    """Write all tables."""
    for name in _TABLES:
      write_parquet(getattr(self, name), folder / f"geometry_{name}.parquet")
    write_parquet(self.points(), folder / "geometry_census.parquet")

  def points(self) -> pd.DataFrame:
    """Return a row a direction of the census: direction, kind, mean change of refusal log-odds."""
    c = self.census
    return pd.DataFrame(
      {"direction": c.names, "kind": c.kinds, "delta": c.delta_RN.mean(axis=1), "block": c.block}
    )


def independent(settings: Settings, material: Material, extracted: Extracted) -> list[Direction]:
  """Return directions that are neither negatives nor sums of others: one a trait."""
  found = []
  for trait in material.traits:
    direction = extracted.contrasts[f"{trait}+"]
    found.append(dataclasses.replace(direction, concept=trait))
  return found


def placebo_directions(extracted: Extracted) -> list[Direction]:
  """Return one direction a placebo contrast."""
  return [d for label, d in extracted.placebo.items() if label.endswith("+")]


def examine(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  refusal: Refusal,
  calibrated: Calibrated,
  directory: Path,
) -> Geometry:
  """Measure geometry and its effects on harmful prompts.

  Intervals of cosines are over the questions that a pole's direction comes from; composites put
  together of others have none. Personas are drawn over the cloud of directions; the regression is
  over independent ones, at the dose of the match "norm".
  """
  r, block, kappa = refusal.family, calibrated.block, calibrated.kappa
  items = material.test[: settings.control_prompts or settings.test_prompts]
  prompts = [item.text for item in items]
  clusters = [item.cluster or item.prompt_id for item in items]
  own = [dataclasses.replace(extracted.personas[p.name], concept=p.name) for p in material.personas]
  traits = independent(settings, material, extracted)
  null = controls(traits[0], "R-cov", n=_NULL, moments=calibrated.spread, seed=settings.seed + 1)[
    "R-cov"
  ]
  slopes = gradients(model, prompts, r, "all", refusal.ids, read=[calibrated.read_block])
  metrics, notes = _metrics(model, calibrated)
  size = kappa * float(calibrated.scale.resid_L[block])
  pairs, lacking = _pairs(model, settings, material, extracted, own, directory)
  notes += lacking
  counted = [
    cosine_table(
      own, r, metric=metric, null=null, alpha=size, pairs=pairs, draws=1000, seed=settings.seed
    )
    for metric in metrics
  ]
  made = direction_bank(
    traits,
    placebo_directions(extracted),
    dose=calibrated.spread,
    num_random=settings.num_controls,
    num_components=min(_COMPONENTS, model.arch.width // 4),
    seed=settings.seed,
  )
  bank, left_out = _independent_of(made, block)
  if left_out:
    notes += (f"left out of the census, as near copies of others: {', '.join(left_out)}",)
  taken = census(
    model,
    prompts,
    bank,
    block,
    kappa,
    refusal.ids,
    unit="resid",
    scale=calibrated.scale,
    tokens=settings.window,
  )
  people = census(
    model,
    prompts,
    {"persona": _distinct(_named_first(own, settings.named), block)},
    block,
    kappa,
    refusal.ids,
    unit="resid",
    scale=calibrated.scale,
    tokens=settings.window,
  )
  every = [d for ds in bank.values() for d in ds]
  alignment = alignment_table(own, r, slopes, null, draws=settings.draws, seed=settings.seed)
  alignment["cos_causal"] = _causal(own, refusal.causal)
  by_trait = alignment_table(traits, r, slopes, null, draws=settings.draws, seed=settings.seed)
  return Geometry(
    alignment,
    by_trait[by_trait["block"] == block],
    pd.concat(counted, ignore_index=True),
    shift_table(own, r),
    alignment_correlation(alignment_table(every, r, slopes, null, draws=100), seed=settings.seed),
    _linearity(model, settings, prompts[:_LINEAR], own, refusal, calibrated),
    taken,
    _regressions(settings, taken, r, null, metrics, slopes, clusters),
    _predicted(material, taken, people, r, block),
    notes,
  )


def _pairs(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  own: Sequence[Direction],
  directory: Path,
) -> tuple[dict[str, PairDifferences], tuple[str, ...]]:
  """Return the pair differences of personas whose direction is the mean of some."""
  wanted: dict[str, tuple[str, int]] = {}
  for persona in material.personas:
    for label, sign in ((persona.label, 1), (persona.contrast().label, -1)):
      summed = len(persona.poles) > 1 and settings.composites == "sum"
      if label in extracted.contrasts and not summed and persona.name not in wanted:
        wanted[persona.name] = label, sign
  read = pair_differences(
    model, settings, material, directory, sorted({label for label, _ in wanted.values()})
  )
  by_name = {d.concept: d for d in own}
  found, notes = {}, []
  for name, (label, sign) in wanted.items():
    pairs = read[label]
    signed = dataclasses.replace(pairs, z_NLD=sign * pairs.z_NLD)
    mean_LD, own_LD = signed.z_NLD.mean(axis=0), by_name[name].mean_LD
    size = np.linalg.norm(mean_LD, axis=-1) * np.linalg.norm(own_LD, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
      cos_L = (mean_LD * own_LD).sum(axis=-1) / size
    if np.nanmin(cos_L) < _AGREES:  # replicates of very unlike numbers of pairs
      notes.append(f"no interval of {name}'s cosine: replicates differ too much in their pairs")
    else:
      found[name] = signed
  return found, tuple(notes)


def _causal(own: Sequence[Direction], causal: Direction) -> np.ndarray:
  """Return cosines with the one vector that causes refusal, in the order of the table."""
  unit_RLD = np.stack([d.unit_LD for d in own])
  found: np.ndarray = (unit_RLD * causal.unit_LD).sum(axis=-1).ravel()
  return found


def _metrics(model: Model, calibrated: Calibrated) -> tuple[list[Metric], tuple[str, ...]]:
  """Return the inner products that there are, and why one is lacking."""
  metrics, notes = [EUCLIDEAN, unembedding(model)], []
  try:
    metrics.insert(1, whitening(calibrated.spread))
  except ValueError as error:  # answers of a few tokens do not spread in all dimensions
    notes.append(f"no whitened cosines: {error}")
  return metrics, tuple(notes)


def _named_first(own: Sequence[Direction], named: str) -> list[Direction]:
  """Put the named persona first, so that of two that are one it is the one that is kept."""
  return sorted(own, key=lambda d: d.concept != named)


def _independent_of(
  bank: Mapping[str, Sequence[Direction]], block: int
) -> tuple[dict[str, list[Direction]], list[str]]:
  """Return a bank without near copies of directions before them, and the names of those."""
  every = [d for ds in bank.values() for d in ds]
  kept = {id(d) for d in _distinct(every, block)}
  left = {kind: [d for d in ds if id(d) in kept] for kind, ds in bank.items()}
  return {k: ds for k, ds in left.items() if ds}, [d.concept for d in every if id(d) not in kept]


def _distinct(directions: Sequence[Direction], block: int) -> list[Direction]:
  """Leave out the second of two directions that are one or each other's negatives."""
  kept: list[Direction] = []
  for d in directions:
    if all(abs(float(d.unit_LD[block] @ other.unit_LD[block])) <= 0.95 for other in kept):
      kept.append(d)
  return kept


def _regressions(
  settings: Settings,
  taken: Census,
  r: Direction,
  null: Sequence[Direction],
  metrics: Sequence[Metric],
  slopes: Gradients,
  clusters: Sequence[str],
) -> pd.DataFrame:
  """Regress effects on every predictor, with the band of random directions in r's place."""
  known = predictors(taken.directions, r, taken.block, metrics=metrics, gradients=slopes)
  v_RD = means(taken.directions, r)[:, taken.block].astype(np.float64)
  null_KD = means(null, r)[:, taken.block].astype(np.float64)
  rows: list[dict[str, Any]] = []
  for name, x_R in known.items():
    if np.isnan(x_R).any():  # refusal has no vector here, as before anything was read
      reason = f"refusal has no vector at block {taken.block}"
      rows.append({"predictor": name, "directions": len(x_R), "reason": reason})
      continue
    control = None
    metric = next((m for m in metrics if name == f"cos_{m.name}"), None)
    if metric is not None:
      a, b = (metric.map(x, taken.block) for x in (v_RD, null_KD))
      a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
      control = b @ a.T
    found = regress(
      taken.delta_RN,
      x_R,
      list(taken.names),
      clusters_N=clusters,
      control_x_KR=control,
      draws=settings.draws,
      seed=settings.seed,
    )
    rows.append(
      {
        "predictor": name,
        "slope": found.slope.value,
        "low": found.slope.low,
        "high": found.slope.high,
        "p_positive": found.p_positive,
        "p_negative": found.p_negative,
        "intercept": found.intercept,
        "r2": found.r2,
        "band_low": found.band[0],
        "band_high": found.band[1],
        "p_specific": found.p_specific,
        "directions": len(x_R),
        "reason": found.reason,
      }
    )
  return pd.DataFrame(rows)


def _predicted(
  material: Material, taken: Census, people: Census, r: Direction, block: int
) -> pd.DataFrame:
  """Predict the effects of composites from a line through the poles' alignment and effect.

  Both signs of a pole count: its negative has the negative cosine and, to first order, effect.
  """
  composites = {p.name for p in material.personas if len(p.poles) > 1}
  alignment = {d.concept: float(d.unit_LD[block] @ r.unit_LD[block]) for d in people.directions}
  effect = dict(zip(people.names, people.delta_RN.mean(axis=1), strict=True))
  poles = [name for name in effect if name not in composites]
  asked = [name for name in effect if name in composites]
  if len(poles) < 3 or not asked:
    return pd.DataFrame(columns=["persona", "alignment", "effect", "predicted"])
  x, y = np.asarray([alignment[n] for n in poles]), np.asarray([effect[n] for n in poles])
  found = predict(np.append(x, -x), np.append(y, -y), [alignment[n] for n in asked])
  return pd.DataFrame(
    {
      "persona": asked,
      "alignment": [alignment[n] for n in asked],
      "effect": [effect[n] for n in asked],
      "predicted": found,
    }
  )


def _linearity(
  model: Model,
  settings: Settings,
  prompts: Sequence[str],
  own: Sequence[Direction],
  refusal: Refusal,
  calibrated: Calibrated,
) -> pd.DataFrame:
  """Return finite differences at every dose over what the derivative at 0 predicts.

  Both on the same prompts: derivatives differ between prompts by more than doses bend them.
  """
  block = calibrated.block
  slopes = gradients(
    model, prompts, refusal.family, [block], refusal.ids, read=[calibrated.read_block]
  )
  at = slopes.blocks.index(block)
  tables = []
  for direction in _distinct(_named_first(own, settings.named), block):
    at_zero = Derivative(
      float(slopes.on_log_odds([direction])[0, at]),
      slopes.on_projection([direction])[0, :, at],
      slopes.read,
    )
    table = finite_differences(
      model,
      prompts,
      direction,
      refusal.family,
      block,
      settings.kappas,
      refusal.ids,
      unit="resid",
      scale=calibrated.scale,
      at_zero=at_zero,
    )
    tables.append(table.rename(columns={"direction": "persona"}))
  return pd.concat(tables, ignore_index=True)
