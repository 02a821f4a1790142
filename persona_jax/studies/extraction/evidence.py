"""What speaks for a direction: held-out separation, agreement, and the chosen block."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import blocks_of
from persona_jax.directions.selection import choose, middle, projections, separation_of, wins
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_parquet
from persona_jax.studies.extraction.contrasts import Contrast, Pairs
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.extraction.stages import pairs

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
    auc_other_questions: mean over held-out questions of the AUC of a question's pairs at the block
      that the other questions' pairs choose: the AUC of the chosen block is too high, having been
      chosen by the same pairs. NaN where there is no block to choose.
    auc_other_wordings: mean over wordings of the AUC, at the chosen block, of one wording's vector
      on the pairs of the other wordings; NaN of one wording, or a vector that is of all together.
    wordings_LKK: cosines between the K wordings' vectors, by block, float64 [L, K, K].
    extremes: held-out prompts that project furthest, at the chosen block: projection, side, text.
    held_out, asked: pairs that it was judged by, and that were asked for.
  """

  method: str
  direction: Direction
  separation: pd.DataFrame
  block: int
  why: str
  auc_other_questions: float
  auc_other_wordings: float
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
) -> dict[str, list[Evidence]]:
  """Judge every direction by held-out questions, {concept: the evidence of each method}.

  Every direction is judged at the same pairs: those whose kind it was made of. The tables go to
  `evidence.parquet`.
  """
  out: dict[str, list[Evidence]] = {}
  for contrast in found:
    held_out = pairs(model, settings, contrast, "held_out", directory)
    asked = len(contrast.positive) * len(contrast.held_out)
    out[contrast.name] = [
      _judge(model, settings, method, by_name[contrast.name], held_out, asked)
      for method, by_name in directions.items()
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
        auc_other_questions=e.auc_other_questions,
        auc_other_wordings=e.auc_other_wordings,
        pairs=e.held_out,
      )
      for concept, mine in evidence.items()
      for e in mine
    ],
    ignore_index=True,
  )


def _judge(
  model: Model,
  settings: Settings,
  method: str,
  direction: Direction,
  held_out: Pairs,
  asked: int,
) -> Evidence:
  replicates = _replicates(direction)
  prompts = [*held_out.positive, *held_out.negative]
  z_RNK, there = projections(model, [direction, *replicates], prompts, tokens=settings.tokens)
  x_RNK, y_RNK = np.split(z_RNK, 2, axis=1)
  factors = (held_out.question, held_out.wording)
  table = separation_of(x_RNK[0], y_RNK[0], factors=factors, seed=settings.seed)
  table = table.assign(block=there)
  among = there if len(there) == 1 else list(middle(model.arch.num_blocks, *settings.depth))
  block, _, why = choose(table, among=among)
  if len(there) == 1:
    why = "the only block at which the vector was trained"
  at = there.index(block)
  return Evidence(
    method,
    direction,
    table,
    block,
    why,
    _auc_other_questions(x_RNK[0], y_RNK[0], there, among, held_out.question),
    _auc_other_wordings(x_RNK[1:, :, at], y_RNK[1:, :, at], held_out.wording),
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


def _auc_other_questions(
  x_NK: np.ndarray,
  y_NK: np.ndarray,
  there: Sequence[int],
  among: Sequence[int],
  question: Sequence[int],
) -> float:
  if len(there) == 1:
    return float("nan")
  found = []
  for q in sorted(set(question)):
    mine = np.asarray(question) == q
    rest = separation_of(x_NK[~mine], y_NK[~mine], draws=1).assign(block=there)
    block, *_ = choose(rest, among=among)
    at = there.index(block)
    found.append(wins(x_NK[mine, at], y_NK[mine, at]).mean())
  return float(np.mean(found))


def _auc_other_wordings(x_SN: np.ndarray, y_SN: np.ndarray, wording: Sequence[int]) -> float:
  found = []
  for s in range(len(x_SN)):
    other = np.asarray(wording) != s
    if other.any():
      found.append(wins(x_SN[s, other], y_SN[s, other]).mean())
  return float(np.mean(found)) if found else float("nan")


def _extremes(held_out: Pairs, x_N: np.ndarray, y_N: np.ndarray) -> pd.DataFrame:
  chats = [*held_out.positive, *held_out.negative]
  texts = [f"{chat[0]['content']} | {chat[-1]['content']}" for chat in chats]
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
    named["refusal"] = refusal
  unit_RD = np.stack([d.unit_LD[block].astype(np.float64) for d in named.values()])
  table = pd.DataFrame(unit_RD @ unit_RD.T, list(named), list(named))
  table.attrs["block"] = block
  return table
