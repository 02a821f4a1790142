"""Which block, and how large a coefficient: chosen on prompts that the direction was not made of.

`separation` says at which blocks held-out positives and negatives lie apart along the direction;
`try_coefficients` what steering does at candidate blocks and coefficients: how far it moves next
tokens on harmless prompts, and how fluent the steered model stays; `largest_fluent` and `choose`
are the rules. Nothing is left out of the tables that lead there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of
from persona_jax.edits.edit import Edit
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import token_kl
from persona_jax.personas.chat import Prompt

_WINDOWS = {
  "answer_mean": Window(start=0),
  "answer_first": Window(start=0, stop=1),
}


def separation(
  model: Model,
  direction: Direction,
  positives: Sequence[Prompt],
  negatives: Sequence[Prompt],
  *,
  draws: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> pd.DataFrame:
  """Say how far held-out positives and negatives lie apart along a direction, by block.

  Args:
    model: the model.
    direction: it; prompts are read at its site and the tokens that it was read at.
    positives, negatives: pairs that it was not made of.
    draws: bootstrap draws, of pairs.
    confidence: of the intervals.
    seed: of the draws.

  Returns:
    A row a block with a vector: block, auc (the share of positives and negatives that are the right
    way round, ties half) and d (Cohen's, by the pooled standard deviation), each with _low and
    _high.

  Raises:
    ValueError: no pairs, or unequal numbers.
  """
  x_NK, y_NK, blocks = projections(model, direction, positives, negatives)
  table = separation_of(x_NK, y_NK, draws=draws, confidence=confidence, seed=seed)
  return table.assign(block=blocks)


def projections(
  model: Model, direction: Direction, positives: Sequence[Prompt], negatives: Sequence[Prompt]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
  """Project pairs on a direction's unit vectors where it was read.

  Returns:
    Projections of positives and negatives, float64 [N, K] each, and the K blocks with a vector.
  """
  n = len(positives)
  if not n or n != len(negatives):
    raise ValueError(f"{n} positives and {len(negatives)} negatives; give as many of each.")
  tokens = str(direction.provenance.get("tokens", "last"))
  blocks = blocks_of(direction)
  sites = (direction.site,)
  if tokens == "last":
    capture = Capture(sites, blocks=blocks, bank=direction, reduce="last")
  else:
    window = _WINDOWS.get(tokens, tokens)
    capture = Capture(sites, blocks=blocks, bank=direction, reduce="mean", tokens=window)
  reads = model.capture([*positives, *negatives], capture)
  z_NK = np.stack([reads[direction.site, b][:, 0] for b in blocks], axis=1).astype(np.float64)
  return z_NK[:n], z_NK[n:], blocks


def separation_of(
  x_NL: np.ndarray, y_NL: np.ndarray, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
  """Return the table of `separation` for projections of pairs, [N, L]."""
  n, blocks = x_NL.shape
  rng = np.random.default_rng(seed)
  # Row 0 is the data themselves; a pair is drawn as a whole.
  weight_BN = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), draws)])
  low, high = (1 - confidence) / 2, (1 + confidence) / 2
  rows: list[dict[str, Any]] = []
  for block in range(blocks):
    x_N, y_N = x_NL[:, block], y_NL[:, block]
    wins_NN = (x_N[:, None] > y_N) + 0.5 * (x_N[:, None] == y_N)
    auc_B = ((weight_BN @ wins_NN) * weight_BN).sum(axis=1) / n**2
    row: dict[str, Any] = {"block": block}
    for name, value_B in (("auc", auc_B), ("d", _effects(x_N, y_N, weight_BN))):
      row[name] = value_B[0]
      drawn = value_B[1:][~np.isnan(value_B[1:])]  # a draw may have no spread
      bounds = np.quantile(drawn, [low, high]) if len(drawn) else (np.nan, np.nan)
      row[f"{name}_low"], row[f"{name}_high"] = bounds
    rows.append(row)
  return pd.DataFrame(rows)


def _effects(x_N: np.ndarray, y_N: np.ndarray, weight_BN: np.ndarray) -> np.ndarray:
  """Return Cohen's d of weighted classes, [B]; NaN where neither has a spread."""
  n = len(x_N)
  means, squares = [], []
  for z_N in (x_N, y_N):
    mean_B = weight_BN @ z_N / n
    means.append(mean_B)
    squares.append((weight_BN * (z_N - mean_B[:, None]) ** 2).sum(axis=1))
  with np.errstate(divide="ignore", invalid="ignore"):
    spread_B = np.sqrt((squares[0] + squares[1]) / max(1, 2 * n - 2))
    effects: np.ndarray = np.where(spread_B > 0, (means[0] - means[1]) / spread_B, np.nan)
  return effects


@dataclasses.dataclass(frozen=True)
class Fluency:
  """What still counts as fluent.

  Attributes:
    most_nats: by how much the mean negative log-likelihood of steered answers, a token, under the
      unedited model may exceed that of its own answers.
    most_degenerate: share of answers that may be degenerate, if that is judged.
  """

  most_nats: float = 1.0
  most_degenerate: float = 0.1


def try_coefficients(
  model: Model,
  make: Callable[[int, float], Edit],
  blocks: Sequence[int],
  coefficients: Sequence[float],
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int = 48,
  degenerate: Callable[[str], bool] | None = None,
  effect: Callable[[Edit], float] | None = None,
  progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
  """Steer harmless prompts at every block with every coefficient, and see what it does.

  All conditions are generated in one grid of rows. Two things are measured on the side: the KL of
  next tokens on the unedited model's own answers, and how likely the unedited model holds the
  steered answers (degenerate repetition can be likely: have it judged, too).

  Args:
    model: the model.
    make: the edit for a block and a coefficient.
    blocks, coefficients: the candidates.
    prompts: harmless prompts.
    max_new_tokens: of the answers.
    degenerate: whether an answer is degenerate, e.g. by `scorers.Degenerate`.
    effect: what an edit achieves, in any unit in which more is better; default not measured.
    progress: called with the number of conditions done.

  Returns:
    A row a candidate, and first the unedited model (block -1, coefficient 0): block, coefficient,
    nll (nats a token), kl (nats a token), degenerate (share), effect, answer (the first).

  Raises:
    ValueError: no blocks, coefficients or prompts, or a coefficient of 0.
  """
  prompts = list(prompts)
  if not prompts or not len(blocks) or not len(coefficients) or 0 in coefficients:
    raise ValueError(
      f"{len(prompts)} prompts, blocks {list(blocks)} and coefficients {list(coefficients)}: give "
      "some of each, and no coefficient 0, which is measured anyway."
    )
  conditions = [(-1, 0.0), *((int(b), float(c)) for b in blocks for c in coefficients)]
  edits: list[tuple[Edit, ...]] = [() if c == 0 else (make(b, c),) for b, c in conditions]
  answers = model.generate(
    prompts * len(conditions),
    edits=[list(mine) for mine in edits for _ in prompts],
    max_new_tokens=max_new_tokens,
  )
  by_condition = [answers[i : i + len(prompts)] for i in range(0, len(answers), len(prompts))]
  said = [(p, g.token_ids) for mine in by_condition for p, g in zip(prompts, mine, strict=True)]
  scores = model.score([p for p, _ in said], [ids for _, ids in said])
  nll = -scores / np.asarray([len(ids) for _, ids in said])
  kl = _token_kls(model, prompts, by_condition[0], edits, progress)
  rows = []
  for n, (block, coefficient) in enumerate(conditions):
    mine = by_condition[n]
    rows.append(
      {
        "block": block,
        "coefficient": coefficient,
        "nll": float(nll[n * len(prompts) : (n + 1) * len(prompts)].mean()),
        "kl": kl[n],
        "degenerate": np.nan
        if degenerate is None
        else sum(degenerate(g.text) for g in mine) / len(mine),
        "effect": np.nan if effect is None or not edits[n] else float(effect(edits[n][0])),
        "answer": mine[0].text,
      }
    )
  return pd.DataFrame(rows)


def _token_kls(
  model: Model,
  prompts: Sequence[Prompt],
  answers: Sequence[Any],
  edits: Sequence[tuple[Edit, ...]],
  progress: Callable[[int], None] | None,
) -> list[float]:
  """Return the mean KL of next tokens along the unedited model's answers, by condition."""
  plain = []
  for row, answer in zip(encode_rows(model, prompts, None), answers, strict=True):
    fed = answer.token_ids[:-1]
    roles = (*row.roles, *row.answer_roles(fed, model.think_ids))
    plain.append(dataclasses.replace(row, ids=(*row.ids, *fed), roles=roles))
  starts = [len(row.ids) - len(a.token_ids) for row, a in zip(plain, answers, strict=True)]
  positions = [range(start, len(row.ids)) for row, start in zip(plain, starts, strict=True)]
  found = []
  for mine in edits:
    if mine:
      pairs = [(row, dataclasses.replace(row, edits=mine)) for row in plain]
      found.append(float(np.concatenate(token_kl(model, pairs, positions)).mean()))
    else:
      found.append(0.0)
    if progress is not None:
      progress(1)
  return found


def fluent(trials: pd.DataFrame, bounds: Fluency) -> pd.Series:
  """Return whether each trial of `try_coefficients` stays within the bounds, a bool each."""
  plain = float(trials.loc[trials["coefficient"] == 0, "nll"].iloc[0])
  degenerate = trials["degenerate"].fillna(0.0)
  return (trials["nll"] - plain <= bounds.most_nats) & (degenerate <= bounds.most_degenerate)


def largest_fluent(trials: pd.DataFrame, bounds: Fluency | None = None) -> pd.DataFrame:
  """Return, for every block, the largest coefficient up to which all are fluent.

  A coefficient counts only if every smaller one of its sign is fluent, too: an answer that is
  likely again beyond a stretch of noise is none that anyone wants.

  Args:
    trials: of `try_coefficients`.
    bounds: what is fluent.

  Returns:
    A row a block and sign: that trial, or coefficient 0 and NaN where not even the smallest is.
  """
  is_fluent = fluent(trials, bounds or Fluency())
  rows = []
  tried = trials[trials["coefficient"] != 0].assign(fluent=is_fluent)
  for (block, sign), mine in tried.groupby(["block", np.sign(tried["coefficient"])]):
    ordered = mine.sort_values("coefficient", key=np.abs)
    good = ordered["fluent"].to_numpy()
    count = int(np.argmin(good)) if not good.all() else len(good)
    if count:
      rows.append(ordered.iloc[count - 1].to_dict())
    else:
      rows.append({"block": block, "coefficient": 0.0, "sign": sign})
  return pd.DataFrame(rows)


def choose(
  table: pd.DataFrame, trials: pd.DataFrame | None = None, bounds: Fluency | None = None
) -> tuple[int, float | None, str]:
  """Choose a block, and a coefficient if some were tried.

  Without trials: the block of the largest AUC, of equals that of the largest d. With trials: of the
  largest fluent coefficients, that of the largest effect; where no effect was measured, the block
  is chosen as without trials, among those that have one.

  Args:
    table: of `separation`.
    trials: of `try_coefficients`.
    bounds: what is fluent.

  Returns:
    Block, coefficient or None, and why, in words.

  Raises:
    ValueError: no coefficient is fluent at any block.
  """

  def best(mine: pd.DataFrame) -> pd.Series:
    return mine.sort_values(["auc", "d", "block"], ascending=[False, False, True]).iloc[0]

  if trials is None:
    row = best(table)
    return int(row["block"]), None, f"largest AUC on held-out pairs, {row['auc']:.3f}"
  largest = largest_fluent(trials, bounds)
  largest = largest[largest["coefficient"] != 0]
  if largest.empty:
    raise ValueError("no coefficient is fluent at any block; try smaller ones, or other bounds.")
  if largest["effect"].notna().any():
    row = largest.sort_values("effect", ascending=False).iloc[0]
    why = f"largest effect ({row['effect']:.3g}) of the largest fluent coefficients"
    return int(row["block"]), float(row["coefficient"]), why
  row = best(table[table["block"].isin(largest["block"])])
  mine = largest[largest["block"] == row["block"]]
  coefficient = float(mine.sort_values("coefficient")["coefficient"].iloc[-1])
  why = f"largest AUC on held-out pairs, {row['auc']:.3f}, and the largest fluent coefficient there"
  return int(row["block"]), coefficient, why
