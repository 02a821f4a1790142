"""Edits that depend on the prompt: it is read first, and each row's edits are settled."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from persona_jax.edits.compile import RowEdits, as_rows
from persona_jax.edits.edit import Edit
from persona_jax.edits.gate import Probe, decide
from persona_jax.edits.window import Window, as_window
from persona_jax.engine.batches import batches
from persona_jax.engine.capture import Capture
from persona_jax.engine.checks import naming
from persona_jax.engine.programs import Dry
from persona_jax.engine.rows import Row, make_row
from persona_jax.personas.chat import Prompt

if TYPE_CHECKING:
  from persona_jax.engine.model import Model


def _bare(rows: Sequence[Row]) -> list[Row]:
  """Return the prompts of rows: they alone decide, also where an answer has begun, unedited."""
  return [
    dataclasses.replace(
      row, ids=row.ids[: row.prompt_length], roles=row.roles[: row.prompt_length], edits=()
    )
    for row in rows
  ]


def _captures(probes: Iterable[Probe]) -> Iterator[tuple[list[Probe], Capture]]:
  """Yield probes that are read together, and what they read."""
  together: dict[tuple[str, Window], list[Probe]] = {}
  for probe in probes:
    together.setdefault((probe.where, as_window(probe.tokens)), []).append(probe)
  for (site, window), group in together.items():
    yield group, Capture((site,), sorted({p.block for p in group}), "mean", tokens=window)


def _readings(
  model: "Model", rows: Sequence[Row], names: Sequence[object], probes: Sequence[Probe]
) -> list[dict[int, float]]:
  """Return, for each row, what every probe reads of its prompt, by the probe's `id`.

  `names` is what messages call the rows.

  Raises:
    ValueError: a probe does not fit the model, or its window holds no token of a prompt.
  """
  bare = _bare(rows)
  values: list[dict[int, float]] = [{} for _ in rows]
  for group, capture in _captures(probes):
    site, window = capture.sites[0], as_window(capture.tokens)
    for probe in group:
      expected, given = (model.arch.num_blocks, model.arch.width), probe.direction.mean_LD.shape
      if given != expected:
        raise ValueError(
          f"probe direction {probe.direction.concept!r} is {given} [L, D]; this model is "
          f"{expected}."
        )
    blocks = sorted({p.block for p in group})
    for tile in batches(model, bare, capture, names=names):
      h = {block: np.asarray(tile.reads[site, block], np.float32) for block in blocks}
      for b, n in enumerate(tile.numbers):
        for probe in group:
          value = probe.value(h[probe.block][b])
          if np.isnan(value):
            raise ValueError(
              f"prompt {names[n]}: the window {window} of a probe on {probe.direction.concept!r} "
              f"holds none of its {rows[n].prompt_length} prompt tokens."
            )
          values[n][id(probe)] = value
  return values


def settle(
  model: "Model", rows: Sequence[Row], *, names: Sequence[object] | None = None
) -> list[Row]:
  """Return the rows with every rule of their edits decided: a gate of 1 or 0.

  `names` is what messages call the rows; default their numbers.

  Raises:
    ValueError: as `resolve_gates`.
  """
  asking, probes = _asking(rows)
  if not asking:
    return list(rows)
  names = [n if names is None else names[n] for n in asking]
  readings = _readings(model, [rows[n] for n in asking], names, probes)
  made: dict[tuple[int, float], Edit] = {}  # rows that share an edit go on sharing it

  def decided(edit: Edit, read: dict[int, float]) -> Edit:
    if isinstance(edit.gate, float):  # as `_settled` says
      return edit
    gate = float(decide(edit.gate, read))
    if (id(edit), gate) not in made:
      made[id(edit), gate] = dataclasses.replace(edit, gate=gate)
    return made[id(edit), gate]

  out = list(rows)
  for n, read in zip(asking, readings, strict=True):
    edits = tuple(decided(edit, read) for edit in rows[n].edits)
    out[n] = dataclasses.replace(rows[n], edits=edits)
  return out


def read_dry(model: "Model", rows: Sequence[Row], run: Dry) -> int:
  """Note the programs by which `settle` reads prompts; return its token-block passes."""
  asking, probes = _asking(rows)
  passes = 0
  for _, capture in _captures(probes):
    for tile in batches(model, _bare([rows[n] for n in asking]), capture, run=run):
      passes += tile.prefix.passes
  return passes


def _asking(rows: Sequence[Row]) -> tuple[list[int], list[Probe]]:
  """Return the numbers of the rows with a rule that is not decided, and the probes of these."""
  asking = [n for n, row in enumerate(rows) if any(not _settled(e) for e in row.edits)]
  probes = {
    id(probe): probe
    for n in asking
    for edit in rows[n].edits
    if not isinstance(edit.gate, float)
    for probe in edit.gate.probes()
  }
  return asking, list(probes.values())


def taken_as_on(rows: Sequence[Row]) -> tuple[list[Row], int]:
  """Return the rows with every gate that is not decided taken as 1, and how many rows have one."""
  made: dict[int, Edit] = {}  # rows that share an edit go on sharing it
  out, count = [], 0
  for row in rows:
    if all(_settled(edit) for edit in row.edits):
      out.append(row)
      continue
    for edit in row.edits:
      if id(edit) not in made:
        made[id(edit)] = edit if _settled(edit) else dataclasses.replace(edit, gate=1.0)
    out.append(dataclasses.replace(row, edits=tuple(made[id(edit)] for edit in row.edits)))
    count += 1
  return out, count


def _settled(edit: Edit) -> bool:
  return isinstance(edit.gate, float)


def resolve_gates(
  model: "Model", prompts: Sequence[Prompt], edits: Sequence[RowEdits]
) -> list[tuple[Edit, ...]]:
  """Decide edits that depend on their prompts, for `pj.compile_edits` and `pj.forward`.

  Args:
    model: the model, unedited.
    prompts: one a row.
    edits: of each row, see `pj.compile_edits`.

  Returns:
    The edits of each row, gates as numbers: 1 where the rule holds, 0 where it does not.

  Raises:
    ValueError: prompts and edits differ in number, a probe does not fit the model, or its window
      holds no token of a prompt.
  """
  prompts, row_edits = list(prompts), as_rows(edits)
  if len(prompts) != len(row_edits):
    raise ValueError(f"{len(prompts)} prompts and edits of {len(row_edits)} rows; give as many.")
  rows = []
  for n, (prompt, its_edits) in enumerate(zip(prompts, row_edits, strict=True)):
    with naming(f"prompt {n}"):
      rows.append(make_row(model.encode(prompt), its_edits))
  return [row.edits for row in settle(model, rows)]
