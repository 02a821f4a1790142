"""The example of docs/families.md, run as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import persona_jax as pj
from persona_jax.models import families
from persona_jax.models.params import stored_shape
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import random_tensors
from tests.reference.random_llama import vocabulary

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
  "model_type": "qwen3", "hidden_size": 44, "intermediate_size": 54, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 101,
  "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "attention_bias": False,
  "max_position_embeddings": 64, "max_window_layers": 28, "sliding_window": None,
  "use_sliding_window": False, "tie_word_embeddings": True, "rope_scaling": None,
}  # fmt: skip


def test_example_family_is_the_built_in_one(tmp_path, monkeypatch):
  built_in = families.family("qwen3")
  arch = built_in.parse(CONFIG)
  params = built_in.abstract_params(arch)
  shapes = {}
  for name, weight in built_in.weight_map(arch).items():
    leaf = params
    for key in weight.path:
      leaf = leaf[key]
    shapes[name] = stored_shape(weight, leaf.shape)
  write_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG, shapes), vocabulary(CONFIG))
  (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/families.md").read_text(), re.S)
  load = pj.load
  monkeypatch.setattr(pj, "load", lambda name, **options: load(tmp_path, **options))
  space: dict = {}
  exec(example, space)
  tokens_BT = jnp.asarray([[5, 6, 7, 8]])
  ours, theirs = (pj.forward(model, tokens_BT)[0] for model in (space["model"], load(tmp_path)))
  assert space["model"].arch.family is space["QWEN3"]
  np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
