"""Draws prompts of suites into parts, in clusters of near-copies, none of which is in two parts."""

from collections.abc import Mapping, Sequence

import numpy as np

from persona_jax.data.near_copies import clustered
from persona_jax.data.prompt_item import PromptItem
from persona_jax.data.prompts import load_prompts

Suites = Mapping[tuple[str, str], list[PromptItem]]  # by the name of the suite and kind


def suites_of(names: Sequence[str]) -> Suites:
  """Return prompts by suite and kind, with the clusters of all suites together."""
  read = {name: load_prompts(name) for name in dict.fromkeys(names)}
  found: dict[tuple[str, str], list[PromptItem]] = {}
  for kind in ("harmful", "harmless"):
    mine = {name: [i for i in items if i.kind == kind] for name, items in read.items()}
    rest = iter(clustered([item for items in mine.values() for item in items]))
    found |= {(name, kind): [next(rest) for _ in items] for name, items in mine.items()}
  return found


def of_kind(suites: Suites, suite: str, kind: str) -> list[PromptItem]:
  """Return the prompts of one kind of a suite.

  Raises:
    ValueError: it has none.
  """
  if not suites[suite, kind]:
    raise ValueError(f"prompt suite {suite!r} has no {kind} prompts.")
  return suites[suite, kind]


def by_cluster(items: Sequence[PromptItem]) -> list[list[PromptItem]]:
  """Return prompts in groups of one cluster, in the order of the first of each."""
  found: dict[str, list[PromptItem]] = {}
  for item in items:
    found.setdefault(item.cluster or item.prompt_id, []).append(item)
  return list(found.values())


def without(items: Sequence[PromptItem], used: Sequence[PromptItem]) -> list[PromptItem]:
  """Return the prompts that are none of the used ones and in none of their clusters."""
  texts = {item.text for item in used}
  names = {item.cluster for item in used} - {None}
  return [item for item in items if item.text not in texts and item.cluster not in names]


def one_of_each(
  items: Sequence[PromptItem],
  count: int,
  asked: str,
  suite: str,
  rng: np.random.Generator,
) -> list[PromptItem]:
  """Draw prompts of different clusters, of each the first.

  Args:
    items: prompts to draw from, of one kind.
    count: how many.
    asked, suite: settings and the name of the suite, for the error.
    rng: of the draw.

  Raises:
    ValueError: there are too few.
  """
  clusters = by_cluster(items)
  if count > len(clusters):
    kind = f"{items[0].kind} prompts" if items else "prompts"
    raise ValueError(
      f"{asked} = {count}: {suite!r} has {len(items)} {kind}, {len(clusters)} without near-copies."
    )
  return [clusters[n][0] for n in rng.permutation(len(clusters))[:count]]


def whole_clusters(
  left: Sequence[PromptItem], count: int, name: str, suite: str, rng: np.random.Generator
) -> list[PromptItem]:
  """Draw whole clusters that add up to `count` prompts.

  Args:
    left: harmful prompts of the suite that are in no other part.
    count: how many.
    name, suite: of the setting and the suite, for errors.
    rng: of the draw.

  Raises:
    ValueError: too few are left, or those drawn do not add up to the number asked for.
  """
  clusters = by_cluster(left)
  if count > len(left):
    raise ValueError(
      f"{name}={count}: {suite!r} has {len(left)} harmful prompts, in {len(clusters)} clusters of "
      "near-copies, that no other part has."
    )
  drawn: list[PromptItem] = []
  for n in rng.permutation(len(clusters)):
    if len(drawn) + len(clusters[n]) <= count:
      drawn += clusters[n]
  if len(drawn) < count:
    raise ValueError(
      f"{name}={count}: clusters of near-copies are not cut, and those drawn of {suite!r} make "
      f"{len(drawn)}; give {len(drawn)} or another number up to {len(left)}."
    )
  return drawn


def twins_of(
  suites: Suites,
  suite: str,
  count: int,
  test: Sequence[PromptItem],
  apart: Sequence[PromptItem],
  rng: np.random.Generator,
) -> list[tuple[PromptItem, PromptItem]]:
  """Return pairs of a harmless twin and its harmful partner, partners in the test first.

  Args:
    suites: of `suites_of`.
    suite: whose pairs they are.
    count: how many.
    test: prompts that may be partners.
    apart: prompts that no partner may be, or be a near-copy of.
    rng: draws the pairs whose partner is not in the test.

  Raises:
    ValueError: too few pairs.
  """
  harmless = {i.pair_id: i for i in of_kind(suites, suite, "harmless") if i.pair_id is not None}
  partners = [i for i in without(of_kind(suites, suite, "harmful"), apart) if i.pair_id in harmless]
  by_text = {item.text: item for item in partners}
  tested = [by_text[item.text] for item in test if item.text in by_text]
  rest = without(partners, test)
  clusters = by_cluster(rest)
  drawn = [clusters[n][0] for n in rng.permutation(len(clusters))]
  pairs = [(harmless[i.pair_id], i) for i in [*tested, *drawn]][:count]
  if len(pairs) < count:
    raise ValueError(
      f"twin_prompts={count}: {suite!r} has {len(pairs)} pairs whose harmful side is in the test, "
      "or in no part."
    )
  return pairs
