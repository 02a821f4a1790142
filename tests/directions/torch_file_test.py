"""`.pt` files: what torch wrote is read, and nothing that a pickle asks for is run."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from persona_jax.directions.formats import torch_file
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file

DTYPES = (np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_)


def archive(path: Path, program: bytes, **members: bytes) -> Path:
  """Writes a file like one of torch with a pickle of one's own."""
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("x/data.pkl", program)
    for name, data in members.items():
      file.writestr(f"x/{name.replace('__', '/')}", data)
  return path


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  st.recursive(
    st.one_of(
      st.none(),
      st.booleans(),
      st.integers(-(2**70), 2**70),
      st.floats(allow_nan=False),
      st.text(max_size=8),
      st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=4, min_side=0))
      ),
    ),
    lambda inner: st.one_of(
      st.lists(inner, max_size=3),
      st.lists(inner, max_size=3).map(tuple),
      st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=6,
  )
)
def test_what_is_written_is_read(tmp_path_factory, value):
  path = tmp_path_factory.mktemp("pt") / "value.pt"

  def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
      return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
      return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
      return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b

  assert same(value, read_torch_file(write_torch_file(path, value)))


def test_bfloat16_and_views_are_read(tmp_path):
  half = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
  assert (read_torch_file(write_torch_file(tmp_path / "h.pt", half)) == half).all()
  written = read_torch_file(write_torch_file(tmp_path / "t.pt", np.arange(6.0).reshape(2, 3).T))
  np.testing.assert_array_equal(written, np.arange(6.0).reshape(2, 3).T)


def tensor(shape, strides, *, offset=0, count=6, kind="FloatStorage") -> bytes:
  """A pickle of a tensor as torch writes it."""
  ints = lambda xs: b"(" + b"".join(b"K" + bytes([x]) for x in xs) + b"t"
  storage = b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x000"
  storage += b"X\x03\x00\x00\x00cpuK" + bytes([count]) + b"tQ"
  rest = b"K" + bytes([offset]) + ints(shape) + ints(strides) + b"\x89ccollections\nOrderedDict\n)R"
  return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


NUMBERS = np.arange(6, dtype="<f4").tobytes()


def test_strides_and_offsets_are_those_of_torch(tmp_path):
  path = archive(tmp_path / "x.pt", tensor((3, 2), (1, 3)), data__0=NUMBERS)
  np.testing.assert_array_equal(read_torch_file(path), [[0, 3], [1, 4], [2, 5]])
  path = archive(tmp_path / "x.pt", tensor((2,), (2,), offset=1), data__0=NUMBERS)
  np.testing.assert_array_equal(read_torch_file(path), [1, 3])
  big = np.arange(6, dtype=">f4").tobytes()
  path = archive(tmp_path / "x.pt", tensor((6,), (1,)), data__0=big, byteorder=b"big")
  np.testing.assert_array_equal(read_torch_file(path), np.arange(6))


class Hostile:
  """Writes a file when it is unpickled."""

  def __init__(self, path: Path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused_before_it_does(tmp_path):
  trap = tmp_path / "was-run"
  for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
    path = archive(tmp_path / "x.pt", pickle.dumps({"a": Hostile(trap)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"holds posix\.mkdir; nothing but tensors"):
      read_torch_file(path)
  # Also by what it may name: attributes of these, their classes, what they are called with.
  for program in (
    b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
    b"\x80\x04\x8c\x05torch\x8c\x12FloatStorage.dtype\x93.",
    b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",  # sets an attribute
    b"\x80\x02ctorch\nFloatStorage\n)R.",  # calls what is no function
    b"\x80\x02ctorch\nFloatStorage\n.",  # leaves it as the result
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
  ):
    with pytest.raises(ValueError, match=r"x\.pt"):
      read_torch_file(archive(tmp_path / "x.pt", program, data__0=NUMBERS))
  assert not trap.exists()


def test_a_list_that_holds_itself_many_times_over_is_refused(tmp_path, monkeypatch):
  nested = [1.0]
  for _ in range(60):  # 2^60 numbers, were they copied
    nested = [nested, nested]
  path = archive(tmp_path / "x.pt", pickle.dumps(nested, protocol=2))
  monkeypatch.setattr(torch_file, "_MAX_VALUES", 1000)
  with pytest.raises(ValueError, match="holds more than 1000 values"):
    read_torch_file(path)


@pytest.mark.parametrize(
  ("program", "members", "message"),
  [
    (tensor((7,), (1,)), {"data__0": NUMBERS}, "reaches beyond its storage of 6"),
    (tensor((3,), (3,)), {"data__0": NUMBERS}, "reaches beyond its storage of 6"),
    (tensor((100, 100), (0, 0)), {"data__0": NUMBERS}, "reaches beyond its storage"),
    (tensor((6,), (1, 1)), {"data__0": NUMBERS}, "malformed"),
    (tensor((6,), (1,)), {}, "'x/data/0' is missing"),
    (tensor((6,), (1,)), {"data__0": NUMBERS[:-1]}, "has 23 bytes and should hold 6"),
    (tensor((6,), (1,)), {"data__0": NUMBERS, "byteorder": b"middle"}, "byte order b'middle'"),
    (tensor((6,), (1,))[:-20], {"data__0": NUMBERS}, "cannot be read"),
    (tensor((6,), (1,), kind="QInt8Storage"), {"data__0": NUMBERS}, r"torch\.QInt8Storage"),
  ],
)
def test_files_that_are_not_whole_are_refused(tmp_path, program, members, message):
  with pytest.raises(ValueError, match=message):
    read_torch_file(archive(tmp_path / "x.pt", program, **members))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (POINTER, "Git-LFS pointer .* run `git lfs pull`"),
    (b"", "it is empty"),
    (pickle.dumps([1]), "bare pickle or a file of torch before 1.6"),
    (b"\n<!DOCTYPE html><html>", "web page"),
    (b'{"message": "not found"}', "JSON"),
    (b"GGUF\x03\x00\x00\x00", "GGUF"),
    (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "safetensors"),
    (b"\x93NUMPY\x01\x00", r"begins with b'\\x93NUMPY"),
  ],
)
def test_what_is_no_torch_file_is_named(tmp_path, content, message):
  (tmp_path / "x.pt").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read_torch_file(tmp_path / "x.pt")


def test_a_truncated_or_damaged_archive_is_refused(tmp_path):
  path = write_torch_file(tmp_path / "x.pt", np.arange(100.0))
  whole = path.read_bytes()
  for size in (10, len(whole) // 2, len(whole) - 5):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="truncated or damaged"):
      read_torch_file(path)
  at = whole.index(np.arange(100.0).tobytes()[:400])
  path.write_bytes(whole[: at + 9] + b"\xff" + whole[at + 10 :])
  with pytest.raises(ValueError, match="truncated or damaged.*CRC"):
    read_torch_file(path)
  other = io.BytesIO()
  with zipfile.ZipFile(other, "w") as file:
    file.writestr("word/document.xml", "<w/>")
  path.write_bytes(other.getvalue())
  with pytest.raises(ValueError, match="no torch file; it holds .*document.xml"):
    read_torch_file(path)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("x/data.pkl", tensor((6,), (1,)))
  with pytest.raises(ValueError, match="is compressed"):
    read_torch_file(path)
  with pytest.raises(FileNotFoundError, match="none.pt"):
    read_torch_file(tmp_path / "none.pt")


def test_what_a_torch_file_cannot_hold_is_refused(tmp_path):
  with pytest.raises(ValueError, match="cannot hold set"):
    write_torch_file(tmp_path / "x.pt", {"a": {1}})
  with pytest.raises(ValueError, match="dtype complex64"):
    write_torch_file(tmp_path / "x.pt", np.zeros(2, np.complex64))
  assert not (tmp_path / "x.pt").exists()
