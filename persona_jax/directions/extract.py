"""Directions from contrastive prompts: `pj.extract`.

Means come from sums on the device and nothing else is kept. The other methods (`methods`) read
every row's activations, in memory or in a store (`activations`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.directions.activations import Activations, activations
from persona_jax.directions.class_means import centre, from_sums
from persona_jax.directions.contrasts import Found, Pairs, Replicates, contents_of, pairs_of
from persona_jax.directions.direction import Direction
from persona_jax.directions.methods import METHODS, NoComponent
from persona_jax.directions.tokens import capture_at
from persona_jax.edits.table import HEAD_SITE
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model, Progress
from persona_jax.engine.rows import Row, plain_prompt
from persona_jax.personas.chat import Prompt

Tokens = Literal["last", "answer_mean", "answer_first"]

# Made of sums over classes; the rest of `METHODS` reads every row.
MEANS = ("diff_means", "mean_centred")
KNOWN = tuple(dict.fromkeys((*MEANS, *METHODS)))
_LEAST_PAIRS = 2  # of a method that is no mean, in a replicate or a half


def extract(
  model: Model,
  positives: Sequence[Prompt],
  negatives: Sequence[Prompt],
  *,
  method: str = "diff_means",
  site: str = "resid_post",
  tokens: Tokens = "last",
  replicates: Replicates = None,
  concept: str = "direction",
  store: str | Path | None = None,
  progress: Progress | None = None,
  **options: Any,
) -> Direction:
  """Extract a direction from negatives to positives at every block.

  Args:
    model: the model.
    positives, negatives: prompts or chats, paired by position. An answer is a final assistant
      message.
    method: "diff_means", mean(positives) - mean(negatives), from sums on the device;
      "mean_centred", mean(positives) - mean of all classes (Jorgensen et al. 2023); or one of
      `directions.methods`: "pca_diff", "pca_center", "lat", "logistic", "lda".
    site: where to read; at "head_out" every head gets a direction of its own.
    tokens: "last" token of the row; "answer_mean", the mean over the answer's tokens (within an
      answer first, then over answers); or "answer_first", its first token.
    replicates: None for one; S to deal the pairs out in turn; or one label 0 … S - 1 a pair.
    concept: name of the direction.
    store: folder to keep the activations in (`directions.activations`), for the methods that read
      them; with it an interrupted extraction goes on where it was.
    progress: called with the number of prompts done.
    **options: of the method: seed of "lat", c of "logistic".

  Returns:
    A `Direction`: vectors [S, L, D]; `gap_L` the distance of the class means along the vector;
    `reliability_L` from halves (pairs 0, 2, 4, … against 1, 3, 5, …), each made by the method of
    all its pairs at once, when there are at least 4 pairs. Vectors are as the method makes them:
    components are of length 1.

  Raises:
    ValueError: nothing to contrast, unequal numbers, an unknown method, option, site or token
      choice, a chat without an answer where one is needed, too few pairs for the method.
  """
  return extract_each(
    model,
    {concept: (positives, negatives)},
    method=method,
    site=site,
    tokens=tokens,
    replicates=replicates,
    store=store,
    progress=progress,
    **options,
  )[concept]


def extract_each(
  model: Model,
  contrasts: Mapping[str, tuple[Sequence[Prompt], Sequence[Prompt]]],
  *,
  method: str = "diff_means",
  site: str = "resid_post",
  tokens: Tokens = "last",
  replicates: Replicates | Mapping[str, Replicates] = None,
  store: str | Path | None = None,
  progress: Progress | None = None,
  **options: Any,
) -> dict[str, Direction]:
  """Extract a direction from each of several contrasts, in one pass over all their prompts.

  What prompts of different contrasts have in common is then computed once, and there are fewer
  shapes than with a call of `extract` for each.

  Args:
    model: the model.
    contrasts: {concept: (positives, negatives)}.
    replicates: as of `extract`, for all or by concept.
    method, site, tokens, store, progress, **options: see `extract`.

  Returns:
    {concept: its direction}.

  Raises:
    ValueError: as `extract`; or no contrast.
  """
  return extract_by_methods(
    model,
    contrasts,
    {method: options},
    site=site,
    tokens=tokens,
    replicates=replicates,
    store=store,
    progress=progress,
  )[method]


def extract_by_methods(
  model: Model,
  contrasts: Mapping[str, tuple[Sequence[Prompt], Sequence[Prompt]]],
  methods: Mapping[str, Mapping[str, Any]],
  *,
  site: str = "resid_post",
  tokens: Tokens = "last",
  replicates: Replicates | Mapping[str, Replicates] = None,
  halves: Mapping[str, Sequence[int]] | None = None,
  store: str | Path | None = None,
  progress: Progress | None = None,
) -> dict[str, dict[str, Direction]]:
  """Extract directions of several contrasts by several methods, in one pass over the prompts.

  Args:
    model: the model.
    contrasts: {concept: (positives, negatives)}.
    methods: {method: its options}.
    replicates: as of `extract`, for all or by concept.
    halves: by concept, 0 or 1 for each pair: what reliability compares. Pairs of one question
      belong into one half, or the halves agree about the question. Default even and odd pairs.
    site, tokens, store, progress: see `extract`.

  Returns:
    {method: {concept: its direction}}. At a block where a method finds nothing, all activations
    being the same (what enters block 0 at a template's token), the vector is zero.

  Raises:
    ValueError: as `extract`; or no contrast or method.
  """
  chosen = {name: _with_defaults(name, given) for name, given in methods.items()}
  if not chosen:
    raise ValueError("extraction needs at least one method.")
  if tokens not in get_args(Tokens):
    raise ValueError(f"tokens={tokens!r}: use 'last', 'answer_mean' or 'answer_first'.")
  only_means = set(chosen) <= set(MEANS)
  if store is not None and only_means:
    raise ValueError(
      f"{list(chosen)} need sums only; a store is for methods that read activations."
    )
  contents = contents_of(contrasts)
  pairs = pairs_of(contents, replicates, halves)
  for concept, pair in pairs.items():
    few = min(np.bincount(pair.label_N))
    if not only_means and few < _LEAST_PAIRS:
      raise ValueError(f"{concept!r}: {few} pairs in a replicate; {list(chosen)} need 2 at least.")
  prompts = [prompt for sides in contents.values() for side in sides for prompt in side]
  capture = capture_at(site, tokens)
  rows = _encode(model, prompts, tokens)
  if only_means:
    found = from_sums(model, rows, capture, pairs, list(chosen), progress)
  else:
    h = activations(model, prompts, capture, rows=rows, store=store, progress=progress)
    found = _from_activations(model, h, pairs, chosen, site)
  about = {
    "model": model.identity.name,
    "model_hash": model.identity.sha256,
    "model_source": model.identity.source,
    "model_type": json.loads(model.config).get("model_type"),
    "dtype": model.dtype,
    "resid_dtype": model.resid_dtype,
    "system_default": model.chat.system_default,
    "site": site,
    "tokens": tokens,
  }
  hashes = {
    concept: content_hash([[plain_prompt(p) for p in side] for side in sides])
    for concept, sides in contents.items()
  }
  own = {
    concept: {
      "num_pairs": len(pair.label_N),
      "replicates": pair.num_replicates,
      "data_hash": hashes[concept],
    }
    for concept, pair in pairs.items()
  }
  # The centre is of all contrasts, so they are what the vector is made of, too.
  centred = {"mean_centred": {"centred_on": hashes}}
  return {
    method: {
      concept: _direction(
        concept,
        found[method, concept],
        pair,
        site,
        model,
        about | {"method": method, **options, **own[concept], **centred.get(method, {})},
      )
      for concept, pair in pairs.items()
    }
    for method, options in chosen.items()
  }


def _with_defaults(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Return the options of a method, all of them.

  Raises:
    ValueError: an unknown method or option.
  """
  if method not in KNOWN:
    raise ValueError(f"method={method!r}: use one of {list(KNOWN)}.")
  known = dict(METHODS[method].options) if method in METHODS else {}
  unknown = sorted(set(given) - set(known))
  if unknown:
    raise ValueError(f"method {method!r} has no option {unknown}; it has {list(known) or 'none'}.")
  return known | dict(given)


def _encode(model: Model, prompts: Sequence[Prompt], tokens: Tokens) -> list[Row]:
  rows = encode_rows(model, prompts, None)
  bare = [n for n, row in enumerate(rows) if len(row.ids) <= row.prompt_length]
  if tokens != "last" and bare:
    raise ValueError(
      f"prompts {bare[:5]} have no answer; tokens={tokens!r} needs chats that end "
      "with an assistant message."
    )
  return rows


def _from_activations(
  model: Model,
  h: Activations,
  pairs: Mapping[str, Pairs],
  chosen: Mapping[str, Mapping[str, Any]],
  site: str,
) -> dict[tuple[str, str], Found]:
  """Make directions block by block of the activations of all rows."""
  heads = model.arch.num_heads if site == HEAD_SITE else 1
  found: dict[tuple[str, str], list[list[np.ndarray]]] = {}
  gaps: dict[str, list[list[np.ndarray]]] = {}
  for block in range(model.arch.num_blocks):
    sides = {
      concept: tuple(h.block(block, rows).astype(np.float64) for rows in pair.rows)
      for concept, pair in pairs.items()
    }
    parts = {
      concept: [(x_ND[mine], y_ND[mine]) for mine in pairs[concept].subsets]
      for concept, (x_ND, y_ND) in sides.items()
    }
    means = {c: [(x.mean(axis=0), y.mean(axis=0)) for x, y in mine] for c, mine in parts.items()}
    whole = {c: (x_ND.mean(axis=0), y_ND.mean(axis=0)) for c, (x_ND, y_ND) in sides.items()}
    centred = centre(means, whole, {c: pair.num_replicates for c, pair in pairs.items()})
    for concept, mine in parts.items():
      gaps.setdefault(concept, []).append([x - y for x, y in means[concept]])
      for method, options in chosen.items():
        vectors = (
          centred[concept]
          if method == "mean_centred"
          else [_by_head(METHODS[method].make, x, y, heads, options) for x, y in mine]
        )
        found.setdefault((method, concept), []).append(vectors)

  def by_subset(of_blocks: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(of_subset) for of_subset in zip(*of_blocks, strict=True)]

  return {key: Found(by_subset(x), by_subset(gaps[key[1]])) for key, x in found.items()}


def _by_head(
  make: Callable[..., np.ndarray],
  x_ND: np.ndarray,
  y_ND: np.ndarray,
  heads: int,
  options: Mapping[str, Any],
) -> np.ndarray:
  """Make a vector of each head's part; zero where there is nothing to make it of."""

  def vector(x_NH: np.ndarray, y_NH: np.ndarray) -> np.ndarray:
    try:
      return make(x_NH, y_NH, **options)
    except NoComponent:
      return np.zeros(x_NH.shape[1])

  parts = zip(np.split(x_ND, heads, axis=1), np.split(y_ND, heads, axis=1), strict=True)
  return np.concatenate([vector(x_NH, y_NH) for x_NH, y_NH in parts])


def _direction(
  concept: str,
  found: Found,
  pairs: Pairs,
  site: str,
  model: Model,
  provenance: dict[str, Any],
) -> Direction:
  """Make a direction of what a method found."""
  num_heads = model.arch.num_heads if site == HEAD_SITE else None
  replicates = pairs.num_replicates

  def by_head(x_LD: np.ndarray) -> np.ndarray:
    return x_LD if num_heads is None else x_LD.reshape(len(x_LD), num_heads, -1)

  def cosine(a_LD: np.ndarray, b_LD: np.ndarray) -> np.ndarray:
    a, b = by_head(a_LD), by_head(b_LD)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))

  vectors_SLD = np.stack(found.vectors[:replicates])
  mean_LD, gap_LD = vectors_SLD.mean(axis=0), np.mean(found.gaps[:replicates], axis=0)
  reliability_L = None
  with np.errstate(invalid="ignore", divide="ignore"):
    if len(found.vectors) > replicates:
      cos_L = cosine(*found.vectors[replicates:])
      reliability_L = 2 * cos_L / (1 + cos_L)
    norm_L = np.linalg.norm(by_head(mean_LD), axis=-1)
    along_L = np.abs((by_head(mean_LD) * by_head(gap_LD)).sum(-1))
    gap_L = np.where(norm_L > 0, along_L / norm_L, 0.0)
  return Direction(vectors_SLD, concept, site, provenance, gap_L, reliability_L, num_heads)
