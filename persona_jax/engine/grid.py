"""`Condition` and `Grid`: what is compared, as plain data.

A grid is prompts x conditions x samples.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.edits.edit import Edit
from persona_jax.engine.checks import as_int, as_number, naming
from persona_jax.engine.rows import derive_seed, plain_prompt
from persona_jax.engine.sampling import Sampling
from persona_jax.personas.chat import Prompt, Raw, as_messages


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
  """One way to imbue a persona: parts of the chat prompt, edits, or both.

  Attributes:
    name: unique within a grid.
    system: system message, put before the prompt's own messages.
    prefix: text put at the head of the first user message, with a blank line after it.
    edits: edits of every row of the condition, in order; None is none.
    replicate: which paraphrase or direction replicate this is, for the results table.

  Raises:
    ValueError: an empty name, a system message or prefix that is no text, an item of `edits` that
      is no edit, an edit that holds one amount a row, or a replicate that is no integer.
  """

  name: str
  system: str | None = None
  prefix: str | None = None
  edits: tuple[Edit, ...] = ()
  replicate: int | None = None

  def __init__(
    self,
    name: str,
    *,
    system: str | None = None,
    prefix: str | None = None,
    edits: Edit | Sequence[Edit] | None = (),
    replicate: int | None = None,
  ):
    if not name or not isinstance(name, str):
      raise ValueError(f"a condition needs a name, got {name!r}.")
    for part, text in (("system", system), ("prefix", prefix)):
      if not isinstance(text, str | None):
        raise ValueError(f"condition {name!r}: {part}={text!r}: give a text, or None.")
    edits = () if edits is None else tuple(edits) if isinstance(edits, Iterable) else (edits,)
    wrong = [type(e).__name__ for e in edits if not isinstance(e, Edit)]
    if wrong:
      raise ValueError(
        f"condition {name!r}: edits must be made by pj.add and its kin, got {wrong}."
      )
    by_row = [f"{n} ({e.op!r})" for n, e in enumerate(edits) if e.num_rows is not None]
    if by_row:
      raise ValueError(
        f"condition {name!r}: edit {', '.join(by_row)} holds one amount a row; a condition needs "
        "one number, for it acts on the rows of every prompt. Make one condition an amount."
      )
    fields = {
      "name": name,
      "system": system,
      "prefix": prefix,
      "edits": edits,
      "replicate": None if replicate is None else as_int("replicate", replicate),
    }
    for field, value in fields.items():
      object.__setattr__(self, field, value)

  @property
  def method(self) -> str:
    """ "none", "prompt", "steer" or "both"; derived from what the condition holds."""
    prompted = self.system is not None or self.prefix is not None
    return {(False, False): "none", (True, False): "prompt", (False, True): "steer"}.get(
      (prompted, bool(self.edits)), "both"
    )

  def apply(self, prompt: Prompt) -> Prompt:
    """Put the condition's parts round a prompt.

    Raises:
      ValueError: the condition brings parts, and the prompt is raw, holds a message that cannot be
        used, has a system message of its own, or no user message for the prefix.
    """
    if self.system is None and self.prefix is None:
      return prompt
    if isinstance(prompt, Raw):
      raise ValueError("the condition changes the chat; a pj.Raw prompt has none.")
    chat = [dict(message) for message in as_messages(prompt)]
    if self.prefix is not None:
      first = next((m for m in chat if m["role"] == "user"), None)
      if first is None:
        raise ValueError("the condition has a prefix; the prompt has no user message for it.")
      first["content"] = f"{self.prefix}\n\n{first['content']}"
    if self.system is not None:
      if chat[0]["role"] == "system":
        raise ValueError(
          "the condition brings a system message; the prompt already has one: "
          f"{chat[0]['content'][:60]!r}."
        )
      chat = [{"role": "system", "content": self.system}, *chat]
    return chat

  def describe(self) -> dict[str, Any]:
    """Return the condition as plain values; vectors appear by their hash."""
    return {
      "name": self.name,
      "method": self.method,
      "system": self.system,
      "prefix": self.prefix,
      "edits": [edit.describe() for edit in self.edits],
      "replicate": self.replicate,
    }

  @property
  def direction_hash(self) -> str:
    """Hash of its edits' directions: one direction's own, else of the list; "" without edits."""
    hashes = [edit.direction_hash for edit in self.edits]
    return "" if not hashes else hashes[0] if len(set(hashes)) == 1 else content_hash(hashes)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One row to generate: a prompt under a condition, one sample; `seed` is its `Row.seed`."""

  row_id: str
  prompt_id: str
  condition: Condition
  sample: int
  seed: int

  @property
  def name(self) -> str:
    """What messages call its prompt."""
    return f"{self.prompt_id!r} of condition {self.condition.name!r}"


def _prompts_by_id(prompts: Any) -> dict[str, Prompt]:
  """Return {prompt_id: prompt}.

  Raises:
    ValueError: it is no list of prompts and no {id: prompt}, an id is no string, or a prompt is
      none.
  """
  fits = "Grid prompts must be a list of prompts (strings, chats or pj.Raw) or {id: prompt}"
  if not isinstance(prompts, Mapping) and isinstance(prompts, Iterable):
    prompts = prompts if isinstance(prompts, str) else list(prompts)
  elif not isinstance(prompts, (Mapping, Raw)):
    raise ValueError(f"{fits}, got a {type(prompts).__name__}.")
  is_message = isinstance(prompts, Mapping) and set(prompts) == {"role", "content"}
  is_chat = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], Mapping)
  if is_message or is_chat or isinstance(prompts, (str, Raw)):
    raise ValueError(f"{fits}, not a single one; got {prompts!r}.")
  if not isinstance(prompts, Mapping):
    prompts = {f"{n:04d}": prompt for n, prompt in enumerate(prompts)}
  wrong = [key for key in prompts if not isinstance(key, str)]
  if wrong:
    raise ValueError(f"prompt ids must be strings, as in a results table; got {wrong[:5]}.")
  for key, prompt in prompts.items():
    if not isinstance(prompt, Raw):
      with naming(f"prompt {key!r}"):
        as_messages(prompt)
  return dict(prompts)


def _as_conditions(conditions: Any) -> tuple[Condition, ...]:
  """Return conditions as a tuple.

  Raises:
    ValueError: it is no list of conditions.
  """
  fits = "Grid conditions must be a list of pj.Condition"
  if isinstance(conditions, Condition):
    raise ValueError(f"{fits}, not a single one; put it into a list.")
  if isinstance(conditions, str) or not isinstance(conditions, Iterable):
    raise ValueError(f"{fits}, got {conditions!r}.")
  conditions = tuple(conditions)
  for n, condition in enumerate(conditions):
    if not isinstance(condition, Condition):
      raise ValueError(f"{fits}; item {n} is {condition!r}.")
  return conditions


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """Prompts x conditions x samples, with one decoding setting and one seed.

  The noise seed of a row is `derive_seed(grid.seed, plain_prompt(prompt), sample)`, with the
  condition's name behind if not paired, where the prompt is that of the grid, before a condition
  puts its parts round it. `Cell.seed` and the column `seed` of the table hold this final seed, as
  `engine.rows.make_row` takes it: `generate_tile` on one such row draws the row's tokens again.
  `model.generate` derives a row's noise from its own `seed` argument and prompt; the recorded seed
  is not meant for it.

  Attributes:
    prompts: {prompt_id: prompt}, in this order; a plain list gets the ids "0000", "0001", …. Each
      is as in `model.generate`.
    conditions: with different names.
    samples: answers of each prompt under each condition.
    max_new_tokens: budget of a row.
    temperature: 0 is greedy; then more than one sample is refused. A grid draws from the whole
      distribution and stops where the model does; `model.generate` takes top_k, top_p, min_p and
      stop texts.
    seed: of the whole grid.
    paired: share sampling noise between the conditions of a prompt and sample.

  Raises:
    ValueError: nothing to run, prompts or conditions that are no such lists, a prompt that is none
      (the message says which), names that occur twice, prompt ids that are no strings, several
      greedy samples, or a setting of the wrong kind.
  """

  prompts: Mapping[str, Prompt] | Sequence[Prompt]
  conditions: Sequence[Condition]
  samples: int = 1
  max_new_tokens: int = dataclasses.field(kw_only=True)
  temperature: float = 0.0
  seed: int = 0
  paired: bool = True

  def __post_init__(self) -> None:
    object.__setattr__(self, "prompts", _prompts_by_id(self.prompts))
    object.__setattr__(self, "conditions", _as_conditions(self.conditions))
    names = [condition.name for condition in self.conditions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not self.prompts or not names or twice:
      raise ValueError(
        f"a grid needs prompts (got {len(self.prompts)}) and conditions (got {len(names)}) with "
        f"different names (twice: {twice})."
      )
    for field in ("samples", "max_new_tokens", "seed"):
      object.__setattr__(self, field, as_int(field, getattr(self, field)))
    object.__setattr__(self, "temperature", as_number("temperature", self.temperature))
    if not isinstance(self.paired, (bool, np.bool_)):
      raise ValueError(f"paired={self.paired!r}: give True or False.")
    object.__setattr__(self, "paired", bool(self.paired))
    Sampling(self.temperature)
    if self.max_new_tokens < 1:
      raise ValueError(f"max_new_tokens={self.max_new_tokens}: give at least 1.")
    if self.samples < 1 or (self.samples > 1 and self.temperature == 0):
      raise ValueError(
        f"samples={self.samples} at temperature={self.temperature}: greedy answers are all the "
        "same; give one sample, or a temperature."
      )

  @property
  def num_rows(self) -> int:
    """Rows of the grid."""
    return len(self.prompts) * len(self.conditions) * self.samples

  def settings(self) -> dict[str, Any]:
    """Return the decoding settings as plain values."""
    return {
      "max_new_tokens": self.max_new_tokens,
      "temperature": self.temperature,
      "seed": self.seed,
      "paired": self.paired,
    }

  def describe(self) -> dict[str, Any]:
    """Return the grid as plain values, from which its hash is taken.

    Prompts are a list of [id, prompt]: their order is that of the cells, and hashes sort keys.
    """
    assert isinstance(self.prompts, dict)
    return {
      "prompts": [[key, plain_prompt(prompt)] for key, prompt in self.prompts.items()],
      "conditions": [condition.describe() for condition in self.conditions],
      "samples": self.samples,
      **self.settings(),
    }

  def cells(self) -> list[Cell]:
    """Return the rows in a fixed order: by condition, then prompt, then sample.

    A row's id is a hash of what defines it, so the same row has the same id in another run.
    """
    assert isinstance(self.prompts, dict)
    cells = []
    for condition in self.conditions:
      described = condition.describe()
      for prompt_id, prompt in self.prompts.items():
        for sample in range(self.samples):
          mine = [] if self.paired else [condition.name]
          seed = derive_seed(self.seed, plain_prompt(prompt), sample, *mine)
          row = [prompt_id, plain_prompt(prompt), described, sample, self.settings()]
          cells.append(Cell(content_hash(row)[:16], prompt_id, condition, sample, seed))
    return cells


def check_grid(grid: Any) -> None:
  """Check that something is a grid.

  Raises:
    ValueError: it is none; the message says what was given.
  """
  if not isinstance(grid, Grid):
    raise ValueError(
      f"the grid is a {type(grid).__name__}; give a pj.Grid(prompts, conditions, max_new_tokens=…)."
    )
