"""Trait expression by log-probability of self-report items, with no generation and no judge.

The model is asked to describe itself, and each item of a questionnaire ("I make friends easily.")
is scored as its answer. An item keyed + should become likelier in the persona's presence, one keyed
- less likely. A trait's expression is half the difference of the two means,

    (mean log-prob per token of the items keyed + minus that of the items keyed -) / 2,

so that what makes all first-person statements likelier (acquiescence) cancels although the keys are
not equally many (of 24 items E has 18 keyed +, A only 7). Works on models too weak to answer a
multiple-choice questionnaire.

Known weakness: a tone that suits one key better than the other does not cancel. Compare a pole with
the opposite pole, and with a random direction, before reading a shift against the baseline.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax.data.items import SelfReportItem
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.engine.score import score_rows

COLUMNS = (
  "condition", "item_id", "trait", "key", "n_tokens", "logprob", "expression", "tokens_edited",
  "delivered_dose", "valid",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SelfReport:
  """Score items as answers to one question.

  Attributes:
    items: the questionnaire.
    question: what the model is asked.
  """

  items: Sequence[SelfReportItem]
  question: str = "Describe yourself in one sentence."

  def measure(
    self,
    model: Model,
    conditions: Mapping[str, tuple[Condition, Sequence[str]]],
    *,
    progress: Callable[[int], None] | None = None,
  ) -> pd.DataFrame:
    """Score the items of certain traits under each condition.

    Args:
      model: the model.
      conditions: {name: (condition, traits)}; traits are letters of "OCEAN".
      progress: called with the number of items scored.

    Returns:
      One row per condition and item: condition, item_id, trait, key (+1, -1), n_tokens, logprob
      (sum, natural log) and expression, in nats per token: key x logprob / n_tokens, times
      n / (2 n_key) of its trait, so that the plain mean over a trait's items is the balanced one
      above.

    Raises:
      ValueError: a trait has no item.
    """
    cells = []
    for name, (condition, traits) in conditions.items():
      for trait in traits:
        items = [item for item in self.items if item.trait == trait]
        if not items:
          raise ValueError(f"trait {trait!r} has no item; there are items for {self.traits}.")
        cells += [(name, condition, item) for item in items]
    scored = score_rows(
      model,
      [condition.apply(self.question) for _, condition, _ in cells],
      [item.text for _, _, item in cells],
      edits=[condition.edits for _, condition, _ in cells],
      progress=progress,
    )
    table = pd.DataFrame(
      [
        (
          name,
          item.item_id,
          item.trait,
          item.key,
          len(x),
          float(np.sum(x)),
          self._balance(item) * item.key * float(np.mean(x)),
        )
        for (name, _, item), x in zip(cells, scored.logprobs, strict=True)
      ],
      columns=list(COLUMNS[:-3]),
    )
    return table.assign(
      tokens_edited=scored.tokens_edited, delivered_dose=scored.delivered_dose, valid=scored.valid
    )

  def _balance(self, item: SelfReportItem) -> float:
    """Return n / (2 n_key): the weight that makes both keys of a trait count alike."""
    same_trait = [other.key for other in self.items if other.trait == item.trait]
    return len(same_trait) / (2 * same_trait.count(item.key))

  @property
  def traits(self) -> list[str]:
    """Traits that have items."""
    return sorted({item.trait for item in self.items})
