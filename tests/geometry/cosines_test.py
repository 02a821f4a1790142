"""Tables of cosines: bands by coverage, intervals by brute force, exact small cases, shifts."""

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.geometry import gram
from persona_jax.geometry.cosines import band, cosine_table, shift_table, shifted, specificity
from persona_jax.geometry.gram import PairDifferences, PairSum, TwoSamples
from persona_jax.geometry.metrics import EUCLIDEAN, Metric, whitening

L, D, N = 3, 8, 12
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, N, L, D)) + RNG.normal(size=(2, 1, L, D))
REFUSAL = RNG.normal(size=(1, L, D)) * 3
ALL = RNG.normal(size=(L, 50, D)) @ RNG.normal(size=(D, D))


def direction(x: np.ndarray, concept: str, **more: object) -> pj.Direction:
  return pj.Direction(x, concept, **more)  # type: ignore[arg-type]


DS = [direction(z.mean(axis=0)[None], name) for name, z in zip("ab", Z, strict=True)]
R = direction(REFUSAL, "refusal", gap_L=np.asarray([1.0, 2.0, 4.0]))
PAIRS = {d.concept: PairDifferences(z) for d, z in zip(DS, Z, strict=True)}


def test_cosines_norms_and_gaps_are_exact() -> None:
  v = np.zeros((1, 2, 3))
  v[0, 0], v[0, 1] = [3, 4, 0], [0, 0, 2]
  r = np.zeros((1, 2, 3))
  r[0] = [2, 0, 0], [0, 0, 5]
  refusal = direction(r, "refusal", gap_L=np.asarray([6.0, 4.0]))
  table = cosine_table([direction(v, "v")], refusal, alpha=[[2.0, -1.0]])
  assert table["cos"].tolist() == [0.6, 1.0]
  assert table["norm"].tolist() == [5.0, 2.0]
  assert table["gaps"].tolist() == [3 * 2 / 6, 2 * -1 / 4]
  assert table["block"].tolist() == [0, 1]
  table = cosine_table([direction(v, "v")], refusal, alpha=[[2.0, -1.0]], unit="unit")
  assert table["gaps"].tolist() == pytest.approx([0.6 * 2 / 6, -1 / 4])
  with pytest.raises(ValueError, match="unit='norm': use 'raw' or 'unit'"):
    cosine_table([direction(v, "v")], refusal, unit="norm")  # type: ignore[arg-type]


def test_rows_are_direction_by_block() -> None:
  table = cosine_table(DS, R, blocks=[2, 0])
  assert list(zip(table["direction"], table["block"], strict=True)) == [
    ("a", 0),
    ("a", 2),
    ("b", 0),
    ("b", 2),
  ]


def test_disattenuation_divides_by_both_reliabilities() -> None:
  v, r = np.asarray([[[3.0, 4.0]]]), np.asarray([[[1.0, 0.0]]])
  found = cosine_table(
    [direction(v, "v", reliability_L=[0.81])], direction(r, "r", reliability_L=[0.64])
  )
  assert found["cos_disattenuated"][0] == pytest.approx(0.6 / 0.72, abs=1e-6)
  found = cosine_table([direction(v, "v", reliability_L=[-0.1])], direction(r, "r"))
  assert np.isnan(found["cos_disattenuated"][0])
  assert "not above 0" in found["reason"][0]


def test_what_is_undefined_says_why() -> None:
  v = np.ones((1, 2, 2))
  v[0, 1] = 0
  table = cosine_table([direction(v, "v")], direction(np.ones((1, 2, 2)), "r"))
  assert table["cos"][0] == pytest.approx(1) and np.isnan(table["cos"][1])
  assert "the direction has no vector here" in table["reason"][1]
  assert "no class gap" in table["reason"][0] and np.isnan(table["gaps"][0])


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_gram_bootstrap_is_that_of_resampled_vectors(whiten: bool, both: bool) -> None:
  metric = whitening(ALL) if whiten else None
  block = 1
  rng = np.random.default_rng(3)
  x_ND, y_ND = Z[0][:, block], Z[1][:, block]
  weight_BN, other_BN = (PAIRS["a"].bootstrap_weights(20, rng) for _ in range(2))
  r_D = REFUSAL[0, block]
  if metric is not None:
    x_ND, y_ND, r_D = (metric.map(x, block) for x in (x_ND, y_ND, r_D))
  if both:
    found = gram.cosines_of_both(x_ND, weight_BN, y_ND, other_BN)
  else:
    found = gram.cosines(x_ND, r_D, weight_BN)
  for b in range(20):
    v_D = np.repeat(x_ND, weight_BN[b].astype(int), axis=0).mean(axis=0)
    if both:
      r_D = np.repeat(y_ND, other_BN[b].astype(int), axis=0).mean(axis=0)
    assert found[b] == pytest.approx(
      v_D @ r_D / np.linalg.norm(v_D) / np.linalg.norm(r_D), abs=1e-12
    )


def test_pairs_of_a_question_are_drawn_together() -> None:
  pairs = PairDifferences(Z[0], [f"q{n // 3}" for n in range(N)])
  weight_BN = pairs.bootstrap_weights(50, np.random.default_rng(0))
  by_question = weight_BN.reshape(50, 4, 3)
  np.testing.assert_array_equal(by_question.min(axis=2), by_question.max(axis=2))
  np.testing.assert_array_equal(weight_BN.sum(axis=1), N)


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("metric", [EUCLIDEAN, whitening(ALL)], ids=["euclidean", "whitened"])
def test_a_sum_is_resampled_as_the_sum_of_its_parts_unit_vectors(metric: Metric) -> None:
  # The second part is longer and lacks the last questions of the first.
  labels = [f"q{n // 2}" for n in range(N)]
  parts = [PairDifferences(Z[0], labels), PairDifferences(50 * Z[1][:9], labels[:9])]
  both = PairSum(parts, [1, -1])
  truth_LD = unit(unit(Z[0].mean(axis=0)) - unit(Z[1][:9].mean(axis=0)))
  block, draws = 1, 30
  np.testing.assert_allclose(unit(both.mean(block)), truth_LD[block], atol=1e-6)
  weight_BN = both.bootstrap_weights(draws, np.random.default_rng(3))
  drawn_BQ = weight_BN[:, :N:2]
  assert (drawn_BQ.sum(axis=1) == 6).all()  # of six questions, whichever parts they are in
  np.testing.assert_array_equal(weight_BN[:, N:], np.repeat(drawn_BQ, 2, axis=1)[:, :9])
  rows_BN = both.row_weights(block, weight_BN)
  r_K = metric.map(REFUSAL[0, block], block)
  found = gram.cosines(metric.map(both.rows(block), block), r_K, rows_BN)
  for b in range(draws):
    first, second = (
      unit(np.repeat(z[:, block], w.astype(int), axis=0).mean(axis=0))
      for z, w in zip((Z[0], Z[1][:9]), np.split(weight_BN[b], [N]), strict=True)
    )
    v_K = metric.map(first - second, block)
    assert found[b] == pytest.approx(unit(v_K) @ unit(r_K), abs=1e-6)


def test_a_sum_has_an_interval_a_band_and_a_reliability() -> None:
  d = direction(unit(unit(Z[0].mean(axis=0)) + unit(Z[1].mean(axis=0)))[None], "a b")
  both = PairSum([PAIRS["a"], PAIRS["b"]], [1, 1])
  table = cosine_table([d], R, pairs={"a b": both}, draws=400)
  assert (table["low"] < table["cos"]).all() and (table["cos"] < table["high"]).all()
  assert (table["shuf_low"] < 0).all() and (table["shuf_high"] > 0).all()
  for block in range(L):
    even, odd = (
      unit(Z[0][h::2, block].mean(axis=0)) + unit(Z[1][h::2, block].mean(axis=0)) for h in (0, 1)
    )
    cos = unit(even) @ unit(odd)
    assert table["reliability"][block] == pytest.approx(2 * cos / (1 + cos), abs=1e-5)
  with pytest.raises(ValueError, match="not the mean of its pair differences"):
    cosine_table([d], R, pairs={"a b": PairSum([PAIRS["a"], PAIRS["b"]], [1, -1])})


def test_a_sum_of_replicates_is_that_of_composed_directions() -> None:
  # Pairs of three replicates; the second part has fewer.
  replicates = [[n % 3 for n in range(N)], [n % 3 for n in range(9)]]
  long = Z * np.asarray([1.0, 9.0])[:, None, None, None]  # one part is much longer
  parts = [PairDifferences(long[0]), PairDifferences(long[1][:9])]
  both = PairSum(parts, [1, -1], replicates)
  by_replicate = [
    direction(np.stack([p.z_NLD[np.asarray(labels) == k].mean(axis=0) for k in range(3)]), f"{i}")
    for i, (p, labels) in enumerate(zip(parts, replicates, strict=True))
  ]
  composed = pj.compose(by_replicate, [1, -1])
  for block in range(L):
    found_D = unit(both.mean(block))
    np.testing.assert_allclose(found_D, composed.unit_LD[block], atol=1e-6)
  # A replicate that has lost a part counts nothing, and others as often as they are drawn.
  weight_N = np.ones((1, N + 9))
  weight_N[0, N + 2 :: 3] = 0
  weight_N[0, np.flatnonzero(np.asarray(sum(replicates, [])) == 1)] = 3
  v_SLD = composed.vectors_SLD
  expected_LD = unit(7 * v_SLD[0] + 3 * 7 * v_SLD[1])
  for block in range(L):
    found_D = unit(both.made_of(block, weight_N)[0])
    np.testing.assert_allclose(found_D, expected_LD[block], atol=1e-6)


def test_a_draw_that_leaves_a_part_without_pairs_has_no_vector() -> None:
  both = PairSum([PairDifferences(Z[0], ["p"] * N), PairDifferences(Z[1], ["q"] * N)], [1, 1])
  weight_BN = both.bootstrap_weights(200, np.random.default_rng(0))
  found = gram.cosines(both.rows(0), REFUSAL[0, 0], both.row_weights(0, weight_BN))
  lacks = (weight_BN[:, :N].sum(axis=1) == 0) | (weight_BN[:, N:].sum(axis=1) == 0)
  assert 80 < lacks.sum() < 120
  np.testing.assert_array_equal(np.isnan(found), lacks)


def test_two_samples_are_drawn_by_themselves() -> None:
  x, y = Z[0] + 3, Z[1][:7]
  r = direction((x.mean(axis=0) - y.mean(axis=0))[None], "r", gap_L=np.ones(L))
  of_r = TwoSamples(x, y, y_clusters=list("aabbccd"))
  weight_BN = of_r.bootstrap_weights(40, np.random.default_rng(2))
  assert (weight_BN[:, :N].sum(axis=1) == N).all()
  np.testing.assert_array_equal(weight_BN[:, N::2][:, :3], weight_BN[:, N + 1 :: 2])
  made_BD = of_r.made_of(1, weight_BN)
  for b in range(40):
    mean_x, mean_y = (
      np.average(z[:, 1], axis=0, weights=w)
      for z, w in zip((x, y), np.split(weight_BN[b], [N]), strict=True)
    )
    np.testing.assert_allclose(made_BD[b], mean_x - mean_y, atol=1e-5)
  fixed, drawn = (
    cosine_table(DS, r, pairs=PAIRS, r_pairs=pairs, metric=whitening(ALL), draws=400)
    for pairs in (None, of_r)
  )
  assert ((drawn["high"] - drawn["low"]) > (fixed["high"] - fixed["low"])).mean() > 0.8
  halves = [
    x[h::2].mean(axis=0) - y[rows].mean(axis=0) for h, rows in ((0, [0, 1, 4, 5]), (1, [2, 3, 6]))
  ]
  for block in range(L):
    cos = np.prod([unit(whitening(ALL).map(h[block], block)) for h in halves], axis=0).sum()
    row = drawn[drawn["block"] == block].iloc[0]
    assert row["reliability_r"] == pytest.approx(2 * cos / (1 + cos), abs=1e-5)
    both = np.sqrt(row["reliability"] * row["reliability_r"])
    assert row["cos_disattenuated"] == pytest.approx(row["cos"] / both, abs=1e-6)


def test_what_a_direction_is_made_of_must_fit() -> None:
  with pytest.raises(ValueError, match="1 parts of"):
    PairSum([PAIRS["a"]], [1])
  with pytest.raises(ValueError, match="give 1 or -1 for each of 2"):
    PairSum([PAIRS["a"], PAIRS["b"]], [1, 0.5])
  with pytest.raises(ValueError, match="labels of replicates"):
    PairSum([PAIRS["a"], PAIRS["b"]], [1, 1], [[0] * N, [0] * 3])
  with pytest.raises(ValueError, match="give one shape"):
    TwoSamples(Z[0], Z[1][:, :2])
  with pytest.raises(ValueError, match="of one cluster"):
    TwoSamples(Z[0], Z[1], y_clusters=["a"] * N)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
  rng = np.random.default_rng(1)
  truth_D, r_D = np.asarray([1.0, 0.5, 0, 0, 0]), np.asarray([1.0, 0, 0, 0, 0])
  cos = truth_D @ r_D / np.linalg.norm(truth_D)
  r = direction(r_D[None, None], "r")
  held = 0
  for _ in range(200):
    z_NLD = (truth_D + rng.normal(size=(60, 5)))[:, None]
    d = direction(z_NLD.mean(axis=0)[None], "v")
    row = cosine_table([d], r, pairs={"v": PairDifferences(z_NLD)}, draws=400).iloc[0]
    held += row["low"] <= cos <= row["high"]
  assert 178 <= held <= 199  # 95 % of 200, within 3 standard errors and some bias


def test_intervals_of_sums_with_a_drawn_r_hold_the_truth_about_as_often_as_they_say() -> None:
  rng = np.random.default_rng(5)
  truths = np.asarray([[1.0, 0.5, 0, 0, 0], [0.2, 2.0, 1.0, 0, 0]])
  r_D = np.asarray([2.0, -1.0, 0, 0, 0])
  cos = unit(unit(truths[0]) - unit(truths[1])) @ unit(r_D)
  held = 0
  for _ in range(100):
    shared = rng.normal(size=(120, 5)) / 2  # a question moves both parts alike
    z = [(truth + shared + rng.normal(size=(120, 5)) / 2)[:, None] for truth in truths]
    x, y = r_D + rng.normal(size=(120, 1, 5)), rng.normal(size=(90, 1, 5))
    mean = unit(z[0].mean(axis=0)) - unit(z[1].mean(axis=0))
    pairs = PairSum([PairDifferences(one, list(range(120))) for one in z], [1, -1])
    r = direction((x.mean(axis=0) - y.mean(axis=0))[None], "r")
    d = direction(mean[None], "v")
    options = {"pairs": {"v": pairs}, "r_pairs": TwoSamples(x, y), "draws": 400}
    row = cosine_table([d], r, **options).iloc[0]  # type: ignore[arg-type]
    held += row["low"] <= cos <= row["high"]
  assert 87 <= held <= 100  # 95 %, within 3 standard errors and some bias


def test_a_new_draw_lies_in_the_band_95_times_in_100() -> None:
  rng = np.random.default_rng(2)
  inside = [
    low <= new <= high
    for null_K, new in zip(rng.normal(size=(4000, 64)), rng.normal(size=4000), strict=True)
    for low, high in [band(null_K)]
  ]
  assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_bands_are_those_of_the_controls_cosines() -> None:
  dose = pj.Dose(np.ones(L, np.float32), ALL.astype(np.float32), 50, {})
  null = pj.controls(DS[0], "R-cov", n=99, moments=dose)["R-cov"]
  table = cosine_table(DS, R, null=null)
  for block in range(L):
    cos_K = sorted(d.unit_LD[block] @ R.unit_LD[block] for d in null)
    rows = table[table["block"] == block]
    # Of 99 draws the bounds are at 2.5 and 97.5 of 100: between the 2nd and 3rd from either end.
    assert rows["null_low"].to_numpy() == pytest.approx((cos_K[1] + cos_K[2]) / 2, abs=1e-6)
    assert rows["null_high"].to_numpy() == pytest.approx((cos_K[-2] + cos_K[-3]) / 2, abs=1e-6)
    beyond = sum(abs(c) >= abs(rows["cos"].iloc[0]) for c in cos_K)
    assert rows["p"].iloc[0] == (1 + beyond) / 100


def test_specificity_counts_ties_and_the_value_itself() -> None:
  null_K = np.asarray([-0.5, 0.1, 0.2, np.nan])
  found = specificity(np.asarray([0.5, -0.6, 0.05, np.nan]), null_K)
  np.testing.assert_array_equal(found, [0.5, 0.25, 1.0, np.nan])


def test_bands_of_swapped_pairs_are_those_of_the_controls_of_that_kind() -> None:
  zero = np.zeros_like(Z[0])
  made = pj.controls(DS[0], "R-shuf", n=3000, pairs=(Z[0], zero))["R-shuf"]
  table = cosine_table(DS[:1], R, pairs={"a": PAIRS["a"]}, draws=3000)
  for block in range(L):
    low, high = np.quantile([d.unit_LD[block] @ R.unit_LD[block] for d in made], [0.025, 0.975])
    assert table["shuf_low"][block] == pytest.approx(low, abs=0.05)
    assert table["shuf_high"][block] == pytest.approx(high, abs=0.05)


def test_reliability_in_another_metric_is_that_of_halves_there() -> None:
  metric = whitening(ALL)
  table = cosine_table(DS, R, metric=metric, pairs=PAIRS)
  for block in range(L):
    even, odd = (metric.map(Z[0][half::2, block].mean(axis=0), block) for half in (0, 1))
    cos = even @ odd / np.linalg.norm(even) / np.linalg.norm(odd)
    assert table["reliability"][block] == pytest.approx(2 * cos / (1 + cos), abs=1e-5)


def test_pairs_that_a_direction_is_not_the_mean_of_are_refused() -> None:
  with pytest.raises(ValueError, match="not the mean of its pair differences"):
    cosine_table(DS, R, pairs={"a": PAIRS["b"]})
  with pytest.raises(ValueError, match="pairs of 'c', of which 0"):
    cosine_table(DS, R, pairs={"c": PAIRS["b"]})


def test_directions_that_do_not_compare_are_refused() -> None:
  with pytest.raises(ValueError, match="'elsewhere' has"):
    cosine_table([pj.Direction(REFUSAL, "elsewhere", "mlp_out")], R)
  with pytest.raises(ValueError, match="no directions"):
    cosine_table([], R)
  heads = pj.Direction(REFUSAL, "r", "head_out", num_heads=2)
  with pytest.raises(ValueError, match="of heads"):
    cosine_table([heads], heads)


# ---- block numbers -------------------------------------------------------------------------------


def test_a_shifted_direction_has_its_vectors_a_block_higher() -> None:
  d = direction(REFUSAL, "r", gap_L=[1.0, 2, 3], reliability_L=[0.1, 0.2, 0.3])
  up, down = shifted(d, 1), shifted(d, -1)
  np.testing.assert_array_equal(up.vectors_SLD[:, 1:], d.vectors_SLD[:, :-1])
  np.testing.assert_array_equal(down.vectors_SLD[:, :-1], d.vectors_SLD[:, 1:])
  assert not up.vectors_SLD[:, 0].any() and not down.vectors_SLD[:, -1].any()
  np.testing.assert_array_equal(up.gap_L, [0, 1, 2])
  np.testing.assert_array_equal(down.reliability_L, np.float32([0.2, 0.3, np.nan]))
  np.testing.assert_array_equal(shifted(d, 0).vectors_SLD, d.vectors_SLD)
  with pytest.raises(ValueError, match="has 3 blocks"):
    shifted(d, 3)


def test_shifting_both_moves_the_cosines_and_shifting_one_mends_a_slip() -> None:
  table = shift_table(DS, R)
  cos_0 = table["cos_0"].to_numpy().reshape(2, L)
  np.testing.assert_allclose(table["cos_plus_1"].to_numpy().reshape(2, L)[:, 1:], cos_0[:, :-1])
  np.testing.assert_allclose(table["cos_minus_1"].to_numpy().reshape(2, L)[:, :-1], cos_0[:, 1:])
  assert np.isnan(table["cos_plus_1"][0])
  slipped = shift_table([shifted(R, -1)], R, moved="v")
  np.testing.assert_allclose(slipped["cos_plus_1"][1:], 1, atol=1e-6)
  assert (slipped["cos_0"][:2].abs() < 0.99).all()


def test_samples_that_cancel_but_for_rounding_give_no_interval_and_the_reason() -> None:
  same = np.random.default_rng(5).normal(size=(1, 1, D)).astype(np.float32) * 100
  noise = np.random.default_rng(6).normal(size=(2, 20, 1, D)) * 1e-6  # the last bit of float32
  r_pairs = TwoSamples(*(same + noise).astype(np.float32))
  z = np.random.default_rng(7).normal(size=(N, 1, D)) + 1.0
  v, r = direction(z.mean(axis=0)[None], "v"), direction(r_pairs.mean(0)[None, None], "refusal")
  table = cosine_table([v], r, pairs={"v": PairDifferences(z)}, r_pairs=r_pairs, draws=200)
  assert np.isfinite(table["cos"][0])
  assert np.isnan(table[["low", "high"]].to_numpy()).all()
  assert "no interval: what is drawn again cancels but for rounding" in table["reason"][0]
