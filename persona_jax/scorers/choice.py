"""Trait expression by multiple choice: the expected value of the option that a model chooses.

An item shows a statement or a question with options in a fixed order. Its score is Σ p(j)·value(j)
over the options, p renormalised to them, which needs no generation and no judge (as in expected
Likert ratings: Serapio-García et al. 2023, arXiv 2307.00184). Options are shown in more than one
order and scores averaged, for models prefer a place. Where options have less than half of the
probability together, the model does not answer the question, and the score is missing.
"""

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.data.items import SelfReportItem
from persona_jax.engine.grid import Condition
from persona_jax.engine.model import Model
from persona_jax.engine.score import score_rows

COLUMNS = (
  "condition", "item_id", "trait", "key", "score", "mass", "tokens_edited", "delivered_dose",
  "valid",
)  # fmt: skip
_RATINGS = (
  "very inaccurate", "moderately inaccurate", "neither accurate nor inaccurate",
  "moderately accurate", "very accurate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ChoiceItem:
  """One item of a questionnaire with options.

  Attributes:
    item_id: unique.
    trait: what it measures, such as "C".
    key: +1 if a high value means more of the trait, -1 if less.
    prompts: what the model is asked, once for each order of the options.
    options: the continuations it chooses from, for each order.
    values: what each is worth, for each order; the same set of values in every order.

  Raises:
    ValueError: no order, lists of different lengths, fewer than two options, or some that repeat.
  """

  item_id: str
  trait: str
  key: int
  prompts: tuple[str, ...]
  options: tuple[tuple[str, ...], ...]
  values: tuple[tuple[float, ...], ...]

  def __post_init__(self) -> None:
    if not len(self.prompts) == len(self.options) == len(self.values) or not self.prompts:
      raise ValueError(
        f"item {self.item_id!r}: {len(self.prompts)} prompts, {len(self.options)} lists of options "
        f"and {len(self.values)} of values; give one of each an order."
      )
    for options, values in zip(self.options, self.values, strict=True):
      if len(options) != len(values) or len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(
          f"item {self.item_id!r}: options {options} with values {values}; at least two different "
          "options with a value each fit."
        )
    if self.key not in (1, -1) or len({tuple(sorted(v)) for v in self.values}) > 1:
      raise ValueError(
        f"item {self.item_id!r}: key {self.key} and values {self.values}; key 1 or -1 and the "
        "same values in every order fit."
      )

  @property
  def range(self) -> tuple[float, float]:
    """Least and largest value."""
    return min(self.values[0]), max(self.values[0])


def rating_items(items: Sequence[SelfReportItem]) -> list[ChoiceItem]:
  """Return statements as items with five ratings, A to E, from 1 (very inaccurate) to 5.

  Both orders are asked: A as the least accurate, and A as the most accurate.
  """
  letters = "ABCDE"
  orders = (tuple(range(1, 6)), tuple(range(5, 0, -1)))

  def prompt(statement: str, order: tuple[int, ...]) -> str:
    lines = [f"{letter}. {_RATINGS[v - 1]}" for letter, v in zip(letters, order, strict=True)]
    return (
      f'How accurately does this statement describe you? "{statement}"\n'
      + "\n".join(lines)
      + "\nReply with one letter."
    )

  return [
    ChoiceItem(
      item.item_id,
      item.trait,
      item.key,
      tuple(prompt(item.text, order) for order in orders),
      (tuple(letters),) * 2,
      tuple(tuple(map(float, order)) for order in orders),
    )
    for item in items
  ]


def load_choice_items(path: str | Path) -> list[ChoiceItem]:
  """Return the items of a TOML file: tables [[items]] with id, trait, key, prompt, options, values.

  `prompt` is one text, with `options` and `values` a list each; or a list of texts, one an order,
  with lists of lists.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is not of the form.
  """
  path = Path(path)
  try:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
  except tomllib.TOMLDecodeError as error:
    raise ValueError(f"{path}: not a TOML file: {error}.") from error
  tables = content.get("items")
  if not isinstance(tables, list) or not tables:
    raise ValueError(f"{path}: needs tables [[items]].")
  return [_item(path, number, table) for number, table in enumerate(tables)]


def _item(path: Path, number: int, table: Mapping[str, Any]) -> ChoiceItem:
  wanted = {"id", "trait", "key", "prompt", "options", "values"}
  if set(table) != wanted:
    raise ValueError(f"{path}: item {number} has the keys {sorted(table)}; {sorted(wanted)} fit.")
  single = isinstance(table["prompt"], str)
  prompts, options, values = (
    [table[name]] if single else table[name] for name in ("prompt", "options", "values")
  )
  try:
    return ChoiceItem(
      str(table["id"]),
      str(table["trait"]),
      int(table["key"]),
      tuple(map(str, prompts)),
      tuple(tuple(map(str, order)) for order in options),
      tuple(tuple(map(float, order)) for order in values),
    )
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: item {number}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Choices:
  """Score items by the probabilities of their options.

  Attributes:
    items: the questionnaire.
    lead: text that the answer is made to begin with, such as "Answer: ", for models that would not
      begin with an option; options follow it as they are.
    least_mass: share of the next token's probability that options need together.
  """

  items: Sequence[ChoiceItem]
  lead: str = ""
  least_mass: float = 0.5

  @property
  def traits(self) -> list[str]:
    """Traits that have items, in the order of the items."""
    return list(dict.fromkeys(item.trait for item in self.items))

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
      conditions: {name: (condition, traits)}.
      progress: called with the number of options scored.

    Returns:
      One row per condition and item: condition, item_id, trait, key, score (in the items' values,
      turned round where the key is -1, averaged over orders; NaN where missing), mass (the least
      probability that the options of an order have together), tokens_edited, delivered_dose, valid.

    Raises:
      ValueError: a trait has no item.
    """
    cells: list[tuple[str, ChoiceItem]] = []
    prompts: list[Any] = []
    options: list[str] = []
    edits: list[Any] = []
    for name, (condition, traits) in conditions.items():
      lacking = [trait for trait in traits if trait not in self.traits]
      if lacking:
        raise ValueError(f"traits {lacking} have no items; there are items for {self.traits}.")
      for item in self.items:
        if item.trait in traits:
          cells.append((name, item))
          for asked, of_order in zip(item.prompts, item.options, strict=True):
            chat = condition.apply(self._chat(asked))
            prompts += [chat] * len(of_order)
            options += of_order
            edits += [condition.edits] * len(of_order)
    scored = score_rows(model, prompts, options, edits=edits, progress=progress)
    p_N = np.exp([x.sum() for x in scored.logprobs])
    rows, start = [], 0
    for name, item in cells:
      first = start
      scores, masses = [], []
      for values in item.values:
        p_O = p_N[start : start + len(values)]
        start += len(values)
        masses.append(float(p_O.sum()))
        scores.append(float(p_O @ np.asarray(values)) / masses[-1] if masses[-1] > 0 else math.nan)
      score = float(np.mean(scores)) if min(masses) >= self.least_mass else math.nan
      if item.key < 0:
        score = sum(item.range) - score
      mine = slice(first, start)
      rows.append(
        (name, item.item_id, item.trait, item.key, score, min(masses))
        + (int(scored.tokens_edited[mine].min()), float(np.mean(scored.delivered_dose[mine])))
        + (bool(scored.valid[mine].all()),)
      )
    return pd.DataFrame(rows, columns=list(COLUMNS))

  def _chat(self, asked: str) -> list[dict[str, str]]:
    chat = [{"role": "user", "content": asked}]
    return [*chat, {"role": "assistant", "content": self.lead}] if self.lead else chat
