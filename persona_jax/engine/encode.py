"""Prompts to rows, with the edits of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_jax.edits.compile import RowEdits, as_rows
from persona_jax.edits.edit import Edit
from persona_jax.engine.gates import settle
from persona_jax.engine.rows import Row, make_row
from persona_jax.personas.chat import EncodedPrompt, Prompt, Raw

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


def per_row_edits(edits: Sequence[RowEdits] | None, num_rows: int) -> list[tuple[Edit, ...]]:
  """Normalise the `edits` argument of the public calls.

  Raises:
    ValueError: `edits` is no list with one item a row.
  """
  if edits is None:
    return [()] * num_rows
  if isinstance(edits, Edit) or len(edits) != num_rows:
    given = "a single edit" if isinstance(edits, Edit) else f"{len(edits)} items"
    raise ValueError(
      f"edits must be a list with one item (edits of that row) for each of "
      f"{num_rows} rows; got {given}."
    )
  return as_rows(edits)


def encode_rows(
  model: "Model", prompts: Sequence[Prompt], edits: Sequence[RowEdits] | None
) -> list[Row]:
  """Render and tokenise prompts, with the edits of each, gates decided.

  Raises:
    ValueError: `prompts` is a single prompt, or empty, one cannot be rendered, or a gate cannot
      be decided.
  """
  if isinstance(prompts, (str, Raw)) or (prompts and isinstance(prompts[0], dict)):
    raise ValueError(
      "prompts must be a list of prompts (strings, chats or pj.Raw), not a single one."
    )
  row_edits = per_row_edits(edits, len(prompts))
  encoded: dict[str, EncodedPrompt] = {}  # a prompt comes again with every condition
  for prompt in prompts:
    if repr(prompt) not in encoded:
      encoded[repr(prompt)] = model.encode(prompt)
  rows = [make_row(encoded[repr(p)], e) for p, e in zip(prompts, row_edits, strict=True)]
  return settle(model, rows)
