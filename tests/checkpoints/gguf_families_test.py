"""Every architecture from GGUF: the same numbers as from the safetensors that it was made of."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.gguf_architectures import ARCHITECTURES, Fields
from persona_jax.models import families
from tests.parity import family_numbers
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors
from tests.reference.random_llama import vocabulary
from tests.reference.tiny_gguf import VOCAB, llama3_factors, write_model

# The head width of these is the scale of scores, which GGUF files do not name.
GEMMA = {"query_pre_attn_scalar": 10}
LLAMA3 = {
  "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}  # fmt: skip
# Title in `CONFIGS` → what is changed.
CHANGES = {
  "llama, no scaling, one key head": {},
  "llama, llama3 scaling, tied": {"rope_scaling": LLAMA3},
  "llama, llama3 scaling, another base": {"rope_scaling": LLAMA3 | {"factor": 8.0}},
  "qwen2, biases of q, k, v": {},
  "qwen2, YaRN, tied": {},
  "qwen3, QK-norm, tied": {},
  "qwen3, YaRN, sliding window": {"use_sliding_window": False},
  "gemma2, both caps": GEMMA,
  "gemma3, five to one": GEMMA,
}
LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3 = (
  next(t for t in CHANGES if t.startswith(name))
  for name in ("llama, llama3", "qwen2, YaRN", "qwen3", "gemma2", "gemma3")
)


def checkpoint(title):
  config = CONFIGS[title] | CHANGES[title] | {"vocab_size": VOCAB}
  shapes = family_numbers.load()[title]["shapes"]
  for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(shapes):
    shapes[name] = [VOCAB, config["hidden_size"]]
  tensors = random_tensors(config, shapes)
  if config["model_type"].startswith("gemma"):  # so that 1 + w is no rounding
    tensors |= {n: (t + 1) - np.float32(1) for n, t in tensors.items() if "norm" in n}
  return config, tensors


def write(path, title, **changes):
  return write_model(path / "m.gguf", *checkpoint(title), **changes)


@pytest.mark.parametrize("title", CHANGES)
def test_gguf_and_safetensors_give_the_same_model(title, tmp_path):
  config, tensors = checkpoint(title)
  write_checkpoint(tmp_path / "dir", config, tensors, vocabulary(config))
  ours, theirs = (
    pj.load(source)
    for source in (write_model(tmp_path / "m.gguf", config, tensors), tmp_path / "dir")
  )
  assert ours.arch == theirs.arch
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 20)))
  logits_BTV = pj.forward(theirs, tokens_BT)[0]
  np.testing.assert_allclose(pj.forward(ours, tokens_BT)[0], logits_BTV, rtol=0, atol=1e-6)
  assert float(jnp.abs(logits_BTV).max()) > 1


def test_llama3_scaling_is_recovered_from_its_factors(tmp_path):
  assert GGUFFile(write(tmp_path, LLAMA)).config["rope_scaling"] == LLAMA3


def recovered(head_dim, scaling):
  config = {"rope_theta": 5e5, "head_dim": head_dim, "rope_scaling": scaling}
  fields = Fields(Path("m.gguf"), "llama", {}, llama3_factors(config))
  return fields.llama3_scaling(5e5, head_dim)


@pytest.mark.parametrize("head_dim,factor", [(128, 8.0), (64, 32.0)])  # Llama 3.1, 3.2
def test_factors_of_the_published_sizes_are_recognised(head_dim, factor):
  assert recovered(head_dim, LLAMA3 | {"factor": factor}) == LLAMA3 | {"factor": factor}


@pytest.mark.parametrize(
  "change",
  [
    {"high_freq_factor": 3.9},
    {"low_freq_factor": 1.1},
    {"original_max_position_embeddings": 8000},
    {"factor": 0.5},
  ],
)
def test_factors_of_other_settings_are_refused(change):
  with pytest.raises(ValueError, match=r"rope_freqs\.weight has 32 factors.*they are not those"):
    recovered(64, LLAMA3 | change)


def test_settings_that_give_the_same_frequencies_are_one():
  assert recovered(64, LLAMA3 | {
    "low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 16384,
  }) == LLAMA3  # fmt: skip


@pytest.mark.parametrize(
  "factors", [[1, 1, 1, 1, 1], [1, 2, 3, 4, 32], [1, 8], [np.nan] * 5, [[1, 1, 1, 1, 8]]]
)
def test_a_file_with_other_factors_is_refused(factors, tmp_path):
  stored = {"rope_freqs.weight": np.array(factors, np.float32)}
  with pytest.raises(ValueError, match=r"rope_freqs\.weight has \d factors"):
    GGUFFile(write(tmp_path, LLAMA, stored=stored))


def test_yarn_is_read_with_its_bounds(tmp_path):
  changes = {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}
  assert GGUFFile(write(tmp_path, QWEN2, fields=changes)).config["rope_scaling"] == {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0,
    "beta_slow": 2.0,
  }  # fmt: skip


def test_scaling_of_the_full_blocks_of_gemma3_is_read(tmp_path):
  changes = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
  config = GGUFFile(write(tmp_path, GEMMA3, fields=changes)).config
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
  assert config["rope_local_base_freq"] == 10000.0 and config["sliding_window"] == 6


def test_the_first_gemma2_files_lack_what_llama_cpp_then_supposes(tmp_path):
  names = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
  config = GGUFFile(write(tmp_path, GEMMA2, fields=dict.fromkeys(names))).config
  arch = families.family("gemma2").parse(config)
  assert (arch.attn_softcap, arch.final_softcap, arch.kind(0).window) == (50.0, 30.0, 4096)


@pytest.mark.parametrize("name,blocks", [("gemma2", 46), ("gemma3", 62)])
def test_the_27b_models_alone_scale_scores_by_the_stream(name, blocks):
  sizes = {
    "block_count": blocks, "context_length": 8192, "embedding_length": 4608,
    "feed_forward_length": 36864, "attention.head_count": 32, "attention.key_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 4096, "vocab_size": 9,
  }  # fmt: skip
  for count, scalar in ((blocks, 144), (blocks - 1, 128)):
    fields = {f"{name}.{key}": value for key, value in (sizes | {"block_count": count}).items()}
    config = ARCHITECTURES[name].config(Fields(Path("m.gguf"), name, fields), True)
    assert config["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize(
  "title,fields,message",
  [
    (GEMMA3, {"rope.scaling.type": "yarn"}, "gemma3.rope.scaling.type is 'yarn'"),
    (GEMMA3, {"rope.scaling.factor": 8.0}, r"type is 'none', which has no \['factor'\]"),
    (GEMMA3, {"final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping"),
    (GEMMA3, {"attention.sliding_window": None}, "lacks the fields .*sliding_window"),
    (GEMMA3, {"block_count": 6}, "beyond the blocks that gemma3.block_count gives"),
    (GEMMA2, {"rope.scaling.type": "linear"}, "gemma2.rope.scaling.type is 'linear'"),
    (GEMMA2, {"attn_logit_softcapping": 0.0}, "gemma2.attn_logit_softcapping is 0.0"),
    (QWEN2, {"rope.scaling.type": "longrope"}, "qwen2.rope.scaling.type is 'longrope'"),
    (QWEN2, {"rope.scaling.factor": None}, "qwen2.rope.scaling.factor is None"),
    (QWEN2, {"rope.scaling.yarn_attn_factor": 1.0}, "qwen2.rope.scaling.yarn_attn_factor"),
    (QWEN2, {"attention.sliding_window": 8}, "qwen2.attention.sliding_window"),
    (QWEN3, {"pooling_type": 1}, "qwen3.pooling_type"),
  ],
)
def test_a_field_that_is_not_handled_is_named(title, fields, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    GGUFFile(write(tmp_path, title, fields=fields))


@pytest.mark.parametrize(
  "title,stored,message",
  [
    (LLAMA, {"blk.0.attn_q.bias": 40}, r"blk\.0\.attn_q\.bias is no tensor of a llama"),
    (QWEN2, {"blk.0.attn_k.bias": None}, r"layers\.0\.self_attn\.k_proj\.bias is missing"),
    (QWEN2, {"blk.0.attn_v.bias": 7}, r"v_proj\.bias has shape \(7,\), the fields say \(20,\)"),
    (QWEN2, {"blk.0.attn_output.bias": 40}, r"attn_output\.bias is no tensor of a qwen2"),
    (QWEN2, {"rope_freqs.weight": 5}, r"rope_freqs\.weight is no tensor of a qwen2"),
    (QWEN3, {"blk.1.attn_q_norm.weight": None}, r"1\.self_attn\.q_norm\.weight is missing"),
    (GEMMA2, {"blk.1.attn_q_norm.weight": 10}, r"attn_q_norm\.weight is no tensor of a gemma2"),
  ],
)
def test_a_tensor_that_does_not_fit_is_named(title, stored, message, tmp_path):
  arrays = {name: None if n is None else np.ones(n, np.float32) for name, n in stored.items()}
  with pytest.raises(ValueError, match=message):
    GGUFFile(write(tmp_path, title, stored=arrays))
