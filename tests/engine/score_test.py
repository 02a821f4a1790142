"""Scoring and captures against the float64 reference."""

import numpy as np
import pytest

import persona_jax as pj
from tests.reference import numpy_llama

PROMPTS = ["w10 w11 w12", "w5", "w10 w11 w12", "w10 w11 w12"]
CONTINUATIONS = ["w20 w21 w22", "w30", "w20 w21 w40", "w50 w51 w52 w53 w54"]


def ids_of(tiny, text) -> list[int]:
  return tiny.model.tokenizer.encode(text)


def expected(tiny, prompt, continuation, edits=()) -> np.ndarray:
  prompt_ids = [int(i) for i in tiny.model.encode(prompt).ids]
  return numpy_llama.score(
    tiny.config, tiny.tensors, prompt_ids, ids_of(tiny, continuation), edits=edits
  )


def test_scores_equal_the_reference(tiny):
  got = tiny.model.score(PROMPTS, CONTINUATIONS)
  tokens = tiny.model.score(PROMPTS, CONTINUATIONS, per_token=True)
  assert got.dtype == np.float64
  for n, (p, c) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
    np.testing.assert_allclose(tokens[n], expected(tiny, p, c), atol=5e-5)
    assert got[n] == pytest.approx(tokens[n].sum())


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "answer"])
def test_edited_scores_equal_the_reference(tiny, tokens):
  d = tiny.direction(2, norm=6.0)
  edits = [pj.add(d, c, unit="raw", blocks=1, tokens=tokens) for c in (1.0, -1.0, 2.0, 0.5)]
  got = tiny.model.score(PROMPTS, CONTINUATIONS, edits=edits, per_token=True)
  for n, (p, c) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
    coef = (1.0, -1.0, 2.0, 0.5)[n]
    theirs = numpy_llama.Edit(
      numpy_llama.add(d.mean_LD[1], coef), (1,), "resid_post", *numpy_llama.WINDOWS[tokens]
    )
    np.testing.assert_allclose(got[n], expected(tiny, p, c, [theirs]), atol=5e-5)


def test_greedy_logprobs_are_the_scores_of_the_same_tokens(tiny):
  (g,) = tiny.model.generate(["w10 w11"], max_new_tokens=5, logprobs=True)
  (scored,) = tiny.model.score(["w10 w11"], [list(g.token_ids)], per_token=True)
  np.testing.assert_allclose(scored, g.logprobs, atol=2e-5)


def test_many_candidates_for_one_token_share_a_pass(tiny):
  candidates = [f"w{i}" for i in range(2, 101)]
  got = tiny.model.score(["w10 w11 w12"] * len(candidates), candidates)
  full = numpy_llama.greedy(
    tiny.config, tiny.tensors, [int(i) for i in tiny.model.encode("w10 w11 w12").ids], 1
  )[1][0]
  np.testing.assert_allclose(got, full[[ids_of(tiny, c)[0] for c in candidates]], atol=2e-5)


def test_captures_equal_the_reference_and_pad_with_nan(tiny):
  prompts = [
    "w10 w11 w12",
    [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 w7 w8"}],
  ]
  reads = tiny.model.capture(prompts, pj.Capture(blocks=[0, 2]))
  lengths = []
  for n, prompt in enumerate(prompts):
    ids = [int(i) for i in tiny.model.encode(prompt).ids]
    lengths.append(len(ids))
    resid = numpy_llama.forward(tiny.config, tiny.tensors, ids).resid_post_LTD
    for block in (0, 2):
      np.testing.assert_allclose(reads["resid_post", block][n, : len(ids)], resid[block], atol=1e-4)
  assert np.isnan(reads["resid_post", 0][0, lengths[0] :]).all()
  assert reads["resid_post", 0].shape == (2, max(lengths), 44)


def test_projections_are_dot_products_with_unit_vectors(tiny):
  ds = [tiny.direction(1), tiny.direction(2)]
  z_PLR = pj.project(tiny.model, ["w10 w11", "w5"], ds)
  reads = tiny.model.capture(["w10 w11", "w5"], pj.Capture(reduce="last"))
  for block in range(3):
    units = np.stack([d.unit_LD[block] for d in ds])
    np.testing.assert_allclose(z_PLR[:, block], reads["resid_post", block] @ units.T, atol=1e-4)
  assert z_PLR.shape == (2, 3, 2)


def test_bad_arguments_are_refused_by_name(tiny):
  with pytest.raises(ValueError, match="2 prompts and 1 continuations"):
    tiny.model.score(["w8", "w9"], ["w7"])
  with pytest.raises(ValueError, match="no token"):
    tiny.model.score(["w8"], [""])
  with pytest.raises(ValueError, match="at least one prompt"):
    tiny.model.capture([], pj.Capture())
  with pytest.raises(ValueError, match="zero or NaN at block 0"):
    pj.project(tiny.model, ["w8"], pj.Direction(np.zeros((1, 3, 44)), "z"))
