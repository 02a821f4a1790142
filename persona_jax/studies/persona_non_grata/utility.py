"""What personas do to knowledge: questions of MMLU under every condition of both arms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.abilities import KnowledgeItem
from persona_jax.data.hashing import content_hash
from persona_jax.engine.model import Model
from persona_jax.engine.score import score_rows
from persona_jax.runs.run import write_parquet
from persona_jax.studies.persona_non_grata.conditions import Arm, both_arms, frame
from persona_jax.studies.persona_non_grata.settings import Settings

_AT_ONCE = 4  # conditions of one file: what an interruption can cost


def ask_items(
  model: Model,
  settings: Settings,
  items: Sequence[KnowledgeItem],
  arms: Sequence[Arm],
  directory: Path,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Ask questions with lettered options of the baseline and of both methods, some arms a file.

  The answer is the letter with the largest probability, however little letters have together.

  Args:
    model: the model.
    settings: of the study; an answer is made to begin with `lead`.
    items: questions with one right option each.
    arms: of `conditions.test_arms`; those of `conditions.both_arms` are asked.
    directory: of the study; what is there is not asked again.
    progress: whether to show a bar.

  Returns:
    A row an arm and item, with the columns of `conditions.frame`, item_id, correct (0 or 1; NaN
    where an edit was not delivered), p_correct (share of the letters' probability), mass (all
    letters' probability). No row where there are no items.
  """
  mine = both_arms(arms)
  found = []
  total = len(mine) * len(items)
  with tqdm.tqdm(total=total, unit="item", disable=not progress or not total, desc="mmlu") as bar:
    for first in range(0, len(mine) if items else 0, _AT_ONCE):
      some = mine[first : first + _AT_ONCE]
      found.append(_asked(model, settings, items, some, directory / "utility"))
      bar.update(len(some) * len(items))
  columns = ["condition", "item_id", "correct", "p_correct", "mass"]
  table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
  return table.merge(frame(mine), on="condition", validate="many_to_one")


def _asked(
  model: Model,
  settings: Settings,
  items: Sequence[KnowledgeItem],
  arms: Sequence[Arm],
  folder: Path,
) -> pd.DataFrame:
  about = [arm.condition.describe() for arm in arms]
  questions = [[item.question, item.options] for item in items]
  key = content_hash([about, questions, settings.lead, model.identity.sha256])
  path = folder / f"part-{key[:16]}.parquet"
  if not path.exists():
    write_parquet(_scored(model, settings, items, arms), path)
  return pd.read_parquet(path)


def _scored(
  model: Model, settings: Settings, items: Sequence[KnowledgeItem], arms: Sequence[Arm]
) -> pd.DataFrame:
  cells = [(arm, item) for arm in arms for item in items]
  chats = []
  for arm, item in cells:
    chat = [{"role": "user", "content": _text(item)}]
    if settings.lead:
      chat.append({"role": "assistant", "content": settings.lead})
    chats += [arm.condition.apply(chat)] * len(item.options)
  letters = [letter for _, item in cells for letter in _letters(item)]
  edits = [arm.condition.edits for arm, item in cells for _ in item.options]
  scored = score_rows(model, chats, letters, edits=edits)
  p_N = np.exp([one.sum() for one in scored.logprobs])
  rows, start = [], 0
  for arm, item in cells:
    mine = slice(start, start + len(item.options))
    start = mine.stop
    p_O, valid = p_N[mine], bool(scored.valid[mine].all())
    rows.append(
      {
        "condition": arm.condition.name,
        "item_id": item.item_id,
        "correct": float(p_O.argmax() == item.answer) if valid else np.nan,
        "p_correct": float(p_O[item.answer] / p_O.sum()) if valid and p_O.sum() > 0 else np.nan,
        "mass": float(p_O.sum()),
      }
    )
  return pd.DataFrame(rows)


def _letters(item: KnowledgeItem) -> list[str]:
  return [chr(ord("A") + n) for n in range(len(item.options))]


def _text(item: KnowledgeItem) -> str:
  options = [f"{x}. {text}" for x, text in zip(_letters(item), item.options, strict=True)]
  return "\n".join([item.question, *options, "Reply with one letter."])
