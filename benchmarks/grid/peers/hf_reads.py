"""Hugging Face transformers: log-probabilities of answers, and moments of activations.

  scores          one pass a prompt, whose last position has the log-probability of every answer of
                  one token; batches of prompts of like length
  scores_reusing  the same with what the prompts of a group begin with prefilled once, and its cache
                  repeated for a batch: what an expert would write
  moments         a forward hook on every decoder layer takes the last token's activation, or the
                  mean over a prompt's tokens; sums and sums of squares go on in float64 on the
                  model's device, with no head computed
  moments_stored  the same, every activation kept on the host and moments taken of all in the end:
                  what most scripts do

Left padding and positions from the mask in `scores` and the moments, as in `causal_lm.py`.

  python -m benchmarks.grid.peers.hf_reads WORK REQUEST    a process for `benchmarks/score.py` and
                                                           `capture.py`: JSON in, JSON out
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.grid.grids import Work
from benchmarks.grid.peers import causal_lm

Ids = Sequence[int]


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
  """Yield indices by falling length, as many as fit so many tokens with their padding."""
  order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
  at = 0
  while at < len(order):
    rows = max(1, tokens // max(1, lengths[order[at]]))
    yield order[at : at + rows]
    at += rows


def _padded(model: Any, prompts: Sequence[Ids]) -> dict[str, torch.Tensor]:
  """Return left-padded prompts on the model's device, with their positions."""
  batch = {name: x.to(model.device) for name, x in causal_lm.padded(prompts).items()}
  return batch | {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def _chosen(logits: torch.Tensor, answers: Ids) -> list[list[float]]:
  """Return log-probabilities of answers under logits [B, 1, V]."""
  return logits[:, -1].float().log_softmax(-1)[:, list(answers)].tolist()


def scores(model: Any, prompts: Sequence[Ids], answers: Ids, tokens: int) -> np.ndarray:
  """Return [N, A] log-probabilities of answers of one token."""
  found = np.zeros((len(prompts), len(answers)))
  for rows in _batches([len(p) for p in prompts], tokens):
    batch = _padded(model, [prompts[n] for n in rows])
    with torch.inference_mode():
      out = model(**batch, logits_to_keep=1, use_cache=False)
    found[rows] = _chosen(out.logits, answers)
  return found


def scores_reusing(
  model: Any, prompts: Sequence[Ids], answers: Ids, tokens: int, groups: Sequence[int]
) -> np.ndarray:
  """Return the same as `scores`; prompts of one group share their beginning.

  Endings are padded on the right, so that the cache lies before them without a gap.
  """
  found = np.zeros((len(prompts), len(answers)))
  for group in dict.fromkeys(groups):
    mine = [n for n, g in enumerate(groups) if g == group]
    begin = os.path.commonprefix([list(prompts[n])[:-1] for n in mine])
    shared = transformers.DynamicCache(config=model.config)
    with torch.inference_mode():
      ids = torch.tensor([begin], device=model.device)
      model(input_ids=ids, past_key_values=shared, logits_to_keep=1)
    keys = [(layer.keys, layer.values) for layer in shared.layers]
    endings = [list(prompts[n])[len(begin) :] for n in mine]
    for rows in _batches([len(e) for e in endings], tokens):
      longest = max(len(endings[n]) for n in rows)
      fed = [endings[n] + [causal_lm.PAD] * (longest - len(endings[n])) for n in rows]
      cache = transformers.DynamicCache(config=model.config)
      for at, (k, v) in enumerate(keys):
        cache.update(*(x.expand(len(rows), -1, -1, -1) for x in (k, v)), at)
      with torch.inference_mode():
        hidden = model.model(
          input_ids=torch.tensor(fed, device=model.device), past_key_values=cache
        ).last_hidden_state
        last = torch.tensor([len(endings[n]) - 1 for n in rows], device=model.device)
        logits = model.lm_head(hidden[torch.arange(len(rows), device=model.device), last])[:, None]
      found[[mine[n] for n in rows]] = _chosen(logits, answers)
  return found


def _each_batch(
  model: Any, prompts: Sequence[Ids], reduce: str, tokens: int, take: Callable[..., None]
) -> None:
  """Call `take(layer, x_BD)` with the float32 activations of every layer of every batch."""
  weight_BT1 = torch.zeros(1)

  def hook(at: int) -> Callable[..., None]:
    def reduced(module: Any, inputs: Any, x_BTD: torch.Tensor) -> None:
      take(at, x_BTD[:, -1].float() if reduce == "last" else (x_BTD.float() * weight_BT1).sum(1))

    return reduced

  handles = [layer.register_forward_hook(hook(at)) for at, layer in enumerate(model.model.layers)]
  try:
    for rows in _batches([len(p) for p in prompts], tokens):
      batch = _padded(model, [prompts[n] for n in rows])
      mask_BT = batch["attention_mask"].float()
      weight_BT1 = (mask_BT / mask_BT.sum(1, keepdim=True))[..., None]
      with torch.inference_mode():
        model.model(**batch, use_cache=False)
  finally:
    for handle in handles:
      handle.remove()


def moments(
  model: Any, prompts: Sequence[Ids], reduce: str, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return float64 means and variances [L, D] of the output of every decoder layer."""
  shape = (len(model.model.layers), model.config.hidden_size)
  sum_LD, square_LD = (
    torch.zeros(shape, dtype=torch.float64, device=model.device) for _ in range(2)
  )

  def take(at: int, x_BD: torch.Tensor) -> None:
    x_BD = x_BD.double()
    sum_LD[at] += x_BD.sum(0)
    square_LD[at] += x_BD.square().sum(0)

  _each_batch(model, prompts, reduce, tokens, take)
  mean_LD = sum_LD / len(prompts)
  return mean_LD.cpu().numpy(), (square_LD / len(prompts) - mean_LD.square()).cpu().numpy()


def moments_stored(
  model: Any, prompts: Sequence[Ids], reduce: str, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return the same, of activations that are all kept."""
  kept: list[list[np.ndarray]] = [[] for _ in model.model.layers]
  _each_batch(model, prompts, reduce, tokens, lambda at, x_BD: kept[at].append(x_BD.cpu().numpy()))
  means, variances = [], []
  for parts in kept:
    x_ND = np.concatenate(parts)
    mean_D = x_ND.mean(axis=0, dtype=np.float64)
    means.append(mean_D)
    variances.append(np.mean((x_ND - mean_D) ** 2, axis=0))
  return np.stack(means), np.stack(variances)


def main() -> None:
  """Answer a request: {"call", "prompts", "warm", "tokens", …}; prompts are token ids."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("work", type=Path)
  parser.add_argument("request", type=Path)
  options = parser.parse_args()
  given = json.loads(options.request.read_text())
  model = causal_lm.load(Work(options.work, {}, {}))
  at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  prompts, tokens = given["prompts"], given["tokens"]

  def run(count: int) -> Any:
    some = prompts[:count]
    if given["call"] == "scores":
      return scores(model, some, given["answers"], tokens)
    if given["call"] == "scores_reusing":
      return scores_reusing(model, some, given["answers"], tokens, given["groups"][:count])
    of = {"moments": moments, "moments_stored": moments_stored}[given["call"]]
    return of(model, some, given["reduce"], tokens)

  run(given["warm"])
  begun, cpu_begun = time.perf_counter(), time.process_time()
  result = run(len(prompts))
  answer: dict[str, Any] = {
    "seconds": time.perf_counter() - begun,
    "cpu_seconds": time.process_time() - cpu_begun,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "bytes_before": at_rest,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
  if given["call"].startswith("moments"):
    mean_LD, variance_LD = result
    answer |= {
      "mean_norm": float(np.linalg.norm(mean_LD[-1])),
      "variance_sum": float(variance_LD[-1].sum()),
    }
  else:
    answer["logprobs"] = result.tolist()
  print(json.dumps(answer))


if __name__ == "__main__":
  main()
