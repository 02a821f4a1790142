"""What is wrong with a checkpoint is said with the file and the tensor, in every format."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import persona_jax as pj
from persona_jax.checkpoints.checkpoint import open_checkpoint
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.convert import main as convert
from persona_jax.personas.chat import Chat
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama, vocabulary
from tests.reference.tiny_gguf import FIELDS, tiny_tensors, write_gguf

NAME = "model.layers.1.self_attn.q_proj.weight"
CHANGES = {
  "a NaN": lambda w: w[NAME].__setitem__((1, 2), np.nan),
  "missing": lambda w: w.pop(NAME),
  "unknown": lambda w: w.update({NAME.replace("q_proj", "x_proj"): w[NAME]}),
  "has shape": lambda w: w.update({NAME: w[NAME][:-1]}),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_errors_name_file_and_tensor(tmp_path, case, sharded):
  config, tensors = random_llama()
  CHANGES[case](tensors)
  write_checkpoint(tmp_path, config, tensors, vocabulary(config))
  file = tmp_path / "model.safetensors"
  if sharded:
    file.unlink()
    parts = [{n: w for n, w in tensors.items() if (".layers.1." in n) == odd} for odd in (0, 1)]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, part in zip(names, parts, strict=True):
      safetensors.numpy.save_file(part, tmp_path / name)
    weight_map = {n: name for name, part in zip(names, parts, strict=True) for n in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    file = tmp_path / names[1]
  with pytest.raises(ValueError, match=case) as error:
    pj.load(tmp_path)
  named = NAME.replace("q_proj", "x_proj") if case == "unknown" else NAME
  assert f"tensor {named!r}" in str(error.value)
  assert str(tmp_path if case == "missing" else file) in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_safetensors_names_the_first_tensor_it_lacks(tmp_path, share):
  config, tensors = random_llama()
  write_checkpoint(tmp_path, config, tensors, vocabulary(config))
  file = tmp_path / "model.safetensors"
  with safetensors.safe_open(file, framework="numpy") as whole:
    names = set(whole.keys())
  kept = file.read_bytes()[: int(file.stat().st_size * share)]
  length = int.from_bytes(kept[:8], "little")
  header = json.loads(kept[8 : 8 + length])
  ends = {n: 8 + length + e["data_offsets"][1] for n, e in header.items() if n in names}
  first = min((end, name) for name, end in ends.items() if end > len(kept))[1]
  file.write_bytes(kept)
  with pytest.raises(ValueError, match="truncated") as error:
    pj.load(tmp_path)
  assert str(file) in str(error.value) and f"tensor {first!r}" in str(error.value)


@pytest.mark.parametrize("case", ["NaN", "truncated"])
def test_gguf_errors_name_file_and_tensor(tmp_path, case):
  path = tmp_path / "tiny.gguf"
  name = "blk.0.ffn_up.weight"
  broken = tiny_tensors()[name]
  if case == "NaN":
    broken[1, 1] = np.nan
  write_gguf(path, tensors={name: broken})
  if case == "truncated":
    path.write_bytes(path.read_bytes()[:-40])
    name = "blk."  # the last one of the file, whichever that is
  with pytest.raises(ValueError, match=case) as error:
    pj.load(path)
  assert str(path) in str(error.value) and name in str(error.value)


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path):
  for stored in (np.float32, ml_dtypes.bfloat16):
    config, tensors = random_llama()
    tensors = {n: w.astype(stored) for n, w in tensors.items()}
    tensors[NAME][0, 0] = 1e6
    write_checkpoint(tmp_path / str(np.dtype(stored)), config, tensors, vocabulary(config))
    with pytest.raises(ValueError, match="q_proj.*beyond the range of float16"):
      pj.load(tmp_path / str(np.dtype(stored)), dtype="float16")
    assert jnp.isfinite(pj.load(tmp_path / str(np.dtype(stored))).params["embed_VD"]).all()


def test_two_sets_of_weights_in_one_directory_are_refused(tiny, tmp_path):
  shutil.copytree(tiny.directory, tmp_path / "two")
  weights = safetensors.numpy.load_file(tiny.directory / "model.safetensors")
  safetensors.numpy.save_file(weights, tmp_path / "two" / "model-00001-of-00001.safetensors")
  index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
  (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match="remove one of them"):
    pj.load(tmp_path / "two")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_pickled_weights_are_named_and_not_read(tiny, tmp_path, name):
  shutil.copytree(tiny.directory, tmp_path / "pickled")
  (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / name)
  with pytest.raises(FileNotFoundError, match=rf"pickled weights \({name}\) are never read"):
    pj.load(tmp_path / "pickled")


@pytest.mark.parametrize("path", ["./absent", "../absent", "models/absent.gguf"])
def test_paths_that_do_not_exist_are_no_hub_ids(path):
  with pytest.raises(FileNotFoundError, match="no such path exists") as error:
    pj.load(path)
  assert "persona_jax.fetch" not in str(error.value)


def test_weights_keep_their_type_in_a_copy_whatever_the_norms_have(tmp_path):
  config, tensors = random_llama()
  half = {n: w if "norm" in n else w.astype(ml_dtypes.bfloat16) for n, w in tensors.items()}
  write_checkpoint(tmp_path / "hf", config, half, vocabulary(config))
  identity = open_checkpoint(tmp_path / "hf").identity
  assert (identity.dtype, identity.quantisation) == ("bfloat16", "BF16+F32")
  for source, out in (("hf", "one"), ("one", "two")):
    assert convert([str(tmp_path / source), str(tmp_path / out)]) == 0
    copy = pj.load(tmp_path / out, dtype="bfloat16")
    assert copy.params["blocks"][0]["q_DNH"].dtype == jnp.bfloat16
    assert copy.identity == identity.__class__(
      identity.name, copy.identity.source, identity.sha256, identity.quantisation
    )
    assert open_checkpoint(tmp_path / out).identity.dtype == "bfloat16"
  pj.load(tmp_path / "hf", dtype="float16").save(tmp_path / "narrow")
  narrow = pj.load(tmp_path / "narrow", dtype="float16")
  narrow.save(tmp_path / "again")
  assert open_checkpoint(tmp_path / "again").identity.sha256 == narrow.identity.sha256
  assert narrow.identity.sha256 != identity.sha256


def test_gguf_without_the_field_begins_texts_as_llama_cpp_does():
  tokenizer = {n: v for n, v in FIELDS.items() if n.startswith("tokenizer.")}
  tokenizer.pop("tokenizer.ggml.add_bos_token", None)
  bos = {"tokenizer.ggml.bos_token_id": 0}
  assert Tokenizer.from_gguf(tokenizer | bos | {"tokenizer.ggml.pre": "llama-bpe"}).add_bos
  assert not Tokenizer.from_gguf(tokenizer | bos | {"tokenizer.ggml.pre": "qwen2"}).add_bos
  said = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
  assert not Tokenizer.from_gguf(tokenizer | bos | said).add_bos


def test_gguf_of_a_chat_model_stops_at_the_turn_ends_it_does_not_name():
  fields = {n: v for n, v in FIELDS.items() if n.startswith("tokenizer.")}
  for name in ("eot", "eom"):
    fields.pop(f"tokenizer.ggml.{name}_token_id", None)
  tokens, types = list(fields["tokenizer.ggml.tokens"]), list(fields["tokenizer.ggml.token_type"])
  at = len(tokens) - 1
  tokens[at], types[at] = "<|eot_id|>", 3
  named = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
  base = Tokenizer.from_gguf(fields | named)
  chat = Tokenizer.from_gguf(fields | named | {"tokenizer.chat_template": "{{ messages }}"})
  assert at not in base.eos_ids and at in chat.eos_ids


def test_templates_see_the_eos_token_of_the_tokenizer_not_the_first_stop(tiny, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(tiny.directory, copy)
  settings = json.loads((copy / "tokenizer_config.json").read_text())
  (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "w9"}))
  (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
  tokenizer = Tokenizer.from_directory(copy)
  assert tokenizer.eos_ids == (7, 9) and tokenizer.eos_id == 9
  assert Chat.of(tokenizer).eos_token == "w9"
  pj.load(copy).save(tmp_path / "saved")
  assert pj.load(tmp_path / "saved").tokenizer == tokenizer
