"""`pj.match`: the coefficient at which steering is as strong as a system prompt, on four scales.

    norm   every persona the same size; the prompt's own size is told beside it
    proj   the same shift along the persona's direction, at the block of the edit or a later one
    trait  the same gain of the trait in a questionnaire
    kl     the same change of next tokens on harmless prompts

Targets come from the prompt arm, and both arms are measured on the same answers of the unedited
model. The four will disagree, and each match says what it achieves on the other scales.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from persona_jax.calibration.answers import Answers
from persona_jax.calibration.solve import Evaluate, Parts, Solution, response, solve
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose, dose
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import add
from persona_jax.edits.window import Window
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt
from persona_jax.scorers.choice import Choices

By = Literal["norm", "proj", "trait", "kl"]
Poles = Mapping[str, Sequence[tuple[str, int]]]  # persona → (trait, sign) of its poles
SCALES: tuple[By, ...] = ("norm", "proj", "trait", "kl")
KAPPAS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9)  # doses of the scan, in median residual norms


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """A persona's two arms of one replicate.

  Attributes:
    persona: its name.
    replicate: of both arms, or None.
    prompt: the prompt arm.
    direction: the steering arm's direction, one replicate.
  """

  persona: str
  replicate: int | None
  prompt: Condition
  direction: Direction


def pairs_of(
  prompt_conditions: Mapping[str, Condition | Sequence[Condition]],
  directions: Mapping[str, Direction],
) -> list[Pair]:
  """Pair the replicates of both arms: condition k of a persona with replicate k of its direction.

  A direction with one replicate serves all conditions, and one condition gets the direction's mean.

  Raises:
    ValueError: different names in the two, a condition with edits or without a prompt, or numbers
      of replicates that do not fit.
  """
  if set(prompt_conditions) != set(directions) or not directions:
    raise ValueError(
      f"prompt conditions of {sorted(prompt_conditions)} and directions of {sorted(directions)}; "
      "give both of every persona."
    )
  found = []
  for persona, given in prompt_conditions.items():
    conditions = [given] if isinstance(given, Condition) else list(given)
    direction, count = directions[persona], len(directions[persona].vectors_SLD)
    order = [c.replicate for c in conditions if c.replicate is not None]
    if order != sorted(order):
      raise ValueError(f"{persona}: conditions have replicates {order}; give them in order.")
    wrong = [c.name for c in conditions if c.method != "prompt"]
    if wrong or not conditions:
      raise ValueError(
        f"{persona}: {wrong or 'no condition'}; give conditions with a prompt and without edits."
      )
    if len(conditions) > 1 and count not in (1, len(conditions)):
      raise ValueError(
        f"{persona}: {len(conditions)} prompt conditions and {count} replicates of the direction; "
        "as many of each, or one direction, fit."
      )
    for k, condition in enumerate(conditions):
      own = direction
      if len(conditions) > 1 and count > 1:
        own = dataclasses.replace(direction, vectors_SLD=direction.vectors_SLD[k : k + 1])
      found.append(Pair(persona, condition.replicate, condition, own))
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Gauge:
  """Measures both arms on all scales.

  Attributes:
    answers: of the unedited model to harmless prompts.
    block: where edits act.
    read_block: where projections are read: `block`, or one behind it, so that transport counts.
    window: tokens that edits act on.
    scale: median residual norms.
    questionnaire: of traits, or None: then there is no scale "trait".
    poles: of each persona, for the scale "trait".
    spread: by trait, the standard deviation of the unedited model's item scores: the unit of gains.
    plain: item scores of the unedited model, by trait.
  """

  answers: Answers
  block: int
  read_block: int
  window: str | Window
  scale: Dose
  questionnaire: Choices | None
  poles: Poles
  spread: Mapping[str, float]
  plain: Mapping[str, np.ndarray]

  @classmethod
  def of(
    cls,
    answers: Answers,
    block: int,
    *,
    scale: Dose,
    read_block: int | None = None,
    window: str | Window = "answer",
    questionnaire: Choices | None = None,
    poles: Poles | None = None,
  ) -> "Gauge":
    """Make a gauge; the unedited model answers the questionnaire.

    Raises:
      ValueError: a block that the model lacks, a read-out before the edit, or traits without items.
    """
    arch = answers.model.arch
    (block,) = arch.block_numbers(block)
    (read_block,) = arch.block_numbers(block if read_block is None else read_block)
    if read_block < block:
      raise ValueError(f"read_block={read_block} is before the edited block {block}.")
    poles = {name: tuple(mine) for name, mine in (poles or {}).items()}
    plain: dict[str, np.ndarray] = {}
    spread: dict[str, float] = {}
    if questionnaire is not None:
      traits = sorted({trait for mine in poles.values() for trait, _ in mine})
      table = questionnaire.measure(answers.model, {"none": (Condition("none"), traits)})
      for trait, mine in table.groupby("trait"):
        plain[trait] = mine["score"].to_numpy(np.float64)
        spread[trait] = float(np.nanstd(plain[trait]))
        low, high = _range(questionnaire, trait)
        # One item, or all alike but for rounding: in units of its range.
        if len(mine) == 1 or not spread[trait] > 1e-6 * (high - low):
          spread[trait] = high - low
    return cls(answers, block, read_block, window, scale, questionnaire, poles, spread, plain)

  @property
  def scales(self) -> tuple[By, ...]:
    """The scales that can be measured."""
    return SCALES if self.questionnaire is not None else tuple(s for s in SCALES if s != "trait")

  def edit(self, direction: Direction, kappa: float) -> Edit:
    """Return the addition of a direction at a dose in median residual norms of the block."""
    return add(
      direction, kappa, unit="resid", blocks=self.block, tokens=self.window, scale=self.scale
    )

  def steer(self, pair: Pair, kappa: float) -> Condition:
    """Return the steering arm of a pair at a dose."""
    return Condition(f"{pair.persona} {pair.replicate}", edits=self.edit(pair.direction, kappa))

  def measure(self, by: By, pairs: Sequence[Pair], conditions: Sequence[Condition]) -> list[Parts]:
    """Measure conditions, one of each pair, on one scale; differences from the unedited model.

    Returns:
      For each its parts: one array over prompts (mean ‖Δh‖ in median residual norms; shift along
      the direction in the units of the residual stream; KL in nats a token), or one over items for
      each trait of the persona (gain towards its pole, in standard deviations).
    """
    if not pairs:
      return []
    if by == "norm":
      norm = float(self.scale.resid_L[self.block])
      return [(x_N / norm,) for x_N in self.answers.shifts(conditions, self.block)]
    if by == "kl":
      return [(x_N,) for x_N in self.answers.kl(conditions)]
    if by == "proj":
      directions = [pair.direction for pair in pairs]
      blocks = [self.read_block]
      base = self._base(directions)
      z_CN = self.answers.projections(conditions, directions, blocks)[..., 0]
      return [(x_N,) for x_N in z_CN - base]
    return self._gains(pairs, conditions)

  def _base(self, directions: Sequence[Direction]) -> np.ndarray:
    """Return the unedited model's projections on each direction, [C, N]."""
    unique = {d.hash: d for d in directions}
    plain = [Condition("none")] * len(unique)
    z_RN = self.answers.projections(plain, list(unique.values()), [self.read_block])[..., 0]
    by_hash = dict(zip(unique, z_RN, strict=True))
    return np.stack([by_hash[d.hash] for d in directions])

  def _gains(self, pairs: Sequence[Pair], conditions: Sequence[Condition]) -> list[Parts]:
    if self.questionnaire is None:
      raise ValueError("the scale 'trait' needs a questionnaire.")
    asked = {}
    for n, (pair, condition) in enumerate(zip(pairs, conditions, strict=True)):
      if pair.persona not in self.poles:
        raise ValueError(
          f"the poles of {pair.persona!r} are not given; they are of {sorted(self.poles)}."
        )
      asked[str(n)] = (condition, [trait for trait, _ in self.poles[pair.persona]])
    table = self.questionnaire.measure(self.answers.model, asked)
    by_cell = dict(tuple(table.groupby("condition")))
    found = []
    for n, pair in enumerate(pairs):
      mine = by_cell[str(n)].groupby("trait")
      found.append(
        tuple(
          sign
          * (mine.get_group(trait)["score"].to_numpy(np.float64) - self.plain[trait])
          / self.spread[trait]
          for trait, sign in self.poles[pair.persona]
        )
      )
    return found


def _range(questionnaire: Choices, trait: str) -> tuple[float, float]:
  (first, *_) = [item for item in questionnaire.items if item.trait == trait]
  return first.range


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
    read_block: where shifts are read for "proj"; default the same block, where the match is the
      prompt's shift itself and transport does not count.
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
    direction),
    target, target_* (the prompt's value on each scale), achieved_* (the edit's), status, reason, r2
    (of the isotonic fit), unreached (share of draws without a solution). Scales: norm, in median
    residual norms; proj, in the units of the residual stream; kl, nats a token; trait, standard
    deviations.

  Raises:
    ValueError: arms that do not fit one another, an unknown scale, a site other than `scale`'s, or
      what the scale needs is not given.
  """
  if by not in SCALES:
    raise ValueError(f"by={by!r}: use one of {list(SCALES)}.")
  if by == "trait" and (questionnaire is None or poles is None):
    raise ValueError("by='trait' needs a questionnaire and the poles of each persona.")
  if isinstance(prompts, str) or not len(prompts):
    raise ValueError(f"prompts={prompts!r}: give a list of prompts, or Answers.")
  if not isinstance(blocks, (int, np.integer)):
    raise ValueError(f"blocks={blocks!r}: one block is steered; give its number.")
  if not len(scan) or draws < 1 or not tolerance > 0:
    raise ValueError(
      f"scan={tuple(scan)}, draws={draws}, tolerance={tolerance}: give doses, and numbers above 0."
    )
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
  prompted = [pair.prompt for pair in pairs]
  told = progress or (lambda _: None)
  targets: dict[By, list[Parts]] = {}
  for name in gauge.scales:
    targets[name] = gauge.measure(name, pairs, prompted)
    told(len(pairs))
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
  achieved = _achieved(gauge, pairs, solutions, told)
  norm = float(scale.resid_L[gauge.block])
  rows = []
  for n, (pair, found) in enumerate(zip(pairs, solutions, strict=True)):
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
        "coef_sigma": found.coef * norm / _sigma(scale, gauge.block, pair.direction),
        "coef_norms": found.coef * norm / float(pair.direction.norm_L[gauge.block]),
        "target": found.target,
        **{f"target_{s}": _value(targets, s, n) for s in SCALES},
        **{f"achieved_{s}": achieved[s][n] for s in SCALES},
        "status": found.status,
        "reason": found.reason,
        "r2": found.r2,
        "unreached": found.unreached,
      }
    )
  return pd.DataFrame(rows).astype({"replicate": "Int64"})


def _sigma(scale: Dose, block: int, direction: Direction) -> float:
  """Return the standard deviation of the projection; NaN where the sample has none."""
  return scale.sigma(block, direction.unit_LD[block]) or float("nan")


def _value(targets: Mapping[By, Sequence[Parts]], scale: By, n: int) -> float:
  return response(targets[scale][n]) if scale in targets else float("nan")


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
  sizes = [response(parts) for parts in shifts]
  coef = float(np.median(sizes)) if kappa is None else float(kappa)
  if not coef > 0:
    raise ValueError(f"kappa={coef}: the dose of all personas must be above 0.")
  nan = float("nan")
  return [
    Solution(coef, nan, nan, coef, coef, "ok", "", nan, nan)
    if coef <= limit
    else Solution(
      nan, nan, nan, coef, limit, "unreachable", f"dose {coef:.3g} is above {limit:.3g}", nan, nan
    )
    for limit in limits
  ]


def _achieved(
  gauge: Gauge,
  pairs: Sequence[Pair],
  solutions: Sequence[Solution],
  told: Callable[[int], None],
) -> dict[By, list[float]]:
  """Measure the solved edits on every scale; NaN where there is no coefficient."""
  there = [n for n, found in enumerate(solutions) if np.isfinite(found.coef)]
  mine = [pairs[n] for n in there]
  conditions = [gauge.steer(pairs[n], solutions[n].coef) for n in there]
  out: dict[By, list[float]] = {}
  for scale in SCALES:
    values = np.full(len(pairs), np.nan)
    if scale in gauge.scales and there:
      values[there] = [response(parts) for parts in gauge.measure(scale, mine, conditions)]
      told(len(there))
    out[scale] = values.tolist()
  return out
