"""Two functions are the same edit only if nothing that they depend on differs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.apply import apply_site
from tests.edits.algebra_test import Arch, D, random_h
from tests.edits.sequences_test import tokens_of

FACTOR = 2.0


def times(by, h, params, offset):
  return h * by


def closing_over(by):
  return lambda h, p, o: h * by


def with_default(by):
  def fn(h, p, o, by=by):
    return h * by

  return fn


class Callable:
  def __init__(self, by):
    self.by = by

  def __call__(self, h, p, o):
    return h * self.by


PAIRS = {
  "constants": (lambda h, p, o: h * 2.0, lambda h, p, o: h * 3.0),
  "inner constants": (
    lambda h, p, o: jax.vmap(lambda x: x * 2.0)(h),
    lambda h, p, o: jax.vmap(lambda x: x * 3.0)(h),
  ),
  "names": (lambda h, p, o: jnp.cos(h), lambda h, p, o: jnp.sin(h)),
  "closures": (closing_over(2.0), closing_over(3.0)),
  "arrays closed over": (closing_over(np.ones(D)), closing_over(np.arange(D))),
  "defaults": (with_default(2.0), with_default(3.0)),
  "partial": (functools.partial(times, 2.0), functools.partial(times, 3.0)),
  "objects": (Callable(2.0), Callable(3.0)),
  "jitted": (jax.jit(lambda h, p, o: h * 2.0), jax.jit(lambda h, p, o: h * 3.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_functions_are_two_edits_in_a_batch_and_in_a_hash(name):
  f, g = (pj.custom_edit(fn, blocks=1, tokens="all", site="resid_post") for fn in PAIRS[name])
  assert f.describe() != g.describe()
  h_BTD = random_h(3, rows=2, tokens=9)
  h_BTD[1] = h_BTD[0]
  table = pj.compile_edits(Arch(), [f, g])
  out_BTD, _ = apply_site(table.sites["resid_post", 1], jnp.asarray(h_BTD), tokens_of(2))
  for b, fn in enumerate(PAIRS[name]):
    np.testing.assert_allclose(out_BTD[b], fn(h_BTD[b], None, None), rtol=1e-5, atol=1e-5)


def test_the_same_function_made_again_is_the_same_edit_and_a_global_counts(monkeypatch):
  scaled = lambda h, p, o: FACTOR * h
  before = pj.custom_edit(scaled, blocks=1).direction_hash
  again = [pj.custom_edit(closing_over(2.0), blocks=1).direction_hash for _ in range(2)]
  assert again[0] == again[1]
  assert pj.custom_edit(scaled, blocks=1).direction_hash == before
  monkeypatch.setitem(globals(), "FACTOR", 3.0)
  assert pj.custom_edit(scaled, blocks=1).direction_hash != before


def test_what_can_not_be_hashed_needs_a_name():
  fn = closing_over(object())
  with pytest.raises(ValueError, match="by is a object.*params=.*name="):
    pj.custom_edit(fn, blocks=1)
  assert pj.custom_edit(fn, blocks=1, name="mine").concept == "mine"


def test_maps_of_rows_that_share_arrays_but_not_blocks_keep_apart():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, D, 1)), rng.normal(size=(2, 1, D))
  rows = [pj.low_rank(a, b, blocks=blocks, tokens="all") for blocks in ([0, 1], [1, 2], [1, 0])]
  h_BTD = random_h(3, rows=3, tokens=9)
  table = pj.compile_edits(Arch(), rows)
  out_BTD, _ = apply_site(table.sites["resid_post", 1], jnp.asarray(h_BTD), tokens_of(3))
  for n, i in enumerate((1, 0, 0)):
    expected = h_BTD[n] + h_BTD[n].astype(np.float64) @ a[i] @ b[i]
    np.testing.assert_allclose(out_BTD[n], expected, rtol=1e-4, atol=1e-4)
