"""Extraction by every method, from the activations that `capture` reads; the store on the way."""

import dataclasses
import json

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions import class_means
from persona_jax.directions.activations import ActivationStore
from persona_jax.directions.extract import extract_by_methods, extract_each
from persona_jax.directions.methods import METHODS

POSITIVES = [f"w{5 + n} w{20 + n} w9" for n in range(8)]
NEGATIVES = [f"w{30 + n} w{5 + n} w{41 + n % 3}" for n in range(8)]
OTHERS = [f"w{50 + n} w{n + 6}" for n in range(8)]


def captured(tiny, prompts, site="resid_post"):
  reads = tiny.model.capture(prompts, pj.Capture((site,), reduce="last"))
  return np.stack([reads[site, b] for b in range(3)]).astype(np.float64)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_are_those_of_the_method_on_what_capture_reads(tiny, method):
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, method=method, replicates=2, concept="t")
  x, y = captured(tiny, POSITIVES), captured(tiny, NEGATIVES)
  make, options = METHODS[method].make, dict(METHODS[method].options)
  for s in (0, 1):
    theirs = np.stack([make(x[b, s::2], y[b, s::2], **options) for b in range(3)])
    np.testing.assert_allclose(d.vectors_SLD[s], theirs, rtol=2e-3, atol=2e-4)
  gap = x.mean(axis=1) - y.mean(axis=1)
  along = np.abs((gap * d.unit_LD).sum(axis=1))
  np.testing.assert_allclose(d.gap_L, along, rtol=1e-3, atol=1e-4)
  even = np.stack([make(x[b, ::2], y[b, ::2], **options) for b in range(3)])
  odd = np.stack([make(x[b, 1::2], y[b, 1::2], **options) for b in range(3)])
  cos = (even * odd).sum(1) / np.linalg.norm(even, axis=1) / np.linalg.norm(odd, axis=1)
  np.testing.assert_allclose(d.reliability_L, 2 * cos / (1 + cos), rtol=1e-2, atol=1e-3)
  assert d.provenance["method"] == method and d.provenance["model_type"] == "llama"
  assert {k: d.provenance[k] for k in options} == options


def test_centred_means_are_from_the_mean_of_all_classes(tiny):
  contrasts = {"a": (POSITIVES, NEGATIVES), "b": (OTHERS, NEGATIVES)}
  both = extract_by_methods(tiny.model, contrasts, {"mean_centred": {}, "diff_means": {}})
  means = {k: captured(tiny, ps).mean(axis=1) for k, ps in (("a", POSITIVES), ("b", OTHERS))}
  negative = captured(tiny, NEGATIVES).mean(axis=1)
  centre = (means["a"] + means["b"] + 2 * negative) / 4
  for name in ("a", "b"):
    centred = both["mean_centred"][name].mean_LD
    np.testing.assert_allclose(centred, means[name] - centre, atol=1e-4)
    plain = both["diff_means"][name].mean_LD
    np.testing.assert_allclose(plain, means[name] - negative, atol=1e-4)
  # Each half has a centre of its own: with one in common, halves would agree about its error.
  x, y, z = (captured(tiny, ps) for ps in (POSITIVES, OTHERS, NEGATIVES))
  halves = []
  for start in (0, 1):
    half = [h[:, start::2].mean(axis=1) for h in (x, y, z)]
    halves.append(half[0] - (half[0] + half[1] + 2 * half[2]) / 4)
  cos_L = np.einsum("ld,ld->l", *[h / np.linalg.norm(h, axis=1, keepdims=True) for h in halves])
  reliability_L = both["mean_centred"]["a"].reliability_L
  np.testing.assert_allclose(reliability_L, 2 * cos_L / (1 + cos_L), atol=1e-3)
  told = {name: d.provenance["centred_on"] for name, d in both["mean_centred"].items()}
  assert (
    told["a"] == told["b"] == {n: d.provenance["data_hash"] for n, d in both["diff_means"].items()}
  )
  # The same from activations, beside a method that needs them.
  again = extract_by_methods(tiny.model, contrasts, {"mean_centred": {}, "lda": {}})
  for name in ("a", "b"):
    a, b = (x["mean_centred"][name] for x in (again, both))
    np.testing.assert_allclose(a.vectors_SLD, b.vectors_SLD, atol=1e-5)
    np.testing.assert_allclose(a.reliability_L, b.reliability_L, atol=1e-4)


def test_every_head_has_a_direction_of_its_own(tiny):
  arch = tiny.model.arch
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, method="pca_center", site="head_out")
  x, y = (captured(tiny, ps, "head_out") for ps in (POSITIVES, NEGATIVES))
  size = arch.site_width("head_out") // arch.num_heads
  for head in range(arch.num_heads):
    part = slice(head * size, (head + 1) * size)
    theirs = METHODS["pca_center"].make(x[1][:, part], y[1][:, part])
    np.testing.assert_allclose(d.mean_LD[1, part], theirs, rtol=1e-3, atol=1e-4)
  assert d.gap_L.shape == (3, arch.num_heads)


def test_a_store_keeps_activations_and_an_extraction_goes_on(tiny, tmp_path, monkeypatch):
  where, options = tmp_path / "store", dict(method="lda", concept="t")
  plain = pj.extract(tiny.model, POSITIVES, NEGATIVES, **options)
  real, wrote = ActivationStore.write, []

  def write(self, rows, h_NLD):
    if wrote:
      raise KeyboardInterrupt
    wrote.append(len(rows))
    real(self, rows[:5], h_NLD[:5])  # as if interrupted in the middle

  with monkeypatch.context() as patch:
    patch.setattr(ActivationStore, "write", write)
    with pytest.raises(ValueError, match="are not there yet"):
      pj.extract(tiny.model, POSITIVES, NEGATIVES, store=where, **options)
  assert len(ActivationStore(where).todo) == 11
  done = []
  kept = pj.extract(tiny.model, POSITIVES, NEGATIVES, store=where, progress=done.append, **options)
  assert done[0] == 5 and sum(done) == 16
  np.testing.assert_allclose(kept.vectors_SLD, plain.vectors_SLD, rtol=1e-3, atol=1e-5)
  # It is there for other methods, block by block, without the model.
  store = ActivationStore(where)
  np.testing.assert_allclose(store.block(1), captured(tiny, POSITIVES + NEGATIVES)[1], atol=1e-5)
  np.testing.assert_array_equal(store.block(2, np.asarray([3, 1])), store.block(2)[[3, 1]])
  assert store.about["model_hash"] == tiny.model.identity.sha256
  zarr = json.loads((where / "activations" / "zarr.json").read_text())
  assert zarr["zarr_format"] == 3 and zarr["shape"] == [16, 3, 44]
  with pytest.raises(ValueError, match=r"other activations: \['data_hash', 'tokens_hash'\] differ"):
    pj.extract(tiny.model, OTHERS, NEGATIVES, store=where, **options)
  chat = dataclasses.replace(tiny.model.chat, template="w9 " + tiny.model.chat.template)
  other = dataclasses.replace(tiny.model, chat=chat)
  with pytest.raises(ValueError, match=r"other activations: \['tokens_hash'\] differ"):
    pj.extract(other, POSITIVES, NEGATIVES, store=where, **options)
  with pytest.raises(ValueError, match="blocks 0 to 2"):
    store.block(3)
  with pytest.raises(FileNotFoundError, match="no store of activations"):
    ActivationStore(tmp_path / "none")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(method="pca"), r"method='pca': use one of \['diff_means', 'mean_centred', 'pca_diff'"),
    (dict(method="lat", draws=3), r"'lat' has no option \['draws'\]; it has \['seed'\]"),
    (dict(method="lda", replicates=5), "1 pairs in a replicate"),
    (dict(store="x"), "need sums only"),
  ],
)
def test_bad_requests_are_refused(tiny, options, message):
  with pytest.raises(ValueError, match=message):
    pj.extract(tiny.model, POSITIVES, NEGATIVES, **options)


def test_contrasts_may_have_replicates_of_their_own(tiny):
  contrasts = {"a": (POSITIVES, NEGATIVES), "b": (OTHERS[:3], NEGATIVES[:3])}
  labels = {"a": [0, 0, 0, 0, 1, 1, 1, 1], "b": 3}
  found = extract_each(tiny.model, contrasts, replicates=labels)
  assert [len(found[name].vectors_SLD) for name in "ab"] == [2, 3]
  alone = pj.extract(tiny.model, *contrasts["b"], replicates=3)
  np.testing.assert_allclose(found["b"].vectors_SLD, alone.vectors_SLD, atol=1e-5)
  with pytest.raises(ValueError, match=r"'b': replicates: give one int label for each of the 3"):
    extract_each(tiny.model, contrasts, replicates=[0] * 8)
  with pytest.raises(ValueError, match=r"replicates are of \['a'\]; the contrasts are"):
    extract_each(tiny.model, contrasts, replicates={"a": 2})


def test_means_are_exact_where_the_stream_is_far_from_zero():
  # A dimension of mean 10,000 and spread 1e-2, as residual streams have: summed as it is, float32
  # would be off by 1e-2; relative to the first tile it is not.
  rng = np.random.default_rng(0)
  h_ND = 1e4 + 1e-2 * rng.normal(size=(4096, 3))
  h_ND = h_ND.astype(np.float32)
  group_N = np.arange(4096, dtype=np.int32) % 2
  real = np.ones(4096, bool)
  sums = class_means._sum_groups([h_ND], class_means._mean_rows([h_ND], real), group_N, groups=2)
  x, y = np.asarray(sums, np.float64)[:, 0] / 2048
  exact = h_ND[::2].astype(np.float64).mean(axis=0) - h_ND[1::2].astype(np.float64).mean(axis=0)
  np.testing.assert_allclose(x - y, exact, atol=1e-6)
