"""A judge on our own engine: the exact probabilities of the options, without generating."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt
from persona_jax.scorers.judges.base import Item, Judge, Reply, too_little
from persona_jax.scorers.judges.rubric import LETTERS, Rubric


@dataclasses.dataclass(frozen=True, eq=False)
class LocalJudge(Judge):
  """Ask a rubric of a model that is not edited, best another one than the one that is judged.

  Attributes:
    model: that judges.
    rubric: that it is asked.
    places: what stands in the rubric's further places, for all rows.
    lead: text that the reply is made to begin with; see `scorers.choice.Choices`.
    least_mass: share of the next token's probability that the letters need together, in either
      order; a row for which they have less is not judged.
    progress: called with the number of letters scored.

  Raises:
    ValueError: `least_mass` is no share.
  """

  model: Model = dataclasses.field(repr=False)
  rubric: Rubric
  places: Mapping[str, str] = dataclasses.field(default_factory=dict)
  lead: str = ""
  least_mass: float = 0.5
  progress: Callable[[int], None] | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self) -> None:
    if not 0 <= self.least_mass <= 1:
      raise ValueError(f"least_mass={self.least_mass}: a share from 0 to 1 fits")

  @property
  def describe(self) -> dict[str, Any]:
    """Who judges."""
    return {
      "judge": self.model.identity.name,
      "model_sha256": self.model.identity.sha256,
      "rubric": self.rubric.name,
      "rubric_version": self.rubric.version,
      "rubric_sha256": self.rubric.sha256,
      "places": dict(self.places),
      "lead": self.lead,
      "least_mass": self.least_mass,
    }

  def replies(self, items: Sequence[Item]) -> list[tuple[Reply, Reply]]:
    """Return the letters' probabilities as the next token, in both orders."""
    letters = LETTERS[: len(self.rubric.options)]
    chats: list[Prompt] = []
    for item in items:
      for order in self.rubric.orders():
        chat = [{"role": "user", "content": item.ask(self.rubric, order)}]
        if self.lead:
          chat.append({"role": "assistant", "content": self.lead})
        chats += [chat] * len(letters)
    logprob_M = self.model.score(chats, list(letters) * (2 * len(items)), progress=self.progress)
    p_NOJ = np.exp(logprob_M).reshape(len(items), 2, len(letters))
    return [(self._reply(p_OJ[0], letters), self._reply(p_OJ[1], letters)) for p_OJ in p_NOJ]

  def _reply(self, p_J: np.ndarray, letters: str) -> Reply:
    mass = float(p_J.sum())
    if mass < self.least_mass:
      return Reply(None, too_little(mass, self.least_mass))
    return Reply(dict(zip(letters, map(float, p_J), strict=True)))
