"""Attention of long prompts goes through the TPU and GPU compilers; the wheels are needed."""

import ctypes

import jax
import jax.numpy as jnp
import pytest

from persona_jax.models.attention import Shared, Slots, attend
from persona_jax.models.fused_attention import FusedAttention
from persona_jax.models.layers import KV, Rotation
from persona_kernels.chips import CHIPS, one_device, one_h200, placed

pytest.importorskip("libtpu", reason="make aot installs it")

TOKENS = 2048
SPLASH = FusedAttention("splash_tpu")
TWO = tuple(chip for chip in CHIPS if chip.name in ("v5e", "v6e"))


def compiled(device, fused, heads, *, tokens=TOKENS, rows=1, parts=0, window=None, cap=None):
  """Compiles attention of bfloat16; `heads` is (N, K, H)."""
  n, k, h = heads

  def kv(groups: int, slots: int) -> KV:
    return KV(array(groups, k, h, slots), array(groups, k, slots, h))

  def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  def run(q_BTNH, kv, position_BT, rope, shared, start):
    slots = Slots(
      position_BT=position_BT + start, slot_position_BS=position_BT + start, rope=rope,
      mask_BTS=None, shared=shared, window=window, fused=fused,
    )  # fmt: skip
    return attend(q_BTNH, kv, slots, jnp.bfloat16, cap=cap)

  angle = array(rows, tokens, h // 2, dtype="float32")
  common = Shared(kv(1, 512), array(1, 512, dtype="int32"), None, None, None)
  args = (
    array(rows, tokens, n, h, dtype="float32"),
    kv(rows, tokens),
    array(rows, tokens, dtype="int32"),
    Rotation(angle, angle),
    (common,) * parts,
    array(dtype="int32"),
  )
  return jax.jit(run).lower(*placed(args, device)).compile()


def all_scores(heads) -> int:
  return heads[0] * TOKENS * TOKENS * 4


@pytest.mark.parametrize("parts", [0, 1])
@pytest.mark.parametrize("chip", TWO, ids=lambda chip: chip.name)
def test_tpu_kernel_of_llama_8b_has_no_array_of_all_scores(chip, parts):
  heads = (32, 8, 128)
  program = compiled(one_device(chip), SPLASH, heads, parts=parts)
  assert "tpu_custom_call" in program.as_text()
  # Queries, values and logarithms, these in 128 lanes.
  assert program.memory_analysis().temp_size_in_bytes < 0.25 * all_scores(heads)


@pytest.mark.parametrize(
  ("heads", "options"),
  [
    ((9, 3, 64), {}),  # SmolLM2
    ((8, 4, 256), dict(window=512, cap=50.0)),  # Gemma 2
    ((32, 8, 128), dict(tokens=208, rows=4)),
  ],
  ids=["SmolLM2", "Gemma 2", "208 tokens"],
)
def test_tpu_kernel_takes_other_sizes(heads, options):
  assert "tpu_custom_call" in compiled(one_device(TWO[0]), SPLASH, heads, **options).as_text()


def test_chunks_on_a_tpu_have_no_array_of_all_scores():
  heads = (32, 8, 128)
  program = compiled(one_device(TWO[0]), None, heads)
  assert "tpu_custom_call" not in program.as_text()
  assert program.memory_analysis().temp_size_in_bytes < 0.25 * all_scores(heads)


@pytest.mark.parametrize("window", [None, 512])
def test_gpu_kernel_of_llama_8b_has_no_array_of_all_scores(window):
  pytest.importorskip("jax_plugins.xla_cuda13", reason="make aot installs it")
  try:
    ctypes.CDLL("libcudnn.so.9")
  except OSError:
    pytest.skip("cuDNN is not installed (pip install nvidia-cudnn-cu13, and LD_LIBRARY_PATH)")
  heads = (32, 8, 128)
  program = compiled(one_h200(), FusedAttention("cudnn"), heads, window=window)
  assert "cudnn" in program.as_text()
  assert program.memory_analysis().temp_size_in_bytes < 0.25 * all_scores(heads)
