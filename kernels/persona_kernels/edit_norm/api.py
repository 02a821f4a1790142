"""Public entry of the edit; picks an implementation."""

import functools
import importlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jax.typing import DTypeLike

from persona_kernels.edit_norm import reference, xla
from persona_kernels.edit_norm.types import Out, Slots

Implementation = Literal["reference", "xla", "mosaic_tpu", "mosaic_gpu"]

_EDIT_SLOTS = {"reference": reference.edit_slots, "xla": xla.edit_slots}
# Modules of this package. Pallas takes half a second to import, so only those that use it do.
_EDIT_NORM = ("mosaic_gpu", "mosaic_tpu", "reference", "xla")


def edit_slots(
  h_BTD: jax.Array, slots: Slots, *, implementation: Literal["reference", "xla"] = "xla"
) -> jax.Array:
  """Compute the change that S edits per row, one after another, ask of an activation.

  Args:
    h_BTD: activation [B, T, D]; the sums run in float32 ("reference": in its own dtype).
    slots: the edits.
    implementation: "xla", or "reference" (the definition, slow).

  Returns:
    The sum of all changes, [B, T, D].

  Raises:
    ValueError: the implementation is unknown.
  """
  if implementation not in _EDIT_SLOTS:
    raise ValueError(f"implementation={implementation!r}; there are {sorted(_EDIT_SLOTS)}.")
  return _EDIT_SLOTS[implementation](h_BTD, slots)


def edit_norm(
  x_BTD: jax.Array,
  delta_BTD: jax.Array,
  slots: Slots,
  scale_D: jax.Array | None,
  bank_RD: jax.Array | None = None,
  *,
  eps: float = 0.0,
  offset: float = 0.0,
  dtype: DTypeLike | None = None,
  implementation: Implementation | None = None,
  interpret: bool = False,
  mesh: Mesh | None = None,
) -> Out:
  """Add a branch to the residual stream, edit it, normalise it and read it, in one go.

  h = edit(x + delta), y = h / sqrt(mean(h^2) + eps) * (offset + scale), reads = <h, bank>.

  Args:
    x_BTD: the stream, bfloat16 or float32.
    delta_BTD: what is added, in the same dtype.
    slots: the edits.
    scale_D: of the norm; None for no norm.
    bank_RD: float32 vectors to project h on, or None.
    eps: of the norm.
    offset: 0, or 1 where the scale is stored as what is to be added to 1 (Gemma).
    dtype: of y; default that of x.
    implementation: "reference" (the definition), "xla", "mosaic_tpu" (a TPU), "mosaic_gpu" (a GPU
      from Hopper on; 128 divides D); default "xla".
    interpret: simulate the kernel's device on the host; a GPU from JAX 0.11 on.
    mesh: devices with an axis "data", all axes of `AxisType.Auto`, over which the rows are split
      where it divides them; the kernel then runs on each device's rows, all of D. The others leave
      that to the compiler.

  Raises:
    ValueError: the implementation is unknown, or shapes or dtypes do not fit.
    NotImplementedError: this JAX cannot simulate the device.
  """
  name = implementation or "xla"
  if name not in _EDIT_NORM:
    raise ValueError(f"implementation={implementation!r}; there are {list(_EDIT_NORM)}.")
  b, t, d = x_BTD.shape
  s = slots.p_BSD.shape[1]
  expected: dict[str, tuple[jax.Array, tuple[int, ...]]] = {
    "delta_BTD": (delta_BTD, (b, t, d)), "p_BSD": (slots.p_BSD, (b, s, d)),
    "strength_BTS": (slots.strength_BTS, (b, t, s)), "gram_BSS": (slots.gram_BSS, (b, s, s)),
    **{
      f"{number}_BS": (getattr(slots, f"{number}_BS"), (b, s))
      for number in ("beta", "shift", "lo", "hi", "above", "below")
    },
  }  # fmt: skip
  if scale_D is not None:
    expected["scale_D"] = (scale_D, (d,))
  for array_name, (array, shape) in expected.items():
    if array.shape != shape:
      raise ValueError(f"{array_name} has shape {array.shape}; {shape} is needed.")
  if delta_BTD.dtype != x_BTD.dtype:
    raise ValueError(f"delta_BTD is {delta_BTD.dtype}, x_BTD {x_BTD.dtype}; they must be alike.")
  if bank_RD is not None and (bank_RD.ndim != 2 or bank_RD.shape[1] != d):
    raise ValueError(f"bank_RD has shape {bank_RD.shape}; [R, {d}] is needed.")
  out_dtype = jnp.dtype(x_BTD.dtype if dtype is None else dtype)
  module: Any = importlib.import_module(f"persona_kernels.edit_norm.{name}")
  run = functools.partial(module.edit_norm, eps=eps, offset=offset, dtype=out_dtype)
  if name.startswith("mosaic"):
    run = functools.partial(run, interpret=interpret)
    if mesh is not None:
      if "data" not in mesh.shape or any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
          f"mesh has axes {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}; an axis "
          "'data' is needed, and all must be AxisType.Auto, as jax.make_mesh makes them if told so."
        )
      rows = PartitionSpec("data") if b % mesh.shape["data"] == 0 else PartitionSpec()
      whole = PartitionSpec()
      run = jax.shard_map(
        run, mesh=mesh, in_specs=(rows, rows, rows, whole, whole), out_specs=rows, check_vma=False
      )
  out: Out = run(x_BTD, delta_BTD, slots, scale_D, bank_RD)
  return out
