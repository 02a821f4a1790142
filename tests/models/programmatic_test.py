"""The forward pass of every family under the user's own `jax.jit`, `jax.vmap` and `jax.grad`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from tests.parity import family_numbers
from tests.parity.checks import relative_error
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, VOCAB, random_tensors, rows
from tests.reference.random_llama import vocabulary

# Of each family one whose first two blocks show much of what is its own.
TITLES = (
  "llama, llama3 scaling, tied",
  "qwen2, YaRN, tied",
  "qwen3, YaRN, sliding window",
  "gemma2, both caps",
  "gemma3, linear scaling of full blocks, one key head",
)
TOKENS_BT = np.asarray([rows()[0], rows()[0][::-1]])  # of the first row there are kept numbers
ENDS_B = np.asarray([18, 9])
WEIGHT_BTV = np.random.default_rng(0).normal(size=(*TOKENS_BT.shape, VOCAB)).astype(np.float32) / 70
# Central differences of fourth order allow steps that are large beside float32's rounding.
STEPS = 0.02 * np.asarray([-2, -1, 1, 2])
FOURTH_ORDER = np.asarray([1, -8, 8, -1]) / (12 * 0.02)


@pytest.fixture(scope="module", params=TITLES)
def kept(request):
  return family_numbers.load()[request.param] | {"config": CONFIGS[request.param]}


@pytest.fixture(scope="module")
def model(kept, tmp_path_factory):
  """The first two blocks, which do what they do below others."""
  config = kept["config"] | {"num_hidden_layers": 2}
  above = tuple(f"model.layers.{i}." for i in range(2, kept["config"]["num_hidden_layers"]))
  shapes = {name: s for name, s in kept["shapes"].items() if not name.startswith(above)}
  directory = tmp_path_factory.mktemp("family")
  write_checkpoint(directory, config, random_tensors(config, shapes), vocabulary(config))
  return pj.load(directory)


def table_of(model, seed, amount=1.0):
  """An addition and projections; bounds hold every token or none, so that nothing has a kink."""
  rng = np.random.default_rng(seed)
  d = [pj.Direction(rng.normal(size=(1, 2, model.arch.width)), "v") for _ in range(5)]
  at = lambda site, block: dict(site=site, blocks=block, tokens="all", allow_other_site=True)
  push = pj.add(d[0], 2 * amount, unit="unit", **at("attn_out", 0))
  cap = pj.cap(d[1], -6 * amount, unit="unit", **at("mlp_out", 0))
  floor = pj.floor(d[1], 5 * amount, unit="unit", **at("mlp_out", 0))
  double = pj.scale(d[2], 1 + amount, **at("mlp_out", 0))
  ablate = pj.ablate(d[3], **at("resid_pre", 1) | {"tokens": "prompt"})
  set_to = pj.set_to(d[4], amount, unit="unit", **at("resid_pre", 1))
  return pj.compile_edits(model, [[push, cap, double, ablate, set_to], [floor, double, set_to]])


def run(model, table):
  return pj.forward(model, TOKENS_BT, table, pj.Capture(), prompt_lengths_B=ENDS_B)


@functools.partial(jax.grad, argnums=1, allow_int=True)  # windows are integers
def gradient(model, table):
  return jnp.vdot(WEIGHT_BTV, run(model, table)[0])


compiled, vmapped = jax.jit(run), jax.jit(jax.vmap(run, (None, 0)))
compiled_gradient = jax.jit(gradient)


def stack(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_jit_with_a_neutral_table_gives_the_residuals_of_transformers(model, kept):
  neutral = pj.compile_edits(model, [None, None], like=table_of(model, 1))
  _, reads = compiled(model, neutral)
  for block in range(2):
    ours_D = np.asarray(reads["resid_post", block][0, -1])
    assert relative_error(ours_D, np.asarray(kept["last_residuals"][block])) <= 1e-5


def test_vmap_over_tables_equals_a_loop(model):
  tables = [table_of(model, seed, amount) for seed, amount in ((1, 1.0), (2, 0.5), (3, 0.2))]
  tables.append(pj.compile_edits(model, [None, None], like=tables[0]))
  loop = [compiled(model, table) for table in tables]
  for ours, expected in zip(
    jax.tree.leaves(vmapped(model, stack(tables))), jax.tree.leaves(stack(loop)), strict=True
  ):
    np.testing.assert_allclose(ours, expected, atol=3e-5)
  for one, other in zip(loop, loop[1:], strict=False):
    assert float(jnp.abs(one[0] - other[0]).max()) > 0.1


def test_gradients_of_vectors_and_amounts_equal_finite_differences(model):
  table, rng = table_of(model, 1), np.random.default_rng(0)
  flat, tree = jax.tree.flatten_with_path(table)
  grads = [np.asarray(g) for g in jax.tree.leaves(compiled_gradient(model, table))]
  slopes = []
  for n, (path, leaf) in enumerate(flat):
    if leaf.dtype != jnp.float32:
      continue
    size, finite = np.linalg.norm(grads[n]), np.isfinite(leaf)
    if not finite.any():  # bounds that are absent are infinite
      assert size == 0
      continue
    assert size > 0, path
    # Along the gradient, so that the slope is no small difference, and half as far some other way.
    other = rng.normal(size=leaf.shape) * finite
    way = grads[n] / size + 0.5 * other / np.linalg.norm(other)
    moved = [
      tree.unflatten(
        [x if m != n else jnp.where(finite, x + step * way, x) for m, (_, x) in enumerate(flat)]
      )
      for step in STEPS
    ]
    logits_PBTV = np.asarray(vmapped(model, stack(moved))[0], np.float64)
    values_P = np.einsum("PBTV,BTV->P", logits_PBTV, WEIGHT_BTV)
    slopes.append((np.vdot(grads[n], way), values_P @ FOURTH_ORDER))
  assert len(slopes) == 1 + 7 + 5  # of the slots at resid_pre none has bounds
  ours, numeric = np.asarray(slopes).T
  np.testing.assert_allclose(ours, numeric, rtol=5e-3)
