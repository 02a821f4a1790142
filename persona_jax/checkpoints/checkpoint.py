"""One view of every kind of checkpoint: configuration, tensors by name, tokenizer, identity."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.registry import REGISTRY, registry_file
from persona_jax.checkpoints.safetensors_dir import SafetensorsDir
from persona_jax.checkpoints.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Identity:
  """Which weights these are.

  Attributes:
    name: registry name, directory name or file name without its suffix.
    source: where the bytes were read from; not compared, so that a copy of a model is the same
      model.
    sha256: of the GGUF file, or of the list of a directory's files and their sha256s.
    quantisation: storage types, most weights first, e.g. "Q4_1+Q8_0+F32" or "BF16".
  """

  name: str
  source: str = dataclasses.field(compare=False)
  sha256: str
  quantisation: str


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
  """An open checkpoint, in Hugging Face's names and orientation whatever the file format.

  Attributes:
    config: the keys of config.json; those of a GGUF file are translated.
    shapes: tensor name → shape, [out, in] for linear weights.
    read: (tensor name, slices of its dimensions, all if there are none) → array. GGUF tensors come
      dequantised to float32, others as they are stored (float32, float16 or `ml_dtypes.bfloat16`).
      An unknown name is a ValueError.
    tokenizer: from the same file or directory.
    identity: which weights these are.
  """

  config: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]
  read: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  tokenizer: Tokenizer
  identity: Identity

  @property
  def names(self) -> tuple[str, ...]:
    """Names of all tensors."""
    return tuple(self.shapes)


def open_checkpoint(source: str | Path) -> Checkpoint:
  """Open a checkpoint; nothing is downloaded, and tensors are read only when asked for.

  Args:
    source: a registry name ("smollm2-135m-instruct"), a directory (config.json, model.safetensors
      or its index and shards, tokenizer.json, tokenizer_config.json), or a .gguf file.

  Raises:
    FileNotFoundError: nothing has that name or path, or a needed file is missing.
    ValueError: a file is damaged, or has something that is not handled; the message names it.
  """
  if isinstance(source, str) and source in REGISTRY:
    entry = REGISTRY[source]
    file = GGUFFile(registry_file(source))
    identity = Identity(source, entry.source, entry.sha256, file.quantisation)
    return _from_gguf(file, identity)
  path = Path(source).expanduser()
  if path.is_dir():
    return _from_directory(path)
  if path.is_file() and path.suffix == ".gguf":
    file = GGUFFile(path)
    with path.open("rb") as stream:
      sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return _from_gguf(file, Identity(path.stem, str(path), sha256, file.quantisation))
  fits = (
    f"a registered model ({', '.join(sorted(REGISTRY))}), a directory with config.json, "
    f"model.safetensors and tokenizer.json, or a .gguf file"
  )
  if path.is_file():
    raise ValueError(f"{path} is not a checkpoint that can be read; give {fits}.")
  raise FileNotFoundError(
    f"no model is called {str(source)!r} and no such path exists; give {fits}."
  )


def _from_gguf(file: GGUFFile, identity: Identity) -> Checkpoint:
  tokenizer = Tokenizer.from_gguf(file.tokenizer_fields)
  return _checked(Checkpoint(file.config, file.shapes, file.read, tokenizer, identity))


def _from_directory(path: Path) -> Checkpoint:
  weights = SafetensorsDir(path)
  tokenizer = Tokenizer.from_directory(path)
  identity = Identity(path.resolve().name, str(path), weights.sha256(), weights.quantisation)
  return _checked(Checkpoint(weights.config, weights.shapes, weights.read, tokenizer, identity))


def _checked(checkpoint: Checkpoint) -> Checkpoint:
  """Refuse a tokenizer that makes ids for which the model has no embedding."""
  rows = checkpoint.config.get("vocab_size")
  if isinstance(rows, int) and checkpoint.tokenizer.vocab_size > rows:
    raise ValueError(
      f"{checkpoint.identity.source}: the tokenizer has {checkpoint.tokenizer.vocab_size} tokens, "
      f"the model's vocab_size is {rows}; it must be at least as large."
    )
  return checkpoint
