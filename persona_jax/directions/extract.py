"""Directions from contrastive prompts.

Difference of means (Rimsky et al. 2024; Arditi et al. 2024).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.directions.direction import Direction
from persona_jax.edits.table import HEAD_SITE
from persona_jax.edits.window import Window
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model, Progress
from persona_jax.engine.rows import Row, plain_prompt
from persona_jax.personas.chat import Prompt

Tokens = Literal["last", "answer_mean", "answer_first"]

_WINDOWS = {"answer_mean": Window(start=0), "answer_first": Window(start=0, stop=1)}


def _group_sums(
  model: Model,
  rows: Sequence[Row],
  capture: Capture,
  group_N: np.ndarray,
  progress: Progress | None,
) -> np.ndarray:
  """Sum activations within groups of rows, on the device; return float64 [G, L, D]."""
  num_groups, arch = int(group_N.max()) + 1, model.arch
  sums_GLD = np.zeros((num_groups, arch.num_blocks, arch.site_width(capture.sites[0])))
  for tile in batches(model, rows, capture):
    h_LBD = [tile.reads[capture.sites[0], block] for block in range(arch.num_blocks)]
    group_B = np.full(len(h_LBD[0]), num_groups, np.int32)  # padding is in no group
    group_B[: len(tile.numbers)] = group_N[tile.numbers]
    # Only the sums of a tile leave the device; tiles are added in float64.
    sums_GLD += np.asarray(tile.run("sum groups", _sum_groups, h_LBD, group_B, groups=num_groups))
    if progress is not None:
      progress(len(tile.numbers))
  return sums_GLD


@functools.partial(jax.jit, static_argnames=("groups",))
def _sum_groups(h_LBD: list[jax.Array], group_B: jax.Array, *, groups: int) -> jax.Array:
  """Sum rows within groups at every block, [G, L, D]."""
  return jnp.stack([jax.ops.segment_sum(h_BD, group_B, groups) for h_BD in h_LBD], axis=1)


def _encode(model: Model, prompts: Sequence[Prompt], tokens: Tokens) -> list[Row]:
  rows = encode_rows(model, prompts, None)
  bare = [n for n, row in enumerate(rows) if len(row.ids) <= row.prompt_length]
  if tokens != "last" and bare:
    raise ValueError(
      f"prompts {bare[:5]} have no answer; tokens={tokens!r} needs chats that end "
      "with an assistant message."
    )
  return rows


def _labels(replicates: int | Sequence[int] | None, n: int) -> np.ndarray:
  """Return the replicate of each pair, 0 … S - 1."""
  if replicates is None:
    return np.zeros(n, int)
  if isinstance(replicates, (int, np.integer)):
    if not 1 <= replicates <= n:
      raise ValueError(
        f"replicates={replicates}: give 1 to {n} (the number of pairs), or a label for each pair."
      )
    return np.arange(n) % int(replicates)
  labels = np.asarray(replicates)
  if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"replicates: give one int label for each of the {n} pairs; got shape {labels.shape}."
    )
  present = np.unique(labels)
  if not np.array_equal(present, np.arange(present.size)):
    raise ValueError(
      f"replicates: labels must be 0 … S - 1 with none left out; got {present.tolist()}."
    )
  return labels


def extract(
  model: Model,
  positives: Sequence[Prompt],
  negatives: Sequence[Prompt],
  *,
  method: Literal["diff_means"] = "diff_means",
  site: str = "resid_post",
  tokens: Tokens = "last",
  replicates: int | Sequence[int] | None = None,
  concept: str = "direction",
  progress: Progress | None = None,
) -> Direction:
  """Extract mean(positives) - mean(negatives) at every block.

  Args:
    model: the model.
    positives, negatives: prompts or chats, paired by position. An answer is a final assistant
      message.
    method: "diff_means".
    site: where to read; at "head_out" every head gets a direction of its own.
    tokens: "last" token of the row; "answer_mean", the mean over the answer's tokens (within an
      answer first, then over answers); or "answer_first", its first token.
    replicates: None for one; S to deal the pairs out in turn; or one label 0 … S - 1 a pair.
    concept: name of the direction.
    progress: called with the number of prompts done.

  Returns:
    A `Direction`: vectors [S, L, D]; `gap_L` the distance of the class means; `reliability_L` from
    halves (pairs 0, 2, 4, … against 1, 3, 5, …) when there are at least 4 pairs.

  Raises:
    ValueError: nothing to contrast, unequal numbers, an unknown method, site or token choice, a
      chat without an answer where one is needed.
  """
  return extract_each(
    model,
    {concept: (positives, negatives)},
    method=method,
    site=site,
    tokens=tokens,
    replicates=replicates,
    progress=progress,
  )[concept]


def extract_each(
  model: Model,
  contrasts: Mapping[str, tuple[Sequence[Prompt], Sequence[Prompt]]],
  *,
  method: Literal["diff_means"] = "diff_means",
  site: str = "resid_post",
  tokens: Tokens = "last",
  replicates: int | Sequence[int] | None = None,
  progress: Progress | None = None,
) -> dict[str, Direction]:
  """Extract a direction from each of several contrasts, in one pass over all their prompts.

  What prompts of different contrasts have in common is then computed once, and there are fewer
  shapes than with a call of `extract` for each.

  Args:
    model: the model.
    contrasts: {concept: (positives, negatives)}.
    method, site, tokens, replicates, progress: see `extract`.

  Returns:
    {concept: its direction}.

  Raises:
    ValueError: as `extract`; or no contrast.
  """
  if method != "diff_means":
    raise ValueError(f"method={method!r}: 'diff_means' is the method there is.")
  if tokens not in ("last", *_WINDOWS):
    raise ValueError(f"tokens={tokens!r}: use 'last', 'answer_mean' or 'answer_first'.")
  if not contrasts:
    raise ValueError("extract_each needs at least one contrast.")
  prompts: list[Prompt] = []
  pairs, groups_of, group_N = {}, {}, np.zeros(0, int)
  for concept, sides in contrasts.items():
    positives, negatives = pairs[concept] = tuple(map(list, sides))
    if not positives or len(positives) != len(negatives):
      raise ValueError(
        f"{len(positives)} positives and {len(negatives)} negatives; give as many of each, "
        "at least one."
      )
    n = len(positives)
    own_N = _labels(replicates, n) * 2 + np.arange(n) % 2  # a group is a half of a replicate
    first, count_G = int(group_N.max(initial=-1)) + 1, np.bincount(own_N)
    group_N = np.concatenate([group_N, first + own_N, first + len(count_G) + own_N])
    groups_of[concept] = first, count_G
    prompts += [*positives, *negatives]
  capture = (
    Capture((site,), reduce="last")
    if tokens == "last"
    else Capture((site,), reduce="mean", tokens=_WINDOWS[tokens])
  )
  sums_GLD = _group_sums(model, _encode(model, prompts, tokens), capture, group_N, progress)
  found = {}
  for concept, (positives, negatives) in pairs.items():
    first, count_G = groups_of[concept]
    pos_GLD, neg_GLD = np.split(sums_GLD[first : first + 2 * len(count_G)], 2)
    provenance = {
      "model": model.identity.name,
      "model_hash": model.identity.sha256,
      "model_source": model.identity.source,
      "dtype": model.dtype,
      "system_default": model.chat.system_default,
      "method": method,
      "site": site,
      "tokens": tokens,
      "num_pairs": len(positives),
      "replicates": -(-len(count_G) // 2),
      "data_hash": content_hash([[plain_prompt(p) for p in ps] for ps in (positives, negatives)]),
    }
    num_heads = model.arch.num_heads if site == HEAD_SITE else None
    found[concept] = _difference(concept, pos_GLD, neg_GLD, count_G, site, num_heads, provenance)
  return found


def _difference(
  concept: str,
  pos_GLD: np.ndarray,
  neg_GLD: np.ndarray,
  count_G: np.ndarray,
  site: str,
  num_heads: int | None,
  provenance: dict[str, Any],
) -> Direction:
  """Make a direction of the sums over groups of pairs: the halves of each replicate in turn."""
  groups = np.arange(len(count_G))

  def contrast(chosen_G: np.ndarray) -> np.ndarray:
    """Return the difference of means over some groups, [L, D]."""
    return (pos_GLD[chosen_G] - neg_GLD[chosen_G]).sum(axis=0) / count_G[chosen_G].sum()

  def by_head(x_LD: np.ndarray) -> np.ndarray:
    return x_LD if num_heads is None else x_LD.reshape(len(x_LD), num_heads, -1)

  vectors_SLD = np.stack([contrast(groups // 2 == s) for s in range(provenance["replicates"])])
  reliability_L = None
  if provenance["num_pairs"] >= 4:
    even, odd = contrast(groups % 2 == 0), contrast(groups % 2 == 1)
    even, odd = by_head(even), by_head(odd)
    with np.errstate(invalid="ignore", divide="ignore"):
      cos_L = (even * odd).sum(-1) / (np.linalg.norm(even, axis=-1) * np.linalg.norm(odd, axis=-1))
      reliability_L = 2 * cos_L / (1 + cos_L)
  gap_L = np.linalg.norm(by_head(vectors_SLD.mean(axis=0)), axis=-1)
  return Direction(vectors_SLD, concept, site, provenance, gap_L, reliability_L, num_heads)
