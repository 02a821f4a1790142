"""Verdicts that are kept: each row is scored once, whatever its arm, and a stop costs little."""

from pathlib import Path

import pandas as pd
import pytest

from persona_jax.scorers import kept as module
from persona_jax.scorers.kept import Kept
from persona_jax.scorers.refusal import RefusalRules


class Counting(RefusalRules):
  """The rules, which remember how many rows they have seen."""

  seen: list[int] = []

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    self.seen.append(len(table))
    if "stop" in set(table["text"]):
      raise KeyboardInterrupt
    return super().score(table)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(module, "_AT_ONCE", 2)
  Counting.seen = []


def test_rows_are_scored_once_and_their_verdicts_stay_with_them(tmp_path: Path) -> None:
  table = pd.DataFrame(
    {"prompt": ["a", "b", "a", "a"], "text": ["Sure.", "I cannot help you.", "Sure.", None]},
    index=[7, 5, 3, 1],
  )
  found = Kept(Counting(), tmp_path, {"v": 1}, progress=False).score(table)
  assert sum(Counting.seen) == 3 and max(Counting.seen) == 2
  expected = RefusalRules().score(table)
  pd.testing.assert_frame_equal(found, expected, check_dtype=False)
  more = pd.concat([table, pd.DataFrame({"prompt": ["c"], "text": ["No."]}, index=[0])])
  again = Kept(Counting(), tmp_path, {"v": 1}, progress=False).score(more)
  assert sum(Counting.seen) == 4
  assert list(again.index) == [7, 5, 3, 1, 0]
  Kept(Counting(), tmp_path, {"v": 2}, progress=False).score(table)
  assert sum(Counting.seen) == 7  # verdicts of another version are not taken


def test_what_was_scored_before_a_stop_is_there(tmp_path: Path) -> None:
  table = pd.DataFrame({"prompt": ["a"] * 4, "text": ["x", "y", "stop", "z"]})
  with pytest.raises(KeyboardInterrupt):
    Kept(Counting(), tmp_path, {}, progress=False).score(table)
  Counting.seen = []
  Kept(Counting(), tmp_path, {}, progress=False).score(table.replace("stop", "go"))
  assert sum(Counting.seen) == 2


class Lengths:
  """How many tokens an answer has; remembers how many it was asked of."""

  name, columns = "lengths", ("n",)

  def __init__(self) -> None:
    self.asked = 0

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    assert list(table.columns) == ["prompt", "token_ids"]
    self.asked += len(table)
    return pd.DataFrame({"n": [len(ids) for ids in table["token_ids"]]}, index=table.index)


def test_answers_that_read_alike_but_differ_in_tokens_are_scored_each(tmp_path: Path) -> None:
  scorer = Lengths()
  table = pd.DataFrame({"prompt": "a", "text": "x", "token_ids": [[1, 2], [3], [1, 2]]})
  reads = ("prompt", "token_ids")
  found = Kept(scorer, tmp_path, {}, reads=reads, progress=False).score(table)
  assert found["n"].tolist() == [2, 1, 2] and scorer.asked == 2
  # As a table read from disk has them.
  table.to_parquet(tmp_path / "t.parquet")
  read = pd.read_parquet(tmp_path / "t.parquet")
  again = Kept(scorer, tmp_path, {}, reads=reads, progress=False).score(read)
  assert again["n"].tolist() == [2, 1, 2] and scorer.asked == 2
  with pytest.raises(ValueError, match="token_ids"):
    Kept(scorer, tmp_path, {}, reads=reads).score(table.drop(columns="token_ids"))
