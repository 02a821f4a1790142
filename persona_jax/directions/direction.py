"""`Direction`: vectors of one concept, per replicate and block, with where they come from."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from persona_jax.edits.table import HEAD_SITE

_FORMAT = "persona_jax.direction/1"


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
  """Vectors of one concept.

  Attributes:
    vectors_SLD: float32 [S, L, D]; S replicates (paraphrases or bootstrap draws), block i is output
      of layer i.
    concept: its name, e.g. "C+".
    site: where it was read; edits act there unless told otherwise.
    provenance: model name and hash, method, tokens, data hash, counts; plain values.
    gap_L: float32 [L], distance of the two class means along the mean vector, or None.
    reliability_L: float32 [L], split-half reliability of the mean vector (cosine of the halves,
      stepped up by Spearman-Brown), or None if there were too few pairs.
    num_heads: N at site "head_out", where D = N H, head after head, and `gap_L` and `reliability_L`
      are [L, N], one value a head; None at other sites.

  Raises:
    ValueError: vectors are not [S, L, D], or hold a NaN or an infinity.
  """

  vectors_SLD: np.ndarray
  concept: str
  site: str = "resid_post"
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  gap_L: np.ndarray | None = None
  reliability_L: np.ndarray | None = None
  num_heads: int | None = None

  def __post_init__(self) -> None:
    vectors = np.asarray(self.vectors_SLD, np.float32)
    if vectors.ndim != 3 or 0 in vectors.shape:
      raise ValueError(f"vectors must be [S, L, D] with no empty axis, got shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
      raise ValueError(f"direction {self.concept!r}: the vectors hold a NaN or an infinity.")
    object.__setattr__(self, "vectors_SLD", vectors)
    at_heads = self.site == HEAD_SITE
    if at_heads != (self.num_heads is not None) or (at_heads and vectors.shape[2] % self.num_heads):  # type: ignore[operator]
      raise ValueError(
        f"num_heads={self.num_heads} of a direction of width {vectors.shape[2]} at site "
        f"{self.site!r}: {HEAD_SITE!r} needs a number that divides the width, other sites None."
      )
    shape = vectors.shape[1:2] + ((self.num_heads,) if self.num_heads is not None else ())
    for name in ("gap_L", "reliability_L"):
      value = getattr(self, name)
      if value is not None:
        value = np.asarray(value, np.float32)
        if value.shape != shape:
          raise ValueError(
            f"{name} has shape {value.shape}; the direction has {vectors.shape[1]} blocks and "
            f"needs {shape}."
          )
        object.__setattr__(self, name, value)

  def __repr__(self) -> str:
    s, blocks, d = self.vectors_SLD.shape
    return (
      f"Direction({self.concept!r}, {s} replicates, {blocks} blocks, width {d}, site {self.site})"
    )

  @property
  def mean_LD(self) -> np.ndarray:
    """Mean over replicates, float32 [L, D]."""
    return self.vectors_SLD.mean(axis=0)

  @property
  def norm_L(self) -> np.ndarray:
    """Length of the mean vector at each block, float32 [L]."""
    return np.linalg.norm(self.mean_LD, axis=-1)

  @property
  def unit_LD(self) -> np.ndarray:
    """Unit vector of the mean at each block, float32 [L, D]; zero where the mean is zero."""
    mean_LD = self.mean_LD.astype(np.float64)
    norm_L1 = np.linalg.norm(mean_LD, axis=-1, keepdims=True)
    return (mean_LD / np.where(norm_L1 > 0, norm_L1, 1.0)).astype(np.float32)

  @property
  def _description_hash(self) -> str:
    """sha256 (hex) of what `hash` leaves out: provenance, reliability, number of heads."""
    plain = json.loads(json.dumps(dict(self.provenance)))  # as it is read again: keys are texts
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    digest.update(f"|{self.num_heads}|".encode())
    if self.reliability_L is not None:
      digest.update(np.ascontiguousarray(self.reliability_L, np.float32).tobytes())
    return digest.hexdigest()

  @property
  def hash(self) -> str:
    """sha256 (hex) of concept, site, vectors and class gap: of all that an edit reads."""
    digest = hashlib.sha256(f"{self.concept}|{self.site}|{self.vectors_SLD.shape}".encode())
    digest.update(np.ascontiguousarray(self.vectors_SLD).tobytes())
    if self.gap_L is not None:
      digest.update(np.ascontiguousarray(self.gap_L, np.float64).tobytes())
    return digest.hexdigest()

  def save(self, path: str | Path) -> Path:
    """Write a safetensors file: tensor `vectors` [S, L, D], and everything else as metadata.

    Returns the path. The file is written beside its place and moved there, so a crash leaves no
    half file.
    """
    path = Path(path)
    tensors = {"vectors": np.ascontiguousarray(self.vectors_SLD)}
    for name in ("gap_L", "reliability_L"):
      if getattr(self, name) is not None:
        tensors[name] = np.ascontiguousarray(getattr(self, name))
    metadata = {
      "format": _FORMAT,
      "concept": self.concept,
      "site": self.site,
      "provenance": json.dumps(dict(self.provenance), sort_keys=True),
      "norms": json.dumps([round(float(x), 6) for x in self.norm_L]),
      "sha256": self.hash,
      "description_sha256": self._description_hash,
    }
    if self.num_heads is not None:
      metadata["num_heads"] = str(self.num_heads)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(safetensors.numpy.save(tensors, metadata))
    partial.replace(path)
    return path


def read_direction(path: str | Path) -> Direction:
  """Read a file of `Direction.save`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no direction file or is damaged.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no direction file at {path}.")
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is no readable safetensors file: {error}.") from error
  if metadata.get("format") != _FORMAT or "vectors" not in tensors:
    raise ValueError(
      f"{path} is no direction file: its format is {metadata.get('format')!r}, not {_FORMAT!r}, or "
      f"it has no tensor 'vectors' (tensors: {sorted(tensors)})."
    )
  try:
    stated, described = metadata["sha256"], metadata.get("description_sha256")
    direction = Direction(
      tensors["vectors"],
      metadata["concept"],
      metadata["site"],
      json.loads(metadata["provenance"]),
      tensors.get("gap_L"),
      tensors.get("reliability_L"),
      int(metadata["num_heads"]) if "num_heads" in metadata else None,
    )
  except (KeyError, ValueError) as error:
    raise ValueError(f"{path} is damaged or not ours: {error!r}.") from error
  for what, ours, theirs in (
    ("vectors", direction.hash, stated),
    ("provenance", direction._description_hash, described),
  ):
    if theirs is not None and ours != theirs:  # files of before do not state the second
      raise ValueError(f"{path} is damaged: its {what} have not the checksum that the file states.")
  return direction


def in_common(ds: Sequence[Direction]) -> dict[str, Any]:
  """Return what all directions say alike of their model and of the tokens that they were read at.

  The others' word counts for those that do not say.
  """
  found = {}
  for key in ("model", "model_hash", "model_type", "tokens"):
    said = [d.provenance[key] for d in ds if d.provenance.get(key) is not None]
    if said and all(value == said[0] for value in said):
      found[key] = said[0]
  return found


def compose(
  ds: Sequence[Direction],
  weights: Sequence[float],
  rule: Literal["unit_sum", "sum"] = "unit_sum",
  *,
  concept: str | None = None,
) -> Direction:
  """Add directions of one model and site, replicate by replicate.

  Args:
    ds: the directions, all [S, L, D] of the same shape.
    weights: one factor each, e.g. +1 or -1 for a pole.
    rule: "unit_sum" makes each a unit vector first and the sum a unit vector again, so that a
      composite is no stronger than its parts; "sum" adds the raw vectors. A block without a vector
      in all parts (of a file that has some blocks only) has none in the sum.
    concept: name of the result; default the weighted names.

  Raises:
    ValueError: shapes, sites or models differ, counts differ, an unknown rule, or a part or the sum
      is zero where others are not.
  """
  ds = list(ds)
  if not ds or len(weights) != len(ds):
    raise ValueError(f"{len(ds)} directions and {len(weights)} weights; give one weight each.")
  shapes, sites = {d.vectors_SLD.shape for d in ds}, {d.site for d in ds}
  if len(shapes) > 1 or len(sites) > 1:
    raise ValueError(
      f"directions must agree in shape and site; got {sorted(shapes)} at {sorted(sites)}."
    )
  hashes = {d.provenance["model_hash"] for d in ds if d.provenance.get("model_hash")}
  if len(hashes) > 1:
    models = sorted({str(d.provenance.get("model")) for d in ds})
    raise ValueError(f"directions of different weights cannot be added; these are of {models}.")
  if rule not in ("unit_sum", "sum"):
    raise ValueError(f"rule={rule!r}: use 'unit_sum' or 'sum'.")
  concept = concept or " ".join(f"{w:+g}*{d.concept}" for w, d in zip(weights, ds, strict=True))
  absent_L = ~np.any([d.vectors_SLD.any(axis=(0, 2)) for d in ds], axis=0)

  def unit(x_SLD: np.ndarray, name: str) -> np.ndarray:
    norm = np.linalg.norm(x_SLD, axis=-1, keepdims=True)
    missing = (norm[..., 0] == 0) & ~absent_L
    if missing.any():
      s, block = np.argwhere(missing)[0]
      raise ValueError(
        f"{name} is the zero vector at block {block} (replicate {s}); it has no direction."
      )
    return x_SLD / np.where(norm > 0, norm, 1.0)

  parts = [d.vectors_SLD.astype(np.float64) for d in ds]
  if rule == "unit_sum":
    parts = [unit(part, f"direction {d.concept!r}") for part, d in zip(parts, ds, strict=True)]
  total = np.zeros(parts[0].shape)
  for w, part in zip(weights, parts, strict=True):
    total += w * part
  if rule == "unit_sum":
    total = unit(total, f"the sum {concept!r}")
  return Direction(
    total,
    concept,
    ds[0].site,
    {
      "method": f"compose:{rule}",
      "parts": [
        {"concept": d.concept, "hash": d.hash, "weight": float(w)}
        for d, w in zip(ds, weights, strict=True)
      ],
      **in_common(ds),
    },
    num_heads=ds[0].num_heads,
  )
