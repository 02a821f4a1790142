"""Whole blocks go through the TPU compiler; the wheel is needed, no device."""

import re

import jax
import pytest

from persona_jax.edits.apply import TokenInfo
from persona_jax.engine.forward import run_blocks
from persona_jax.models import llama
from persona_kernels.chips import CHIPS, one_device, placed

pytest.importorskip("libtpu", reason="make aot installs it")


def products_by_fusion(text):
  """Count the matrix products in each fused computation, those that it calls included."""
  bodies = {}
  for computation in text.split("\n\n"):
    if match := re.match(r"\s*(%[\w.-]+) \(", computation):
      bodies[match[1]] = computation

  def count(name):
    inner = re.findall(r"calls=(%[\w.-]+)", bodies[name])
    return len(re.findall(r" convolution\(", bodies[name])) + sum(map(count, inner))

  return {name: count(name) for name in bodies if "fused_computation" in name}


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_no_product_is_computed_anew_for_every_tile_of_another(chip):
  """A product fused into the next one is recomputed per tile: 1.7 times the block on v6e."""
  arch = llama.parse(
    dict(
      model_type="llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
      intermediate_size=14336, num_hidden_layers=1, vocab_size=256, rms_norm_eps=1e-5,
      rope_theta=5e5, max_position_embeddings=8192, hidden_act="silu", tie_word_embeddings=False,
    )
  )  # fmt: skip
  whole = jax.ShapeDtypeStruct((128, 128), "int32")
  args = (
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), arch.family.abstract_params(arch)
    ),
    jax.ShapeDtypeStruct((128, 128, 4096), "bfloat16"),
    whole,
    TokenInfo(whole, whole, jax.ShapeDtypeStruct((128, 128), "bool")),
  )

  def run(params, h_BTD, position_BT, info):
    return run_blocks(arch, params, h_BTD, position_BT, info).h_BTD

  compiled = jax.jit(run).lower(*placed(args, one_device(chip))).compile()
  counts = products_by_fusion(compiled.as_text())
  # Queries, keys, values, two of attention, output, gate, up, down.
  assert sum(counts.values()) >= 9
  assert max(counts.values()) == 1
