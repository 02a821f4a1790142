"""Reads a Hugging Face model directory: weights in one safetensors file, or in several by an index.

Only the header of a file is read when it is opened; a tensor's bytes are read when a part of it is
asked for, and only that part's. Pickled weights are never read.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from persona_jax.checkpoints.tokenizer import read_json
from persona_jax.data.wheels import cache_dir, file_sha256

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Suffixes of weights that are pickled, or may be.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What a directory's identity covers beside the weights: everything that this package reads there.
_FILES = (
  "config.json",
  _INDEX,
  "tokenizer.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
)


class _Stored(NamedTuple):
  """Where a tensor lies: file, first byte, type and shape."""

  path: Path
  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]


class SafetensorsDir:
  """An open model directory.

  Attributes:
    config: the content of config.json.
    shapes: tensor name → shape.
    quantisation: storage types by the number of weights they hold, e.g. "BF16" or "BF16+F32".
    dtype: the narrowest float type that holds every weight exactly, scales of norms aside.
  """

  def __init__(self, directory: Path):
    """Open a directory and check its files' headers.

    Raises:
      FileNotFoundError: config.json, the weights or one of their files is missing.
      ValueError: a file is truncated or damaged, holds a type other than F32, F16 and BF16, or does
        not hold what the index says.
    """
    self.config: dict[str, Any] = read_config(directory)
    self._directory = directory
    self._stored: dict[str, _Stored] = {}
    sizes: dict[str, int] = {}
    self._paths = list(_weight_files(directory))
    for path in self._paths:
      for name, kind, stored in _tensors(path):
        if name in self._stored:
          raise ValueError(f"tensor {name!r} is both in {self._stored[name].path} and in {path}.")
        self._stored[name] = stored
        sizes[kind] = sizes.get(kind, 0) + math.prod(stored.shape)
    _check_index(directory, {name: stored.path.name for name, stored in self._stored.items()})
    self.shapes: dict[str, tuple[int, ...]] = {n: s.shape for n, s in self._stored.items()}
    self.quantisation: str = "+".join(sorted(sizes, key=lambda kind: -sizes[kind]))
    types = {s.dtype.name for name, s in self._stored.items() if "norm" not in name}
    self.dtype: str = types.pop() if len(types) == 1 else "float32"

  def where(self, name: str) -> str:
    """Return the file that a tensor is in and its name, for messages."""
    stored = self._stored.get(name)
    return f"{self._directory if stored is None else stored.path}: tensor {name!r}"

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Read a part of a tensor, in the type it is stored in (bfloat16 is `ml_dtypes.bfloat16`).

    Args:
      name: of the tensor.
      index: a slice of step 1 for some of its first dimensions; the others are whole.

    Raises:
      ValueError: no tensor of that name, or the file ends before it.
    """
    if name not in self._stored:
      raise ValueError(f"{self._directory}: no tensor {name!r}; it has {sorted(self._stored)}.")
    path, offset, dtype, shape = self._stored[name]
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=False)]
    bounds += [(0, n) for n in shape[len(bounds) :]]
    out = np.empty([stop - start for start, stop in bounds], dtype)
    # Bytes lie row after row: what is whole from some dimension on is read in one go.
    whole = len(shape)
    while whole and bounds[whole - 1] == (0, shape[whole - 1]):
      whole -= 1
    run = max(0, whole - 1)  # the dimension a run of bytes goes along
    stride = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    with path.open("rb", buffering=0) as file:
      for place in np.ndindex(*(stop - start for start, stop in bounds[:run])):
        first = sum((bounds[d][0] + place[d]) * stride[d] for d in range(run))
        if shape:
          first += bounds[run][0] * stride[run]
        target = out[place] if place else out
        file.seek(offset + first * dtype.itemsize)
        _fill(file, target, f"{path}: tensor {name!r}")
    return out

  def sha256(self) -> str:
    """Return the sha256, in hexadecimal, of the names and sha256s of the files that are read."""
    return files_sha256(self._directory, self._paths)


def read_config(directory: Path) -> dict[str, Any]:
  """Read config.json of a model directory.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it is damaged, or names no architecture.
  """
  if not (directory / "config.json").is_file():
    raise FileNotFoundError(
      f"{directory / 'config.json'} is missing; a model directory holds config.json, {_WEIGHTS} "
      f"(or {_INDEX} and the files it names), tokenizer.json and tokenizer_config.json."
    )
  config = read_json(directory / "config.json")
  if not isinstance(config.get("model_type"), str):
    raise ValueError(f"{directory / 'config.json'}: no model_type, which names the architecture.")
  return config


def files_sha256(directory: Path, weights: Iterable[Path]) -> str:
  """Return the sha256, in hexadecimal, of names and sha256s of files with weights and all others.

  The hash of a file is kept in the cache, until its size or time of change is another.
  """
  hashes = {}
  for path in (*(directory / name for name in _FILES), *weights):
    if path.is_file():
      place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
      hashes[path.name] = file_sha256(path, sidecar=cache_dir() / "checked" / f"{place}.json")
  return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _weight_files(directory: Path) -> Iterator[Path]:
  index = directory / _INDEX
  if not index.is_file():
    if not (directory / _WEIGHTS).is_file():
      pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
      raise FileNotFoundError(
        f"{directory / _WEIGHTS} is missing, and so is {_INDEX}"
        + (f"; pickled weights ({', '.join(pickled)}) are never read." if pickled else ".")
      )
    yield directory / _WEIGHTS
    return
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index}: no weight_map, which says where the tensors are.")
  if (directory / _WEIGHTS).is_file() and _WEIGHTS not in weight_map.values():
    raise ValueError(
      f"{directory} holds {_WEIGHTS} and, by {_INDEX}, weights in other files; remove one of them."
    )
  for name in sorted(set(weight_map.values())):
    path = directory / str(name)
    if Path(str(name)).name != name:
      raise ValueError(f"{index}: {name!r} is no file of this directory.")
    if not path.is_file():
      lost = sorted(tensor for tensor, file in weight_map.items() if file == name)
      raise FileNotFoundError(
        f"{path} is missing; {index.name} says that it holds {lost[0]!r} and {len(lost) - 1} more "
        "tensors."
      )
    yield path


def _tensors(path: Path) -> Iterator[tuple[str, str, _Stored]]:
  """Yield (name, type, place) of each tensor of a file, from its header."""
  try:
    # The library checks that the header is sound and that the file is as long as it says.
    with safetensors.safe_open(path, framework="numpy") as file:
      file.keys()
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path}: not a readable safetensors file, maybe truncated or damaged{_first_lost(path)}: "
      f"{error}"
    ) from error
  with path.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
  header.pop("__metadata__", None)
  for name, entry in header.items():
    kind = entry["dtype"]
    if kind not in _DTYPES:
      raise ValueError(
        f"{path}: tensor {name!r} has the type {kind}; handled: {', '.join(_DTYPES)}."
      )
    place = 8 + length + int(entry["data_offsets"][0])
    yield name, kind, _Stored(path, place, _DTYPES[kind], tuple(entry["shape"]))


def _first_lost(path: Path) -> str:
  """Name the first tensor that a file ends before, if its header can still be read."""
  try:
    with path.open("rb") as stream:
      length = int.from_bytes(stream.read(8), "little")
      header = json.loads(stream.read(length))
    room = path.stat().st_size - 8 - length
    ends = {n: e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"}
    lost = sorted((end, name) for name, end in ends.items() if end > room)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
    return ""
  return f"; it ends before the end of tensor {lost[0][1]!r}" if lost else ""


def _check_index(directory: Path, file_of: dict[str, str]) -> None:
  """Raise ValueError if the index names other tensors than the files hold."""
  index = directory / _INDEX
  if not index.is_file():
    return
  weight_map = read_json(index)["weight_map"]
  problems = [
    f"{name!r} is not in {file}" for name, file in weight_map.items() if file_of.get(name) != file
  ]
  problems += [
    f"{file} holds {name!r}, which is not in it"
    for name, file in file_of.items()
    if name not in weight_map
  ]
  if problems:
    shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
    raise ValueError(f"{index} does not fit the files: {shown}.")


def _fill(file: Any, target: np.ndarray, what: str) -> None:
  """Read the bytes of a contiguous array."""
  view = memoryview(target.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
  done = 0
  while done < len(view):
    count = file.readinto(view[done:])
    if not count:
      raise ValueError(f"{what}: the file ends {len(view) - done} bytes too early")
    done += count
