"""2 × 2 tables: the thought of one arm by the answer of another, and what each does to outcomes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from persona_jax.stats import intervals
from persona_jax.stats.intervals import Estimate
from persona_jax.studies.reasoning_traces.arms import Arm, whole
from persona_jax.studies.reasoning_traces.settings import Settings

OUTCOMES = ("bypass", "refused")
ALL = "all"
_UNIT = ["persona", "prompt_id", "sample"]
# Of cells (first thought, first answer), (first, second), (second, first), (second, second).
_WEIGHTS = {
  "thought_effect": (-0.5, -0.5, 0.5, 0.5),
  "answer_effect": (-0.5, 0.5, -0.5, 0.5),
  "interaction": (1.0, -1.0, -1.0, 1.0),
}


def swap_table(settings: Settings, arms: Sequence[Arm], answers: pd.DataFrame) -> pd.DataFrame:
  """Return the trace swap of every pair of methods and persona, and over all personas.

  Args:
    settings: of the study.
    arms: of `make_arms`.
    answers: of `generation.answer`.

  Returns:
    A row a cell and effect: first, second (methods), persona ("all" for all together), outcome,
    what ("cell" or an effect), thought, answer (methods of a cell), value, low, high (95 %,
    bootstrap over prompt clusters), n (prompts × samples × personas), missing (left out, for not
    all of their four cells have an outcome), reason. `thought_effect` is the mean change of the
    rate when the second method's thought takes the place of the first's, `answer_effect` that when
    the answer is given under the second; `interaction` is by how much more the thought changes the
    rate under the second method's answer than under the first's.
  """
  tables = []
  for first, second in settings.swaps:
    cells: list[list[pd.DataFrame]] = [[], [], [], []]
    for persona in settings.chosen_personas():
      pair = [whole(arms, method, persona.name) for method in (first, second)]
      for n, (thought, under) in enumerate((a, b) for a in pair for b in pair):
        mine = answers["arm"].eq(under.name) & answers["thinker"].eq(thought.thinker.name)
        cells[n].append(answers[mine].assign(persona=persona.name))
    names = [(t, a) for t in (first, second) for a in (first, second)]
    table = _two_by_two([pd.concat(c) for c in cells], names, settings)
    tables.append(table.assign(first=first, second=second))
  return _joined(tables, ["first", "second", "persona", "outcome", "what", "thought", "answer"])


def window_table(settings: Settings, arms: Sequence[Arm], answers: pd.DataFrame) -> pd.DataFrame:
  """Return the 2 × 2 of what steering acts on: the thought, the answer, both, neither.

  Unlike in a swap, a steered thought is steered too where the answer reads it.

  Returns:
    As `swap_table`, with thought and answer "plain" or "steered"; empty unless all are run.
  """
  columns = ["persona", "outcome", "what", "thought", "answer"]
  if set(settings.edited) != {"both", "think", "answer"}:
    return _joined([], columns)
  cells: list[list[pd.DataFrame]] = [[], [], [], []]
  own = answers[answers["own"]]
  for persona in settings.chosen_personas():
    base = own[own["method"] == "none"]
    steered = own[(own["method"] == "steer") & (own["persona"] == persona.name)]
    parts = [base, *(steered[steered["edited"] == e] for e in ("answer", "think", "both"))]
    for cell, part in zip(cells, parts, strict=True):
      cell.append(part.assign(persona=persona.name))
  names = [(t, a) for t in ("plain", "steered") for a in ("plain", "steered")]
  return _joined([_two_by_two([pd.concat(c) for c in cells], names, settings)], columns)


def _joined(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
  wanted = [*columns, "value", "low", "high", "n", "missing", "reason"]
  return pd.concat(tables, ignore_index=True)[wanted] if tables else pd.DataFrame(columns=wanted)


def _two_by_two(
  cells: Sequence[pd.DataFrame], names: Sequence[tuple[str, str]], settings: Settings
) -> pd.DataFrame:
  rows: list[Mapping[str, object]] = []
  for outcome in OUTCOMES:
    units = pd.concat(
      [cell.set_index([*_UNIT, "cluster"])[outcome].astype("Float64") for cell in cells],
      axis=1,
      keys=range(4),
    ).astype("float64")
    whole_N = units.notna().all(axis=1)
    personas = list(dict.fromkeys(units.index.get_level_values("persona")))
    for persona in personas + [ALL] * (len(personas) > 1):
      mine_N = (units.index.get_level_values("persona") == persona) | (persona == ALL)
      used = units[mine_N & whole_N]
      left_out = int((mine_N & ~whole_N).sum())
      clusters = used.index.get_level_values("cluster").to_numpy()
      values = used.to_numpy()
      about = {"persona": persona, "outcome": outcome, "missing": left_out}
      for n, (thought, answer) in enumerate(names):
        estimate = rate(values[:, n], clusters, settings)
        cell = {"what": "cell", "thought": thought, "answer": answer}
        rows.append({**about, **cell, **fields(estimate)})
      for what, weights in _WEIGHTS.items():
        estimate = mean(values @ np.asarray(weights), clusters, settings)
        rows.append({**about, "what": what, "thought": "", "answer": "", **fields(estimate)})
  return pd.DataFrame(rows)


def fields(estimate: Estimate) -> dict[str, object]:
  """Return value, low, high, n, reason of an estimate."""
  return dataclasses.asdict(estimate)


def mean(values: np.ndarray, clusters: np.ndarray, settings: Settings) -> Estimate:
  """Return a mean with a bootstrap over clusters; missing values are left out and counted."""
  if not len(values):
    return Estimate(math.nan, math.nan, math.nan, 0, "no rows")
  return intervals.mean(values, clusters, missing="drop", draws=settings.draws, seed=settings.seed)


def rate(values: np.ndarray, clusters: np.ndarray, settings: Settings) -> Estimate:
  """Return the mean of values 0 and 1.

  Where all are one value the bootstrap has no interval; then it is Wilson's, for as many trials as
  there are clusters.
  """
  found = mean(values, clusters, settings)
  there = values[~np.isnan(values)]
  if len(there) and np.ptp(there) == 0 and there[0] in (0, 1):
    trials = len(set(clusters[~np.isnan(values)]))
    wilson = intervals.rate(int(there[0]) * trials, trials)
    lost = len(values) - len(there)
    reason = f"{lost} of {len(values)} values are missing and left out" if lost else ""
    return dataclasses.replace(found, low=wilson.low, high=wilson.high, reason=reason)
  return found
