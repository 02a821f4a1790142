"""Vectors trained by gradient: the loss against its definition, and checkpoints that go on."""

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions import train
from persona_jax.directions.train import Example, Training, train_direction

EXAMPLES = [Example(f"w{5 + n} w9", f"w{40 + n} w{20 + n}", f"w{60 + n} w7") for n in range(5)]
QUICK = Training(steps=12, batch=3, learning_rate=0.05, every=4)


def gain(tiny, d, coefficient):
  """How much likelier the preferred answers become than the others, in nats."""
  edits = None
  if coefficient:
    edits = [pj.add(d, coefficient, unit="raw", blocks=1, tokens="all")] * len(EXAMPLES)
  prompts = [e.prompt for e in EXAMPLES]
  ours, theirs = (
    tiny.model.score(prompts, [getattr(e, side) for e in EXAMPLES], edits=edits)
    for side in ("preferred", "other")
  )
  return float((ours - theirs).mean())


def test_preferences_make_answers_likelier_and_the_opposite_vector_less(tiny):
  losses = []
  d = train_direction(
    tiny.model, EXAMPLES, 1, QUICK, concept="kind", progress=lambda step, loss: losses.append(loss)
  )
  assert len(losses) == 12 and losses[0] == pytest.approx(np.log(2), abs=1e-5)
  assert gain(tiny, d, 1.0) > gain(tiny, d, 0) + 0.05 > gain(tiny, d, -1.0) + 0.1
  assert not d.mean_LD[[0, 2]].any() and d.mean_LD[1].any()
  assert d.provenance["method"] == "trained:preference" and d.provenance["blocks"] == [1]


def test_likelihood_makes_answers_likely(tiny):
  examples = [Example(e.prompt, e.preferred) for e in EXAMPLES]
  training = Training(loss="likelihood", steps=12, batch=5, learning_rate=0.05)
  losses = []
  d = train_direction(
    tiny.model, examples, 1, training, progress=lambda step, loss: losses.append(loss)
  )
  prompts, answers = [e.prompt for e in examples], [e.preferred for e in examples]
  edits = [pj.add(d, 1.0, unit="raw", blocks=1, tokens="all")] * 5
  before, after = (tiny.model.score(prompts, answers, edits=e) for e in (None, edits))
  assert after.mean() > before.mean() + 0.05
  tokens = sum(len(row.ids) - row.prompt_length for row in map(tiny.model.encode, chats(examples)))
  assert losses[0] == pytest.approx(-in_chat(tiny, examples).sum() / tokens, rel=1e-4)


def chats(examples):
  return [
    [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.preferred}]
    for e in examples
  ]


def in_chat(tiny, examples, edits=None):
  """Log-probability of each answer as the chat template renders it."""
  rows = [tiny.model.encode(chat) for chat in chats(examples)]
  out = []
  for n, row in enumerate(rows):
    table = None if edits is None else pj.compile_edits(tiny.model, [[edits[n]]])
    logits, _ = pj.forward(
      tiny.model,
      np.asarray([row.ids], np.int32),
      table,
      prompt_lengths_B=np.asarray([row.prompt_length]),
      roles_BT=np.asarray([row.roles], np.int32),
    )
    z_TV = np.asarray(logits[0], np.float64)
    log_TV = z_TV - np.log(np.exp(z_TV).sum(axis=-1, keepdims=True))
    answer = range(row.prompt_length, len(row.ids))
    out.append(sum(log_TV[t - 1, row.ids[t]] for t in answer))
  return np.asarray(out)


def test_the_preference_loss_is_that_of_bipo(tiny):
  """One step from a vector that is not zero, by the paper's formula."""
  vector = np.random.default_rng(0).normal(size=tiny.model.arch.width).astype(np.float32)
  v_SLD = np.zeros((1, 3, len(vector)), np.float32)
  v_SLD[0, 1] = vector
  d = pj.Direction(v_SLD, "v")
  rows = train._batch_of(tiny.model, EXAMPLES, "preference")
  training = Training(batch=5, beta=0.3)
  reference = train._reference(tiny.model, rows, 5)
  table = train._table(tiny.model, 1, training)
  state = train._State(vector, training.optimizer().init(vector), np.int32(0))
  for sign in (1.0, -1.0):
    _, loss = train._step(
      tiny.model, table, state, rows, reference, np.float32(sign), training=training, block=1
    )
    edits = [pj.add(d, sign, unit="raw", blocks=1, tokens="all")] * 5
    others = [Example(e.prompt, e.other) for e in EXAMPLES]
    change = [in_chat(tiny, side, edits) - in_chat(tiny, side) for side in (EXAMPLES, others)]
    theirs = -np.log(1 / (1 + np.exp(-sign * 0.3 * (change[0] - change[1])))).mean()
    assert float(loss) == pytest.approx(theirs, rel=1e-3)


def test_training_that_was_interrupted_ends_as_if_it_was_not(tiny, tmp_path):
  whole = train_direction(tiny.model, EXAMPLES, 1, QUICK)

  def stop(step, loss):
    if step == 9:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train_direction(tiny.model, EXAMPLES, 1, QUICK, checkpoints=tmp_path / "c", progress=stop)
  steps = []
  again = train_direction(
    tiny.model, EXAMPLES, 1, QUICK, checkpoints=tmp_path / "c",
    progress=lambda step, loss: steps.append(step),
  )  # fmt: skip
  assert steps == list(range(9, 13))
  np.testing.assert_array_equal(again.vectors_SLD, whole.vectors_SLD)
  with pytest.raises(ValueError, match="checkpoints of another training"):
    train_direction(tiny.model, EXAMPLES, 2, QUICK, checkpoints=tmp_path / "c")


def test_bad_requests_are_refused(tiny):
  for call, message in (
    (lambda: train_direction(tiny.model, EXAMPLES, 3), "blocks 0 to 2"),
    (lambda: train_direction(tiny.model, [], 1), "no examples"),
    (lambda: train_direction(tiny.model, [Example("w5", "w6")], 1), "example 0 lacks an answer"),
    (lambda: Training(loss="dpo"), "'preference' or 'likelihood'"),
    (lambda: Training(steps=0), "steps=0 must be above 0"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
