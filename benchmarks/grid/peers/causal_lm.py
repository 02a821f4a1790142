"""The model as transformers loads it, for the peers that build on transformers.

What they all get: our float32 weights, sdpa attention, the dynamic cache, left padding with a mask,
greedy decoding with no end token, so that every row runs to its budget.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.protocol import THREADS, Rows

PAD = 0  # never attended to
SETTINGS = {
  "attention": "sdpa",
  "cache": "dynamic",
  "padding": "left",
  "threads": THREADS,
  "mode": "torch.inference_mode, no torch.compile",
}


def load(work: Work, dtype: torch.dtype = torch.float32) -> Any:
  """Load the exported weights in a dtype."""
  torch.set_num_threads(THREADS)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    work.directory / "hf", dtype=dtype, attn_implementation="sdpa", local_files_only=True
  ).eval()
  return greedy(model)


def greedy(model: Any) -> Any:
  """Make a model decode greedily to its budget."""
  model.generation_config = transformers.GenerationConfig(
    do_sample=False, use_cache=True, pad_token_id=PAD, eos_token_id=None
  )
  return model


def padded(prompts: Sequence[Sequence[int]], columns: int = 0) -> dict[str, torch.Tensor]:
  """Return left-padded ids and their mask, with so many columns of padding at least."""
  longest = max(map(len, prompts)) + columns
  ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts])
  mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
  return {"input_ids": ids, "attention_mask": mask}


def columns_of(model: Any) -> int:
  """Return how many columns of padding a batch gets.

  In bfloat16 on a CPU a batch without any can take a slow path, so it gets one.
  """
  weight = next(model.parameters())  # what wraps a model need not have its properties
  return int(weight.dtype == torch.bfloat16 and weight.device.type == "cpu")


def generate(model: Any, grid: Grid, prompts: Sequence[Sequence[int]], **options: Any) -> Rows:
  """Continue a batch of prompts; return the new tokens."""
  device = next(model.parameters()).device
  batch = {n: tensor.to(device) for n, tensor in padded(prompts, columns_of(model)).items()}
  with torch.inference_mode():
    out = model.generate(**batch, max_new_tokens=grid.new_tokens, **options)
  return out[:, batch["input_ids"].shape[1] :].tolist()
