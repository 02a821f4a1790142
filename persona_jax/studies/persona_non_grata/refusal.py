"""Stage "extract": the refusal direction, its family over blocks, a subspace, positive controls."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.prompts import PromptItem
from persona_jax.directions.direction import Direction
from persona_jax.directions.load import load_direction
from persona_jax.directions.refusal import (
  NoRefusalDirection,
  at_every_block,
  refusal_direction,
  refusal_tokens,
  template_tail,
)
from persona_jax.directions.refusal_scores import ABLATED_SITES, log_odds
from persona_jax.directions.tokens import capture_at
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import ablate, add
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings

_FILES = {"family": "refusal-family", "causal": "refusal-causal", "harmfulness": "harmfulness"}
_LEAST = 4  # prompts of either kind that are left after filtering, or none are filtered
_SUBSPACE = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Refusal:
  """The refusal direction of a model.

  Attributes:
    family: mean(harmful) - mean(harmless) at the chosen position, of every block: for cosines.
    causal: the chosen vector at every block: what is ablated or added.
    subspace: mean differences of up to three categories of harm, of every block.
    ids: tokens with which refusals begin.
    about: position, block, whether one passed the filters (`selected`) and why not, how many
      prompts were kept, and the positive controls: p_harmful, p_ablated, p_harmless, p_added (mean
      probability of a refusal's first token).
    harmfulness: mean(harmful) - mean(harmless) at the last token of the instruction, before the
      template: what the model holds of the request, which need not be what makes it refuse. None
      for a model without a template.
  """

  family: Direction
  causal: Direction
  subspace: tuple[Direction, ...]
  ids: tuple[int, ...]
  about: dict[str, Any]
  harmfulness: Direction | None = None


def first_token_log_odds(
  model: Model,
  prompts: Sequence[Any],
  ids: Sequence[int],
  edits: Sequence[Any] | None = None,
  *,
  check_delivery: bool = True,
) -> np.ndarray:
  """Return refusal log-odds of the first token behind prompts, float64 [N]; see `next_logits`."""
  rows = encode_rows(model, prompts, edits)
  return log_odds(next_logits(model, rows, check_delivery=check_delivery), ids)


def find_refusal(
  model: Model,
  settings: Settings,
  material: Material,
  directory: Path,
  *,
  progress: bool = True,
) -> Refusal:
  """Find the refusal direction (Arditi et al. 2024), or read the one that is there.

  Where no candidate passes the published filters, as on a model that refuses nothing, the mean
  difference at the last prompt token is kept, marked as not selected: the gates then forbid to
  claim anything about geometry.

  Raises:
    ValueError: the tokens of a refusal cannot be derived, since the model refuses nothing; give
      `refusal_words`.
  """
  folder = directory / "directions"
  paths = {name: folder / f"{file}.safetensors" for name, file in _FILES.items()}
  about_path = folder / "refusal.json"
  if not about_path.exists():
    found, table = _find(model, settings, material, progress)
    found.family.save(paths["family"])
    found.causal.save(paths["causal"])
    if found.harmfulness is not None:
      found.harmfulness.save(paths["harmfulness"])
    for n, direction in enumerate(found.subspace):
      direction.save(folder / f"refusal-harm{n}.safetensors")
    if table is not None:
      write_parquet(table, folder / "refusal_candidates.parquet")
    write_json({"ids": list(found.ids), "about": found.about}, about_path)
  kept = json.loads(about_path.read_text())
  subspace = sorted(folder.glob("refusal-harm*.safetensors"))
  return Refusal(
    load_direction(paths["family"], model=model),
    load_direction(paths["causal"], model=model),
    tuple(load_direction(path, model=model) for path in subspace),
    tuple(kept["ids"]),
    kept["about"],
    load_direction(paths["harmfulness"], model=model) if paths["harmfulness"].exists() else None,
  )


def _find(
  model: Model, settings: Settings, material: Material, progress: bool
) -> tuple[Refusal, pd.DataFrame | None]:
  ids = _ids(model, settings, material)
  sides = material.harmful, material.harmless
  odds = [first_token_log_odds(model, [i.text for i in items], ids) for items in sides]
  kept = [
    [item for item, x in zip(items, mine, strict=True) if (x > 0) == refuses]
    for items, mine, refuses in zip(sides, odds, (True, False), strict=True)
  ]
  filtered = min(map(len, kept)) >= _LEAST
  harmful, harmless = kept if filtered else map(list, sides)
  about: dict[str, Any] = {
    "filtered": filtered,
    "harmful": [len(harmful), len(material.harmful)],
    "harmless": [len(harmless), len(material.harmless)],
  }
  table, position, block = None, -1, None
  try:
    with tqdm.tqdm(unit="candidate", desc="refusal", disable=not progress) as bar:

      def note(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

      selected = refusal_direction(
        model,
        [i.text for i in harmful],
        [i.text for i in harmless],
        held_out_harmful=[i.text for i in material.held_out_harmful],
        held_out_harmless=[i.text for i in material.held_out_harmless],
        refusal_ids=ids,
        positions=settings.refusal_positions or None,
        progress=note,
      )
    table, position, block = selected.table(), selected.chosen.position, selected.chosen.block
    about |= {"selected": True, "why": ""}
  except NoRefusalDirection as error:
    table = error.table
    about |= {"selected": False, "why": str(error)}
  x_NLD, y_NLD = (_read(model, items, position) for items in (harmful, harmless))
  family = _family(model, x_NLD, y_NLD, position)
  if block is None:  # the block at which the two kinds lie furthest apart, in units of their spread
    block = int(np.argmax(_separation(family, x_NLD, y_NLD)))
  causal = at_every_block(family.mean_LD[block], family, "refusal (causal)")
  about |= {"position": position, "block": block}
  about |= _positive_controls(model, material, causal, block, ids)
  subspace = _subspace(harmful, x_NLD, y_NLD, family)
  harmfulness = _harmfulness(model, harmful, harmless)
  return Refusal(family, causal, subspace, ids, about, harmfulness), table


def _harmfulness(
  model: Model, harmful: Sequence[PromptItem], harmless: Sequence[PromptItem]
) -> Direction | None:
  """Return the mean difference at the last token of the instruction; None without a template."""
  rows = encode_rows(model, [i.text for i in (*harmful, *harmless)], None)
  try:
    position = -template_tail(rows) - 1
  except ValueError:  # a base model's prompt ends with the instruction
    return None
  x_NLD, y_NLD = (_read(model, items, position) for items in (harmful, harmless))
  found = _family(model, x_NLD, y_NLD, position)
  return dataclasses.replace(found, concept="harmfulness")


def _ids(model: Model, settings: Settings, material: Material) -> tuple[int, ...]:
  """Return the tokens with which refusals begin: given as words, or derived from answers."""
  if settings.refusal_words:
    first = {model.tokenizer.encode(word)[0] for word in settings.refusal_words}
    return tuple(sorted(map(int, first)))
  prompts = [i.text for i in (*material.harmful, *material.harmless)]
  texts = [g.text for g in model.generate(prompts, max_new_tokens=settings.max_new_tokens)]
  table = pd.DataFrame({"text": texts, "prompt": prompts, "finish_reason": "stop"})
  refused = RefusalRules().score(table)["refused"].fillna(False).to_numpy(bool)
  said = [[t for t, r in zip(texts, refused, strict=True) if r == side] for side in (True, False)]
  return refusal_tokens(model, said[0], said[1])


def _read(model: Model, items: Sequence[PromptItem], position: int) -> np.ndarray:
  """Return activations at one place of the prompts, float64 [N, L, D]."""
  reads = model.capture([i.text for i in items], capture_at("resid_post", f"prompt:{position}"))
  blocks = range(model.arch.num_blocks)
  return np.stack([reads["resid_post", b] for b in blocks], axis=1).astype(np.float64)


def _family(model: Model, x_NLD: np.ndarray, y_NLD: np.ndarray, position: int) -> Direction:
  mean_LD = x_NLD.mean(axis=0) - y_NLD.mean(axis=0)
  halves = [x_NLD[h::2].mean(axis=0) - y_NLD[h::2].mean(axis=0) for h in (0, 1)]
  norms = [np.linalg.norm(half, axis=-1) for half in halves]
  with np.errstate(invalid="ignore", divide="ignore"):
    cos_L = (halves[0] * halves[1]).sum(axis=-1) / (norms[0] * norms[1])
    reliability_L = 2 * cos_L / (1 + cos_L)
  return Direction(
    mean_LD[None],
    "refusal",
    provenance={
      "model": model.identity.name,
      "model_hash": model.identity.sha256,
      "method": "refusal (Arditi et al. 2024)",
      "tokens": f"prompt:{position}",
      "num_pairs": [len(x_NLD), len(y_NLD)],
    },
    gap_L=np.linalg.norm(mean_LD, axis=-1),
    reliability_L=reliability_L,
  )


def _separation(family: Direction, x_NLD: np.ndarray, y_NLD: np.ndarray) -> np.ndarray:
  """Return the distance of the classes along the family in standard deviations, [L]."""
  unit_LD = family.unit_LD.astype(np.float64)
  x_NL, y_NL = ((z * unit_LD).sum(axis=-1) for z in (x_NLD, y_NLD))
  spread_L = np.sqrt((x_NL.var(axis=0) + y_NL.var(axis=0)) / 2)
  gap_L = x_NL.mean(axis=0) - y_NL.mean(axis=0)
  return np.where(spread_L > 0, gap_L / np.where(spread_L > 0, spread_L, 1.0), 0.0)


def common_categories(harmful: Sequence[PromptItem]) -> list[str]:
  """Return the commonest categories of harm, two or three; none where they are not so many."""
  named = [item.main_category for item in harmful if item.main_category]
  common = pd.Series(named, dtype=object).value_counts()
  names = list(common[common >= _LEAST].index[:_SUBSPACE])
  return names if len(names) > 1 else []


def _subspace(
  harmful: Sequence[PromptItem], x_NLD: np.ndarray, y_NLD: np.ndarray, family: Direction
) -> tuple[Direction, ...]:
  """Return mean differences of the commonest categories of harm, at most three."""
  category_N = pd.Series([item.main_category for item in harmful])
  names = common_categories(harmful)
  return tuple(
    dataclasses.replace(
      family,
      vectors_SLD=(x_NLD[(category_N == name).to_numpy()].mean(axis=0) - y_NLD.mean(axis=0))[None],
      concept=f"refusal of {name}",
      gap_L=None,
      reliability_L=None,
    )
    for name in names
  )


def ablations(causal: Direction) -> list[Edit]:
  """Return the edits that remove a direction wherever the stream is written or read."""
  return [
    ablate(causal, blocks="all", tokens="all", site=site, allow_other_site=True)
    for site in ABLATED_SITES
  ]


def _positive_controls(
  model: Model, material: Material, causal: Direction, block: int, ids: Sequence[int]
) -> dict[str, float]:
  """Return what ablating and adding the direction does to held-out prompts."""
  removed = ablations(causal)
  added = [add(causal, 1.0, unit="raw", blocks=block, tokens="all")]

  def p(items: Sequence[PromptItem], edits: list[Any] | None) -> float:
    prompts = [i.text for i in items]
    each = None if edits is None else [edits] * len(prompts)
    # Ablation of what a prompt has nothing of is no failure; an addition is always there.
    x_N = first_token_log_odds(model, prompts, ids, each, check_delivery=edits is added)
    return float((1 / (1 + np.exp(-x_N))).mean())

  harmful, harmless = material.held_out_harmful, material.held_out_harmless
  return {
    "p_harmful": p(harmful, None),
    "p_ablated": p(harmful, removed),
    "p_harmless": p(harmless, None),
    "p_added": p(harmless, added),
  }
