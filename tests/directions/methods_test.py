"""Methods against scikit-learn, and what each finds in data whose truth is known."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from persona_jax.directions import methods
from persona_jax.directions.methods import METHODS


def classes(n=40, d=12, seed=0, gap=1.5):
  rng = np.random.default_rng(seed)
  mix_DD = rng.normal(size=(d, d))
  truth_D = rng.normal(size=d)
  base_ND = rng.normal(size=(n, d)) @ mix_DD
  return base_ND + gap * truth_D + 0.3 * rng.normal(size=(n, d)), base_ND


def unit(v_D):
  return v_D / np.linalg.norm(v_D)


def repengs_sign(v_D, x_ND, y_ND):
  """The rule of repeng's code: by the share of pairs that lie one way and the other."""
  smaller = np.mean([a @ v_D < b @ v_D for a, b in zip(x_ND, y_ND, strict=True)])
  larger = np.mean([a @ v_D > b @ v_D for a, b in zip(x_ND, y_ND, strict=True)])
  return -v_D if smaller > larger else v_D


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(40, 12), (6, 30)])
def test_components_and_their_signs_are_those_of_scikit_learn_and_repeng(seed, shape):
  x_ND, y_ND = classes(*shape, seed=seed)
  middle_ND = (x_ND + y_ND) / 2
  rows = np.stack([x_ND - middle_ND, y_ND - middle_ND], axis=1).reshape(-1, shape[1])
  for found_D, train in (
    (methods.pca_diff(x_ND, y_ND), x_ND - y_ND),
    (methods.pca_center(x_ND, y_ND), rows),
  ):
    theirs_D = PCA(n_components=1).fit(train).components_[0]
    np.testing.assert_allclose(found_D, repengs_sign(theirs_D, x_ND, y_ND), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_lat_is_a_component_of_shuffled_pairs_and_its_seed_says_which(seed):
  x_ND, y_ND = classes(seed=seed)
  all_MD = np.concatenate([x_ND, y_ND])
  order = np.random.default_rng(seed).permutation(len(all_MD))
  pairs = all_MD[order].reshape(-1, 2, all_MD.shape[1])
  theirs_D = PCA(n_components=1).fit(pairs[:, 0] - pairs[:, 1]).components_[0]
  found_D = methods.lat(x_ND, y_ND, seed=seed)
  np.testing.assert_allclose(found_D, repengs_sign(theirs_D, x_ND, y_ND), atol=1e-9)
  assert np.abs(found_D - methods.lat(x_ND, y_ND, seed=seed + 1)).max() > 1e-3


@pytest.mark.parametrize("shape", [(200, 8), (20, 30), (5, 4)])
def test_ledoit_wolf_is_that_of_scikit_learn(shape):
  x_ND, _ = classes(*shape)
  cov_DD, shrinkage = methods.ledoit_wolf(x_ND)
  theirs_DD, theirs = sklearn_ledoit_wolf(x_ND)
  assert shrinkage == pytest.approx(theirs, rel=1e-9)
  np.testing.assert_allclose(cov_DD, theirs_DD, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(60, 10), (20, 40)])
def test_lda_is_that_of_scikit_learn(shape):
  x_ND, y_ND = classes(*shape)
  labels = np.repeat([1, 0], shape[0])
  fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(
    np.concatenate([x_ND, y_ND]), labels
  )
  found_D = methods.lda(x_ND, y_ND)
  np.testing.assert_allclose(found_D, fitted.coef_[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("shape", "c"), [((60, 10), 1.0), ((60, 10), 0.01), ((20, 50), 1.0)])
def test_logistic_regression_is_that_of_scikit_learn(shape, c):
  x_ND, y_ND = classes(*shape, gap=0.5)
  labels = np.repeat([1, 0], shape[0])
  fitted = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(
    np.concatenate([x_ND, y_ND]), labels
  )
  found_D = methods.logistic(x_ND, y_ND, c=c)
  np.testing.assert_allclose(found_D, fitted.coef_[0], rtol=2e-4, atol=1e-5)


def test_every_method_points_from_negatives_to_positives():
  # One dimension tells the classes apart, by amounts that differ from pair to pair.
  rng = np.random.default_rng(3)
  base_ND, amount_N = rng.normal(size=(80, 6)), rng.uniform(2, 12, size=80)
  x_ND = base_ND + amount_N[:, None] * np.eye(6)[2]
  for name, method in METHODS.items():
    v_D = unit(method.make(x_ND, base_ND, **dict(method.options)))
    assert v_D[2] > 0.9, name
    back_D = unit(method.make(base_ND, x_ND, **dict(method.options)))
    assert back_D[2] < -0.9, name


def test_signs_without_a_majority_are_those_of_the_means():
  x_ND = np.asarray([[3.0, 0.0], [-1.0, 0.0]])
  y_ND = np.zeros((2, 2))
  np.testing.assert_array_equal(methods.turned(np.asarray([-1.0, 0.0]), x_ND, y_ND), [1, 0])


def test_pairs_that_all_differ_alike_have_no_component():
  x_ND = np.arange(12.0).reshape(4, 3)
  with pytest.raises(ValueError, match="no component"):
    methods.pca_diff(x_ND + 1.0, x_ND)


def test_logistic_regression_does_not_depend_on_the_size_of_activations():
  x_ND, y_ND = classes(gap=0.5)
  make = METHODS["logistic"].make
  a_D, b_D = make(x_ND, y_ND, c=1.0), make(1000 * x_ND, 1000 * y_ND, c=1.0)
  np.testing.assert_allclose(a_D, b_D, rtol=1e-4, atol=1e-6)


def test_so_few_rows_that_nothing_is_shrunk_give_the_shortest_solution():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 2, 6))  # two rows a class: no estimate of an error to shrink by
  theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
  theirs.fit(np.concatenate([x, y]), [1, 1, 0, 0])
  ours = METHODS["lda"].make(x, y)
  np.testing.assert_allclose(ours, theirs.coef_[0], rtol=1e-5, atol=1e-6)
