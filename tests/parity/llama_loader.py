"""llama.cpp's own loader of control vectors, as its command line tools call it.

The loader is C++ and in no Python binding; the wheel `xllamacpp` exports it. Its mangled name and
the layout of its arguments are those of that wheel, whose version is pinned: x86-64, Linux, the
older of libstdc++'s two strings, which is a pointer to the characters.
"""

import ctypes
import importlib.util
import os
from pathlib import Path

import numpy as np

_LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class _LoadInfo(ctypes.Structure):
  _fields_ = (("strength", ctypes.c_float), ("fname", ctypes.c_char_p))


class _Vector(ctypes.Structure):  # std::vector
  _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))


class _Loaded(ctypes.Structure):
  _fields_ = (("n_embd", ctypes.c_int), ("data", _Vector))


def is_there() -> bool:
  """Returns whether this platform has the wheel."""
  return importlib.util.find_spec("xllamacpp") is not None


def load_control_vector(path: Path, strength: float) -> np.ndarray | None:
  """Returns the buffer that llama.cpp makes of a file, float32 [L', D]; None where it refuses it.

  Row i is added to the output of block i + 1, and the last block with a vector is the last row.
  """
  import xllamacpp

  load = ctypes.CDLL(xllamacpp.xllamacpp.__file__)[_LOAD]
  load.argtypes, load.restype = (ctypes.POINTER(_Loaded), ctypes.POINTER(_Vector)), None
  infos = (_LoadInfo * 1)(_LoadInfo(strength, os.fsencode(path)))
  begin = ctypes.addressof(infos)
  end = begin + ctypes.sizeof(infos)
  loaded = _Loaded()
  load(ctypes.byref(loaded), ctypes.byref(_Vector(begin, end, end)))
  if loaded.n_embd <= 0:
    return None
  count = (loaded.data.end - loaded.data.begin) // ctypes.sizeof(ctypes.c_float)
  flat = (ctypes.c_float * count).from_address(loaded.data.begin)
  return np.array(flat, np.float32).reshape(-1, loaded.n_embd)
