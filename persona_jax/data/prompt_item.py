"""One question to ask a model: what all suites and files of prompts are read into."""

import dataclasses
from typing import Literal

_BETWEEN = "; "


@dataclasses.dataclass(frozen=True)
class PromptItem:
  """One question to ask a model.

  Attributes:
    prompt_id: unique in its suite.
    text: the question alone; a source's answer is never kept.
    kind: "harmful" or "harmless".
    pair_id: shared by a harmful question and its harmless twin; None where there is no twin.
    category: topic, in the source's words (of a pair: both topics, as "cooking_vs_weapons"; of a
      source that names several: all in its order, "; " between them).
    source: package, version and file it was read from.
    cluster: shared by near-copies, which are no independent evidence; None for a prompt by itself.
  """

  prompt_id: str
  text: str
  kind: Literal["harmful", "harmless"]
  pair_id: str | None
  category: str
  source: str
  cluster: str | None = None

  @property
  def main_category(self) -> str:
    """The first category that the source names."""
    return self.category.split(_BETWEEN, 1)[0]


def joined_categories(names: list[str]) -> str:
  """Return several categories as one `category`."""
  return _BETWEEN.join(names)
