"""Prompts to rows, with the edits of each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.edits.compile import RowEdits, as_rows
from persona_jax.edits.edit import Edit
from persona_jax.engine.checks import naming
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


def check_prompts(prompts: Sequence[Prompt]) -> None:
  """Check that prompts are a list of them.

  Raises:
    ValueError: it is a single prompt, or no list.
  """
  single = isinstance(prompts, (str, Raw, Mapping))
  if not single and not isinstance(prompts, (Sequence, np.ndarray)):
    kind = type(prompts).__name__
    raise ValueError(f"prompts must be a list of prompts (strings, chats or pj.Raw), got a {kind}.")
  if single or (len(prompts) and isinstance(prompts[0], Mapping)):
    raise ValueError(
      "prompts must be a list of prompts (strings, chats or pj.Raw), not a single one."
    )


def encode_rows(
  model: "Model", prompts: Sequence[Prompt], edits: Sequence[RowEdits] | None
) -> list[Row]:
  """Render and tokenise prompts, with the edits of each, gates decided.

  Raises:
    ValueError: `prompts` is a single prompt or no list, edits do not fit, a prompt has no token or
      cannot be rendered (the message names its number), or a gate cannot be decided.
  """
  check_prompts(prompts)
  row_edits = per_row_edits(edits, len(prompts))
  encoded: dict[str, EncodedPrompt] = {}  # a prompt comes again with every condition
  rows = []
  for n, (prompt, its_edits) in enumerate(zip(prompts, row_edits, strict=True)):
    with naming(f"prompt {n}"):
      key = repr(prompt)
      if key not in encoded:
        encoded[key] = model.encode(prompt)
      rows.append(make_row(encoded[key], its_edits))
  return settle(model, rows)
