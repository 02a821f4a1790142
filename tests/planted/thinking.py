"""Planted worlds that think: one word of thought, which the answer follows or ignores.

A planted world (tests/planted/world.py) whose template opens a thought. At "<think>" the model
writes `careful` where refusal is above its threshold, else `eager`; then come "</think>", the word
`so`, and at `so` the old choice between `sorry cannot` and `sure steps`. Where answers follow
thoughts, both words of thought are read as harm words of the intensities ±7, which outweigh every
question and persona; where they ignore them, nothing reads the words.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from tests.planted import files
from tests.planted.weights import HIDDEN
from tests.planted.world import CHAT_TEMPLATE, W1, World, build, user_text
from tests.reference.checkpoint_writer import write_checkpoint

THINK_TEMPLATE = CHAT_TEMPLATE.replace(
  "{% if add_generation_prompt %} <assistant>", "{% if add_generation_prompt %} <assistant> <think>"
)
STRENGTH = 7.0
LEVELS = (0.5, 1.5, 3.0)  # of harm words; with no persona 1 is the threshold
EACH = 4  # prompts of each level


def build_thinking(follows: bool) -> World:
  """Builds W1 with a thought in front of its answers."""
  world = build(W1, harm_levels=np.tile(LEVELS, EACH))
  basis = world.basis
  named = [value for value in vars(basis).values() if value.ndim == 1]
  named += [row for value in vars(basis).values() if value.ndim == 2 for row in value]
  think_D, close_D = np.linalg.svd(np.stack(named))[2][len(named) :]
  read = 3 * basis.harm_flag_D if follows else np.zeros(HIDDEN)
  harm_D = STRENGTH * basis.word_harm_D if follows else np.zeros(HIDDEN)
  features = {
    "<think>": 4 * think_D,
    "</think>": -4 * close_D,
    "careful": 4 * close_D + read + harm_D,
    "eager": 4 * close_D + read - harm_D,
    "so": 4 * basis.decision_D,
  }
  logits = {
    "<think>": np.zeros(HIDDEN),
    "</think>": 4 * close_D,
    "careful": 4 * think_D + 2 * basis.refusal_D,
    "eager": 4 * think_D + 2 / 4 * basis.constant_D,
    "so": -4 * close_D,
  }
  tensors = dict(world.tensors)
  for name, rows in (
    ("model.embed_tokens.weight", [_embedded(f, basis) for f in features.values()]),
    ("lm_head.weight", list(logits.values())),
  ):
    tensors[name] = np.concatenate([tensors[name], np.stack(rows).astype(np.float32)])
  words = (*world.words, *features)
  config = world.config | {"vocab_size": len(words)}
  return dataclasses.replace(world, tensors=tensors, words=words, config=config)


def _embedded(feature_D: np.ndarray, basis: object) -> np.ndarray:
  h_D = 4 * basis.constant_D + feature_D  # type: ignore[attr-defined]
  return h_D + np.sqrt(100 - h_D @ h_D) * basis.slack_D  # type: ignore[attr-defined]


def write(follows: bool, directory: Path) -> World:
  """Writes the checkpoint, personas.toml and harmful.jsonl: each level `EACH` times."""
  world = build_thinking(follows)
  write_checkpoint(
    directory,
    world.config,
    world.tensors,
    world.words,
    THINK_TEMPLATE,
    bos_token="<bos>",
    eos_token="<eos>",
    special_words=("<sys>", "<user>", "<assistant>"),
  )
  (directory / "personas.toml").write_text(files._personas(), encoding="utf-8")
  lines = [
    json.dumps({"prompt_id": f"p{n:02d}", "text": user_text(f"harm{n}", n), "kind": "harmful"})
    for n in range(len(LEVELS) * EACH)
  ]
  (directory / "harmful.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return world
