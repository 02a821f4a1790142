"""Controls of a direction: sizes, streams, what they are drawn from, parts along and across r."""

import subprocess
import sys

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions.activations import ActivationsInMemory
from persona_jax.directions.methods import lda

L, D = 3, 12


def direction(
  seed: int, replicates: int = 2, concept: str = "v", method: str = "diff_means"
) -> pj.Direction:
  v_SLD = np.random.default_rng(seed).normal(size=(replicates, L, D)) * 5
  about = {"model_hash": "abc", "method": method}
  return pj.Direction(v_SLD, concept, provenance=about, gap_L=np.arange(1.0, 1 + L))


V, R = direction(0), direction(1, 1, "refusal")
RNG = np.random.default_rng(5)
SAMPLE = RNG.normal(size=(L, 300, D)) @ np.diag(np.linspace(0.1, 4, D)) + 7
DOSE = pj.Dose(np.ones(L, np.float32), SAMPLE.astype(np.float32), 300, {})
COV = {("resid_post", b): np.cov(SAMPLE[b].T, bias=True)[None] for b in range(L)}
MEAN = {where: np.zeros((1, D)) for where in COV}
MOMENTS = pj.Moments((None,), np.asarray([300]), MEAN, MEAN, COV)
PAIRS = RNG.normal(size=(2, 9, L, D))


def stacked(ds: list[pj.Direction]) -> np.ndarray:
  return np.stack([d.mean_LD for d in ds]).astype(np.float64)


@pytest.mark.parametrize("kind", ["R-iso", "R-cov", "R-shuf"])
def test_random_controls_are_as_long_as_the_direction_and_have_its_gap(kind: str) -> None:
  made = pj.controls(V, kind, n=5, moments=DOSE, pairs=tuple(PAIRS))[kind]
  assert len(made) == 5
  for d in made:
    np.testing.assert_allclose(d.norm_L, V.norm_L, rtol=1e-5)
    np.testing.assert_array_equal(d.gap_L, V.gap_L)
    assert d.vectors_SLD.shape == (1, L, D)


@pytest.mark.parametrize("kind", ["R-iso", "R-cov", "R-shuf"])
def test_draws_follow_seed_and_kind_and_those_of_fewer_are_the_first(kind: str) -> None:
  options = dict(moments=MOMENTS, pairs=tuple(PAIRS))
  first = pj.controls(V, kind, n=6, seed=3, **options)[kind]
  again = pj.controls(V, ["-v", kind], n=4, seed=3, **options)[kind]
  assert [d.hash for d in again] == [d.hash for d in first[:4]]
  other = pj.controls(V, kind, n=6, seed=4, **options)[kind]
  assert not {d.hash for d in other} & {d.hash for d in first}


def test_kinds_have_streams_of_their_own() -> None:
  made = pj.controls(V, ["R-iso", "floor"], n=1, against=V)
  unit_iso, unit_floor = made["R-iso"][0].unit_LD, made["floor"][1].unit_LD
  assert np.abs((unit_iso * unit_floor).sum(axis=1)).max() < 0.9


def test_draws_are_the_same_in_another_process() -> None:
  code = (
    "import numpy as np, persona_jax as pj;"
    "v=np.random.default_rng(0).normal(size=(2,3,12))*5;"
    "print(pj.controls(pj.Direction(v,'v',gap_L=np.arange(1.,4)),'R-iso',n=2)['R-iso'][1].hash)"
  )
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout.strip() == pj.controls(V, "R-iso", n=2)["R-iso"][1].hash


@pytest.mark.parametrize("moments", [DOSE, MOMENTS], ids=["dose", "moments"])
def test_draws_of_the_covariance_vary_as_the_data_do(moments: pj.Dose | pj.Moments) -> None:
  x_RLD = stacked(pj.controls(V, "R-cov", n=4000, moments=moments)["R-cov"])
  for block in range(L):
    unit_RD = x_RLD[:, block] / V.norm_L[block]
    z_RD = np.random.default_rng(0).multivariate_normal(
      np.zeros(D), COV["resid_post", block][0], 40_000
    )
    z_RD /= np.linalg.norm(z_RD, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_RD.T @ unit_RD / 4000, z_RD.T @ z_RD / 40_000, atol=0.02)


def test_isotropic_draws_prefer_no_dimension() -> None:
  unit_RD = stacked(pj.controls(V, "R-iso", n=4000)["R-iso"])[:, 1] / V.norm_L[1]
  np.testing.assert_allclose(unit_RD.T @ unit_RD / 4000, np.eye(D) / D, atol=0.01)


def test_a_dose_draws_the_same_tokens_at_every_block() -> None:
  copied = pj.Dose(np.ones(L, np.float32), np.stack([DOSE.sample_LND[0]] * L), 300, {})
  for d in pj.controls(V, "R-cov", n=2, moments=copied)["R-cov"]:
    np.testing.assert_allclose(d.unit_LD[0], d.unit_LD[2], atol=1e-6)


def test_shuffled_directions_are_signed_means_of_pair_differences() -> None:
  x, y = PAIRS[:, :2]
  signs = [np.asarray([1, 1]), np.asarray([1, -1])]
  expected = np.asarray([np.einsum("n,nld->ld", s, x - y) for s in signs])
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  for d in pj.controls(V, "R-shuf", n=8, pairs=(x, y))["R-shuf"]:
    cos = np.abs((d.unit_LD * expected).sum(axis=-1))  # [2 signs, L]
    np.testing.assert_allclose(cos.max(axis=0), 1, atol=1e-5)
    assert len(set(cos.argmax(axis=0))) == 1  # the same pairs are swapped at every block


def test_shuffled_directions_are_made_by_the_method_of_the_direction() -> None:
  v = direction(0, method="lda")
  x, y = PAIRS
  # Of pairs with no difference swapping does nothing but turn the sign of nothing: use two swaps.
  made = pj.controls(v, "R-shuf", n=1, pairs=(x, y), seed=2)["R-shuf"][0]
  assert made.provenance["extracted_by"] == "lda"
  vectors = []
  for bits in range(2**9):
    swap = np.asarray([bits >> n & 1 for n in range(9)], bool)[:, None]
    a, b = np.where(swap, [y[:, 0], x[:, 0]], [x[:, 0], y[:, 0]])
    w = lda(a, b)
    vectors.append(w / np.linalg.norm(w))
  assert np.max(np.asarray(vectors) @ made.unit_LD[0].astype(np.float64)) > 1 - 1e-6


def test_activations_are_pairs_too() -> None:
  x, y = PAIRS.astype(np.float32)
  stored = tuple(ActivationsInMemory(list(np.moveaxis(z, 1, 0))) for z in (x, y))
  by_array, by_store = (pj.controls(V, "R-shuf", n=3, pairs=p)["R-shuf"] for p in ((x, y), stored))
  assert [d.hash for d in by_array] == [d.hash for d in by_store]


def test_v_perp_r_has_nothing_of_r_and_the_length_of_v_at_each_replicate() -> None:
  (perp,) = pj.controls(V, "v⊥r", against=R)["v⊥r"]
  assert perp.vectors_SLD.shape == V.vectors_SLD.shape
  np.testing.assert_allclose(np.einsum("sld,ld->sl", perp.vectors_SLD, R.unit_LD), 0, atol=1e-5)
  lengths = [np.linalg.norm(d.vectors_SLD, axis=-1) for d in (perp, V)]
  np.testing.assert_allclose(*lengths, rtol=1e-6)


def test_v_par_r_is_the_rest_of_v_at_its_own_size() -> None:
  (par,) = pj.controls(V, "v∥r", against=R)["v∥r"]
  along = np.einsum("sld,ld->sl", V.vectors_SLD, R.unit_LD)[..., None] * R.unit_LD
  np.testing.assert_allclose(par.vectors_SLD, along, atol=1e-5)
  share_L = par.norm_L / V.norm_L
  np.testing.assert_allclose(par.gap_L, V.gap_L * share_L, rtol=1e-5)


def test_parts_of_a_subspace_are_those_of_its_span() -> None:
  other = direction(2, 1)
  span = [R, other, pj.compose([R, other], [1, 2], concept="of the span")]
  (par,) = pj.controls(V, "v_par_r", against=span)["v_par_r"]
  for block in range(L):
    basis, _ = np.linalg.qr(np.stack([R.mean_LD[block], other.mean_LD[block]]).T)
    expected = V.vectors_SLD[:, block] @ basis @ basis.T
    np.testing.assert_allclose(par.vectors_SLD[:, block], expected, atol=1e-5)


def test_where_nothing_is_left_of_v_there_is_no_vector() -> None:
  (perp,) = pj.controls(R, "v_perp_r", against=R)["v_perp_r"]
  assert not perp.vectors_SLD.any()
  holes = R.vectors_SLD.copy()
  holes[:, 1] = 0
  (perp,) = pj.controls(V, "v_perp_r", against=pj.Direction(holes, "r"))["v_perp_r"]
  np.testing.assert_array_equal(perp.mean_LD.any(axis=1), [True, False, True])


def test_blocks_without_a_vector_stay_without() -> None:
  holes = V.vectors_SLD.copy()
  holes[:, 2] = 0
  v = pj.Direction(holes, "v")
  made = pj.controls(v, ["R-iso", "R-cov", "v_perp_r", "-v"], n=2, moments=DOSE, against=R)
  for d in (d for ds in made.values() for d in ds):
    np.testing.assert_array_equal(d.mean_LD.any(axis=1), [True, True, False])


def test_signs_and_floors_and_placebo() -> None:
  placebo = [direction(8), direction(9)]
  made = pj.controls(V, ["-v", "±r", "floor", "R-plac"], against=R, placebo=placebo)
  np.testing.assert_array_equal(made["-v"][0].vectors_SLD, -V.vectors_SLD)
  assert made["±r"][0] is R
  np.testing.assert_array_equal(made["±r"][1].vectors_SLD, -R.vectors_SLD)
  assert made["floor"][0] is R and len(made["floor"]) == 2
  np.testing.assert_allclose(made["floor"][1].norm_L, R.norm_L, rtol=1e-5)
  assert made["R-plac"] == placebo


def test_provenance_names_kind_seed_index_and_parent() -> None:
  d = pj.controls(V, "R-iso", n=3, seed=11)["R-iso"][2]
  about = {key: d.provenance[key] for key in ("kind", "seed", "index", "parent", "model_hash")}
  assert about == dict(kind="R-iso", seed=11, index=2, parent=V.hash, model_hash="abc")
  (perp,) = pj.controls(V, "v_perp_r", against=R)["v_perp_r"]
  assert perp.provenance["against"] == [R.hash]


def test_each_head_has_a_control_of_its_own_size() -> None:
  v_SLD = np.random.default_rng(0).normal(size=(1, L, D))
  v, r = (pj.Direction(x, "v", "head_out", num_heads=3) for x in (v_SLD, v_SLD[..., ::-1]))
  made = pj.controls(v, ["R-iso", "v_perp_r"], n=1, against=r)
  sizes = [np.linalg.norm(d.mean_LD.reshape(L, 3, 4), axis=-1) for (d,) in (*made.values(), (v,))]
  np.testing.assert_allclose(sizes[0], sizes[2], rtol=1e-5)
  np.testing.assert_allclose(sizes[1], sizes[2], rtol=1e-5)
  products = made["v_perp_r"][0].mean_LD.reshape(L, 3, 4) * r.mean_LD.reshape(L, 3, 4)
  np.testing.assert_allclose(products.sum(axis=-1), 0, atol=1e-6)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("R-cov", "moments"),
    ("R-shuf", "pairs"),
    ("R-plac", "placebo"),
    ("v⊥r", "against"),
    ("v_par_r", "against"),
    ("+-r", "against"),
    ("floor", "against"),
  ],
)
def test_the_missing_argument_is_named(kind: str, name: str) -> None:
  with pytest.raises(ValueError, match=f"control {kind.replace('+', '[+]')!r} needs {name}="):
    pj.controls(V, kind)


def test_what_does_not_fit_is_refused() -> None:
  with pytest.raises(ValueError, match=r"control kinds \['R-none'\]"):
    pj.controls(V, ["R-iso", "R-none"])
  with pytest.raises(ValueError, match="n=0"):
    pj.controls(V, "R-iso", n=0)
  with pytest.raises(ValueError, match="covariance=True"):
    pj.controls(V, "R-cov", moments=pj.Moments((None,), np.asarray([3]), MEAN, MEAN))
  with pytest.raises(ValueError, match="site 'resid_post' of block 2"):
    lacking = {where: x for where, x in COV.items() if where[1] < 2}
    pj.controls(V, "R-cov", moments=pj.Moments((None,), np.asarray([3]), MEAN, MEAN, lacking))
  with pytest.raises(ValueError, match="the dose has"):
    elsewhere = pj.Dose(DOSE.resid_L, DOSE.sample_LND, 300, {}, "mlp_out")
    pj.controls(V, "R-cov", moments=elsewhere)
  with pytest.raises(ValueError, match="9 positives and 8 negatives"):
    pj.controls(V, "R-shuf", pairs=(PAIRS[0], PAIRS[1][:8]))
  with pytest.raises(ValueError, match="has .blocks, width."):
    pj.controls(V, "v_perp_r", against=pj.Direction(np.ones((1, L, D + 1)), "r"))
  with pytest.raises(ValueError, match="d is a str; give a pj.Direction"):
    pj.controls("C+", "R-iso")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="against holds a str"):
    pj.controls(V, "v_perp_r", against="r")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="placebo holds a dict"):
    pj.controls(V, "R-plac", placebo=[MEAN])  # type: ignore[list-item]
  with pytest.raises(ValueError, match="moments is a dict"):
    pj.controls(V, "R-cov", moments=MEAN)  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="seed='a'"):
    pj.controls(V, "R-iso", seed="a")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="one refusal direction, got 2"):
    pj.controls(V, "+-r", against=[R, V])
