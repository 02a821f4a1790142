"""Generation of a tile of rows, each with its own edits, and of lists of prompts."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized
from typing import TYPE_CHECKING

from persona_jax.edits.compile import RowEdits
from persona_jax.engine.checks import as_int, check_lengths, dose_of, problem_of
from persona_jax.engine.encode import check_prompts, encode_rows
from persona_jax.engine.halving import Halving
from persona_jax.engine.memory import does_not_fit
from persona_jax.engine.need import Need
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import Prefix
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.rows import Row, derive_seed, plain_prompt
from persona_jax.engine.segments import AHEAD_STEPS, Answer, DecodeWork, decode_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.stops import stop_place
from persona_jax.engine.tile_plan import cut, plan_tile
from persona_jax.engine.trace import EditTrace, of_row
from persona_jax.engine.tree import ALL_SHARED, Sharing, Tree
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


@dataclasses.dataclass(frozen=True)
class Generation:
  """What one row generated.

  Attributes:
    text: decoded answer without special tokens, up to a stop text.
    token_ids: its ids; the stop token, or the last token of a stop text, included.
    finish_reason: "stop" (a stop token or text came) or "length" (the budget ended).
    logprobs: log-probability of each id (in nats) under the model at temperature 1, or None if not
      asked for.
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
class TileWork:
  """What a tile took.

  Attributes:
    passes: times that a prompt's token was sent through a block.
    padded_passes: the same with padding.
    decoding: steps of decoding.
  """

  passes: int
  padded_passes: int
  decoding: DecodeWork


def generate_tile(
  model: "Model", rows: Sequence[Row], settings: Settings, *, sharing: Sharing = ALL_SHARED
) -> list[Generation]:
  """Generate for the rows of one tile, in their order."""
  return run_tile(model, rows, settings, sharing=sharing)[0]


def run_tile(
  model: "Model", rows: Sequence[Row], settings: Settings, *, sharing: Sharing = ALL_SHARED
) -> tuple[list[Generation], TileWork]:
  """Generate for the rows of one tile, in their order; also return what it took."""
  tree = Tree(rows, [len(row.ids) - 1 for row in rows], sharing=sharing)
  prefix = prefill(model, tree, trace=settings.trace)
  # Empties the waves: what no row reads must not be held while decoding.
  answers, decoding = decode_rows(
    model, rows, prefix.waves, settings, order=tree.order, copies=not sharing.attention
  )
  work = TileWork(prefix.passes, prefix.padded_passes, decoding)
  return [
    _generation(model, row, answer, settings, prefix, n)
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True))
  ], work


def run_tiles(
  model: "Model",
  rows: Sequence[Row],
  settings: Settings,
  tiled: Sequence[list[int]],
  *,
  names: Sequence[object] | None = None,
) -> Iterator[tuple[list[int], list[Generation]]]:
  """Generate tile after tile; yield row numbers and their generations.

  The next tile's programs are compiled while one runs. A tile that does not fit into memory after
  all is run in halves, with a warning.

  `names` is what messages call the rows' prompts; default their numbers.

  Raises:
    MemoryError: a row by itself does not fit; the message names it and what it needs.
  """

  def single(number: int) -> str:
    peak = plan_tile(model, rows, [number], settings).peak_bytes
    advice = f"a shorter prompt, max_new_tokens below {settings.max_new_tokens},"
    name = f"prompt {number if names is None else names[number]}"
    return does_not_fit(name, len(rows[number].ids), peak, model.device, advice)

  def run(numbers: list[int]) -> list[Generation]:
    return generate_tile(model, [rows[n] for n in numbers], settings)

  def needed(tile: Sequence[int]) -> tuple[Need, ...]:
    return plan_tile(model, rows, tile, settings, table=PROGRAMS).needs

  in_parts = Halving(run, single)
  for i, tile in enumerate(tiled):
    if model.mesh is None and settings.max_new_tokens > AHEAD_STEPS:
      for soon in tiled[i + (i > 0) : i + 2]:  # this one too if it is the first
        PROGRAMS.prepare(functools.partial(needed, in_parts.cut(soon)[0]))
    yield tile, list(itertools.chain.from_iterable(in_parts(tile)))


def _generation(
  model: "Model", row: Row, answer: Answer | None, settings: Settings, prefix: Prefix, n: int
) -> Generation:
  """Put together what the prompt and the answer of a row gave."""
  assert answer is not None
  text = model.tokenizer.decode(list(answer.ids))
  text = text[: stop_place(text, settings.stop_texts)]
  done = prefix.delivered
  dose = dose_of(done.realised_R[n] + answer.realised, done.requested_R[n] + answer.requested)
  trace = None
  if settings.trace:
    before = {place: by_row[n] for place, by_row in done.changes.items()}
    trace = of_row(row, before, answer.changes, len(answer.ids))
  return Generation(
    text=text,
    token_ids=answer.ids,
    finish_reason="stop" if answer.stopped else "length",
    logprobs=answer.logprobs,
    tokens_edited=int(done.edited_R[n]) + answer.edited,
    delivered_dose=dose,
    valid=not _problem(model, row, answer.ids, dose),
    trace=trace,
  )


def _problem(model: "Model", row: Row, ids: Sequence[int], dose: float) -> str:
  """Say what a row with this answer did not get of what it asked for; see `problem_of`."""
  return problem_of(row, row.answer_roles(ids[:-1], model.think_ids), dose)


def _warn_of_invalid(model: "Model", rows: Sequence[Row], done: Sequence[Generation]) -> None:
  """Warn, once a call, of rows that did not get the edits that they asked for."""
  invalid = [n for n, generation in enumerate(done) if not generation.valid]
  if not invalid:
    return
  first = invalid[0]
  problem = _problem(model, rows[first], done[first].token_ids, done[first].delivered_dose)
  warnings.warn(
    f"{len(invalid)} of {len(done)} rows did not get the edits that they asked for "
    f"(Generation.valid is False); the first, prompt {first}: {problem}.",
    stacklevel=4,  # who called Model.generate
  )


def _seeds(seed: int | Sequence[int], num_rows: int) -> list[int]:
  """Return the seed of each row.

  Raises:
    ValueError: it is neither an integer nor a list of one a row.
  """
  if isinstance(seed, (Mapping, Set)):
    raise ValueError(f"seed={seed!r}: give an integer, or a list of one a row.")
  if isinstance(seed, Sized) and not isinstance(seed, str) and getattr(seed, "ndim", 1) > 0:
    if len(seed) != num_rows:
      raise ValueError(
        f"seed has {len(seed)} items for {num_rows} prompts; give one int or one a row."
      )
    return [as_int(f"seed of prompt {n}", s) for n, s in enumerate(seed)]
  return [as_int("seed", seed)] * num_rows


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
  check_prompts(prompts)
  seeds = _seeds(seed, len(prompts))
  rows = encode_rows(model, prompts, edits)
  if not rows:
    return []
  check_lengths(model, rows, settings.max_new_tokens)
  rows = [
    dataclasses.replace(row, seed=derive_seed(s, plain_prompt(p)))
    for row, s, p in zip(rows, seeds, prompts, strict=True)
  ]
  out: list[Generation | None] = [None] * len(rows)
  tiled = cut(model, rows, settings, table=None if model.mesh else PROGRAMS)
  for tile, generations in run_tiles(model, rows, settings, tiled):
    for n, generation in zip(tile, generations, strict=True):
      out[n] = generation
    if progress is not None:
      progress(len(tile))
  done = [generation for generation in out if generation is not None]
  assert len(done) == len(rows), "a row is in no tile"
  _warn_of_invalid(model, rows, done)
  return done
