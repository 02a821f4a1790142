"""How a bank of many directions lies to refusal at every block, and what adding them does.

Directions of personas (the mean and every replicate), of placebo contrasts, principal components
and random ones; cosines in three inner products and the derivative of refusal's log-odds, both with
null bands; a census of effects at one block and dose; regressions over independent directions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose
from persona_jax.engine.model import Model
from persona_jax.geometry.census import Census, census, components, predictors
from persona_jax.geometry.cosines import cosine_table, shift_table
from persona_jax.geometry.decoy import alignment_correlation, alignment_table
from persona_jax.geometry.gradients import gradients
from persona_jax.geometry.metrics import EUCLIDEAN, Metric, unembedding, whitening
from persona_jax.report.geometry_figures import draw_alignment, draw_census, draw_spread, save
from persona_jax.runs.run import write_parquet
from persona_jax.stats.census import census as regress
from persona_jax.studies.fields import settings_of
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal

_NULL = 256  # R-cov draws of the bands, none of the bank's
_SAME = 0.94  # cosine of either sign above which two directions are one
_DRAWN = 12  # directions of a figure


@dataclasses.dataclass(frozen=True)
class BankSettings:
  """How large the bank is, and where its effects are measured.

  Attributes:
    isotropic, covariance: random directions of either kind.
    components: principal components of the unedited model's activations.
    prompts: harmful prompts that derivatives and effects are measured on.
    kappa: dose of the census, in median residual norms.
    draws: of bootstraps.
    seed: of everything that is drawn.

  Raises:
    ValueError: fewer than 8 directions of the data's covariance, a negative number of others, fewer
      than 2 prompts or 100 draws, or a dose that is not above 0.
  """

  isotropic: int
  covariance: int
  components: int
  prompts: int
  kappa: float
  draws: int
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "BankSettings":
    """Make settings of a config's fields."""
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    least = {"isotropic": 0, "covariance": 8, "components": 0, "prompts": 2, "draws": 100}
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(f"bank.{name}={getattr(self, name)}: at least {number} is needed.")
    if not self.kappa > 0:
      raise ValueError(f"bank.kappa={self.kappa}: give a dose above 0.")


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """What was found.

  Attributes:
    kinds: {kind: names of its directions}.
    alignment: of `geometry.decoy.alignment_table`, all directions, with their kind.
    cosines: direction, kind, block, metric, cos, null_low, null_high, p.
    shifts: cosines of personas one block off to either side.
    correlation: of cosine and coupling over independent directions, by block.
    points: a row a direction of the census: direction, kind, delta, and its predictors.
    regressions: a row a predictor.
    notes: what could not be measured.
  """

  kinds: Mapping[str, Sequence[str]]
  alignment: pd.DataFrame
  cosines: pd.DataFrame
  shifts: pd.DataFrame
  correlation: pd.DataFrame
  points: pd.DataFrame
  regressions: pd.DataFrame
  notes: tuple[str, ...]

  def write(self, folder: Path) -> None:
    """Write all tables."""
    for name in ("alignment", "cosines", "shifts", "correlation", "points", "regressions"):
      write_parquet(getattr(self, name), folder / f"{name}.parquet")


def make_bank(
  settings: BankSettings, material: Material, extracted: Extracted, scale: Dose
) -> dict[str, list[Direction]]:
  """Return {kind: directions}: persona, replicate, placebo, PC, R-iso, R-cov."""
  personas = [
    _with_poles(extracted.personas[p.name], _name(p.name, p.label), len(p.poles))
    for p in material.personas
  ]
  replicates = [
    dataclasses.replace(d, vectors_SLD=v_LD[None], concept=f"{d.concept} /{k}")
    for d in personas
    for k, v_LD in enumerate(d.vectors_SLD)
    if len(d.vectors_SLD) > 1
  ]
  bank = {
    "persona": personas,
    "replicate": replicates,
    "placebo": [dataclasses.replace(d, concept=name) for name, d in extracted.placebo.items()],
    "PC": components(scale, settings.components) if settings.components else [],
  }
  for kind, count in (("R-iso", settings.isotropic), ("R-cov", settings.covariance)):
    if count:
      bank |= controls(personas[0], kind, n=count, moments=scale, seed=settings.seed)
  return {kind: ds for kind, ds in bank.items() if ds}


def describe(settings: BankSettings, material: Material, num_blocks: int, block: int | None) -> str:
  """Return what would be measured, as text; a block that is None is chosen first."""
  personas = len(material.personas)
  counts = {
    "personas": personas,
    "replicates": personas * material.replicates if material.replicates > 1 else 0,
    "placebo": sum(len(p.poles) == 1 for p in material.placebo),
    "components": settings.components,
    "R-iso": settings.isotropic,
    "R-cov": settings.covariance,
  }
  total = sum(counts.values())
  place = "the block that is chosen" if block is None else f"block {block}"
  listed = ", ".join(f"{count} {name}" for name, count in counts.items())
  return (
    f"{total} directions ({listed}) at {num_blocks} blocks\n"
    f"derivatives on {settings.prompts} prompts: one pass back for all of them\n"
    f"census at {place}, dose {settings.kappa:g}: "
    f"{(total - counts['replicates'] + 1) * settings.prompts} rows"
  )


def _with_poles(direction: Direction, concept: str, num_poles: int) -> Direction:
  provenance = dict(direction.provenance) | {"num_poles": num_poles}
  return dataclasses.replace(direction, concept=concept, provenance=provenance)


def _name(name: str, label: str) -> str:
  return name if name == label.replace(" ", "") else f"{name} {label}"


def measure(
  model: Model,
  settings: BankSettings,
  bank: Mapping[str, Sequence[Direction]],
  refusal: Refusal,
  scale: Dose,
  block: int,
  prompts: Sequence[str],
  tokens: str = "answer",
) -> Found:
  """Measure geometry at every block, and effects at one.

  Args:
    model: the model.
    settings: of the bank.
    bank: of `make_bank`.
    refusal: the refusal direction.
    scale: median residual norms, and the sample of inner products and random directions.
    block: of the census.
    prompts: harmful prompts.
    tokens: that the census edits; derivatives are those of the last token of the prompt.
  """
  r = refusal.family
  every = [d for ds in bank.values() for d in ds]
  kind_of = {d.concept: kind for kind, ds in bank.items() for d in ds}
  null = controls(every[0], "R-cov", n=_NULL, moments=scale, seed=settings.seed + 1)["R-cov"]
  slopes = gradients(model, prompts, r, "all", refusal.ids)
  metrics, notes = _metrics(model, scale)
  options = {"draws": settings.draws, "seed": settings.seed}
  alignment = alignment_table(every, r, slopes, null, **options)  # type: ignore[arg-type]
  alignment["kind"] = alignment["direction"].map(kind_of)
  columns = ["direction", "block", "metric", "cos", "null_low", "null_high", "p"]
  cosines = pd.concat(
    [cosine_table(every, r, metric=m, null=null, seed=settings.seed)[columns] for m in metrics],
    ignore_index=True,
  )
  cosines["kind"] = cosines["direction"].map(kind_of)
  groups = _independent(bank, block)
  taken = [
    census(
      model,
      prompts,
      group,
      block,
      settings.kappa,
      refusal.ids,
      unit="resid",
      scale=scale,
      tokens=tokens,
    )
    for group in groups
  ]
  points = pd.concat([_points(c, r, metrics, slopes) for c in taken], ignore_index=True)
  independent = taken[0]
  known = predictors(independent.directions, r, block, metrics=metrics, gradients=slopes)
  rows: list[dict[str, Any]] = []
  for name, x_R in known.items():
    if np.isnan(x_R).any():  # refusal has no vector here, as before anything was read
      reason = f"refusal has no vector at block {block}"
      rows.append({"predictor": name, "directions": len(x_R), "reason": reason})
      continue
    found = regress(independent.delta_RN, x_R, **options)  # type: ignore[arg-type]
    rows.append(
      {
        "predictor": name,
        "slope": found.slope.value,
        "low": found.slope.low,
        "high": found.slope.high,
        "intercept": found.intercept,
        "r2": found.r2,
        "x_mean": float(x_R.mean()),
        "directions": len(x_R),
        "reason": found.reason,
      }
    )
  personas = list(bank["persona"])
  free = set(independent.names)
  return Found(
    {kind: [d.concept for d in ds] for kind, ds in bank.items()},
    alignment,
    cosines,
    shift_table(personas, r),
    alignment_correlation(alignment[alignment["direction"].isin(free)], seed=settings.seed),
    points,
    pd.DataFrame(rows),
    notes,
  )


def _metrics(model: Model, scale: Dose) -> tuple[list[Metric], tuple[str, ...]]:
  metrics = [EUCLIDEAN, unembedding(model)]
  try:
    metrics.insert(1, whitening(scale))
  except ValueError as error:  # answers of a few tokens do not spread in all dimensions
    return metrics, (f"no whitened cosines: {error}",)
  return metrics, ()


def _independent(
  bank: Mapping[str, Sequence[Direction]], block: int
) -> list[dict[str, list[Direction]]]:
  """Part a bank: independent directions first, then those that are nearly others or negatives.

  Composites, opposite poles and replicates say nothing new of a slope; they are shown beside it.
  """
  groups = [_Group({}, [])]
  rest: list[tuple[str, Direction]] = []
  for kind, ds in bank.items():
    for d in ds:
      is_single = kind != "replicate" and d.provenance.get("num_poles", 1) == 1
      if not (is_single and groups[0].takes(kind, d, block)):
        rest.append((kind, d))
  for kind, d in rest:
    if kind != "replicate" and not any(group.takes(kind, d, block) for group in groups[1:]):
      groups.append(_Group({}, []))
      groups[-1].takes(kind, d, block)
  return [group.members for group in groups]


class _Group(NamedTuple):
  """Directions none of which is another or its negative, and their unit vectors at a block."""

  members: dict[str, list[Direction]]
  units: list[np.ndarray]

  def takes(self, kind: str, d: Direction, block: int) -> bool:
    """Take a direction in, if it is a new one; return whether it was."""
    v_D = d.mean_LD[block].astype(np.float64)
    unit_D = v_D / np.linalg.norm(v_D)
    if self.units and np.abs(np.stack(self.units) @ unit_D).max() > _SAME:
      return False
    self.units.append(unit_D)
    self.members.setdefault(kind, []).append(d)
    return True


def _points(taken: Census, r: Direction, metrics: Sequence[Metric], slopes: Any) -> pd.DataFrame:
  known = predictors(taken.directions, r, taken.block, metrics=metrics, gradients=slopes)
  return pd.DataFrame(
    {
      "direction": taken.names,
      "kind": taken.kinds,
      "block": taken.block,
      "delta": taken.delta_RN.mean(axis=1),
      **known,
    }
  )


def draw(found: Found, block: int, folder: Path) -> list[Path]:
  """Draw alignment by block, the census by cosine and by coupling, and the spread of cosines."""
  names = _named(found.kinds["persona"])
  by_name = found.regressions.set_index("predictor")
  paths = [save(draw_alignment(found.alignment, names, steered=block), folder / "alignment.png")]
  for predictor, x_name in (
    ("cos_euclidean", f"cosine with the refusal direction, block {block}"),
    ("coupling", f"derivative of refusal log-odds, nats a unit of h, block {block}"),
  ):
    points = found.points.assign(x=found.points[predictor])
    figure = draw_census(
      points,
      by_name.loc[predictor],
      x_name=x_name,
      kinds=("persona", "placebo"),
      names=[*names, *found.kinds.get("placebo", ())],
    )
    paths.append(save(figure, folder / f"census_{predictor}.png"))
  paths.append(save(draw_spread(found.cosines, list(found.kinds)), folder / "spread.png"))
  return paths


def _named(personas: Sequence[str]) -> list[str]:
  """Return the personas of a figure: + poles, and composites that have a name of their own.

  With all composites of a closed set nothing could be told apart.
  """
  poles = [name for name in personas if name.endswith("+") and len(name.split()[-1]) <= 3]
  own = [name for name in personas if len(name.split()) > 2]
  return [*(name for name in poles if name not in own), *own][:_DRAWN] or list(personas)[:_DRAWN]
