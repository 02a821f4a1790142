"""Both arms of personas, a system prompt and an edit, measured on the four scales of `match`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from persona_jax.calibration.answers import Answers
from persona_jax.calibration.solve import Parts
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import add
from persona_jax.edits.window import Window, as_window
from persona_jax.engine.grid import Condition
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
    read_block: where projections are compared: `block`, or one behind it, so that transport counts.
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
      return [(x_N,) for x_N in self._along(pairs, conditions)]
    return self._gains(pairs, conditions)

  def moved(self, pairs: Sequence[Pair], conditions: Sequence[Condition]) -> dict[str, list[Parts]]:
    """Measure all scales but "trait" in one pass, and "proj_here": "proj" at `block` itself."""
    if not pairs:
      return {name: [] for name in ("norm", "proj", "proj_here", "kl")}
    found = self.answers.moved(
      conditions, [pair.direction for pair in pairs], [self.block, self.read_block]
    )
    here_CN, read_CN = np.moveaxis(found.along_CNK, -1, 0)
    norm_CN = found.shift_CN / float(self.scale.resid_L[self.block])
    by_name = {"norm": norm_CN, "proj": read_CN, "proj_here": here_CN, "kl": found.kl_CN}
    return {name: [(x_N,) for x_N in x_CN] for name, x_CN in by_name.items()}

  def shift_per_dose(self) -> float:
    """Return how far a dose of 1 shifts answers along the direction at the edited block.

    In closed form: no token is moved there by what the edit did to others, so that it is the median
    residual norm times the share of the tokens that the edit is on; NaN if it is on none.
    """
    held = float(self.answers.held(as_window(self.window)).mean())
    return held * float(self.scale.resid_L[self.block]) or float("nan")

  def _along(self, pairs: Sequence[Pair], conditions: Sequence[Condition]) -> np.ndarray:
    """Return shifts along each pair's direction from the unedited model, float64 [C, N]."""
    directions = [pair.direction for pair in pairs]
    unique = {d.hash: d for d in directions}
    # The unedited model in the same pass: its rows are alike and run once.
    z_RN, z_CN = np.split(
      self.answers.projections(
        [*[Condition("none")] * len(unique), *conditions],
        [*unique.values(), *directions],
        [self.read_block],
      )[..., 0],
      [len(unique)],
    )
    by_hash = dict(zip(unique, z_RN, strict=True))
    return z_CN - np.stack([by_hash[d.hash] for d in directions])

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
