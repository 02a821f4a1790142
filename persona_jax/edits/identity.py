"""What a function is, as a hash that tells two apart by all that they depend on."""

import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(Ellipsis), np.generic)


def function_hash(fn: Any) -> str:
  """Return the sha256 of a function's code and of the values that it closes over.

  Those are constants, defaults, closures, the globals that it names (functions of its own module
  among them), the arguments of `functools.partial`, and the fields of a callable object.

  Raises:
    ValueError: some value can not be hashed by what it holds.
  """
  digest = hashlib.sha256()
  _add(digest, fn, str(getattr(fn, "__qualname__", type(fn).__name__)), set())
  return digest.hexdigest()


def _add(digest: Any, value: Any, path: str, seen: set[int]) -> None:
  digest.update(f"<{type(value).__name__}>".encode())
  if isinstance(value, _PLAIN):
    digest.update(repr(value).encode())
  elif isinstance(value, (np.ndarray, jax.Array)):
    array = np.asarray(value)
    digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
  elif isinstance(value, types.ModuleType):
    digest.update(value.__name__.encode())
  elif id(value) in seen:
    digest.update(b"again")
  else:
    seen.add(id(value))
    _add_compound(digest, value, path, seen)


def _add_compound(digest: Any, value: Any, path: str, seen: set[int]) -> None:
  def parts(named: Mapping[Any, Any]) -> None:
    for name, part in named.items():
      digest.update(f"{name!r}:".encode())
      _add(digest, part, f"{path}.{name}", seen)

  if isinstance(value, types.CodeType):
    digest.update(value.co_code + repr((value.co_names, value.co_varnames)).encode())
    parts(dict(enumerate(value.co_consts)))
  elif isinstance(value, types.FunctionType):
    _add_function(digest, value, path, seen)
  elif isinstance(value, types.MethodType):
    parts({"function": value.__func__, "self": value.__self__})
  elif isinstance(value, functools.partial):
    parts({"function": value.func, "arguments": value.args, "keywords": dict(value.keywords)})
  elif isinstance(value, (tuple, list)):
    parts(dict(enumerate(value)))
  elif isinstance(value, (set, frozenset)):
    parts(dict(enumerate(sorted(value, key=repr))))
  elif isinstance(value, Mapping):
    parts(value)
  elif hasattr(value, "__wrapped__"):  # jax.jit, functools.wraps
    parts({"wrapped": value.__wrapped__})
  elif isinstance(value, type) or isinstance(value, types.BuiltinFunctionType):
    digest.update(f"{value.__module__}.{value.__qualname__}".encode())
  elif _is_of_a_library(value):
    digest.update(f"{value.__module__}.{getattr(value, '__qualname__', repr(value))}".encode())
  elif hasattr(value, "__dict__") and callable(value):
    parts({"class": type(value).__call__, "fields": vars(value)})
  else:
    raise ValueError(
      f"{path} is a {type(value).__name__}, which can not be told from another by what it holds; "
      "pass numbers and arrays as params=, or name the edit with name=."
    )


def _is_of_a_library(value: Any) -> bool:
  module = str(getattr(value, "__module__", ""))
  return callable(value) and module.split(".")[0] in ("jax", "numpy", "jaxlib", "scipy")


def _add_function(digest: Any, fn: types.FunctionType, path: str, seen: set[int]) -> None:
  if _is_of_a_library(fn):
    digest.update(f"{fn.__module__}.{fn.__qualname__}".encode())
    return
  _add(digest, fn.__code__, path, seen)
  cells = (cell.cell_contents for cell in fn.__closure__ or ())
  named = dict(zip(fn.__code__.co_freevars, cells, strict=True))
  named |= {f"global {n}": fn.__globals__[n] for n in _names(fn.__code__) if n in fn.__globals__}
  named |= {"defaults": fn.__defaults__, "keywords": fn.__kwdefaults__}
  for name, part in named.items():
    digest.update(f"{name}:".encode())
    _add(digest, part, f"{path}.{name}", seen)


def _names(code: types.CodeType) -> list[str]:
  inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
  return sorted({*code.co_names, *inner})
