"""Fills a family's parameters from a checkpoint, each device's part from the bytes it needs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from persona_jax import sharding
from persona_jax.models.arch import Arch, Weight

# Weights are read, checked and converted in pieces of about so many bytes, so that no whole tensor
# is held twice.
_PIECE = 16 << 20
# A piece is copied in strips that stay in a core's cache while they are transposed.
_STRIP = 1 << 18
_ALIGNMENT = 64  # bytes, as XLA wants its buffers

# A value is infinite or no number if all bits of its exponent are set.
_EXPONENT: dict[np.dtype, tuple[Any, int]] = {
  np.dtype(np.float32): (np.uint32, 0x7F800000),
  np.dtype(np.float16): (np.uint16, 0x7C00),
  np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
}


class TensorSource(Protocol):
  """What a checkpoint offers: its tensors' shapes, and parts of them as arrays [out, in]."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray: ...
  def where(self, name: str) -> str: ...


def axes_of(leaf: str) -> str:
  """Return the axes of a parameter, one letter each: the end of its name, "q_DNH" → "DNH"."""
  return leaf.rsplit("_", 1)[1]


def stored_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Return the shape that a checkpoint's tensor must have to fill a parameter of `shape`."""
  size = dict(zip(axes_of(str(weight.path[-1])), shape, strict=True))
  return tuple(math.prod(size[axis] for axis in part) for part in weight.axes.split(","))


def read_part(
  source: TensorSource,
  name: str,
  weight: Weight,
  shape: tuple[int, ...],
  index: tuple[slice, ...],
  dtype: DTypeLike,
) -> np.ndarray:
  """Read a part of a parameter out of its stored tensor.

  Args:
    source: the checkpoint.
    name: of the tensor in it.
    weight: where it goes and what its axes are.
    shape: of the whole parameter.
    index: one slice an axis of the parameter; an axis that is stored behind another in one
      dimension ("H" of "NH") must be whole.
    dtype: of the result.

  Raises:
    ValueError: the part holds a NaN or an infinity, or cannot be read.
  """
  axes = axes_of(str(weight.path[-1]))
  size = dict(zip(axes, shape, strict=True))
  span = {a: range(*s.indices(size[a])) for a, s in zip(axes, index, strict=True)}
  parts = weight.axes.split(",")
  inner = {part: math.prod(size[a] for a in part[1:]) for part in parts}
  if any(len(span[a]) != size[a] for part in parts for a in part[1:]):
    raise ValueError(f"a part of {weight.path[-1]} cuts an axis that {name} stores inside another")
  out = _aligned([len(span[a]) for a in axes], dtype)
  order = weight.axes.replace(",", "")
  as_stored = out.transpose([axes.index(a) for a in order])
  rest = tuple(
    slice(span[part[0]].start * inner[part], span[part[0]].stop * inner[part]) for part in parts[1:]
  )
  first, step = span[order[0]], 1
  row_bytes = 4 * max(1, out.size // max(1, len(first)))
  step = max(1, _PIECE // row_bytes)
  for at in range(first.start, first.stop, step):
    stop = min(at + step, first.stop)
    rows = slice(at * inner[parts[0]], stop * inner[parts[0]])
    piece = source.read(name, (rows, *rest))
    if not _is_finite(piece):
      raise ValueError("holds a NaN or an infinity")
    target = as_stored[at - first.start : stop - first.start]
    with np.errstate(over="ignore"):  # what the target cannot hold is refused below
      _copy(piece.reshape(target.shape), target)
    if target.dtype not in (piece.dtype, np.float32) and not _is_finite(target):
      raise ValueError(f"holds values beyond the range of {target.dtype}")
  return out


def _aligned(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
  """Return an array to be filled that JAX can take as it is on the CPU, without a copy."""
  size = math.prod(shape) * jnp.dtype(dtype).itemsize
  room = np.empty(size + _ALIGNMENT, np.uint8)
  first = -room.ctypes.data % _ALIGNMENT
  return room[first : first + size].view(dtype).reshape(shape)


def _is_finite(piece: np.ndarray) -> bool:
  kind, exponent = _EXPONENT[piece.dtype]
  return bool(((piece.view(kind) & exponent) != exponent).all())


def _copy(piece: np.ndarray, target: np.ndarray) -> None:
  """Copy an array into one whose axes may lie in another order, with its dtype.

  NumPy copies and widens bfloat16, a type it does not know, value by value; as bits it is ten times
  as fast.
  """
  widened = piece.dtype == ml_dtypes.bfloat16 and target.dtype == np.float32
  if widened:
    piece, target = piece.view(np.uint16), target.view(np.uint32)
  elif piece.dtype == target.dtype and piece.itemsize == 2:
    piece, target = piece.view(np.uint16), target.view(np.uint16)
  step = max(1, _STRIP // max(1, target[:1].nbytes))
  for at in range(0, len(target), step):
    strip = target[at : at + step]
    strip[...] = piece[at : at + step]
    if widened:
      strip <<= 16


def load_params(
  source: TensorSource,
  arch: Arch,
  dtype: DTypeLike,
  mesh: Mesh | None = None,
  *,
  progress: bool = False,
) -> dict[str, Any]:
  """Read every parameter of `arch`; every problem of names and shapes is collected before raising.

  Args:
    source: the checkpoint.
    arch: what it holds.
    dtype: of the parameters; scales of norms stay float32.
    mesh: where they go, by the rules of `sharding`; each device's part is read by itself. None: the
      default device.
    progress: whether to show a bar of the bytes that are loaded.

  Returns:
    {"embed_VD": [V, D], "blocks": [one dict a block], "final_norm_D": [D], …}.

  Raises:
    ValueError: tensors are missing or unasked for, have a wrong shape, cannot be read, or hold a
      NaN or an infinity; or the mesh fits no size of the model.
  """
  _check_mesh(arch, mesh)
  params = arch.family.abstract_params(arch)
  wanted = arch.family.weight_map(arch)
  renamed = {name: arch.family.tensor_name(name) for name in source.shapes}
  stored_name = {new: name for name, new in renamed.items() if new is not None}
  missing, extra = sorted(set(wanted) - set(stored_name)), sorted(set(stored_name) - set(wanted))
  problems = [f"missing: {source.where(name)}" for name in missing]
  problems += [f"unknown: {source.where(stored_name[name])}" for name in extra]
  found = [name for name in wanted if name in stored_name]
  for name in found:
    given, expected = source.shapes[stored_name[name]], _expected(params, wanted[name])
    if tuple(given) != expected:
      problems.append(
        f"{source.where(stored_name[name])} has shape {tuple(given)}; {expected} "
        f"({wanted[name].axes}) is needed"
      )
  if not problems:
    total = sum(_bytes(_at(params, wanted[name].path), wanted[name], dtype) for name in found)
    bar = tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress)
    with bar:
      for name in found:
        *parents, leaf = wanted[name].path
        node = _at(params, parents)
        weight, kept = wanted[name], _kept_dtype(str(leaf), dtype)
        size = _bytes(node[leaf], weight, dtype)
        try:
          node[leaf] = _load(source, stored_name[name], weight, node[leaf].shape, kept, mesh)
        except ValueError as error:
          problems.append(f"{source.where(stored_name[name])} {error}")
          break  # its place in memory may be all that is left to read
        bar.update(size)
  if problems:
    shown = "; ".join(problems[:8]) + (
      f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    )
    raise ValueError(f"the checkpoint cannot be read as {arch.family.name}: {shown}.")
  return params


def placed_params(arch: Arch, dtype: DTypeLike, mesh: Mesh | None = None) -> dict[str, Any]:
  """Return the parameters of `arch` as `jax.ShapeDtypeStruct`, each with the place it goes to.

  Args:
    arch, dtype, mesh: as in `load_params`.

  Raises:
    ValueError: the mesh fits no size of the model.
  """
  _check_mesh(arch, mesh)
  alone = jnp.zeros(()).sharding  # on the default device

  def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    name = str(path[-1].key)
    where = alone if mesh is None else _sharding_of(name, leaf.shape, mesh)
    return jax.ShapeDtypeStruct(leaf.shape, _kept_dtype(name, dtype), sharding=where)

  return jax.tree_util.tree_map_with_path(place, arch.family.abstract_params(arch))


def _check_mesh(arch: Arch, mesh: Mesh | None) -> None:
  if mesh is not None:
    sizes = {"N": arch.num_heads, "K": arch.num_kv_heads, "F": arch.ffw_width, "V": arch.vocab_size}
    sharding.check_mesh(mesh, sizes)


def _sharding_of(leaf: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, sharding.spec(axes_of(leaf), shape, mesh))


def _kept_dtype(leaf: str, dtype: DTypeLike) -> DTypeLike:
  """Scales of norms stay float32."""
  return jnp.float32 if "norm" in leaf else dtype


def _bytes(leaf: jax.ShapeDtypeStruct, weight: Weight, dtype: DTypeLike) -> int:
  return leaf.size * jnp.dtype(_kept_dtype(str(weight.path[-1]), dtype)).itemsize


def _at(params: Any, path: Any) -> Any:
  for key in path:
    params = params[key]
  return params


def _expected(params: Any, weight: Weight) -> tuple[int, ...]:
  return stored_shape(weight, _at(params, weight.path).shape)


def _load(
  source: TensorSource,
  name: str,
  weight: Weight,
  shape: tuple[int, ...],
  dtype: DTypeLike,
  mesh: Mesh | None,
) -> jax.Array:
  """Read one parameter onto the devices; replicas of a part are read once."""
  if mesh is None:
    whole = (slice(None),) * len(shape)
    return jax.device_put(read_part(source, name, weight, shape, whole, dtype), may_alias=True)
  placed = _sharding_of(str(weight.path[-1]), shape, mesh)

  def key_of(index: tuple[slice, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(s.indices(n) for s, n in zip(index, shape, strict=True))

  devices: dict[tuple[tuple[int, int, int], ...], jax.Device] = {}
  for device, index in placed.addressable_devices_indices_map(shape).items():
    assert index is not None
    devices.setdefault(key_of(index), device)
  parts: dict[tuple[tuple[int, int, int], ...], jax.Array] = {}

  def part(index: tuple[slice, ...] | None) -> jax.Array:
    assert index is not None
    key = key_of(index)
    if key not in parts:
      # Straight to a device that needs it: the host never holds more than one part.
      host = read_part(source, name, weight, shape, index, dtype)
      parts[key] = jax.device_put(host, devices[key], may_alias=True).block_until_ready()
    return parts[key]

  return jax.make_array_from_callback(shape, placed, part)
