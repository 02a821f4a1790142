"""Vectors trained by gradient: the loss against its definition, and checkpoints that go on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions import train, trunk
from persona_jax.directions.train import Example, Training, train_direction
from persona_jax.directions.trunk import Trunk
from persona_jax.edits.table import EditTable

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
  site = train._site(tiny.model, 1, training, 10)
  kept = Trunk(tiny.model, rows, 1, 10, np.arange(10))
  reference, (h_BTD, batch) = kept.logprobs(), kept.of(np.arange(10))
  state = train._State(vector, training.optimizer().init(vector), np.int32(0))
  for sign in (1.0, -1.0):
    _, loss = train._step(
      tiny.model, site, state, h_BTD, batch, reference, np.float32(sign),
      training=training, block=1,
    )  # fmt: skip
    edits = [pj.add(d, sign, unit="raw", blocks=1, tokens="all")] * 5
    others = [Example(e.prompt, e.other) for e in EXAMPLES]
    change = [in_chat(tiny, side, edits) - in_chat(tiny, side) for side in (EXAMPLES, others)]
    theirs = -np.log(1 / (1 + np.exp(-sign * 0.3 * (change[0] - change[1])))).mean()
    assert float(loss) == pytest.approx(theirs, rel=1e-3)


def test_only_what_is_trained_on_is_computed(tiny, monkeypatch):
  seen, real = [], trunk._trunk

  def noted(model, batch, *, block):
    seen.extend(map(tuple, batch.ids_BT.tolist()))
    return real(model, batch, block=block)

  monkeypatch.setattr(trunk, "_trunk", noted)
  training = Training(loss="likelihood", steps=2, batch=1, learning_rate=0.05)
  train_direction(tiny.model, [Example(e.prompt, e.preferred) for e in EXAMPLES], 1, training)
  assert len(seen) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_other_lengths_are_counted_whole(tiny, dtype):
  model = pj.load(tiny.directory, dtype=dtype)
  examples = [Example("w5 w9", " ".join(["w40 w21 w33"] * n)) for n in (1, 2, 4)]
  rows = train._batch_of(model, examples, "likelihood")
  ours = Trunk(model, rows, 1, 2, np.arange(3)).logprobs()  # in pieces of two rows
  theirs = in_chat(dataclasses.replace(tiny, model=model), examples)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4 if dtype == "float32" else 0.02)


def test_what_is_computed_in_each_step_is_what_was_kept(tiny, monkeypatch):
  kept = train_direction(tiny.model, EXAMPLES, 1, QUICK)
  monkeypatch.setattr(trunk, "_TRUNK_BYTES", 0)
  anew = train_direction(tiny.model, EXAMPLES, 1, QUICK)
  np.testing.assert_allclose(anew.vectors_SLD, kept.vectors_SLD, atol=1e-5)


def test_the_gradient_is_that_of_the_whole_model(tiny):
  """Plain likelihood, its gradient by `pj.forward` of unpadded rows."""
  examples = [Example(e.prompt, e.preferred) for e in EXAMPLES]
  rows = [tiny.model.encode(chat) for chat in chats(examples)]
  v_D = np.random.default_rng(1).normal(size=tiny.model.arch.width).astype(np.float32)
  training = Training(loss="likelihood", batch=5)
  site = train._site(tiny.model, 2, training, 5)  # the last block: nothing runs above it
  everything = train._batch_of(tiny.model, examples, "likelihood")
  h_BTD, batch = Trunk(tiny.model, everything, 2, 5, np.arange(5)).of(np.arange(5))

  @jax.jit
  def ours(v_D):
    return trunk.answer_logprobs(tiny.model, h_BTD, batch, train._with_vector(site, v_D, 5), 2)

  ids_BT, roles_BT = np.asarray([[row.ids, row.roles] for row in rows], np.int32).swapaxes(0, 1)
  at = rows[0].prompt_length  # of all, as their lengths are

  @jax.jit
  def theirs(v_D):
    table = EditTable({("resid_post", 2): train._with_vector(site, v_D, 5)})
    logits_BTV, _ = pj.forward(
      tiny.model, ids_BT, table, prompt_lengths_B=np.full(5, at), roles_BT=roles_BT
    )
    logprob_BTV = jax.nn.log_softmax(logits_BTV[:, at - 1 : -1])
    return jnp.take_along_axis(logprob_BTV, ids_BT[:, at:, None], axis=-1).sum((1, 2))

  np.testing.assert_allclose(ours(v_D), theirs(v_D), atol=1e-4)
  gradients = [jax.grad(lambda v_D, f=f: f(v_D).sum())(v_D) for f in (ours, theirs)]
  np.testing.assert_allclose(*gradients, atol=1e-4, rtol=1e-4)


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
