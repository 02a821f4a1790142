"""One grid, done by every arm in turn: times, and what the answers are worth."""

import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.grid.compare import agreement, conditions_told_apart, logprob_distance
from benchmarks.grid.grids import Grid
from benchmarks.grid.processes import Process, ToolError

REFERENCE = "ours_f32"
# Twins of one tool; the second is measured against the first.
SCORED = (("ours", "f32", "bf16"), ("hf", "rows_f32", "rows_bf16"))
SAME_WORK = 0.9  # of rows begin as ours do, or a float32 arm is not doing what it should
SCORED_ROWS = 8  # of prompts of 512 tokens; of short ones all
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Entrant:
  """One arm of one process.

  Attributes:
    key: "tool_arm", e.g. "hf_rows_bf16"; what the report calls it.
    process: that runs it.
    arm: its name there.
    dtype: of weights and products.
  """

  key: str
  process: Process
  arm: str
  dtype: str

  @property
  def is_ours(self) -> bool:
    """Whether it is persona_jax."""
    return self.process.tool.name == "ours"

  @property
  def is_stock(self) -> bool:
    """Whether the tool does this by itself, with no reuse of prompts written round it."""
    return "reuse" not in self.arm


def entrants(
  processes: Sequence[Process], grid: Grid, only: Sequence[str], left_out: str
) -> list[Entrant]:
  """Return the arms for a grid.

  `only` keeps those whose key begins with one of its items; `left_out` is a pattern of others that
  are not run.
  """
  found = [
    Entrant(f"{process.tool.name}_{arm}", process, arm, fields["dtype"])
    for process in processes
    for arm, fields in process.description["arms"].items()
    if grid.name in fields["grids"]
  ]
  found = [e for e in found if not re.fullmatch(left_out, e.key)]
  return [e for e in found if not only or any(e.key.startswith(start) for start in only)]


def measure(
  field: Sequence[Entrant], grid: Grid, *, warm_up: bool, repetitions: int, slow_s: float, say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Run every arm, one after another, again and again, to and fro.

  Args:
    field: the arms.
    grid: the work.
    warm_up: whether each arm is run before any is timed, so that no compilation is.
    repetitions: how often each is timed.
    slow_s: an arm whose first run takes longer is not run again.
    say: prints progress.

  Returns:
    {"seconds": {key: samples}, "warm_seconds": {key: seconds}, "failed": {key: why}}, and the
    token ids of each arm's first run.
  """
  seconds: dict[str, list[float]] = {e.key: [] for e in field}
  warm: dict[str, float] = {}
  failed: dict[str, str] = {}
  answers: dict[str, Any] = {}
  for entrant in field if warm_up else ():
    try:
      answer = entrant.process.request(call="warm", arm=entrant.arm, grid=grid.name)
      warm[entrant.key] = answer["seconds"]
      say(f"{grid.name}, warm-up: {entrant.key} {warm[entrant.key]:.1f} s")
    except ToolError as error:
      failed[entrant.key] = str(error)
      say(f"{grid.name}: {entrant.key} FAILED: {error}")
  for repetition in range(repetitions):
    # To and fro, so that what drifts steadily favours none.
    for entrant in field if repetition % 2 == 0 else field[::-1]:
      samples = seconds[entrant.key]
      if entrant.key in failed or (samples and samples[0] > slow_s):
        continue
      try:
        answer = entrant.process.request(call="run", arm=entrant.arm, grid=grid.name)
      except ToolError as error:
        failed[entrant.key] = str(error)
        say(f"{grid.name}: {entrant.key} FAILED: {error}")
        continue
      samples.append(answer["seconds"])
      answers.setdefault(entrant.key, answer["token_ids"])
      rate = answer["tokens"] / answer["seconds"]
      say(f"{grid.name}, {repetition + 1} of {repetitions}: {entrant.key} {rate:.1f} tok/s")
  seconds = {key: samples for key, samples in seconds.items() if samples}
  return {"seconds": seconds, "warm_seconds": warm, "failed": failed}, answers


def ratios(field: Sequence[Entrant], seconds: dict[str, list[float]]) -> dict[str, Any]:
  """Return how many times faster ours is than the fastest peer of several kinds.

  `median` is the ratio of the two medians; `each` that in each repetition, in which the two ran
  minutes apart. "_as_shipped" leaves out the arms that reuse prompts.
  """
  kinds = {
    "f32": lambda e: e.dtype == "float32",
    "f32_or_bf16": lambda e: e.dtype in ("float32", "bfloat16"),
    "any": lambda e: True,
  }
  all_stock = all(e.is_stock for e in field)
  comparisons = {"ours_f32": ("f32", "any"), "ours_bf16": ("f32", "f32_or_bf16", "any")}
  found = {}
  for ours, names in comparisons.items():
    for name in names:
      for stock in (False,) if all_stock else (False, True):
        peers = {
          e.key: statistics.median(seconds[e.key])
          for e in field
          if e.key in seconds and not e.is_ours and kinds[name](e) and (e.is_stock or not stock)
        }
        if ours not in seconds or not peers:
          continue
        best = min(peers, key=peers.__getitem__)
        each = [b / a for a, b in zip(seconds[ours], seconds[best], strict=False)]
        key = f"{ours}_over_best_{name}_peer{'_as_shipped' if stock else ''}"
        median = peers[best] / statistics.median(seconds[ours])
        found[key] = {"peer": best, "median": median, "each": each}
  return found


def scores(
  field: Sequence[Entrant], grid: Grid, answers: dict[str, Any], say: Say
) -> dict[str, Any]:
  """Compare teacher-forced log-probabilities in bfloat16 with the same tool's in float32.

  The continuations are those of ours in float32, for every tool; so float32 can be compared across
  tools too.
  """
  arms = {(e.process.tool.name, e.arm): e for e in field}
  short = max(map(len, grid.prompts)) < 256
  every = len(grid.rows) if short else SCORED_ROWS
  spread = np.linspace(0, len(grid.rows) - 1, every).round().astype(int)
  rows = sorted(set(spread.tolist()))
  given = [answers[REFERENCE][row] for row in rows]
  values, found, failed = {}, {}, {}
  for tool, exact, half in SCORED:
    for arm in (exact, half):
      entrant = arms.get((tool, arm))
      if entrant is not None and entrant.key in answers:
        say(f"{grid.name}: log-probabilities by {entrant.key}")
        fields = {"call": "score", "arm": arm, "grid": grid.name, "rows": rows, "token_ids": given}
        try:
          values[tool, arm] = entrant.process.request(**fields)["logprobs"]
        except ToolError as error:
          failed[entrant.key] = str(error)
          say(f"{grid.name}: {entrant.key} FAILED: {error}")
    if (tool, exact) in values and (tool, half) in values:
      found[f"{tool}_{half}"] = logprob_distance(values[tool, half], values[tool, exact])
  if ("ours", "f32") in values and ("hf", "rows_f32") in values:
    found["ours_f32_to_hf_f32"] = logprob_distance(values["ours", "f32"], values["hf", "rows_f32"])
  return {"rows": rows, "distances": found, "failed": failed}


def grid_section(
  processes: Sequence[Process],
  grid: Grid,
  *,
  only: Sequence[str],
  left_out: str,
  warm_up: bool,
  repetitions: int,
  slow_s: float,
  say: Say,
) -> dict[str, Any]:
  """Do a grid and judge the answers; see the keys of what is returned.

  Arguments are those of `entrants` and `measure`.

  Returns:
    rows, tokens: of the grid.
    left_out: the arms that were not run on this grid.
    tok_s: {arm: new tokens a second, the median}; seconds, warm_seconds, failed: see `measure`.
    ratios: see `ratios`.
    agreement_with_ours_f32, conditions_told_apart: of each arm's tokens.
    does_other_work: float32 arms of whose rows too few begin with the same eight tokens as ours.
    bf16_tokens: of each bfloat16 arm's tokens, by the same arm's in float32.
    logprobs: see `scores`.
  """
  field = entrants(processes, grid, only, left_out)
  without = {e.key for e in entrants(processes, grid, only, "")} - {e.key for e in field}
  timed, answers = measure(
    field, grid, warm_up=warm_up, repetitions=repetitions, slow_s=slow_s, say=say
  )
  tokens = len(grid.rows) * grid.new_tokens
  twins = {e.key: e.key.removesuffix("bf16") + "f32" for e in field if e.dtype == "bfloat16"}
  section = {
    "rows": len(grid.rows),
    "tokens": tokens,
    "left_out": sorted(without),
    "tok_s": {key: tokens / statistics.median(s) for key, s in timed["seconds"].items()},
    **timed,
    "ratios": ratios(field, timed["seconds"]),
    "conditions_told_apart": {k: conditions_told_apart(a, grid.rows) for k, a in answers.items()},
    "does_other_work": [],
    "bf16_tokens": {
      key: agreement(answers[key], answers[twin])
      for key, twin in twins.items()
      if key in answers and twin in answers
    },
  }
  if REFERENCE in answers:
    same = {k: agreement(a, answers[REFERENCE]) for k, a in answers.items() if k != REFERENCE}
    section["agreement_with_ours_f32"] = same
    exact = [e.key for e in field if e.dtype == "float32" and e.key in same]
    section["does_other_work"] = [
      key for key in exact if same[key]["rows_identical_first_8"] < SAME_WORK
    ]
    section["logprobs"] = scores(field, grid, answers, say)
  return section
