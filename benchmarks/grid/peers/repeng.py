"""The `repeng` library on transformers, float32: one condition at a time.

Each condition is a `ControlVector` of one layer, set once round one call of `generate` whose batch
are the condition's prompts. The library has no token windows; for edits of generated tokens its
`operator` is used, which is handed the activations of a pass: prompts are passes of several tokens.
"""

import repeng
import torch

from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.peers import causal_lm
from benchmarks.grid.protocol import Arm, Rows, serve


def _on_generated(hidden: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
  """Return the activations of a pass, controlled or not."""
  return hidden + control if hidden.shape[1] == 1 else hidden


def build(work: Work) -> dict[str, Arm]:
  """Load the model and wrap the layer that the grids edit."""
  (block,) = {grid.block for grid in work.grids.values()}
  model = repeng.ControlModel(causal_lm.load(work), [block])

  def by_condition(grid: Grid) -> Rows:
    rows: Rows = []
    options = {"operator": _on_generated} if grid.window == "generated" else {}
    for vector_D in grid.vectors_CD:
      model.set_control(repeng.ControlVector("llama", {block: vector_D}), 1.0, **options)
      rows += causal_lm.generate(model, grid, grid.prompts)
    model.reset()
    return rows

  return {"f32": Arm("float32", by_condition)}


if __name__ == "__main__":
  serve(build, causal_lm.SETTINGS)
