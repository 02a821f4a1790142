"""What this machine is, and the most that it does: matrix products and copies."""

import concurrent.futures
import functools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 2048  # of the square matrices: 17 GFLOP a product
COPIED = 256 << 20  # bytes
REPEATS = 5
FLAGS = (
  "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16",
  "asimd", "bf16", "i8mm",  # ARM
)  # fmt: skip


def _file(path: str) -> str:
  return Path(path).read_text() if Path(path).exists() else ""


def has_bfloat16() -> bool:
  """Whether the processor multiplies bfloat16 by instructions of its own."""
  if platform.system() == "Darwin":  # no such file there; every Apple core since the M2 has them
    return platform.machine() == "arm64"
  return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(device()["flags"]))


def _cores() -> list[int]:
  """Return the numbers of the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):  # Linux
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def use_cores(count: int) -> int:
  """Keep this process and those it starts on so many cores, if the system can; return how many.

  JAX would take all otherwise, while the peers are told a number of threads: where the system
  cannot, a warning says that the two do not compare.
  """
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, _cores()[:count])
  if (used := len(_cores())) > count:
    warnings.warn(
      f"this system keeps no process on {count} cores: JAX takes {used} and the peers {count} "
      "threads, so do not compare them",
      stacklevel=2,
    )
  return len(_cores())


def device() -> dict[str, Any]:
  """Describe the processor and the memory."""
  lines = [line.split(":", 1) for line in _file("/proc/cpuinfo").splitlines() if ":" in line]
  processor = {key.strip(): value.strip() for key, value in lines}
  flags = processor.get("flags", processor.get("Features", "")).split()  # ARM has the latter
  memory = _file("/proc/meminfo").split()
  return {
    "processor": processor.get("model name", platform.processor()),
    "family_model": [processor.get("cpu family"), processor.get("model")],
    "architecture": platform.machine(),
    "cores": os.cpu_count(),
    "flags": [flag for flag in FLAGS if flag in flags],
    "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
    "system": platform.platform(),
    "load_average": os.getloadavg(),
  }


def _samples(call: Callable[[], Any], work: float) -> list[float]:
  """Return billions of units of work a second, of several calls after one that is not counted."""
  call()
  rates = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    call()
    rates.append(work / (time.perf_counter() - begun) / 1e9)
  return rates


# Summed and given in float32, as the engine's are: XLA for CPUs makes a product that is to be given
# in bfloat16 of widened matrices, five times as slow where the processor has products of its own.
product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))


def ceilings() -> dict[str, Any]:
  """Measure matrix products by XLA in both dtypes, and a copy by NumPy on every core in use.

  Returns:
    medians `f32_gflops`, `bf16_gflops` and `copy_gbs` (bytes read and bytes written both count),
    and the samples.
  """
  samples = {}
  for name, dtype in (("f32_gflops", jnp.float32), ("bf16_gflops", jnp.bfloat16)):
    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE), jnp.float32).astype(dtype)
    samples[name] = _samples(lambda x=x: product(x, x).block_until_ready(), 2 * SIZE**3)
  source = np.ones((cores := len(_cores()), COPIED // cores), np.uint8)
  target = np.zeros_like(source)
  with concurrent.futures.ThreadPoolExecutor(cores) as pool:
    samples["copy_gbs"] = _samples(
      lambda: list(pool.map(np.copyto, target, source)), 2 * source.nbytes
    )
  return {name: statistics.median(rates) for name, rates in samples.items()} | {"samples": samples}
