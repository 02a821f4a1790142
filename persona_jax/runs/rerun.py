"""Draws one row of a run again, and says whether it is the same.

    python -m persona_jax.runs.rerun --run DIR --row ID [--tile]

DIR is a run's directory, or one above several of them (a study's). The model, prompt, condition,
edits and noise are those that the run keeps. A row is the same if all its tokens are, and its text.
It is drawn by itself, while it was drawn in a batch: rounding may then choose another of two tokens
that are all but equally good, and what follows differs. So of rows that differ the first such token
is shown, with the log-probabilities of both now, and the margin between them with the sampling
noise, which is what decoding compares. --tile draws all rows that were one batch with it, as the
run did, which on the same kind of device gives the same bits. Ends with 0 for a row that is the
same, 1 for one that is not, 2 for what cannot be drawn again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from persona_jax.engine.gates import settle
from persona_jax.engine.generate import run_tiles
from persona_jax.engine.grid import Grid
from persona_jax.engine.load import load
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.engine.noise import CHUNK, Noise, arrivals, later
from persona_jax.engine.plan import grid_rows, grid_settings
from persona_jax.engine.rows import Row, key_words
from persona_jax.personas.chat import Prompt, Raw
from persona_jax.personas.template import PLAIN_TEMPLATE
from persona_jax.runs.kept_edits import read_condition
from persona_jax.runs.run import Run
from persona_jax.runs.versions import describe_model, versions

# What another shape of batch may move a log-probability by, in nats, at most: 1e-5 in float32.
_ROUNDING = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


@dataclasses.dataclass(frozen=True)
class Rerun:
  """A row drawn again.

  Attributes:
    row_id: of the row.
    directory: of the run that holds it.
    is_same: whether all its tokens are the same, and its text.
    text: that was drawn now.
    expected: that the run holds.
    differs_at: number of the first token that differs, None where none does.
    logprob_now, logprob_then: log-probability, now, of the token drawn now and of the run's there;
      None where none differs, or one of the answers ended there.
    versions: what differs in the versions of the program, "name: there, now"; empty if nothing.
    margin: by how much the token drawn now beats the run's, in nats: of log-probability over the
      temperature, with the sampling noise of each; None as the log-probabilities.
    rounding: a margin that another shape of batch may make, in the model's dtype.
    rows: how many rows were drawn together.
  """

  row_id: str
  directory: Path
  is_same: bool
  text: str
  expected: str
  differs_at: int | None
  logprob_now: float | None
  logprob_then: float | None
  versions: tuple[str, ...]
  margin: float | None = None
  rounding: float = _ROUNDING["float32"]
  rows: int = 1

  @property
  def is_near_tie(self) -> bool:
    """Whether the tokens that differ are so close that rounding may have chosen."""
    return self.margin is not None and abs(self.margin) <= self.rounding

  def __str__(self) -> str:
    together = f", drawn in its tile of {self.rows} rows" if self.rows > 1 else ""
    where = f"row {self.row_id} of {self.directory}{together}"
    other = f" (other versions: {'; '.join(self.versions)})" if self.versions else ""
    if self.is_same:
      return f"{where}: the same{other}"
    if self.differs_at is None:
      lines = [f"{where}: the same tokens, but NOT the same text{other}"]
    else:
      lines = [f"{where}: NOT the same, from token {self.differs_at} on{other}"]
    if self.margin is not None:
      why = "which rounding may decide" if self.is_near_tie else "which is no rounding"
      lines.append(
        f"  there, log-prob {self.logprob_now:.4f} of the token drawn now and "
        f"{self.logprob_then:.4f} of the run's; by the margin of {self.margin:.2g} nats it was "
        f"chosen, {why}"
      )
    return "\n".join([*lines, f"  then: {self.expected!r}", f"  now:  {self.text!r}"])


def rerun(
  directory: str | Path, row_id: str, *, model: Model | None = None, whole_tile: bool = False
) -> Rerun:
  """Draw a row again.

  Args:
    directory: of the run, or one above it.
    row_id: of the row.
    model: that the run was of, if it is loaded; else it is loaded as the run says.
    whole_tile: whether to draw all rows that were one batch with it.

  Raises:
    FileNotFoundError: there is no run, no model, or what the row was made of is not kept.
    ValueError: no run there has the row, the model is another one, or the row cannot be drawn
      again.
  """
  run, tile = _find(Path(directory), row_id)
  model = model or _load(run)
  _check_model(model, run)
  wanted = tile if whole_tile else tile[tile["row_id"] == row_id]
  grid = _grid(run, wanted)
  cells, rows = grid_rows(model, grid, decide_gates=False)
  number = {cell.row_id: n for n, cell in enumerate(cells)}
  lost = [name for name in wanted["row_id"] if name not in number]
  if lost:
    raise ValueError(
      f"what {run.directory} keeps gives another row than {lost[0]}: its prompt, condition or "
      "settings were changed."
    )
  made = settle(model, [rows[number[name]] for name in wanted["row_id"]])
  order = list(range(len(made)))
  ((_, generations),) = run_tiles(model, made, grid_settings(model, grid), [order])
  at = wanted["row_id"].tolist().index(row_id)
  ours, row = list(generations[at].token_ids), wanted.iloc[at]
  theirs = [int(i) for i in row["token_ids"]]
  differs_at = _parted(ours, theirs)
  now, then, margin = None, None, None
  if differs_at is not None and differs_at < min(len(ours), len(theirs)):
    pair = (ours[differs_at], theirs[differs_at])
    (now, then), noise_2 = _logprobs(model, made[at], ours[:differs_at], pair), np.ones(2)
    if grid.temperature > 0:
      noise_2 = _exponentials(made[at].seed, differs_at, pair, model.arch.vocab_size)
    margin = (now - then) / (grid.temperature or 1.0) - float(np.log(noise_2[0] / noise_2[1]))
  text = generations[at].text
  return Rerun(
    row_id,
    run.directory,
    differs_at is None and text == row["text"],
    text,
    row["text"],
    differs_at,
    now,
    then,
    _versions(run),
    margin,
    _ROUNDING[model.dtype],
    len(made),
  )


def _find(directory: Path, row_id: str) -> tuple[Run, pd.DataFrame]:
  """Return the run below a directory that has a row, and the rows of the row's tile."""
  places = sorted(path.parent for path in directory.rglob("grid.json"))
  if not places:
    raise FileNotFoundError(f"{directory} holds no run: there is no grid.json in it or below.")
  for place in places:
    for path in sorted((place / "results").glob("tile-*.parquet")):
      if row_id in set(pd.read_parquet(path, columns=["row_id"])["row_id"]):
        return Run.open(place), pd.read_parquet(path)
  raise ValueError(f"no run in {directory} has the row {row_id!r}: looked in {len(places)}.")


def _grid(run: Run, rows: pd.DataFrame) -> Grid:
  """Return the part of a run's grid that rows are of."""
  there, ids = run.description["grid"], set(rows["prompt_id"])
  settings = {name: there[name] for name in ("max_new_tokens", "temperature", "seed", "paired")}
  return Grid(
    {key: _prompt(prompt) for key, prompt in there["prompts"] if key in ids},
    [read_condition(run.directory, name) for name in rows["condition"].unique()],
    samples=there["samples"],
    **settings,
  )


def _load(run: Run) -> Model:
  said = run.description["model"]
  chat = run.description.get("chat", {})
  return load(
    said["name"] if _is_named(run) else run.description["model_source"],
    dtype=said["dtype"],
    resid_dtype=said["resid_dtype"],
    system_default=said["system_default"],
    # By its name, for "plain" says how answers end, too.
    chat_template="plain" if chat.get("template") == PLAIN_TEMPLATE else chat.get("template"),
    template_options=dict(chat.get("options", ())),
  )


def _is_named(run: Run) -> bool:
  """Whether the model is of the registry or the hub, and not a path."""
  return not Path(run.description["model_source"]).exists()


def _check_model(model: Model, run: Run) -> None:
  mine, there = describe_model(model), run.description["model"]
  differing = [key for key in there if mine.get(key) != there[key] and key != "name"]
  if differing:
    raise ValueError(f"{model!r} is not the run's model: it differs in {', '.join(differing)}.")


def _prompt(plain: Any) -> Prompt:
  return Raw(plain["raw"]) if isinstance(plain, dict) else plain


def _parted(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
  """Return the number of the first token in which two answers differ."""
  for n, (a, b) in enumerate(zip(ours, theirs, strict=False)):
    if a != b:
      return n
  return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _logprobs(
  model: Model, row: Row, said: Sequence[int], pair: tuple[int, int]
) -> tuple[float, float]:
  """Return log-probs, now, of two tokens behind the beginning of an answer."""
  roles = (*row.roles, *row.answer_roles(said, model.think_ids))
  longer = dataclasses.replace(row, ids=(*row.ids, *said), roles=roles)
  (logit_V,) = next_logits(model, [longer], check_delivery=False).astype(np.float64)
  logprob_V = logit_V - np.logaddexp.reduce(logit_V)
  return float(logprob_V[pair[0]]), float(logprob_V[pair[1]])


def _exponentials(seed: int, step: int, ids: Sequence[int], vocab: int) -> np.ndarray:
  """Return the sampling noise of tokens at a step, float64 [len(ids)]; see `engine.noise`."""
  noise = Noise(jnp.asarray(key_words([seed])), jnp.asarray([step], jnp.uint32))
  first_C, second_C, place1_C, place2_C = (
    np.asarray(x)[0] for x in arrivals(noise, -(-vocab // CHUNK))
  )
  found = []
  for token, rest in zip(ids, np.asarray(later(noise, jnp.asarray([ids])))[0], strict=True):
    chunk, place = divmod(token, CHUNK)
    if place == place1_C[chunk]:
      found.append(first_C[chunk])
    else:
      found.append(second_C[chunk] + (0 if place == place2_C[chunk] else rest))
  return np.asarray(found, np.float64)


def _versions(run: Run) -> tuple[str, ...]:
  there, now = run.description["versions"], versions()
  return tuple(f"{n}: {there.get(n)}, {now[n]}" for n in now if there.get(n) != now[n])


def main(argv: Sequence[str] | None = None) -> int:
  """Draw one row again and return an exit status."""
  parser = argparse.ArgumentParser(prog="python -m persona_jax.runs.rerun", description=__doc__)
  parser.add_argument("--run", required=True, help="directory of a run, or of a study")
  parser.add_argument("--row", required=True, help="row_id of its table")
  parser.add_argument("--tile", action="store_true", help="draw all rows of its batch")
  args = parser.parse_args(argv)
  try:
    found = rerun(args.run, args.row, whole_tile=args.tile)
  except (ValueError, OSError) as error:
    print(f"{error}", file=sys.stderr)
    return 2
  print(found)
  return 0 if found.is_same else 1


if __name__ == "__main__":
  sys.exit(main())
