"""Writes a run for other tools: Inspect AI's viewer, and Hugging Face datasets.

    python -m persona_jax.runs.export --run DIR --to inspect --out logs
    python -m persona_jax.runs.export --run DIR --to datasets --out data

They are opened by `inspect view --log-dir logs` and by `datasets.load_dataset("data", name)`.

DIR is a run's directory, or one above several of them (a study's): each run becomes one log, or one
configuration of the data set. What is written holds all that models answered, harmful or not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from persona_jax.engine.grid import Condition
from persona_jax.personas.chat import Prompt, Raw, as_messages
from persona_jax.runs.run import Run, write_parquet
from persona_jax.scorers.base import is_missing

_OF_ROW = (
  "condition", "method", "replicate", "seed", "finish_reason", "n_prompt_tokens", "n_tokens",
  "tokens_edited", "delivered_dose", "valid", "config_hash", "direction_hash", "model_hash",
)  # fmt: skip
_STOPS = {"stop": "stop", "length": "max_tokens"}


def runs_below(directory: str | Path) -> dict[str, Run]:
  """Return the runs in a directory and below it, by a name made of where they are.

  Raises:
    FileNotFoundError: there is none.
  """
  directory = Path(directory)
  places = sorted(path.parent for path in directory.rglob("grid.json"))
  if not places:
    raise FileNotFoundError(f"{directory} holds no run: there is no grid.json in it or below.")
  names = ["-".join(p.relative_to(directory).parts) or directory.resolve().name for p in places]
  return dict(zip(names, map(Run.open, places), strict=True))


def to_inspect(directory: str | Path, out: str | Path) -> list[Path]:
  """Write each run as a log of Inspect AI; a sample a row, a score a scorer.

  A sample's input is the chat that the model saw, with the condition's system message or prefix;
  what steered it is in the sample's metadata, and in the log's (all conditions, by name).

  Raises:
    ImportError: the package inspect-ai is not installed.
    FileNotFoundError: there is no run.
  """
  try:
    from inspect_ai.log import (
      EvalConfig,
      EvalDataset,
      EvalLog,
      EvalResults,
      EvalSpec,
      write_eval_log,
    )
    from inspect_ai.model import GenerateConfig
  except ImportError as error:
    raise ImportError(
      "logs of Inspect AI need the package inspect-ai: pip install 'persona_jax[inspect]'"
    ) from error
  written = []
  for name, run in runs_below(directory).items():
    said, grid = run.description, run.description["grid"]
    samples = _samples(run)
    spec = EvalSpec(
      created=said["time"],
      task=f"persona_jax {name}",
      dataset=EvalDataset(name=name, samples=len(grid["prompts"])),
      model=f"persona_jax/{said['model']['name']}",
      model_args={key: value for key, value in said["model"].items() if key != "name"},
      model_generate_config=GenerateConfig(
        max_tokens=grid["max_new_tokens"], temperature=grid["temperature"], seed=grid["seed"]
      ),
      config=EvalConfig(epochs=grid["samples"]),
      packages={key: value for key, value in said["versions"].items() if key != "code"},
      metadata={
        "hash": said["hash"],
        "code": said["versions"]["code"],
        "settings": {k: v for k, v in grid.items() if k not in ("prompts", "conditions")},
        "conditions": {one["name"]: one for one in grid["conditions"]},
      },
    )
    status = "success" if run.is_complete else "started"
    path = Path(out) / f"{name}.eval"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = EvalResults(
      total_samples=run.num_rows, completed_samples=len(samples), scores=_means(run)
    )
    write_eval_log(EvalLog(status=status, eval=spec, results=results, samples=samples), path)
    written.append(path)
  return written


def to_datasets(directory: str | Path, out: str | Path) -> Path:
  """Write the runs as a data set that `datasets.load_dataset` opens, a configuration a run.

  Raises:
    FileNotFoundError: there is no run.
  """
  out, found = Path(out), runs_below(directory)
  lines = []
  for name, run in found.items():
    write_parquet(run.table(), out / "data" / f"{name}.parquet")
    said = run.description
    (out / "grids").mkdir(parents=True, exist_ok=True)
    (out / "grids" / f"{name}.json").write_text(json.dumps(said, indent=1, ensure_ascii=False))
    lines.append(f"| {name} | {run.num_rows:,} | {said['model']['name']} | `{said['hash'][:12]}` |")
  configs = "".join(f"- config_name: {name}\n  data_files: data/{name}.parquet\n" for name in found)
  card = (
    f"---\nlicense: other\ntags:\n- not-for-all-audiences\nconfigs:\n{configs}---\n\n"
    "# Rows of persona_jax\n\n"
    "Answers of a language model under personas by prompt and by steering, a row each. They hold "
    "what models said to harmful requests: look at the responsible-use note of persona_jax before "
    "sharing them. Prompts are those of their sources, with their licences.\n\n"
    "| configuration | rows | model | hash of the grid |\n| --- | --- | --- | --- |\n"
    + "\n".join(lines)
    + "\n\n`grids/` holds what each run asked for. Columns are those of `pj.Run.table()`, behind "
    "them the scorers'.\n"
  )
  (out / "README.md").write_text(card, encoding="utf-8")
  return out


def _scored(run: Run) -> dict[str, list[str]]:
  """Return the columns of each scorer."""
  return {
    path.stem: [c for c in pd.read_parquet(path).columns if c != "row_id"]
    for path in sorted((run.directory / "scores").glob("*.parquet"))
  }


def _means(run: Run) -> list[Any]:
  """Return the mean of each scorer's column of numbers or truth values, over rows that have one."""
  from inspect_ai.log import EvalMetric, EvalScore

  table, found = run.table(), []
  for scorer, columns in _scored(run).items():
    for column in columns:
      values = [value for value in map(_plain, table[column]) if value is not None]
      if values and all(isinstance(value, bool | int | float) for value in values):
        found.append(
          EvalScore(
            name=column,
            scorer=scorer,
            scored_samples=len(values),
            unscored_samples=len(table) - len(values),
            metrics={"mean": EvalMetric(name="mean", value=float(np.mean(values)))},
          )
        )
  return found


def _samples(run: Run) -> list[Any]:
  from inspect_ai.log import EvalSample
  from inspect_ai.model import ModelOutput
  from inspect_ai.scorer import Score

  table, grid = run.table(), run.description["grid"]
  prompts = {key: _prompt(plain) for key, plain in grid["prompts"]}
  conditions = {
    one["name"]: Condition(one["name"], system=one["system"], prefix=one["prefix"])
    for one in grid["conditions"]
  }
  by_scorer = _scored(run)
  name = run.description["model"]["name"]
  samples = []
  for row in table.to_dict("records"):
    chat = _messages(conditions[row["condition"]].apply(prompts[row["prompt_id"]]))
    output = ModelOutput.from_content(
      name, row["text"], stop_reason=_STOPS.get(row["finish_reason"], "unknown")
    )
    scores = {
      scorer: Score(value={column: _plain(row[column]) for column in columns})
      for scorer, columns in by_scorer.items()
    }
    samples.append(
      EvalSample(
        id=row["row_id"],
        epoch=int(row["sample"]) + 1,
        input=chat,
        target="",
        messages=[*chat, output.choices[0].message] if not isinstance(chat, str) else [],
        output=output,
        scores=scores,
        metadata={
          "prompt_id": row["prompt_id"],
          **{column: _plain(row[column]) for column in _OF_ROW},
        },
      )
    )
  return samples


def _prompt(plain: Any) -> Prompt:
  return Raw(plain["raw"]) if isinstance(plain, dict) else plain


def _messages(prompt: Prompt) -> Any:
  """Return a chat as Inspect's messages, a raw prompt as its text."""
  from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

  if isinstance(prompt, Raw):
    return prompt.text
  kinds = {
    "system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant
  }  # fmt: skip
  return [kinds[m["role"]](content=m["content"]) for m in as_messages(prompt)]


def _plain(value: Any) -> Any:
  """Return a cell as JSON has it; what is missing is None, and an infinite number its name."""
  if is_missing(value):
    return None
  value = value.item() if isinstance(value, np.generic) else value
  return str(value) if isinstance(value, float) and math.isinf(value) else value


def main(argv: Sequence[str] | None = None) -> int:
  """Export a run and return an exit status."""
  parser = argparse.ArgumentParser(prog="python -m persona_jax.runs.export", description=__doc__)
  parser.add_argument("--run", required=True, help="directory of a run, or of a study")
  parser.add_argument("--to", required=True, choices=("inspect", "datasets"))
  parser.add_argument("--out", required=True, help="directory to write to")
  args = parser.parse_args(argv)
  try:
    if args.to == "inspect":
      print(*to_inspect(args.run, args.out), sep="\n")
    else:
      print(to_datasets(args.run, args.out))
  except (ValueError, OSError, ImportError) as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
