"""The stages that run the model: answers, directions, trained vectors; each can go on."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.directions.extract import extract_by_methods
from persona_jax.directions.formats.rows import file_name
from persona_jax.directions.load import load_direction
from persona_jax.directions.train import Example, train_direction
from persona_jax.engine.model import Model
from persona_jax.runs.run import describe_model, write_json
from persona_jax.studies.extraction.contrasts import Chat, Contrast, with_answers
from persona_jax.studies.extraction.settings import Settings


def start(model: Model, settings: Settings, found: Sequence[Contrast], directory: Path) -> str:
  """Write config.json, or check that the one there asks for the same; return its hash.

  Raises:
    ValueError: the directory holds an extraction with other settings, texts or another model.
  """
  what = {
    "model": describe_model(model),
    "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    "contrasts": content_hash([dataclasses.asdict(contrast) for contrast in found]),
  }
  path, digest = directory / "config.json", content_hash(what)
  if path.exists():
    there = json.loads(path.read_text())
    if there["hash"] != digest:
      differing = [key for key in what if there.get(key) != what[key]]
      raise ValueError(f"{directory} holds another extraction ({differing} differ); use another.")
    return digest
  write_json({"hash": digest, **what}, path)
  return digest


def pairs(
  model: Model, settings: Settings, contrast: Contrast, part: str, directory: Path
) -> tuple[list[Chat], list[Chat], list[int]]:
  """Return the pairs of a contrast that directions are made of ("train") or judged by ("held_out").

  With source "answers" they are answered first, once, and kept.
  """
  positive, negative, label = contrast.pairs(getattr(contrast, part))
  if settings.source == "prompts":
    return positive, negative, label
  return *answered(model, settings, contrast, part, directory), label


def answered(
  model: Model, settings: Settings, contrast: Contrast, part: str, directory: Path
) -> tuple[list[Chat], list[Chat]]:
  """Return question and answer of positives and negatives, generated once and kept."""
  positive, negative, _ = contrast.pairs(getattr(contrast, part))
  path = directory / "answers" / f"{file_name(contrast.name)}-{part}.json"
  if path.exists():
    chats = json.loads(path.read_text())
  else:
    chats = with_answers(
      model,
      [*positive, *negative],
      max_new_tokens=settings.answer_tokens,
      temperature=1.0,
      seed=settings.seed,
    )
    write_json(chats, path)
  return chats[: len(positive)], chats[len(positive) :]


def extract(
  model: Model,
  settings: Settings,
  found: Sequence[Contrast],
  directory: Path,
  *,
  progress: bool = True,
) -> dict[str, dict[str, Direction]]:
  """Extract all directions that are not there yet, {method: {concept: direction}}.

  Replicates are the wordings.
  """
  folder = directory / "directions"
  files = {
    (method, contrast.name): folder / method / f"{file_name(contrast.name)}.safetensors"
    for method in settings.methods
    for contrast in found
  }
  if settings.read and not all(files[m, c.name].exists() for m in settings.read for c in found):
    asked = {c.name: pairs(model, settings, c, "train", directory) for c in found}
    total = sum(2 * len(label) for _, _, label in asked.values())
    tokens = "last" if settings.source == "prompts" else "answer_mean"
    with tqdm.tqdm(total=total, unit="row", disable=not progress, desc="extract") as bar:
      made = extract_by_methods(
        model,
        {name: (x, y) for name, (x, y, _) in asked.items()},
        settings.read,
        site=settings.site,
        tokens=tokens,  # type: ignore[arg-type]
        replicates=next(iter(asked.values()))[2],
        store=directory / "activations" if settings.store else None,
        progress=bar.update,
      )
    for method, directions in made.items():
      for name, direction in directions.items():
        direction.save(files[method, name])
  block = settings.train_block
  block = round(0.6 * model.arch.num_blocks) if block is None else block
  for method in settings.trained:
    for contrast in found:
      if not files[method, contrast.name].exists():
        _train(model, settings, method, contrast, block, directory, progress).save(
          files[method, contrast.name]
        )
  return {
    method: {c.name: load_direction(files[method, c.name], model=model) for c in found}
    for method in settings.methods
  }


def _train(
  model: Model,
  settings: Settings,
  method: str,
  contrast: Contrast,
  block: int,
  directory: Path,
  progress: bool,
) -> Direction:
  """Train a vector on the answers to the questions of training."""
  positive, negative = answered(model, settings, contrast, "train", directory)
  examples = [
    Example(x[0]["content"], x[1]["content"], y[1]["content"])
    for x, y in zip(positive, negative, strict=True)
    if x[1]["content"].strip() and y[1]["content"].strip()
  ]
  name = f"{method} {contrast.name}"
  with tqdm.tqdm(total=settings.train_steps, unit="step", disable=not progress, desc=name) as bar:

    def note(step: int, loss: float) -> None:
      bar.update(step - bar.n)
      bar.set_postfix(loss=f"{loss:.3f}")

    return train_direction(
      model,
      examples,
      block,
      settings.training(method),
      concept=contrast.name,
      checkpoints=directory / "training" / method / file_name(contrast.name),
      progress=note,
    )
