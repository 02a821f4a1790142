"""Self-report items of the IPIP-NEO-120 (Johnson 2014, J. Res. Pers. 51: 78–89)."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Literal

from persona_jax.data import wheels

_MEMBER = "FFM/core.py"
_TRAITS = {
  "Openness": "O",
  "Conscientiousness": "C",
  "Extraversion": "E",
  "Agreeableness": "A",
  "Neuroticism": "N",
}


@dataclasses.dataclass(frozen=True)
class SelfReportItem:
  """One statement that a person rates from 1 (very inaccurate) to 5 (very accurate).

  Attributes:
    item_id: "ipip120-001" … "ipip120-120", by position in the published inventory.
    text: first-person statement, as "I worry about things."
    trait: "O", "C", "E", "A" or "N".
    key: +1 if agreeing means more of the trait, −1 if it means less (the score is then 6 − rating).
  """

  item_id: str
  text: str
  trait: Literal["O", "C", "E", "A", "N"]
  key: Literal[1, -1]


def load_ipip120() -> list[SelfReportItem]:
  """Return the 120 items in published order, 24 for each trait, 55 of them reverse-keyed.

  The list and its keys are literals in the source of the `ffm` wheel; they are read with `ast` and
  the module is never executed.

  Raises:
    FileNotFoundError: the wheel was not fetched.
    ValueError: the literals are not there or do not assign each item to exactly one trait.
  """
  source = wheels.read_member("ffm", _MEMBER).decode("utf-8-sig")
  return parse_inventory(source)


def parse_inventory(source: str) -> list[SelfReportItem]:
  """Return the items that the literals `Qs`, `trait_items` and `reverse_items` of `source` define.

  Raises:
    ValueError: as `load_ipip120`.
  """
  found = _literals(source, {"Qs", "trait_items", "reverse_items"})
  texts, members, reverse = found["Qs"], found["trait_items"], found["reverse_items"]
  for name, table in (("trait_items", members), ("reverse_items", reverse)):
    if set(table) != set(_TRAITS):
      raise ValueError(f"{name} has the traits {sorted(table)}; expected {sorted(_TRAITS)}")
  placed = sorted(index for indices in members.values() for index in indices)
  if placed != list(range(len(texts))):
    raise ValueError(f"trait_items does not place each of the {len(texts)} items exactly once")
  trait_of = {index: trait for trait, indices in members.items() for index in indices}
  for trait, indices in reverse.items():
    strays = sorted(i for i in indices if trait_of.get(i) != trait)
    if strays:
      raise ValueError(f"reverse_items[{trait!r}] holds items of other traits: {strays}")
  return [
    SelfReportItem(
      item_id=f"ipip120-{index + 1:03d}",
      text=text,
      trait=_TRAITS[trait_of[index]],  # type: ignore[arg-type]
      key=-1 if index in reverse[trait_of[index]] else 1,
    )
    for index, text in enumerate(texts)
  ]


def _literals(source: str, names: set[str]) -> dict[str, Any]:
  found = {}
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
      target = node.targets[0]
      if isinstance(target, ast.Name) and target.id in names:
        found[target.id] = ast.literal_eval(node.value)
  lacking = sorted(names - set(found))
  if lacking:
    raise ValueError(f"{_MEMBER} does not assign the literals {', '.join(lacking)}")
  return found
