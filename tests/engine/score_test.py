"""Scoring and captures against the float64 reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine.score import score_rows
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
  # One continuation is a single token, so "generated" meets none there: `score` would refuse it.
  got = score_rows(tiny.model, PROMPTS, CONTINUATIONS, edits=edits).logprobs
  for n, (p, c) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
    coef = (1.0, -1.0, 2.0, 0.5)[n]
    theirs = numpy_llama.Edit(
      numpy_llama.add(d.mean_LD[1], coef), (1,), "resid_post", *numpy_llama.WINDOWS[tokens]
    )
    np.testing.assert_allclose(got[n], expected(tiny, p, c, [theirs]), atol=5e-5)


def test_delivery_counts_the_prompt_and_the_fed_tokens_exactly(tiny):
  # Of "w20 w21 w22" two tokens are fed, after the last prompt token.
  length = len(tiny.model.encode(PROMPTS[0]).ids)
  windows = {"answer": 3, "generated": 2, "prompt": length, "all": length + 2, "last:2": 2}
  d = tiny.direction(2, norm=6.0)
  edits = [pj.add(d, 1.0, unit="raw", blocks=1, tokens=tokens) for tokens in windows]
  prompts, texts = [PROMPTS[0]] * (len(windows) + 1), [CONTINUATIONS[0]] * (len(windows) + 1)
  rows = score_rows(tiny.model, prompts, texts, edits=[*edits, None])
  assert rows.tokens_edited.tolist() == [*windows.values(), 0]
  np.testing.assert_allclose(rows.delivered_dose[:-1], 1.0, atol=1e-4)
  assert np.isnan(rows.delivered_dose[-1]) and rows.valid.all()
  both = tiny.model.score(prompts, texts, edits=[*edits, None])
  np.testing.assert_array_equal(both, [x.sum() for x in rows.logprobs])


def test_delivery_of_rows_that_share_a_pass_and_of_tiles_stays_with_its_row(tiny):
  d = tiny.direction(2, norm=6.0)
  edit = pj.add(d, 1.0, unit="raw", blocks=(0, 2), tokens="answer")
  texts = ["w20 w21", "w20 w22", "w30", "w20 w21 w22 w23 w24"] * 20
  longer = ["w10", "w10", "w10 w11 w12", "w13 w14"] * 20
  edits = [edit if n % 3 else None for n in range(80)]
  rows = score_rows(tiny.model, longer, texts, edits=edits)
  expected = [len(t.split()) if e else 0 for t, e in zip(texts, edits, strict=True)]
  assert rows.tokens_edited.tolist() == expected and rows.valid.all()
  np.testing.assert_array_equal(np.isnan(rows.delivered_dose), [e is None for e in edits])


def test_a_row_whose_window_meets_no_token_is_invalid(tiny):
  edit = pj.add(tiny.direction(), 1.0, unit="raw", blocks=1, tokens="generated")
  rows = score_rows(tiny.model, ["w8"] * 2, ["w20", "w20 w21"], edits=[edit, edit])
  assert rows.tokens_edited.tolist() == [0, 1] and rows.valid.tolist() == [False, True]
  none = score_rows(tiny.model, [], [])
  assert none.logprobs == [] and none.valid.shape == none.tokens_edited.shape == (0,)


def test_score_and_capture_refuse_rows_that_were_not_edited_as_asked(tiny):
  edit = pj.add(tiny.direction(), 1.0, unit="raw", blocks=1, tokens="generated")
  with pytest.raises(ValueError, match=r"prompt 1: the window \[0:\] of its edit 'add' holds none"):
    tiny.model.score(["w8"] * 2, ["w20 w21", "w20"], edits=[edit, edit])
  for reduce in ("last", "mean"):
    with pytest.raises(ValueError, match=r"prompt 0: .*tokens='answer' acts on the prompt's last"):
      tiny.model.capture(["w8"], pj.Capture(reduce=reduce), edits=[edit])
  half = pj.load(tiny.directory, dtype="bfloat16")
  small = pj.add(tiny.direction(), 1e-4, unit="raw", blocks=1, tokens="all")
  for call in (
    lambda: half.score(["w8"], ["w20 w21"], edits=[small]),
    lambda: half.capture(["w8 w9"], pj.Capture(), edits=[small]),
  ):
    with pytest.raises(ValueError, match="of the requested edit arrived.*resid_dtype"):
      call()


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


@pytest.mark.parametrize(
  "options", [dict(reduce="last"), dict(reduce="mean", tokens="last:2"), dict(reduce="mean")]
)
def test_an_infinity_at_a_token_that_is_not_read_changes_nothing(tiny, options):
  params = dict(tiny.model.params)
  params["embed_VD"] = params["embed_VD"].at[20, :3].set(np.inf)
  broken = dataclasses.replace(tiny.model, params=params)
  capture = pj.Capture("resid_pre", blocks=0, **options)
  got = broken.capture([pj.Raw("w20 w5 w6"), pj.Raw("w7 w5 w6")], capture)["resid_pre", 0]
  ids = np.asarray([broken.encode(pj.Raw(f"w{n} w5 w6")).ids for n in (20, 7)])
  expected = np.asarray(pj.forward(broken, ids, None, capture)[1]["resid_pre", 0])
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert np.isfinite(got[1]).all()
  assert np.isfinite(got[0]).all() == (options != dict(reduce="mean"))


def test_projections_are_dot_products_with_unit_vectors(tiny):
  ds = [tiny.direction(1), tiny.direction(2)]
  z_PLR = pj.project(tiny.model, ["w10 w11", "w5"], ds)
  reads = tiny.model.capture(["w10 w11", "w5"], pj.Capture(reduce="last"))
  for block in range(3):
    units = np.stack([d.unit_LD[block] for d in ds])
    np.testing.assert_allclose(z_PLR[:, block], reads["resid_post", block] @ units.T, atol=1e-4)
  assert z_PLR.shape == (2, 3, 2)


def test_bad_arguments_are_refused_by_name(tiny):
  for continuations in ("w5", 5, pj.Raw("w5")):
    with pytest.raises(ValueError, match="continuations must be a list with one item .*5"):
      tiny.model.score(["w8", "w9"], continuations)
  for prompt in (pj.Raw("w8"), "w8", {"role": "user", "content": "w8"}):
    with pytest.raises(ValueError, match="not a single one"):
      tiny.model.score(prompt, ["w5"])
  with pytest.raises(ValueError, match="continuation 1 is 5; give a text or a list of token ids"):
    tiny.model.score(["w8", "w9"], ["w7", 5])
  with pytest.raises(ValueError, match="prompt 1: .*no tokens"):
    tiny.model.capture(["w8", pj.Raw("")], pj.Capture())
  with pytest.raises(ValueError, match="prompt 1: a prompt is a string"):
    pj.resolve_gates(tiny.model, ["w8", 5], [None, None])
  with pytest.raises(ValueError, match="2 prompts and 1 continuations"):
    tiny.model.score(["w8", "w9"], ["w7"])
  with pytest.raises(ValueError, match="no token"):
    tiny.model.score(["w8"], [""])
  with pytest.raises(ValueError, match="at least one prompt"):
    tiny.model.capture([], pj.Capture())
  with pytest.raises(ValueError, match="zero or NaN at block 0"):
    pj.project(tiny.model, ["w8"], pj.Direction(np.zeros((1, 3, 44)), "z"))


def test_rows_that_fill_all_positions_are_taken_and_longer_ones_named(tiny):
  most = tiny.model.arch.max_positions
  text = lambda n: " ".join(f"w{5 + i % 90}" for i in range(n))
  long, short = [pj.Raw(text(most - 6)), pj.Raw("w5")], [text(6), text(most - 1)]
  assert np.isfinite(tiny.model.score(long, short)).all()
  with pytest.raises(ValueError, match=rf"prompt 1: its 1 tokens and the {most} that follow"):
    tiny.model.score(long, [text(6), text(most)])
  with pytest.raises(ValueError, match=rf"prompt 2: its {most + 1} tokens exceed .* shorten it"):
    tiny.model.capture(["w5", "w6", pj.Raw(text(most + 1))], pj.Capture())
  with pytest.raises(ValueError, match=rf"prompt 1: its {most - 6} tokens and the 7 that follow"):
    tiny.model.generate(long[::-1], max_new_tokens=7)
  conditions = [pj.Condition("a"), pj.Condition("b", system=text(most))]
  with pytest.raises(ValueError, match="prompt '0000' of condition 'b': its"):
    pj.plan(tiny.model, pj.Grid(["w5"], conditions, max_new_tokens=4))


@pytest.mark.parametrize("ids", [[5, 101], [-1], [2**40]])
def test_ids_outside_the_vocabulary_are_refused(tiny, ids):
  with pytest.raises(ValueError, match=r"continuation 1: .*vocabulary \[0, 101\)"):
    tiny.model.score(["w8", "w8"], ["w9", ids])
  with pytest.raises(ValueError, match=r"vocabulary is \[0, 101\)"):
    pj.forward(tiny.model, np.asarray([ids]))


def test_what_is_no_integer_is_refused(tiny):
  with pytest.raises(ValueError, match="continuation 0: token ids must be integers"):
    tiny.model.score(["w8"], [[1.7]])
  with pytest.raises(ValueError, match=r"continuation 0: .*ids\[1\]=True"):
    tiny.model.score(["w8"], [[5, True]])
  for blocks in ([1.7], 1.7, [np.float32(1)]):
    with pytest.raises(ValueError, match="are no integers"):
      tiny.model.capture(["w8"], pj.Capture(blocks=blocks))
  reads = tiny.model.capture(["w8"], pj.Capture(blocks=np.int64(1)))
  assert list(reads) == [("resid_post", 1)]


def test_traced_tokens_are_left_to_the_caller(tiny):
  run = jax.jit(lambda ids: pj.forward(tiny.model, ids)[0])
  assert run(jnp.asarray([[5, 6]])).shape == (1, 2, 101)


def test_projections_keep_to_the_site_of_their_direction(tiny):
  d = tiny.direction(1)
  with pytest.raises(ValueError, match="'resid_post'.*mlp_out.*allow_other_site=True"):
    pj.project(tiny.model, ["w8"], d, site="mlp_out")
  z_PLR = pj.project(tiny.model, ["w8"], d, site="mlp_out", allow_other_site=True)
  assert z_PLR.shape == (1, 3, 1)
  mixed = [d, dataclasses.replace(d, site="mlp_out")]
  with pytest.raises(ValueError, match="'mlp_out'"):
    pj.project(tiny.model, ["w8"], mixed, tokens="all")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_banks_with_nan_or_infinity_are_refused(tiny, bad):
  bank = np.ones((3, 44))
  bank[2, 1] = bad
  for array in (bank, jnp.asarray(bank)):
    with pytest.raises(ValueError, match=r"bank rows \[2\] hold a NaN or an infinity"):
      tiny.model.capture(["w8"], pj.Capture(bank=array))


@pytest.mark.parametrize(
  ("capture", "message"),
  [
    (pj.Capture(bank=np.ones((0, 44))), r"bank has shape \(0, 44\); it must be \[R, 44\]"),
    (pj.Capture(bank=[]), "bank must be .* got an empty list"),
    (pj.Capture(bank=[np.ones(44)]), r"bank must be .* got items of type \['ndarray'\]"),
    (pj.Capture(bank=np.eye(3, 44)[[0, 2, 2]] * [[1], [0], [1]]), r"bank rows \[1\] are zero"),
    ("resid_post", "capture is 'resid_post'; give a pj.Capture"),
  ],
)
def test_what_is_no_bank_and_no_capture_is_refused(tiny, capture, message):
  for call in (tiny.model.capture, tiny.model.moments):
    with pytest.raises(ValueError, match=message):
      call(["w8"], capture)
