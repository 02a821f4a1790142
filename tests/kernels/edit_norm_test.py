"""Every implementation of `edit_norm` against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from persona_kernels.edit_norm import edit_norm
from persona_kernels.edit_norm.arg_specs import MEASURED, TESTED, ArgSpec, arguments, shapes

IMPLEMENTATIONS = (
  "reference", "xla", "mosaic_tpu",
  pytest.param("mosaic_gpu", marks=pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="JAX simulates GPUs from 0.11 on")),
)  # fmt: skip


def run(name, args, options):
  if name.startswith("mosaic"):  # as if on its device, on the host
    return edit_norm(*args, **options, implementation=name, interpret=True)
  return jax.jit(lambda *a: edit_norm(*a, **options, implementation=name))(*args)


def in_float64(args, options):
  """The definition on the same numbers; x + delta is rounded as the stream is."""
  x, delta, slots, scale, bank = args
  with jax.enable_x64(True):
    wide = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)
    plain = wide(x + delta)
    slots = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else wide(leaf), slots)
    out = edit_norm(
      plain, jnp.zeros_like(plain), slots, wide(scale), None if bank is None else wide(bank),
      **options, implementation="reference",
    )  # fmt: skip
    return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("spec", TESTED, ids=lambda spec: spec.name)
def test_implementation_equals_the_definition_in_float64(name, spec):
  args, options = arguments(spec)
  out, expected = run(name, args, options), in_float64(args, options)
  near = np.zeros(out.h_BTD.shape[:2], bool)  # a projection within rounding of a threshold
  step = 2.0**-8 if spec.dtype == "bfloat16" else 2e-6
  error_BT = np.abs(np.asarray(out.h_BTD, np.float64) - expected.h_BTD).max(axis=-1)
  limit = step * np.abs(expected.h_BTD).max()
  near |= error_BT > limit
  assert near.mean() < 0.02, error_BT.max()  # else it is no matter of a threshold
  keep = ~near
  np.testing.assert_allclose(
    np.asarray(out.y_BTD, np.float64)[keep], expected.y_BTD[keep],
    atol=2 * step * np.abs(expected.y_BTD).max(),
  )  # fmt: skip
  if spec.directions:
    np.testing.assert_allclose(
      np.asarray(out.reads_BTR)[keep], expected.reads_BTR[keep], atol=4 * step * 10
    )
  np.testing.assert_allclose(
    np.asarray(out.requested_BT)[keep], expected.requested_BT[keep], rtol=1e-3, atol=1e-3
  )
  if spec.dtype == "float32":
    np.testing.assert_allclose(out.realised_BT, out.requested_BT, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_tokens_without_edits_keep_the_bits_of_the_sum(name):
  args, options = arguments(TESTED[-1])
  out = run(name, args, options)
  off_BT = ~np.asarray(args[2].strength_BTS != 0).any(axis=-1)
  assert off_BT[0].all() and 0 < off_BT[1].sum() < off_BT[1].size
  plain = np.asarray(args[0] + args[1])
  assert np.asarray(out.h_BTD)[off_BT].tobytes() == plain[off_BT].tobytes()
  assert not np.asarray(out.requested_BT)[off_BT].any()


def test_wrong_shapes_and_names_are_refused():
  args, options = arguments(TESTED[1])
  with pytest.raises(ValueError, match="mosaic_tpu"):
    edit_norm(*args, **options, implementation="triton")
  with pytest.raises(ValueError, match="delta_BTD has shape"):
    edit_norm(args[0], args[1][:, :3], *args[2:], **options)
  with pytest.raises(ValueError, match="must be alike"):
    edit_norm(args[0], args[1].astype(jnp.bfloat16), *args[2:], **options)
  with pytest.raises(ValueError, match=r"bank_RD has shape \(2, 3\)"):
    edit_norm(*args[:4], jnp.ones((2, 3)), **options)


def test_measured_sizes_trace():
  for spec in MEASURED:
    args, options = shapes(spec)
    out = jax.eval_shape(lambda *a, options=options: edit_norm(*a, **options), *args)
    assert out.h_BTD.shape == (spec.rows, spec.tokens, spec.width)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_without_a_scale_there_is_no_norm_and_the_rest_is_the_same(name):
  args, options = arguments(TESTED[2])
  whole, bare = run(name, args, options), run(name, (*args[:3], None, args[4]), options)
  assert bare.y_BTD is None
  for field in ("h_BTD", "reads_BTR", "realised_BT", "requested_BT"):
    np.testing.assert_allclose(getattr(bare, field), getattr(whole, field), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", MEASURED, ids=lambda spec: spec.name)
def test_gpu_kernel_lowers_for_cuda(spec):
  args, options = shapes(spec)
  run = jax.jit(lambda *a: edit_norm(*a, **options, implementation="mosaic_gpu"))
  assert "mosaic_gpu" in run.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def test_gpu_kernel_refuses_widths_that_lanes_cannot_share():
  args, options = arguments(ArgSpec("odd", 1, 2, 576, 1))
  with pytest.raises(ValueError, match=r"128 divides; got 576.*xla"):
    edit_norm(*args, **options, implementation="mosaic_gpu", interpret=True)
