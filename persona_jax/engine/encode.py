"""Prompts to rows, with the edits of each."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.edits.compile import RowEdits, as_rows
from persona_jax.edits.edit import Edit
from persona_jax.engine.checks import naming
from persona_jax.engine.gates import settle
from persona_jax.engine.rows import Row, make_row
from persona_jax.personas.chat import EncodedPrompt, Prompt, Raw, Rendered, encode_rendered

if TYPE_CHECKING:
  from persona_jax.engine.model import Model

_AT_ONCE = 512  # prompts; what is known of each character of more would fill the memory


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


def plain_rows(model: "Model", prompts: Sequence[Prompt]) -> list[Row]:
  """Render and tokenise prompts; the host alone does it. Equal prompts are one row object.

  Raises:
    ValueError: `prompts` is a single prompt or no list, or a prompt has no token or cannot be
      rendered (the message names its number).
  """
  check_prompts(prompts)
  keys = [repr(prompt) for prompt in prompts]
  first: dict[str, int] = {}  # a prompt comes again with every condition
  for n, key in enumerate(keys):
    first.setdefault(key, n)
  encoded = encode_each(model, {f"prompt {n}": prompts[n] for n in first.values()})
  rows = dict(zip(first, map(make_row, encoded), strict=True))
  return [rows[key] for key in keys]


def encode_each(model: "Model", prompts: Mapping[str, Prompt]) -> Iterator[EncodedPrompt]:
  """Yield `Model.encode` of prompts, some hundred tokenised in parallel.

  Args:
    model: of the tokenizer and the template.
    prompts: by a name, with which the message of an error begins.

  Raises:
    ValueError: a prompt has no token or cannot be rendered.
  """
  names = list(prompts)
  for begin in range(0, len(names), _AT_ONCE):
    rendered: dict[str, Rendered] = {}
    for name in names[begin : begin + _AT_ONCE]:
      with naming(name):
        rendered[name] = model.chat.render(prompts[name])
    texts = [text for one in rendered.values() for text in (one.text, one.answer)]
    tokens = iter(model.tokenizer.encode_with_offsets(texts))
    for name, one in rendered.items():
      with naming(name):
        yield encode_rendered(model.tokenizer, prompts[name], one, next(tokens), next(tokens))


def interned(row_edits: Sequence[tuple[Edit, ...]]) -> list[tuple[Edit, ...]]:
  """Put one object in place of edits that are alike, for rows share by the edits that they hold."""
  first: dict[str, Edit] = {}
  known: dict[int, Edit] = {}
  for edit in (edit for edits in row_edits for edit in edits):
    if id(edit) not in known:
      # A function is known by its object: what it does cannot be compared.
      key = f"{id(edit)}" if edit.call is not None else content_hash(edit.describe())
      known[id(edit)] = first.setdefault(key, edit)
  return [tuple(known[id(edit)] for edit in edits) for edits in row_edits]


def edited_rows(
  model: "Model", plain: Sequence[Row], edits: Sequence[RowEdits] | None
) -> list[Row]:
  """Give rows their edits, gates decided.

  Raises:
    ValueError: edits do not fit, or a gate cannot be decided.
  """
  row_edits = interned(per_row_edits(edits, len(plain)))
  rows = [dataclasses.replace(row, edits=its) for row, its in zip(plain, row_edits, strict=True)]
  return settle(model, rows)


def check_weights(model: "Model") -> None:
  """Check that a model can be run.

  Raises:
    ValueError: its parameters are shapes (`pj.load(…, weights=False)`).
  """
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params)):
    raise ValueError(
      f"{model!r} was loaded without weights (weights=False), so that it can be planned for but "
      "not run; load it with them."
    )


def encode_rows(
  model: "Model", prompts: Sequence[Prompt], edits: Sequence[RowEdits] | None
) -> list[Row]:
  """Render and tokenise prompts, with the edits of each, gates decided.

  Raises:
    ValueError: as `plain_rows` and `edited_rows`, or the model has no weights.
  """
  check_weights(model)
  check_prompts(prompts)
  per_row_edits(edits, len(prompts))  # before the work
  return edited_rows(model, plain_rows(model, prompts), edits)
