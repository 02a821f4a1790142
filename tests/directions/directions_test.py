"""Directions: extraction against numpy, files, composition, doses."""

import numpy as np
import pytest
import safetensors.numpy

import persona_jax as pj
from persona_jax.directions.extract import extract_each
from tests.reference import numpy_llama

POSITIVES = [f"w{10 + i} w{30 + i}" for i in range(6)]
NEGATIVES = [f"w{50 + i} w{70 + i} w{60 + i}" for i in range(6)]


def residuals(tiny, prompt) -> np.ndarray:
  ids = [int(i) for i in tiny.model.encode(prompt).ids]
  return numpy_llama.forward(tiny.config, tiny.tensors, ids).resid_post_LTD


def test_difference_of_means_at_the_last_token_equals_numpy(tiny):
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, concept="x")
  last = lambda prompts: np.mean([residuals(tiny, p)[:, -1] for p in prompts], 0)
  np.testing.assert_allclose(d.mean_LD, last(POSITIVES) - last(NEGATIVES), atol=1e-4)
  np.testing.assert_allclose(d.gap_L, np.linalg.norm(d.mean_LD, axis=-1), rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(d.unit_LD, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("tokens", ["answer_mean", "answer_first"])
def test_answer_tokens_are_averaged_within_an_answer_first(tiny, tokens):
  chats = [
    [[{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": a}] for a in answers]
    for answers in (["w10 w11 w12 w13", "w20"], ["w30 w31", "w40 w41 w42"])
  ]
  d = pj.extract(tiny.model, *chats, tokens=tokens)

  def mean(some) -> np.ndarray:
    out = []
    for chat in some:
      answer = residuals(tiny, chat)[:, tiny.model.encode(chat).prompt_length :]
      out.append(answer.mean(1) if tokens == "answer_mean" else answer[:, 0])
    return np.mean(out, 0)

  np.testing.assert_allclose(d.mean_LD, mean(chats[0]) - mean(chats[1]), atol=1e-4)


def test_replicates_are_the_directions_of_their_own_pairs(tiny):
  labels = [0, 1, 1, 0, 2, 2]
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, replicates=labels)
  for s in range(3):
    mine = [n for n, label in enumerate(labels) if label == s]
    alone = pj.extract(tiny.model, [POSITIVES[n] for n in mine], [NEGATIVES[n] for n in mine])
    np.testing.assert_allclose(d.vectors_SLD[s], alone.mean_LD, atol=1e-5)
  dealt = pj.extract(tiny.model, POSITIVES, NEGATIVES, replicates=2)
  by_label = pj.extract(tiny.model, POSITIVES, NEGATIVES, replicates=[0, 1] * 3)
  np.testing.assert_allclose(dealt.vectors_SLD, by_label.vectors_SLD, atol=1e-6)


def test_reliability_is_the_stepped_up_cosine_of_halves(tiny):
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, replicates=[0, 0, 1, 1, 1, 0])
  halves = [pj.extract(tiny.model, POSITIVES[h::2], NEGATIVES[h::2]).unit_LD for h in (0, 1)]
  cos_L = (halves[0] * halves[1]).sum(-1)
  np.testing.assert_allclose(d.reliability_L, 2 * cos_L / (1 + cos_L), atol=1e-4)


def test_contrasts_that_are_extracted_together_are_those_of_each(tiny):
  contrasts = {
    "a": (POSITIVES, NEGATIVES),
    "b": (NEGATIVES[:3], POSITIVES[2:5]),
    "c": (POSITIVES[:1], NEGATIVES[:1]),
  }
  done = []
  together = extract_each(tiny.model, contrasts, progress=done.append)
  assert list(together) == ["a", "b", "c"] and sum(done) == 2 * (6 + 3 + 1)
  for concept, sides in contrasts.items():
    alone, found = pj.extract(tiny.model, *sides, concept=concept), together[concept]
    np.testing.assert_allclose(found.vectors_SLD, alone.vectors_SLD, atol=1e-5)
    np.testing.assert_allclose(found.gap_L, alone.gap_L, rtol=1e-5)
    assert found.provenance == alone.provenance and found.concept == concept
    assert (found.reliability_L is None) == (alone.reliability_L is None) == (concept != "a")
  with pytest.raises(ValueError, match="at least one contrast"):
    extract_each(tiny.model, {})


def test_file_round_trips_bit_for_bit_with_provenance(tiny, tmp_path):
  d = pj.extract(tiny.model, POSITIVES, NEGATIVES, concept="trait x")
  back = pj.load_direction(d.save(tmp_path / "deep" / "x.safetensors"), model=tiny.model)
  assert back.vectors_SLD.tobytes() == d.vectors_SLD.tobytes() and back.hash == d.hash
  assert (back.concept, back.site) == ("trait x", "resid_post")
  np.testing.assert_array_equal(back.gap_L, d.gap_L)
  np.testing.assert_array_equal(back.reliability_L, d.reliability_L)
  assert back.provenance == d.provenance
  assert d.provenance["model_hash"] == tiny.model.identity.sha256
  assert {"method", "site", "tokens", "data_hash", "num_pairs"} <= set(d.provenance)


def test_hash_of_the_data_tells_data_apart(tiny):
  hashes = {
    pj.extract(tiny.model, POSITIVES, negatives).provenance["data_hash"]
    for negatives in (NEGATIVES, NEGATIVES[::-1])
  }
  assert len(hashes) == 2


def test_load_refuses_what_does_not_fit(tiny, tmp_path):
  wide = pj.Direction(np.ones((1, 3, 50)), "wide").save(tmp_path / "wide.safetensors")
  with pytest.raises(ValueError, match=r"\(3, 50\).*the model is \(3, 44\)"):
    pj.load_direction(wide, model=tiny.model)
  with pytest.raises(FileNotFoundError, match="none.safetensors"):
    pj.load_direction(tmp_path / "none.safetensors")
  (tmp_path / "junk").write_bytes(b"not a file of tensors")
  with pytest.raises(ValueError, match="safetensors"):
    pj.load_direction(tmp_path / "junk")
  safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match="no direction file"):
    pj.load_direction(tmp_path / "other.safetensors")
  damaged = bytearray(wide.read_bytes())
  damaged[-1] ^= 1
  wide.write_bytes(damaged)
  with pytest.raises(ValueError, match="checksum"):
    pj.load_direction(wide)
  # What is said of the vectors is of the file, too.
  told = pj.Direction(np.ones((1, 3, 50)), "x", provenance={"model": "m"})
  path = told.save(tmp_path / "told.safetensors")
  path.write_bytes(path.read_bytes().replace(b'model\\": \\"m', b'model\\": \\"n'))
  with pytest.raises(ValueError, match="its provenance have not the checksum"):
    pj.load_direction(path)
  metadata = {"format": "persona_jax.direction/1", "concept": "x"}
  vectors = {"vectors": np.ones((1, 3, 4), np.float32)}
  safetensors.numpy.save_file(vectors, tmp_path / "bare.safetensors", metadata)
  with pytest.raises(ValueError, match="is damaged or not ours: KeyError"):
    pj.load_direction(tmp_path / "bare.safetensors")


def test_unit_sum_weighs_parts_by_sign_not_by_length():
  a = pj.Direction(np.asarray([[[3.0, 0.0]]]), "a")
  b = pj.Direction(np.asarray([[[0.0, 0.5]]]), "b")
  both = pj.compose([a, b], [1, -1])
  np.testing.assert_allclose(both.mean_LD, [[2**-0.5, -(2**-0.5)]], rtol=1e-6)
  np.testing.assert_allclose(pj.compose([a, b], [1, -1], "sum").mean_LD, [[3.0, -0.5]])
  with pytest.raises(ValueError, match="zero vector"):
    pj.compose([a, a], [1, -1])
  with pytest.raises(ValueError, match="2 directions and 1 weights"):
    pj.compose([a, b], [1])
  with pytest.raises(ValueError, match="shape and site"):
    pj.compose([a, pj.Direction(np.ones((1, 1, 3)), "c")], [1, 1])


def test_composites_of_some_blocks_have_those(tiny):
  v_SLD = np.zeros((1, 3, 2))
  v_SLD[0, 1] = [3.0, 4.0]
  known = {"model": "m", "model_hash": "h", "model_type": "llama", "tokens": "last"}
  a, b = pj.Direction(v_SLD, "a", provenance=known), pj.Direction(v_SLD, "b")
  both = pj.compose([a, b], [1, 1])
  np.testing.assert_allclose(both.mean_LD, [[0, 0], [0.6, 0.8], [0, 0]], rtol=1e-6)
  assert known.items() <= both.provenance.items()
  with pytest.raises(ValueError, match="'a' is the zero vector at block 2"):
    pj.compose([a, pj.Direction(np.roll(v_SLD, 1, axis=1), "c")], [1, 1])
  with pytest.raises(
    ValueError, match=r"different weights cannot be added; these are of \['m', 'n'"
  ):
    pj.compose([a, pj.Direction(v_SLD, "d", provenance={"model": "n", "model_hash": "i"})], [1, 1])


def test_dose_is_the_median_norm_of_answer_tokens(tiny):
  chats = [
    [
      {"role": "user", "content": "w5"},
      {"role": "assistant", "content": " ".join(f"w{i}" for i in span)},
    ]
    for span in (range(10, 20), range(30, 37))
  ]
  dose = pj.dose(tiny.model, chats, skip=3)
  h = np.concatenate(
    [residuals(tiny, c)[:, tiny.model.encode(c).prompt_length + 3 :] for c in chats], axis=1
  )
  assert dose.num_tokens == h.shape[1] == 7 + 4
  np.testing.assert_allclose(dose.resid_L, np.median(np.linalg.norm(h, axis=-1), axis=1), rtol=1e-5)
  p = tiny.direction().unit_LD[1]
  assert dose.sigma(1, p) == pytest.approx((h[1] @ p).std(), rel=1e-4)


def test_dose_generates_the_answers_it_is_not_given(tiny):
  answer = tiny.model.generate(["w10 w11"], max_new_tokens=8)[0].text
  given = [{"role": "user", "content": "w10 w11"}, {"role": "assistant", "content": answer}]
  made = pj.dose(tiny.model, ["w10 w11"], answer_tokens=8, skip=2)
  np.testing.assert_allclose(made.resid_L, pj.dose(tiny.model, [given], skip=2).resid_L, rtol=1e-5)
  with pytest.raises(ValueError, match="longer than skip=50"):
    pj.dose(tiny.model, ["w10"], answer_tokens=4, skip=50)


@pytest.mark.parametrize(
  "kwargs,message",
  [
    (dict(positives=[], negatives=[]), "0 positives"),
    (dict(negatives=NEGATIVES[:2]), "6 positives and 2 negatives"),
    (dict(method="pca"), "diff_means"),
    (dict(tokens="first"), "answer_mean"),
    (dict(tokens="answer_mean"), "no answer"),
    (dict(site="head"), "resid_post"),
    (dict(replicates=7), "1 to 6"),
    (dict(replicates=[0, 2, 2, 2, 2, 2]), "none left out"),
  ],
)
def test_bad_arguments_are_refused_by_name(tiny, kwargs, message):
  kwargs = {"positives": POSITIVES, "negatives": NEGATIVES, **kwargs}
  with pytest.raises(ValueError, match=message):
    pj.extract(tiny.model, kwargs.pop("positives"), kwargs.pop("negatives"), **kwargs)
