"""Edits inside real passes: heads, every site of every family, gates, decoding, grids."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.table import SITES
from tests.models.families_test import make
from tests.reference import numpy_llama
from tests.reference.random_families import CONFIGS

IDS = [5, 9, 2, 7, 7, 1, 3, 8]
PROMPTS = ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13", "w6 w5", "w20 w21", "w30 w31 w32"]
FAMILIES = ("gemma2", "gemma3", "qwen2", "qwen3")
FIRST_OF_FAMILY = [next(t for t in CONFIGS if t.startswith(f"{name},")) for name in FAMILIES]


def heads_of(tiny):
  return tiny.config["num_attention_heads"], tiny.config["head_dim"]


def head_direction(tiny, seed=0, **more):
  n, h = heads_of(tiny)
  v = np.random.default_rng(seed).normal(size=(1, 3, n * h))
  return pj.Direction(v, f"heads{seed}", "head_out", num_heads=n, **more)


def read(model, table, site, prompt_length=5):
  return pj.forward(
    model, jnp.asarray([IDS]), table, pj.Capture((site,)),
    prompt_lengths_B=jnp.asarray([prompt_length]),
  )  # fmt: skip


def relative(got, expected):
  got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
  return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("heads", [[1], [0, 3], "all"])
@pytest.mark.parametrize("op", ["add", "cap", "renorm_add", "rotate", "custom"])
def test_each_head_is_edited_by_itself(tiny, heads, op):
  n, h = heads_of(tiny)
  d, other = head_direction(tiny), head_direction(tiny, 1)
  chosen = range(n) if heads == "all" else heads
  kw = dict(blocks=1, tokens=pj.Window(start=-3, stop=1), heads=heads)
  edit = {
    "add": lambda: pj.add(d, 0.5, unit="raw", **kw),
    "cap": lambda: pj.cap(d, -4.0, unit="unit", **kw),
    "renorm_add": lambda: pj.renorm_add(d, 2.0, unit="unit", **kw),
    "rotate": lambda: pj.rotate(d, other, to=70, **kw),
    "custom": lambda: pj.custom_edit(
      lambda x_BTNH, p, o: x_BTNH * p[:, None], np.isin(np.arange(n), chosen) + 1.0,
      site="head_out", blocks=1, tokens=kw["tokens"],
    ),
  }[op]()  # fmt: skip

  def change(x_nH, head):
    v, w = (e.mean_LD[1].reshape(n, h)[head].astype(np.float64) for e in (d, other))
    unit = v / np.linalg.norm(v)
    if op == "add":
      return x_nH + 0.5 * v
    if op == "cap":
      return x_nH + np.outer(np.minimum(x_nH @ unit, -4.0) - x_nH @ unit, unit)
    if op == "renorm_add":
      out = x_nH + 2 * unit
      size = lambda y: np.linalg.norm(y, axis=-1, keepdims=True)
      return out * size(x_nH) / size(out)
    if op == "custom":
      return 2 * x_nH
    e2 = w - (w @ unit) * unit
    e2 /= np.linalg.norm(e2)
    a, b = x_nH @ unit, x_nH @ e2
    r, angle = np.hypot(a, b), np.deg2rad(70)
    return x_nH + np.outer(r * np.cos(angle) - a, unit) + np.outer(r * np.sin(angle) - b, e2)

  seen = {}

  def hook(site, block, x, positions_T):
    if site == "head_out" and block == 1:
      x = x.copy()
      for head in chosen:
        x[2:6, head] = change(x[2:6, head], head)
    seen[site, block] = x
    return x

  expected = numpy_llama.forward(tiny.config, tiny.tensors, IDS, hook)
  logits, reads = read(tiny.model, pj.compile_edits(tiny.model, [edit]), "head_out")
  assert relative(logits[0], expected.logits_TV) < 2e-5
  for block in range(3):
    assert relative(reads["head_out", block][0], seen["head_out", block].reshape(8, -1)) < 2e-5
  plain = numpy_llama.forward(tiny.config, tiny.tensors, IDS).logits_TV
  assert relative(plain, expected.logits_TV) > 1e-4


def test_directions_of_heads_are_extracted_measured_and_kept(tiny, tmp_path):
  n, h = heads_of(tiny)
  d = pj.extract(tiny.model, PROMPTS[:4], PROMPTS[2:], site="head_out")
  assert d.num_heads == n and d.vectors_SLD.shape == (1, 3, n * h)
  assert d.gap_L.shape == d.reliability_L.shape == (3, n)
  parts = d.mean_LD.reshape(3, n, h)
  np.testing.assert_allclose(d.gap_L, np.linalg.norm(parts, axis=-1), rtol=1e-5)
  loaded = pj.load_direction(d.save(tmp_path / "d.safetensors"), model=tiny.model)
  assert loaded.num_heads == n and loaded.hash == d.hash
  scale = pj.dose(tiny.model, PROMPTS, site="head_out", answer_tokens=12)
  assert scale.resid_L.shape == (3, n)
  for unit, size in (
    ("unit", np.ones(n)),
    ("gap", d.gap_L[1]),
    ("resid", scale.resid_L[1]),
    (
      "sigma",
      [
        (scale.sample_LND[1].reshape(-1, n, h)[:, k] @ (parts[1, k] / d.gap_L[1, k])).std()
        for k in range(n)
      ],
    ),
  ):
    edit = pj.add(loaded, 2.0, unit=unit, blocks=1, scale=scale)
    np.testing.assert_allclose(
      np.linalg.norm(edit.delta_LD[0], axis=-1), 2 * np.asarray(size), rtol=1e-4
    )
  z_PLR = pj.project(tiny.model, PROMPTS[:2], d, site="head_out")
  assert z_PLR.shape == (2, 3, 1) and np.isfinite(z_PLR).all()


@pytest.mark.parametrize("title", FIRST_OF_FAMILY)
def test_every_site_of_every_family_is_edited_where_it_is_read(title, tmp_path):
  model = make(title, tmp_path)
  n = model.arch.num_heads
  base = np.asarray(pj.forward(model, jnp.asarray([IDS]))[0])
  for site in SITES:
    width, blocks = model.arch.site_width(site), model.arch.num_blocks
    v = np.random.default_rng(1).normal(size=(1, blocks, width))
    d = pj.Direction(v, "v", site, num_heads=n if site == "head_out" else None)
    edit = pj.add(d, 0.7, unit="raw", blocks=1, tokens="all")
    before = read(model, None, site)[1][site, 1]
    logits, after = read(model, pj.compile_edits(model, [edit]), site)
    np.testing.assert_allclose(
      after[site, 1] - before, np.tile(0.7 * v[0, 1], (1, 8, 1)), atol=2e-5
    )
    assert np.abs(np.asarray(logits) - base).max() > 1e-3, site


KINDS = {
  "chain": lambda d, e: [
    pj.ablate(d, blocks=1, tokens="all"),
    pj.rotate(d, e, 50, blocks=1, tokens="all"),
    pj.renorm_add(e, 2, unit="unit", blocks=1),
  ],
  "ramp": lambda d, e: pj.add(d, 6, unit="unit", blocks=[0, 1]).ramped(pj.Ramp(steps=4)),
  "average": lambda d, e: pj.set_to(d, 4, unit="unit", blocks=1).ramped(pj.Ramp(rate=0.3)),
  "custom": lambda d, e: pj.custom_edit(lambda h, p, o: h * p, 1.5, blocks=1, tokens="all"),
  "low rank": lambda d, e: pj.low_rank(
    d.mean_LD[1][:, None], e.mean_LD[1][None], coef=0.2, blocks=1, tokens="all"
  ),
  "threshold": lambda d, e: pj.set_to(d, 3, unit="unit", blocks=1, tokens="all").where(below=0.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_the_cache_equals_the_whole_pass(tiny, kind):
  d, e = tiny.direction(1), tiny.direction(2)
  edits = [KINDS[kind](d, e), None, KINDS[kind](e, d)]
  out = tiny.model.generate(PROMPTS[:3], edits=edits, max_new_tokens=6, logprobs=True)
  plain = tiny.model.generate(PROMPTS[:3], max_new_tokens=6)
  assert out[1].token_ids == plain[1].token_ids
  assert out[0].token_ids != plain[0].token_ids or out[2].token_ids != plain[2].token_ids
  for prompt, row, generation in zip(PROMPTS, edits, out, strict=False):
    ids = [int(i) for i in tiny.model.encode(prompt).ids]
    whole = [*ids, *generation.token_ids]
    table = None if row is None else pj.compile_edits(tiny.model, [row])
    logits, _ = pj.forward(
      tiny.model, jnp.asarray([whole]), table, prompt_lengths_B=jnp.asarray([len(ids)])
    )
    logprobs = numpy_llama.log_softmax(np.asarray(logits[0], np.float64))
    for step, token in enumerate(generation.token_ids):
      at = len(ids) + step - 1
      assert logprobs[at].argmax() == token
      assert generation.logprobs[step] == pytest.approx(logprobs[at, token], abs=1e-4)


@pytest.fixture(scope="module")
def probed(tiny):
  """A direction, a threshold that splits the prompts, and which of them lie above it."""
  d = tiny.direction(3)
  reads = tiny.model.capture(PROMPTS, pj.Capture(blocks=1, reduce="mean", tokens="prompt"))
  values = reads["resid_post", 1] @ d.unit_LD[1]
  threshold = float(np.median(values))
  return d, threshold, values > threshold


def test_gate_is_decided_by_each_prompt(tiny, probed):
  d, threshold, above = probed
  assert 0 < above.sum() < len(PROMPTS)
  steer = pj.add(tiny.direction(1), 8, unit="unit", blocks=1, tokens="all")
  high = pj.Probe(d, 1, above=threshold)
  plain = tiny.model.generate(PROMPTS, max_new_tokens=5)
  steered = tiny.model.generate(PROMPTS, edits=[steer] * len(PROMPTS), max_new_tokens=5)
  assert all(p.token_ids != s.token_ids for p, s in zip(plain, steered, strict=True))
  never = pj.Probe(d, 1, above=1e9)
  for rule, on in (
    (high, above),
    (~high, ~above),
    (pj.Probe(d, 1, below=threshold), ~above & True),
    (high & never, above & False),
    (high | ~never, above | True),
    (~(high | never), ~above),
  ):
    if rule.describe().get("below") is not None:
      on = ~above & (np.arange(len(above)) >= 0)
    edits = [steer.when(rule)] * len(PROMPTS)
    out = tiny.model.generate(PROMPTS, edits=edits, max_new_tokens=5)
    for n, generation in enumerate(out):
      expected = steered[n] if on[n] else plain[n]
      assert generation.token_ids == expected.token_ids, (rule.describe(), n)
      assert generation.tokens_edited == expected.tokens_edited and generation.valid
      assert np.isnan(generation.delivered_dose) == (not on[n])


def test_gates_in_scores_captures_tables_and_grids(tiny, probed, tmp_path):
  d, threshold, above = probed
  steer = pj.add(tiny.direction(1), 8, unit="unit", blocks=1, tokens="all")
  gated = steer.when(pj.Probe(d, 1, above=threshold))
  by_hand = [steer if on else None for on in above]
  n = len(PROMPTS)
  scores = tiny.model.score(PROMPTS, ["w4 w5"] * n, edits=[gated] * n)
  np.testing.assert_allclose(
    scores, tiny.model.score(PROMPTS, ["w4 w5"] * n, edits=by_hand), atol=1e-5
  )
  last = pj.Capture(blocks=2, reduce="last")
  reads = tiny.model.capture(PROMPTS, last, edits=[gated] * n)["resid_post", 2]
  expected = tiny.model.capture(PROMPTS, last, edits=by_hand)["resid_post", 2]
  np.testing.assert_allclose(reads, expected, atol=1e-4)
  settled = pj.resolve_gates(tiny.model, PROMPTS, [gated] * n)
  assert [row[0].gate for row in settled] == [float(on) for on in above]
  assert len({id(row[0]) for row in settled}) == 2  # rows go on sharing their edit
  conditions = [pj.Condition("none"), pj.Condition("cast", edits=(gated,))]
  grid = pj.Grid(PROMPTS, conditions, max_new_tokens=4)
  table = pj.run(tiny.model, grid, tmp_path / "run").table()
  cast = table[table["condition"] == "cast"].set_index("prompt")
  edited = [bool(cast.loc[prompt, "tokens_edited"]) for prompt in PROMPTS]
  assert edited == above.tolist() and cast["valid"].all()


def test_cosine_and_windows_of_probes(tiny):
  d = tiny.direction(3)
  reads = tiny.model.capture(PROMPTS, pj.Capture(blocks=2, reduce="mean", tokens="last:2"))
  h = reads["resid_post", 2].astype(np.float64)
  cosine = h @ d.unit_LD[2] / np.linalg.norm(h, axis=-1)
  probe = pj.Probe(d, 2, above=float(np.median(cosine)), measure="cosine", tokens="last:2")
  edit = pj.ablate(d, blocks=1).when(probe)
  settled = pj.resolve_gates(tiny.model, PROMPTS, [edit] * len(PROMPTS))
  assert [row[0].gate for row in settled] == (cosine > np.median(cosine)).astype(float).tolist()
  nothing = dataclasses.replace(probe, tokens=pj.Window(start=0))
  with pytest.raises(ValueError, match="holds none of its"):
    pj.resolve_gates(tiny.model, PROMPTS, [edit.when(nothing)] * len(PROMPTS))
  with pytest.raises(ValueError, match="prompt 2: the window"):  # of the call, not of those gated
    tiny.model.score(PROMPTS[:3], ["w4"] * 3, edits=[None, None, edit.when(nothing)])
  other = pj.Direction(np.ones((1, 3, 7)), "narrow")
  with pytest.raises(ValueError, match="this model is"):
    pj.resolve_gates(tiny.model, PROMPTS[:1], [edit.when(pj.Probe(other, 1, above=0))])
  answered = [[{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 w7 w8"}]]
  whole = pj.resolve_gates(tiny.model, ["w5", answered[0]], [edit, edit])
  assert whole[0][0].gate == whole[1][0].gate  # the prompt alone decides
