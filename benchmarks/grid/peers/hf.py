"""Hugging Face transformers: `generate` with a forward hook that adds vectors in place.

  conditions  one call of `generate` a condition: its prompts are the batch, one vector in the hook
  rows        all rows of the grid as one batch, one vector a row in the hook
  conditions_reuse, rows_reuse   the same for the grid whose prompts no edit touches, with the
    prompts prefilled once and their cache copied. `generate` does nothing of the kind by itself;
    this is what an expert would write

Each in float32 and in bfloat16: weights, products, residual stream, cache and vectors.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.peers import causal_lm
from benchmarks.grid.protocol import Arm, Rows, serve

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SCORED_AT_ONCE = 16


class Adding:
  """A hook that adds vectors to a decoder layer's output, for as long as the context lasts.

  Args:
    layer: the module.
    vectors: [1 or B, 1, D], in the model's dtype.
    passes_skipped: forward passes that are left alone before it begins.
    last_tokens: act on so many last positions of a pass; None for all.
  """

  def __init__(
    self,
    layer: torch.nn.Module,
    vectors: torch.Tensor,
    *,
    passes_skipped: int = 0,
    last_tokens: int | None = None,
  ):
    self.vectors, self.to_skip, self.last_tokens = vectors, passes_skipped, last_tokens
    self.handle = layer.register_forward_hook(self._add)

  def _add(self, module: torch.nn.Module, inputs: Any, hidden: torch.Tensor) -> None:
    if self.to_skip:
      self.to_skip -= 1
      return
    if self.last_tokens is not None:
      hidden = hidden[:, -self.last_tokens :]
    hidden += self.vectors

  def __enter__(self) -> "Adding":
    return self

  def __exit__(self, *error: object) -> None:
    self.handle.remove()


class HuggingFace:
  """What an arm does with a model of transformers, on the model's device."""

  def __init__(self, model: Any):
    self.model = model

  def adding(self, grid: Grid, vectors_BD: np.ndarray, **when: Any) -> Adding:
    """Return the hook for vectors [1 or B, D]."""
    vectors = torch.from_numpy(np.array(vectors_BD)).to(self.model.device, self.model.dtype)
    return Adding(self.model.model.layers[grid.block], vectors[:, None], **when)

  def generate(
    self, grid: Grid, prompts: Sequence[Sequence[int]], vectors_BD: np.ndarray, **options: Any
  ) -> Rows:
    """Continue a batch of prompts, with one vector for all or one for each."""
    # The first pass reads the prompt, or what a cache lacks of it.
    with self.adding(grid, vectors_BD, passes_skipped=int(grid.window == "generated")):
      return causal_lm.generate(self.model, grid, prompts, **options)

  def by_condition(self, grid: Grid) -> Rows:
    """One call a condition."""
    rows: Rows = []
    for vector_D in grid.vectors_CD:
      rows += self.generate(grid, grid.prompts, vector_D[None])
    return rows

  def all_rows(self, grid: Grid) -> Rows:
    """One call for all."""
    return self.generate(grid, [grid.prompts[p] for p, _ in grid.rows], grid.vectors_RD)

  def prefilled(self, grid: Grid) -> Any:
    """Return the cache of every prompt without its last token; prompts are of one length."""
    cache = transformers.DynamicCache(config=self.model.config)
    batch = causal_lm.padded(grid.prompts, causal_lm.columns_of(self.model))
    batch = {name: x[:, :-1].to(self.model.device) for name, x in batch.items()}
    position = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
      self.model(**batch, position_ids=position, past_key_values=cache, logits_to_keep=1)
    return cache

  def by_condition_reusing(self, grid: Grid) -> Rows:
    """One call a condition, prompts prefilled once."""
    prefilled = self.prefilled(grid)
    rows: Rows = []
    for vector_D in grid.vectors_CD:
      cache = copy.deepcopy(prefilled)
      rows += self.generate(grid, grid.prompts, vector_D[None], past_key_values=cache)
    return rows

  def all_rows_reusing(self, grid: Grid) -> Rows:
    """One call for all, prompts prefilled once."""
    cache = self.prefilled(grid)
    with torch.inference_mode():
      rows = torch.tensor([prompt for prompt, _ in grid.rows], device=self.model.device)
      cache.batch_select_indices(rows)
    prompts = [grid.prompts[prompt] for prompt, _ in grid.rows]
    return self.generate(grid, prompts, grid.vectors_RD, past_key_values=cache)

  def score(self, grid: Grid, rows: Sequence[int], continuations: Rows) -> list[list[float]]:
    """Compute log-probabilities of given continuations of one length, teacher-forced."""
    values: list[list[float]] = []
    for at in range(0, len(rows), SCORED_AT_ONCE):
      chosen = list(rows[at : at + SCORED_AT_ONCE])
      answers = continuations[at : at + SCORED_AT_ONCE]
      length = len(answers[0])
      prompts = [grid.prompts[grid.rows[row][0]] for row in chosen]
      batch = causal_lm.padded([[*p, *a[:-1]] for p, a in zip(prompts, answers, strict=True)])
      batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
      position = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
      last = length - 1 if grid.window == "generated" else None
      with torch.inference_mode(), self.adding(grid, grid.vectors_RD[chosen], last_tokens=last):
        logits = self.model(**batch, position_ids=position, logits_to_keep=length).logits
        logprobs = logits.float().log_softmax(-1)
      given = torch.tensor(answers, device=self.model.device)[..., None]
      values += logprobs.gather(-1, given)[..., 0].tolist()
    return values


def build(work: Work) -> dict[str, Arm]:
  """Load the model in each dtype."""
  arms = {}
  for name, dtype in DTYPES.items():
    hf = HuggingFace(causal_lm.load(work, dtype))
    arm = functools.partial(Arm, str(dtype).removeprefix("torch."))
    arms[f"conditions_{name}"] = arm(hf.by_condition)
    arms[f"rows_{name}"] = arm(hf.all_rows, hf.score)
    reuse = ("20_generated",)
    arms[f"conditions_reuse_{name}"] = arm(hf.by_condition_reusing, grids=reuse)
    arms[f"rows_reuse_{name}"] = arm(hf.all_rows_reusing, grids=reuse)
  return arms


if __name__ == "__main__":
  serve(build, causal_lm.SETTINGS)
