"""What an addition does to refusal: its derivative at dose 0, and how far doses keep to it.

Two outcomes at the last prompt token: the projection <h_j, r̂_j> on the refusal direction behind
block j >= l, and the log-odds that the next token begins a refusal. The edit adds α v̂ behind block
l to that token alone, which for the first answer token is all that the window "answer" does.

`derivative` goes forwards through `pj.forward`, for one direction; `geometry.gradients` backwards,
for all at once. `finite_differences` runs the engine at given doses, and finite / (α derivative)
tells how linear the way from the edit to the outcome is.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persona_jax.directions.direction import Direction
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.edits.compile import compile_edits
from persona_jax.edits.operations import add
from persona_jax.edits.table import EditTable, Site
from persona_jax.edits.target import Blocks, ScaleTable, Unit, choose_blocks
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.forward import forward
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits_and_reads
from persona_jax.geometry.cosines import means
from persona_jax.geometry.gradients import (
  LAST,
  Batch,
  batches,
  prompt_rows,
  refusal_mask,
  traced_log_odds,
)
from persona_jax.personas.chat import Prompt

_Floats = NDArray[np.float64]
_LOGIT_ROWS = 1024  # [rows, V] in float32: 1024 of SmolLM2's 49,152 are 200 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Derivative:
  """d/dα at α = 0 of adding α v̂ at one block, mean over prompts.

  Attributes:
    log_odds: of the refusal log-odds, in nats a unit of h.
    projection_J: float64 [J], of <h_j, r̂_j>.
    read: the J blocks.
  """

  log_odds: float
  projection_J: _Floats
  read: tuple[int, ...]


def derivative(
  model: Model,
  prompts: Sequence[Prompt],
  d: Direction,
  r: Direction,
  block: int,
  refusal_ids: Sequence[int],
  *,
  read: Blocks | None = None,
  batch: int = 32,
) -> Derivative:
  """Differentiate refusal in the dose of one direction at one block, forwards (`jax.jvp`).

  Args:
    d: the direction v.
    block: where it is added.
    read: where projections are read; default the block and all above it.
    model, prompts, r, refusal_ids, batch: as of `gradients`.

  Raises:
    ValueError: as `gradients`.
  """
  means([d], r)
  if read is None:
    read = tuple(range(block, model.arch.num_blocks))
  reads = choose_blocks(read, model.arch.num_blocks, "the model")
  refusal_V = jnp.asarray(refusal_mask(model, refusal_ids))
  rows = prompt_rows(model, prompts)
  edit = add(d, 1.0, unit="unit", blocks=block, tokens=LAST)
  capture = Capture((r.site,), blocks=reads, reduce="last", bank=r)
  odds, projection_J = 0.0, np.zeros(len(reads))
  for part in batches(rows, batch):
    here = len(part.numbers)
    table = compile_edits(model, [[edit]] * len(part.ids_BT))

    def outcome(
      alpha: jax.Array, table: EditTable = table, part: Batch = part
    ) -> tuple[jax.Array, jax.Array]:
      stage = table.sites[r.site, block].add
      assert stage is not None
      dosed = EditTable({(r.site, block): Site(add=stage._replace(u_BWD=alpha * stage.u_BWD))})
      z_BV, found = forward(
        model,
        part.ids_BT,
        dosed,
        capture,
        lengths_B=part.length_B,
        roles_BT=part.roles_BT,
        logits="last",
      )
      assert z_BV is not None
      return traced_log_odds(z_BV, refusal_V), jnp.stack([found[r.site, j][:, 0] for j in reads])

    _, (odds_B, projection_JB) = jax.jvp(outcome, (jnp.float32(0),), (jnp.float32(1),))
    odds += float(np.asarray(odds_B, np.float64)[:here].sum())
    projection_J += np.asarray(projection_JB, np.float64)[:, :here].sum(axis=1)
  return Derivative(odds / len(rows), projection_J / len(rows), reads)


def finite_differences(
  model: Model,
  prompts: Sequence[Prompt],
  d: Direction,
  r: Direction,
  block: int,
  coefs: Sequence[float],
  refusal_ids: Sequence[int],
  *,
  unit: Unit,
  scale: ScaleTable | None = None,
  read: Blocks | None = None,
  at_zero: Derivative | None = None,
) -> pd.DataFrame:
  """Measure what doses of a direction do to refusal, and how linear that is.

  Args:
    coefs: doses, other than 0, in `unit` (`pj.add`).
    unit, scale: as of `pj.add`.
    at_zero: what `derivative` gave for the same read; computed if it is not given.
    model, prompts, d, r, block, refusal_ids, read: as of `derivative`.

  Returns:
    A row a dose and outcome: coef; alpha, its length in units of h; outcome, "log_odds" or
    "projection"; read, its block or -1; finite, the mean over prompts of what changed; slope, the
    derivative; linearity = finite / (alpha slope), 1 where all is linear; reason why it is NaN.

  Raises:
    ValueError: as `derivative` and `pj.add`, or a dose of 0.
  """
  if not len(coefs) or 0 in coefs:
    raise ValueError(f"coefs {list(coefs)}: give doses other than 0.")
  if at_zero is None:
    at_zero = derivative(model, prompts, d, r, block, refusal_ids, read=read)
  ids = np.flatnonzero(refusal_mask(model, refusal_ids)).tolist()
  capture = Capture((r.site,), blocks=at_zero.read, reduce="last", bank=r)
  prompts = list(prompts)

  edits = [add(d, float(coef), unit=unit, blocks=block, scale=scale, tokens=LAST) for coef in coefs]
  # All doses in one batch: what stands before the edited token is computed once.
  cells = [None, *edits]
  chats = prompts * len(cells)
  rows = encode_rows(model, chats, [cell for cell in cells for _ in prompts])
  odds, reads = [], []
  for first in range(0, len(rows), _LOGIT_ROWS):
    logits_NV, seen = next_logits_and_reads(model, rows[first : first + _LOGIT_ROWS], capture)
    odds.append(log_odds(logits_NV, ids))
    reads.append(np.stack([seen[r.site, j][:, 0] for j in at_zero.read], axis=1))
  odds_C = np.concatenate(odds).reshape(len(cells), -1).mean(axis=1)
  read_MJ = np.concatenate(reads).astype(np.float64)
  mean_CJ = read_MJ.reshape(len(cells), len(prompts), -1).mean(axis=1)
  table = []
  for c, (coef, edit) in enumerate(zip(coefs, edits, strict=True), start=1):
    assert edit.factor_LX is not None
    alpha = float(coef) * float(edit.factor_LX[0])
    found = [("log_odds", -1, float(odds_C[c] - odds_C[0]), at_zero.log_odds)]
    found += [
      ("projection", j, float(mean_CJ[c, n] - mean_CJ[0, n]), float(at_zero.projection_J[n]))
      for n, j in enumerate(at_zero.read)
    ]
    for outcome, at, finite, slope in found:
      expected = alpha * slope
      table.append(
        {
          "direction": d.concept,
          "block": block,
          "coef": float(coef),
          "alpha": alpha,
          "outcome": outcome,
          "read": at,
          "finite": finite,
          "slope": slope,
          "linearity": finite / expected if expected else np.nan,
          "reason": "" if expected else "the derivative is 0",
        }
      )
  return pd.DataFrame(table)
