"""TPUs and a GPU that programs are compiled for without one, and their data-sheet figures.

With the `libtpu` wheel, JAX runs the real TPU compiler on any host; with `jax-cuda13-plugin` and
`jax-cuda13-pjrt`, the GPU compiler. What they print of a program is the compiler's estimate, not a
measurement.
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


# Limits of an H200 (NVIDIA H200 data sheet; CUDA C++ programming guide, compute capability 9.0).
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 141000000000
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


def one_h200() -> SingleDeviceSharding:
  """Return a sharding onto one NVIDIA H200 that need not be there, as `one_device` does.

  Raises:
    RuntimeError: the CUDA wheels of JAX are not installed.
  """
  try:
    described = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
  except Exception as error:
    raise RuntimeError("no GPU compiler: is jax-cuda13-plugin installed?") from error
  return SingleDeviceSharding(described.devices[0])


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
