"""Conditions on the prompt, by which an edit is switched on or off for a row.

Lee et al. 2024, "Programming Refusal with Conditional Activation Steering": the prompt is read
before the answer begins, and steered only if a projection passes a threshold.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from persona_jax.edits.edit import DirectionLike
from persona_jax.edits.table import HEAD_SITE, SITES
from persona_jax.edits.window import Window, as_window

_SYMBOLS = {"and": "&", "or": "|"}


class Rule:
  """Something true or false of a prompt; combine with `&`, `|` and `~`."""

  def __and__(self, other: "Rule") -> "Rule":
    return Joined("and", (self, other))

  def __or__(self, other: "Rule") -> "Rule":
    return Joined("or", (self, other))

  def __invert__(self) -> "Rule":
    return Negated(self)

  def probes(self) -> Iterator["Probe"]:
    """Yield every probe of the rule."""
    raise NotImplementedError

  def holds(self, passed: Callable[["Probe"], bool]) -> bool:
    """Return whether the rule holds, given whether each probe passes."""
    raise NotImplementedError

  def describe(self) -> dict[str, Any]:
    """Return the rule as plain values for a config, log or hash."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Probe(Rule):
  """A threshold on what the unedited model reads of a direction in a prompt.

  Attributes:
    direction: the direction c.
    block: 0-based block at whose site it is read.
    above, below: the probe passes if the value is > `above` and < `below`; give one or both.
    measure: "projection", <h, c> / ||c||, or "cosine", <h, c> / (||h|| ||c||).
    tokens: window of prompt tokens, over which h is averaged.
    site: where in the block; default the site at which the direction was read.
    replicate: index into S; default the mean.

  Raises:
    ValueError: no threshold, an unknown block, site, measure or replicate, or a zero vector.
  """

  direction: DirectionLike
  block: int
  above: float | None = None
  below: float | None = None
  measure: Literal["projection", "cosine"] = "projection"
  tokens: str | Window = "prompt"
  site: str | None = None
  replicate: int | None = None

  def __post_init__(self) -> None:
    replicates, blocks, _ = self.direction.vectors_SLD.shape
    name = self.direction.concept
    given = [x for x in (self.above, self.below) if x is not None]
    if not given or not np.isfinite(given).all():
      raise ValueError(f"probe on {name!r}: give above=, below= or both, finite.")
    if self.measure not in ("projection", "cosine"):
      raise ValueError(f"measure={self.measure!r}: use 'projection' or 'cosine'.")
    whole = isinstance(self.block, (int, np.integer)) and not isinstance(self.block, bool)
    if not whole or not 0 <= self.block < blocks:
      raise ValueError(f"block={self.block!r}: direction {name!r} has blocks 0 to {blocks - 1}.")
    if self.replicate is not None and not 0 <= self.replicate < replicates:
      raise ValueError(
        f"replicate={self.replicate}: direction {name!r} has replicates 0 to {replicates - 1}."
      )
    if self.where not in SITES or HEAD_SITE in (self.where, self.direction.site):
      raise ValueError(f"site={self.where!r}: probes read at one of {SITES}, {HEAD_SITE!r} aside.")
    as_window(self.tokens)
    if not np.linalg.norm(self.vector_D) > 0:
      raise ValueError(f"direction {name!r} is the zero vector at block {self.block}.")

  @property
  def where(self) -> str:
    """The site."""
    return self.direction.site if self.site is None else self.site

  @property
  def vector_D(self) -> np.ndarray:
    """c, float64 [D]."""
    d = self.direction
    source_LD = d.mean_LD if self.replicate is None else d.vectors_SLD[self.replicate]
    return np.asarray(source_LD[self.block], np.float64)

  def value(self, h_D: np.ndarray) -> float:
    """Return what the probe reads of an activation."""
    size = np.linalg.norm(self.vector_D) * (
      np.linalg.norm(h_D.astype(np.float64)) if self.measure == "cosine" else 1.0
    )
    return float(h_D.astype(np.float64) @ self.vector_D / size)

  def passes(self, value: float) -> bool:
    """Return whether a value lies between the thresholds."""
    return (self.above is None or value > self.above) and (self.below is None or value < self.below)

  def probes(self) -> Iterator["Probe"]:
    yield self

  def holds(self, passed: Callable[["Probe"], bool]) -> bool:
    return passed(self)

  def describe(self) -> dict[str, Any]:
    return {
      "concept": self.direction.concept,
      "direction_hash": self.direction.hash,
      "site": self.where,
      "block": int(self.block),
      "replicate": None if self.replicate is None else int(self.replicate),
      "measure": self.measure,
      "tokens": str(as_window(self.tokens)),
      "above": None if self.above is None else float(self.above),
      "below": None if self.below is None else float(self.below),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Rule):
  """Several rules joined by "and" or "or"."""

  how: Literal["and", "or"]
  parts: tuple[Rule, ...]

  def __post_init__(self) -> None:
    wrong = [part for part in self.parts if not isinstance(part, Rule)]
    if wrong:
      raise ValueError(f"{_SYMBOLS[self.how]!r} joins probes and rules; got {wrong}.")

  def probes(self) -> Iterator[Probe]:
    for part in self.parts:
      yield from part.probes()

  def holds(self, passed: Callable[[Probe], bool]) -> bool:
    join = all if self.how == "and" else any
    return join(part.holds(passed) for part in self.parts)

  def describe(self) -> dict[str, Any]:
    return {self.how: [part.describe() for part in self.parts]}


@dataclasses.dataclass(frozen=True, eq=False)
class Negated(Rule):
  """A rule that holds where another does not."""

  part: Rule

  def probes(self) -> Iterator[Probe]:
    yield from self.part.probes()

  def holds(self, passed: Callable[[Probe], bool]) -> bool:
    return not self.part.holds(passed)

  def describe(self) -> dict[str, Any]:
    return {"not": self.part.describe()}


Readings = Mapping[int, float]  # by id of the probe


def decide(rule: Rule, readings: Readings) -> bool:
  """Return whether a rule holds, given the value of each probe by its `id`."""
  return rule.holds(lambda probe: probe.passes(readings[id(probe)]))
