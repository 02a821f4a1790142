"""How personas' directions lie to refusal, what that does, and whether it explains the effect."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.edits.window import as_window
from persona_jax.engine.model import Model
from persona_jax.geometry.census import Census, census, direction_bank
from persona_jax.geometry.cosines import cosine_table, shift_table
from persona_jax.geometry.coupling import Derivative, finite_differences
from persona_jax.geometry.decoy import alignment_correlation, alignment_table
from persona_jax.geometry.gradients import gradients
from persona_jax.geometry.metrics import EUCLIDEAN, Metric, unembedding, whitening
from persona_jax.studies.persona_non_grata import effects
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.differences import persona_pairs, refusal_samples
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal
from persona_jax.studies.persona_non_grata.settings import Settings

_TABLES = (
  "alignment", "traits", "cosines", "shifts", "correlation", "linearity", "regressions", "predicted"
)  # fmt: skip
_COMPONENTS = 8
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
    personas: the same of personas' directions and of their opposites; none if none is reliable.
    regressions: a row an outcome and predictor, with the slope of the one on the other
      (`effects.regressions`).
    predicted: a row an outcome and composite: its effect, and what a line through the poles
      predicts (`effects.predicted`).
    points: what every direction does by either outcome, personas among them (`effects.points`).
    notes: what could not be measured, and why.
  """

  alignment: pd.DataFrame
  traits: pd.DataFrame
  cosines: pd.DataFrame
  shifts: pd.DataFrame
  correlation: pd.DataFrame
  linearity: pd.DataFrame
  census: Census
  personas: tuple[Census, ...]
  regressions: pd.DataFrame
  predicted: pd.DataFrame
  points: pd.DataFrame
  notes: tuple[str, ...] = ()

  def tables(self) -> dict[str, pd.DataFrame]:
    """Return all tables, by the names of their files."""
    found = {f"geometry_{name}": getattr(self, name) for name in _TABLES}
    return found | {"geometry_census": self.points}


def independent(material: Material, extracted: Extracted) -> list[Direction]:
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
  *,
  leave_out: Mapping[str, Collection[str]] | None = None,
) -> Geometry:
  """Measure geometry and its effects on harmful prompts.

  Intervals of cosines are over the questions that personas' directions come from and the prompts
  that refusal's comes from. Personas are drawn over the cloud of directions; the regression is over
  independent ones, at the dose of the match "norm".

  Args:
    leave_out: {why: contrasts whose geometry is not tested ("C+")}, as too unreliable: they are in
      no census and no regression, nor are personas that are made of them, and not among `traits`.
      Tables of cosines and couplings describe them, without p.

  Raises:
    ValueError: a contrast in `leave_out` is none of the study's.
  """
  left = {name for names in (leave_out or {}).values() for name in names}
  unknown = sorted(left - set(extracted.contrasts))
  if unknown:
    raise ValueError(f"leave_out={unknown}: the contrasts are {list(extracted.contrasts)}.")
  r, block, kappa = refusal.family, calibrated.block, calibrated.kappa
  items = material.test[: settings.control_prompts or settings.test_prompts]
  prompts = [item.text for item in items]
  clusters = [item.cluster or item.prompt_id for item in items]
  own = [dataclasses.replace(extracted.personas[p.name], concept=p.name) for p in material.personas]
  traits = independent(material, extracted)
  null = controls(traits[0], "R-cov", n=_NULL, moments=calibrated.spread, seed=settings.seed + 1)[
    "R-cov"
  ]
  slopes = gradients(model, prompts, r, "all", refusal.ids, read=[calibrated.read_block])
  metrics, notes = _metrics(model, calibrated)
  pairs, unlike = persona_pairs(
    model, settings, material, extracted, {d.concept: d for d in own}, directory
  )
  r_pairs, unknown_r = refusal_samples(model, material, refusal)
  notes += unlike + unknown_r
  counted = [
    cosine_table(
      own,
      r,
      metric=metric,
      null=null,
      pairs=pairs,
      r_pairs=r_pairs,
      alpha=kappa * calibrated.scale.resid_L,  # of a unit vector, as edits are added
      unit="unit",
      draws=1000,
      seed=settings.seed,
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
  reliable = [d for d in own if not left.intersection(extracted.made_of[d.concept])]
  for why, names in (leave_out or {}).items():
    made_of_them = [d.concept for d in own if set(names).intersection(extracted.made_of[d.concept])]
    if names:
      notes += (
        f"{why}: {', '.join(sorted(names))}; they and what is made of them "
        f"({', '.join(made_of_them) or 'no persona'}) are in no census and no regression",
      )
  bank, copies = _independent_of(_without(made, left), block)
  if copies:
    notes += (f"left out of the census, as near copies of others: {', '.join(copies)}",)
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
  composites = [p.name for p in material.personas if len(p.poles) > 1]
  first = _named_first(reliable, settings.named)
  people = effects.census_of_personas(model, settings, first, prompts, calibrated, refusal.ids)
  every = [d for ds in bank.values() for d in ds]
  alignment = alignment_table(own, r, slopes, null, draws=settings.draws, seed=settings.seed)
  alignment["cos_causal"] = _causal(own, refusal.causal)
  by_trait = alignment_table(traits, r, slopes, null, draws=settings.draws, seed=settings.seed)
  by_trait = by_trait[by_trait["block"] == block]
  if as_window(settings.window) != as_window("answer"):
    # Effects are then of other tokens, too, so that no derivative says whether they are explained.
    by_trait = by_trait.assign(coupling_p=np.nan)
    notes += (
      f"edits act on {settings.window!r} and derivatives on the last token of the prompt: H4 does "
      "not ask whether aligned traits are coupled",
    )
  tested = [d.concept for d in reliable]
  cosines = pd.concat(counted, ignore_index=True)
  return Geometry(
    _without_p(alignment, ["cos_p", "coupling_p"], tested),
    by_trait[~(by_trait["direction"] + "+").isin(left)],
    _without_p(cosines, ["p"], tested),
    shift_table(own, r),
    alignment_correlation(alignment_table(every, r, slopes, null, draws=100), seed=settings.seed),
    _linearity(model, settings, prompts[:_LINEAR], own, refusal, calibrated),
    taken,
    people,
    effects.regressions(settings, taken, r, null, metrics, slopes, clusters),
    effects.predicted(people, reliable, composites, r),
    effects.points(settings, [taken, *people], r, metrics, slopes, clusters),
    notes,
  )


def _without(
  bank: Mapping[str, Sequence[Direction]], leave_out: Collection[str]
) -> dict[str, list[Direction]]:
  """Return a bank without traits and placebo directions of some contrasts.

  Random directions stay as they were drawn, so that leaving a trait out changes nothing else.
  """

  def stays(kind: str, d: Direction) -> bool:
    contrast = {"trait": f"{d.concept}+", "placebo": d.concept}.get(kind)
    return contrast not in leave_out

  return {kind: [d for d in ds if stays(kind, d)] for kind, ds in bank.items()}


def _without_p(table: pd.DataFrame, columns: Sequence[str], tested: Sequence[str]) -> pd.DataFrame:
  """Return a table that has p only of the directions that are tested."""
  there = table["direction"].isin(tested)
  return table.assign(**{column: table[column].where(there) for column in columns})


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
  kept = {id(d) for d in effects.distinct(every, block)}
  left = {kind: [d for d in ds if id(d) in kept] for kind, ds in bank.items()}
  return {k: ds for k, ds in left.items() if ds}, [d.concept for d in every if id(d) not in kept]


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
  for direction in effects.distinct(_named_first(own, settings.named), block):
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
