"""TPUs that programs are compiled for without one, and their data-sheet figures.

With the `libtpu` wheel, JAX runs the real TPU compiler on any host. What it prints of a program is
the compiler's estimate, not a measurement.
"""

import dataclasses
import os

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of TPU.

  Attributes:
    name: as the compiler knows it.
    topology: the smallest slice that every supported `libtpu` can describe.
    bandwidth: bytes per second between HBM and the core, of one JAX device.
  """

  name: str
  topology: str
  bandwidth: float


# HBM bandwidth from Google's data sheets; a tpu7x chip (7.38 TB/s) is two JAX devices.
CHIPS = (
  Chip("v5e", "v5e:2x2", 819e9),
  Chip("v6e", "v6e:2x2", 1640e9),
  Chip("v5p", "v5p:2x2x1", 2765e9),
  Chip("tpu7x", "tpu7x:2x2x1", 3690e9),
)


def one_device(chip: Chip) -> SingleDeviceSharding:
  """Return a sharding onto one device of a chip that need not be there.

  For `jax.ShapeDtypeStruct(…, sharding=…)`; it can be compiled for, but holds no array.

  Raises:
    RuntimeError: the `libtpu` wheel is not installed.
  """
  # Several processes may compile at once, no metadata server is asked, and nothing is logged.
  for name, value in (
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_MIN_LOG_LEVEL", "3"),
  ):
    os.environ.setdefault(name, value)
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
  except Exception as error:
    raise RuntimeError(f"no TPU compiler for {chip.topology}: is libtpu installed?") from error
  return SingleDeviceSharding(described.devices[0])


def placed(tree: object, sharding: jax.sharding.Sharding) -> object:
  """Return shapes like those of the arrays (or shapes) in `tree`, on `sharding`."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
  )
