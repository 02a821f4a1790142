"""What a prefill leaves: keys and values by depth of the tree, and how rows read them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from persona_jax.edits.table import Where
from persona_jax.engine.forward import Layout, Part
from persona_jax.engine.reads import NodeReads
from persona_jax.models.layers import KV


@dataclasses.dataclass(frozen=True, eq=False)
class Wave:
  """Keys and values of the nodes of one depth.

  Attributes:
    kv: by block, [P, K, S, H] for its P classes.
    class_of: by block, int32 [R]: the class of each row, -1 for rows without a node here.
    position_of: by block, int32 [P, S]: position of the token in each slot, -1 where it is empty.
  """

  kv: list[KV]
  class_of: list[np.ndarray]
  position_of: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Activations behind the last block at chosen tokens.

  Attributes:
    h_MD: the activations, each distinct one once.
    place: (row, position) → its number.
  """

  h_MD: jax.Array
  place: dict[tuple[int, int], int]


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
  """The computed tree of R rows.

  Attributes:
    waves: keys and values, by depth.
    realised_R, requested_R: float32, delivery of the edits (`edits.apply.Delivery`).
    edited_R: int32, tokens on which an edit was on.
    changes: float32 by (site, block) and row, how far each of its tokens was moved, if traced.
    chosen: what was chosen.
    reads: what was read, pass by pass.
    passes: times that a token was sent through a block.
    padded_passes: the same with padding.
  """

  waves: list[Wave]
  realised_R: np.ndarray
  requested_R: np.ndarray
  edited_R: np.ndarray
  changes: dict[Where, list[np.ndarray]]
  chosen: list[Chosen]
  reads: list[NodeReads]
  passes: int
  padded_passes: int


def rows_layout(
  class_R: np.ndarray,
  position_PS: np.ndarray,
  rows: Sequence[int],
  size: int,
  *,
  copies: bool = False,
) -> tuple[np.ndarray, Layout]:
  """Arrange how a batch of rows reads shared keys and values.

  Args:
    class_R: class of every row of the tree, -1 for none.
    position_PS: positions of the classes' slots.
    rows: the rows of the batch, in its order.
    size: rows of the batch with its padding, which reads nothing.
    copies: whether each row is to have a copy of its own.

  Returns:
    The classes that are read, and the layout for them in this order.
  """
  class_B = class_R[list(rows)]
  if copies:
    class_B = np.append(class_B, np.full(size - len(class_B), -1, np.int32))
    position_BS = np.where(class_B[:, None] < 0, -1, position_PS[class_B])
    return np.maximum(class_B, 0), Layout(jnp.asarray(position_BS), None, None)
  used, first = np.unique(class_B[class_B >= 0], return_index=True)
  used = used[np.argsort(first)] if len(used) else np.zeros(1, np.int32)
  members = [np.flatnonzero(class_B == p) for p in used]
  width = max(1, *map(len, members))
  member_PC = np.zeros((len(used), width), np.int32)
  place_B = np.full(size, len(used) * width, np.int32)
  for p, mine in enumerate(members):
    member_PC[p, : len(mine)] = mine
    place_B[mine] = p * width + np.arange(len(mine))
  position = jnp.asarray(position_PS[used])
  if np.array_equal(place_B, np.arange(size)) and len(used) * width == size:
    return used, Layout(position, None, None)
  return used, Layout(position, jnp.asarray(member_PC), jnp.asarray(place_B))


def shared_parts(
  waves: Sequence[Wave], blocks: range, rows: Sequence[int], size: int, *, copies: bool = False
) -> tuple[dict[int, list[Part]], list[Layout]]:
  """Arrange what a batch of rows reads of the waves before it, by block; see `rows_layout`."""
  layouts: list[Layout] = []
  numbers: dict[tuple[int, bytes, bytes], tuple[np.ndarray, int]] = {}
  shared: dict[int, list[Part]] = {block: [] for block in blocks}
  for w, wave in enumerate(waves):
    for block in blocks:
      class_R, position_PS = wave.class_of[block], wave.position_of[block]
      key = (w, class_R.tobytes(), position_PS.tobytes())
      if key not in numbers:
        used, layout = rows_layout(class_R, position_PS, rows, size, copies=copies)
        layouts.append(layout)
        numbers[key] = used, len(layouts) - 1
      used, number = numbers[key]
      kv = wave.kv[block]
      if not np.array_equal(used, np.arange(kv.k_BKSH.shape[0])):
        kv = take(kv, jnp.asarray(used))
      shared[block].append(Part(kv, number))
  return shared, layouts


@jax.jit
def take(kv: KV, index: jax.Array) -> KV:
  """Pick classes of one block by number."""
  return KV(kv.k_BKSH[index], kv.v_BKSH[index])
