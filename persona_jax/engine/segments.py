"""Decoding from the host's side: segments, longer caches, fewer rows; see `engine.decode`."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.compile import compile_edits
from persona_jax.edits.table import Where
from persona_jax.engine import decode
from persona_jax.engine.need import shape_of
from persona_jax.engine.prefix import Wave, fewer_parts, merged, shared_parts
from persona_jax.engine.programs import PROGRAMS, Dry, Runner
from persona_jax.engine.rows import Row, key_words, levels, row_bucket
from persona_jax.engine.settings import Settings
from persona_jax.engine.stops import stop_length

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

# Slots of the first segment; each time they are full there are twice as many. A step reads all
# slots, so half of them are read in vain on average, instead of what is left of the budget.
FIRST_SLOTS = 32
# Steps of one call at most, so that a run of a slow device can be interrupted.
SEGMENT_STEPS = 64
# Steps after which the host looks for stop texts, which the device does not know.
LOOK_STEPS = 16
# Smaller budgets do not wait long for a program, so none is compiled ahead.
AHEAD_STEPS = 32
# Rows that are done are left out only if at least so many steps may still come: a program for a
# smaller batch takes seconds to compile, and saves a sixth of the steps that it runs.
LEAVE_STEPS = 32


@dataclasses.dataclass
class DecodeWork:
  """What decoding took.

  Attributes:
    steps: passes of a batch through the model.
    row_steps: rows of the batch, summed over steps.
    used_row_steps: those of which a row has a token. What follows a stop text until the host has
      found it, up to `LOOK_STEPS` steps, is none.
    segments: (rows, slots, steps) of each segment.
  """

  steps: int = 0
  row_steps: int = 0
  used_row_steps: int = 0
  segments: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

  @property
  def wasted(self) -> float:
    """Share of the row-steps that served no row."""
    return 1 - self.used_row_steps / self.row_steps if self.row_steps else 0.0


@dataclasses.dataclass
class Answer:
  """What a row generated.

  Attributes:
    ids: tokens.
    stopped: whether a stop token or text ended it.
    logprobs: of the tokens, or None.
    realised, requested: delivery of edits on the fed tokens.
    edited: fed tokens on which an edit was on.
    changes: by place, how far each fed token was moved, if traced.
  """

  ids: tuple[int, ...]
  stopped: bool
  logprobs: tuple[float, ...] | None
  realised: float
  requested: float
  edited: int
  changes: dict[Where, np.ndarray]


def decode_rows(
  model: "Model",
  rows: Sequence[Row],
  waves: list[Wave],
  settings: Settings,
  *,
  order: Sequence[int],
  copies: bool = False,
  run: Runner = PROGRAMS,
  lengths: Sequence[int] | None = None,
  every_size: bool = False,
) -> tuple[list[Answer | None], DecodeWork]:
  """Generate the answers of rows whose prompts, but for their last tokens, are computed.

  Args:
    model: the model.
    rows: the rows.
    waves: keys and values of their prompts (`engine.prefix.Prefix.waves`); emptied, so that while
      decoding only what the rows read is held.
    settings: how to decode.
    order: the rows' numbers as they are to stand in the batch.
    copies: whether each row is to have a copy of its prompt's keys and values.
    run: calls the device; a dry one gives no answers.
    lengths: for a dry run, how many tokens each row generates; default all up to the budget.
    every_size: for a dry run, whether to note the programs of smaller batches too.

  Returns:
    The answers by row, and what they took.
  """
  batch = _Batch(model, rows, waves, settings, order, copies=copies, run=run, lengths=lengths)
  while batch.goes_on:
    batch.compile_ahead()
    if every_size:
      batch.note_smaller()
    batch.segment()
    batch.keep_what_is_needed()
  batch.collect(batch.numbers >= 0)
  return batch.answers, batch.work


class _Batch:
  """The rows that are being decoded, and the arrays that belong to them.

  Attributes:
    numbers: number of the row at each place of the batch; -1 for padding and rows left out.
    answers: of the rows that are done.
    work: what was done.
  """

  def __init__(
    self,
    model: "Model",
    rows: Sequence[Row],
    waves: list[Wave],
    settings: Settings,
    order: Sequence[int],
    *,
    copies: bool,
    run: Runner,
    lengths: Sequence[int] | None,
  ):
    self._model, self._rows, self._settings = model, list(rows), settings
    self._run = model.runner(run)
    self._is_live = run is PROGRAMS and model.mesh is None
    self._lengths = [settings.max_new_tokens] * len(rows) if lengths is None else list(lengths)
    self.answers: list[Answer | None] = [None] * len(rows)
    self.work = DecodeWork()

    self._levels = levels(row_bucket(len(rows)))
    size = next(level for level in reversed(self._levels) if level >= len(rows))
    self.numbers = np.asarray([*order, *[-1] * (size - len(rows))], int)
    blocks = range(model.arch.num_blocks)
    if not copies:
      waves = merged(waves, size * min(FIRST_SLOTS, settings.max_new_tokens), order, run=self._run)
    self._shared, self._layouts = shared_parts(
      waves, blocks, order, size, copies=copies, run=self._run
    )
    filled = [rows[n] for n in order] + [rows[0]] * (size - len(rows))
    edited = any(row.edits for row in rows)
    self._edits = compile_edits(model, [row.edits for row in filled]) if edited else None
    last_B = np.asarray([len(row.ids) - 1 for row in filled], np.int32)
    # NumPy's arrays: they go to the device with the call.
    start: dict[str, Any] = {
      "token_B": np.asarray([row.ids[-1] for row in filled], np.int32),
      "role_B": np.asarray([row.roles[-1] for row in filled], np.int32),
      "position_B": last_B,
      "offset_B": last_B - np.asarray([row.prompt_length for row in filled], np.int32),
      "thinking_B": np.asarray([row.opens_thought for row in filled]),
      "after_B": np.asarray([row.after_thought_T[-1] for row in filled]),
      "key_B2": key_words([row.seed for row in filled]),
    }
    self._start = decode.Start(**start)
    self._slots = min(FIRST_SLOTS, settings.max_new_tokens)
    self._step = 0
    self._done = self.numbers < 0
    self._state = self._run(
      "begin decoding",
      decode.begin,
      self._start,
      self._done,
      arch=model.arch,
      slots=self._slots,
      dtype=decode.cache_dtype(model),
      places=tuple(self._edits.sites) if settings.trace and self._edits is not None else (),
      with_logprobs=settings.logprobs,
    )

  @property
  def goes_on(self) -> bool:
    """Whether a row is not done."""
    return self._step < self._settings.max_new_tokens and not self._done.all()

  @property
  def _next_level(self) -> int:
    """The next smaller size, 0 for none."""
    size = len(self.numbers)
    return next((level for level in self._levels if level < size), 0)

  def _may_leave(self, step: int) -> bool:
    """Whether rows that are done at a step are left out."""
    return self._settings.max_new_tokens - step >= LEAVE_STEPS

  @property
  def _can_end(self) -> bool:
    """Whether rows may be done before their budget is."""
    return bool(self._settings.stop_ids or self._settings.stop_texts)

  def segment(self) -> None:
    """Run until the slots are full, the host must look, or few enough rows are left."""
    most = LOOK_STEPS if self._settings.stop_texts else SEGMENT_STEPS
    until = min(self._slots, self._step + most)
    first, live = self._step, int((~self._done).sum())
    leave = self._next_level if self._may_leave(first) else 0
    self._call(until, leave)
    if self._run.is_dry:
      self._step, used = self._foretell(until, leave)
    else:
      self._step, self._done = int(self._state.step), np.asarray(self._state.done_B)
      # A row is live up to the step of its stop token.
      length_B = np.asarray(self._state.length_B)
      used = int((length_B[self.numbers >= 0] - first).clip(0).sum())
    steps = self._step - first
    self.work.steps += steps
    self.work.row_steps += steps * len(self.numbers)
    self.work.used_row_steps += used
    self.work.segments.append((len(self.numbers), self._slots, steps))
    assert steps > 0 or live == 0

  def _call(self, until: int, leave: int) -> None:
    model, settings = self._model, self._settings
    self._state = self._run(
      "decode",
      decode.segment,
      model.params,
      self._shared,
      self._layouts,
      self._start,
      self._edits,
      self._state,
      np.int32(until),
      np.int32(leave),
      np.asarray(settings.stop_ids or (-1,), np.int32),
      np.asarray(model.think_ids, np.int32),
      arch=model.arch,
      sampling=settings.sampling,
      resid_dtype=model.resid_dtype,
      fused=model.fused,
      trace=settings.trace,
    )

  def _foretell(self, until: int, leave: int) -> tuple[int, int]:
    """Return the step at which a segment would end, and its used row-steps."""
    length_B = np.asarray([0 if n < 0 else self._lengths[n] for n in self.numbers])
    step = self._step
    while step < until and (length_B > step).sum() > leave:
      step += 1
    self._done = length_B <= step
    return step, int((length_B - self._step).clip(0, step - self._step).sum())

  def keep_what_is_needed(self) -> None:
    """Look for stop texts, leave out rows that are done, make room for more tokens."""
    if self._settings.stop_texts and not self._run.is_dry:
      self._look_for_stop_texts()
    if not self.goes_on:
      return
    live = int((~self._done).sum())
    fits = [level for level in self._levels if level >= live]
    if fits and fits[-1] < len(self.numbers) and self._may_leave(self._step):
      self.collect(self._done & (self.numbers >= 0))
      self._leave_out(fits[-1])
    if self._step == self._slots:
      self._lengthen()

  def _lengthen(self) -> None:
    self._slots = min(2 * self._slots, self._settings.max_new_tokens)
    self._state = self._run("lengthen", decode.lengthen, self._state, slots=self._slots)

  def _leave_out(self, size: int) -> None:
    """Keep the rows that are not done, in a batch of `size`."""
    live_B = np.flatnonzero(~self._done)
    index_B = np.append(live_B, np.full(size - len(live_B), live_B[0] if len(live_B) else 0))
    old_size, num_live = len(self.numbers), len(live_B)
    self.numbers = np.where(np.arange(size) < num_live, self.numbers[index_B], -1)
    self._done = self.numbers < 0
    self._shared, self._layouts = fewer_parts(
      self._shared, self._layouts, old_size, index_B, num_live, run=self._run
    )
    self._start, self._edits, self._state = self._run(
      "leave out",
      decode.leave_out,
      self._start,
      self._edits,
      self._state,
      index_B.astype(np.int32),
      self._done,
    )

  def _look_for_stop_texts(self) -> None:
    ids_BS = np.asarray(self._state.ids_BS)
    found = self._done.copy()
    for b in np.flatnonzero(~self._done):
      ids = ids_BS[b, : self._step].tolist()
      found[b] = stop_length(self._model.tokenizer, ids, self._settings.stop_texts) is not None
    if (found != self._done).any():
      self._done = found
      self._state = self._state._replace(done_B=jnp.asarray(found))

  def collect(self, which_B: np.ndarray) -> None:
    """Take the answers of rows to the host."""
    if self._run.is_dry or not which_B.any():
      return
    state, settings = self._state, self._settings
    length_B, ids_BS = np.asarray(state.length_B), np.asarray(state.ids_BS)
    logprob_BS = None if state.logprob_BS is None else np.asarray(state.logprob_BS)
    realised_BS, requested_BS, edited_BS = (
      np.asarray(x) for x in (state.realised_BS, state.requested_BS, state.edited_BS)
    )
    changes = {place: np.asarray(change_BS) for place, change_BS in state.changes.items()}
    for b in np.flatnonzero(which_B):
      n = int(length_B[b])
      ids = tuple(ids_BS[b, :n].tolist())
      stopped = ids[-1] in settings.stop_ids
      if settings.stop_texts:
        cut = stop_length(self._model.tokenizer, ids, settings.stop_texts)
        stopped |= cut is not None
        if cut is not None:
          self.work.used_row_steps -= n - cut
          n = cut
        ids = ids[:n]
      self.answers[self.numbers[b]] = Answer(
        ids,
        stopped,
        None if logprob_BS is None else tuple(logprob_BS[b, :n].tolist()),
        float(realised_BS[b, :n].sum(dtype=np.float64)),
        float(requested_BS[b, :n].sum(dtype=np.float64)),
        int(edited_BS[b, :n].sum()),
        {place: change_BS[b, :n] for place, change_BS in changes.items()},
      )

  def compile_ahead(self) -> None:
    """Have the programs compiled in the background that are likely to be needed next."""
    if not self._is_live or self._settings.max_new_tokens <= AHEAD_STEPS:
      return
    dry, steps = Dry(PROGRAMS), []
    # Copies are taken here, for what follows changes this batch.
    if self._slots < self._settings.max_new_tokens:
      steps.append(self._next(dry).lengthen_and_call)
    if self._can_end and self._next_level and self._may_leave(self._slots):
      leave = self._next(dry).leave_out_and_call
      steps.append(functools.partial(leave, self._next_level))

    def needed() -> Dry:
      for step in steps:
        step()
      return dry

    PROGRAMS.prepare(needed)

  def note_smaller(self) -> None:
    """Go dry through a step of each smaller batch that can be left if answers end early."""
    if self._can_end and self._may_leave(0):
      for size in self._levels:
        if size < len(self.numbers):
          self._next(self._run).leave_out_and_call(size)

  def _next(self, dry: Runner) -> "_Batch":
    """Return a batch like this one that runs dry.

    It has shapes in place of arrays: while it waits for its turn in the background this one goes
    on, and what it has let go must not be kept.
    """
    other = copy.copy(self)
    other._run = self._model.runner(dry)
    other._shared, other._start, other._edits, other._state = jax.tree.map(
      shape_of, (self._shared, self._start, self._edits, self._state)
    )
    return other

  def lengthen_and_call(self) -> None:
    self._lengthen()
    self._call(0, 0)

  def leave_out_and_call(self, size: int) -> None:
    self._done = np.arange(len(self.numbers)) >= size
    self._leave_out(size)
    self._call(0, 0)
