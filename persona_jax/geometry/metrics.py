"""Inner products on the residual stream, block by block, as square-root maps.

A metric M at a block is held as a map A with <u, v>_M = <u A, v A>, so cosines of many directions
are products of matrices.

* "euclidean": M = I.
* "whitened": M = Σ⁻¹, Σ the covariance of activations by Ledoit and Wolf. What is compared is how
  far two directions go in the same way for the spread of the data.
* "unembedding": the causal inner product of Park, Choe and Veitch 2024 (arXiv 2311.03658). In the
  space of unembeddings it is γᵀ Cov(γ)⁻¹ γ'; a vector of the residual stream lies in the dual
  space, where it reads λᵀ Cov(γ) λ', with γ drawn uniformly from the vocabulary. The gains of the
  final norm are no part of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_jax.directions.activations import Activations
from persona_jax.directions.dose import Dose
from persona_jax.directions.methods import ledoit_wolf
from persona_jax.directions.whiten import whitened
from persona_jax.engine.model import Model

_Floats = NDArray[np.float64]
_ROWS = 16_384  # of the unembedding at a time: 75 MB in float64 at a width of 576


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
  """An inner product at each block.

  Attributes:
    name: "euclidean", "whitened", "unembedding" or one's own.
    roots: by block the map A, float64 [D, K]; None for the identity at all blocks.
    site: where vectors must be read; None if any site will do.
    about: where it comes from; plain values.
  """

  name: str
  roots: Mapping[int, _Floats] | None = None
  site: str | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def map(self, v_RD: np.ndarray, block: int) -> _Floats:
    """Return vectors, [..., D], where their inner product is the ordinary one, float64 [..., K].

    Raises:
      ValueError: the metric is not known at the block, or for vectors of that width.
    """
    v = np.asarray(v_RD, np.float64)
    if self.roots is None:
      return v
    if block not in self.roots:
      raise ValueError(f"the {self.name} metric has blocks {sorted(self.roots)}, not {block}.")
    if self.roots[block].shape[0] != v.shape[-1]:
      raise ValueError(
        f"the {self.name} metric is of width {self.roots[block].shape[0]}, not {v.shape[-1]}."
      )
    mapped: _Floats = v @ self.roots[block]
    return mapped


EUCLIDEAN = Metric("euclidean")


def whitening(
  source: Dose | Activations | np.ndarray,
  *,
  num_blocks: int | None = None,
  blocks: Sequence[int] | None = None,
  site: str | None = None,
) -> Metric:
  """Make the whitened inner product.

  Args:
    source: activations whose spread is the measure, such as answer tokens of the unedited model: a
      dose (its sample is used), `Activations`, or an array [L, N, D].
    num_blocks: L, for `Activations`, which do not say.
    blocks: those that are wanted; default all. Each costs an eigendecomposition and D² floats.
    site: where they were read; a dose says so itself.

  Returns:
    The metric, with Σ shrunk by `directions.methods.ledoit_wolf`; `about` has the shrinkage.

  Raises:
    ValueError: too little is said of the blocks, or a covariance is not positive definite.
  """
  if isinstance(source, Dose):
    count, site = len(source.sample_LND), source.site
  elif isinstance(source, np.ndarray):
    if source.ndim != 3:
      raise ValueError(f"activations have shape {source.shape}; [L, N, D] fits.")
    count = len(source)
  elif num_blocks is None:
    raise ValueError("Activations do not say how many blocks they have; give num_blocks.")
  else:
    count = num_blocks
  chosen = range(count) if blocks is None else blocks
  wrong = [b for b in chosen if not 0 <= b < count]
  if wrong:
    raise ValueError(f"blocks {wrong}: the activations have blocks 0 to {count - 1}.")
  roots, shrinkage = {}, {}
  for block in chosen:
    if isinstance(source, Dose):
      x_ND = source.sample_LND[block]
    else:
      x_ND = source[block] if isinstance(source, np.ndarray) else source.block(block)
    cov_DD, shrunk = ledoit_wolf(np.asarray(x_ND, np.float64))
    roots[block] = whitened(np.eye(len(cov_DD)), cov_DD)
    shrinkage[str(block)] = float(shrunk)
  return Metric("whitened", roots, site, {"shrinkage": shrinkage})


def unembedding(model: Model) -> Metric:
  """Make the causal inner product of a model: vectors by the covariance of its unembedding rows.

  The rows are those of the head, or of the embedding table where the head is tied to it.

  Args:
    model: the model.

  Returns:
    The metric, the same at every block.
  """
  name = "embed_VD" if model.arch.tied_head else "head_VD"
  root_DD = covariance_root(np.asarray(model.params[name], np.float32))
  about = {"rows": name, "model_hash": model.identity.sha256}
  return Metric("unembedding", dict.fromkeys(range(model.arch.num_blocks), root_DD), None, about)


def covariance_root(rows_VD: np.ndarray) -> _Floats:
  """Return the symmetric root of the covariance of rows, float64 [D, D]; it may be singular."""
  count, width = rows_VD.shape
  mean_D = rows_VD.mean(axis=0, dtype=np.float64)
  cov_DD = np.zeros((width, width))
  for first in range(0, count, _ROWS):
    z_VD = rows_VD[first : first + _ROWS].astype(np.float64) - mean_D
    cov_DD += z_VD.T @ z_VD
  value_D, basis_DD = np.linalg.eigh(cov_DD / count)
  root_DD: _Floats = (basis_DD * np.sqrt(np.maximum(value_D, 0.0))) @ basis_DD.T
  return root_DD
