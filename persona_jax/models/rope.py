"""Rotary position embedding (Su et al. 2021): its frequencies, and how families stretch them.

linear    positions divided by `factor` (Chen et al. 2023; Gemma 3's global blocks)
llama3    long waves divided by `factor`, short ones kept, a ramp between (Llama 3.1)
yarn      ramp over the dimensions, and larger attention scores (Peng et al. 2023; Qwen2.5)
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Fields of a `rope_scaling` dict by type: (needed, may be absent).
_FIELDS: dict[str, tuple[set[str], set[str]]] = {
  "default": (set(), set()),
  "linear": ({"factor"}, set()),
  "llama3": (
    {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    set(),
  ),
  "yarn": (
    {"factor", "original_max_position_embeddings"},
    {"attention_factor", "beta_fast", "beta_slow"},
  ),
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies of a block.

  Attributes:
    theta: base.
    kind: "default", "linear", "llama3" or "yarn".
    factor: how much longer the context is made.
    original_positions: context the frequencies were trained for ("llama3", "yarn").
    low_freq, high_freq: bounds of the ramp in waves per original context ("llama3").
    beta_fast, beta_slow: the same for "yarn".
    attention_factor: of cos and sin, so its square is of the scores ("yarn").
  """

  theta: float
  kind: str = "default"
  factor: float = 1.0
  original_positions: int = 0
  low_freq: float = 1.0
  high_freq: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 1.0

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Return radians per position, float32 [H / 2]."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = 1.0 / np.float32(self.theta) ** exponent
    if self.kind == "linear":
      return plain / np.float32(self.factor)
    if self.kind == "llama3":
      waves = self.original_positions * plain.astype(np.float64) / (2 * np.pi)
      kept = (waves - self.low_freq) / (self.high_freq - self.low_freq)
    elif self.kind == "yarn":
      low, high = (self._dimension(beta, head_dim) for beta in (self.beta_fast, self.beta_slow))
      low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
      kept = 1 - (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
    else:
      return plain
    kept = np.clip(kept, 0, 1)
    return (plain * (kept + (1 - kept) / self.factor)).astype(np.float32)

  def _dimension(self, waves: float, head_dim: int) -> float:
    """Return the dimension, as a real number, that turns `waves` times in the original context."""
    span = self.original_positions / (waves * 2 * math.pi)
    return head_dim * math.log(span) / (2 * math.log(self.theta))


def parse_rope(theta: float, scaling: Mapping[str, Any] | None, max_positions: int) -> Rope:
  """Read a base and a `rope_scaling` (or `rope_parameters`) dict of a config.

  Raises:
    ValueError: a type or field that is not handled, a field that is missing, or a number out of
      range; the message names it.
  """
  if not isinstance(scaling or {}, Mapping):
    raise ValueError(f"rope_scaling is {scaling!r}; a dict with its type and numbers is needed.")
  fields = {name: value for name, value in (scaling or {}).items() if value is not None}
  kind = fields.pop("rope_type", None) or fields.pop("type", None) or "default"
  fields.pop("type", None)
  theta = float(fields.pop("rope_theta", theta))
  if kind not in _FIELDS:
    raise ValueError(
      f"rope_scaling type {kind!r} is not supported; supported: {', '.join(_FIELDS)}."
    )
  needed, optional = _FIELDS[kind]
  # Llama 3's and Qwen's files give the original context; where it is absent it is the model's.
  if "original_max_position_embeddings" in needed:
    fields.setdefault("original_max_position_embeddings", max_positions)
  unknown, missing = set(fields) - needed - optional, needed - set(fields)
  if unknown or missing:
    raise ValueError(
      f"rope_scaling {dict(scaling or {})} of type {kind!r}: unknown fields {sorted(unknown)}, "
      f"missing fields {sorted(missing)}; it has {sorted(needed)} and may have {sorted(optional)}."
    )
  odd = {n: v for n, v in fields.items() if not isinstance(v, int | float | bool)}
  if odd:
    raise ValueError(f"rope_scaling of type {kind!r}: {odd}; numbers are needed.")
  given = {name: float(value) for name, value in fields.items()}
  wrong = {n: v for n, v in given.items() if not (math.isfinite(v) and v > 0)}
  if wrong or not theta > 1:
    raise ValueError(f"rope_theta={theta}, rope_scaling {wrong}: numbers must be positive.")
  factor = given.get("factor", 1.0)
  if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
    raise ValueError(f"rope_scaling {fields}: high_freq_factor must exceed low_freq_factor.")
  attention = 1.0
  if kind == "yarn":
    attention = given.get("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
  return Rope(
    theta,
    kind,
    factor,
    int(given.get("original_max_position_embeddings", 0)),
    given.get("low_freq_factor", 1.0),
    given.get("high_freq_factor", 4.0),
    given.get("beta_fast", 32.0),
    given.get("beta_slow", 1.0),
    attention,
  )
