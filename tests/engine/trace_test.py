"""The trace of edits against what captures and the edits themselves say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj

PROMPTS = [pj.Raw("w5 w6 w7 w8"), pj.Raw("w9 w10"), pj.Raw("w5 w6 w11"), pj.Raw("w5 w6 w11")]
LENGTHS = (4, 2, 3, 3)
STEPS = 4


def edits_of(tiny):
  d, e = tiny.direction(), tiny.direction(1)
  return [
    [pj.add(d, 2.0, unit="unit", blocks=1, tokens="all"), pj.add(e, 1.0, unit="unit", blocks=0)],
    None,
    pj.ablate(d, blocks=1, tokens="prompt"),
    pj.add(d, 3.0, unit="unit", blocks="all", tokens=pj.Window(start=1, stop=3)),
  ]


@pytest.fixture(scope="module")
def answers(tiny):
  return tiny.model.generate(PROMPTS, edits=edits_of(tiny), max_new_tokens=STEPS, trace=True)


def test_places_windows_and_offsets_are_those_of_the_edits(tiny, answers):
  blocks = tiny.model.arch.num_blocks
  traces = [answer.trace for answer in answers]
  assert traces[0].places == (("resid_post", 0), ("resid_post", 1))
  assert traces[1].places == () and traces[1].change_IT.shape[0] == 0
  assert traces[2].places == (("resid_post", 1),) and traces[2].windows == ((pj.Window(stop=0),),)
  assert traces[3].places == tuple(("resid_post", i) for i in range(blocks))
  for trace, answer, length in zip(traces, answers, LENGTHS, strict=True):
    fed = length + len(answer.token_ids) - 1  # the last token generated is never fed
    assert trace.offsets_T.tolist() == list(range(-length, fed - length))
    assert trace.change_IT.shape == (len(trace.places), fed)


def test_additions_move_the_tokens_of_their_window_by_their_length(answers):
  whole, windowed = answers[0].trace, answers[3].trace
  np.testing.assert_allclose(whole.change_IT[1], 2.0, rtol=1e-5)
  inside = (windowed.offsets_T >= 1) & (windowed.offsets_T < 3)
  np.testing.assert_allclose(windowed.change_IT[:, inside], 3.0, rtol=1e-5)
  assert not windowed.change_IT[:, ~inside].any()
  assert (windowed.change_IT[0] > 0).sum() == answers[3].tokens_edited


def test_an_ablation_moves_a_token_by_its_projection(tiny, answers):
  trace = answers[2].trace
  ids = np.asarray([tiny.model.tokenizer.encode("w5 w6 w11")])
  _, reads = pj.forward(tiny.model, ids, None, pj.Capture())
  vector = np.asarray(tiny.direction().vectors_SLD)[0, 1]
  unit = vector / np.linalg.norm(vector)
  projection_T = np.asarray(reads["resid_post", 1])[0] @ unit
  bos = len(trace.offsets_T) - STEPS + 1 - len(projection_T)
  np.testing.assert_allclose(trace.change_IT[0, bos : bos + 3], abs(projection_T), rtol=1e-4)
  assert not trace.change_IT[0, 3 + bos :].any()


def test_tracing_changes_no_token_and_is_left_out_unless_asked_for(tiny, answers):
  plain = tiny.model.generate(PROMPTS, edits=edits_of(tiny), max_new_tokens=STEPS)
  for a, b in zip(plain, answers, strict=True):
    assert a.trace is None
    assert (a.token_ids, a.tokens_edited) == (b.token_ids, b.tokens_edited)


def test_in_bfloat16_what_was_not_edited_has_not_moved_and_a_swallowed_edit_shows(tiny):
  """XLA may leave out the rounding of the residual stream, which is then no change of ours."""
  model = dataclasses.replace(
    tiny.model,
    params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.model.params),
    dtype="bfloat16",
    resid_dtype="bfloat16",
  )
  d = tiny.direction()
  kw = dict(unit="unit", blocks=1)
  edits = [
    pj.add(d, 3.0, tokens="last:1", **kw),
    pj.add(d, 1e-6, tokens="all", **kw).where(above=-1e6),
  ]
  for kernels in ("xla", "mosaic_tpu"):
    run = dataclasses.replace(model, kernels=kernels)
    there, swallowed = run.generate(PROMPTS[:2], edits=edits, max_new_tokens=STEPS, trace=True)
    assert there.trace.change_IT[0, LENGTHS[0] - 1] == pytest.approx(3, rel=0.02)
    assert np.count_nonzero(there.trace.change_IT) == 1
    assert not swallowed.valid and abs(swallowed.delivered_dose) < 0.5
    assert not swallowed.trace.change_IT.any()


def test_an_edit_that_makes_nan_is_not_valid_and_scores_are_refused(tiny):
  edits = [pj.custom_edit(lambda h, p, o: jnp.log(h), blocks=1, tokens="all")]
  with pytest.warns(UserWarning, match="prompt 0: its edits turned activations into NaN"):
    (answer,) = tiny.model.generate(PROMPTS[:1], edits=edits, max_new_tokens=2)
  assert not answer.valid and np.isinf(answer.delivered_dose)
  with pytest.raises(ValueError, match="NaN or infinity"):
    tiny.model.score(PROMPTS[:1], ["w5 w6"], edits=edits)


def test_an_edit_whose_ramp_has_not_begun_is_not_valid(tiny):
  late = pj.add(tiny.direction(), 1.0, unit="unit", blocks=1).ramped(pj.Ramp(steps=2, start=50))
  with pytest.warns(UserWarning, match="none of its 5 tokens, .*, on which its ramp is not 0"):
    (answer,) = tiny.model.generate(PROMPTS[:1], edits=[late], max_new_tokens=2)
  assert not answer.valid and answer.tokens_edited == 0
