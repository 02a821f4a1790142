"""Rows computed whole: one padded batch of prompts and answers through `pj.forward`.

It shares nothing, has no cache, and is compiled once.
"""

from collections.abc import Sequence

import jax
import numpy as np

import persona_jax as pj
from persona_jax.engine.rows import Row


def whole_pass(
  model: pj.Model,
  rows: Sequence[Row],
  answers: Sequence[Sequence[int]],
  capture: pj.Capture | None = None,
) -> tuple[list[np.ndarray], dict]:
  """Return each row's log-probabilities of its answer's tokens, and what the capture reads."""
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
  logprob_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
  found = []
  for b, (row, answer) in enumerate(zip(rows, answers, strict=True)):
    at = len(row.ids) - 1 + np.arange(len(answer))
    found.append(logprob_BTV[b, at, list(answer)])
  return found, reads
