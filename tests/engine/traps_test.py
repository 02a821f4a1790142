"""Traps that steering tools have fallen into, each by its name, on the product's own paths."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.edit import Edit
from tests.fixtures import TEMPLATE, make_tiny
from tests.reference import numpy_llama
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import vocabulary

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


def test_trap_pads_and_packing_do_not_change_a_row(tiny):
  # Prefill pads prompts of like length, forward to the longest; both against the row alone.
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


@pytest.mark.bits
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
    "site": (
      pj.ablate(d, blocks=1), pj.ablate(d, blocks=1, site="mlp_out", allow_other_site=True),
    ),
    "window start": (add(tokens=pj.Window(start=-1)), add(tokens=pj.Window(start=-2))),
    "window stop": (add(tokens=pj.Window(start=-1)), add(tokens=pj.Window(start=-1, stop=0))),
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


def test_trap_every_option_of_generation_changes_something(tmp_path):
  tiny = make_tiny(tmp_path, blocks=1)  # each option is another program to compile
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


ANSWERED = [
  [{"role": "user", "content": f"w{10 + i} w{20 + i}"}, {"role": "assistant", "content": answer}]
  for i, answer in enumerate(["w30 w31 w32", "w33 w34", "w35 w36 w37 w38", "w39 w40"])
]
OPPOSED = [
  [{"role": "user", "content": f"w{50 + i}"}, {"role": "assistant", "content": f"w{60 + i} w70 w9"}]
  for i in range(4)
]


def different(arrays) -> bool:
  """Whether each two of several arrays differ, in shape or by more than rounding."""
  return all(
    a.shape != b.shape or not np.allclose(a, b, atol=1e-4)
    for a, b in itertools.combinations(map(np.asarray, arrays), 2)
  )


def test_trap_system_default_changes_the_prompt(tiny, tmp_path):
  # As many templates do: without a system message, one of the template's own is put.
  own = "{% if messages[0]['role'] != 'system' %}w2 w90 w91 {% endif %}" + TEMPLATE
  write_checkpoint(tmp_path, tiny.config, tiny.tensors, vocabulary(tiny.config), own)
  ids = [
    pj.load(tmp_path, system_default=default).encode("w7").ids
    for default in ("keep", "empty", "drop")
  ]
  assert len(set(map(tuple, ids))) == 3 and len(ids[0]) > len(ids[1]) > len(ids[2])


def test_trap_dtypes_of_load_change_the_logits(tiny):
  logits = [
    pj.forward(pj.load(tiny.directory, **dtypes), jnp.asarray([[5, 6, 7]]))[0]
    for dtypes in (
      dict(), dict(dtype="bfloat16"), dict(dtype="bfloat16", resid_dtype="float32"),
    )
  ]  # fmt: skip
  assert different(logits)


def test_trap_every_option_of_a_capture_changes_something(tiny):
  read = lambda **options: tiny.model.capture(ANSWERED, pj.Capture(**options))
  one = lambda **options: read(**{"blocks": 1, "sites": "resid_post", **options}).popitem()[1]
  bank = np.random.default_rng(0).normal(size=(2, 44))
  assert different([one(reduce="all"), one(reduce="last"), one(reduce="mean")])
  windows = ("all", "prompt", "answer", "generated", "last:2", pj.Window(("user",)))
  assert different([one(reduce="mean", tokens=tokens) for tokens in windows])
  banks = (None, bank, bank * 2, tiny.direction(1), [tiny.direction(1), tiny.direction(2)])
  assert different([one(reduce="last", bank=b) for b in banks])
  sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
  assert different([one(reduce="last", sites=site) for site in sites])
  assert different([one(reduce="last", blocks=block) for block in range(3)])
  assert len(read(reduce="last", sites=sites, blocks=[0, 2])) == 8
  other = dict(reduce="last", sites="mlp_out", bank=tiny.direction(1))
  with pytest.raises(ValueError, match="'resid_post'.*mlp_out.*allow_other_site"):
    one(**other)
  assert one(allow_other_site=True, **other).shape == (4, 1)


def test_trap_every_option_of_extract_changes_something(tiny):
  vectors = lambda **options: pj.extract(tiny.model, ANSWERED, OPPOSED, **options).vectors_SLD
  assert different([vectors(tokens=t) for t in ("last", "answer_mean", "answer_first")])
  assert different([vectors(replicates=r) for r in (None, 2, [0, 0, 1, 1], 4)])
  assert different([vectors(site=site) for site in ("resid_post", "resid_pre", "mlp_out")])


def test_trap_rule_and_weights_of_compose_change_something(tiny):
  ds = [tiny.direction(1, norm=2.0), tiny.direction(2, norm=7.0)]
  made = [
    pj.compose(ds, weights, rule).mean_LD
    for weights, rule in (([1, 1], "unit_sum"), ([1, 1], "sum"), ([1, -1], "unit_sum"))
  ]
  assert different(made)


def test_trap_every_option_of_dose_changes_something(tiny):
  chats = ["w10 w11", *ANSWERED[2:3]]
  size = lambda **options: (
    pj.dose(tiny.model, chats, **{"skip": 1, "answer_tokens": 8, **options}).resid_L
  )
  assert different([size(), size(skip=3), size(answer_tokens=4), size(site="mlp_out")])
  assert pj.dose(tiny.model, ANSWERED, skip=1, site="mlp_out").site == "mlp_out"


def test_trap_paired_and_seed_of_a_grid_change_the_noise():
  conditions = [pj.Condition("a"), pj.Condition("b", system="w9")]
  seeds = lambda **options: [
    cell.seed for cell in pj.Grid(["w5", "w6"], conditions, max_new_tokens=4, **options).cells()
  ]
  paired, alone = seeds(paired=True), seeds(paired=False)
  assert paired[:2] == paired[2:] and len(set(paired)) == 2
  assert len({*paired, *alone, *seeds(seed=1)}) == 2 + 4 + 2


def test_trap_parts_of_a_condition_change_the_prompt(tiny):
  parts = (dict(), dict(prefix="w9"), dict(system="w9"), dict(prefix="w9", system="w9"))
  ids = [tiny.model.encode(pj.Condition("c", **part).apply(PROMPT)).ids for part in parts]
  assert len(set(map(tuple, ids))) == len(parts)
