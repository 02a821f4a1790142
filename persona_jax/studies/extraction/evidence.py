"""What speaks for a direction: held-out separation, agreement, and the chosen block."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of
from persona_jax.directions.selection import choose, middle
from persona_jax.directions.separation import projections, separation_of, wins
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_parquet
from persona_jax.stats.intervals import mean
from persona_jax.studies.extraction.contrasts import ChatPairs, Contrast
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import pairs

Interval = tuple[float, float, float]  # value, low, high

REFUSAL = "refusal (Arditi et al.)"
_EXTREMES = 5  # prompts shown from either end


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """What speaks for a direction of one method.

  Attributes:
    method: its name.
    direction: it.
    separation: AUC and Cohen's d on held-out pairs, by block, with intervals over questions and
      wordings, which are drawn crossed.
    block: the chosen block.
    why: why that one.
    within: mean over held-out questions of the AUC of the question's own pairs, at the chosen block
      and, as `confirmed`, at the block that the other questions choose: the chosen one's is too
      high, having been chosen by the same pairs. Each (value, low, high) with a 95 % interval over
      questions; NaN where there is no block to choose, or one question.
    confirmed: see `within`.
    other_wordings: by wording, the AUC at the chosen block of its vector on the pairs of the other
      wordings, float64 [K]; empty of one wording, or a vector that is of all together.
    wordings_LKK: cosines between the K wordings' vectors, by block, float64 [L, K, K].
    extremes: held-out prompts that project furthest, at the chosen block: projection, side, text.
    held_out, asked: pairs that it was judged by, and that were asked for.
  """

  method: str
  direction: Direction
  separation: pd.DataFrame
  block: int
  why: str
  within: Interval
  confirmed: Interval
  other_wordings: np.ndarray
  wordings_LKK: np.ndarray
  extremes: pd.DataFrame
  held_out: int
  asked: int

  @property
  def at_block(self) -> pd.Series:
    """The row of `separation` of the chosen block."""
    return self.separation.set_index("block").loc[self.block]


def examine(
  model: Model,
  settings: Settings,
  found: Sequence[Contrast],
  directions: Mapping[str, Mapping[str, Direction]],
  directory: Path,
  *,
  progress: bool = True,
) -> dict[str, list[Evidence]]:
  """Judge every direction by held-out questions, {concept: the evidence of each method}.

  Every direction is judged at the same pairs: those whose kind it was made of. The tables go to
  `evidence.parquet`.
  """
  out: dict[str, list[Evidence]] = {}
  for contrast in tqdm.tqdm(found, unit="concept", disable=not progress, desc="examine"):
    held_out = pairs(model, settings, contrast, "held_out", directory, progress=progress)
    asked = len(contrast.positive) * len(contrast.held_out)
    mine = {method: by_name[contrast.name] for method, by_name in directions.items()}
    out[contrast.name] = [
      _judge(model, settings, method, mine[method], *projected, held_out, asked)
      for method, projected in _project(model, settings, mine, held_out).items()
    ]
  write_parquet(table_of(out), directory / "evidence.parquet")
  return out


def table_of(evidence: Mapping[str, Sequence[Evidence]]) -> pd.DataFrame:
  """Return the separation of every direction and block in one table, the chosen block marked."""
  return pd.concat(
    [
      e.separation.assign(
        direction=concept,
        method=e.method,
        sha256=e.direction.hash,
        chosen=e.separation["block"] == e.block,
        auc_within_questions=e.within[0],
        auc_block_by_other_questions=e.confirmed[0],
        auc_other_wordings=e.other_wordings.mean() if len(e.other_wordings) else np.nan,
        pairs=e.held_out,
      )
      for concept, mine in evidence.items()
      for e in mine
    ],
    ignore_index=True,
  )


def _project(
  model: Model, settings: Settings, mine: Mapping[str, Direction], held_out: ChatPairs
) -> dict[str, tuple[np.ndarray, list[int]]]:
  """Project the pairs on each method's direction and its replicates, [1 + S, M, K], and blocks.

  Directions with vectors at the same blocks are read in one pass.
  """
  together: dict[tuple[int, ...], list[str]] = {}
  for method, direction in mine.items():
    together.setdefault(tuple(blocks_of(direction)), []).append(method)
  prompts = [*held_out.positive, *held_out.negative]
  found = {}
  for methods in together.values():
    banks = {method: [mine[method], *_replicates(mine[method])] for method in methods}
    flat = [direction for bank in banks.values() for direction in bank]
    z_RMK, there = projections(model, flat, prompts, tokens=settings.tokens)
    ends = np.cumsum([len(bank) for bank in banks.values()])
    for method, z in zip(banks, np.split(z_RMK, ends[:-1]), strict=True):
      found[method] = z, there
  return {method: found[method] for method in mine}


def _judge(
  model: Model,
  settings: Settings,
  method: str,
  direction: Direction,
  z_RMK: np.ndarray,
  there: list[int],
  held_out: ChatPairs,
  asked: int,
) -> Evidence:
  x_RNK, y_RNK = np.split(z_RMK, 2, axis=1)
  factors = (held_out.question, held_out.wording)
  table = separation_of(x_RNK[0], y_RNK[0], factors=factors, seed=settings.seed)
  table = table.assign(block=there)
  among = there if len(there) == 1 else list(middle(model.arch.num_blocks, *settings.depth))
  block, _, why = choose(table, among=among)
  if len(there) == 1:
    why = "the only block at which the vector was trained"
  at = there.index(block)
  within_Q, confirmed_Q = by_question(x_RNK[0], y_RNK[0], there, among, block, held_out.question)
  return Evidence(
    method,
    direction,
    table,
    block,
    why,
    _mean(within_Q, settings.seed),
    _mean(confirmed_Q, settings.seed),
    on_other_wordings(x_RNK[1:, :, at], y_RNK[1:, :, at], held_out.wording),
    _wordings(direction),
    _extremes(held_out, x_RNK[0, :, at], y_RNK[0, :, at]),
    len(held_out.wording),
    asked,
  )


def _replicates(direction: Direction) -> list[Direction]:
  """Return each replicate as a direction; none where there is one, or one lacks a vector."""
  blocks = blocks_of(direction)
  if len(direction.vectors_SLD) == 1 or not direction.vectors_SLD[:, blocks].any(axis=-1).all():
    return []
  return [
    Direction(v_LD[None], f"{direction.concept} {s}", direction.site, num_heads=direction.num_heads)
    for s, v_LD in enumerate(direction.vectors_SLD)
  ]


def by_question(
  x_NK: np.ndarray,
  y_NK: np.ndarray,
  there: Sequence[int],
  among: Sequence[int],
  block: int,
  question: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
  """Return the AUC of each question's own pairs, at two blocks.

  Args:
    x_NK, y_NK: projections of pairs at the K blocks `there`.
    there: block numbers.
    among: blocks to choose from.
    block: the block that all pairs have chosen.
    question: of each pair.

  Returns:
    At that block, and at the one that the other questions' pairs choose; float64 [Q] each, empty
    where there is nothing to choose.
  """
  questions = sorted(set(question))
  if len(there) == 1 or len(questions) < 2:
    return np.zeros(0), np.zeros(0)
  found = []
  for q in questions:
    mine = np.asarray(question) == q
    rest = separation_of(x_NK[~mine], y_NK[~mine], draws=1).assign(block=there)
    chosen, *_ = choose(rest, among=among)
    at = (there.index(block), there.index(chosen))
    found.append([wins(x_NK[mine, k], y_NK[mine, k]).mean() for k in at])
  within_Q, confirmed_Q = np.asarray(found).T
  return within_Q, confirmed_Q


def _mean(value_Q: np.ndarray, seed: int) -> Interval:
  """Return the mean with a 95 % bootstrap interval over questions; NaN of none.

  Questions that are all alike do not say how others would differ: they give no interval.
  """
  estimate = mean(value_Q, seed=seed)
  return estimate.value, estimate.low, estimate.high


def on_other_wordings(x_SN: np.ndarray, y_SN: np.ndarray, wording: Sequence[int]) -> np.ndarray:
  """Return the AUC of each wording's vector on the pairs of the other wordings, float64 [S].

  Args:
    x_SN, y_SN: projections of pairs on the vector of each wording.
    wording: of each pair.
  """
  others = [np.asarray(wording) != s for s in range(len(x_SN))]
  return np.asarray(
    [wins(x_SN[s, other], y_SN[s, other]).mean() for s, other in enumerate(others) if other.any()]
  )


def _extremes(held_out: ChatPairs, x_N: np.ndarray, y_N: np.ndarray) -> pd.DataFrame:
  chats = [*held_out.positive, *held_out.negative]
  texts = [" | ".join(message["content"] for message in chat) for chat in chats]
  z_M = np.concatenate([x_N, y_N])
  order = np.argsort(-z_M)
  shown = [*order[:_EXTREMES], *order[-_EXTREMES:]] if len(order) > 2 * _EXTREMES else order
  return pd.DataFrame(
    {
      "projection": z_M[shown],
      "side": ["positive" if n < len(x_N) else "negative" for n in shown],
      "text": [texts[n] for n in shown],
    }
  )


def _wordings(direction: Direction) -> np.ndarray:
  v_SLD = direction.vectors_SLD.astype(np.float64)
  with np.errstate(invalid="ignore", divide="ignore"):
    unit_SLD = v_SLD / np.linalg.norm(v_SLD, axis=-1, keepdims=True)
  cosines: np.ndarray = np.einsum("sld,tld->lst", unit_SLD, unit_SLD)
  return cosines


def method_cosines(evidence: Sequence[Evidence]) -> pd.DataFrame:
  """Return cosines between the methods' vectors of a concept.

  They are taken at the first method's block or, where one of the two has a vector at one block only
  (it was trained there), at that; NaN where the other has none there.
  """

  def cosine(a: Evidence, b: Evidence) -> float:
    alone = [e.block for e in (a, b) if len(blocks_of(e.direction)) == 1]
    block = alone[0] if alone else evidence[0].block
    u, v = (e.direction.unit_LD[block].astype(np.float64) for e in (a, b))
    return float(u @ v) if u.any() and v.any() else float("nan")

  names = [e.method for e in evidence]
  return pd.DataFrame([[cosine(a, b) for b in evidence] for a in evidence], names, names)


def concept_cosines(
  evidence: Mapping[str, Sequence[Evidence]], refusal: Direction | None
) -> pd.DataFrame:
  """Return cosines between the concepts' directions of the first method, and with refusal.

  All at one block, that of the median concept, so that the table is of one space.
  """
  firsts = [mine[0] for mine in evidence.values()]
  block = int(np.median([e.block for e in firsts]))
  named = {e.direction.concept: e.direction for e in firsts}
  if refusal is not None:
    named[REFUSAL] = refusal
  unit_RD = np.stack([d.unit_LD[block].astype(np.float64) for d in named.values()])
  table = pd.DataFrame(unit_RD @ unit_RD.T, list(named), list(named))
  table.attrs["block"] = block
  return table
