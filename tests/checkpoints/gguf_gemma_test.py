"""Gemma 3 from GGUF: the same numbers as from the safetensors that it was made of."""

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.checkpoints.gguf import GGUFFile
from tests.parity import family_numbers
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors
from tests.reference.random_llama import vocabulary
from tests.reference.tiny_gguf import FIELDS, VOCAB, tiny_tensors, write_gguf

TITLE = "gemma3, five to one"
CONFIG = CONFIGS[TITLE] | {"vocab_size": VOCAB, "query_pre_attn_scalar": 10}
# What llama.cpp calls the tensors of a block.
NAMES = {
  "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm":
  "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm":
  "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm":
  "post_ffw_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj":
  "ffn_down", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
}  # fmt: skip


@pytest.fixture(scope="module")
def tensors():
  shapes = family_numbers.load()[TITLE]["shapes"]
  shapes |= {"model.embed_tokens.weight": [VOCAB, CONFIG["hidden_size"]]}
  return random_tensors(CONFIG, shapes)


def write(path, tensors, **changes):
  stored = dict.fromkeys(tiny_tensors())
  for name, tensor in tensors.items():
    parts = name.removesuffix(".weight").split(".", 3)
    if name.startswith("model.layers."):
      new = f"blk.{parts[2]}.{NAMES[parts[3]]}.weight"
    else:
      new = f"{NAMES[name.removesuffix('.weight')]}.weight"
    stored[new] = tensor + 1 if "norm" in name else tensor  # llama.cpp adds the 1 of 1 + w
  sizes = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "attention.head_count_kv": "num_key_value_heads",
    "attention.sliding_window": "sliding_window", "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  }  # fmt: skip
  fields = {name: None for name in FIELDS if name.startswith("llama.")}
  fields |= {f"gemma3.{field}": CONFIG[key] for field, key in sizes.items()}
  return write_gguf(path, architecture="gemma3", fields=fields | changes, tensors=stored)


def test_gguf_and_safetensors_give_the_same_logits(tensors, tmp_path):
  write_checkpoint(tmp_path / "dir", CONFIG, tensors, vocabulary(CONFIG))
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 20)))
  ours, theirs = (
    pj.forward(pj.load(source), tokens_BT)[0]
    for source in (write(tmp_path / "m.gguf", tensors), tmp_path / "dir")
  )
  # 1 + w was rounded to float32 in between.
  np.testing.assert_allclose(ours, theirs, atol=2e-4)
  assert float(jnp.abs(theirs).max()) > 1


def test_scaling_of_the_full_blocks_and_the_scale_of_scores_are_read(tensors, tmp_path):
  changes = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
  config = GGUFFile(write(tmp_path / "m.gguf", tensors, **changes)).config
  assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
  assert config["query_pre_attn_scalar"] == config["head_dim"] == 10
  assert config["rope_local_base_freq"] == 10000.0 and config["sliding_window"] == 6


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"gemma3.rope.scaling.type": "yarn"}, "gemma3.rope.scaling.type is 'yarn'"),
    ({"gemma3.final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping"),
    ({"gemma3.attention.sliding_window": None}, "lacks the fields .*sliding_window"),
    ({"gemma3.block_count": 6}, "beyond the blocks that gemma3.block_count gives"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(tensors, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    GGUFFile(write(tmp_path / "m.gguf", tensors, **changes))
