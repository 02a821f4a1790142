"""Near-copies among texts: they are no independent evidence, and leak from one split to another."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from persona_jax.data.hashing import content_hash
from persona_jax.data.prompt_item import PromptItem

_WORD = re.compile(r"\w+")

_Gram = tuple[str, ...]


def near_copies(texts: Sequence[str], *, least: float = 0.5, words: int = 5) -> list[int]:
  """Return the cluster of each text: 0, 1, … in the order in which clusters first occur.

  Two texts are near-copies if the Jaccard index of their sets of grams (runs of `words` lower-case
  words, whatever stands between them) is above `least`. Clusters are connected components: a text
  joins all that it is a near-copy of. A text of fewer words is one gram, and one without a word is
  compared as it is.

  Args:
    texts: N texts, in any order.
    least: Jaccard index, from 0 to below 1, that near-copies exceed.
    words: length of a gram, at least 1.

  Raises:
    ValueError: `least` or `words` is out of bounds.
    TypeError: one text instead of a list.
  """
  if isinstance(texts, str):
    raise TypeError(f"near_copies takes a list of texts; got the text {texts[:40]!r}.")
  if not 0 <= least < 1:
    raise ValueError(f"least={least}: a Jaccard index from 0 to below 1 fits.")
  if words < 1:
    raise ValueError(f"words={words}: a gram has at least one word.")
  # Texts of the same grams are one node, so that many equal ones take no time.
  node_of: dict[frozenset[_Gram], int] = {}
  node_N = [node_of.setdefault(_grams(text, words), len(node_of)) for text in texts]
  component_V = _components(_pairs(list(node_of), least), len(node_of))
  number: dict[int, int] = {}
  return [number.setdefault(component_V[node], len(number)) for node in node_N]


def clustered(items: Sequence[PromptItem]) -> list[PromptItem]:
  """Return the prompts in their order, with near-copies and clusters that they state as one.

  Prompts belong together if they are near-copies or state the same cluster. What belongs together
  gets the first cluster that is stated in it; where none is, a name made of its first prompt. A
  prompt by itself is left as it is.
  """
  first_of: dict[tuple[str, int | str], int] = {}
  pairs = []
  for n, (item, number) in enumerate(zip(items, near_copies([i.text for i in items]), strict=True)):
    pairs.append((first_of.setdefault(("near", number), n), n))
    if item.cluster is not None:
      pairs.append((first_of.setdefault(("stated", item.cluster), n), n))
  members: dict[int, list[int]] = {}
  for n, component in enumerate(_components(pairs, len(items))):
    members.setdefault(component, []).append(n)
  found = list(items)
  for together in members.values():
    if len(together) > 1:
      stated = [items[n].cluster for n in together if items[n].cluster is not None]
      first = items[together[0]]
      # Ids may be the same in two suites, and other prompts' ids stand in for clusters.
      name = stated[0] if stated else f"{first.prompt_id}:{content_hash(first.text)[:8]}"
      for n in together:
        found[n] = dataclasses.replace(items[n], cluster=name)
  return found


def _components(pairs: Iterable[tuple[int, int]], count: int) -> list[int]:
  """Return the connected component of each of `count` nodes."""
  if count == 0:
    return []
  first, second = np.array(list(pairs), dtype=np.intp).reshape(-1, 2).T
  graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
  return connected_components(graph, directed=False)[1].tolist()


def _grams(text: str, words: int) -> frozenset[_Gram]:
  found = _WORD.findall(text.lower()) or [text.strip()]
  count = max(1, len(found) - words + 1)
  return frozenset(tuple(found[i : i + words]) for i in range(count))


def _pairs(sets: Sequence[frozenset[_Gram]], least: float) -> Iterator[tuple[int, int]]:
  """Yield the pairs of sets whose Jaccard index is above `least`.

  A set of n grams shares more than least * n with a near-copy. So if all but that many are looked
  up, in one order for all sets, the two have a gram in common among those; with rare grams first,
  a stem that many texts begin with is seldom among them.
  """
  count = collections.Counter(itertools.chain.from_iterable(sets))
  sets_with: dict[_Gram, list[int]] = collections.defaultdict(list)
  for n, grams in enumerate(sets):
    rare_first = sorted(grams, key=lambda gram: (count[gram], gram))
    # The product of floats may be just above a whole number that it should not reach.
    looked_up = rare_first[: len(grams) - math.floor(least * len(grams) - 1e-9)]
    for other in {other for gram in looked_up for other in sets_with[gram]}:
      shared = len(grams & sets[other])
      if shared > least * (len(grams) + len(sets[other]) - shared):
        yield other, n
    for gram in looked_up:
      sets_with[gram].append(n)
