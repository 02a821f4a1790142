"""Fills a family's parameters from a checkpoint, tensor by tensor."""

import math
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persona_jax.models.arch import Arch
from persona_jax.models.family import Weight


class TensorSource(Protocol):
  """What a checkpoint offers: its tensors' names, and each as an array [out, in]."""

  @property
  def names(self) -> tuple[str, ...]: ...

  def read(self, name: str) -> np.ndarray: ...


def axes_of(leaf: str) -> str:
  """Return the axes of a parameter, one letter each: the end of its name, "q_DNH" → "DNH"."""
  return leaf.rsplit("_", 1)[1]


def arrange(stored: np.ndarray, weight: Weight, shape: tuple[int, ...]) -> np.ndarray:
  """Bring a stored tensor to the axes of its parameter.

  Args:
    stored: as in the checkpoint, its dimensions being products of axes as `weight.axes` says.
    weight: where it goes.
    shape: of the parameter.

  Raises:
    ValueError: the tensor has another shape.
  """
  axes = axes_of(str(weight.path[-1]))
  size = dict(zip(axes, shape, strict=True))
  split = [size[axis] for part in weight.axes.split(",") for axis in part]
  expected = tuple(math.prod(size[axis] for axis in part) for part in weight.axes.split(","))
  if stored.shape != expected:
    raise ValueError(f"has shape {stored.shape}; {expected} ({weight.axes}) is needed")
  order = weight.axes.replace(",", "")
  return stored.reshape(split).transpose([order.index(axis) for axis in axes])


def load_params(source: TensorSource, arch: Arch, dtype: DTypeLike) -> dict[str, Any]:
  """Read every parameter of `arch` in `dtype`; every problem is collected before raising.

  Returns:
    {"embed_VD": [V, D], "blocks": [one dict a block], "final_norm_D": [D], …}. Norm scales stay
    float32.

  Raises:
    ValueError: tensors are missing or unasked for, have a wrong shape, cannot be read, or hold a
      NaN or an infinity.
  """
  params = arch.family.abstract_params(arch)
  wanted = arch.family.weight_map(arch)
  renamed = {name: arch.family.tensor_name(name) for name in source.names}
  stored_name = {new: name for name, new in renamed.items() if new is not None}
  problems = [f"missing tensor {name}" for name in sorted(set(wanted) - set(stored_name))]
  problems += [f"unknown tensor {stored_name[n]}" for n in sorted(set(stored_name) - set(wanted))]
  for name in sorted(set(wanted) & set(stored_name)):
    *parents, leaf = wanted[name].path
    node: Any = params
    for key in parents:
      node = node[key]
    try:
      value = arrange(source.read(stored_name[name]), wanted[name], node[leaf].shape)
    except ValueError as error:
      problems.append(f"tensor {stored_name[name]} {error}")
      continue
    if not np.isfinite(value.astype(np.float32)).all():
      problems.append(f"tensor {stored_name[name]} holds a NaN or an infinity")
    else:
      node[leaf] = jnp.asarray(value, jnp.float32 if "norm" in str(leaf) else dtype)
  if problems:
    shown = "; ".join(problems[:8]) + (
      f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    )
    raise ValueError(f"the checkpoint does not fit the {arch.family.name} architecture: {shown}.")
  return params
