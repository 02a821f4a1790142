"""Plans for an accelerator that is not here, of a model whose weights are not here."""

import shutil

import jax
import pytest

import persona_jax as pj
from persona_jax.engine.accelerators import ACCELERATORS, Clock, duration
from persona_jax.models.families import family

LLAMA_8B = {
  "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
  "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip


@pytest.fixture
def bare(tiny, tmp_path):
  """A copy of the tiny model's directory without its weights."""
  shutil.copytree(tiny.directory, tmp_path / "bare")
  (tmp_path / "bare" / "model.safetensors").unlink()
  return tmp_path / "bare"


def grid(**options):
  conditions = [pj.Condition("a"), pj.Condition("b", system="w7 w8")]
  return pj.Grid(["w5 w6", "w9"], conditions, max_new_tokens=8, **options)


def test_a_model_without_weights_is_planned_like_one_with_them(tiny, bare):
  shapes = pj.load(bare, dtype="float32", weights=False)
  found, expected = pj.plan(shapes, grid()), pj.plan(tiny.model, grid())
  assert str(found) == str(expected).replace(tiny.model.identity.name, shapes.identity.name)
  assert (found.row_tokens, found.params_bytes) == (expected.row_tokens, expected.params_bytes)


def test_a_model_without_weights_is_not_run(bare, tmp_path):
  shapes = pj.load(bare, dtype="float32", weights=False)
  message = "loaded without weights"
  with pytest.raises(ValueError, match=message):
    shapes.generate(["w5"], max_new_tokens=1)
  with pytest.raises(ValueError, match=message):
    shapes.score(["w5"], ["w6"])
  with pytest.raises(ValueError, match=message):
    shapes.capture(["w5"], pj.Capture())
  with pytest.raises(ValueError, match=message):
    pj.run(shapes, grid(), out=tmp_path / "run")
  with pytest.raises(FileNotFoundError):
    pj.load(bare, dtype="float32")


def test_seconds_follow_from_weights_products_and_caches(tiny):
  model = pj.load(tiny.directory, dtype="bfloat16", weights=False)
  plan = pj.plan(model, grid(), on="h200")
  h200, arch = ACCELERATORS["h200"], model.arch
  clock = Clock(model.params, arch, h200)
  (tile,) = plan.tiles
  ((rows, slots, steps),) = tile.decoding.segments
  weights = sum(x.size for block in model.params["blocks"] for x in block.values())
  prefill = 2 * weights * tile.padded_passes / arch.num_blocks / (0.88 * 750e12)
  prompts = sum(p for p, _ in tile.lanes[0])
  cached = prompts * sum(plan.row_tokens) / 4 + rows * slots / 2
  streamed = plan.params_bytes + cached * 2 * 2 * arch.num_blocks * arch.num_kv_heads * (
    arch.head_dim
  )
  products = 2 * (weights + arch.vocab_size * arch.width) * rows
  decode = steps * (streamed / 3.791e12 + products / 750e12)
  assert plan.seconds == pytest.approx(prefill + decode, rel=1e-12)
  assert clock.prefill(10) == pytest.approx(20 * weights / (0.88 * 750e12))
  assert f"{duration(plan.seconds)} estimated on one NVIDIA H200" in str(plan)
  assert plan.memory_bytes == int(0.9 * (139 << 30))


def test_a_step_of_256_rows_of_8b_is_what_was_measured():

  arch = family("llama").parse(LLAMA_8B)
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), family("llama").abstract_params(arch)
  )
  step = Clock(params, arch, ACCELERATORS["h200"]).decode(256, 1, own=32)
  assert step == pytest.approx(10.1e-3, rel=0.05)  # BENCHMARKS.md, "On one GPU"


def test_unknown_accelerators_and_other_types_are_refused(tiny):
  with pytest.raises(
    ValueError, match=r"accelerator 'a100' is unknown; known are \['h100', 'h200'"
  ):
    pj.plan(tiny.model, grid(), on="a100")
  with pytest.raises(ValueError, match="weights of 32 bits: the figures of NVIDIA H200"):
    pj.plan(tiny.model, grid(), on="h200")


def test_durations_have_the_unit_that_fits():
  assert [duration(s) for s in (7200, 90, 5)] == ["2.0 h", "1.5 min", "5.0 s"]
