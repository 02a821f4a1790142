"""Device memory: what there is, what a program will take, and what to do when it was too little."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
from jax.sharding import Mesh

from persona_jax.engine.programs import Need, tree_bytes
from persona_jax.models.arch import Arch
from persona_jax.models.attention import CHUNK_TOKENS, masks_are_whole

if TYPE_CHECKING:
  from persona_jax.engine.model import Model
  from persona_jax.engine.prefix import Prefix

T = TypeVar("T")

# Share of the memory that a plan may fill: the rest is for fragmentation and what others hold.
_SHARE = 0.9
# Of a host, whose memory other processes and the page cache use too.
_HOST_SHARE = 0.6


def memory_limit(mesh: Mesh | None) -> int:
  """Return how many bytes a plan may take on one device (on a CPU: of the host)."""
  device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
  stats = device.memory_stats() if device.platform != "cpu" else None
  if stats and "bytes_limit" in stats:
    return int(_SHARE * stats["bytes_limit"])
  return int(_HOST_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def program_bytes(need: Need, arch: Arch) -> int:
  """Predict the memory that a program takes while it runs, arguments and results included.

  Arguments and results are known. Of the temporaries, the logits of a step of decoding and the
  widest arrays of a block of prefill are counted.
  """
  return need.argument_bytes + need.new_result_bytes + _temporaries(need, arch)


def _temporaries(need: Need, arch: Arch) -> int:
  if need.name == "decode":
    rows = need.args[3].token_B.shape[0]
    return 4 * rows * arch.vocab_size
  if need.name == "block":
    h_BTD, slots = need.args[1], need.args[2]
    rows, tokens, _ = h_BTD.shape
    queries = tokens if masks_are_whole(tokens) else CHUNK_TOKENS
    seen = slots.slot_position_BS.size
    for part in slots.shared:
      groups = rows if part.member_PC is None else part.member_PC.size
      seen += groups * part.position_PS.shape[1]
    return 4 * max(2 * queries * arch.num_heads * seen, 3 * rows * tokens * arch.ffw_width)
  if need.name == "log-probs":
    return 8 * need.static["size"] * arch.vocab_size
  return 0


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that the device had too little memory."""
  if isinstance(error, MemoryError):
    return True
  text = str(error)
  known = ("RESOURCE_EXHAUSTED", "Out of memory", "exceeds available HBM")
  return isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in known)


def in_halves(
  run: Callable[[list[int]], T], numbers: Sequence[int], single: Callable[[int], str]
) -> Iterator[T]:
  """Run a tile; where memory does not suffice, its halves, and so on, with a warning.

  Args:
    run: takes row numbers and returns their results; must change nothing before it is done.
    numbers: of the tile's rows.
    single: says of one row what it needs and what would help, if it does not fit by itself.

  Yields:
    The result of the tile, or of each of its parts, in order.

  Raises:
    MemoryError: one row by itself is too large.
  """
  numbers = list(numbers)
  try:
    result = run(numbers)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not is_out_of_memory(error):
      raise
    if len(numbers) == 1:
      raise MemoryError(f"{single(numbers[0])} ({error})") from error
  else:
    yield result
    return
  # Outside the handler: the error's traceback would keep the arrays of the failed tile.
  warnings.warn(
    f"a tile of {len(numbers)} rows ran out of memory; running it in halves", stacklevel=2
  )
  half = -(-len(numbers) // 2)
  for part in (numbers[:half], numbers[half:]):
    yield from in_halves(run, part, single)


def does_not_fit(name: str, tokens: int, peak: int, mesh: Mesh | None, advice: str) -> str:
  """Say that a row is too large by itself, what it is predicted to need, and what would help.

  Args:
    name: what the user calls it.
    tokens: its number of tokens.
    peak: predicted bytes on one device, the parameters included.
    mesh: the model's devices.
    advice: what to change, beside the number of devices.
  """
  return (
    f"{name} of {tokens:,} tokens does not fit into the device's memory by itself: it is predicted "
    f"to take {size_text(peak)}, parameters included, and {size_text(memory_limit(mesh))} may be "
    f"filled; use {advice} or a mesh of more devices"
  )


def prefill_bytes(model: "Model", needs: Iterable[Need], prefix: "Prefix") -> int:
  """Predict the most memory that a prefill takes on one device, parameters and results included.

  Args:
    model: the model.
    needs: the programs of a dry prefill.
    prefix: what it gave.
  """
  fixed = params_bytes(model.params)
  held = sum(tree_bytes(wave.kv) for wave in prefix.waves)
  held += sum(tree_bytes(note.arrays) for note in prefix.reads)
  peak = fixed
  for need in needs:
    own = tree_bytes(need.args[0]) if need.name in ("block", "embed") else 0  # parameters
    peak = max(peak, fixed + held + program_bytes(need, model.arch) - own)
  return peak


def size_text(count: int) -> str:
  """Return a number of bytes for people."""
  return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def params_bytes(params: Any) -> int:
  """Return the bytes of a model's parameters on one device."""
  leaves = jax.tree.leaves(params)
  if all(isinstance(leaf, jax.Array) for leaf in leaves):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  return tree_bytes(params)
