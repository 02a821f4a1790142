"""Running moments against moments of captured activations, and against float64 on long streams."""

import dataclasses
import functools
import itertools
import pickle

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import batches, stream
from persona_jax.engine.capture import resolve
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.moments import Moments, RunningMoments, Work
from persona_jax.engine.prefill import prefill
from persona_jax.engine.programs import Dry
from persona_jax.engine.reads import Reading, by_row
from persona_jax.engine.tree import Tree

SYSTEM = " ".join(f"w{i}" for i in range(40, 64))
PROMPTS = [
  [
    *([{"role": "system", "content": SYSTEM}] if n % 2 else []),
    {"role": "user", "content": " ".join(f"w{(7 * n + i) % 90 + 8}" for i in range(1 + n % 5))},
    {
      "role": "assistant",
      "content": " ".join(f"w{(5 * n + i) % 90 + 8}" for i in range(n % 3 + 1)),
    },
  ]
  for n in range(24)
]
LABELS = [("positive", "negative", 7)[n % 3] for n in range(24)]
SITES = ("resid_post", "mlp_out")
PLACE = ("resid_post", 1)


def observations(reads: np.ndarray, labels=LABELS) -> dict:
  """Lay [N, ·] or [N, T, ·] out as observations [M, ·] by label, NaN left out."""
  out = {}
  for x, label in zip(reads, labels, strict=True):
    rows = x.reshape(-1, x.shape[-1])
    out.setdefault(label, []).append(rows[~np.isnan(rows[:, 0])])
  return {label: np.concatenate(xs).astype(np.float64) for label, xs in out.items()}


def check(moments: Moments, reads: dict, labels=LABELS, rtol=2e-4) -> None:
  """Compare with numpy's moments of what was captured."""
  assert moments.mean.keys() == reads.keys()
  for where, x in reads.items():
    by_label = observations(x, labels)
    assert set(moments.labels) == set(by_label)
    for label, x_MD in by_label.items():
      g = moments.index(label)
      assert moments.count_G[g] == len(x_MD)
      scale = x_MD.std()
      np.testing.assert_allclose(moments.mean[where][g], x_MD.mean(axis=0), atol=rtol * scale)
      variance = x_MD.var(axis=0)
      np.testing.assert_allclose(moments.variance[where][g], variance, atol=rtol * scale**2)
      if moments.covariance is not None:
        expected = np.cov(x_MD.T, bias=True)
        np.testing.assert_allclose(moments.covariance[where][g], expected, atol=rtol * scale**2)


def alike(a: Moments, b: Moments, atol=1e-4) -> None:
  """Compare two moments, whatever the order of their labels."""
  assert set(a.labels) == set(b.labels)
  order = [b.index(label) for label in a.labels]
  assert a.count_G.tolist() == b.count_G[order].tolist()
  for where in a.mean:
    np.testing.assert_allclose(a.mean[where], b.mean[where][order], atol=atol)
    np.testing.assert_allclose(a.variance[where], b.variance[where][order], atol=atol)


@pytest.mark.parametrize(
  "options",
  [
    dict(reduce="last"),
    dict(reduce="mean"),
    dict(reduce="mean", tokens="last:3"),
    dict(reduce="all"),
    dict(reduce="all", tokens="answer"),
    dict(reduce="all", tokens=pj.Window(("user", "assistant"), start=-4)),
  ],
)
def test_moments_are_those_of_captured_activations(tiny, options):
  capture = pj.Capture(SITES, **options)
  moments = tiny.model.moments(PROMPTS, capture, groups=LABELS)
  check(moments, tiny.model.capture(PROMPTS, capture))


@pytest.mark.parametrize("reduce", ["mean", "all"])
def test_covariance_and_edits(tiny, reduce):
  d = tiny.direction(0, norm=6.0)
  edits = [
    [None, pj.add(d, 1.0, unit="raw", blocks=1, tokens="all"), pj.ablate(d, blocks=1)][n % 3]
    for n in range(24)
  ]
  capture = pj.Capture(SITES, blocks=1, reduce=reduce)
  moments = tiny.model.moments(PROMPTS, capture, groups=LABELS, edits=edits, covariance=True)
  check(moments, tiny.model.capture(PROMPTS, capture, edits=edits))
  diagonal = np.diagonal(moments.covariance[PLACE], axis1=1, axis2=2)
  np.testing.assert_allclose(diagonal, moments.variance[PLACE], rtol=1e-4, atol=1e-5)
  plain = tiny.model.moments(PROMPTS, capture, groups=LABELS)
  assert not np.allclose(plain.mean[PLACE], moments.mean[PLACE], atol=0.1)


@pytest.mark.parametrize("reduce", ["last", "mean", "all"])
def test_moments_of_projections(tiny, reduce):
  bank = [tiny.direction(1), tiny.direction(2), tiny.direction(3)]
  capture = pj.Capture(reduce=reduce, bank=bank)
  moments = tiny.model.moments(PROMPTS, capture, covariance=True)
  assert moments.labels == (None,) and moments.mean[PLACE].shape == (1, 3)
  check(moments, tiny.model.capture(PROMPTS, capture), labels=[None] * 24)


def test_order_and_sharing_change_nothing(tiny, monkeypatch):
  capture = pj.Capture(SITES, reduce="mean", tokens="answer")
  expected = tiny.model.moments(PROMPTS, capture, groups=LABELS)
  order = np.random.default_rng(0).permutation(24)
  shuffled = tiny.model.moments(
    [PROMPTS[n] for n in order], capture, groups=[LABELS[n] for n in order]
  )
  alike(shuffled, expected)
  monkeypatch.setattr(batches, "Tree", functools.partial(Tree, min_run=10_000))
  alone = tiny.model.moments(PROMPTS, capture, groups=LABELS)
  alike(alone, expected)
  tokens = expected.work.tokens
  assert alone.work.passes == 3 * tokens == 3 * alone.work.tokens
  assert expected.work.passes < 0.7 * 3 * tokens and expected.work.prompts == 24
  assert 0 < expected.work.padding < 1


def test_streams_come_in_pieces_and_full_tiles(tiny, monkeypatch):
  capture = pj.Capture(blocks=1, reduce="all")
  expected = tiny.model.moments(PROMPTS, capture, groups=LABELS)
  monkeypatch.setattr(stream, "_PIECE", 7)
  monkeypatch.setattr(batches, "TILE_TOKENS", 32)
  monkeypatch.setattr(batches, "STEM_ROWS", 2)
  done = []
  moments = tiny.model.moments(
    iter(PROMPTS), capture, groups=iter(LABELS), edits=itertools.repeat(None), progress=done.append
  )
  alike(moments, expected)
  assert sum(done) == 24 and len(done) > 5
  monkeypatch.setattr(stream, "_WAITING", 3)
  alike(tiny.model.moments(PROMPTS, capture, groups=LABELS), expected)
  pieces = tiny.model.moments(PROMPTS[:7], capture, groups=LABELS[:7])  # the stream ends with one
  check(pieces, tiny.model.capture(PROMPTS[:7], capture), LABELS[:7])


def test_shards_merge_to_the_whole(tiny):
  capture = pj.Capture(SITES, blocks=1, reduce="mean")
  whole = tiny.model.moments(PROMPTS, capture, groups=LABELS, covariance=True)
  ends = [0, 2, 11, 24]  # the first shard has no label 7
  shards = [
    tiny.model.moments(PROMPTS[a:b], capture, groups=LABELS[a:b], covariance=True)
    for a, b in itertools.pairwise(ends)
  ]
  assert 7 not in shards[0].labels
  for order in ((0, 1, 2), (2, 0, 1)):
    merged = shards[order[0]]
    for n in order[1:]:
      merged = pickle.loads(pickle.dumps(merged)).merge(shards[n])
    alike(merged, whole)
    check(merged, tiny.model.capture(PROMPTS, capture))
    assert merged.work.prompts == 24 and merged.source == whole.source
  check(whole.pooled(), tiny.model.capture(PROMPTS, capture), labels=[None] * 24)


def test_moments_of_other_sources_do_not_merge(tiny):
  last, mean = (tiny.model.moments(PROMPTS, pj.Capture(reduce=r)) for r in ("last", "mean"))
  with pytest.raises(ValueError, match="'last'.*'mean'.*do not merge"):
    last.merge(mean)
  full = tiny.model.moments(PROMPTS, pj.Capture(reduce="last"), covariance=True)
  with pytest.raises(ValueError, match="has covariances"):
    last.merge(full)
  some = tiny.model.moments(PROMPTS, pj.Capture(reduce="last", blocks=[0]))
  with pytest.raises(ValueError, match="do not merge"):
    last.merge(some)
  with pytest.raises(ValueError, match="no label 'x'"):
    last.index("x")


def test_long_streams_keep_their_digits():
  rng = np.random.default_rng(0)
  x_ND = (1e3 + rng.normal(size=(50_000, 4)) * [1, 1, 0.1, 10]).astype(np.float32)
  x_ND[:, 3] -= 1e3  # and one dimension round 0
  x_ND[:7000, 1] -= 5  # a stream that begins far from its mean
  label_N = rng.integers(0, 3, 50_000)
  running = RunningMoments(covariance=True)
  numbers = np.asarray([running.number(f"g{g}") for g in range(3)])
  for i in range(0, 50_000, 100):
    running.add({PLACE: x_ND[i : i + 100]}, numbers[label_N[i : i + 100]])
  moments = running.moments()
  for g in range(3):
    mine = x_ND[label_N == g].astype(np.float64)
    variance = mine.var(axis=0)
    np.testing.assert_allclose(moments.mean[PLACE][g, :3], mine.mean(axis=0)[:3], rtol=1e-8)
    np.testing.assert_allclose(moments.mean[PLACE][g, 3], mine[:, 3].mean(), atol=1e-6)
    np.testing.assert_allclose(moments.variance[PLACE][g], variance, rtol=2e-6)
    expected = np.cov(mine.T, bias=True)
    atol = 1e-5 * np.sqrt(np.outer(variance, variance)).max()
    np.testing.assert_allclose(moments.covariance[PLACE][g], expected, atol=atol)


def test_weights_indices_and_flushes():
  rng = np.random.default_rng(1)
  x_ND = rng.normal(size=(60, 5)).astype(np.float32)
  index, weight = rng.integers(0, 60, 90), rng.integers(0, 4, 90)
  label = rng.integers(0, 5, 90)
  once, often = RunningMoments(), RunningMoments(flush=10)
  for running in (once, often):
    for i in range(0, 90, 15):  # labels come as they are met
      part = slice(i, i + 15)
      numbers = np.asarray([running.number(int(n)) for n in label[part]])
      running.add({PLACE: x_ND}, numbers, index_E=index[part], weight_E=weight[part])
      running.flush()
  alike(often.moments(), once.moments(), atol=1e-6)
  moments = often.moments()
  for n in range(5):
    mine = np.repeat(index[label == n], weight[label == n])
    assert moments.count_G[moments.index(n)] == len(mine)
    got = moments.variance[PLACE][moments.index(n)]
    np.testing.assert_allclose(got, x_ND[mine].astype(np.float64).var(axis=0), rtol=1e-5)


def test_sums_are_updated_in_place():
  running = RunningMoments()
  values, labels = {PLACE: np.ones((8, 16), np.float32)}, np.zeros(8, int)
  labels[0] = running.number("a")
  running.add(values, labels)
  before = running._sums[PLACE]
  running.add(values, labels)
  assert all(x.is_deleted() for x in before if x is not None)


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    ([], {}, "at least one prompt"),
    ("w8", {}, "not a single one"),
    ([{"role": "user", "content": "w8"}], {}, "not a single one"),
    ({"role": "user", "content": "w8"}, {}, "not a single one"),
    (None, {}, "prompts must be many prompts .*, got a NoneType"),
    (["w8", "w9"], dict(groups=["a"]), "1 groups for 2 prompts"),
    (["w8", "w9"], dict(groups=iter(["a"])), "groups ends at prompt 1"),
    (iter(["w8"]), dict(edits=[None] * 2), "2 edits for 1 prompts"),
    (["w8"], dict(groups=[["a"]]), r"the group \['a'\] of prompt 0"),
  ],
)
def test_what_does_not_fit_is_refused(tiny, prompts, options, message):
  with pytest.raises(ValueError, match=message):
    tiny.model.moments(prompts, pj.Capture(reduce="last"), **options)


@pytest.mark.parametrize("reduce", ["mean", "all"])
def test_a_prompt_without_a_token_in_the_window_is_named(tiny, monkeypatch, reduce):
  capture = pj.Capture(reduce=reduce, tokens="generated")
  monkeypatch.setattr(stream, "_PIECE", 4)
  with pytest.raises(ValueError, match=r"prompt 9: the window \[0:\] of the capture holds none"):
    tiny.model.moments([*PROMPTS[:9], "w8 w9"], capture)
  assert np.isnan(tiny.model.capture(["w8 w9"], capture)[PLACE]).all()


def test_rows_that_were_not_edited_and_bad_activations_are_refused(tiny, monkeypatch):
  monkeypatch.setattr(stream, "_PIECE", 2)
  edit = pj.add(tiny.direction(), 1.0, unit="raw", blocks=1, tokens="generated")
  with pytest.raises(ValueError, match=r"prompt 4: the window \[0:\] of its edit 'add'"):
    prompts = [*PROMPTS[:4], "w8 w9"]
    tiny.model.moments(prompts, pj.Capture(), edits=itertools.repeat(edit))
  with pytest.raises(ValueError, match="single edit"):
    tiny.model.moments(PROMPTS, pj.Capture(), edits=edit)
  params = dict(tiny.model.params)
  params["embed_VD"] = params["embed_VD"].at[20].set(np.nan)
  broken = dataclasses.replace(tiny.model, params=params)
  with pytest.raises(ValueError, match="NaN or an infinity"):
    broken.moments(["w19", "w20"], pj.Capture(reduce="last"))


def test_windows_of_all_tokens_leave_the_others_out(tiny):
  every = tiny.model.capture(PROMPTS, pj.Capture())[PLACE]
  answer = tiny.model.capture(PROMPTS, pj.Capture(tokens="generated"))[PLACE]
  mean = tiny.model.capture(PROMPTS, pj.Capture(reduce="mean", tokens="generated"))[PLACE]
  for n, prompt in enumerate(PROMPTS):
    row = tiny.model.encode(prompt)
    assert np.isnan(answer[n, : row.prompt_length]).all()
    held = slice(row.prompt_length, len(row.ids))
    np.testing.assert_allclose(answer[n, held], every[n, held], atol=1e-6)
    np.testing.assert_allclose(mean[n], every[n, held].mean(axis=0), atol=1e-5)
  ids = np.asarray([tiny.model.encode(PROMPTS[1]).ids])
  _, reads = pj.forward(
    tiny.model, ids, None, pj.Capture(tokens="generated"), prompt_lengths_B=np.asarray([30])
  )
  lacking = np.isnan(np.asarray(reads[PLACE])[0, :, 0])
  assert lacking[:30].all() and not lacking[30:].any()


def test_a_dry_run_reads_shapes(tiny):
  rows = encode_rows(tiny.model, PROMPTS, None)
  spec, banks = resolve(pj.Capture(SITES, reduce="mean"), tiny.model.arch)
  tree, reading = Tree(rows, [len(row.ids) for row in rows]), Reading(rows, spec, banks)
  dry, places = Dry(), spec.places(banks, tiny.model.arch)
  out = prefill(tiny.model, tree, reading=reading, run=dry)
  reads = by_row(out.reads, reading.held, places, run=dry)
  assert {where: x.shape for where, x in reads.items()} == {w: (24, d) for w, d in places.items()}


def test_work_adds_up():
  assert Work(1, 2, 3, 4).plus(Work(1, 1, 1, 1)) == Work(2, 3, 4, 5)
  assert Work().padding == 0 and Work(1, 8, 6, 8).padding == 0.25


def test_values_that_do_not_count_may_be_infinite():
  running = RunningMoments()
  x_ND = np.asarray([[np.inf, 1.0], [2.0, 3.0], [4.0, 5.0]], np.float32)
  label_E, index_E, weight_E = np.zeros(4, int), np.asarray([1, 2, 0, 0]), np.asarray([1, 1, 0, 0])
  running.number("all")
  running.add({PLACE: x_ND}, label_E, index_E=index_E, weight_E=weight_E)
  got = running.moments()
  np.testing.assert_allclose(got.mean[PLACE], [[3.0, 4.0]])
  np.testing.assert_allclose(got.variance[PLACE], [[1.0, 1.0]])
