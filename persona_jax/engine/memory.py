"""Device memory: what there is, and what a program will take."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from persona_jax import sharding
from persona_jax._compat import CPU_WIDENS_HEAD
from persona_jax.engine.forward import Layout
from persona_jax.engine.need import TAKE_PARAMS, Need, tree_bytes
from persona_jax.engine.programs import Dry, Live
from persona_jax.models.arch import Arch
from persona_jax.models.attention import CHUNK_TOKENS, masks_are_whole

T = TypeVar("T")
R = TypeVar("R")

# Share of the memory that a plan may fill: the rest is for fragmentation and what others hold.
MEMORY_SHARE = 0.9
# Of a host, whose memory other processes and the page cache use too.
_HOST_SHARE = 0.6


def memory_limit(device: jax.Device) -> int:
  """Return how many bytes a plan may take on a device (on a CPU: of the host).

  Warns:
    UserWarning: the device does not say how much memory it has.
  """
  if device.platform == "cpu":
    return int(_HOST_SHARE * host_bytes())
  stats = device.memory_stats()
  if stats and "bytes_limit" in stats:
    return int(MEMORY_SHARE * stats["bytes_limit"])
  warnings.warn(
    f"{device} does not say how much memory it has (as with XLA_PYTHON_CLIENT_ALLOCATOR=platform), "
    "so tiles are made for as much as the host has; those that do not fit are run in halves.",
    stacklevel=2,
  )
  return int(_HOST_SHARE * host_bytes())


def host_bytes(root: Path = Path("/")) -> int:
  """Return the host's memory, or less where a control group (a container) limits it.

  Args:
    root: where the file systems `proc` and `sys` are.
  """
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  groups = [("", "/")]  # inside a container its own group is the root
  try:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
      _, controllers, path = line.split(":", 2)
      groups.append((controllers, path))
  except (OSError, ValueError):
    pass
  for controllers, path in groups:
    if controllers and "memory" not in controllers.split(","):
      continue
    group = Path(path.lstrip("/"))
    for inner in (group, *group.parents):  # a group is limited by those it is in, too
      for name in (
        root / "sys/fs/cgroup" / inner / "memory.max",
        root / "sys/fs/cgroup/memory" / inner / "memory.limit_in_bytes",
      ):
        try:
          found.append(int(name.read_text()))  # "max" if there is no limit
        except (OSError, ValueError):
          continue
  return min(found)


def _part_bytes(axes: str, shape: Sequence[int], itemsize: int, mesh: Mesh | None) -> int:
  """Return the bytes on one device of an array with these axes, a letter each."""
  if mesh is not None:
    shape = NamedSharding(mesh, sharding.spec(axes, shape, mesh)).shard_shape(tuple(shape))
  return math.prod(shape) * itemsize


def _leaf_bytes(path: tuple[Any, ...], leaf: Any, mesh: Mesh | None) -> int:
  shape = np.shape(leaf)
  key = path[-1] if path else None
  name = getattr(key, "name", getattr(key, "key", ""))
  axes = name.rpartition("_")[2] if isinstance(name, str) else ""
  if len(axes) != len(shape) or not axes.isupper():
    axes = "?" * len(shape)
  return _part_bytes(axes, shape, leaf.dtype.itemsize, mesh)


def device_bytes(tree: Any, mesh: Mesh | None) -> int:
  """Return the bytes of a pytree's arrays on one device.

  An array is split as the axes in its name say (`sharding.RULES`), which for keys and values is
  what the compiler does. One that has no name of its own in the pytree is counted whole.
  """
  if mesh is None:
    return tree_bytes(tree)
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return sum(_leaf_bytes(path, leaf, mesh) for path, leaf in leaves)


def program_bytes(need: Need, arch: Arch, mesh: Mesh | None = None) -> int:
  """Predict the memory that a program takes on one device, arguments and results included.

  Arguments and results are known. Of the temporaries, the logits of a step of decoding or of tokens
  that are scored, and the widest arrays of a block of prefill are counted.
  """
  results = min(need.new_result_bytes, device_bytes(need.results(), mesh))
  return device_bytes(need.args, mesh) + results + _temporaries(need, arch, mesh)


def _temporaries(need: Need, arch: Arch, mesh: Mesh | None) -> int:
  on_cpu = _platform(need, mesh) == "cpu"
  if need.name == "log-probs":
    return _part_bytes("BV", (need.static["size"], arch.vocab_size), 4, mesh)
  if need.name == "decode":
    rows = need.args[3].token_B.shape[0]
    logits = _part_bytes("BV", (rows, arch.vocab_size), 4, mesh)
    places = max([rows * need.args[5].ids_BS.shape[1], *map(_places, need.args[2])])
    scores = 2 * _part_bytes("NS", (arch.num_heads, places), 4, mesh)  # and their weights
    return max(logits, scores) + _widened_head(need, arch, mesh)
  if need.name == "block":
    h_BTD, slots = need.args[1], need.args[2]
    rows, tokens, _ = h_BTD.shape
    if need.static["only_kv"]:
      return _part_bytes("BTD", h_BTD.shape, 4, mesh)  # its norm
    queries = tokens if masks_are_whole(tokens) else CHUNK_TOKENS
    seen = slots.slot_position_BS.size
    for part in slots.shared:
      groups = rows if part.member_PC is None else part.member_PC.size
      seen += groups * part.position_PS.shape[1]
    # Two factors of the feed-forward layer in float32, and their product, which a CPU widens too.
    itemsize = min(leaf.dtype.itemsize for leaf in jax.tree.leaves(need.args[0]))
    factors = 3 if on_cpu else 2 + itemsize / 4
    return max(
      2 * queries * _part_bytes("NS", (arch.num_heads, seen), 4, mesh),
      int(factors * _part_bytes("BTF", (rows, tokens, arch.ffw_width), 4, mesh)),
    )
  if need.name == "behind":
    if not on_cpu:
      return 0  # XLA fuses it all
    # In bfloat16 the stream, its change and the dose are computed in float32 beside it: 3.5 copies
    # by JAX 0.10.2, 3 by 0.11.2 (as their compilers report).
    copies = 1 if need.args[0].dtype == jax.numpy.float32 else 3.25
    return int(copies * _part_bytes("BTD", need.args[0].shape, 4, mesh))
  if need.name == "merge waves":
    return device_bytes(need.results(), mesh) // 2  # keys or values, joined
  return 0


def _places(layout: Layout) -> int:
  """Return the scores of one head for the shared slots that rows read by a layout."""
  classes, slots = layout.position_PS.shape
  return (classes if layout.member_PC is None else layout.member_PC.size) * slots


def _platform(need: Need, mesh: Mesh | None) -> str:
  device = need.device if mesh is None else sharding.first_device(mesh)
  platform: str = device.platform
  return platform


def _widened_head(need: Need, arch: Arch, mesh: Mesh | None) -> int:
  """Return the bytes of the float32 copy of a bfloat16 head, which older XLA makes on a CPU only.

  smollm2-135m, 32 rows: 114.1 MiB of temporaries, 108.0 of them the head's copy and 6.0 the logits.
  The copies of the blocks' weights, made one after another, take the same place.
  """
  if _platform(need, mesh) != "cpu" or not CPU_WIDENS_HEAD:
    return 0
  if need.args[0]["embed_VD"].dtype != jax.numpy.bfloat16:
    return 0
  return _part_bytes("VD", (arch.vocab_size, arch.width), 4, mesh)


class _Array(jax.ShapeDtypeStruct):
  """A shape in place of an array that a program gave; it tells when nobody holds it any more."""

  __slots__ = ("_held", "nbytes")

  def __init__(self, shape: Any, dtype: Any, nbytes: int, held: list[int]):
    super().__init__(shape, dtype)
    self._held, self.nbytes = held, nbytes
    held[0] += self.nbytes

  def __del__(self) -> None:
    self._held[0] -= self.nbytes


class DryMemory(Dry):
  """A dry run that finds out how much memory of a device is in use at most.

  What the host's code holds of earlier results at a call is counted as Python counts it, so what
  the code lets go is not reckoned with, and what it holds is.

  Attributes:
    peak_bytes: most memory at one time so far, the parameters included.
  """

  def __init__(
    self, arch: Arch, params: Any, mesh: Mesh | None = None, table: Live | None = None
  ) -> None:
    super().__init__(table)
    self._arch, self._mesh = arch, mesh
    self._params_bytes = self.peak_bytes = params_bytes(params)
    self._held = [0]
    self._taken: dict[int, int] = {}

  def _returned(self, need: Need, args: tuple[Any, ...], results: Any) -> Any:
    given = {id(x): x.nbytes for x in jax.tree.leaves(args) if isinstance(x, _Array)}
    others = self._held[0] - sum(given.values())
    taken = self._taken.get(id(need))
    if taken is None:  # parameters among the arguments stand in `self._params_bytes`
      own = device_bytes(need.args[0], self._mesh) if need.name in TAKE_PARAMS else 0
      taken = self._taken[id(need)] = program_bytes(need, self._arch, self._mesh) - own
    self.peak_bytes = max(self.peak_bytes, self._params_bytes + others + taken)
    return jax.tree_util.tree_map_with_path(
      lambda path, x: _Array(x.shape, x.dtype, _leaf_bytes(path, x, self._mesh), self._held),
      results,
    )


def does_not_fit(name: str, tokens: int, peak: int, device: jax.Device, advice: str) -> str:
  """Say that a row is too large by itself, what it is predicted to need, and what would help.

  Args:
    name: what the user calls it.
    tokens: its number of tokens.
    peak: predicted bytes on one device, the parameters included.
    device: that the model lies on.
    advice: what to change, beside the number of devices.
  """
  return (
    f"{name} of {tokens:,} tokens does not fit into the device's memory by itself: it is predicted "
    f"to take {size_text(peak)}, parameters included, and {size_text(memory_limit(device))} may be "
    f"filled; use {advice} or a mesh of more devices"
  )


def size_text(count: int) -> str:
  """Return a number of bytes for people."""
  return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def params_bytes(params: Any) -> int:
  """Return the bytes of a model's parameters on one device."""
  leaves = jax.tree.leaves(params)
  if all(isinstance(leaf, jax.Array) for leaf in leaves):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  return tree_bytes(params)
