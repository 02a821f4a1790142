"""Reads a Hugging Face model directory that keeps its weights in one safetensors file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from persona_jax.checkpoints.tokenizer import read_json

_WEIGHTS = "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")
# What a directory's identity covers: everything that this package reads from it.
_FILES = (
  "config.json",
  _WEIGHTS,
  "tokenizer.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
)


class SafetensorsDir:
  """An open model directory; the weights are memory-mapped and read one tensor at a time.

  Attributes:
    config: the content of config.json.
    shapes: tensor name → shape.
    quantisation: storage types by the number of weights they hold, e.g. "BF16" or "BF16+F32".
  """

  def __init__(self, directory: Path):
    """Open and check a directory.

    Raises:
      FileNotFoundError: config.json or model.safetensors is missing.
      ValueError: the weights are sharded, truncated, or of a type other than F32, F16 and BF16.
    """
    for name in ("config.json", _WEIGHTS):
      index = directory / f"{_WEIGHTS}.index.json"
      if index.is_file():
        raise ValueError(
          f"{index}: weights sharded over files are not read; save the model with one {_WEIGHTS} "
          f"(transformers: save_pretrained(max_shard_size='1TB'))."
        )
      if not (directory / name).is_file():
        raise FileNotFoundError(
          f"{directory / name} is missing; a model directory holds config.json, one {_WEIGHTS}, "
          f"tokenizer.json and tokenizer_config.json."
        )
    self.config: dict[str, Any] = read_json(directory / "config.json")
    if not isinstance(self.config.get("model_type"), str):
      raise ValueError(f"{directory / 'config.json'}: no model_type, which names the architecture.")
    path = directory / _WEIGHTS
    try:
      self._file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{path}: not a readable safetensors file, maybe truncated or damaged: {error}"
      ) from error
    self.shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for name in self._file.keys():
      header = self._file.get_slice(name)
      kind, shape = header.get_dtype(), tuple(header.get_shape())
      if kind not in _DTYPES:
        raise ValueError(
          f"{path}: tensor {name!r} has the type {kind}; handled: {', '.join(_DTYPES)}."
        )
      self.shapes[name] = shape
      sizes[kind] = sizes.get(kind, 0) + int(np.prod(shape, dtype=np.int64))
    self.quantisation: str = "+".join(sorted(sizes, key=lambda kind: -sizes[kind]))
    self._directory = directory

  def read(self, name: str) -> np.ndarray:
    """Return one tensor in the type it is stored in (bfloat16 is `ml_dtypes.bfloat16`).

    Raises:
      ValueError: no tensor of that name.
    """
    if name not in self.shapes:
      raise ValueError(f"{self._directory}: no tensor {name!r}; it has {sorted(self.shapes)}.")
    return self._file.get_tensor(name)

  def sha256(self) -> str:
    """Return the sha256, in hexadecimal, of the names and sha256s of the files that are read."""
    hashes = {}
    for name in _FILES:
      path = self._directory / name
      if path.is_file():
        with path.open("rb") as file:
          hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
