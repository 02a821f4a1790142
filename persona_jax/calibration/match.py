"""`pj.match`: the coefficient at which steering is as strong as a system prompt, on four scales.

    norm   every persona the same size; the prompt's own size is told beside it
    proj   the same shift along the persona's direction, at the block of the edit or a later one
    trait  the same gain of the trait in a questionnaire
    kl     the same change of next tokens on harmless prompts

Targets come from the prompt arm, and both arms are measured on the same answers of the unedited
model. The four will disagree, and each match says what it achieves on the other scales. At the
edited block an equal shift is the prompt's shift itself, and transport does not count; it is told
beside the shift at the block where projections are read.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from persona_jax.calibration.answers import Answers
from persona_jax.calibration.gauge import KAPPAS, SCALES, By, Gauge, Pair, Poles, pairs_of
from persona_jax.calibration.solve import (
  Evaluate,
  Parts,
  Solution,
  Units,
  enough,
  known,
  response,
  solve,
)
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose, dose
from persona_jax.edits.window import Window
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt
from persona_jax.scorers.choice import Choices

_HERE = "proj_here"  # the scale "proj" at the edited block itself
_MEASURED = ("norm", "proj", _HERE, "trait", "kl")


@dataclasses.dataclass(frozen=True, eq=False)
class PromptArm:
  """Personas' prompts, measured on every scale: the targets of all matches.

  Attributes:
    gauge: that they were measured with.
    pairs: of each cell, its prompt and its direction.
    targets: by scale, and "proj_here", the parts of every cell.
  """

  gauge: Gauge
  pairs: tuple[Pair, ...]
  targets: Mapping[str, list[Parts]]

  @classmethod
  def of(
    cls,
    model: Model,
    prompt_conditions: Mapping[str, Condition | Sequence[Condition]],
    directions: Mapping[str, Direction],
    *,
    prompts: Sequence[Prompt] | Answers,
    blocks: int,
    read_block: int | None = None,
    tokens: str | Window = "answer",
    scale: Dose | None = None,
    questionnaire: Choices | None = None,
    poles: Poles | None = None,
    progress: Callable[[int], None] | None = None,
  ) -> "PromptArm":
    """Measure the prompts; arguments and errors are those of `match`."""
    if isinstance(prompts, str) or not len(prompts):
      raise ValueError(f"prompts={prompts!r}: give a list of prompts, or Answers.")
    if not isinstance(blocks, (int, np.integer)):
      raise ValueError(f"blocks={blocks!r}: one block is steered; give its number.")
    pairs = pairs_of(prompt_conditions, directions)
    zero = [p.persona for p in pairs if not p.direction.mean_LD[blocks : blocks + 1].any()]
    if zero:
      raise ValueError(f"directions of {zero} are zero at block {blocks}, or it is none of theirs.")
    answers = prompts if isinstance(prompts, Answers) else Answers.of(model, prompts)
    if scale is None:
      scale = dose(model, list(answers.chats), site=pairs[0].direction.site)
    gauge = Gauge.of(
      answers,
      blocks,
      scale=scale,
      read_block=read_block,
      window=tokens,
      questionnaire=questionnaire,
      poles=poles,
    )
    told = progress or (lambda _: None)
    targets = _measured(gauge, pairs, [pair.prompt for pair in pairs], told)
    return cls(gauge, tuple(pairs), targets)


def match(
  model: Model,
  prompt_conditions: Mapping[str, Condition | Sequence[Condition]],
  directions: Mapping[str, Direction],
  *,
  by: By,
  prompts: Sequence[Prompt] | Answers,
  blocks: int,
  read_block: int | None = None,
  tokens: str | Window = "answer",
  scale: Dose | None = None,
  kappa: float | None = None,
  most: float | Mapping[str, float] | None = None,
  scan: Sequence[float] = KAPPAS,
  questionnaire: Choices | None = None,
  poles: Poles | None = None,
  tolerance: float = 0.05,
  draws: int = 1000,
  seed: int = 0,
  progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
  """Find for each persona the dose at which steering is as strong as its system prompt.

  Args:
    model: the model.
    prompt_conditions: {persona: its prompt condition, or one a replicate}.
    directions: {persona: its direction}; replicate k goes with condition k.
    by: the scale, see the module.
    prompts: harmless prompts, none of those that outcomes are measured on; or `Answers` to them.
    blocks: the block that is steered.
    read_block: where shifts along the direction are read, those of "proj" and those that are told
      under every match; default the same block, where the match is the prompt's shift itself and
      transport does not count.
    tokens: the edit's window.
    scale: of `pj.dose`, at the directions' site; default measured on the prompts.
    kappa: for "norm", the dose of every persona; default the median over personas of the prompts'.
    most: largest dose to try, of all personas or of each: up to where the model stays coherent.
    scan: doses that are measured first to bracket each target.
    questionnaire, poles: of traits, and {persona: ((trait, sign), …)}; needed for "trait", and for
      what the other matches achieve on it.
    tolerance: share of the target by which the achieved value may miss it.
    draws: bootstrap draws of prompts (for "trait" of items).
    seed: of the draws.
    progress: called with the number of conditions measured.

  Returns:
    A row a persona and replicate: persona, replicate, by, block, read_block, coef (in median
    residual norms), coef_low, coef_high (95 %), coef_raw (in the units of the residual
    stream), coef_sigma (in standard deviations of the projection), coef_norms (in lengths of the
    direction), coef_here (for "proj", the dose whose shift at `block` is the prompt's there, in
    closed form; not above 0 where the prompt moves the other way, and not held to `most`),
    coef_pooled (one dose for all: the median of `coef` over the cells that are "ok"),
    target, target_* (the prompt's value on each scale), achieved_* (the edit's), status, reason, r2
    (of the isotonic fit), unreached (share of draws without a solution), units (prompts, for
    "trait" items, that the match rests on), units_missing (prompts without an answer; items without
    a value in the unedited model, under the prompt or at a dose), items_missing (of the
    questionnaire, that target_trait and achieved_trait do not rest on).
    Scales: norm, in median residual norms; proj, at `read_block`, and proj_here, at `block`, in the
    units of the residual stream; kl, nats a token; trait, standard deviations. Both arms of a cell
    are compared over the same units; where a trait has fewer than half of its items left, the value
    is NaN.

  Raises:
    ValueError: arms that do not fit one another, an unknown scale, a site other than `scale`'s, or
      what the scale needs is not given.
  """
  _check(by, scan, draws, tolerance, by != "trait" or not (questionnaire is None or poles is None))
  arm = PromptArm.of(
    model,
    prompt_conditions,
    directions,
    prompts=prompts,
    blocks=blocks,
    read_block=read_block,
    tokens=tokens,
    scale=scale,
    questionnaire=questionnaire,
    poles=poles,
    progress=progress,
  )
  return match_to(
    arm,
    by=by,
    kappa=kappa,
    most=most,
    scan=scan,
    tolerance=tolerance,
    draws=draws,
    seed=seed,
    progress=progress,
  )


def match_to(
  arm: PromptArm,
  *,
  by: By,
  kappa: float | None = None,
  most: float | Mapping[str, float] | None = None,
  scan: Sequence[float] = KAPPAS,
  tolerance: float = 0.05,
  draws: int = 1000,
  seed: int = 0,
  progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
  """Match steering to prompts that were measured before, once for several scales.

  Args:
    arm: the prompts; with a questionnaire and poles for "trait".
    by, kappa, most, scan, tolerance, draws, seed, progress: see `match`.

  Returns:
    The table of `match`.

  Raises:
    ValueError: as `match`.
  """
  gauge, pairs, targets = arm.gauge, arm.pairs, arm.targets
  _check(
    by,
    scan,
    draws,
    tolerance,
    by != "trait" or (gauge.questionnaire is not None and bool(gauge.poles)),
  )
  told = progress or (lambda _: None)
  if by == "norm":
    limits = [np.inf if most is None else _limit(most, pair.persona, scan) for pair in pairs]
    solutions = _same_for_all(targets["norm"], kappa, limits)
  else:
    limits = [_limit(most, pair.persona, scan) for pair in pairs]
    solutions = solve(
      _evaluate(gauge, by, pairs, told),
      targets[by],
      scan,
      most=limits,
      tolerance=tolerance,
      logarithmic=by == "kl",
      draws=draws,
      seed=seed,
    )
  there = [n for n, found in enumerate(solutions) if np.isfinite(found.coef)]
  mine = [pairs[n] for n in there]
  steered = [gauge.steer(pairs[n], solutions[n].coef) for n in there]
  achieved = {
    name: dict(zip(there, values, strict=True))
    for name, values in _measured(gauge, mine, steered, told).items()
  }
  norm = float(gauge.scale.resid_L[gauge.block])
  empty = 0 if by == "trait" else gauge.answers.num_empty
  per_dose = gauge.shift_per_dose() if by == "proj" else float("nan")
  pooled = [found.coef for found in solutions if found.status == "ok"]
  rows = []
  for n, (pair, found) in enumerate(zip(pairs, solutions, strict=True)):
    both = {
      name: _compare(targets[name][n], achieved[name].get(n), found.units if name == by else None)
      for name in targets
    }
    items = both["trait"].units if "trait" in both else None
    rows.append(
      {
        "persona": pair.persona,
        "replicate": pair.replicate,
        "by": by,
        "block": gauge.block,
        "read_block": gauge.read_block,
        "coef": found.coef,
        "coef_low": found.low,
        "coef_high": found.high,
        "coef_raw": found.coef * norm,
        "coef_sigma": found.coef * norm / _sigma(gauge.scale, gauge.block, pair.direction),
        "coef_norms": found.coef * norm / float(pair.direction.norm_L[gauge.block]),
        "coef_here": both[_HERE].target / per_dose,
        "coef_pooled": float(np.median(pooled)) if pooled else float("nan"),
        "target": found.target,
        **{f"target_{s}": both[s].target if s in both else float("nan") for s in _MEASURED},
        **{f"achieved_{s}": both[s].achieved if s in both else float("nan") for s in _MEASURED},
        "status": found.status,
        "reason": found.reason,
        "r2": found.r2,
        "unreached": found.unreached,
        "units": sum(int(u_U.sum()) for u_U in found.units),
        "units_missing": empty + _missing(found.units),
        "items_missing": None if items is None else _missing(items),
      }
    )
  return pd.DataFrame(rows).astype({"replicate": "Int64", "items_missing": "Int64"})


def _check(by: str, scan: Sequence[float], draws: int, tolerance: float, has_items: bool) -> None:
  if by not in SCALES:
    raise ValueError(f"by={by!r}: use one of {list(SCALES)}.")
  if not has_items:
    raise ValueError("by='trait' needs a questionnaire and the poles of each persona.")
  if not len(scan) or draws < 1 or not tolerance > 0:
    raise ValueError(
      f"scan={tuple(scan)}, draws={draws}, tolerance={tolerance}: give doses, and numbers above 0."
    )


class _Compared(NamedTuple):
  """A cell on one scale: the prompt's value, the edit's, and the units that both rest on."""

  target: float
  achieved: float
  units: Units


def _compare(target: Parts, achieved: Parts | None, units: Units | None) -> _Compared:
  """Compare over the given units, or else those that have a value in both arms."""
  nan, own = float("nan"), known(target)
  if units is None:
    units = own if achieved is None else known(target, achieved)
  if not enough(units):
    return _Compared(response(target, own) if enough(own) else nan, nan, units)
  steered = nan if achieved is None else response(achieved, units)
  return _Compared(response(target, units), steered, units)


def _missing(units: Units) -> int:
  return sum(int((~u_U).sum()) for u_U in units)


def _sigma(scale: Dose, block: int, direction: Direction) -> float:
  """Return the standard deviation of the projection; NaN where the sample has none."""
  return scale.sigma(block, direction.unit_LD[block]) or float("nan")


def _limit(most: float | Mapping[str, float] | None, persona: str, scan: Sequence[float]) -> float:
  if isinstance(most, Mapping):
    if persona not in most:
      raise ValueError(f"most has no dose for {persona!r}; it has {sorted(most)}.")
    return float(most[persona])
  return max(scan) if most is None else float(most)


def _evaluate(gauge: Gauge, by: By, pairs: Sequence[Pair], told: Callable[[int], None]) -> Evaluate:
  def evaluate(cells: Sequence[int], coefs: Sequence[float]) -> list[Parts]:
    mine = [pairs[n] for n in cells]
    conditions = [gauge.steer(pair, c) for pair, c in zip(mine, coefs, strict=True)]
    found = gauge.measure(by, mine, conditions)
    told(len(cells))
    return found

  return evaluate


def _same_for_all(
  shifts: Sequence[Parts], kappa: float | None, limits: Sequence[float]
) -> list[Solution]:
  """Return one dose for all: the given one, or the median of the prompts' shifts.

  A persona whose limit is lower is not coherent at it: "unreachable".
  """
  sizes = [response(parts, known(parts)) for parts in shifts]
  coef = float(np.median(sizes)) if kappa is None else float(kappa)
  if not coef > 0:
    raise ValueError(f"kappa={coef}: the dose of all personas must be above 0.")
  nan = float("nan")
  found = []
  for parts, limit in zip(shifts, limits, strict=True):
    ends = (float("nan"), float("nan"), known(parts))
    if coef <= limit:
      found.append(Solution(coef, nan, nan, coef, coef, "ok", "", *ends))
    else:
      reason = f"dose {coef:.3g} is above {limit:.3g}"
      found.append(Solution(nan, nan, nan, coef, limit, "unreachable", reason, *ends))
  return found


def _measured(
  gauge: Gauge,
  pairs: Sequence[Pair],
  conditions: Sequence[Condition],
  told: Callable[[int], None],
) -> dict[str, list[Parts]]:
  """Measure conditions on every scale that there is, "proj" at both blocks."""
  out = gauge.moved(pairs, conditions)
  told(len(pairs))
  if "trait" in gauge.scales:
    out["trait"] = gauge.measure("trait", pairs, conditions)
    told(len(pairs))
  return out
