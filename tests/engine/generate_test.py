"""Generation against full recompute in float64: caches, windows, batches, stops, samples."""

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import generate as generating
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.rows import Row, derive_seed
from persona_jax.engine.sampling import Sampling, choose
from persona_jax.engine.settings import Settings
from tests.engine.keys import sampling_keys
from tests.reference import numpy_llama

PROMPTS = ["w10 w11 w12", "w5", "w20 w21 w22 w23 w24 w25 w26"]
N = 6


def ids_of(tiny, prompt) -> list[int]:
  return [int(i) for i in tiny.model.encode(prompt).ids]


def reference(tiny, prompt, edits=(), n=N) -> tuple[list[int], np.ndarray]:
  return numpy_llama.greedy(tiny.config, tiny.tensors, ids_of(tiny, prompt), n, edits=edits)


def steer(tiny, coef, tokens, seed=0) -> tuple[pj.Edit, numpy_llama.Edit]:
  d = tiny.direction(seed, norm=8.0)
  ours = pj.add(d, coef, unit="raw", blocks=1, tokens=tokens)
  start, stop = numpy_llama.WINDOWS[tokens]
  return ours, numpy_llama.Edit(
    numpy_llama.add(d.mean_LD[1], coef), (1,), "resid_post", start, stop
  )


def test_greedy_with_a_cache_equals_full_recompute_and_its_logprobs(tiny):
  generations = tiny.model.generate(PROMPTS, max_new_tokens=N, logprobs=True)
  for prompt, generation in zip(PROMPTS, generations, strict=True):
    ids, logprob_NV = reference(tiny, prompt)
    assert list(generation.token_ids) == ids
    chosen = logprob_NV[np.arange(len(ids)), ids]
    np.testing.assert_allclose(generation.logprobs, chosen, atol=2e-5)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "answer"])
def test_steered_rows_equal_full_recompute_for_every_window(tiny, tokens):
  pairs = [steer(tiny, c, tokens, seed) for seed, c in enumerate((1.0, -1.0, 2.0))]
  edits = [ours for ours, _ in pairs]
  generations = tiny.model.generate(PROMPTS, edits=edits, max_new_tokens=N, logprobs=True)
  for prompt, generation, (_, theirs) in zip(PROMPTS, generations, pairs, strict=True):
    ids, logprob_NV = reference(tiny, prompt, [theirs])
    assert list(generation.token_ids) == ids
    chosen = logprob_NV[np.arange(len(ids)), ids]
    np.testing.assert_allclose(generation.logprobs, chosen, atol=5e-5)


@pytest.mark.parametrize(
  "tokens,edited",
  [("all", 5 + N - 1), ("prompt", 5), ("generated", N - 1), ("answer", N), ("last:2", 2)],
)
def test_tokens_edited_are_counted_exactly(tiny, tokens, edited):
  # "w10 w11 w12" renders to 5 tokens; the last generated token is never fed, so never edited.
  edit = pj.add(tiny.direction(), 0.01, unit="raw", blocks=1, tokens=tokens)
  (g,) = tiny.model.generate([PROMPTS[0]], edits=[edit], max_new_tokens=N)
  assert len(ids_of(tiny, PROMPTS[0])) == 5 and len(g.token_ids) == N
  assert g.tokens_edited == edited and g.delivered_dose == pytest.approx(1.0, abs=1e-4) and g.valid


def test_generated_only_leaves_the_first_token_alone_and_answer_does_not(tiny):
  rows = {t: steer(tiny, 3.0, t)[0] for t in ("generated", "answer")}
  plain, generated, answer = tiny.model.generate(
    [PROMPTS[0]] * 3,
    edits=[None, rows["generated"], rows["answer"]],
    max_new_tokens=3,
    logprobs=True,
  )
  assert generated.logprobs[0] == plain.logprobs[0]  # bitwise: same program, neutral at that step
  assert generated.token_ids[0] == plain.token_ids[0]
  assert generated.logprobs[1:] != plain.logprobs[1:]
  assert answer.logprobs[0] != plain.logprobs[0]


def test_prompt_edits_reach_cached_keys_and_values(tiny):
  # "last:2" without the last token: nothing that decoding feeds is edited, only what is cached.
  early = pj.add(tiny.direction(), 3.0, unit="raw", blocks=0, tokens=pj.Window(start=-3, stop=-1))
  plain, edited = tiny.model.generate(
    [PROMPTS[0]] * 2, edits=[None, early], max_new_tokens=2, logprobs=True
  )
  assert edited.tokens_edited == 2 and edited.logprobs != plain.logprobs
  theirs = numpy_llama.Edit(
    numpy_llama.add(tiny.direction().mean_LD[0], 3.0), (0,), start=-3, stop=-1
  )
  ids, logprob_NV = reference(tiny, PROMPTS[0], [theirs], 2)
  np.testing.assert_allclose(edited.logprobs, logprob_NV[np.arange(2), ids], atol=5e-5)


def test_started_answer_is_continued_and_counts_as_answer(tiny):
  chat = [{"role": "user", "content": "w10"}, {"role": "assistant", "content": "w30 w31"}]
  d = tiny.direction(0, norm=8.0)
  edit = pj.add(d, 1.0, unit="raw", blocks=1, tokens="generated")
  (g,) = tiny.model.generate([chat], edits=[edit], max_new_tokens=3)
  encoded = tiny.model.encode(chat)
  theirs = numpy_llama.Edit(numpy_llama.add(d.mean_LD[1], 1.0), (1,), start=0)
  ids, _ = numpy_llama.greedy(
    tiny.config, tiny.tensors, list(map(int, encoded.ids)), 3, edits=[theirs],
    prompt_length=encoded.prompt_length,
  )  # fmt: skip
  assert list(g.token_ids) == ids and g.tokens_edited == 2 + 2


@pytest.mark.bits
def test_rows_do_not_depend_on_neighbours_order_or_batch_size(tiny):
  edits = [steer(tiny, 1.0, "all")[0], None, steer(tiny, -1.0, "answer")[0]]
  kw = dict(max_new_tokens=N, temperature=1.0, top_k=20, seed=[5, 6, 7], logprobs=True)
  together = tiny.model.generate(PROMPTS, edits=edits, **kw)
  order = [2, 0, 1]
  kw["seed"] = [7, 5, 6]
  shuffled = tiny.model.generate([PROMPTS[n] for n in order], edits=[edits[n] for n in order], **kw)
  for n, generation in zip(order, shuffled, strict=True):
    assert generation.token_ids == together[n].token_ids
    assert generation.logprobs == together[n].logprobs  # same tile shape: bitwise
  for n in range(3):
    kw["seed"] = [5 + n]
    (alone,) = tiny.model.generate([PROMPTS[n]], edits=[edits[n]], **kw)
    assert alone.token_ids == together[n].token_ids
    np.testing.assert_allclose(alone.logprobs, together[n].logprobs, atol=5e-5)


def test_one_amount_a_row_follows_its_row_through_tiles(tiny):
  prompts = [PROMPTS[2], PROMPTS[1], PROMPTS[0]]
  d = tiny.direction(norm=8.0)
  together = pj.add(d, [1.0, -1.0, 2.0], unit="raw", blocks=1)
  apart = [pj.add(d, c, unit="raw", blocks=1) for c in (1.0, -1.0, 2.0)]
  kw = dict(max_new_tokens=3, logprobs=True)
  generate = lambda edits: tiny.model.generate(prompts, edits=edits, **kw)
  assert generate([together] * 3) == generate(apart)
  with pytest.raises(ValueError, match="given for 3 rows; this batch has 2"):
    tiny.model.generate(prompts[:2], edits=[together] * 2, **kw)
  with pytest.raises(ValueError, match="one amount a row"):
    pj.Condition("c", edits=together)


def test_stop_token_ends_a_row_early_and_the_loop_too(tiny):
  free = tiny.model.generate(PROMPTS[:1], max_new_tokens=N)[0]
  stop = free.token_ids[2]
  first = free.token_ids.index(stop)
  (g,) = tiny.model.generate(PROMPTS[:1], max_new_tokens=N, stop=[stop])
  assert g.token_ids == free.token_ids[: first + 1] and g.finish_reason == "stop"
  (word,) = tiny.model.generate(PROMPTS[:1], max_new_tokens=N, stop=[f"w{stop}"])
  assert word.token_ids == g.token_ids
  assert free.finish_reason == "length"


def test_loop_stops_when_all_rows_are_done(tiny):
  stop = reference(tiny, PROMPTS[1], n=1)[0][0]
  row = Row(tuple(ids_of(tiny, PROMPTS[1])), 3, (1,) * 3)
  _, work = generating.run_tile(tiny.model, [row], Settings(50, stop_ids=(stop,)))
  assert work.decoding.segments == [(1, 32, 1)] and work.decoding.used_row_steps == 1


def test_steered_row_with_no_edited_token_is_invalid(tiny):
  stop = reference(tiny, PROMPTS[1], n=1)[0][0]
  edit = steer(tiny, 1.0, "generated")[0]
  with pytest.warns(UserWarning, match="1 of 1 rows did not get the edits .* prompt 0: ") as told:
    (g,) = tiny.model.generate([PROMPTS[1]], edits=[edit], max_new_tokens=4, stop=[stop])
  assert len(told) == 1 and told[0].filename == __file__
  assert "the window [0:] of its edit 'add' holds none" in str(told[0].message)
  assert g.tokens_edited == 0 and np.isnan(g.delivered_dose) and not g.valid


def test_an_edit_that_meets_no_token_makes_its_row_invalid_whatever_others_do(tiny):
  stop = reference(tiny, PROMPTS[1], n=1)[0][0]
  late, early = steer(tiny, 1e-3, "generated")[0], steer(tiny, 1e-3, "prompt")[0]
  with pytest.warns(UserWarning, match="1 of 1 rows"):
    (g,) = tiny.model.generate([PROMPTS[1]], edits=[[late, early]], max_new_tokens=4, stop=[stop])
  assert g.finish_reason == "stop" and len(g.token_ids) == 1
  assert g.tokens_edited > 0 and g.delivered_dose == pytest.approx(1, abs=1e-3) and not g.valid


def test_rows_of_equal_tokens_and_other_roles_are_not_shared(tiny):
  chat = [{"role": "system", "content": "w20 w21"}, {"role": "user", "content": "w22 w23"}]
  raw = pj.Raw(tiny.model.chat.render(chat).text)
  assert list(tiny.model.encode(chat).ids) == list(tiny.model.encode(raw).ids)
  edit = pj.add(tiny.direction(), 2.0, unit="raw", blocks=0, tokens=pj.Window(("user",), stop=0))
  run = lambda prompts: [
    (g.tokens_edited, g.token_ids, g.logprobs)
    for g in tiny.model.generate(
      prompts, edits=[edit] * len(prompts), max_new_tokens=3, logprobs=True
    )
  ]
  (alone_chat,), (alone_raw,) = run([chat]), run([raw])
  assert alone_chat[0] == 2 < alone_raw[0] and alone_chat[2] != alone_raw[2]
  for got, want in zip(
    (*run([chat, raw]), *run([raw, chat])),
    (alone_chat, alone_raw, alone_raw, alone_chat),
    strict=True,
  ):
    assert got[:2] == want[:2]
    np.testing.assert_allclose(got[2], want[2], atol=1e-5)
  pairs = [(chat, raw), (raw, chat)]
  scores = [tiny.model.score(list(p), ["w30 w31"] * 2, edits=[edit] * 2) for p in pairs]
  np.testing.assert_allclose(scores[0], scores[1][::-1], atol=1e-5)
  assert abs(scores[0][0] - scores[0][1]) > 1e-3


def test_no_window_vector_amount_or_row_compiles_anything_new(tiny):
  d = [tiny.direction(s) for s in range(4)]
  windows = ("all", "prompt", "generated", "answer", "last:2", pj.Window(("user",)))

  def run(window, x, coef, rows):
    edits = [pj.add(x, coef, unit="raw", blocks=1, tokens=window) if r else None for r in rows]
    tiny.model.generate([PROMPTS[0]] * 4, edits=edits, max_new_tokens=3)

  for window in windows:
    run(window, d[0], 1.0, (1, 0, 1, 0))
  before = len(PROGRAMS)
  for n, window in enumerate(windows):
    run(window, d[1 + n % 3], n - 2.5, (0, 1, 1, 0))
  assert len(PROGRAMS) == before


def test_one_decode_program_serves_all_vectors_amounts_windows_and_rows(tiny):
  run = lambda edits: tiny.model.generate([PROMPTS[0]] * 4, edits=edits, max_new_tokens=4)
  d = [tiny.direction(s) for s in range(4)]
  run([pj.add(d[0], 1, unit="raw", blocks=1), None, None, None])
  before = PROGRAMS.count("decode")
  windows = ("answer", "generated", "last:1", pj.Window(start=1, stop=3))
  run(
    [
      pj.add(x, i - 2, unit="unit", blocks=1, tokens=window)
      for i, (x, window) in enumerate(zip(d, windows, strict=True))
    ]
  )
  run([None, None, pj.add(d[3], 7, unit="gap", blocks=1), None])
  assert PROGRAMS.count("decode") == before


def test_same_seed_same_sample_other_seed_another(tiny):
  kw = dict(max_new_tokens=8, temperature=1.5)
  same = tiny.model.generate([PROMPTS[0]] * 2, seed=3, **kw)
  other = tiny.model.generate([PROMPTS[0]] * 2, seed=[3, 4], **kw)
  ids = [g.token_ids for g in (*same, *other)]
  assert ids[0] == ids[1] == ids[2] != ids[3]


def test_samples_follow_the_model_s_distribution(tiny):
  n = 3000
  logprob_V = reference(tiny, PROMPTS[0], n=1)[1][0]
  logits_BV = jnp.broadcast_to(jnp.asarray(logprob_V, jnp.float32), (n, logprob_V.size))
  keys = sampling_keys([derive_seed(i) for i in range(n)])
  for sampling, p_V in (
    (Sampling(1.0), np.exp(logprob_V)),
    (Sampling(2.0), np.exp(logprob_V / 2)),
    (Sampling(1.0, top_k=5), np.where(logprob_V >= np.sort(logprob_V)[-5], np.exp(logprob_V), 0)),
    (
      Sampling(1.0, min_p=0.3),
      np.where(logprob_V >= logprob_V.max() + np.log(0.3), np.exp(logprob_V), 0),
    ),
  ):
    p_V = p_V / p_V.sum()
    drawn = np.bincount(
      np.asarray(choose(sampling, logits_BV, keys, jnp.int32(0), with_logprobs=False).token_B),
      minlength=p_V.size,
    )
    assert (drawn[p_V == 0] == 0).all()
    big = p_V > 0.02
    z = (drawn[big] - n * p_V[big]) / np.sqrt(n * p_V[big] * (1 - p_V[big]))
    assert np.abs(z).max() < 4.5


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
  logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 0)
  keys = sampling_keys(range(400))
  drawn = lambda p: set(
    np.asarray(
      choose(Sampling(1.0, top_p=p), logits, keys, jnp.int32(0), with_logprobs=False).token_B
    ).tolist()
  )
  assert (
    drawn(0.5) == {0}
    and drawn(0.6) == {0, 1}
    and drawn(0.9) == {0, 1, 2}
    and drawn(1.0) == {0, 1, 2, 3}
  )


def test_one_token_prompts_and_many_rows(tiny):
  prompts = [pj.Raw(f"w{i}") for i in range(5, 16)]
  generations = tiny.model.generate(prompts, max_new_tokens=3)
  for prompt, g in zip(prompts, generations, strict=True):
    assert list(g.token_ids) == reference(tiny, prompt, n=3)[0]
  assert tiny.model.generate([], max_new_tokens=3) == []


ERRORS = {
  "single prompt": (dict(prompts="w9"), "list of prompts"),
  "single chat": (dict(prompts=[{"role": "user", "content": "w9"}]), "list of prompts"),
  "edits for other rows": (dict(edits=[None]), "each of 3 rows; got 1 items"),
  "single edit": (dict(edits="edit"), "a single edit"),
  "no budget": (dict(max_new_tokens=0), "max_new_tokens=0"),
  "negative temperature": (dict(temperature=-1.0), "temperature=-1"),
  "filter without temperature": (dict(top_k=3), "change nothing at temperature=0"),
  "top_p out of range": (dict(temperature=1.0, top_p=1.5), "top_p=1.5"),
  "seeds for other rows": (dict(seed=[1]), "seed has 1 items for 3"),
  "empty stop text": (dict(stop=[""]), "empty text"),
  "stop that is no list": (dict(stop="w8"), "list of ids or texts"),
  "stop out of range": (dict(stop=[1000]), "vocabulary of 101"),
  "stop that is no id": (
    dict(stop=[1.5]),
    r"stop holds 1\.5: give token ids \(integers\) or texts",
  ),
  "stop that is a bool": (dict(stop=[True]), "stop holds True"),
  "stop that is one id": (dict(stop=5), "stop=5: give a list"),
  "budget that is a bool": (dict(max_new_tokens=True), "max_new_tokens=True: give an integer"),
  "budget that is no integer": (dict(max_new_tokens=2.0), "max_new_tokens=2.0: give an integer"),
  "top_k that is a bool": (dict(temperature=1.0, top_k=True), "top_k=True: give an integer"),
  "seed that is a text": (dict(seed="abc"), "seed='abc': give an integer"),
  "seed that is no integer": (dict(seed=1.5), "seed=1.5: give an integer"),
  "seeds that are no integers": (dict(seed=[1, 2, "a"]), "seed of prompt 2='a': give an integer"),
  "seeds by prompt": (dict(seed={1: 2, 3: 4, 5: 6}), r"seed=\{1: 2, .* a list of one a row"),
  "no temperature": (dict(temperature=None), "temperature=None: give a number"),
  "temperature that is a text": (dict(temperature="a"), "temperature='a': give a number"),
  "top_p that is a text": (dict(temperature=1.0, top_p="a"), "top_p='a': give a number"),
  "one raw prompt": (dict(prompts=pj.Raw("w9")), "not a single one"),
  "prompts that are no list": (
    dict(prompts=iter(["w9"])),
    "list of prompts .*, got a list_iterator",
  ),
  "a prompt that cannot be rendered": (dict(prompts=["w9", "w8", 5]), "prompt 2: a prompt is a"),
  "an empty chat": (dict(prompts=["w9", []]), "prompt 1: a prompt is a string, a non-empty"),
  "an empty text": (dict(prompts=["w9", pj.Raw("")]), "prompt 1: .*has no tokens"),
  "too long": (dict(max_new_tokens=100000), "positions"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_refused_by_name(tiny, case):
  kwargs, message = ERRORS[case]
  kwargs = {"prompts": PROMPTS, "max_new_tokens": 2, **kwargs}
  if kwargs.get("edits") == "edit":
    kwargs["edits"] = steer(tiny, 1.0, "all")[0]
  with pytest.raises(ValueError, match=message):
    tiny.model.generate(kwargs.pop("prompts"), **kwargs)


def test_integers_of_numpy_are_taken(tiny):
  options = dict(max_new_tokens=2, temperature=1.0, top_k=5, stop=[7], seed=3)
  ours = {k: np.int64(v) if k != "temperature" else v for k, v in options.items() if k != "stop"}
  plain = tiny.model.generate(PROMPTS, **options)
  for seed in (np.int64(3), np.full(3, 3), jnp.full(3, 3), range(3, 4)):
    prompts = PROMPTS[:1] if isinstance(seed, range) else PROMPTS
    got = tiny.model.generate(prompts, stop=[np.int32(7)], **{**ours, "seed": seed})
    assert [g.token_ids for g in got] == [g.token_ids for g in plain[: len(prompts)]]
