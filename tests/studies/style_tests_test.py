"""Which style tests a study makes of its judges, and retold refusals that people read between."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from persona_jax.data.prompts import PromptItem
from persona_jax.scorers.labels import Labels
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.studies.persona_non_grata.restyling import retold_refusals
from persona_jax.studies.persona_non_grata.style_tests import style_tests


@dataclasses.dataclass(frozen=True)
class Hears:
  """A judge of harm that calls an answer harmful if it holds a word of tone."""

  word: str
  name: str = "judge_harm"
  columns: tuple[str, ...] = ("judge_harm", "judge_harm_reason", "judge_harm_verdict")

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    assert table["prompt"].str.startswith("harmful").all()
    found = pd.array([self.word in text.split() for text in table["text"]], dtype="boolean")
    return pd.DataFrame(
      {"judge_harm": 0.5, "judge_harm_reason": "", "judge_harm_verdict": found}, index=table.index
    )


def pairs(kind: str) -> tuple[PromptItem, ...]:
  return tuple(
    PromptItem(f"q{k}/{kind}", f"{kind} {k}", kind, f"q{k}", "", "x")  # type: ignore[arg-type]
    for k in range(40)
  )


MATERIAL = SimpleNamespace(partners=pairs("harmful"), twins=pairs("harmless"))


def twins(tone: str) -> pd.DataFrame:
  """Answers to 40 twins under two personas; P's hold the tone, and every thought "stern"."""
  return pd.DataFrame(
    [
      {
        "part": "twins", "persona": persona, "arm": "SP", "prompt_id": f"q{k}/harmless",
        "text": f"I know: stern. </think> An answer {tone if persona == 'P' else ''}",
      }
      for persona in ("P", "Q")
      for k in range(40)
    ]
  )  # fmt: skip


def test_a_judge_of_harm_is_tested_on_twins_and_without_one_nothing_is() -> None:
  labels = Labels(RefusalRules(), opens_thought=True, harm=Hears("stern"))
  (found,) = style_tests(labels, twins("stern"), MATERIAL)  # type: ignore[arg-type]
  assert (found.passed, found.judge, found.difference) == (False, "judge_harm", 1.0)
  (found,) = style_tests(labels, twins("mild"), MATERIAL)  # type: ignore[arg-type]
  assert found.passed is True  # what is thought is no part of an answer
  nothing = twins("stern").assign(part="test")
  (found,) = style_tests(labels, nothing, MATERIAL)  # type: ignore[arg-type]
  assert found.passed is None and found.shown == (
    "answers to harmless twins: none were generated (generate, twin_prompts)"
  )
  plain = dataclasses.replace(labels, harm=None)
  assert style_tests(plain, twins("stern"), MATERIAL) == ()  # type: ignore[arg-type]


class Reteller:
  """Stands for a model that can retell: "stern" by the first persona, "mild" by the second."""

  identity = SimpleNamespace(sha256="reteller")
  chat = SimpleNamespace(render=lambda _: SimpleNamespace(opens_thought=False))

  def __init__(self) -> None:
    self.asked = 0

  def generate(self, prompts: list[str], **_: object) -> list[SimpleNamespace]:
    self.asked += len(prompts)
    return [
      SimpleNamespace(
        text="No, I decline to do this." if "are mild" in prompt else "Go away with this matter!",
        finish_reason="stop",
        token_ids=(1, 2),
      )
      for prompt in prompts
    ]


REFUSALS = pd.DataFrame(
  {
    "row_id": [f"r{k}" for k in range(35)],
    "prompt": [f"harmful {k}" for k in range(35)],
    "text": [f"I'm sorry, I can't do number {k}." for k in range(35)],
  }
)
PERSONAS = {"P": "You are stern.", "Q": "You are mild."}


def test_labels_are_tested_on_retold_refusals_once_people_have_filled_in_the_sheets(
  tmp_path: Path,
) -> None:
  model = Reteller()
  labels = Labels(RefusalRules())
  retold = retold_refusals(model, REFUSALS, PERSONAS, tmp_path)  # type: ignore[arg-type]
  assert len(retold) == 70 and retold["still_refuses"].isna().all()
  (open_,) = style_tests(labels, twins(""), MATERIAL, retold)  # type: ignore[arg-type]
  assert open_.passed is None and "70 not read by people" in open_.reason
  for path in sorted(tmp_path.glob("annotate-*.csv")):
    sheet = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert set(sheet.columns) == {"id", "question", "answer", "label", "note"}
    sheet.assign(label="refuse").to_csv(path, index=False)
  read = retold_refusals(model, REFUSALS, PERSONAS, tmp_path)  # type: ignore[arg-type]
  assert model.asked == 70 and read["still_refuses"].all()
  # The phrases know the mild refusal and not the stern one.
  (found,) = style_tests(labels, twins(""), MATERIAL, read)  # type: ignore[arg-type]
  assert found.passed is False and found.judge == "labels"
  assert found.table.set_index("persona")["errors"].to_dict() == {"P": 35, "Q": 0}
  with pytest.raises(ValueError, match="holds other refusals, personas or another model's"):
    retold_refusals(model, REFUSALS[:30], PERSONAS, tmp_path)  # type: ignore[arg-type]
