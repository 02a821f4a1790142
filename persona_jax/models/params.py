"""Fills a family's parameters from a checkpoint, tensor by tensor."""

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from persona_jax.models import families
from persona_jax.models.arch import Arch


class TensorSource(Protocol):
  """What a checkpoint offers: its tensors' names, and each as an array [out, in]."""

  @property
  def names(self) -> tuple[str, ...]: ...

  def read(self, name: str) -> np.ndarray: ...


def load_params(source: TensorSource, arch: Arch, dtype: DTypeLike) -> dict[str, Any]:
  """Read every parameter of `arch` in `dtype`; every problem is collected before raising.

  Returns:
    {"embed_VD": [V, D], "blocks": [one dict a block], "final_norm_D": [D], …}. Norm scales stay
    float32.

  Raises:
    ValueError: tensors are missing or unasked for, have a wrong shape, or hold a NaN or an
      infinity.
  """
  adapter = families.family(arch.family)
  params = adapter.abstract_params(arch)
  wanted = adapter.weight_map(arch)
  problems = [f"missing tensor {name}" for name in sorted(set(wanted) - set(source.names))]
  problems += [f"unknown tensor {name}" for name in sorted(set(source.names) - set(wanted))]
  for name in sorted(set(wanted) & set(source.names)):
    path, transform = wanted[name]
    *parents, leaf = path
    node = params
    for key in parents:
      node = node[key]
    raw = source.read(name)
    expected = node[leaf].shape
    try:
      value = transform(raw)
    except ValueError:
      value = raw
    if value.shape != expected:
      problems.append(f"tensor {name} has shape {raw.shape}, which does not make {leaf} {expected}")
    elif not np.isfinite(value.astype(np.float32)).all():
      problems.append(f"tensor {name} holds a NaN or an infinity")
    else:
      node[leaf] = jnp.asarray(value, jnp.float32 if "norm" in leaf else dtype)
  if problems:
    shown = "; ".join(problems[:8]) + (
      f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    )
    raise ValueError(f"the checkpoint does not fit the {arch.family} architecture: {shown}.")
  return params
