"""Every knob of the study of reasoning traces, checked; what is read from disk hashed with them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.data.near_copies import clustered
from persona_jax.data.prompts import PromptItem, data_hash, load_prompts
from persona_jax.engine.model import Model
from persona_jax.personas.persona import Persona, load_personas, load_poles, load_questions
from persona_jax.scorers.traces import CueLists, load_cues
from persona_jax.studies.fields import settings_of
from persona_jax.studies.start import begin

METHODS = ("none", "prompt", "steer")
EDITED = ("both", "think", "answer")
_STAGES = ("persona_jax.studies.reasoning_traces.arms", "persona_jax.scorers.thoughts")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of the study.

  Attributes:
    personas: a built-in file of personas, or the path of one.
    named: personas out of it.
    persona_in: where persona texts stand: "system", or "user", at the head of the user's turn.
    replicate: which paraphrase of the texts.
    directions: folder with NAME.safetensors of each persona, or TRAIT+.safetensors of its traits
      (`DIR/directions` of the core study); "" to make them of opposite pole texts, read at the last
      token of prompts.
    extract_questions: questions about oneself that they are then made of, out of 12.
    block: whose output is edited; None: at three fifths of the depth (`at_block`).
    kappa: dose in median residual norms of the block.
    dose_prompts, dose_tokens: neutral prompts, and tokens of their answers, that norm is of.
    edited: parts of the row that steering arms act on: "both", "think" (the thought, tags and the
      last token of the prompt included), "answer" (what follows it). "both" must be there;
      all three, with no persona, are a 2 × 2.
    harmful: suite whose harmful prompts are asked.
    prompts: how many, in whole clusters as they come.
    samples, temperature: of thoughts; answers get one each.
    think_tokens: budget of a thought.
    answer_tokens: budget of an answer, which begins behind the closing tag.
    at_budget: "truncated": a thought that reaches its budget has no answer, and its row is labelled
      so; "closed": a closing tag is written there, and the row is marked as forced.
    swaps: pairs of methods whose traces are swapped.
    cues: file of cue lists; "" for our own.
    least_words: an answer with fewer is degenerate.
    draws: of the bootstrap.
    seed: of everything that is drawn.
  """

  personas: str
  named: tuple[str, ...]
  persona_in: Literal["system", "user"]
  replicate: int
  directions: str
  extract_questions: int
  block: int | None
  kappa: float
  dose_prompts: int
  dose_tokens: int
  edited: tuple[str, ...]
  harmful: str
  prompts: int
  samples: int
  temperature: float
  think_tokens: int
  answer_tokens: int
  at_budget: Literal["truncated", "closed"]
  swaps: tuple[tuple[str, str], ...]
  cues: str
  least_words: int
  draws: int
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Settings":
    """Make settings of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or as the class says.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    for name in ("named", "edited"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    object.__setattr__(self, "swaps", tuple((str(a), str(b)) for a, b in self.swaps))
    known = {
      "persona_in": ("system", "user"),
      "at_budget": ("truncated", "closed"),
    }
    for name, values in known.items():
      if getattr(self, name) not in values:
        raise ValueError(f"{name}={getattr(self, name)!r}: use one of {list(values)}.")
    least = {
      "replicate": 0, "extract_questions": 2, "dose_prompts": 1, "dose_tokens": 5, "prompts": 2,
      "samples": 1, "think_tokens": 1, "answer_tokens": 1, "least_words": 1,
      "draws": 100,
    }  # fmt: skip
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(f"{name}={getattr(self, name)}: at least {number} is needed.")
    if not self.named or not self.kappa > 0:
      raise ValueError(f"named={self.named}, kappa={self.kappa}: a persona and a dose are needed.")
    if self.temperature < 0 or (self.samples > 1 and self.temperature == 0):
      raise ValueError(
        f"samples={self.samples} at temperature={self.temperature}: greedy thoughts are all the "
        "same; give one sample, or a temperature above 0."
      )
    if "both" not in self.edited or not set(self.edited) <= set(EDITED):
      raise ValueError(f"edited={self.edited}: name some of {list(EDITED)}, 'both' among them.")
    for pair in self.swaps:
      if not set(pair) <= set(METHODS) or pair[0] == pair[1]:
        raise ValueError(f"swaps={self.swaps}: give pairs of two different ones of {METHODS}.")

  def at_block(self, num_blocks: int) -> "Settings":
    """Return settings with the block that is edited in a model of so many.

    Raises:
      ValueError: the model has no such block.
    """
    block = round(0.6 * num_blocks) if self.block is None else self.block
    if not 0 <= block < num_blocks:
      raise ValueError(f"block={block}: the model has blocks 0 to {num_blocks - 1}.")
    return dataclasses.replace(self, block=block)

  def lists(self) -> CueLists:
    """Return the cue lists."""
    return load_cues(self.cues or None)

  def chosen_personas(self) -> list[Persona]:
    """Return the personas in the order of their file.

    Raises:
      ValueError: one is not there.
    """
    there = load_personas(self.personas)
    unknown = sorted(set(self.named) - {persona.name for persona in there})
    if unknown:
      raise ValueError(f"named={self.named}: no {unknown}; there are {[p.name for p in there]}.")
    return [persona for persona in there if persona.name in self.named]


def load_items(settings: Settings) -> list[PromptItem]:
  """Draw harmful prompts by the seed, cluster after cluster; each gets its cluster.

  Raises:
    ValueError: the suite holds fewer.
  """
  items = clustered([i for i in load_prompts(settings.harmful) if i.kind == "harmful"])
  by_cluster: dict[str, list[PromptItem]] = {}
  for item in items:
    by_cluster.setdefault(item.cluster or item.prompt_id, []).append(item)
  groups = list(by_cluster.items())
  order = np.random.default_rng([settings.seed, 11]).permutation(len(groups))
  drawn = [dataclasses.replace(item, cluster=groups[n][0]) for n in order for item in groups[n][1]]
  if len(drawn) < settings.prompts:
    raise ValueError(
      f"prompts={settings.prompts}: {settings.harmful!r} has {len(drawn)} harmful prompts."
    )
  return drawn[: settings.prompts]


def start(model: Model, settings: Settings, items: list[PromptItem], directory: Path) -> str:
  """Write config.json, or check that the one there asks for the same study; return its hash.

  Raises:
    ValueError: the directory holds a study with other settings, texts or another model, or of
      another version of the code or of JAX.
  """
  personas = settings.chosen_personas()
  lists = settings.lists()
  inputs = {
    "personas": content_hash([[p.name, p.label, p.text(settings.replicate)] for p in personas]),
    "poles": content_hash([[str(k), v] for k, v in load_poles(settings.personas).items()]),
    "questions": content_hash([[q.question_id, q.text] for q in load_questions("self")]),
    "prompts": data_hash(items),
    "cues": content_hash([lists.version, [[n, list(p)] for n, p in lists.patterns]]),
  }
  return begin(model, dataclasses.asdict(settings), inputs, directory, _STAGES)
