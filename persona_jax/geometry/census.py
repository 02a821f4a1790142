"""A census of directions: what each does to refusal at one block and dose.

Five traits are too few to tell whether alignment predicts refusal. A bank of independent
directions, traits and controls and components of the data, is enough; the regression over it
(`persona_jax.stats`) takes the arrays that are made here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from persona_jax.directions.controls import controls
from persona_jax.directions.direction import Direction
from persona_jax.directions.dose import Dose
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.edits.operations import add
from persona_jax.edits.target import ScaleTable, Unit
from persona_jax.edits.window import Window
from persona_jax.engine.encode import edited_rows, plain_rows
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.geometry.cosines import cosines, means
from persona_jax.geometry.gradients import Gradients, refusal_mask
from persona_jax.geometry.metrics import Metric
from persona_jax.personas.chat import Prompt

Outcome = Literal["log_odds", "p_bypass"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_Floats = NDArray[np.float64]
_LOGIT_ROWS = 1024  # [rows, V] in float32: 1024 of SmolLM2's 49,152 are 200 MB
_SAME = 0.95  # cosine, of either sign, above which two directions are one


def components(dose: Dose, count: int) -> list[Direction]:
  """Return the first principal components of a dose's sample, one direction each.

  Unit vectors; each points to where its loadings lie further out (the sign of their third moment).

  Args:
    dose: activations of the unedited model.
    count: of components, the same at every block.

  Raises:
    ValueError: more than the sample has.
  """
  num_blocks, size, width = dose.sample_LND.shape
  most = min(size - 1, width)
  if not 1 <= count <= most:
    raise ValueError(f"count={count}: the sample has {most} components.")
  v_KLD = np.empty((count, num_blocks, width))
  for block, x_ND in enumerate(dose.sample_LND.astype(np.float64)):
    u_NK, s_K, v_KD = np.linalg.svd(x_ND - x_ND.mean(axis=0), full_matrices=False)
    third_K = ((u_NK[:, :count] * s_K[:count]) ** 3).sum(axis=0)
    v_KLD[:, block] = v_KD[:count] * np.where(third_K < 0, -1.0, 1.0)[:, None]
  about = {"method": "pca", **dose.provenance}
  return [
    Direction(v_LD[None], f"PC {k}", dose.site, about | {"component": k})
    for k, v_LD in enumerate(v_KLD)
  ]


def direction_bank(
  traits: Sequence[Direction],
  placebo: Sequence[Direction] = (),
  *,
  dose: Dose,
  num_random: int = 64,
  num_components: int = 8,
  seed: int = 0,
) -> dict[str, list[Direction]]:
  """Put together independent directions of a model.

  Args:
    traits: one a trait, role or whatever else; not their negatives and sums, which say nothing new.
    placebo: of contrasts that are no trait.
    dose: of the unedited model, whose sample random draws ("R-cov") and components are of.
    num_random, num_components: how many of them.
    seed: of the draws.

  Returns:
    {"trait", "placebo", "R-cov", "PC": directions}; random ones as long as the first trait.

  Raises:
    ValueError: no trait, or shapes that differ.
  """
  if not traits:
    raise ValueError("a bank needs one trait at least.")
  bank = {"trait": list(traits), "placebo": list(placebo)}
  if num_random:
    bank |= controls(traits[0], "R-cov", n=num_random, moments=dose, seed=seed)
  if num_components:
    bank["PC"] = components(dose, num_components)
  every = [d for ds in bank.values() for d in ds]
  means(every, every[0])
  return {kind: ds for kind, ds in bank.items() if ds}


@dataclasses.dataclass(frozen=True, eq=False)
class Census:
  """Effects of R directions on the refusal of N prompts.

  Attributes:
    names, kinds: of the directions.
    directions: them.
    block, coef, unit: what was added where.
    delta_RN: float64, refusal log-odds with the edit less those without, in nats.
    base_N: float64, those without.
  """

  names: tuple[str, ...]
  kinds: tuple[str, ...]
  directions: tuple[Direction, ...]
  block: int
  coef: float
  unit: str
  delta_RN: _Floats
  base_N: _Floats

  def change(self, outcome: Outcome) -> _Floats:
    """Return what the edits change, with less without, float64 [R, N].

    Args:
      outcome: "log_odds" of a refusal at the first token, in nats; or "p_bypass", the exact
        probability that the first token begins no refusal, which moves the other way.

    Raises:
      ValueError: an unknown outcome.
    """
    if outcome not in OUTCOMES:
      raise ValueError(f"outcome={outcome!r}: use one of {list(OUTCOMES)}.")
    if outcome == "log_odds":
      return self.delta_RN
    change_RN: _Floats = expit(-self.base_N - self.delta_RN) - expit(-self.base_N)
    return change_RN


def census(
  model: Model,
  prompts: Sequence[Prompt],
  bank: Mapping[str, Sequence[Direction]],
  block: int,
  coef: float,
  refusal_ids: Sequence[int],
  *,
  unit: Unit,
  scale: ScaleTable | None = None,
  tokens: str | Window = "answer",
  copies: bool = False,
  progress: Callable[[int], None] | None = None,
) -> Census:
  """Measure what every direction of a bank does to first-token refusal log-odds.

  The edits of a prompt run together and share its beginning.

  Args:
    model: the model.
    prompts: N prompts, harmful ones as a rule.
    bank: {kind: directions}, of `direction_bank`.
    block: where they are added.
    coef, unit, scale, tokens: as of `pj.add`, the same for all.
    refusal_ids: tokens with which refusals begin.
    copies: whether directions may be near copies or negatives of each other. Effects of such are
      as good as any; a slope over them would count one direction twice.
    progress: called with the number of prompts done.

  Raises:
    ValueError: no prompts or directions, two directions that are one at the block (or one the
      negative of the other) without `copies`, a dose that is not delivered, or as `pj.add`.
  """
  kinds = tuple(kind for kind, ds in bank.items() for _ in ds)
  directions = [d for ds in bank.values() for d in ds]
  prompts = list(prompts)
  if not prompts:
    raise ValueError("a census needs prompts.")
  ids = np.flatnonzero(refusal_mask(model, refusal_ids)).tolist()
  edits = [add(d, coef, unit=unit, blocks=block, scale=scale, tokens=tokens) for d in directions]
  if not copies:
    _check_independent(directions, block)
  at_once = max(1, _LOGIT_ROWS // (len(edits) + 1))
  odds_N1R = np.empty((len(prompts), 1 + len(edits)))
  for first in range(0, len(prompts), at_once):
    part = plain_rows(model, prompts[first : first + at_once])
    plain = [row for row in part for _ in range(1 + len(edits))]
    rows = edited_rows(model, plain, [None, *edits] * len(part))
    odds_N1R[first : first + len(part)] = log_odds(next_logits(model, rows), ids).reshape(
      len(part), -1
    )
    if progress is not None:
      progress(len(part))
  return Census(
    tuple(d.concept for d in directions),
    kinds,
    tuple(directions),
    block,
    float(coef),
    unit,
    (odds_N1R[:, 1:] - odds_N1R[:, :1]).T,
    odds_N1R[:, 0],
  )


def _check_independent(directions: Sequence[Direction], block: int) -> None:
  v_RD = means(directions, directions[0])[:, block].astype(np.float64)
  unit_RD = v_RD / np.linalg.norm(v_RD, axis=1, keepdims=True)
  cos_RR = np.abs(np.triu(unit_RD @ unit_RD.T, 1))
  a, b = divmod(int(cos_RR.argmax()), len(cos_RR))
  if cos_RR[a, b] > _SAME:
    raise ValueError(
      f"directions {directions[a].concept!r} and {directions[b].concept!r} have a cosine of size "
      f"{cos_RR[a, b]:.3f} at block {block}: they are one direction, and count once."
    )


def predictors(
  directions: Sequence[Direction],
  r: Direction,
  block: int,
  *,
  metrics: Sequence[Metric],
  gradients: Gradients | None = None,
) -> dict[str, _Floats]:
  """Return what may predict the effects of directions at a block.

  Args:
    directions: R of them.
    r: the refusal direction.
    block: where they are added.
    metrics: of cosines.
    gradients: of the refusal log-odds, or None.

  Returns:
    {"cos_" and the name of each metric; "coupling": d log-odds / dα of adding α v̂}, float64 [R].

  Raises:
    ValueError: directions that do not compare, or a block that is not known.
  """
  v_RLD, r_LD = means(directions, r), r.mean_LD
  found = {f"cos_{m.name}": cosines(v_RLD[:, block], r_LD[block], block, m) for m in metrics}
  if gradients is not None:
    found["coupling"] = gradients.on_log_odds_of_prompts(directions, block).mean(axis=1)
  return found
