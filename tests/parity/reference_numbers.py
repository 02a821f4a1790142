"""The small committed numbers of the reference: what they are, and how ours are compared with them.

`make parity` writes the file from transformers' pass; `make test` reads it without transformers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("smollm2_reference.json")
TOP = 8  # logits kept of each prompt's last position
NEAR_TIE = 1e-3  # a greedy choice by less than this may fall either way in float32


def numbers_of(
  n_tokens: int, logits_V: np.ndarray, resid_LD: np.ndarray, ids: Sequence[int], gaps: np.ndarray
) -> dict[str, Any]:
  """Returns what is kept of one prompt.

  Args:
    n_tokens: length of the prompt.
    logits_V: at its last token.
    resid_LD: output of each block there.
    ids: greedy answer.
    gaps: by how much each of its tokens led the next best.
  """
  top = np.argsort(-logits_V, kind="stable")[:TOP]
  return {
    "n_tokens": n_tokens,
    "top_ids": top.tolist(),
    "top_logits": np.round(logits_V[top].astype(np.float64), 5).tolist(),
    "logsumexp": round(float(np.logaddexp.reduce(logits_V.astype(np.float64))), 5),
    "resid_norms": np.round(np.linalg.norm(resid_LD.astype(np.float64), axis=-1), 5).tolist(),
    "greedy_ids": list(ids),
    "near_ties": np.flatnonzero(gaps < NEAR_TIE).tolist(),
  }


def relative_errors(
  kept: Mapping[str, Any], logits_V: np.ndarray, resid_LD: np.ndarray
) -> dict[str, float]:
  """Returns the largest relative error of ours for each kind of number.

  "others" is by how much the largest logit outside the top overtakes the last one inside.
  """
  logits_V = logits_V.astype(np.float64)
  top = np.asarray(kept["top_logits"])
  outside_V = np.delete(logits_V, kept["top_ids"])
  pairs = {
    "top_logits": (logits_V[kept["top_ids"]], top),
    "logsumexp": (np.logaddexp.reduce(logits_V), np.asarray(kept["logsumexp"])),
    "resid_norms": (np.linalg.norm(resid_LD, axis=-1), np.asarray(kept["resid_norms"])),
  }
  errors = {name: float(np.max(np.abs(a - b) / np.abs(b))) for name, (a, b) in pairs.items()}
  errors["others"] = max(0.0, float((outside_V.max() - top[-1]) / abs(top[-1])))
  return errors


def settled_ids(kept: Mapping[str, Any], steps: int) -> list[int]:
  """Returns the greedy ids before the first near tie, at most `steps`."""
  return kept["greedy_ids"][: min([steps, *kept["near_ties"]])]


def write(numbers: Mapping[str, Any]) -> None:
  """Writes the file, one line a prompt's item."""
  text = json.dumps({**numbers, "prompts": None}, indent=1)
  prompts = ",\n".join(
    f" {json.dumps(name)}: {{\n"
    + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in kept.items())
    + "\n }"
    for name, kept in numbers["prompts"].items()
  )
  GOLDEN.write_text(text.replace('"prompts": null', f'"prompts": {{\n{prompts}\n }}') + "\n")


def load() -> dict[str, Any]:
  """Reads the file."""
  return json.loads(GOLDEN.read_text(encoding="utf-8"))
