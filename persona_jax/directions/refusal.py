"""The refusal direction by Arditi et al. 2024 (arXiv 2406.11717): candidates, filters, selection.

Candidates are mean(harmful) - mean(harmless) at each of the template's tokens behind the
instruction and each block. Each is tried out on prompts that it was not made of:

* bypass: refusal log-odds on harmful prompts with the candidate ablated everywhere;
* induce: refusal log-odds on harmless prompts with it added once, at its block;
* KL: of the next token on harmless prompts, when it is ablated.

Block numbers are ours; the paper's layer l, a block's input, is our block l - 1.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.directions.refusal_scores import published_log_odds, score_all
from persona_jax.edits.table import ROLES
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.engine.rows import Row, plain_prompt
from persona_jax.personas.chat import Prompt


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A candidate and what it did on held-out prompts.

  Scores are NaN where it was not tried, being of the last layers, where it is zero (a template's
  token before anything has been read from the instruction), or where its edits were not delivered;
  bypass and KL also where it induces too little to be chosen.

  Attributes:
    position: of the token that it was read at, from the end of the prompt; -1 is the last.
    block: whose output it was read at.
    bypass: mean refusal log-odds on harmful prompts, the candidate ablated everywhere.
    induce: mean refusal log-odds on harmless prompts, the candidate added at its block.
    kl: mean KL of the next token on harmless prompts, the candidate ablated, in nats.
  """

  position: int
  block: int
  bypass: float
  induce: float
  kl: float


def filtered_out(
  candidate: Candidate,
  num_blocks: int,
  *,
  most_kl: float | None = 0.1,
  least_induce: float | None = 0.0,
  last_share: float | None = 0.2,
) -> str:
  """Return why a candidate is left out, or "".

  Args:
    candidate: it.
    num_blocks: L.
    most_kl: KL above which it is; None for no such filter.
    least_induce: log-odds of inducing below which it is.
    last_share: share of the last layers whose candidates are.
  """
  layer = candidate.block + 1
  if last_share is not None and layer >= int(num_blocks * (1.0 - last_share)):
    return f"it is of the last {last_share:.0%} of the layers"
  if least_induce is not None and candidate.induce < least_induce:
    return f"induces {candidate.induce:.3g} < {least_induce:g}"
  if any(map(math.isnan, (candidate.bypass, candidate.induce, candidate.kl))):
    return "a score is NaN"
  if most_kl is not None and candidate.kl > most_kl:
    return f"KL {candidate.kl:.3g} > {most_kl:g}"
  return ""


def select(candidates: Iterable[Candidate], num_blocks: int, **filters: float | None) -> Candidate:
  """Return the candidate that bypasses refusal best of those that pass all filters.

  Of equals the one of the earliest position and, in it, of the earliest block.

  Args:
    candidates: all of them.
    num_blocks: L.
    **filters: see `filtered_out`.

  Raises:
    ValueError: none passes; the message says how many fell to which filter.
  """
  ordered = sorted(candidates, key=lambda c: (c.position, c.block))
  reasons = [filtered_out(c, num_blocks, **filters) for c in ordered]
  kept = [c for c, reason in zip(ordered, reasons, strict=True) if not reason]
  if not kept:
    kinds = [reason.split()[0] for reason in reasons]
    names = {"a": "NaN", "it": "last layers", "KL": "KL", "induces": "induces too little"}
    counts = ", ".join(f"{names[k]}: {kinds.count(k)}" for k in dict.fromkeys(kinds))
    raise ValueError(f"none of {len(ordered)} candidates passes the filters ({counts}).")
  return min(kept, key=lambda c: c.bypass)


def candidates_table(
  candidates: Iterable[Candidate], num_blocks: int, **filters: float | None
) -> pd.DataFrame:
  """Return a row a candidate: its scores, and why it is left out ("" if not)."""
  return pd.DataFrame(
    [
      dataclasses.asdict(c) | {"left_out": filtered_out(c, num_blocks, **filters)}
      for c in candidates
    ]
  )


class NoRefusalDirection(ValueError):
  """No candidate passes the filters.

  Attributes:
    table: all candidates, as `RefusalDirection.table` has them.
  """

  def __init__(self, message: str, table: pd.DataFrame):
    super().__init__(message)
    self.table = table


@dataclasses.dataclass(frozen=True, eq=False)
class RefusalDirection:
  """A refusal direction and how it was chosen.

  Attributes:
    direction: the mean difference at the chosen position, of every block, float32 [1, L, D]: for
      cosines at other blocks; provenance names position and chosen block.
    chosen: the candidate that causes refusal.
    candidates: all of them, those of the last layers too.
    baseline_harmful, baseline_harmless: mean refusal log-odds without any edit.
    refusal_ids: the tokens that count as the beginning of a refusal.
  """

  direction: Direction
  chosen: Candidate
  candidates: tuple[Candidate, ...]
  baseline_harmful: float
  baseline_harmless: float
  refusal_ids: tuple[int, ...]

  @property
  def causal(self) -> Direction:
    """The chosen vector at every block, [1, L, D]: what is ablated, or added at any block."""
    v_D = self.direction.vectors_SLD[0, self.chosen.block]
    return at_every_block(v_D, self.direction, "refusal (causal)")

  def table(self) -> pd.DataFrame:
    """One row a candidate: its scores, and why it was left out ("" if not)."""
    num_blocks = self.direction.vectors_SLD.shape[1]
    return candidates_table(self.candidates, num_blocks, **self.direction.provenance["filters"])


def at_every_block(v_D: np.ndarray, like: Direction, concept: str) -> Direction:
  """Return a direction that has one vector at every block."""
  v_SLD = np.broadcast_to(np.asarray(v_D, np.float32), (1, *like.vectors_SLD.shape[1:]))
  return Direction(v_SLD, concept, like.site, like.provenance)


def template_tail(rows: Sequence[Row]) -> int:
  """Return how many tokens of the template stand behind the instruction in all rows.

  Raises:
    ValueError: none does, as in a prompt without a template.
  """
  template = ROLES["template"]
  counts = [
    next((n for n, role in enumerate(reversed(row.roles)) if role != template), len(row.roles))
    for row in rows
  ]
  if not min(counts, default=0):
    raise ValueError(
      "prompts have no tokens of a template behind the instruction; say how many last tokens are "
      "to be tried (positions)."
    )
  return min(counts)


def refusal_tokens(
  model: Model, refusals: Sequence[str], answers: Sequence[str], *, least_ratio: float = 4.0
) -> tuple[int, ...]:
  """Derive the tokens with which a model's refusals begin from texts that were judged.

  Args:
    model: the model, for its tokenizer.
    refusals, answers: texts that were judged to refuse, and to answer.
    least_ratio: how much more frequent a first token must be among refusals.

  Raises:
    ValueError: no such token.
  """
  first = [
    pd.Series([model.tokenizer.encode(text)[0] for text in texts if text.strip()]).value_counts()
    for texts in (refusals, answers)
  ]
  sizes = [max(1, int(counts.sum())) for counts in first]
  found = tuple(
    int(token)
    for token, count in first[0].items()
    if count / sizes[0] >= least_ratio * (first[1].get(token, 0) + 0.5) / sizes[1]
  )
  if not found:
    raise ValueError(
      f"no first token is {least_ratio:g} times as frequent in {len(refusals)} refusals as in "
      f"{len(answers)} answers; give refusal_ids."
    )
  return found


def refusal_direction(
  model: Model,
  harmful: Sequence[Prompt],
  harmless: Sequence[Prompt],
  *,
  held_out_harmful: Sequence[Prompt],
  held_out_harmless: Sequence[Prompt],
  refusal_ids: Sequence[int],
  positions: int | None = None,
  most_kl: float | None = 0.1,
  least_induce: float | None = 0.0,
  last_share: float | None = 0.2,
  progress: Callable[[int, int], None] | None = None,
) -> RefusalDirection:
  """Find the refusal direction of a model.

  Args:
    model: the model.
    harmful, harmless: prompts to make candidates of.
    held_out_harmful, held_out_harmless: prompts to choose by; none of the others.
    refusal_ids: tokens with which its refusals begin (`refusal_tokens`).
    positions: how many last tokens of prompts to try; default those of the template behind the
      instruction.
    most_kl, least_induce, last_share: the filters (`filtered_out`).
    progress: called with the candidates tried and their number.

  Raises:
    ValueError: no prompts, held-out prompts that were used, or refusal ids outside the vocabulary.
    NoRefusalDirection: no candidate passes the filters; it has the table of all.
  """
  sets = [list(x) for x in (harmful, harmless, held_out_harmful, held_out_harmless)]
  if not all(sets):
    raise ValueError(f"four lists of prompts are needed; got {[len(x) for x in sets]}.")
  used = {content_hash(plain_prompt(p)) for p in sets[0] + sets[1]}
  again = [p for p in sets[2] + sets[3] if content_hash(plain_prompt(p)) in used]
  if again:
    raise ValueError(f"{len(again)} held-out prompts are among those that candidates are made of.")
  ids = sorted({int(i) for i in refusal_ids})
  if not ids or not 0 <= ids[0] <= ids[-1] < model.arch.vocab_size:
    raise ValueError(
      f"refusal_ids {ids[:8]}: give ids below {model.arch.vocab_size}, at least one."
    )
  rows = [encode_rows(model, prompts, None) for prompts in sets]
  tail = template_tail(rows[0] + rows[1]) if positions is None else positions
  mean_PLD = _mean_at_tail(model, rows[0], tail) - _mean_at_tail(model, rows[1], tail)
  filters = {"most_kl": most_kl, "least_induce": least_induce, "last_share": last_share}
  provenance = {
    "model": model.identity.name,
    "model_hash": model.identity.sha256,
    "model_type": json.loads(model.config).get("model_type"),
    "method": "diff_means",
    "site": "resid_post",
    "data_hash": content_hash([[plain_prompt(p) for p in prompts] for prompts in sets]),
    "num_pairs": min(len(sets[0]), len(sets[1])),
    "filters": filters,
  }
  tried = _try_all(model, mean_PLD, rows[2], rows[3], ids, filters, progress)
  base_harmful, base_harmless = (
    float(published_log_odds(next_logits(model, part), ids).mean()) for part in rows[2:]
  )
  try:
    chosen = select(tried, model.arch.num_blocks, **filters)
  except ValueError as error:
    table = candidates_table(tried, model.arch.num_blocks, **filters)
    raise NoRefusalDirection(str(error), table) from error
  place = {
    "position": chosen.position,
    "tokens": f"prompt:{chosen.position}",
    "chosen_block": chosen.block,
  }
  direction = Direction(
    mean_PLD[chosen.position + tail][None],
    "refusal",
    provenance=provenance | place,
  )
  return RefusalDirection(direction, chosen, tuple(tried), base_harmful, base_harmless, tuple(ids))


def _mean_at_tail(model: Model, rows: Sequence[Row], tail: int) -> np.ndarray:
  """Return the mean activation at each of the last tokens, float64 [P, L, D]."""
  arch = model.arch
  short = [n for n, row in enumerate(rows) if len(row.ids) < tail]
  if short:
    raise ValueError(f"prompts {short[:5]} have fewer than {tail} tokens.")
  sums_PLD = np.zeros((tail, arch.num_blocks, arch.width))
  capture = Capture(("resid_post",), reduce="all", tokens=f"last:{tail}")
  for tile in batches(model, rows, capture):
    for note in tile.notes:
      for (_, block), x_GTD in note.arrays.items():
        array = np.asarray(x_GTD, np.float64)
        for g, group in enumerate(note.groups):
          node = tile.tree.nodes[group.node]
          for row in group.rows:
            first = len(tile.tree.rows[row].ids) - tail
            for t in range(max(first, node.start), node.stop):
              sums_PLD[t - first, block] += array[g, t - node.start]
  return sums_PLD / len(rows)


def _try_all(
  model: Model,
  mean_PLD: np.ndarray,
  harmful: Sequence[Row],
  harmless: Sequence[Row],
  ids: Sequence[int],
  filters: dict[str, Any],
  progress: Callable[[int, int], None] | None,
) -> list[Candidate]:
  """Score candidates; what is left out anyway, of the last layers say, is not run further."""
  tail, num_blocks, _ = mean_PLD.shape
  nothing = math.nan, math.nan, math.nan
  places = list(itertools.product(range(-tail, 0), range(num_blocks)))
  to_try = [
    place
    for place in places
    if not filtered_out(Candidate(*place, 0.0, math.inf, 0.0), num_blocks, **filters)
  ]
  vectors = [(mean_PLD[position + tail, block], block) for position, block in to_try]
  scores = score_all(
    model, vectors, harmful, harmless, ids, progress, least_induce=filters["least_induce"]
  )
  found = dict(zip(to_try, scores, strict=True))
  return [Candidate(*place, *found.get(place, nothing)) for place in places]
