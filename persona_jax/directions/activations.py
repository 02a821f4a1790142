"""Activations of prompts, a row each: in memory, or in a TensorStore folder that outlives the run.

Directions need no store: means come from sums on the device, and for the other methods a thousand
prompts of a model of 8 billion weights take half a GB. A store is for those who want to look again,
or whose prompts are more than memory holds; it is read back block by block.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from persona_jax.data.hashing import content_hash
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.collect import capture as collect
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.model import Model
from persona_jax.engine.rows import Row, plain_prompt
from persona_jax.personas.chat import Prompt

_CHUNK_ROWS = 256
_DESCRIPTION = "activations.json"


class Activations(Protocol):
  """What methods read: activations [N, D] of a block."""

  def block(self, block: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Return float32 [N, D] of a block, or of some rows of it."""


class ActivationsInMemory:
  """Activations of N prompts at every block, as numpy arrays."""

  def __init__(self, h_LND: Sequence[np.ndarray]):
    self._h_LND = h_LND

  def block(self, block: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Return float32 [N, D] of a block, or of some rows of it."""
    h_ND = self._h_LND[block]
    return h_ND if rows is None else h_ND[rows]


class ActivationStore:
  """Activations of N prompts in a folder: zarr3 arrays, float32 [N, L, D], and what they are of.

  Attributes:
    path: the folder.
    about: model name and hash, dtypes, site, tokens, hashes of prompts and their tokens, shape.
  """

  def __init__(self, path: str | Path):
    """Open a store.

    Raises:
      FileNotFoundError: there is none.
      ValueError: its description cannot be read.
    """
    self.path = Path(path)
    description = self.path / _DESCRIPTION
    if not description.is_file():
      raise FileNotFoundError(f"no store of activations at {self.path}.")
    try:
      self.about: dict[str, Any] = json.loads(description.read_text())
      self.shape: tuple[int, int, int] = tuple(self.about["shape"])  # type: ignore[assignment]
    except (ValueError, KeyError) as error:
      raise ValueError(f"{description} is no description of a store: {error!r}.") from error
    self._h_NLD = ts.open(_spec(self.path / "activations"), open=True).result()
    self._done_N = ts.open(_spec(self.path / "done"), open=True).result()

  @classmethod
  def create(
    cls, path: str | Path, shape: tuple[int, int, int], about: Mapping[str, Any]
  ) -> "ActivationStore":
    """Make a store of [N, L, D] without contents, or open the one of the same description.

    Raises:
      ValueError: there is a store of other prompts, another model, site or choice of tokens.
    """
    path, about = Path(path), dict(about) | {"shape": list(shape)}
    if (path / _DESCRIPTION).is_file():
      store = cls(path)
      other = {key for key in {*about, *store.about} if about.get(key) != store.about.get(key)}
      if other:
        raise ValueError(
          f"{path} is a store of other activations: {sorted(other)} differ; give another folder."
        )
      return store
    path.mkdir(parents=True, exist_ok=True)
    n, _, d = shape
    chunks = (min(n, _CHUNK_ROWS), 1, d)
    for name, dtype, size, chunk in (
      ("activations", "float32", shape, chunks),
      ("done", "bool", (n,), (n,)),
    ):
      ts.open(_spec(path / name, dtype, size, chunk), create=True, delete_existing=True).result()
    partial = path / f"{_DESCRIPTION}.partial"
    partial.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    partial.replace(path / _DESCRIPTION)
    return cls(path)

  @property
  def todo(self) -> np.ndarray:
    """Numbers of the rows that are not there yet."""
    return np.flatnonzero(~self._done_N.read().result())

  def write(self, rows: np.ndarray, h_NLD: np.ndarray) -> None:
    """Write rows, [N', L, D]; they count as done once all of them are on disk."""
    rows = np.asarray(rows)
    self._h_NLD[rows].write(np.asarray(h_NLD, np.float32)).result()
    self._done_N[rows].write(np.ones(len(rows), bool)).result()

  def block(self, block: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Return float32 [N, D] of a block, or of some rows of it; only their chunks are read.

    Raises:
      ValueError: no such block, or rows that are not there yet.
    """
    n, num_blocks, _ = self.shape
    if not 0 <= block < num_blocks:
      raise ValueError(f"{self.path}: block {block}; it has blocks 0 to {num_blocks - 1}.")
    index = np.arange(n) if rows is None else np.asarray(rows)
    missing = np.intersect1d(self.todo, index)
    if len(missing):
      raise ValueError(f"{self.path}: {len(missing)} of the rows asked for are not there yet.")
    found: np.ndarray = self._h_NLD[index, block].read().result()
    return found


def _spec(
  path: Path,
  dtype: str | None = None,
  shape: Sequence[int] = (),
  chunk: Sequence[int] = (),
) -> dict[str, Any]:
  spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
  if dtype is not None:
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    spec["metadata"] = {"shape": list(shape), "data_type": dtype, "chunk_grid": grid}
  return spec


def activations(
  model: Model,
  prompts: Sequence[Prompt],
  capture: Capture,
  *,
  rows: Sequence[Row] | None = None,
  store: str | Path | None = None,
  progress: Callable[[int], None] | None = None,
) -> Activations:
  """Read the activations of prompts at one site of every block.

  Args:
    model: the model.
    prompts: prompts or chats.
    capture: of one site, with reduce="last" or "mean".
    rows: the prompts as `encode_rows` gives them, where they are there already.
    store: folder to keep them in; rows that it has already are not computed again.
    progress: called with the number of prompts done.

  Raises:
    ValueError: a row's window holds no token; or the folder holds other activations.
  """
  (site,) = capture.sites
  arch = model.arch
  if rows is None:
    rows = encode_rows(model, prompts, None)
  if store is None:
    reads = collect(model, prompts, capture, progress=progress)
    h_LND = [reads[site, block] for block in range(arch.num_blocks)]
    _check_whole(np.isnan(h_LND[0]).any(axis=1))
    return ActivationsInMemory(h_LND)
  kept = ActivationStore.create(
    store,
    (len(prompts), arch.num_blocks, arch.site_width(site)),
    {
      "model": model.identity.name,
      "model_hash": model.identity.sha256,
      "dtype": model.dtype,
      "resid_dtype": model.resid_dtype,
      "site": site,
      "reduce": capture.reduce,
      "tokens": str(capture.tokens),
      "data_hash": content_hash([plain_prompt(prompt) for prompt in prompts]),
      # The same prompts are other tokens under another template or system default.
      "tokens_hash": content_hash([[row.ids, row.prompt_length, row.roles] for row in rows]),
    },
  )
  todo = kept.todo
  if progress is not None and len(todo) < len(prompts):
    progress(len(prompts) - len(todo))
  for tile in batches(model, [rows[n] for n in todo], capture):
    h_LBD = [np.asarray(tile.reads[site, b])[: len(tile.numbers)] for b in range(arch.num_blocks)]
    _check_whole(np.isnan(h_LBD[0]).any(axis=1), todo[tile.numbers])
    kept.write(todo[tile.numbers], np.stack(h_LBD, axis=1))
    if progress is not None:
      progress(len(tile.numbers))
  return kept


def _check_whole(empty_N: np.ndarray, numbers: np.ndarray | None = None) -> None:
  if empty_N.any():
    rows = np.flatnonzero(empty_N) if numbers is None else numbers[empty_N]
    raise ValueError(f"prompts {rows[:5].tolist()} have no token in the window that is read.")
