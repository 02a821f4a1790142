"""Which block to steer: where a trait is moved at the least cost, chosen without harmful prompts.

At each block every direction's dose is solved at which its trait's expression has moved by a fixed
number of standard deviations, and the price is what that dose does to next tokens on harmless
prompts (KL). One block serves all personas of a model, so that they can be compared.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax.calibration.answers import Answers
from persona_jax.calibration.gauge import KAPPAS, Gauge, Pair, Poles
from persona_jax.calibration.solve import Parts, solve
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose
from persona_jax.edits.window import Window
from persona_jax.engine.grid import Condition
from persona_jax.scorers.choice import Choices

_DRAWS = 100  # intervals of these doses are not used


@dataclasses.dataclass(frozen=True, eq=False)
class BlockChoice:
  """A block and what it was chosen by.

  Attributes:
    block: the block.
    why: in words.
    table: a row a block and persona: block, persona, kappa (dose at which the trait has moved, in
      median residual norms), kl (there, nats a token), units (items that this rests on) and
      units_missing (without a value in the unedited model or at a dose), status and reason of the
      solve.
    by_block: a row a block: block, reached (how many personas moved), cost (mean KL over those that
      move at every block), chosen.
  """

  block: int
  why: str
  table: pd.DataFrame
  by_block: pd.DataFrame


def choose_block(
  answers: Answers,
  directions: Mapping[str, Direction],
  poles: Poles,
  questionnaire: Choices,
  blocks: Sequence[int],
  *,
  scale: Dose,
  tokens: str | Window = "answer",
  gain: float = 1.0,
  most: float = max(KAPPAS),
  scan: Sequence[float] = KAPPAS,
  progress: Callable[[int], None] | None = None,
) -> BlockChoice:
  """Choose the block at which all personas' traits move at the least cost.

  Args:
    answers: of the unedited model to harmless prompts.
    directions: {persona: direction}; means over replicates are used.
    poles: {persona: ((trait, sign), …)}.
    questionnaire: of traits, none of whose items was used to make directions.
    blocks: candidates.
    scale: median residual norms.
    tokens: the edit's window.
    gain: how far a trait must move, in standard deviations of the unedited model's item scores.
    most: largest dose.
    scan: doses that are measured first.
    progress: called with the number of conditions measured.

  Raises:
    ValueError: no block, or no persona moves at any of them.
  """
  if not len(blocks):
    raise ValueError("there are no blocks to choose from.")
  pairs = [
    Pair(name, None, Condition(name, system=name), direction)
    for name, direction in directions.items()
  ]
  rows = []
  for block in blocks:
    gauge = Gauge.of(
      answers, block, scale=scale, window=tokens, questionnaire=questionnaire, poles=poles
    )

    def evaluate(cells: Sequence[int], coefs: Sequence[float], gauge: Gauge = gauge) -> list[Parts]:
      mine = [pairs[n] for n in cells]
      found = gauge.measure(
        "trait", mine, [gauge.steer(pair, c) for pair, c in zip(mine, coefs, strict=True)]
      )
      if progress is not None:
        progress(len(cells))
      return found

    targets: list[Parts] = [
      tuple(np.full(len(gauge.plain[trait]), gain) for trait, _ in poles[pair.persona])
      for pair in pairs
    ]
    limits = [most] * len(pairs)
    solutions = solve(evaluate, targets, scan, most=limits, draws=_DRAWS)
    there = [n for n, s in enumerate(solutions) if s.status in ("ok", "overshoot")]
    kl = np.full(len(pairs), np.nan)
    if there:
      steered = [gauge.steer(pairs[n], solutions[n].coef) for n in there]
      measured = gauge.measure("kl", [pairs[n] for n in there], steered)
      kl[there] = [parts[0].mean() for parts in measured]
    rows += [
      {
        "block": block,
        "persona": pair.persona,
        "kappa": s.coef,
        "kl": kl[n],
        "units": sum(int(u_U.sum()) for u_U in s.units),
        "units_missing": sum(int((~u_U).sum()) for u_U in s.units),
        "status": s.status,
        "reason": s.reason,
      }
      for n, (pair, s) in enumerate(zip(pairs, solutions, strict=True))
    ]
  return _choice(pd.DataFrame(rows), gain)


def _choice(table: pd.DataFrame, gain: float) -> BlockChoice:
  """Choose by the table: as many personas as possible, then the least cost of those in common."""
  kl = table.pivot(index="block", columns="persona", values="kl")
  reached = kl.notna().sum(axis=1)
  if not reached.max():
    raise ValueError(
      f"no persona moves by {gain:g} standard deviations at any of the blocks {list(kl.index)}; "
      "use a questionnaire that the model answers, larger doses or a smaller gain."
    )
  candidates = kl[reached == reached.max()]
  common = candidates.dropna(axis=1)
  cost = common.mean(axis=1) if common.shape[1] else candidates.mean(axis=1)
  block = int(cost.idxmin())
  by_block = pd.DataFrame({"reached": reached, "cost": cost}).reset_index()
  by_block["chosen"] = by_block["block"] == block
  why = (
    f"moves {int(reached.max())} of {kl.shape[1]} personas by {gain:g} SD of item scores, at the "
    f"least mean KL, {cost[block]:.3g} nats a token, of {len(candidates)} such blocks"
  )
  return BlockChoice(block, why, table, by_block)
