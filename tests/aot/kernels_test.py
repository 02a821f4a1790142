"""The kernels go through the real compilers of their devices; the wheels are needed, no device."""

import jax
import jax.numpy as jnp
import pytest

from persona_kernels.chips import CHIPS, one_device, one_h200, placed
from persona_kernels.edit_norm import edit_norm
from persona_kernels.edit_norm.arg_specs import MEASURED, ArgSpec, shapes

pytest.importorskip("libtpu", reason="make aot installs it")
pytest.importorskip("jax_plugins.xla_cuda13", reason="make aot installs it")

COMPILED = (
  *MEASURED,
  ArgSpec("norm kept", 16, 512, 4096, 2, keep_norm=True),
  ArgSpec("float32, Gemma's scale", 8, 512, 2304, 2, 8, dtype="float32", offset=1.0),
  ArgSpec("width of SmolLM2", 8, 200, 576, 1),
  ArgSpec("width 8192", 4, 1024, 8192, 4),
  ArgSpec("blocks of 16 tokens", 4, 208, 4096, 1),
)


@pytest.mark.parametrize("spec", COMPILED, ids=lambda spec: spec.name)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_kernel_compiles_and_takes_the_place_of_x(chip, spec):
  args, options = shapes(spec)
  run = jax.jit(lambda *a: edit_norm(*a, **options, implementation="mosaic_tpu"), donate_argnums=0)
  compiled = run.lower(*placed(args, one_device(chip))).compile()
  assert "tpu_custom_call" in compiled.as_text()
  if spec.tokens % 16 == 0:  # else the tokens are padded, and what is padded is a copy
    stream = spec.rows * spec.tokens * spec.width * jnp.dtype(spec.dtype).itemsize
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= stream
    assert memory.temp_size_in_bytes < 0.3 * stream  # narrow arrays, padded to lanes


@pytest.mark.parametrize(
  "spec", [s for s in COMPILED if s.width % 128 == 0], ids=lambda spec: spec.name
)
def test_gpu_kernel_compiles_for_h200_with_no_copy_of_the_stream(spec):
  args, options = shapes(spec)
  run = jax.jit(lambda *a: edit_norm(*a, **options, implementation="mosaic_gpu"))
  compiled = run.lower(*placed(args, one_h200())).compile()
  assert "mosaic_gpu" in compiled.as_text()
  stream = spec.rows * spec.tokens * spec.width * jnp.dtype(spec.dtype).itemsize
  # The read-out takes the stream in float32, the one copy there is.
  assert compiled.memory_analysis().temp_size_in_bytes < (2.1 if spec.directions else 0.1) * stream
