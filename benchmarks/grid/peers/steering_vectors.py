"""The `steering-vectors` library on transformers, float32: one condition at a time.

Each condition is a `SteeringVector` of one layer, applied round one call of `generate` whose batch
are the condition's prompts. The library counts token windows within a forward pass, so a window
that starts behind the prompt would meet no token of a cached decode; its `operator` is used
instead, which is handed the activations of a pass: prompts are passes of several tokens.
"""

import steering_vectors
import torch

from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.peers import causal_lm
from benchmarks.grid.protocol import Arm, Rows, serve


def _on_generated(hidden: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
  """Return what to add to the activations of a pass."""
  return vector if hidden.shape[1] == 1 else torch.zeros_like(vector)


def build(work: Work) -> dict[str, Arm]:
  """Load the model."""
  model = causal_lm.load(work)

  def by_condition(grid: Grid) -> Rows:
    rows: Rows = []
    for vector_D in grid.vectors_CD:
      vector = steering_vectors.SteeringVector({grid.block: torch.from_numpy(vector_D)})
      operator = _on_generated if grid.window == "generated" else None
      with torch.inference_mode(), vector.apply(model, operator=operator):
        rows += causal_lm.generate(model, grid, grid.prompts)
    return rows

  return {"f32": Arm("float32", by_condition)}


if __name__ == "__main__":
  serve(build, causal_lm.SETTINGS)
