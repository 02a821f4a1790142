"""What made a directory: the model, and the versions of the program, so that none are mixed."""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_jax.data.hashing import content_hash
from persona_jax.engine.model import Model


def describe_model(model: Model) -> dict[str, Any]:
  """Return what identifies a loaded model, as plain values."""
  return {
    "name": model.identity.name,
    "sha256": model.identity.sha256,
    "quantisation": model.identity.quantisation,
    "dtype": model.dtype,
    "resid_dtype": model.resid_dtype,
    "system_default": model.chat.system_default,
    "chat_template": content_hash([model.chat.template, model.chat.options])[:16],
  }


# What computes rows: models, checkpoints, edits, engine, texts, directions, kernels.
_OF_ROWS = (
  "persona_jax.models", "persona_jax.checkpoints", "persona_jax.edits", "persona_jax.engine",
  "persona_jax.personas", "persona_jax.directions", "persona_kernels",
)  # fmt: skip


@functools.cache
def code_hash(names: tuple[str, ...] = _OF_ROWS) -> str:
  """Return a hash of the source of packages, and of single modules."""
  digest = hashlib.sha256()
  for name in names:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    roots = spec.submodule_search_locations
    files = [(Path(spec.origin).parent, Path(spec.origin))] if roots is None else []
    for root in map(Path, roots or ()):
      files += [(root, file) for file in sorted(root.rglob("*.py"))]
    for root, file in files:
      digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
  return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
  """Return the versions of what computes rows: packages, and a hash of this one's source."""
  packages = ("jax", "jaxlib", "flax", "numpy")
  return {"code": code_hash(), **{name: importlib.metadata.version(name) for name in packages}}


def check_versions(
  there: Mapping[str, str], directory: Path, now: Mapping[str, str] | None = None
) -> None:
  """Refuse to add rows to a directory that another program began.

  Args:
    there: versions that the directory states.
    directory: it.
    now: versions of this process; default `versions()`.

  Raises:
    ValueError: versions differ.
  """
  now = versions() if now is None else now
  differing = [f"{n}: {there.get(n)} there, {now[n]} now" for n in now if there.get(n) != now[n]]
  if differing:
    raise ValueError(
      f"{directory} was begun by another version ({'; '.join(differing)}); rows of two programs "
      "are not mixed: choose another directory, or remove that one."
    )
