"""Reads and writes `.pt` files of tensors, without torch and without running what they hold.

A `.pt` file is a zip archive: a pickle that says how tensors lie in storages, and a member of raw
bytes for each storage. A pickle is a program, and `pickle.load` runs it. The reader here lets that
program name nothing but tensors, their storages and ordered dictionaries: a file that names
anything else is refused before it is called. Sizes are checked against the bytes that are there.

Layout: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import collections
import io
import itertools
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

# Torch's storages, by the dtype of what they hold.
_STORAGES = {
  "FloatStorage": np.dtype(np.float32),
  "DoubleStorage": np.dtype(np.float64),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_MAX_PICKLE = 64 << 20  # bytes; the pickle of 100,000 tensors has 20 MB
_MAX_VALUES = 1 << 22  # of what is read: numbers, strings, tensors, containers

# How files begin that are often found where a `.pt` file should be.
_BEGINNINGS = (
  (b"version https://git-lfs", "a Git-LFS pointer and not the file itself; run `git lfs pull`"),
  (
    b"\x80",
    "a bare pickle or a file of torch before 1.6, and a pickle can run anything; where you trust "
    "it, open it in torch and save it again",
  ),
  (b"GGUF", "a GGUF file"),
  (b"<", "a web page, so maybe of a failed download"),
  (b"{", "JSON"),
)


def read_torch_file(path: str | Path) -> Any:
  """Read a `.pt` file of `torch.save`.

  Returns:
    What was saved, of tensors (numpy arrays of their dtype, bfloat16 of ml_dtypes; read-only),
    dicts, lists, tuples, strings, numbers and None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no such file, is truncated or damaged, or holds anything else; the message
      says what.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no file at {path}.")
  with path.open("rb") as file:
    start = file.read(64)
  if not start.startswith(b"PK\x03\x04"):
    raise ValueError(f"{path} is no torch file: {_what(start)}.")
  try:
    with zipfile.ZipFile(path) as archive:
      return _read_archive(path, archive)
  # RuntimeError is `zipfile`'s for members that are encrypted or of an unknown kind.
  except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
    raise ValueError(f"{path} is truncated or damaged: {error}.") from error


def _what(start: bytes) -> str:
  """Say what a file that begins like this is."""
  if not start:
    return "it is empty"
  if start[8:9] == b"{":
    return "it is a safetensors file"
  for beginning, what in _BEGINNINGS:
    if start.lstrip().startswith(beginning):
      return f"it is {what}"
  return f"it begins with {start[:8]!r} and not with the mark of a zip archive"


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Any:
  members = {info.filename: info for info in archive.infolist()}
  pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
  if len(pickles) != 1:
    raise ValueError(f"{path} is a zip archive and no torch file; it holds {list(members)[:5]}.")
  for name, info in members.items():
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"{path}: member {name!r} is compressed; torch stores members plainly.")
  if members[pickles[0]].file_size > _MAX_PICKLE:
    raise ValueError(f"{path}: its data.pkl is larger than {_MAX_PICKLE >> 20} MB.")
  reader = _TensorUnpickler(path, archive, pickles[0].removesuffix("data.pkl"))
  try:
    return _plain(path, reader.load())
  except (_Refused, zipfile.BadZipFile):
    raise
  # Whatever a damaged or hostile program can make the machine stumble over.
  except Exception as error:
    raise ValueError(
      f"{path}: its pickle cannot be read ({type(error).__name__}: {error})."
    ) from error


class _Refused(ValueError):
  """A file that was looked into and is refused, with a message that says which and why."""


class _Opaque:
  """Something that the program may pass on: a kind of storage, a storage or a tensor."""

  __slots__ = ("value",)

  def __init__(self, value: Any):
    self.value = value


class _Maker:
  """Something that the program may call."""

  __slots__ = ("make",)

  def __init__(self, make: Callable[..., Any]):
    self.make = make

  def __call__(self, *args: Any) -> Any:
    return self.make(*args)


class _TensorUnpickler(pickle.Unpickler):
  """Runs the pickle of a torch file with nothing in reach but what makes tensors."""

  def __init__(self, path: Path, archive: zipfile.ZipFile, folder: str):
    super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
    self._path, self._archive, self._folder = path, archive, folder
    self._storages: dict[str, _Opaque] = {}
    order = b"little"
    if f"{folder}byteorder" in archive.namelist():
      order = archive.read(f"{folder}byteorder")
    if order not in (b"little", b"big"):
      raise _Refused(f"{path}: byte order {order[:16]!r} is neither 'little' nor 'big'.")
    self._order = "<" if order == b"little" else ">"

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch" and name in _STORAGES:
      return _Opaque(_STORAGES[name])
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _Maker(self._tensor)
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return _Maker(lambda tensor, requires_grad, hooks: tensor)
    if (module, name) == ("collections", "OrderedDict"):
      return _Maker(collections.OrderedDict)
    raise _Refused(
      f"{self._path} holds {module}.{name}; nothing but tensors, dicts, lists, strings and numbers "
      "is read from a .pt file, because a pickle can run anything. Where you trust it, open it in "
      "its own tool and save the tensors."
    )

  def persistent_load(self, pid: Any) -> _Opaque:
    if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
      raise _Refused(f"{self._path}: a reference of its pickle is to no storage of a tensor.")
    _, kind, key, _, count = pid
    if key in self._storages:
      return self._storages[key]
    dtype, member = kind.value, f"{self._folder}data/{key}"
    try:
      raw = self._archive.read(member)
    except KeyError:
      raise _Refused(f"{self._path}: member {member!r} is missing.") from None
    if type(count) is not int or len(raw) != count * dtype.itemsize:
      raise _Refused(
        f"{self._path}: member {member!r} has {len(raw)} bytes and should hold {count!r} numbers "
        f"of {dtype.itemsize} bytes."
      )
    # Types beyond numpy's own know no byte order.
    stored = np.dtype(f"{self._order}u{dtype.itemsize}")
    numbers = np.frombuffer(raw, stored).astype(stored.newbyteorder("="), copy=False).view(dtype)
    self._storages[key] = _Opaque(numbers)
    return self._storages[key]

  def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Opaque:
    """View a part of a storage as a tensor, as `torch._utils._rebuild_tensor_v2`."""
    numbers = storage.value
    if len(shape) != len(strides) or not all(
      type(n) is int and n >= 0 for n in (offset, *shape, *strides)
    ):
      raise _Refused(f"{self._path}: a tensor of shape {shape} is malformed.")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size > numbers.size or (size and last >= numbers.size):
      raise _Refused(
        f"{self._path}: a tensor of shape {shape} reaches beyond its storage of {numbers.size} "
        "numbers."
      )
    if not size:
      return _Opaque(np.zeros(shape, numbers.dtype))
    steps = tuple(step * numbers.itemsize for step in strides)
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
    return _Opaque(view)


def _plain(path: Path, value: Any, left: "itertools.count[int] | None" = None) -> Any:
  """Return what the program made, with tensors as arrays.

  What is in it several times is copied as often, so that a short program of lists of the same list
  could ask for any number of copies: they are counted.
  """
  left = itertools.count() if left is None else left
  if next(left) >= _MAX_VALUES:
    raise _Refused(f"{path} holds more than {_MAX_VALUES} values.")
  if isinstance(value, _Opaque) and isinstance(value.value, np.ndarray):
    return value.value
  if isinstance(value, dict):
    return {_plain(path, key, left): _plain(path, x, left) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(_plain(path, x, left) for x in value)
  if value is None or isinstance(value, (str, bytes, bool, int, float)):
    return value
  raise _Refused(f"{path} holds a {type(value).__name__}, which is no tensor, string or number.")


def write_torch_file(path: str | Path, value: Any) -> Path:
  """Write a file that `torch.load(path, weights_only=True)` reads; the same value, the same bytes.

  Args:
    path: where to; written beside its place and moved there.
    value: numpy arrays (to become tensors), in dicts, lists and tuples with strings, numbers, bools
      and None.

  Raises:
    ValueError: something else, or an array of a dtype that torch's files do not have.
  """
  path = Path(path)
  storages: list[np.ndarray] = []
  program = io.BytesIO()
  program.write(pickle.PROTO + b"\x02")
  _write_value(program, value, storages)
  program.write(pickle.STOP)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
  with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:

    def add(name: str, data: bytes) -> None:
      archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}", (1980, 1, 1, 0, 0, 0)), data)

    add("data.pkl", program.getvalue())
    add("byteorder", b"little")
    for n, array in enumerate(storages):
      raw = array.view(f"u{array.itemsize}")
      add(f"data/{n}", raw.astype(raw.dtype.newbyteorder("<"), copy=False).tobytes())
    add("version", b"3\n")
  partial.replace(path)
  return path


def _write_value(out: io.BytesIO, value: Any, storages: list[np.ndarray]) -> None:
  """Write what puts a value on the stack of the pickle machine (protocol 2, no memo)."""
  if value is None:
    out.write(pickle.NONE)
  elif isinstance(value, (bool, np.bool_)):
    out.write(pickle.NEWTRUE if value else pickle.NEWFALSE)
  elif isinstance(value, (int, np.integer)):
    digits = pickle.encode_long(int(value))
    if len(digits) <= 4:
      out.write(pickle.BININT + struct.pack("<i", int(value)))
    else:
      out.write(pickle.LONG1 + bytes([len(digits)]) + digits)
  elif isinstance(value, (float, np.floating)):
    out.write(pickle.BINFLOAT + struct.pack(">d", float(value)))
  elif isinstance(value, str):
    text = value.encode()
    out.write(pickle.BINUNICODE + struct.pack("<I", len(text)) + text)
  elif isinstance(value, dict):
    out.write(pickle.EMPTY_DICT + pickle.MARK)
    _write_all(out, itertools.chain.from_iterable(value.items()), storages)
    out.write(pickle.SETITEMS)
  elif isinstance(value, list):
    out.write(pickle.EMPTY_LIST + pickle.MARK)
    _write_all(out, value, storages)
    out.write(pickle.APPENDS)
  elif isinstance(value, tuple):
    out.write(pickle.MARK)
    _write_all(out, value, storages)
    out.write(pickle.TUPLE)
  elif isinstance(value, np.ndarray):
    _write_tensor(out, value, storages)
  else:
    raise ValueError(f"a .pt file of tensors cannot hold {type(value).__name__} {value!r}.")


def _write_all(out: io.BytesIO, values: Iterable[Any], storages: list[np.ndarray]) -> None:
  for value in values:
    _write_value(out, value, storages)


def _write_tensor(out: io.BytesIO, array: np.ndarray, storages: list[np.ndarray]) -> None:
  if array.dtype not in _STORAGE_NAMES:
    raise ValueError(f"a .pt file cannot hold an array of dtype {array.dtype}.")
  array = np.array(array, order="C", copy=None)
  out.write(pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
  out.write(pickle.MARK)
  _write_value(out, "storage", storages)
  out.write(pickle.GLOBAL + f"torch\n{_STORAGE_NAMES[array.dtype]}\n".encode())
  _write_all(out, (str(len(storages)), "cpu", array.size), storages)
  out.write(pickle.TUPLE + pickle.BINPERSID)
  strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
  _write_all(out, (0, array.shape, strides, False), storages)
  out.write(pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
  out.write(pickle.TUPLE + pickle.REDUCE)
  storages.append(array)
