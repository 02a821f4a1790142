"""Permutation tests against scipy, the order of the group, and its exactness."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from persona_jax import stats

POLES = {trait + sign: (trait + sign,) for trait in "OCEAN" for sign in "+-"}
CLOSED = POLES | {
  a + s + b + t: (a + s, b + t)
  for a, b in itertools.combinations("OCEAN", 2)
  for s, t in itertools.product("+-", repeat=2)
}


def test_the_permutation_p_of_rho_is_scipys_exact_one() -> None:
  x_P, y_P = np.random.default_rng(0).normal(size=(2, 7))
  ours = stats.rank_permutation(x_P, y_P, permutations=50_000)
  theirs = scipy.stats.permutation_test(
    (x_P,),
    lambda x: scipy.stats.spearmanr(x, y_P).statistic,
    permutation_type="pairings",
    n_resamples=np.inf,
  )
  assert ours.value == pytest.approx(scipy.stats.spearmanr(x_P, y_P).statistic)
  assert ours.p == pytest.approx(theirs.pvalue, abs=0.01)


def test_equal_rankings_have_the_least_p_and_reversed_ones_are_not_greater() -> None:
  x_P = np.arange(12.0)
  assert stats.rank_permutation(x_P, x_P**3, permutations=999).p == 1 / 1000
  assert stats.rank_permutation(x_P, -x_P, permutations=999, alternative="greater").p == 1.0
  assert stats.rank_permutation(x_P, -x_P, permutations=999, alternative="less").p == 1 / 1000


@pytest.mark.parametrize(("personas", "n"), [(POLES, 10), (CLOSED, 50)])
def test_the_group_of_five_traits_has_3840_elements(personas: dict, n: int) -> None:
  move_GP = stats.signed_group(personas)
  assert move_GP.shape == (3840, n)
  assert len(np.unique(move_GP, axis=0)) == 3840
  assert (np.sort(move_GP, axis=1) == np.arange(n)).all()
  assert (move_GP == np.arange(n)).all(axis=1).any()


def test_two_poles_of_two_traits_are_moved_by_hand() -> None:
  personas = {"C+": ("C+",), "C-": ("C-",), "A+": ("A+",), "A-": ("A−",)}
  move = {tuple(row) for row in stats.signed_group(personas).tolist()}
  wanted = {(0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (1, 0, 3, 2)}
  wanted |= {(2, 3, 0, 1), (3, 2, 0, 1), (2, 3, 1, 0), (3, 2, 1, 0)}
  assert move == wanted


def test_the_signed_p_is_the_share_of_the_group_by_brute_force() -> None:
  rng = np.random.default_rng(1)
  x_P, y_P = rng.normal(size=(2, 10))
  names = list(POLES)
  extreme, total = 0, 0
  observed = abs(np.corrcoef(x_P, y_P)[0, 1])
  for order in itertools.permutations(range(5)):
    for flips in itertools.product((0, 1), repeat=5):
      image = [2 * order[i // 2] + (i % 2 + flips[i // 2]) % 2 for i in range(len(names))]
      total += 1
      extreme += abs(np.corrcoef(x_P[image], y_P)[0, 1]) >= observed - 1e-9
  result = stats.signed_permutation(POLES, x_P, y_P, ranks=False)
  assert (result.p, result.arrangements) == (extreme / total, 3840)


def test_the_signed_test_holds_its_level_where_the_naive_one_does_not() -> None:
  rng = np.random.default_rng(2)
  signs_PT = np.kron(np.eye(5), [[1.0], [-1.0]])
  signed, naive = 0, 0
  for seed in range(400):
    x_P, y_P = signs_PT @ rng.normal(size=5), signs_PT @ rng.normal(size=5)
    signed += stats.signed_permutation(POLES, x_P, y_P + 0.1 * rng.normal(size=10)).p <= 0.05
    naive += stats.naive_permutation(x_P, y_P, permutations=300, seed=seed).p <= 0.05
  assert signed / 400 <= 0.08
  assert naive / 400 >= 0.15


@pytest.mark.parametrize(
  ("x", "y", "reason"),
  [
    (np.ones(10), np.arange(10.0), "x constant"),
    (np.arange(10.0), np.full(10, math.nan), "a value is missing"),
  ],
)
def test_an_undefined_correlation_has_no_p(x: np.ndarray, y: np.ndarray, reason: str) -> None:
  for result in (stats.rank_permutation(x, y), stats.signed_permutation(POLES, x, y)):
    assert math.isnan(result.value) and math.isnan(result.p) and result.reason == reason


@pytest.mark.parametrize(
  ("personas", "message"),
  [
    (POLES | {"P12": ("C+", "A+")}, "not closed under signed permutations"),
    ({"a": ("C+",), "b": ("C+",)}, "same signed traits"),
    ({"a": ("C",)}, "a name and a sign each"),
    ({"a": "C+"}, "is|are the string 'C\\+'"),
    ({"a": ("C+", "C-")}, "names a trait twice"),
  ],
)
def test_faulty_poles_are_named(personas: dict, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    stats.signed_group(personas)


def test_series_that_do_not_fit_are_named() -> None:
  with pytest.raises(ValueError, match="9 values for 10 personas"):
    stats.signed_permutation(POLES, np.arange(9.0), np.arange(9.0))
  with pytest.raises(ValueError, match="unknown alternative 'both'"):
    stats.rank_permutation([1, 2, 3], [1, 2, 3], alternative="both")  # type: ignore[arg-type]
