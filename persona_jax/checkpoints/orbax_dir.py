"""Our own form of a loaded model on disk: an Orbax tree of parameters and what goes with it.

  DIR/params/           the parameters, as the engine holds them (Orbax, sharded, any mesh reads it)
  DIR/tokenizer.json    the `tokenizers` object
  DIR/persona_jax.json  config, identity, dtype, and the tokenizer's settings

It loads without renaming or transposing anything, each device reading its own part, and it is how a
model that was loaded on one mesh is put on another.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from persona_jax.checkpoints.tokenizer import Tokenizer, read_json

_MANIFEST = "persona_jax.json"
_VERSION = 1
_TOKENIZER_FIELDS = ("bos_id", "eos_id", "eos_ids", "pad_id", "add_bos", "chat_template")


def is_orbax_dir(path: Path) -> bool:
  """Return whether `save_orbax` wrote this directory."""
  return (path / _MANIFEST).is_file()


def save_orbax(
  path: Path,
  params: Any,
  config: dict[str, Any],
  tokenizer: Tokenizer,
  identity: dict[str, str],
  dtype: str,
  name: str | None = None,
) -> None:
  """Write a model; the directory appears when everything in it is written.

  Args:
    path: of a directory that is not there yet.
    params: the parameters, on one device or on a mesh.
    config: keys of config.json.
    tokenizer: the model's.
    identity: fields of the `Identity` of the weights.
    dtype: of the weights.
    name: if given, of a model of its own; its sha256 then follows from the checksums.

  Raises:
    FileExistsError: `path` exists.
    TypeError: a parameter is no array.
  """
  path = path.expanduser().absolute()
  if path.exists():
    raise FileExistsError(f"{path} exists; name a directory that does not.")
  # Before Orbax starts: where its `save` raises, its threads may still be making directories.
  for leaf_name, leaf in _leaves(params):
    if not isinstance(leaf, jax.Array):
      raise TypeError(f"Parameter {leaf_name} is {type(leaf).__name__}; only JAX arrays are saved.")
  import orbax.checkpoint as ocp  # takes 0.4 s, and most runs need none of it

  path.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(part / "params", params)
      checkpointer.wait_until_finished()
    tokenizer.backend.save(str(part / "tokenizer.json"))
    checksums = {
      leaf_name: [_dtype_name(leaf), _checksum(leaf)] for leaf_name, leaf in _leaves(params)
    }
    if name is not None:
      digest = hashlib.sha256(json.dumps([config, checksums], sort_keys=True).encode()).hexdigest()
      identity = identity | {"name": name, "sha256": digest, "quantisation": dtype}
    manifest = {
      "version": _VERSION,
      "config": config,
      "identity": identity,
      "dtype": dtype,
      "tokenizer": {name: getattr(tokenizer, name) for name in _TOKENIZER_FIELDS},
      "checksums": checksums,
    }
    (part / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.chmod(part, 0o755)  # mkdtemp's is for its maker alone
    os.rename(part, path)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise


@dataclasses.dataclass(frozen=True)
class OrbaxDir:
  """An open directory of `save_orbax`.

  Attributes:
    path: of the directory.
    config: keys of config.json.
    identity: fields of the `Identity` of the weights.
    dtype: that the weights were stored in.
    tokenizer: the model's.
    checksums: name of each parameter → the dtype it was stored in and the sum of its bits.
  """

  path: Path
  config: dict[str, Any]
  identity: dict[str, str]
  dtype: str
  tokenizer: Tokenizer
  checksums: dict[str, tuple[str, int]]

  @classmethod
  def open(cls, path: Path) -> "OrbaxDir":
    """Read all but the parameters.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or of a later version of this format.
    """
    path = path.expanduser().absolute()
    manifest = read_json(path / _MANIFEST)
    if manifest.get("version") != _VERSION:
      raise ValueError(
        f"{path / _MANIFEST}: version {manifest.get('version')!r}; this package reads {_VERSION}."
      )
    absent = [name for name in _KEYS if not isinstance(manifest.get(name), _KEYS[name])]
    if absent:
      raise ValueError(f"{path / _MANIFEST}: {absent} are missing or of a wrong type.")
    for name in ("tokenizer.json", "params"):
      if not (path / name).exists():
        raise FileNotFoundError(f"{path / name} is missing.")
    try:
      backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the package raises bare Exception
      raise ValueError(f"{path / 'tokenizer.json'}: cannot be read: {error}") from error
    settings = manifest["tokenizer"]
    if set(settings) != set(_TOKENIZER_FIELDS):
      raise ValueError(
        f"{path / _MANIFEST}: the tokenizer has {sorted(settings)}; it needs "
        f"{sorted(_TOKENIZER_FIELDS)}."
      )
    tokenizer = Tokenizer(backend, **settings | {"eos_ids": tuple(settings["eos_ids"])})
    checksums = {
      name: (dtype, int(total)) for name, (dtype, total) in manifest["checksums"].items()
    }
    identity = manifest["identity"]
    return cls(path, manifest["config"], identity, manifest["dtype"], tokenizer, checksums)

  def restore(self, abstract: Any) -> Any:
    """Read the parameters as a tree of `jax.ShapeDtypeStruct`, with shardings, asks for them.

    Raises:
      ValueError: the tree or a shape is another than the stored one, a file is damaged, a parameter
        is not what was written, or holds a NaN or an infinity.
    """
    import orbax.checkpoint as ocp

    path = self.path / "params"
    try:
      with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
          raise ValueError("its metadata are missing or damaged")
        stored = _shapes(metadata.tree)
        wanted = _shapes(abstract)
        problems = [
          f"{name} is {stored.get(name, 'missing')}, {wanted.get(name, 'nothing')} is needed"
          for name in sorted({*stored, *wanted})
          if stored.get(name) != wanted.get(name)
        ]
        if problems:
          raise ValueError("; ".join(problems[:8]) + ("; …" if len(problems) > 8 else ""))
        params = checkpointer.restore(path, abstract)
    except Exception as error:  # Orbax and TensorStore raise bare Exception, pages of it
      reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
      raise ValueError(f"{path} cannot be restored: {reason}") from error
    self._check(params)
    return params

  def _check(self, params: Any) -> None:
    """Raise ValueError if a parameter is not finite, or not what was written."""
    for name, leaf in _leaves(params):
      if not bool(_is_finite(leaf)):
        raise ValueError(f"{self.path}: parameter {name!r} holds a NaN or an infinity.")
      dtype, total = self.checksums.get(name, ("", 0))
      if not dtype:
        raise ValueError(f"{self.path / _MANIFEST}: no checksum of parameter {name!r}.")
      # A wider type holds what was written exactly, a narrower one no longer shows it.
      exact = _dtype_name(leaf) in (dtype, "float32")
      if exact and _checksum(leaf.astype(dtype)) != total:
        raise ValueError(f"{self.path}: parameter {name!r} is damaged: its checksum is another.")


_KEYS: dict[str, type] = {
  "config": dict, "identity": dict, "dtype": str, "tokenizer": dict, "checksums": dict,
}  # fmt: skip


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  return [
    (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in _leaves(tree)}


def _dtype_name(leaf: Any) -> str:
  return jnp.dtype(leaf.dtype).name


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
  return jnp.isfinite(leaf).all()


def _checksum(leaf: jax.Array) -> int:
  """Sum the bits of an array, each value's weighted by an odd number, by its place."""
  return int(_bit_sum(leaf))


@jax.jit
def _bit_sum(leaf: jax.Array) -> jax.Array:
  kind = jnp.uint32 if leaf.dtype.itemsize == 4 else jnp.uint16
  bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
  weight = jnp.ones((), jnp.uint32)
  for axis in range(leaf.ndim):
    place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    weight = weight + place * np.uint32(2 * np.prod(leaf.shape[axis + 1 :], dtype=np.int64) % 2**32)
  return jnp.sum(bits * weight, dtype=jnp.uint32)
