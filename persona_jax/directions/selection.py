"""Which block, and how large a coefficient: chosen on prompts that the direction was not made of.

`separation` says how far held-out pairs lie apart at each block. `try_coefficients` says what
steering does at candidate blocks and coefficients: how far it moves next tokens on harmless
prompts, and how fluent the steered model stays; `largest_fluent` and `choose` are the rules.
Nothing is left out of the tables that lead there.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pandas as pd

from persona_jax.edits.edit import Edit
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.generate import Generation
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import NotDelivered, token_kl
from persona_jax.personas.chat import Prompt


@dataclasses.dataclass(frozen=True)
class Fluency:
  """What still counts as fluent.

  Attributes:
    most_nats: by how much the mean negative log-likelihood of steered answers, a token, under the
      unedited model may exceed that of its own answers.
    most_degenerate: share of answers that may be degenerate, if that is judged.
    most_kl: largest mean KL of next tokens on harmless prompts, in nats; None for no bound.
  """

  most_nats: float = 1.0
  most_degenerate: float = 0.1
  most_kl: float | None = None


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
    nll (nats a token), kl (nats a token), degenerate (share), effect, answer (the first), prompts
    (how many: those that the unedited model answers without a token are left out), and problem:
    "", or why it counts as not fluent whatever it measures (its edit was not delivered, as where it
    is too large for the dtype, or an answer has no token).

  Raises:
    ValueError: no blocks, coefficients or prompts, a coefficient of 0, or no unedited answer with a
      token.
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
  said = [n for n, g in enumerate(by_condition[0]) if g.token_ids]
  if not said:
    raise ValueError(f"all {len(prompts)} prompts are answered without a token; give others.")
  prompts = [prompts[n] for n in said]
  by_condition = [[mine[n] for n in said] for mine in by_condition]
  nll_CN = _nll(model, prompts, by_condition)
  kl_C = _token_kls(model, prompts, by_condition[0], edits, progress)
  rows = []
  for n, (block, coefficient) in enumerate(conditions):
    mine = by_condition[n]
    problems = [
      "an edit was not delivered" if not all(g.valid for g in mine) else "",
      "next tokens are not defined" if np.isnan(kl_C[n]) else "",
      "an answer has no token" if not all(len(g.token_ids) for g in mine) else "",
    ]
    rows.append(
      {
        "block": block,
        "coefficient": coefficient,
        "nll": float(nll_CN[n].mean()),
        "kl": kl_C[n],
        "degenerate": np.nan
        if degenerate is None
        else sum(degenerate(g.text) for g in mine) / len(mine),
        "effect": np.nan if effect is None or not edits[n] else float(effect(edits[n][0])),
        "answer": mine[0].text,
        "prompts": len(prompts),
        "problem": "; ".join(filter(None, problems)),
      }
    )
  return pd.DataFrame(rows)


def _nll(
  model: Model, prompts: Sequence[Prompt], answers: Sequence[Sequence[Generation]]
) -> np.ndarray:
  """Return the negative log-likelihood a token of answers without edits, [C, N]; NaN of none."""
  said = [
    (c, n, g.token_ids) for c, mine in enumerate(answers) for n, g in enumerate(mine) if g.token_ids
  ]
  found = np.full((len(answers), len(prompts)), np.nan)
  scores = model.score([prompts[n] for _, n, _ in said], [ids for *_, ids in said])
  for (c, n, ids), score in zip(said, scores, strict=True):
    found[c, n] = -score / len(ids)
  return found


def _token_kls(
  model: Model,
  prompts: Sequence[Prompt],
  answers: Sequence[Generation],
  edits: Sequence[tuple[Edit, ...]],
  progress: Callable[[int], None] | None,
) -> list[float]:
  """Return the mean KL of next tokens along the unedited model's answers, by condition.

  NaN where an edit does not reach the model as it was asked for.
  """
  plain = []
  for row, answer in zip(encode_rows(model, prompts, None), answers, strict=True):
    fed = answer.token_ids[:-1]
    roles = (*row.roles, *row.answer_roles(fed, model.think_ids))
    plain.append(dataclasses.replace(row, ids=(*row.ids, *fed), roles=roles))
  starts = [len(row.ids) - len(a.token_ids) for row, a in zip(plain, answers, strict=True)]
  positions = [range(start, len(row.ids)) for row, start in zip(plain, starts, strict=True)]
  found = []
  for mine in edits:
    kl = 0.0
    if mine:
      pairs = [(row, dataclasses.replace(row, edits=mine)) for row in plain]
      try:
        kl = float(np.concatenate(token_kl(model, pairs, positions)).mean())
      except NotDelivered:
        kl = np.nan
    found.append(kl)
    if progress is not None:
      progress(1)
  return found


def fluent(trials: pd.DataFrame, bounds: Fluency) -> pd.Series:
  """Return whether each trial of `try_coefficients` stays within the bounds, a bool each."""
  plain = float(trials.loc[trials["coefficient"] == 0, "nll"].iloc[0])
  degenerate = trials["degenerate"].fillna(0.0)
  good = (trials["nll"] - plain <= bounds.most_nats) & (degenerate <= bounds.most_degenerate)
  if bounds.most_kl is not None:
    good &= trials["kl"] <= bounds.most_kl
  return good & (trials["problem"] == "")


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


def middle(num_blocks: int, low: float = 0.2, high: float = 0.8) -> range:
  """Return the blocks between two shares of the depth; at least one."""
  first = min(round(low * num_blocks), num_blocks - 1)
  return range(first, max(first + 1, round(high * num_blocks)))


def choose(
  table: pd.DataFrame,
  trials: pd.DataFrame | None = None,
  bounds: Fluency | None = None,
  *,
  among: Collection[int] | None = None,
) -> tuple[int, float | None, str]:
  """Choose a block, and a coefficient if some were tried.

  Without trials: the block of the largest AUC, of equals that of the largest d. With trials: of the
  largest fluent coefficients, that of the largest effect; where no effect was measured, the block
  is chosen as without trials, among those that have one.

  Args:
    table: of `separation.separation`.
    trials: of `try_coefficients`.
    bounds: what is fluent.
    among: blocks to choose from; default all. The first and the last fifth of a model's are seldom
      of use (`middle`): what is said there is not yet, or no longer, what the answer is made of.

  Returns:
    Block, coefficient or None, and why, in words.

  Raises:
    ValueError: no such block has a vector, or no coefficient is fluent at any.
  """
  if among is not None:
    table = table[table["block"].isin(list(among))]
    trials = None if trials is None else trials[trials["block"].isin([-1, *among])]
  if table.empty:
    raise ValueError(f"the direction has no vector at any of the blocks {sorted(among or ())}.")

  def best(mine: pd.DataFrame) -> tuple[pd.Series, str]:
    row = mine.sort_values(["auc", "d", "block"], ascending=[False, False, True]).iloc[0]
    alike = int((mine["auc"] == row["auc"]).sum())
    first, last = int(mine["block"].min()), int(mine["block"].max())
    why = f"largest AUC on held-out pairs, {row['auc']:.3f}, of blocks {first} to {last}"
    return row, why if alike == 1 else f"{why}, and of {alike} blocks with it the largest d"

  if trials is None:
    row, why = best(table)
    return int(row["block"]), None, why
  largest = largest_fluent(trials, bounds)
  largest = largest[largest["coefficient"] != 0]
  if largest.empty:
    raise ValueError("no coefficient is fluent at any block; try smaller ones, or other bounds.")
  if largest["effect"].notna().any():
    row = largest.sort_values("effect", ascending=False).iloc[0]
    why = f"largest effect ({row['effect']:.3g}) of the largest fluent coefficients"
    return int(row["block"]), float(row["coefficient"]), why
  row, why = best(table[table["block"].isin(largest["block"])])
  mine = largest[largest["block"] == row["block"]]
  coefficient = float(mine.sort_values("coefficient")["coefficient"].iloc[-1])
  return int(row["block"]), coefficient, f"{why}, and the largest fluent coefficient there"
