"""One view of every kind of checkpoint: configuration, tensors by name, tokenizer, identity."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.checkpoints import hub
from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.orbax_dir import OrbaxDir, is_orbax_dir
from persona_jax.checkpoints.registry import REGISTRY, registry_file
from persona_jax.checkpoints.safetensors_dir import SafetensorsDir, files_sha256, read_config
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.data import wheels


@dataclasses.dataclass(frozen=True)
class Identity:
  """Which weights these are.

  Attributes:
    name: registry name, hub id, directory name or file name without its suffix.
    source: where the bytes were read from, for a model of the hub with its commit; not compared, so
      that a copy of a model is the same model.
    sha256: of the GGUF file, or of the list of a directory's files and their sha256s.
    quantisation: storage types, most weights first, e.g. "Q4_1+Q8_0+F32" or "BF16".
    dtype: "float32", "bfloat16" or "float16": the narrowest that holds every weight exactly, scales
      of norms aside, which stay float32; not compared.
  """

  name: str
  source: str = dataclasses.field(compare=False)
  sha256: str
  quantisation: str
  dtype: str = dataclasses.field(default="float32", compare=False)

  def stored_as(self, dtype: str) -> "Identity":
    """Return the identity of a copy in `dtype`: this one, if the dtype holds every weight exactly.

    GGUF weights are float32 once they are dequantised.
    """
    if dtype in ("float32", self.dtype):
      return self
    digest = hashlib.sha256(f"{self.sha256} {dtype}".encode()).hexdigest()
    kinds = f"{self.quantisation}→{dtype}"
    return dataclasses.replace(self, sha256=digest, quantisation=kinds, dtype=dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
  """An open checkpoint, in Hugging Face's names and orientation whatever the file format.

  Attributes:
    config: the keys of config.json; those of a GGUF file are translated.
    shapes: tensor name → shape, [out, in] for linear weights.
    read: (tensor name, slices of its dimensions, all if there are none) → array. GGUF tensors come
      dequantised to float32, others as they are stored (float32, float16 or `ml_dtypes.bfloat16`).
      An unknown name is a ValueError.
    where: tensor name → the file it is in and its name there, for messages; also of one that is
      missing.
    tokenizer: from the same file or directory.
    identity: which weights these are.
    restore: of an Orbax directory, instead of `shapes` and `read`: (tree of `jax.ShapeDtypeStruct`
      with shardings) → the parameters.
  """

  config: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]
  read: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  where: Callable[[str], str] = dataclasses.field(repr=False)
  tokenizer: Tokenizer
  identity: Identity
  restore: Callable[[Any], Any] | None = dataclasses.field(default=None, repr=False)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of all tensors."""
    return tuple(self.shapes)


def open_checkpoint(source: str | Path, *, weights: bool = True) -> Checkpoint:
  """Open a checkpoint; nothing is downloaded, and tensors are read only when asked for.

  Args:
    source: a registry name ("smollm2-135m-instruct"), a directory (config.json, model.safetensors
      or its index and shards, tokenizer.json, tokenizer_config.json; or one that `Model.save`
      wrote), a .gguf file, or a hub id, see `hub`.
    weights: whether a directory of the Hugging Face form must hold weights. If not, its tensors
      are not looked at, and its identity is that of its configuration and tokenizer.

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
  if path.exists() and (path.is_dir() or path.suffix == ".gguf"):
    return _from_path(path, weights)
  hub_id = hub.HubId.parse(source) if isinstance(source, str) and not path.exists() else None
  if hub_id is not None:
    found = hub_id.cached(weights=weights)
    checkpoint = _from_path(found, weights)
    name = str(dataclasses.replace(hub_id, revision=None))
    identity = dataclasses.replace(checkpoint.identity, name=name, source=hub.pinned(hub_id, found))
    return dataclasses.replace(checkpoint, identity=identity)
  fits = (
    f"a registered model ({', '.join(sorted(REGISTRY))}), a directory with config.json, "
    f"model.safetensors and tokenizer.json, a .gguf file, or a hub id (owner/name)"
  )
  if path.is_file():
    raise ValueError(f"{path} is not a checkpoint that can be read; give {fits}.")
  raise FileNotFoundError(
    f"no model is called {str(source)!r} and no such path exists; give {fits}."
  )


def _from_path(path: Path, weights: bool) -> Checkpoint:
  if path.is_dir():
    if is_orbax_dir(path):
      return _from_orbax(path)
    return _from_directory(path) if weights else _without_weights(path)
  file = GGUFFile(path)
  sidecar = wheels.cache_dir() / "checked"
  place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
  sha256 = wheels.file_sha256(path, sidecar=sidecar / f"{place}.json")
  return _from_gguf(file, Identity(path.stem, str(path), sha256, file.quantisation))


def _from_gguf(file: GGUFFile, identity: Identity) -> Checkpoint:
  tokenizer = Tokenizer.from_gguf(file.tokenizer_fields)
  return _checked(Checkpoint(file.config, file.shapes, file.read, file.where, tokenizer, identity))


def _from_directory(path: Path) -> Checkpoint:
  weights = SafetensorsDir(path)
  tokenizer = Tokenizer.from_directory(path)
  identity = Identity(
    path.resolve().name, str(path), weights.sha256(), weights.quantisation, weights.dtype
  )
  return _checked(
    Checkpoint(weights.config, weights.shapes, weights.read, weights.where, tokenizer, identity)
  )


def _without_weights(path: Path) -> Checkpoint:
  """Read what a directory says of a model whose tensors need not be there."""
  config, sha256 = read_config(path), files_sha256(path, ())
  identity = Identity(path.resolve().name, str(path), sha256, "no weights")

  def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    raise ValueError(f"{path} was opened without weights; tensor {name!r} is not there.")

  def where(name: str) -> str:
    return f"{path}: tensor {name!r}"

  tokenizer = Tokenizer.from_directory(path)
  return _checked(Checkpoint(config, {}, read, where, tokenizer, identity))


def _from_orbax(path: Path) -> Checkpoint:
  saved = OrbaxDir.open(path)
  identity = Identity(**saved.identity | {"source": str(path), "dtype": saved.dtype})

  def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    raise ValueError(
      f"{path}: an Orbax directory has no tensor {name!r}; it is restored as a whole."
    )

  def where(name: str) -> str:
    return f"{path}: parameter {name!r}"

  return _checked(
    Checkpoint(saved.config, {}, read, where, saved.tokenizer, identity, saved.restore)
  )


def _checked(checkpoint: Checkpoint) -> Checkpoint:
  """Refuse a tokenizer that makes ids for which the model has no embedding."""
  rows = checkpoint.config.get("vocab_size")
  if isinstance(rows, int) and checkpoint.tokenizer.vocab_size > rows:
    raise ValueError(
      f"{checkpoint.identity.source}: the tokenizer has {checkpoint.tokenizer.vocab_size} tokens, "
      f"the model's vocab_size is {rows}; it must be at least as large."
    )
  return checkpoint
