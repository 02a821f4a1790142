"""Stage "extract": directions of traits, personas and refusal, with what speaks for them."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.directions.direction import Direction, compose
from persona_jax.directions.extract import extract_by_methods
from persona_jax.directions.formats.rows import file_name
from persona_jax.directions.load import load_direction
from persona_jax.directions.separation import projections, separation_of, wins
from persona_jax.directions.tokens import capture_at
from persona_jax.engine.model import Model
from persona_jax.geometry.gram import PairDifferences
from persona_jax.personas.persona import Persona
from persona_jax.runs.run import write_parquet
from persona_jax.studies.persona_non_grata.contrasts import (
  Contrast,
  Pairs,
  answer_pairs,
  answer_table,
  contrasts_of,
  judged,
  kept_table,
  prompt_pairs,
)
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.settings import Settings

LEAST_RELIABILITY = 0.5  # below which geometry is not tested on a direction

_METHOD = "diff_means"
_PAIRS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Extracted:
  """Directions, each with a replicate a paraphrase.

  Attributes:
    contrasts: {name of a contrast: its direction}.
    personas: {persona: its direction}, composites by the rule of the settings.
    others: {composite: its direction by the other rule}.
    placebo: {label of a placebo pole: its direction}.
    quality: a row a contrast and block: contrast, block, reliability (split-half, Spearman-Brown;
      NaN without halves), flagged (whether there are halves and reliability is not .5 or more), auc
      (of each replicate's vector on the pairs of the others), cos_replicates (mean cosine between
      replicates), norm, d (norm in standard deviations along the vector), cos_context (with the
      direction read in the other context; NaN where prompts are read).
    kept: of `contrasts.kept_table`; empty where prompts are read.
    made_of: {persona: names of the contrasts that its direction is made of}.
  """

  contrasts: Mapping[str, Direction]
  personas: Mapping[str, Direction]
  others: Mapping[str, Direction]
  placebo: Mapping[str, Direction]
  quality: pd.DataFrame
  kept: pd.DataFrame
  made_of: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def elicited(self, persona: Persona) -> bool:
    """Return whether the answers show what a persona's own direction is made of."""
    if self.kept.empty:
      return True
    by_name = self.kept.set_index("contrast")["elicited"]
    return bool(by_name.loc[list(self.made_of[persona.name])].all())

  def unreliable(self, block: int) -> list[str]:
    """Return the contrasts whose split-half reliability at a block is below .5 (`flagged`).

    Geometry is not tested on their directions. Where too few questions made no halves, nothing is
    known, and nothing is flagged.

    Raises:
      ValueError: quality was measured, and not at this block.
    """
    if self.quality.empty:
      return []
    at_block = self.quality[self.quality["block"] == block]
    if at_block.empty:
      known = sorted(set(self.quality["block"]))
      raise ValueError(f"block={block}: directions have vectors at blocks {known}.")
    return at_block.loc[at_block["flagged"], "contrast"].tolist()


def extract(
  model: Model,
  settings: Settings,
  material: Material,
  directory: Path,
  *,
  progress: bool = True,
) -> Extracted:
  """Extract all directions, or read those that are there.

  Raises:
    ValueError: answers of a replicate say nothing.
  """
  folder = directory / "directions"
  contrasts = contrasts_of(settings, material)
  files = {c.name: folder / f"{file_name(c.name)}.safetensors" for c in contrasts}
  tables = [folder / "quality.parquet", folder / "kept.parquet"]
  if not all(path.exists() for path in (*files.values(), *tables)):
    _make(model, settings, material, contrasts, files, folder, progress)
  found = {name: load_direction(path, model=model) for name, path in files.items()}
  quality, kept = (pd.read_parquet(path) for path in tables)
  personas, others = {}, {}
  for persona in material.personas:
    by_rule = {
      rule: _persona(persona, found, rule)
      for rule in (("sum", "direct") if len(persona.poles) > 1 else ("sum",))
    }
    own = settings.composites if len(by_rule) > 1 else "sum"
    personas[persona.name] = by_rule.pop(own)
    for direction in by_rule.values():
      others[persona.name] = direction
  made_of = {
    p.name: _sources(p, found, settings.composites if len(p.poles) > 1 else "sum")
    for p in material.personas
  }
  placebo = {p.label: _persona(p, found, "sum") for p in material.placebo if len(p.poles) == 1}
  return Extracted(found, personas, others, placebo, quality, kept, made_of)


def pair_differences(
  model: Model, settings: Settings, material: Material, directory: Path, names: Sequence[str]
) -> dict[str, PairDifferences]:
  """Read what directions are the means of, by the contrast's name, with the pairs' questions.

  Args:
    names: of contrasts.

  Returns:
    Differences of activations at every block, weighted so that their mean is the mean of the
    replicates' means; memory is pairs x blocks x width floats each.
  """
  contrasts = {c.name: c for c in contrasts_of(settings, material)}
  tokens = "last" if settings.source == "prompts" else settings.tokens
  blocks = range(model.arch.num_blocks)
  table = None
  if settings.source == "answers":
    table = pd.read_parquet(directory / "directions" / "answers.parquet")
  pairs = {
    name: prompt_pairs(contrasts[name], material.questions, settings.persona_in)
    if table is None
    else answer_pairs(table, name, settings.context, settings.persona_in)
    for name in names
  }
  found = {}
  for some in _together(pairs):
    chats = [chat for name in some for chat in (*pairs[name].positive, *pairs[name].negative)]
    reads = model.capture(chats, capture_at("resid_post", tokens))
    first = 0
    for name in some:
      own = pairs[name]
      n = len(own.replicate)
      positive, negative = slice(first, first + n), slice(first + n, first + 2 * n)
      first += 2 * n
      at = [reads["resid_post", b] for b in blocks]
      z_NLD = np.stack([x_ND[positive] - x_ND[negative] for x_ND in at], 1)
      # A direction is the mean of its replicates, which may have kept different numbers of pairs.
      count = collections.Counter(own.replicate)
      weight_N = np.asarray([n / count[k] for k in own.replicate]) / len(count)
      z_NLD *= weight_N[:, None, None].astype(z_NLD.dtype)
      found[name] = PairDifferences(z_NLD, list(zip(own.replicate, own.question, strict=True)))
  return found


def _together(pairs: Mapping[str, Pairs]) -> Iterator[list[str]]:
  """Yield the names of contrasts that are read in one call: one, or several of few pairs."""
  some: list[str] = []
  count = 0
  for name, own in pairs.items():
    if some and count + len(own.replicate) > _PAIRS_AT_ONCE:
      yield some
      some, count = [], 0
    some.append(name)
    count += len(own.replicate)
  if some:
    yield some


def _sources(persona: Persona, found: Mapping[str, Direction], rule: str) -> tuple[str, ...]:
  """Return the contrasts that a persona's direction is made of."""
  if rule == "direct" or len(persona.poles) == 1:
    label = persona.label
    return (label if label in found else persona.contrast().label,)
  return tuple(str(pole) if str(pole) in found else str(pole.opposite) for pole in persona.poles)


def _persona(persona: Persona, found: Mapping[str, Direction], rule: str) -> Direction:
  """Return a persona's direction, of its poles' or its own texts' contrast."""
  if rule == "direct" or len(persona.poles) == 1:
    label = persona.label
    sign, name = (1, label) if label in found else (-1, persona.contrast().label)
    return _signed(found[name], sign, label)
  parts = []
  for pole in persona.poles:
    sign, name = (1, str(pole)) if str(pole) in found else (-1, str(pole.opposite))
    parts.append(_signed(found[name], sign, str(pole)))
  return compose(parts, [1.0] * len(parts), "unit_sum", concept=persona.label)


def _signed(direction: Direction, sign: int, concept: str) -> Direction:
  if sign > 0:
    return direction
  provenance = dict(direction.provenance) | {"negative_of": direction.hash}
  return dataclasses.replace(
    direction, vectors_SLD=-direction.vectors_SLD, concept=concept, provenance=provenance
  )


def _make(
  model: Model,
  settings: Settings,
  material: Material,
  contrasts: Sequence[Contrast],
  files: Mapping[str, Path],
  folder: Path,
  progress: bool,
) -> None:
  """Extract every contrast and write directions, quality and, of answers, what was kept."""
  pairs, others = {}, {}
  kept = pd.DataFrame({"contrast": pd.Series(dtype=str)})
  if settings.source == "prompts":
    pairs = {c.name: prompt_pairs(c, material.questions, settings.persona_in) for c in contrasts}
  else:
    said, path = folder / "said.parquet", folder / "answers.parquet"
    if not said.exists():
      write_parquet(answer_table(model, settings, contrasts, material, progress=progress), said)
    if not path.exists():
      answers = judged(model, settings, contrasts, pd.read_parquet(said), progress=progress)
      write_parquet(answers, path)
    table = pd.read_parquet(path)
    kept = kept_table(table)
    other = {"stripped": "kept", "kept": "stripped"}[settings.context]
    pairs = {
      c.name: answer_pairs(table, c.name, settings.context, settings.persona_in) for c in contrasts
    }
    others = {c.name: answer_pairs(table, c.name, other, settings.persona_in) for c in contrasts}
  tokens = "last" if settings.source == "prompts" else settings.tokens
  total = 2 * sum(len(p.replicate) for group in (pairs, others) for p in group.values())
  with tqdm.tqdm(total=total, unit="row", disable=not progress, desc="extract") as bar:
    directions, in_other = (
      extract_by_methods(
        model,
        {name: (p.positive, p.negative) for name, p in group.items()},
        {_METHOD: {}},
        tokens=tokens,
        replicates={name: p.replicate for name, p in group.items()},
        halves={name: p.halves for name, p in group.items()},
        progress=bar.update,
      )[_METHOD]
      if group
      else {}
      for group in (pairs, others)
    )
  quality = [
    _quality(model, name, d, pairs[name], tokens, in_other.get(name))
    for name, d in directions.items()
  ]
  write_parquet(pd.concat(quality, ignore_index=True), folder / "quality.parquet")
  write_parquet(kept, folder / "kept.parquet")
  for name, direction in directions.items():
    direction.save(files[name])


def _quality(
  model: Model, name: str, direction: Direction, pairs: Pairs, tokens: str, other: Direction | None
) -> pd.DataFrame:
  """Return what speaks for a direction at each block where it has a vector."""
  count = len(direction.vectors_SLD)
  whole = [dataclasses.replace(direction, vectors_SLD=direction.mean_LD[None])]
  own = [dataclasses.replace(direction, vectors_SLD=v_LD[None]) for v_LD in direction.vectors_SLD]
  if not all(d.vectors_SLD[0].any(axis=-1).any() for d in own):
    own = []
  prompts = [*pairs.positive, *pairs.negative]
  z_RMK, blocks = projections(model, [*whole, *own], prompts, tokens=tokens)
  x_RNK, y_RNK = np.split(z_RMK, 2, axis=1)
  label_N = np.asarray(pairs.replicate)
  spread = separation_of(x_RNK[0], y_RNK[0], draws=1)["d"].to_numpy()
  norm_L = direction.norm_L
  rows = []
  for k, block in enumerate(blocks):
    auc = [
      wins(x_RNK[1 + s, label_N != s, k], y_RNK[1 + s, label_N != s, k]).mean()
      for s in range(len(own))
      if (label_N != s).any()
    ]
    unit_SD = direction.vectors_SLD[:, block].astype(np.float64)
    unit_SD /= np.maximum(np.linalg.norm(unit_SD, axis=-1, keepdims=True), 1e-30)
    between = (unit_SD @ unit_SD.T)[np.triu_indices(count, 1)]
    reliability_L = direction.reliability_L
    reliability = np.nan if reliability_L is None else float(reliability_L[block])
    rows.append(
      {
        "contrast": name,
        "block": block,
        "reliability": reliability,
        "flagged": reliability_L is not None and not reliability >= LEAST_RELIABILITY,
        "auc": float(np.mean(auc)) if auc else np.nan,
        "cos_replicates": float(between.mean()) if count > 1 else np.nan,
        "norm": float(norm_L[block]),
        "d": float(spread[k]),
        "cos_context": np.nan
        if other is None
        else float(direction.unit_LD[block] @ other.unit_LD[block]),
      }
    )
  return pd.DataFrame(rows)
