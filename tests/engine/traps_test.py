"""Traps that steering tools have fallen into, each by its name, on the product's own paths."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.edit import Edit
from tests.reference import numpy_llama

PROMPT = "w10 w11 w12"


def first_logprobs(tiny, edits, tokens=3) -> list[tuple[float, ...]]:
  """Log-probabilities of the greedy tokens of rows that differ in their edits only."""
  rows = tiny.model.generate(
    [PROMPT] * len(edits), edits=edits, max_new_tokens=tokens, logprobs=True
  )
  return [row.logprobs for row in rows]


def test_trap_decode_only_steering_leaves_the_first_answer_token_alone(tiny):
  d = tiny.direction(norm=8.0)
  plain, generated, answer = first_logprobs(
    tiny,
    [None, *(pj.add(d, 1.0, unit="raw", blocks=1, tokens=t) for t in ("generated", "answer"))],
  )
  assert generated[0] == plain[0] and answer[0] != plain[0]


@pytest.mark.parametrize("tokens", ["all", "prompt"])
def test_trap_prompt_steering_is_in_the_cache_cached_equals_uncached(tiny, tokens):
  d = tiny.direction(norm=8.0)
  edit = pj.add(d, 1.0, unit="raw", blocks=0, tokens=tokens)
  (cached,) = tiny.model.generate([PROMPT], edits=[edit], max_new_tokens=5, logprobs=True)
  prompt_ids = [int(i) for i in tiny.model.encode(PROMPT).ids]
  whole = jnp.asarray([[*prompt_ids, *cached.token_ids]])
  table = pj.compile_edits(tiny.model, [edit])
  logits, _ = pj.forward(tiny.model, whole, table, prompt_lengths_B=jnp.asarray([len(prompt_ids)]))
  logprob_TV = numpy_llama.log_softmax(np.asarray(logits[0], np.float64))
  uncached = logprob_TV[np.arange(len(prompt_ids) - 1, whole.shape[1] - 1), cached.token_ids]
  np.testing.assert_allclose(cached.logprobs, uncached, atol=5e-5)


def test_trap_left_pads_right_pads_and_packing_do_not_change_a_row(tiny):
  # generate pads left (prefill), forward pads right; both against the row alone.
  d = tiny.direction(norm=8.0)
  edit = pj.add(d, 1.0, unit="raw", blocks=1, tokens="all")
  longer = " ".join(f"w{i}" for i in range(10, 70))
  (alone,) = tiny.model.generate([PROMPT], edits=[edit], max_new_tokens=4, logprobs=True)
  packed = tiny.model.generate(
    [longer, PROMPT, longer], edits=[None, edit, edit], max_new_tokens=4, logprobs=True
  )[1]
  assert packed.token_ids == alone.token_ids and packed.tokens_edited == alone.tokens_edited
  np.testing.assert_allclose(packed.logprobs, alone.logprobs, atol=5e-5)
  ids = [int(i) for i in tiny.model.encode(PROMPT).ids]
  table = pj.compile_edits(tiny.model, [edit])
  right, _ = pj.forward(
    tiny.model,
    jnp.asarray([ids + [50] * 9]),
    table,
    lengths_B=jnp.asarray([len(ids)]),
    logits="last",
  )
  logprob_V = numpy_llama.log_softmax(np.asarray(right, np.float64))[0]
  assert logprob_V[alone.token_ids[0]] == pytest.approx(alone.logprobs[0], abs=5e-5)


def test_trap_zero_coefficient_is_bit_identical_to_no_edit(tiny):
  zero = pj.add(tiny.direction(), 0.0, unit="raw", blocks=1, tokens="all")
  plain, edited = first_logprobs(tiny, [None, zero], tokens=6)
  assert plain == edited
  table = pj.compile_edits(tiny.model, [zero, None])
  assert np.signbit(table.sites["resid_post", 1].add.u_BWD).all()  # -0.0, also for h = -0.0
  _, reads = pj.forward(tiny.model, jnp.asarray([[5, 6, 7]] * 2), table, pj.Capture())
  for h in reads.values():
    assert np.asarray(h[0]).tobytes() == np.asarray(h[1]).tobytes()


def test_trap_projections_use_the_unit_vector_whatever_the_length(tiny):
  long, short = tiny.direction(3, norm=50.0), tiny.direction(3, norm=0.1)
  for make in (
    lambda d: pj.ablate(d, blocks=1, tokens="all"),
    lambda d: pj.cap(d, 0.5, unit="unit", blocks=1, tokens="all"),
    lambda d: pj.scale(d, 3.0, blocks=1, tokens="all"),
  ):
    a, b = first_logprobs(tiny, [make(long), make(short)])
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_trap_nan_and_infinity_are_refused(tiny, bad):
  vectors = tiny.direction().vectors_SLD.copy()
  vectors[0, 1, 0] = bad
  with pytest.raises(ValueError, match="NaN or an infinity"):
    pj.Direction(vectors, "bad")
  with pytest.raises(ValueError, match="finite"):
    pj.add(tiny.direction(), bad, unit="raw", blocks=1)


def test_trap_zero_vector_is_refused(tiny):
  vectors = tiny.direction().vectors_SLD.copy()
  vectors[0, 1] = 0
  with pytest.raises(ValueError, match=r"zero vector at blocks \[1\]"):
    pj.ablate(pj.Direction(vectors, "flat"), blocks="all")


def test_trap_direction_of_one_site_is_refused_at_another_unless_asked(tiny):
  d = dataclasses.replace(tiny.direction(), site="resid_pre")
  with pytest.raises(ValueError, match="allow_other_site"):
    pj.add(d, 1.0, unit="raw", blocks=1, site="resid_post")
  pj.add(d, 1.0, unit="raw", blocks=1, site="resid_post", allow_other_site=True)
  assert pj.add(d, 1.0, unit="raw", blocks=1).site == "resid_pre"


def option_flips(tiny) -> dict[str, tuple[Edit, Edit]]:
  d = tiny.direction(replicates=2, norm=8.0)
  scale = pj.Dose(
    np.asarray([1.0, 5.0, 9.0]), np.random.default_rng(0).normal(size=(3, 50, 44)), 50, {}
  )
  other = pj.Dose(scale.resid_L * 2, scale.sample_LND * 3, 50, {})
  base = dict(unit="resid", blocks=1, tokens="answer", scale=scale)
  add = lambda coef=1.0, **change: pj.add(d, coef, **{**base, **change})
  bounds = dict(unit="unit", blocks=1, tokens="all")
  return {
    "coef": (add(), add(2.0)), "sign": (add(), add(-1.0)), "blocks": (add(), add(blocks=0)),
    "more blocks": (add(), add(blocks=(1, 2))), "tokens": (add(), add(tokens="all")),
    "unit raw": (add(), add(unit="raw")), "unit sigma": (add(), add(unit="sigma")),
    "unit gap": (add(), add(unit="gap")), "unit unit": (add(), add(unit="unit")),
    "replicate": (add(), add(replicate=1)), "scale": (add(), add(scale=other)),
    "scale sigma": (add(unit="sigma"), add(unit="sigma", scale=other)),
    "site": (add(), add(site="mlp_out", allow_other_site=True)),
    "window start": (add(tokens=pj.Window(start=-1)), add(tokens=pj.Window(start=-2))),
    "window stop": (add(tokens=pj.Window(start=-1)), add(tokens=pj.Window(start=-1, stop=1))),
    "window roles": (add(tokens="all"), add(tokens=pj.Window(("user",)))),
    "ablate": (add(), pj.ablate(d, blocks=1)),
    "set_to": (pj.set_to(d, 0.0, **bounds), pj.set_to(d, 4.0, **bounds)),
    "factor": (pj.scale(d, 0.0, blocks=1), pj.scale(d, 9.0, blocks=1)),
    "clamp lo": (pj.clamp(d, -9, 9, **bounds), pj.clamp(d, 8, 9, **bounds)),
    "clamp hi": (pj.clamp(d, -9, 9, **bounds), pj.clamp(d, -9, -8, **bounds)),
    "cap": (pj.cap(d, 0.0, **bounds), pj.cap(d, -6.0, **bounds)),
    "floor": (pj.floor(d, 0.0, **bounds), pj.floor(d, 6.0, **bounds)),
  }  # fmt: skip


def test_trap_every_option_of_an_edit_changes_something(tiny):
  flips = option_flips(tiny)
  rows = tiny.model.score(
    [PROMPT] * (2 * len(flips)),
    ["w30 w31"] * (2 * len(flips)),
    edits=[e for pair in flips.values() for e in pair],
  )
  same = [
    name for name, (a, b) in zip(flips, rows.reshape(-1, 2), strict=True) if abs(a - b) < 1e-4
  ]
  assert not same


def test_trap_every_option_of_generation_changes_something(tiny):
  base = dict(max_new_tokens=8, temperature=1.0, seed=1)
  ids = lambda **change: [
    g.token_ids for g in tiny.model.generate([PROMPT] * 2, **{**base, **change})
  ]
  plain = ids()
  for change in (
    dict(max_new_tokens=4), dict(temperature=0.0), dict(temperature=3.0), dict(seed=2),
    dict(top_k=2), dict(top_p=0.2), dict(min_p=0.9), dict(stop=[plain[0][1]]),
  ):  # fmt: skip
    assert ids(**change) != plain, change
  assert tiny.model.generate([PROMPT], **base)[0].logprobs is None
  assert tiny.model.generate([PROMPT], logprobs=True, **base)[0].logprobs is not None


def test_trap_dose_is_measured_on_answers_not_on_bos_or_short_prompts(tiny):
  answer = " ".join(f"w{i}" for i in range(20, 40))
  chat = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": answer}]
  encoded = tiny.model.encode(chat)
  ids = list(map(int, encoded.ids))
  resid_LTD = numpy_llama.forward(tiny.config, tiny.tensors, ids).resid_post_LTD
  norm_LT = np.linalg.norm(resid_LTD, axis=-1)
  dose = pj.dose(tiny.model, [chat], skip=4)
  expected = np.median(norm_LT[:, encoded.prompt_length + 4 :], axis=1)
  np.testing.assert_allclose(dose.resid_L, expected, rtol=1e-5)
  assert not np.allclose(dose.resid_L, np.median(norm_LT, axis=1), rtol=1e-5)
