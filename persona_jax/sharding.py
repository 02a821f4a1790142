"""Where arrays lie: a mesh with the axes (data, model), and one table of rules for all families.

Every parameter and every array of the engine has a name that ends in its axes (`q_DNH`, `h_BTD`),
so a rule is a letter: rows are split over `data`; heads, the feed-forward width and the vocabulary
over `model`. What a mesh axis does not divide is kept whole on every device. The compiler puts in
the communication that follows (`jax.jit` with automatic axes).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RULES = {"B": "data", "V": "model", "N": "model", "K": "model", "F": "model"}


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Make a mesh of `data` x `model` devices.

  Args:
    data: groups of devices that hold a copy of the model each and split the rows.
    model: devices that split one copy of the model.
    devices: which; default the first data·model of `jax.devices()`.

  Raises:
    ValueError: a size below 1, or too few devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if data < 1 or model < 1 or data * model > len(devices):
    raise ValueError(
      f"a mesh of data={data}, model={model} needs {data * model} devices; there are "
      f"{len(devices)}: {devices[:8]}."
    )
  chosen = np.asarray(devices[: data * model]).reshape(data, model)
  return Mesh(chosen, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def first_device(mesh: Mesh | None) -> jax.Device:
  """Return the first device of a mesh; without one, that on which JAX puts new arrays."""
  if mesh is not None:
    found: jax.Device = mesh.devices.flat[0]
    return found
  default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
  if default is None or isinstance(default, str):  # a platform
    return jax.local_devices(backend=default)[0]
  return default


def spec(axes: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
  """Return how an array with these axes, a letter each, is split over the mesh."""
  return PartitionSpec(
    *(
      RULES[axis] if axis in RULES and size % mesh.shape[RULES[axis]] == 0 else None
      for axis, size in zip(axes, shape, strict=True)
    )
  )


def constrain(x: jax.Array, axes: str, mesh: Mesh | None) -> jax.Array:
  """Lay an array out as the rules say; the array itself without a mesh."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes, x.shape, mesh)))


def check_mesh(mesh: Mesh, sizes: Mapping[str, int]) -> None:
  """Refuse a mesh with other axes, or one whose `model` axis divides nothing of a model.

  Args:
    mesh: the mesh.
    sizes: sizes of the model by axis letter.

  Raises:
    ValueError: as above; the message says which sizes would fit.
  """
  if set(mesh.axis_names) != {"data", "model"}:
    raise ValueError(
      f"the mesh has the axes {mesh.axis_names}; 'data' and 'model' are needed, see pj.make_mesh."
    )
  model = mesh.shape["model"]
  split = {axis: size for axis, size in sizes.items() if RULES.get(axis) == "model"}
  if not any(size % model == 0 for size in split.values()):
    fits = [m for m in range(1, model) if any(size % m == 0 for size in split.values())]
    raise ValueError(
      f"the mesh splits the model {model} ways, which divides none of its sizes {split}; smaller "
      f"ones that do: {fits}."
    )
