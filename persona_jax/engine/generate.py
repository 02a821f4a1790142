"""Generation of a tile of rows, each with its own edits, and of lists of prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from persona_jax.edits.compile import RowEdits, compile_edits
from persona_jax.engine import decode as decoding
from persona_jax.engine.checks import check_lengths, dose_of, problem_of
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import shared_parts
from persona_jax.engine.rows import (
  Row,
  derive_seed,
  plain_prompt,
  row_bucket,
  sampling_keys,
  tiles,
)
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.trace import EditTrace, of_row
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


@dataclasses.dataclass(frozen=True)
class Generation:
  """What one row generated.

  Attributes:
    text: decoded answer without special tokens.
    token_ids: its ids, the stop token included.
    finish_reason: "stop" (a stop token came) or "length" (the budget ended).
    logprobs: log-probability of each id under the model at temperature 1, or None if not asked for.
    tokens_edited: tokens, prompt ones included, on which an edit was on.
    delivered_dose: <realised change, requested change> / ||requested change||^2 over the edited
      tokens, after the cast to the model's dtype; NaN where nothing was requested, infinity where
      the edits made an activation NaN or infinite.
    valid: false if an edit of the row met no token, or if the dose lies outside [.95, 1.05].
    trace: where and how far the row's activations were moved, or None if not asked for.
  """

  text: str
  token_ids: tuple[int, ...]
  finish_reason: str
  logprobs: tuple[float, ...] | None
  tokens_edited: int
  delivered_dose: float
  valid: bool
  trace: EditTrace | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """Decoding settings that all rows of a call share.

  Attributes:
    max_new_tokens: budget, at least 1.
    sampling: how a token is chosen.
    stop_ids: ids that end a row.
    logprobs: whether log-probabilities are computed.
    trace: whether the trace of edits is kept.
  """

  max_new_tokens: int
  sampling: Sampling = Sampling()
  stop_ids: tuple[int, ...] = ()
  logprobs: bool = False
  trace: bool = False

  def __post_init__(self) -> None:
    if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
      raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: give an int of at least 1.")


def generate_tile(
  model: "Model", rows: Sequence[Row], settings: Settings, *, sharing: Sharing = ALL_SHARED
) -> list[Generation]:
  """Generate for the rows of one tile, in their order."""
  num_rows = row_bucket(len(rows))
  steps = settings.max_new_tokens
  tree = Tree(rows, [len(row.ids) - 1 for row in rows], sharing=sharing)
  prefix = prefill(model, tree, trace=settings.trace)
  shared, layouts = shared_parts(
    prefix.waves,
    range(model.arch.num_blocks),
    tree.order,
    num_rows,
    copies=not sharing.attention,
  )
  filled = [rows[n] for n in tree.order] + [rows[0]] * (num_rows - len(rows))
  table = (
    compile_edits(model, [row.edits for row in filled]) if any(r.edits for r in rows) else None
  )
  last_B = np.asarray([len(row.ids) - 1 for row in filled], np.int32)
  start = decoding.Start(
    token_B=jnp.asarray([row.ids[-1] for row in filled], jnp.int32),
    role_B=jnp.asarray([row.roles[-1] for row in filled], jnp.int32),
    position_B=jnp.asarray(last_B),
    offset_B=jnp.asarray(last_B - [row.prompt_length for row in filled], jnp.int32),
    thinking_B=jnp.asarray([row.opens_thought for row in filled]),
    done_B=jnp.arange(num_rows) >= len(rows),
    key_B=sampling_keys([row.seed for row in filled]),
  )
  out = decoding.decode(
    model.params,
    shared,
    layouts,
    start,
    table,
    jnp.asarray(settings.stop_ids or (-1,), jnp.int32),
    jnp.asarray(model.think_ids, jnp.int32),
    arch=model.arch,
    sampling=settings.sampling,
    num_steps=steps,
    with_logprobs=settings.logprobs,
    resid_dtype=model.resid_dtype,
    fused=model.fused,
    trace=settings.trace,
  )
  ids_BN, length_B = np.asarray(out.ids_BN), np.asarray(out.length_B)
  logprob_BN = None if out.logprob_BN is None else np.asarray(out.logprob_BN)
  place_R = np.argsort(tree.order)  # where each row stands in the batch
  realised_R = np.asarray(out.realised_B)[place_R] + prefix.realised_R
  requested_R = np.asarray(out.requested_B)[place_R] + prefix.requested_R
  edited_R = np.asarray(out.edited_B)[place_R] + prefix.edited_R
  changes = {place: np.asarray(change_BN) for place, change_BN in out.changes.items()}
  generations = []
  for n, (row, b) in enumerate(zip(rows, place_R, strict=True)):
    ids = tuple(ids_BN[b, : length_B[b]].tolist())
    dose = dose_of(realised_R[n], requested_R[n])
    trace = None
    if settings.trace:
      before = {place: by_row[n] for place, by_row in prefix.changes.items()}
      after = {place: change_BN[b] for place, change_BN in changes.items()}
      trace = of_row(row, before, after, len(ids))
    generations.append(
      Generation(
        text=model.tokenizer.decode(list(ids)),
        token_ids=ids,
        finish_reason="stop" if ids[-1] in settings.stop_ids else "length",
        logprobs=None if logprob_BN is None else tuple(logprob_BN[b, : len(ids)].tolist()),
        tokens_edited=int(edited_R[n]),
        delivered_dose=dose,
        valid=not problem_of(row, row.answer_roles(ids[:-1], model.think_ids), dose),
        trace=trace,
      )
    )
  return generations


def generate(
  model: "Model",
  prompts: Sequence[Prompt],
  settings: Settings,
  *,
  edits: Sequence[RowEdits] | None = None,
  seed: int | Sequence[int] = 0,
  progress: Callable[[int], None] | None = None,
) -> list[Generation]:
  """Generate an answer for each prompt; see `Model.generate`.

  A row's noise seed is `derive_seed(seed, plain_prompt(prompt))`.
  """
  seeds = [seed] * len(prompts) if isinstance(seed, (int, np.integer)) else list(seed)
  if len(seeds) != len(prompts):
    raise ValueError(
      f"seed has {len(seeds)} items for {len(prompts)} prompts; give one int or one a row."
    )
  rows = encode_rows(model, prompts, edits)
  if not rows:
    return []
  check_lengths(model, rows, settings.max_new_tokens)
  rows = [
    dataclasses.replace(row, seed=derive_seed(int(s), plain_prompt(p)))
    for row, s, p in zip(rows, seeds, prompts, strict=True)
  ]
  out: list[Generation | None] = [None] * len(rows)
  for tile in tiles(rows):
    generations = generate_tile(model, [rows[n] for n in tile], settings)
    for n, generation in zip(tile, generations, strict=True):
      out[n] = generation
    if progress is not None:
      progress(len(tile))
  return [generation for generation in out if generation is not None]
