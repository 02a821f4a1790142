"""Distributions over the next token against the whole softmax of `pj.forward`."""

from collections.abc import Sequence

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.next_tokens import (
  NotDelivered,
  next_logits,
  next_logits_and_reads,
  token_kl,
)
from persona_jax.engine.rows import Row
from tests.fixtures import Tiny

USERS = ["w5 w9", "w6 w9", "w7"]
ANSWERS = ["w30 w31 w32", "w33", "w34 w35 w36 w37"]


def log_softmax(model: pj.Model, rows: Sequence[Row]) -> list[np.ndarray]:
  """Returns log-probabilities behind every token of rows, float64 [T, V] each."""
  length = max(len(row.ids) for row in rows)
  ids_BT, role_BT = np.zeros((2, len(rows), length), np.int32)
  for b, row in enumerate(rows):
    ids_BT[b, : len(row.ids)], role_BT[b, : len(row.ids)] = row.ids, row.roles
  logits_BTV, _ = pj.forward(
    model,
    ids_BT,
    pj.compile_edits(model, [list(row.edits) for row in rows]),
    lengths_B=np.asarray([len(row.ids) for row in rows]),
    prompt_lengths_B=np.asarray([row.prompt_length for row in rows]),
    roles_BT=role_BT,
  )
  z_BTV = np.asarray(logits_BTV, np.float64)
  z_BTV -= np.logaddexp.reduce(z_BTV, axis=-1, keepdims=True)
  return [z_TV[: len(row.ids)] for z_TV, row in zip(z_BTV, rows, strict=True)]


def answered(tiny: Tiny, condition: pj.Condition) -> list[Row]:
  """Returns rows of the questions with their answers under a condition."""
  chats = [
    condition.apply([{"role": "user", "content": user}, {"role": "assistant", "content": answer}])
    for user, answer in zip(USERS, ANSWERS, strict=True)
  ]
  return encode_rows(tiny.model, chats, [condition.edits] * len(chats))


def test_divergences_behind_an_answer_are_those_of_forward_whatever_the_prompt(tiny: Tiny) -> None:
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="answer")
  conditions = [
    pj.Condition("steered", edits=edit),
    pj.Condition("prompted", system="w40 w41 w42"),
    pj.Condition("both", system="w43", edits=edit),
  ]
  plain = answered(tiny, pj.Condition("none"))
  pairs = [pair for c in conditions for pair in zip(plain, answered(tiny, c), strict=True)]
  lengths = [len(answer.split()) for answer in ANSWERS] * len(conditions)
  found = token_kl(tiny.model, pairs, [range(-n - 1, -1) for n in lengths])
  p_TV, q_TV = (log_softmax(tiny.model, rows) for rows in zip(*pairs, strict=True))
  for n, kl_T, p, q, rows in zip(lengths, found, p_TV, q_TV, pairs, strict=True):
    assert rows[0].ids[-n:] == rows[1].ids[-n:] and kl_T.shape == (n,)  # the answer is the same
    p, q = p[-n - 1 : -1], q[-n - 1 : -1]
    expected_T = (np.exp(p) * (p - q)).sum(axis=-1)
    np.testing.assert_allclose(kl_T, expected_T, rtol=1e-3, atol=1e-6)
    assert (kl_T > 1e-3).all()


def test_positions_count_from_the_end_of_each_row_or_from_its_start(tiny: Tiny) -> None:
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="answer")
  plain = answered(tiny, pj.Condition("none"))[0]
  edited = answered(tiny, pj.Condition("steered", edits=edit))[0]
  last = len(plain.ids) - 1
  end, start = (
    token_kl(tiny.model, [(plain, edited)], [at])[0]
    for at in ([-3, -2, -1], [last - 2, last - 1, last])
  )
  np.testing.assert_array_equal(end, start)
  (itself,) = token_kl(tiny.model, [(plain, plain)], [[-2]])
  np.testing.assert_allclose(itself, 0, atol=1e-6)


def test_a_row_that_gets_no_edit_is_an_error_unless_that_is_no_failure(tiny: Tiny) -> None:
  late = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens=pj.Window(start=5))
  rows = encode_rows(tiny.model, USERS[:2], [[late], []])
  with pytest.raises(NotDelivered, match="holds none of its"):
    next_logits(tiny.model, rows)
  plain = encode_rows(tiny.model, USERS[:2], None)
  np.testing.assert_allclose(
    next_logits(tiny.model, rows, check_delivery=False), next_logits(tiny.model, plain), atol=1e-5
  )


def test_to_ablate_what_a_row_has_nothing_of_changes_nothing(tiny: Tiny) -> None:
  # A direction at right angles to all activations: the change is of the size of rounding, and how
  # much of it arrives is chance.
  h_TD = tiny.model.capture(USERS[:1], pj.Capture(blocks=1, reduce="all"))["resid_post", 1][0]
  v_D = np.random.default_rng(0).normal(size=h_TD.shape[1])
  v_D -= h_TD.T @ np.linalg.lstsq(h_TD.T, v_D)[0]
  nothing = pj.Direction(np.tile(v_D, (1, 3, 1)), "nothing")
  rows = encode_rows(tiny.model, USERS[:1] * 2, [[pj.ablate(nothing, blocks=1)], []])
  ablated_V, plain_V = next_logits(tiny.model, rows, check_delivery=False)
  np.testing.assert_allclose(ablated_V, plain_V, atol=1e-5)


def test_what_is_read_beside_logits_is_what_a_capture_reads(tiny: Tiny) -> None:
  direction = tiny.direction()
  edit = pj.add(direction, 2.0, unit="unit", blocks=1, tokens="answer")
  chats = [*USERS, *USERS]
  edits = [[edit]] * len(USERS) + [[]] * len(USERS)
  rows = encode_rows(tiny.model, chats, edits)
  what = pj.Capture(blocks=(1, 2), reduce="last", bank=[direction])
  logits_NV, reads = next_logits_and_reads(tiny.model, rows, what)
  np.testing.assert_allclose(logits_NV, next_logits(tiny.model, rows), atol=1e-5)
  alone = tiny.model.capture(chats, what, edits=edits)
  assert set(reads) == {("resid_post", 1), ("resid_post", 2)}
  for where, x_NR in reads.items():
    np.testing.assert_allclose(x_NR, alone[where], atol=1e-5)
  # Steering by 2 moves the projection at its own block by 2.
  x_NR = reads["resid_post", 1]
  np.testing.assert_allclose(x_NR[: len(USERS)] - x_NR[len(USERS) :], 2.0, atol=1e-4)
  with pytest.raises(ValueError, match="use 'last' or 'mean'"):
    next_logits_and_reads(tiny.model, rows, pj.Capture(blocks=1))


def test_log_probabilities_of_prompts_are_those_of_forward_and_add_up_to_one(tiny: Tiny) -> None:
  prompts = [*USERS, [{"role": "system", "content": "w40"}, {"role": "user", "content": USERS[0]}]]
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="answer")
  edits = [None, edit, [edit, edit], edit]
  found_NV = pj.next_logprobs(tiny.model, prompts, edits=edits)
  expected = [z_TV[-1] for z_TV in log_softmax(tiny.model, encode_rows(tiny.model, prompts, edits))]
  np.testing.assert_allclose(found_NV, np.stack(expected), atol=1e-5)
  np.testing.assert_allclose(np.exp(found_NV).sum(axis=1), 1.0, rtol=1e-12)
  plain_NV = pj.next_logprobs(tiny.model, prompts)
  np.testing.assert_array_equal(found_NV[0], plain_NV[0])
  assert np.abs(found_NV[1:] - plain_NV[1:]).max(axis=1).min() > 0.1
  late = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="generated")
  with pytest.raises(NotDelivered, match="did not get its edits"):
    pj.next_logprobs(tiny.model, prompts[:1], edits=[late])
