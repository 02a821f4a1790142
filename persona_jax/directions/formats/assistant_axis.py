"""Files of assistant-axis (Lu et al. 2026): vectors of roles and traits, the axis, capping.

All are [L, D], row i of the output of block i:

* vectors of its hub dataset and axes: a bare tensor;
* vectors of its pipeline: {"vector": [L, D], "type": "pos_3" or "mean", "role": name};
* axes with notes: {"axis": [L, D], "metadata": {…}};
* axes of its pipeline: {"axis", "default_mean", "role_mean": [L, D], "n_default", "n_roles"};
* `capping_config.pt`: {"vectors": {name: {"layer": block, "vector": [D]}},
  "experiments": [{"id": name, "interventions": [{"vector": name, "cap": number}]}]}.

A cap bounds the projection on the unit vector from above: h ← h − max(⟨h, v̂⟩ − cap, 0) v̂.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.rows import direction_of, mean_of, note, write_each
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file
from persona_jax.edits.edit import Edit
from persona_jax.edits.operations import cap
from persona_jax.edits.window import Window

NAME = "assistant_axis"
_FOLDERS = ("role_vectors", "trait_vectors")
_KINDS = ("bare", "vector", "axis")
_COUNTS = ("n_default", "n_roles")


def named_so(path: Path) -> bool:
  """Return whether a file lies where assistant-axis' dataset has its vectors."""
  return path.stem in ("assistant_axis", "default_vector") or path.parent.name in _FOLDERS


def read(path: Path, *, num_blocks: int | None = None) -> list[Direction]:
  """Read a vector or an axis, or all of a model's folder (capping apart: `read_capping`).

  Raises:
    ValueError: it is none of these layouts, or not of `num_blocks` rows.
  """
  if path.is_dir():
    patterns = ("*.pt", *(f"{folder}/*.pt" for folder in _FOLDERS))
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    files = [file for file in files if file.name != "capping_config.pt"]
    return [d for file in files for d in read(file, num_blocks=num_blocks)]
  found = read_torch_file(path)
  known: dict[str, Any] = {}
  x_LD = found
  if isinstance(found, dict):
    key = next((key for key in ("vector", "axis") if key in found), None)
    if key is None:
      hint = "; it is a capping config, see read_capping" if "experiments" in found else ""
      raise ValueError(f"{path}: a dict of {sorted(map(str, found))[:8]}, not of a vector{hint}.")
    x_LD = found[key]
    known = {"kind": key, "concept": found.get("role"), "vector_type": found.get("type")}
    known["metadata"] = found.get("metadata")
    known |= {key: found.get(key) for key in _COUNTS}
    rest = sorted(map(str, set(found) - {key, "role", "type", "metadata", *_COUNTS}))
    if rest:
      note(path, f"{rest} are left out: they are no direction.")
  if not isinstance(x_LD, np.ndarray) or x_LD.ndim != 2:
    raise ValueError(f"{path} holds no tensor [blocks, width].")
  if num_blocks is not None and len(x_LD) != num_blocks:
    raise ValueError(f"{path}: {len(x_LD)} rows for a model of {num_blocks} blocks.")
  concept = known.pop("concept", None) or path.stem
  rows = dict(enumerate(x_LD))
  return [direction_of(rows, path=path, file_format=NAME, concept=concept, provenance=known)]


def write(
  directions: Sequence[Direction],
  path: Path,
  *,
  kind: Literal["bare", "vector", "axis"] | None = None,
) -> list[Path]:
  """Write [L, D] in float32, one file a direction; means over replicates.

  Args:
    directions: one for a `.pt` file, or several for a folder.
    path: the file or the folder.
    kind: "bare", the tensor; "vector", with type and role; "axis", with metadata. Default as it was
      read, else "bare".

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in (None, *_KINDS):
    raise ValueError(f"kind={kind!r}: use one of {_KINDS}.")

  def write_one(direction: Direction, file: Path) -> None:
    v_LD = mean_of(direction, file, "a file of assistant-axis")
    known = direction.provenance
    chosen = kind or known.get("kind", "bare")
    if chosen == "vector":
      what = {"vector": v_LD, "type": known.get("vector_type", "mean"), "role": direction.concept}
      write_torch_file(file, what)
    elif chosen == "axis":
      counts = {key: known[key] for key in _COUNTS if key in known}
      extra = {"metadata": dict(known["metadata"])} if known.get("metadata") else {}
      write_torch_file(
        file, {"axis": v_LD, **(extra or ({} if counts else {"metadata": {}})), **counts}
      )
    else:
      write_torch_file(file, v_LD)

  return write_each(directions, path, ".pt", write_one)


@dataclasses.dataclass(frozen=True)
class Capping:
  """Caps of projections, as a `capping_config.pt` has them.

  Attributes:
    vectors: (block, vector [D]) by name.
    experiments: [(name of a vector, cap)] by name of an experiment; caps are in the units of h.
  """

  vectors: Mapping[str, tuple[int, np.ndarray]]
  experiments: Mapping[str, Sequence[tuple[str, float]]]

  def __post_init__(self) -> None:
    for name, caps in self.experiments.items():
      unknown = [vector for vector, _ in caps if vector not in self.vectors]
      if unknown:
        raise ValueError(f"experiment {name!r} caps vectors that are not there: {unknown[:8]}.")

  def edits(self, experiment: str, num_blocks: int, *, tokens: str | Window = "all") -> list[Edit]:
    """Return the edits of an experiment.

    Args:
      experiment: its name.
      num_blocks: L of the model.
      tokens: where to cap; assistant-axis caps at all tokens.

    Raises:
      ValueError: no experiment of that name, or a vector beyond the last block.
    """
    if experiment not in self.experiments:
      raise ValueError(f"no experiment {experiment!r}; there are {list(self.experiments)[:16]}.")
    edits = []
    for name, bound in self.experiments[experiment]:
      block, v_D = self.vectors[name]
      if block >= num_blocks:
        raise ValueError(f"vector {name!r} is of block {block}; the model has {num_blocks}.")
      v_SLD = np.zeros((1, num_blocks, len(v_D)), np.float32)
      v_SLD[0, block] = v_D
      direction = Direction(v_SLD, name)
      edits.append(cap(direction, bound, unit="unit", blocks=block, tokens=tokens))
    return edits


def read_capping(path: str | Path) -> Capping:
  """Read a `capping_config.pt`.

  Raises:
    ValueError: it is none, or names vectors that it does not have.
  """
  found = read_torch_file(path)
  try:
    vectors = {
      str(name): (int(entry["layer"]), np.asarray(entry["vector"]).astype(np.float32))
      for name, entry in found["vectors"].items()
    }
    experiments = {
      str(entry["id"]): [(str(x["vector"]), float(x["cap"])) for x in entry["interventions"]]
      for entry in found["experiments"]
    }
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f"{path} is no capping config: it should have 'vectors' with 'layer' and 'vector', and "
      f"'experiments' with 'id' and 'interventions' ({error!r})."
    ) from error
  return Capping(vectors, experiments)


def write_capping(capping: Capping, path: str | Path) -> Path:
  """Write a `capping_config.pt`."""
  return write_torch_file(
    path,
    {
      "vectors": {
        name: {"layer": block, "vector": np.asarray(v_D, np.float32)}
        for name, (block, v_D) in capping.vectors.items()
      },
      "experiments": [
        {"id": name, "interventions": [{"vector": v, "cap": float(c)} for v, c in caps]}
        for name, caps in capping.experiments.items()
      ],
    },
  )
