"""Our own form of a loaded model on disk: an Orbax tree of parameters and what goes with it.

  DIR/params/           the parameters, as the engine holds them (Orbax, sharded, any mesh reads it)
  DIR/tokenizer.json    the `tokenizers` object
  DIR/persona_jax.json  config, identity, dtype, and the tokenizer's settings

It loads without renaming or transposing anything, each device reading its own part, and it is how a
model that was loaded on one mesh is put on another.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tokenizers

from persona_jax.checkpoints.tokenizer import Tokenizer, read_json

_MANIFEST = "persona_jax.json"
_VERSION = 1
_TOKENIZER_FIELDS = ("bos_id", "eos_ids", "pad_id", "add_bos", "chat_template")


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
) -> None:
  """Write a model; the directory appears when everything in it is written.

  Args:
    path: of a directory that is not there yet.
    params: the parameters, on one device or on a mesh.
    config: keys of config.json.
    tokenizer: the model's.
    identity: fields of the `Identity` of the weights.
    dtype: of the weights.

  Raises:
    FileExistsError: `path` exists.
  """
  path = path.expanduser().absolute()
  if path.exists():
    raise FileExistsError(f"{path} exists; name a directory that does not.")
  path.parent.mkdir(parents=True, exist_ok=True)
  part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(part / "params", params)
    checkpointer.wait_until_finished()
  tokenizer.backend.save(str(part / "tokenizer.json"))
  manifest = {
    "version": _VERSION,
    "config": config,
    "identity": identity,
    "dtype": dtype,
    "tokenizer": {name: getattr(tokenizer, name) for name in _TOKENIZER_FIELDS},
  }
  (part / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
  os.chmod(part, 0o755)  # mkdtemp's is for its maker alone
  os.rename(part, path)


@dataclasses.dataclass(frozen=True)
class OrbaxDir:
  """An open directory of `save_orbax`.

  Attributes:
    path: of the directory.
    config: keys of config.json.
    identity: fields of the `Identity` of the weights.
    dtype: that the weights were stored in.
    tokenizer: the model's.
  """

  path: Path
  config: dict[str, Any]
  identity: dict[str, str]
  dtype: str
  tokenizer: Tokenizer

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
    for name in ("tokenizer.json", "params"):
      if not (path / name).exists():
        raise FileNotFoundError(f"{path / name} is missing.")
    try:
      backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the package raises bare Exception
      raise ValueError(f"{path / 'tokenizer.json'}: cannot be read: {error}") from error
    settings = manifest["tokenizer"]
    tokenizer = Tokenizer(backend, **settings | {"eos_ids": tuple(settings["eos_ids"])})
    return cls(path, manifest["config"], manifest["identity"], manifest["dtype"], tokenizer)

  def restore(self, abstract: Any) -> Any:
    """Read the parameters as a tree of `jax.ShapeDtypeStruct`, with shardings, asks for them.

    Raises:
      ValueError: the tree or a shape is another than the stored one, or a file is damaged.
    """
    path = self.path / "params"
    try:
      with ocp.StandardCheckpointer() as checkpointer:
        stored = _shapes(checkpointer.metadata(path).item_metadata.tree)
        wanted = _shapes(abstract)
        problems = [
          f"{name} is {stored.get(name, 'missing')}, {wanted.get(name, 'nothing')} is needed"
          for name in sorted({*stored, *wanted})
          if stored.get(name) != wanted.get(name)
        ]
        if problems:
          raise ValueError("; ".join(problems[:8]) + ("; …" if len(problems) > 8 else ""))
        return checkpointer.restore(path, abstract)
    except (ValueError, OSError, KeyError) as error:
      raise ValueError(f"{path} cannot be restored: {error}") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
