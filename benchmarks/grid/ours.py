"""persona_jax on the grids, through its public API.

One call of `model.generate` a grid: prompts as strings, which it renders and tokenises (inside the
timing; the peers are handed ids), and one `pj.add` a condition, shared by its rows. The engine
finds by itself what rows have in common.

A model whose tokenizer names no end tokens runs every row to its budget. Programs are compiled in
the warm-up, which is a whole run and reported by itself.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

import persona_jax as pj
from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.protocol import Arm, Rows, serve

DTYPES = {"f32": "float32", "bf16": "bfloat16"}
SETTINGS = {
  "call": "model.generate(texts, edits=[pj.add(direction, 1, unit='raw', blocks=15, tokens=…)])",
  "batch": "the engine's own plan",
}


def edits_of(model: pj.Model, grid: Grid, window: str | None = None) -> list[pj.Edit]:
  """Return one edit a condition; `window` None is the grid's."""
  shape = (1, model.arch.num_blocks, model.arch.width)
  return [
    pj.add(
      pj.Direction(np.broadcast_to(vector_D, shape), f"condition {number}"),
      1.0,
      unit="raw",
      blocks=grid.block,
      tokens=window or grid.window,
    )
    for number, vector_D in enumerate(grid.vectors_CD)
  ]


class Ours:
  """A model in one dtype."""

  def __init__(self, work: Work, dtype: str):
    model = pj.load(work.identity["name"], dtype=dtype)
    endless = dataclasses.replace(model.tokenizer, eos_ids=())
    self.model = dataclasses.replace(model, tokenizer=endless)
    for grid in work.grids.values():
      for text, ids in zip(grid.texts, grid.prompts, strict=True):
        if tuple(self.model.encode(text).ids) != ids:
          raise ValueError(f"{text[:40]!r} has other token ids than the work says")

  def run(self, grid: Grid) -> Rows:
    """Continue every row."""
    edits = edits_of(self.model, grid)
    generations = self.model.generate(
      [grid.texts[prompt] for prompt, _ in grid.rows],
      edits=[edits[condition] for _, condition in grid.rows],
      max_new_tokens=grid.new_tokens,
    )
    return [list(generation.token_ids) for generation in generations]

  def score(self, grid: Grid, rows: Sequence[int], continuations: Rows) -> list[list[float]]:
    """Compute log-probabilities of given continuations."""
    edits = edits_of(self.model, grid)
    chosen = [grid.rows[row] for row in rows]
    values = self.model.score(
      [grid.texts[prompt] for prompt, _ in chosen],
      continuations,
      edits=[edits[condition] for _, condition in chosen],
      per_token=True,
    )
    return [row.tolist() for row in values]


def build(work: Work) -> dict[str, Arm]:
  """Load the model in each dtype."""
  arms = {}
  for name, dtype in DTYPES.items():
    ours = Ours(work, dtype)
    arms[name] = Arm(dtype, ours.run, ours.score, warm=ours.run)
  return arms


if __name__ == "__main__":
  SETTINGS["device"] = jax.devices()[0].device_kind
  serve(build, SETTINGS)
