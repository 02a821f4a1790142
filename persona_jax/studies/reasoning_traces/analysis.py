"""Stage "analyse": what thoughts hold, what goes with refusals at equal length, and swaps."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from persona_jax.runs.run import write_parquet
from persona_jax.scorers.labels import LABELS
from persona_jax.scorers.traces import TENTHS, tenths, validate_cues
from persona_jax.stats.association import clustered_logit, length_matched, matched_difference
from persona_jax.studies.reasoning_traces.arms import Arm
from persona_jax.studies.reasoning_traces.effects import (
  OUTCOMES,
  fields,
  mean,
  rate,
  swap_table,
  window_table,
)
from persona_jax.studies.reasoning_traces.settings import METHODS, Settings
from persona_jax.studies.reasoning_traces.spans import write_spans

LEAST_ENDED = 0.5  # of thoughts must end by themselves for a measurement
_STATUS = ("ended", "truncated", "unended", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """What the study found.

  Attributes:
    title: of the report; says so where it is a demonstration only.
    thoughts: of `generation.think`.
    answers: of `generation.answer`.
    tables: by name: endings, labels, cues, positions, association, matched, swap, windows, and
      validation where judged spans were given.
    notes: what a reader must know, a sentence each.
  """

  title: str
  thoughts: pd.DataFrame
  answers: pd.DataFrame
  tables: dict[str, pd.DataFrame]
  notes: tuple[str, ...]

  @property
  def measures(self) -> bool:
    """Whether the model thinks, so that numbers are about it."""
    return thinks(self.thoughts)


def analyse(
  settings: Settings,
  arms: Sequence[Arm],
  thoughts: pd.DataFrame,
  answers: pd.DataFrame,
  directory: Path,
  *,
  judged: pd.DataFrame | None = None,
) -> Findings:
  """Make every table and write it to DIR/tables; write a sheet of spans to judge, DIR/spans.csv.

  Args:
    settings: of the study.
    arms: of `make_arms`.
    thoughts, answers: of the stages before.
    directory: of the study.
    judged: spans with the columns text, cue, label; cues without agreement are then dropped.
  """
  lists = settings.lists()
  names, tables = list(lists.names), {}
  kept = names
  if judged is not None:
    tables["validation"] = validate_cues(lists, judged)
    kept = [cue for cue in names if tables["validation"].set_index("cue").loc[cue, "kept"]]
  tables |= {
    "endings": endings(thoughts),
    "labels": labels(settings, answers),
    "cues": cue_table(settings, thoughts, kept),
    "positions": position_table(settings, thoughts, kept),
    "association": association(thoughts, answers, kept),
    "matched": matched(settings, thoughts, answers, kept),
    "swap": swap_table(settings, arms, answers),
    "windows": window_table(settings, arms, answers),
  }
  for name, table in tables.items():
    write_parquet(table, directory / "tables" / f"{name}.parquet")
  write_spans(thoughts, lists, directory / "spans.csv", seed=settings.seed)
  notes = _notes(settings, thoughts, tables, names, kept)
  return Findings(_title(thoughts), thoughts, answers, tables, notes)


def endings(thoughts: pd.DataFrame) -> pd.DataFrame:
  """Return how thoughts ended, by method: counts, forced ends, lengths, texts read back as made."""
  rows = []
  for method, mine in thoughts.groupby("method", sort=False):
    counts = {status: int((mine["thought"] == status).sum()) for status in _STATUS}
    lengths = mine["n_think_tokens"].astype("float64").quantile([0.25, 0.5, 0.75]).tolist()
    rows.append(
      {
        "method": method,
        "n": len(mine),
        "invalid": int((~mine["valid"]).sum()),
        **counts,
        "forced": int(mine["forced"].sum()),
        "think_tokens_q25": lengths[0],
        "think_tokens_median": lengths[1],
        "think_tokens_q75": lengths[2],
        "read_back": int(mine["same_tokens"].fillna(False).sum()),
        "ends_twice": int((mine["n_thought_ends"] > 1).sum()),
      }
    )
  return pd.DataFrame(rows)


def labels(settings: Settings, answers: pd.DataFrame) -> pd.DataFrame:
  """Return labels and both rates of the arms, each behind its own thoughts."""
  rows = []
  own = answers[answers["own"]]
  for (arm, method, persona, edited), mine in own.groupby(
    ["arm", "method", "persona", "edited"], sort=False
  ):
    counts = mine["label"].value_counts()
    line = {"arm": arm, "method": method, "persona": persona, "edited": edited, "n": len(mine)}
    line |= {name: int(counts.get(name, 0)) for name in LABELS}
    for outcome in OUTCOMES:
      found = rate(_numbers(mine[outcome]), mine["cluster"].to_numpy(), settings)
      line |= {f"{outcome}_rate": found.value, f"{outcome}_low": found.low}
      line |= {f"{outcome}_high": found.high, f"{outcome}_reason": found.reason}
    rows.append(line)
  return pd.DataFrame(rows)


def cue_table(settings: Settings, thoughts: pd.DataFrame, cues: Sequence[str]) -> pd.DataFrame:
  """Return every cue's measures by method and persona, with bootstrap intervals over prompts.

  Returns:
    method, persona ("all" for a method's together), cue, measure ("per_100", "first",
    "last_third"), value, low, high, n, reason.
  """
  rows = []
  groups = [((method, "all"), mine) for method, mine in thoughts.groupby("method", sort=False)]
  groups += list(thoughts[thoughts["persona"] != ""].groupby(["method", "persona"], sort=False))
  for (method, persona), mine in groups:
    for cue, measure in itertools.product(cues, ("per_100", "first", "last_third")):
      # A last third is 0 or 1; where all are alike it has Wilson's interval.
      estimate = rate if measure == "last_third" else mean
      found = estimate(_numbers(mine[f"{cue}_{measure}"]), mine["cluster"].to_numpy(), settings)
      about = {"method": method, "persona": persona, "cue": cue, "measure": measure}
      rows.append({**about, **fields(found)})
  columns = ["method", "persona", "cue", "measure", "value", "low", "high", "n", "reason"]
  return pd.DataFrame(rows, columns=columns)


def position_table(settings: Settings, thoughts: pd.DataFrame, cues: Sequence[str]) -> pd.DataFrame:
  """Return cue rates by tenth of the trace and method, in matches a 100 tokens of the tenth.

  Thoughts that are not whole have no tenths and are left out; `n` counts the others.
  """
  rows = []
  columns = ["method", "cue", "tenth", "value", "low", "high", "n", "reason"]
  for (method, mine), cue in itertools.product(thoughts.groupby("method", sort=False), cues):
    there = mine[mine[f"{cue}_at"].notna()]
    counts = [tenths(at) for at in there[f"{cue}_at"]]
    size = there["n_think_tokens"].to_numpy(float) / TENTHS
    for tenth in range(TENTHS):
      values = 100 * np.array([count[tenth] for count in counts], float) / size
      found = mean(values, there["cluster"].to_numpy(), settings)
      rows.append({"method": method, "cue": cue, "tenth": tenth + 1, **fields(found)})
  return pd.DataFrame(rows, columns=columns)


def _of_methods(thoughts: pd.DataFrame, answers: pd.DataFrame, cues: Sequence[str]) -> pd.DataFrame:
  """Return own answers of whole arms with their thoughts' measures, a row each."""
  own = answers[answers["own"] & answers["edited"].isin(["neither", "both"])]
  keys = ["thinker", "prompt_id", "sample"]
  measures = ["n_think_tokens", *(f"{cue}_per_100" for cue in cues)]
  rows = own.merge(thoughts[[*keys, *measures]], on=keys, validate="many_to_one")
  # A thought of no tokens has no log length.
  length = rows["n_think_tokens"].astype("Float64").astype("float64")
  return rows.assign(log_length=np.log(length.where(length > 0)))


def association(thoughts: pd.DataFrame, answers: pd.DataFrame, cues: Sequence[str]) -> pd.DataFrame:
  """Return the logit refused ~ cues a 100 tokens + log length + method × persona; an association.

  Returns:
    term, coef (log-odds), low, high, p, n, clusters, reason.
  """
  rows = _of_methods(thoughts, answers, cues)
  covariates = [*(f"{cue}_per_100" for cue in cues), "log_length"]
  found = clustered_logit(rows, "refused", covariates, cluster="cluster")
  return found.terms.assign(n=found.n, clusters=found.num_clusters, reason=found.reason)


def matched(
  settings: Settings, thoughts: pd.DataFrame, answers: pd.DataFrame, cues: Sequence[str]
) -> pd.DataFrame:
  """Return differences between methods in pairs of one prompt with thoughts of like length.

  Returns:
    a, b (methods), measure (an outcome, or a cue's per_100), value (mean of a − b), low, high, n,
    reason, pairs, distance (mean difference in log length), rows_a, rows_b (of either method).
  """
  rows, lines = _of_methods(thoughts, answers, cues), []
  there = list(rows["method"].unique())
  for a, b in itertools.combinations([m for m in METHODS if m in there], 2):
    pairs = length_matched(rows, (a, b), within=("prompt_id",))
    pairs["cluster"] = rows.loc[pairs["a"], "cluster"].to_numpy()
    about = {"pairs": len(pairs), "distance": pairs["distance"].mean()}
    about |= {f"rows_{x}": int((rows["method"] == m).sum()) for x, m in (("a", a), ("b", b))}
    for measure in (*OUTCOMES, *(f"{cue}_per_100" for cue in cues)):
      found = matched_difference(
        rows, pairs, measure, cluster="cluster", draws=settings.draws, seed=settings.seed
      )
      lines.append({"a": a, "b": b, "measure": measure, **fields(found), **about})
  return pd.DataFrame(lines)


def _numbers(column: pd.Series) -> np.ndarray:
  return column.astype("Float64").astype("float64").to_numpy()


def thinks(thoughts: pd.DataFrame) -> bool:
  """Return whether at least half of all thoughts ended by themselves."""
  return bool((thoughts["thought"] == "ended").mean() >= LEAST_ENDED)


def _title(thoughts: pd.DataFrame) -> str:
  if not thinks(thoughts):
    return "Reasoning traces: pipeline demonstration, not a measurement"
  return "Reasoning traces"


def _notes(
  settings: Settings,
  thoughts: pd.DataFrame,
  tables: dict[str, pd.DataFrame],
  names: Sequence[str],
  kept: Sequence[str],
) -> tuple[str, ...]:
  notes = []
  ended = int((thoughts["thought"] == "ended").sum())
  if not thinks(thoughts):
    notes.append(
      f"Pipeline demonstration: {ended} of {len(thoughts)} thoughts ended by themselves, fewer "
      f"than {LEAST_ENDED:.0%}: a model that does not think, or too small a budget. Nothing here "
      "is a finding."
    )
  stopped = int(thoughts["thought"].isin(["truncated", "unended"]).sum())
  if stopped and settings.at_budget == "closed":
    notes.append(
      f"{stopped} of {len(thoughts)} thoughts did not end within {settings.think_tokens} tokens; a "
      "closing tag was written for them (forced)."
    )
  elif stopped:
    notes.append(
      f"{stopped} of {len(thoughts)} thoughts did not end within {settings.think_tokens} tokens "
      "and have no answer; they are missing in every rate, not failures."
    )
  differing = int((thoughts["same_tokens"] == False).sum())  # noqa: E712 (nullable booleans)
  if differing:
    notes.append(
      f"{differing} of {ended} thoughts are read back as other tokens than were generated: their "
      "text is the same, their answers may differ from those given in one go."
    )
  notes.append(
    "Unless another scorer labelled them, refusals are found by phrases and no judge read the "
    "answers: a bypass is an answer that does not refuse and is not degenerate."
  )
  version = thoughts["cue_version"].iloc[0]
  if "validation" not in tables:
    notes.append(
      f"Cues are a heuristic: phrase lists, version {version}, not validated against judged spans."
    )
  elif dropped := [cue for cue in names if cue not in kept]:
    notes.append(f"Dropped, for they do not agree with judged spans: {', '.join(dropped)}.")
  notes.append("Cues and outcomes are associated or not; nothing here says what causes a refusal.")
  return tuple(notes)
