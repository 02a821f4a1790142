"""`pj.run`: a grid becomes a run directory, tile by tile; stopped and started again, it goes on.

DIR/grid.json            what was asked for: prompts, conditions, settings, model, hashes, versions;
                         and how many rows a tile has at most
DIR/conditions.json, DIR/edits/   what each condition is made of, for `runs.rerun`
DIR/results/tile-*.parquet   rows of one tile each, written whole or not at all
DIR/scores/NAME.parquet  one file a scorer, keyed by row_id
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.edits.compile import compile_edits
from persona_jax.engine.checks import naming
from persona_jax.engine.disk_cache import keep_on_disk
from persona_jax.engine.encode import check_weights
from persona_jax.engine.gates import settle, taken_as_on
from persona_jax.engine.generate import run_tiles
from persona_jax.engine.grid import Cell, Grid
from persona_jax.engine.model import Model
from persona_jax.engine.plan import grid_rows, grid_settings
from persona_jax.engine.programs import PROGRAMS
from persona_jax.engine.rows import Row, plain_prompt
from persona_jax.engine.tile_plan import tile_rows
from persona_jax.engine.tiles import tiles
from persona_jax.runs.kept_edits import keep_conditions
from persona_jax.runs.versions import check_versions, describe_model, versions
from persona_jax.scorers.base import Scorer

# Columns of the table. `seed` is the row's final noise seed, already derived from the grid's seed,
# the prompt and the sample: `make_row(encoded, edits, seed)` and `generate_tile` with the grid's
# settings draw the row again. It is not the `seed` of `model.generate`, which derives once more.
COLUMNS = (
  "row_id", "prompt_id", "condition", "method", "replicate", "sample", "seed", "prompt", "text",
  "token_ids", "finish_reason", "n_prompt_tokens", "n_tokens", "tokens_edited", "delivered_dose",
  "valid", "config_hash", "direction_hash", "model_hash",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
  """A run directory.

  Attributes:
    directory: where it is.
    description: the content of grid.json.
  """

  directory: Path
  description: dict[str, Any]

  def __repr__(self) -> str:
    return f"<Run of {self.num_rows} rows in {self.directory}>"

  @classmethod
  def open(cls, directory: str | Path) -> "Run":
    """Open a finished or unfinished run.

    Raises:
      FileNotFoundError: the directory holds no grid.json.
    """
    directory = Path(directory)
    path = directory / "grid.json"
    if not path.is_file():
      raise FileNotFoundError(f"{directory} is no run directory: it has no grid.json.")
    return cls(directory, json.loads(path.read_text()))

  @property
  def num_rows(self) -> int:
    """Rows that the grid asks for."""
    return int(self.description["num_rows"])

  @property
  def is_complete(self) -> bool:
    """Whether every row is there, each counted once."""
    return self._rows()["row_id"].nunique() == self.num_rows

  def table(self) -> pd.DataFrame:
    """Return one row per cell that is done, in grid order, with each scorer's columns at the end.

    The columns are `COLUMNS`, a row for each cell of the grid that is done. `n_prompt_tokens` and
    `n_tokens` count tokens of the prompt and of the answer; `tokens_edited`, `delivered_dose` and
    `valid` are as in `pj.Generation`; `replicate` is a nullable integer, `token_ids` holds arrays,
    and `seed` is the row's final noise seed, see `Grid`.
    """
    table = self._rows()
    for scores in _score_files(self.directory):
      table = table.merge(pd.read_parquet(scores), on="row_id", how="left", validate="one_to_one")
    return table

  def _rows(self) -> pd.DataFrame:
    """Return the table without scores."""
    parts = sorted((self.directory / "results").glob("tile-*.parquet"))
    if not parts:
      return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    return table.sort_values("cell", kind="stable").drop(columns="cell").reset_index(drop=True)

  def score(self, scorers: Sequence[Scorer]) -> None:
    """Add (or replace) the columns of scorers, over all rows that are done.

    A scorer sees the columns of `COLUMNS` alone, whatever was scored before, so its measurement
    does not depend on the order of scoring.

    Raises:
      ValueError: a scorer's name is no file name or occurs twice, or a column is one of the table
        or of another scorer, given here or stored.
    """
    _check_scorers(scorers, self.directory)
    table = self._rows()
    for scorer in scorers:
      columns = scorer.score(table.copy())[list(scorer.columns)]
      columns.insert(0, "row_id", table["row_id"])
      write_parquet(columns, self.directory / "scores" / f"{scorer.name}.parquet")


def _score_files(directory: Path) -> list[Path]:
  return sorted((directory / "scores").glob("*.parquet"))


def _check_scorers(scorers: Sequence[Scorer], directory: Path) -> None:
  """Check that scorers fit in one table, beside each other and beside those stored there.

  Raises:
    ValueError: see `Run.score`.
  """
  names = [scorer.name for scorer in scorers]
  for name in names:
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
      raise ValueError(f"scorer name {name!r} is no file name; scores are kept under it.")
    if names.count(name) > 1:
      raise ValueError(f"scorer name {name!r} occurs twice; scores are kept under it.")
  owner = dict.fromkeys(COLUMNS, "of the table itself")
  for path in _score_files(directory):
    if path.stem not in names:
      columns = pd.read_parquet(path).columns.drop("row_id")
      owner.update(dict.fromkeys(columns, f"of the stored scorer {path.stem!r}"))
  for scorer in scorers:
    for column in scorer.columns:
      if column in owner:
        raise ValueError(
          f"scorer {scorer.name!r} has the column {column!r}, which is {owner[column]}; "
          "columns of a table must differ."
        )
      owner[column] = f"of the scorer {scorer.name!r}"


def partial_of(path: Path) -> Path:
  """Return where a file is written before it is moved to `path`; another one in each process."""
  return path.with_name(f"{path.name}.{os.getpid()}.partial")


def write_parquet(table: pd.DataFrame, path: Path) -> None:
  """Write a table beside its place and move it there, so that a crash leaves no half file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = partial_of(path)
  table.to_parquet(partial, index=False)
  partial.replace(path)


def write_json(value: Any, path: Path) -> None:
  """Write JSON beside its place and move it there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = partial_of(path)
  partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=True))
  partial.replace(path)


def _start(model: Model, grid: Grid, directory: Path) -> Run:
  """Return the run of a grid; if it was begun, check that it is of the same grid and model.

  Nothing is written.
  """
  what = {"model": describe_model(model), "grid": grid.describe()}
  description = {
    "hash": content_hash(what),
    "num_rows": grid.num_rows,
    "model_source": model.identity.source,
    "chat": {"template": model.chat.template, "options": [list(o) for o in model.chat.options]},
    "versions": versions(),
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    **what,
  }
  if (directory / "grid.json").exists():
    run = Run.open(directory)
    if run.description["hash"] != description["hash"]:
      differing = [
        key
        for part in ("model", "grid")
        for key in what[part]
        if content_hash(run.description[part].get(key)) != content_hash(what[part][key])
      ]
      raise ValueError(
        f"{directory} holds a run of another grid or model (it differs in: "
        f"{', '.join(differing)}); choose another directory, or remove that one."
      )
    if not run.is_complete:
      check_versions(run.description["versions"], directory)
    return run
  return Run(directory, description)


def _check_edits(model: Model, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
  """Check that the edits of each condition fit the model.

  Raises:
    ValueError: some do not; the message names the condition.
  """
  taken, _ = taken_as_on(rows)
  edits = {cell.condition.name: row.edits for cell, row in zip(cells, taken, strict=True)}
  for name, its_edits in edits.items():
    with naming(f"condition {name!r}"):
      compile_edits(model, [its_edits])


def _check_tiles(directory: Path, planned: Mapping[Path, list[str]]) -> None:
  """Check that each tile file there holds exactly the rows planned for it.

  Raises:
    ValueError: one holds other rows, or is not planned.
  """
  for file in sorted((directory / "results").glob("tile-*.parquet")):
    found = pd.read_parquet(file, columns=["row_id"])["row_id"].tolist()
    if found != planned.get(file):
      raise ValueError(
        f"{file} does not hold the rows planned for it: {directory} was written by another version "
        "of persona_jax, which cut or named rows differently; remove it, or choose another one."
      )


def run(
  model: Model,
  grid: Grid,
  out: str | Path,
  *,
  scorers: Sequence[Scorer] = (),
  progress: bool = True,
) -> Run:
  """Generate every row of a grid into a directory; rows that are there already are kept.

  Tiles are cut from the whole grid, whatever is done already, and the size that fitted the device
  on which the run began is stored with it. So a run that was stopped and goes on, there or where
  there is more memory or less, computes each row in the same batch, and on the same kind of device
  to the same bits, as one that was not. (A tile that is now too large is run in halves, with a
  warning; rows then agree to rounding.) A tile is written when it is finished: an interruption
  costs at most one tile, of 256 rows at most on a CPU and 512 elsewhere (`engine.rows.most_rows`).

  Args:
    model: the model.
    grid: what to run.
    out: directory; made if absent.
    scorers: each adds its columns to the table.
    progress: show rows, tokens per second and time left on stderr.

  Returns:
    The `Run`; `run.table()` is the table.

  Raises:
    ValueError: the directory holds a run of another grid or model, or an unfinished one of another
      version of the code or of JAX; a prompt or an edit does not fit the model, or a gate cannot be
      decided; or scorers clash, see `Run.score`.
    MemoryError: a row by itself does not fit; the message names it and what it needs. A tile of
      several rows is run in halves, with a warning.
  """
  check_weights(model)
  _check_scorers(scorers, Path(out))
  cells, rows = grid_rows(model, grid, decide_gates=False)
  this = _start(model, grid, Path(out))
  _check_edits(model, cells, rows)
  keep_on_disk()
  names = [cell.name for cell in cells]
  rows = settle(model, rows, names=names)
  settings = grid_settings(model, grid)
  shared = {"model": describe_model(model), "settings": grid.settings()}
  config_hash = {
    c.name: content_hash({**shared, "condition": c.describe()}) for c in grid.conditions
  }
  most = this.description.get("tile_rows") or tile_rows(
    model, rows, settings, table=None if model.mesh else PROGRAMS
  )
  plan = tiles(rows, most)
  files = [this.directory / "results" / f"tile-{i:05d}.parquet" for i in range(len(plan))]
  planned = [[cells[n].row_id for n in tile] for tile in plan]
  _check_tiles(this.directory, dict(zip(files, planned, strict=True)))
  if "tile_rows" not in this.description:  # all that can be refused has been: the run begins
    this.description["tile_rows"] = most
    keep_conditions(grid.conditions, this.directory)
    write_json(this.description, this.directory / "grid.json")
  todo = [i for i, file in enumerate(files) if not file.exists()]
  bar = tqdm.tqdm(
    total=len(rows),
    initial=sum(len(plan[i]) for i in range(len(plan)) if i not in todo),
    unit="row",
    disable=not progress,
    desc="generate",
  )
  tokens, start = 0, time.monotonic()
  with bar:
    done = run_tiles(model, rows, settings, [plan[i] for i in todo], names=names)
    for i, (_, generations) in zip(todo, done, strict=True):
      records = [
        {
          "cell": n,
          **_identify(cells[n], grid),
          "text": generation.text,
          "token_ids": list(generation.token_ids),
          "finish_reason": generation.finish_reason,
          "n_prompt_tokens": rows[n].prompt_length,
          "n_tokens": len(generation.token_ids),
          "tokens_edited": generation.tokens_edited,
          "delivered_dose": generation.delivered_dose,
          "valid": generation.valid,
          "config_hash": config_hash[cells[n].condition.name],
          "direction_hash": cells[n].condition.direction_hash,
          "model_hash": model.identity.sha256,
        }
        for n, generation in zip(plan[i], generations, strict=True)
      ]
      table = pd.DataFrame(records, columns=["cell", *COLUMNS])
      write_parquet(table.astype({"replicate": "Int64"}), files[i])
      tokens += sum(len(g.token_ids) for g in generations)
      bar.set_postfix_str(f"{tokens / (time.monotonic() - start):.0f} tokens/s", refresh=False)
      bar.update(len(plan[i]))
  this.score(scorers)
  return this


def _identify(cell: Cell, grid: Grid) -> dict[str, Any]:
  assert isinstance(grid.prompts, dict)
  prompt = grid.prompts[cell.prompt_id]
  return {
    "row_id": cell.row_id,
    "prompt_id": cell.prompt_id,
    "condition": cell.condition.name,
    "method": cell.condition.method,
    "replicate": cell.condition.replicate,
    "sample": cell.sample,
    "seed": cell.seed,
    "prompt": prompt
    if isinstance(prompt, str)
    else json.dumps(plain_prompt(prompt), ensure_ascii=False),
  }
