"""The trace of edits: where in a row activations were changed, and by how much."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from persona_jax.edits.table import SITES, Where
from persona_jax.edits.window import Window
from persona_jax.engine.rows import Row


@dataclasses.dataclass(frozen=True, eq=False)
class EditTrace:
  """What edits really did to one row; I counts places, T the row's tokens that a block has seen.

  Attributes:
    places: (site, block) of every place where an edit of the row acts, in the order of the forward
      pass.
    windows: for each place, the token windows of the edits there, in their order.
    offsets_T: int32, offset of each token from the end of the prompt: -1 is its last one, 0 the
      first token of the answer.
    change_IT: float32, length of the change at each token, ||h after - h before|| as stored in the
      dtype of the stream; at "head_out" over all heads. 0 where no edit was on.
  """

  places: tuple[Where, ...]
  windows: tuple[tuple[Window, ...], ...]
  offsets_T: np.ndarray
  change_IT: np.ndarray


def of_row(
  row: Row, prefix: Mapping[Where, np.ndarray], answer: Mapping[Where, np.ndarray], fed: int
) -> EditTrace:
  """Put a row's trace together.

  Args:
    row: the row.
    prefix: by place, changes of the tokens of the row before its last, [len(ids) - 1].
    answer: by place, changes of the last token and of the answer's, at least [fed].
    fed: how many of those were fed.
  """
  windows: dict[Where, list[Window]] = {}
  for edit in row.edits:
    for block in edit.blocks:
      windows.setdefault((edit.site, block), []).append(edit.window)
  places = sorted(windows, key=lambda place: (place[1], SITES.index(place[0])))
  offsets_T = np.arange(len(row.ids) - 1 + fed, dtype=np.int32) - row.prompt_length
  change_IT = np.zeros((len(places), len(offsets_T)), np.float32)
  for i, place in enumerate(places):
    if place in prefix:
      change_IT[i, : len(row.ids) - 1] = prefix[place]
    change_IT[i, len(row.ids) - 1 :] = answer[place][:fed]
  return EditTrace(
    tuple(places), tuple(tuple(windows[place]) for place in places), offsets_T, change_IT
  )
