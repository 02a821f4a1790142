"""The work as plain data, for us and for every peer: token ids, vectors, block and window.

Needs NumPy alone, so that it can be imported in each peer's environment. `work.py` makes the files
that `read` reads.

A row is one prompt under one condition. Rows are condition after condition, the prompts of each in
one order, and every row has its vector; the rows of a condition have the same one, because that is
all that tools which steer one condition at a time can do.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

Window = Literal["all", "generated"]


@dataclasses.dataclass(frozen=True)
class Grid:
  """Prompts x conditions, greedily continued.

  Attributes:
    name: "all_tokens" or "20_generated".
    texts: of the prompts, before the chat template.
    prompts: token ids of each, template included.
    vectors_CD: float32 [C, D], what each condition adds to the residual stream.
    block: the vector is added to this decoder block's output, counted from 0.
    window: "all" adds it at every token of prompt and answer, "generated" only where a generated
      token is read: the first one is chosen before any edit.
    new_tokens: how many a row gets, no fewer and no more, whatever they are.
  """

  name: str
  texts: tuple[str, ...]
  prompts: tuple[tuple[int, ...], ...]
  vectors_CD: np.ndarray
  block: int
  window: Window
  new_tokens: int

  @property
  def num_conditions(self) -> int:
    """Conditions."""
    return len(self.vectors_CD)

  @property
  def rows(self) -> list[tuple[int, int]]:
    """(prompt, condition) of each row."""
    prompts = range(len(self.prompts))
    return [(prompt, condition) for condition in range(self.num_conditions) for prompt in prompts]

  @property
  def vectors_RD(self) -> np.ndarray:
    """float32 [R, D], the vector of each row."""
    return np.repeat(self.vectors_CD, len(self.prompts), axis=0)

  def part(self, prompts: int, conditions: int, new_tokens: int) -> "Grid":
    """Return the same work for the first prompts and conditions."""
    return dataclasses.replace(
      self,
      texts=self.texts[:prompts],
      prompts=self.prompts[:prompts],
      vectors_CD=self.vectors_CD[:conditions],
      new_tokens=new_tokens,
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """What `work.py` has written.

  Attributes:
    directory: holds `hf/` (config.json, model.safetensors) and the files `model-….gguf`.
    grids: by name.
    identity: of the model, for the report.
  """

  directory: Path
  grids: dict[str, Grid]
  identity: dict[str, Any]


def write(directory: Path, grids: list[Grid], identity: dict[str, Any]) -> None:
  """Write `work.json` and `vectors.npz`; `work.json` last, as the sign that all is there."""
  np.savez(directory / "vectors.npz", **{grid.name: grid.vectors_CD for grid in grids})
  plain = []
  for grid in grids:
    fields = {f.name: getattr(grid, f.name) for f in dataclasses.fields(grid)}
    del fields["vectors_CD"]
    plain.append(fields)
  content = json.dumps({"identity": identity, "grids": plain}, indent=1)
  (directory / "work.json").write_text(content)


def read(directory: Path, *, quick: bool = False) -> Work:
  """Read the work; `quick` cuts each grid to 2 prompts x 2 conditions x 8 tokens."""
  content = json.loads((directory / "work.json").read_text())
  grids = {}
  with np.load(directory / "vectors.npz") as vectors:
    for fields in content["grids"]:
      name = fields["name"]
      fields["texts"] = tuple(fields["texts"])
      fields["prompts"] = tuple(tuple(ids) for ids in fields["prompts"])
      grid = Grid(**fields, vectors_CD=vectors[name])
      grids[name] = grid.part(2, 2, 8) if quick else grid
  return Work(directory, grids, content["identity"])
