"""Draws one row of a run again, and says whether it is the same.

    python -m persona_jax.runs.rerun --run DIR --row ID

DIR is a run's directory, or one above several of them (a study's). The model, prompt, condition,
edits and noise are those that the run keeps. A row is the same if all its tokens are. It is drawn
by itself, while it was drawn in a batch: rounding may then choose another of two tokens that are
all but equally likely, and what follows differs. So of rows that differ the first such token is
shown, with the log-probabilities of both now. Ends with 0 for a row that is the same, 1 for one
that is not, 2 for what cannot be drawn again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.engine.generate import run_tiles
from persona_jax.engine.grid import Grid
from persona_jax.engine.load import load
from persona_jax.engine.model import Model
from persona_jax.engine.next_tokens import next_logits
from persona_jax.engine.plan import grid_rows, grid_settings
from persona_jax.engine.rows import Row
from persona_jax.personas.chat import Prompt, Raw
from persona_jax.personas.template import PLAIN_TEMPLATE
from persona_jax.runs.kept_edits import read_condition
from persona_jax.runs.run import Run
from persona_jax.runs.versions import describe_model, versions


@dataclasses.dataclass(frozen=True)
class Rerun:
  """A row drawn again.

  Attributes:
    row_id: of the row.
    directory: of the run that holds it.
    is_same: whether all its tokens are the same.
    text: that was drawn now.
    expected: that the run holds.
    differs_at: number of the first token that differs, None where none does.
    logprob_now, logprob_then: log-probability, now, of the token drawn now and of the run's there;
      None where none differs, or one of the answers ended there.
    versions: what differs in the versions of the program, "name: there, now"; empty if nothing.
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

  def __str__(self) -> str:
    where = f"row {self.row_id} of {self.directory}"
    other = f" (other versions: {'; '.join(self.versions)})" if self.versions else ""
    if self.is_same:
      return f"{where}: the same{other}"
    lines = [f"{where}: NOT the same, from token {self.differs_at} on{other}"]
    if self.logprob_now is not None and self.logprob_then is not None:
      lines.append(
        f"  there, log-prob {self.logprob_now:.4f} of the token drawn now and "
        f"{self.logprob_then:.4f} of the run's: {self.logprob_now - self.logprob_then:.2g} apart"
      )
    return "\n".join([*lines, f"  then: {self.expected!r}", f"  now:  {self.text!r}"])


def rerun(directory: str | Path, row_id: str, *, model: Model | None = None) -> Rerun:
  """Draw a row again.

  Args:
    directory: of the run, or one above it.
    row_id: of the row.
    model: that the run was of, if it is loaded; else it is loaded as the run says.

  Raises:
    FileNotFoundError: there is no run, no model, or what the row was made of is not kept.
    ValueError: no run there has the row, the model is another one, or the row cannot be drawn
      again.
  """
  run, row = _find(Path(directory), row_id)
  model = model or _load(run)
  _check_model(model, run)
  condition = read_condition(run.directory, row["condition"])
  there = run.description["grid"]
  prompts = {key: _prompt(prompt) for key, prompt in there["prompts"]}
  settings = {name: there[name] for name in ("max_new_tokens", "temperature", "seed", "paired")}
  grid = Grid(
    {row["prompt_id"]: prompts[row["prompt_id"]]},
    [condition],
    samples=there["samples"],
    **settings,
  )
  cells, rows = grid_rows(model, grid)
  made = next((r for c, r in zip(cells, rows, strict=True) if c.row_id == row_id), None)
  if made is None:
    raise ValueError(
      f"what {run.directory} keeps gives another row than {row_id}: its prompt, condition or "
      "settings were changed."
    )
  ((_, (generation,)),) = run_tiles(model, [made], grid_settings(model, grid), [[0]])
  ours, theirs = list(generation.token_ids), [int(i) for i in row["token_ids"]]
  at = _parted(ours, theirs)
  now, then = (None, None) if at is None else _logprobs(model, made, ours, theirs, at)
  return Rerun(
    row_id, run.directory, at is None, generation.text, row["text"], at, now, then, _versions(run)
  )


def _find(directory: Path, row_id: str) -> tuple[Run, dict[str, Any]]:
  """Return the run below a directory that has a row, and the row."""
  places = sorted(path.parent for path in directory.rglob("grid.json"))
  if not places:
    raise FileNotFoundError(f"{directory} holds no run: there is no grid.json in it or below.")
  for place in places:
    run = Run.open(place)
    table = run.table()
    mine = table[table["row_id"] == row_id]
    if len(mine):
      return run, mine.iloc[0].to_dict()
  raise ValueError(f"no run in {directory} has the row {row_id!r}: looked in {len(places)}.")


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
  model: Model, row: Row, ours: Sequence[int], theirs: Sequence[int], at: int
) -> tuple[float | None, float | None]:
  """Return log-probs, now, of both tokens where two answers part; None where one has ended."""
  if at >= min(len(ours), len(theirs)):
    return None, None
  said = tuple(ours[:at])
  roles = (*row.roles, *row.answer_roles(said, model.think_ids))
  longer = dataclasses.replace(row, ids=(*row.ids, *said), roles=roles)
  (logit_V,) = next_logits(model, [longer], check_delivery=False).astype(np.float64)
  logprob_V = logit_V - np.logaddexp.reduce(logit_V)
  return float(logprob_V[ours[at]]), float(logprob_V[theirs[at]])


def _versions(run: Run) -> tuple[str, ...]:
  there, now = run.description["versions"], versions()
  return tuple(f"{n}: {there.get(n)}, {now[n]}" for n in now if there.get(n) != now[n])


def main(argv: Sequence[str] | None = None) -> int:
  """Draw one row again and return an exit status."""
  parser = argparse.ArgumentParser(prog="python -m persona_jax.runs.rerun", description=__doc__)
  parser.add_argument("--run", required=True, help="directory of a run, or of a study")
  parser.add_argument("--row", required=True, help="row_id of its table")
  args = parser.parse_args(argv)
  try:
    found = rerun(args.run, args.row)
  except (ValueError, OSError) as error:
    print(f"{error}", file=sys.stderr)
    return 2
  print(found)
  return 0 if found.is_same else 1


if __name__ == "__main__":
  sys.exit(main())
