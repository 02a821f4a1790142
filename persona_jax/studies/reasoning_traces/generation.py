"""Stages "think" and "answer": thoughts of every thinker, then answers behind given thoughts.

Thoughts and answers are generated apart, so that each has its own budget and every answer is given
in the same way, whoever thought. An answer is a row whose assistant message begins with the thought
and its closing tag, which the engine continues.

    DIR/think             a grid: thinkers × prompts × samples
    DIR/answer/ARM        a grid: one condition on thoughts of its own and of others
    DIR/thoughts.parquet, DIR/answers.parquet   what the stages return
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from persona_jax.data.prompts import PromptItem
from persona_jax.engine.grid import Grid
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Message
from persona_jax.runs.run import run, write_parquet
from persona_jax.scorers.base import Scorer
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.labels import Labels
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.scorers.thoughts import Splitter
from persona_jax.scorers.traces import TraceCues
from persona_jax.studies.reasoning_traces.arms import Arm, thinkers, whole
from persona_jax.studies.reasoning_traces.settings import Settings

_KEYS = ["prompt_id", "sample"]


def splitter(model: Model) -> Splitter:
  """Return what tells thought and answer of this model apart."""
  opens = model.chat.render("Hello.").opens_thought
  return Splitter(model.tokenizer, model.think_ids, frozenset(model.stops()[0]), opens)


def labeller(settings: Settings) -> Labels:
  """Return the scorer of answers, which begin behind the thought: phrases; no judge reads them."""
  return Labels(RefusalRules(), Degenerate(min_words=settings.least_words))


def think_grid(settings: Settings, items: Sequence[PromptItem], arms: Sequence[Arm]) -> Grid:
  """Return the grid of thoughts."""
  return Grid(
    {item.prompt_id: item.text for item in items},
    list(thinkers(arms).values()),
    samples=settings.samples,
    max_new_tokens=settings.think_tokens,
    temperature=settings.temperature,
    seed=settings.seed,
  )


def think(
  model: Model,
  settings: Settings,
  items: Sequence[PromptItem],
  arms: Sequence[Arm],
  directory: Path,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Generate the thoughts and measure them.

  Returns:
    A row a thought: thinker, method, persona, prompt_id, cluster, sample, valid, prefill, forced
    (its closing tag was written for it), same_tokens (whether the text is read back as the tokens
    that were generated; missing where it is forced), and the columns of `TraceCues`.
  """
  split = splitter(model)
  scorer = TraceCues(split, settings.lists(), settings.at_budget == "closed")
  grid = think_grid(settings, items, arms)
  table = run(model, grid, directory / "think", scorers=[scorer], progress=progress).table()
  by_thinker = {arm.thinker.name: arm for arm in reversed(arms)}
  prefills, same = [], []
  rows = zip(table["token_ids"], table["finish_reason"], table["valid"], strict=True)
  for ids, reason, valid in rows:
    thought = split.split(ids, reason)
    stopped = thought.status in ("truncated", "unended")
    leave = stopped and settings.at_budget == "truncated"
    prefills.append(None if leave or not valid else thought.prefill)
    read = tuple(model.tokenizer.encode(thought.prefill)) == thought.ids
    same.append(read if thought.status == "ended" else None)
  clusters = {item.prompt_id: item.cluster or item.prompt_id for item in items}
  stopped_in = table["thought"].isin(["truncated", "unended"])
  found = pd.DataFrame(
    {
      "thinker": table["condition"],
      "method": table["method"],
      "persona": [by_thinker[name].persona for name in table["condition"]],
      "prompt_id": table["prompt_id"],
      "cluster": table["prompt_id"].map(clusters),
      "sample": table["sample"],
      "valid": table["valid"],
      "prefill": pd.Series(prefills, dtype=object),
      "forced": stopped_in & (settings.at_budget == "closed"),
      "same_tokens": pd.array(same, dtype="boolean"),
    }
  )
  found = pd.concat([found, table[list(scorer.columns)]], axis=1)
  write_parquet(found, directory / "thoughts.parquet")
  return found


def wanted(settings: Settings, arms: Sequence[Arm]) -> dict[str, list[str]]:
  """Return, by arm, whose thoughts it answers: its own, then those of swaps."""
  found = {arm.name: [arm.thinker.name] for arm in arms}
  for persona in settings.chosen_personas():
    for first, second in settings.swaps:
      a, b = (whole(arms, method, persona.name) for method in (first, second))
      for mine, other in ((a, b), (b, a)):
        if other.thinker.name not in found[mine.name]:
          found[mine.name].append(other.thinker.name)
  return found


def chat_of(text: str, prefill: str) -> list[Message]:
  """Return a chat whose answer begins with a thought; without one it has just begun."""
  asked: list[Message] = [{"role": "user", "content": text}]
  return [*asked, {"role": "assistant", "content": prefill}] if prefill else asked


def answer_grid(settings: Settings, arm: Arm, chats: Mapping[str, Sequence[Message]]) -> Grid:
  """Return the grid of an arm's answers."""
  return Grid(
    chats,
    [arm.answerer],
    max_new_tokens=settings.answer_tokens,
    temperature=settings.temperature,
    seed=settings.seed,
  )


def answer(
  model: Model,
  settings: Settings,
  items: Sequence[PromptItem],
  arms: Sequence[Arm],
  thoughts: pd.DataFrame,
  directory: Path,
  *,
  scorer: Scorer | None = None,
  progress: bool = True,
) -> pd.DataFrame:
  """Generate answers behind thoughts, an arm after the other.

  Args:
    model: the model.
    settings: of the study.
    items: its prompts.
    arms: of `make_arms`.
    thoughts: of `think`.
    directory: of the study.
    scorer: gives the columns label and bypass; default `labeller`.
    progress: show bars.

  Returns:
    A row an arm, thinker, prompt and sample: arm, method, persona, edited, thinker, own (whether
    the thought is the arm's own), prompt_id, cluster, sample, text, label, bypass, refused (both
    nullable booleans; missing where truncated or unparsed), valid, n_tokens, row_id. Thoughts
    without an end have no answer, and are labelled "truncated", or "degenerate" where the model
    itself stopped inside; those whose edit was not delivered are "unparsed".
    An answer that opens a second thought and does not end it is "truncated", too.
  """
  scorer = scorer or labeller(settings)
  text_of = {item.prompt_id: item.text for item in items}
  by_thinker = dict(tuple(thoughts.groupby("thinker")))
  tables = []
  for arm in arms:
    asked = pd.concat(
      [by_thinker[name] for name in wanted(settings, arms)[arm.name]], ignore_index=True
    )
    asked["key"] = [
      f"{p}|{s}|{t}" for p, s, t in asked[[*_KEYS, "thinker"]].itertuples(index=False)
    ]
    ready = asked[asked["prefill"].notna()]
    parts = [_unanswered(asked[asked["prefill"].isna()])]
    if len(ready):
      chats = {
        key: chat_of(text_of[prompt], prefill)
        for key, prompt, prefill in ready[["key", "prompt_id", "prefill"]].itertuples(index=False)
      }
      place = directory / "answer" / _folder(arm.name)
      grid = answer_grid(settings, arm, chats)
      done = run(model, grid, place, scorers=[scorer], progress=progress).table()
      columns = ["text", "label", "bypass", "valid", "n_tokens", "row_id"]
      done = done[["prompt_id", *columns]].rename(columns={"prompt_id": "key"})
      parts.append(ready.drop(columns="valid").merge(done, on="key", validate="one_to_one"))
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True)
    about = {"arm": arm.name, "method": arm.method, "persona": arm.persona, "edited": arm.edited}
    rows = rows.assign(**about, own=rows["thinker"] == arm.thinker.name)
    tables.append(rows)
  found = pd.concat(tables, ignore_index=True)
  found["bypass"] = found["bypass"].astype("boolean")
  found["refused"] = (found["label"] == "refuse").astype("boolean").where(found["bypass"].notna())
  columns = [
    "arm", "method", "persona", "edited", "thinker", "own", "prompt_id", "cluster", "sample",
    "text", "label", "bypass", "refused", "valid", "n_tokens", "row_id",
  ]  # fmt: skip
  write_parquet(found[columns], directory / "answers.parquet")
  return found[columns]


def _unanswered(thoughts: pd.DataFrame) -> pd.DataFrame:
  labels = [
    "unparsed" if not valid else "truncated" if status == "truncated" else "degenerate"
    for valid, status in zip(thoughts["valid"], thoughts["thought"], strict=True)
  ]
  return thoughts.assign(
    text=None,
    label=labels,
    bypass=pd.array([False if x == "degenerate" else None for x in labels], dtype="boolean"),
    n_tokens=0,
    row_id=None,
  )


def _folder(name: str) -> str:
  return re.sub(r"[^\w+-]+", "_", name)
