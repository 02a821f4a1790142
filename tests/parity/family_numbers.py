"""Small committed numbers of the random families: what transformers gave, for `make test`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.checks import relative_error

GOLDEN = Path(__file__).parent / "family_reference.json"


def numbers_of(shapes: Mapping[str, tuple[int, ...]], reading: Any) -> dict[str, Any]:
  """Returns what is kept of a pass: tensor shapes, and logits and residuals at the last token."""
  return {
    "shapes": {name: list(shape) for name, shape in shapes.items()},
    "last_logits": [float(f"{x:.8g}") for x in reading.logits_TV[-1]],
    "last_residuals": [[float(f"{x:.8g}") for x in h_D] for h_D in reading.resid_LTD[:, -1]],
  }


def arrays_of(item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the kept logits [V] and residuals [L, D], float64."""
  return np.asarray(item["last_logits"]), np.asarray(item["last_residuals"])


def errors(item: Mapping[str, Any], reading: Any) -> dict[str, float]:
  """Returns the relative errors of a pass's last token against the kept numbers."""
  logits_V, resid_LD = arrays_of(item)
  found = {"logits": relative_error(reading.logits_TV[-1], logits_V)}
  for block, h_D in enumerate(resid_LD):
    found[f"block {block}"] = relative_error(reading.resid_LTD[block, -1], h_D)
  return found


def write(numbers: Mapping[str, Mapping[str, Any]]) -> None:
  """Writes the committed file, one line a configuration."""
  lines = [
    f" {json.dumps(title)}: {json.dumps(item, separators=(',', ':'))}"
    for title, item in numbers.items()
  ]
  GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load() -> dict[str, Any]:
  """Reads the committed file."""
  return dict(json.loads(GOLDEN.read_text(encoding="utf-8")))
