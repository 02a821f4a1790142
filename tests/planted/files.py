"""Writes a planted world with everything that a study of it reads.

  python -m tests.planted.files W1 DIR [--noise 1.5] [--seed 7] [--prompts 200]

    config.json, model.safetensors, tokenizer…   the checkpoint
    personas.toml          P1 … P12, three paraphrases of two halves, as `load_personas` reads them
    trait_items.toml       the trait instrument: for every trait the choice between two words
    neutral.jsonl          questions of fillers alone, for extraction
    calib.jsonl            harmless questions, for the choice of doses
    harmful_train.jsonl, harmless_train.jsonl, harmful_val.jsonl, harmless_val.jsonl
                           for the refusal direction
    test.jsonl             harmful questions
    twins.jsonl            their harmless twins: the same fillers, a mild word for the harmful one
    confirm.jsonl          further harmful questions, to be opened once
    harmful.jsonl          harmful_train and harmful_val, as one suite that a study draws from
    harmless.jsonl         harmless_train, harmless_val and calib

A question's cluster is its harm word: what the model does to a question depends on that word alone,
so two questions with one word are one observation. By default every question has its own word.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tests.planted.world import (
  FILLERS,
  HEADS,
  PERSONAS,
  POLES,
  REPLICATES,
  TRAITS,
  WORLDS,
  Truth,
  World,
  build,
  half_text,
  user_text,
)

NEUTRAL, CALIB, TRAIN, VAL, CONFIRM, ITEMS = 60, 32, 32, 16, 100, 4
HARM, MILD = (0.2, 4.0), (0.0, 0.78)  # the ranges of intensity; a refusal direction sees 2 and up
_SUITES = {
  "harmful": ("harmful_train", "harmful_val"),
  "harmless": ("harmless_train", "harmless_val", "calib"),
}


@dataclasses.dataclass(frozen=True)
class Question:
  """One line of a file of questions.

  Attributes:
    prompt_id: unique in its world.
    text: the user turn.
    kind: "harmful" or "harmless".
    pair_id: shared by a test question and its twin, else None.
    category: "level1" … "level4" by the intensity of the harm word; a twin has that of its pair.
    cluster: the word that decides.
  """

  prompt_id: str
  text: str
  kind: str
  pair_id: str | None
  category: str
  cluster: str


@dataclasses.dataclass(frozen=True)
class Questions:
  """The files of questions of a world, and the intensities of the words in them."""

  files: dict[str, list[Question]]
  harm_levels: np.ndarray  # of harm0, harm1, …
  mild_levels: np.ndarray  # of ok0, ok1, …

  def texts(self, name: str) -> list[str]:
    """Returns the user turns of a file."""
    return [question.text for question in self.files[name]]

  def world(
    self, truth: Truth, *, seed: int = 7, jitter: float = 0.0, kv_heads: int = HEADS
  ) -> World:
    """Builds a world that has these words."""
    levels = {"harm_levels": self.harm_levels, "mild_levels": self.mild_levels}
    return build(truth, seed=seed, jitter=jitter, kv_heads=kv_heads, **levels)


def questions(prompts: int = 200, harm_words: int | None = None) -> Questions:
  """Makes the questions of a world; no word and no text is in two files.

  Args:
    prompts: test questions.
    harm_words: the words they share, by default one each, evenly spaced in intensity.
  """
  n_words = prompts if harm_words is None else harm_words
  high = (HARM[1] / 2, HARM[1])
  harmful = {
    "test": _spread(HARM, n_words),
    "confirm": _spread(HARM, CONFIRM),
    "harmful_train": _spread(high, TRAIN),
    "harmful_val": _spread(high, VAL),
  }
  harmless = {
    "twins": _spread(MILD, n_words),
    "calib": _spread(MILD, CALIB),
    "harmless_train": _spread(MILD, TRAIN),
    "harmless_val": _spread(MILD, VAL),
  }
  numbers = itertools.count()  # of fillers
  numbers_test = [next(numbers) for _ in range(prompts)]
  files: dict[str, list[Question]] = {}
  for kind, suites, word in (("harmful", harmful, "harm"), ("harmless", harmless, "ok")):
    first = 0
    for name, level_W in suites.items():
      paired = name in ("test", "twins")
      files[name] = []
      for i in range(prompts if paired else len(level_W)):
        place = i % len(level_W)
        level = harmful["test"][place] if paired else level_W[place]
        cluster = f"{word}{first + place}"
        text = user_text(cluster, numbers_test[i] if paired else next(numbers))
        pair = f"pair{i:03d}" if paired else None
        category = f"level{min(int(level), 3) + 1}"
        files[name].append(Question(f"{name}-{i:03d}", text, kind, pair, category, cluster))
      first += len(level_W)
  files["neutral"] = []
  for i in range(NEUTRAL):
    text = user_text(FILLERS[i % len(FILLERS)], next(numbers))
    files["neutral"].append(
      Question(f"neutral-{i:03d}", text, "harmless", None, "neutral", f"neutral{i}")
    )
  levels = [np.concatenate(list(suites.values())) for suites in (harmful, harmless)]
  return Questions(files, *levels)


def write(
  truth: Truth,
  directory: Path,
  *,
  seed: int = 7,
  jitter: float = 0.0,
  kv_heads: int = HEADS,
  prompts: int = 200,
  harm_words: int | None = None,
) -> World:
  """Writes the checkpoint of a world and its data files into one directory; see the module."""
  suite = questions(prompts, harm_words)
  world = suite.world(truth, seed=seed, jitter=jitter, kv_heads=kv_heads)
  world.write(directory)
  joined = {
    name: [question for part in parts for question in suite.files[part]]
    for name, parts in _SUITES.items()
  }
  for name, lines in {**suite.files, **joined}.items():
    text = "".join(json.dumps(dataclasses.asdict(question)) + "\n" for question in lines)
    (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
  (directory / "personas.toml").write_text(_personas(), encoding="utf-8")
  (directory / "trait_items.toml").write_text(_trait_items(), encoding="utf-8")
  return world


def _spread(ends: tuple[float, float], n: int) -> np.ndarray:
  """Returns evenly spaced intensities in an order of chance, so that the first few are a sample."""
  return np.random.default_rng(n).permutation(np.linspace(*ends, n))


def _personas() -> str:
  lines = ['name = "planted"', "", "[personas]"]
  lines += [f"{name} = {json.dumps(poles)}" for name, poles in PERSONAS.items()]
  for pole, replicate in itertools.product(POLES, range(REPLICATES)):
    halves = [json.dumps(half_text(pole, replicate, half)) for half in (0, 1)]
    lines += ["", f'[[poles."{pole}"]]', f"a = {halves[0]}", f"b = {halves[1]}"]
  return _joined(lines)


def _trait_items() -> str:
  lines = ['name = "planted"']
  for t, trait in enumerate(TRAITS):
    for i in range(ITEMS):
      prompt = user_text(FILLERS[7 * t + i], 20_000 + ITEMS * t + i)
      lines += ["", "[[items]]", f'id = "{trait}-{i}"', f'trait = "{trait}"', "key = 1"]
      lines += [f"prompt = {json.dumps(prompt)}", f'options = ["yes_{trait}", "no_{trait}"]']
      lines += ["values = [1, 0]"]
  return _joined(lines)


def _joined(lines: Iterable[str]) -> str:
  return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line and writes a world."""
  parser = argparse.ArgumentParser(description="Writes a planted world with its data files.")
  parser.add_argument("world", choices=list(WORLDS))
  parser.add_argument("directory", type=Path)
  parser.add_argument("--noise", type=float, default=0.0)
  parser.add_argument("--mlp", type=float, default=0.0)
  parser.add_argument("--kv-heads", type=int, default=HEADS)
  parser.add_argument("--seed", type=int, default=7)
  parser.add_argument("--jitter", type=float, default=0.0)
  parser.add_argument("--prompts", type=int, default=200)
  parser.add_argument("--harm-words", type=int, default=None)
  given = parser.parse_args(arguments)
  write(
    dataclasses.replace(WORLDS[given.world], noise=given.noise, mlp=given.mlp),
    given.directory,
    seed=given.seed,
    jitter=given.jitter,
    kv_heads=given.kv_heads,
    prompts=given.prompts,
    harm_words=given.harm_words,
  )
  print(given.directory)


if __name__ == "__main__":
  main()
