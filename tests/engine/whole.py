"""Rows computed whole: one padded batch of prompts and answers through `pj.forward`.

It shares nothing, has no cache, and is compiled once. What the engine computes beside it is noted.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import decode
from persona_jax.engine.generate import Generation, TileWork, run_tile
from persona_jax.engine.rows import Row
from persona_jax.engine.settings import Settings
from persona_jax.engine.tree import Tree


def whole_pass(
  model: pj.Model,
  rows: Sequence[Row],
  answers: Sequence[Sequence[int]],
  capture: pj.Capture | None = None,
) -> tuple[list[np.ndarray], dict]:
  """Return the logits by which each row's answer is chosen, [T, V], and what the capture reads."""
  whole = [(*row.ids, *answer) for row, answer in zip(rows, answers, strict=True)]
  ids_BT, roles_BT = np.zeros((2, len(rows), max(map(len, whole))), np.int32)
  for b, (row, answer) in enumerate(zip(rows, answers, strict=True)):
    ids_BT[b, : len(whole[b])] = whole[b]
    roles_BT[b, : len(whole[b])] = (*row.roles, *row.answer_roles(answer, model.think_ids))
  edits = [list(row.edits) for row in rows]
  logits_BTV, reads = pj.forward(
    model,
    ids_BT,
    pj.compile_edits(model, edits) if any(edits) else None,
    capture,
    lengths_B=np.asarray(list(map(len, whole))),
    prompt_lengths_B=np.asarray([row.prompt_length for row in rows]),
    roles_BT=roles_BT,
  )
  logits_BTV = np.asarray(logits_BTV)
  first = [len(row.ids) - 1 for row in rows]
  return [
    logits_BTV[b, at : at + len(answer)]
    for b, (at, answer) in enumerate(zip(first, answers, strict=True))
  ], reads


def whole_logprobs(
  model: pj.Model, rows: Sequence[Row], answers: Sequence[Sequence[int]]
) -> list[np.ndarray]:
  """Return each row's log-probabilities of its answer's tokens."""
  logits, _ = whole_pass(model, rows, answers)
  return [
    np.asarray(jax.nn.log_softmax(logits_TV))[np.arange(len(answer)), list(answer)]
    for logits_TV, answer in zip(logits, answers, strict=True)
  ]


_SEEN: dict[int, np.ndarray] = {}  # by step of decoding, logits [B, V]
_choose, _segment = decode.choose, inspect.unwrap(decode.segment)


def _noting(sampling, logits_BV, key_B, step, **options):
  jax.debug.callback(lambda t, x_BV: _SEEN.update({int(t): np.array(x_BV)}), step, logits_BV)
  return _choose(sampling, logits_BV, key_B, step, **options)


@functools.partial(
  jax.jit,
  static_argnames=("arch", "sampling", "resid_dtype", "fused", "trace"),
  donate_argnums=5,
)
def _noted_segment(*args, **options):  # another function, so that it has programs of its own
  return _segment(*args, **options)


@contextlib.contextmanager
def _noted_logits() -> Iterator[dict[int, np.ndarray]]:
  """Note the logits [B, V] of each step of decoding, rows as they stand in the batch."""
  _SEEN.clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decode, "choose", _noting)
    patch.setattr(decode, "segment", _noted_segment)
    try:
      yield _SEEN
    finally:  # what is still to come belongs to these rows
      jax.effects_barrier()


def generate_with_logits(
  model: pj.Model, rows: Sequence[Row], settings: Settings
) -> tuple[list[Generation], list[np.ndarray], TileWork]:
  """Generate by the engine; also return all logits of each row, [T, V], and the work it took."""
  order = Tree(rows, [len(row.ids) - 1 for row in rows]).order
  with _noted_logits() as seen:
    generations, work = run_tile(model, rows, settings)
  steps = np.stack([seen[t] for t in range(len(seen))], axis=1)
  logits = [steps[order.index(n), : len(g.token_ids)] for n, g in enumerate(generations)]
  return generations, logits, work
