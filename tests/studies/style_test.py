"""Style invariance: judges that are taken in by a tone, and those that are not."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from persona_jax import stats
from persona_jax.data.prompts import PromptItem
from persona_jax.studies.persona_non_grata.restyling import (
  restyle,
  restyled_invariance,
  why_not,
)
from persona_jax.studies.persona_non_grata.style import (
  compare,
  equal_rates,
  harmless_answers,
  style_verdict,
  twins_invariance,
)


@dataclasses.dataclass(frozen=True)
class WordJudge:
  """Calls an answer harmful if it holds one of some words; has no verdict on an empty one."""

  words: tuple[str, ...]
  name: str = "words"
  columns: tuple[str, ...] = ("harmful",)

  def score(self, table):
    verdicts = [
      None if not text else any(word in text.split() for word in self.words)
      for text in table["text"]
    ]
    assert table["prompt"].str.startswith("harmful").all()
    return pd.DataFrame({"harmful": pd.array(verdicts, dtype="boolean")}, index=table.index)


def items(kind: str, n: int) -> list[PromptItem]:
  return [
    PromptItem(f"q{k}/{kind}", f"{kind} {k}", kind, f"q{k}", "", "test")  # type: ignore[arg-type]
    for k in range(n)
  ]


def answers(n: int = 100) -> pd.DataFrame:
  """Twins answered by two personas and methods: "stern" in 30 of P's steered, "mild" in 1 of 20."""
  found = []
  for persona in ("P", "Q"):
    for arm in ("SP", "AS:norm"):
      for k in range(n):
        tone = "stern" if (persona, arm) == ("P", "AS:norm") and k % 10 < 3 else "plain"
        text = f"answer {tone}" + (" mild" if k % 20 == 0 else "")
        found.append(
          {
            "part": "twins",
            "persona": persona,
            "arm": arm,
            "prompt_id": f"q{k}/harmless",
            "text": text,
          }
        )
  return pd.DataFrame(found)


TEST, TWINS = items("harmful", 120), items("harmless", 100)


def test_a_judge_that_errs_in_one_tone_fails_with_the_statistic_of_its_definition() -> None:
  found = twins_invariance(WordJudge(("stern",)), "harmful", answers(), TEST, TWINS)
  assert found.passed is False and found.difference == 0.3
  expected = scipy.stats.chi2_contingency([[0, 30, 0, 0], [100, 70, 100, 100]], correction=False)
  assert (found.chi2, found.p_chi2) == pytest.approx((expected.statistic, expected.pvalue))
  assert found.p == 1 / 2001
  table = found.table.set_index(["persona", "method"])
  assert list(table.index) == [("P", "SP"), ("P", "AS:norm"), ("Q", "SP"), ("Q", "AS:norm")]
  wrong = table.loc[("P", "AS:norm")]
  assert (wrong["errors"], wrong["n"], wrong["fpr"]) == (30, 100, 0.3) and wrong["differs"]
  assert (wrong["low"], wrong["high"]) == pytest.approx(
    (stats.rate(30, 100).low, stats.rate(30, 100).high)
  )
  assert "rates depend on persona and method (p 0.000), up to 0.300 apart" in found.shown
  assert style_verdict([found]) == (False, found.shown)


def test_a_judge_that_errs_alike_passes_as_does_one_without_errors() -> None:
  alike = twins_invariance(WordJudge(("mild",)), "harmful", answers(), TEST, TWINS)
  assert alike.passed is True and alike.p == 1 and alike.chi2 == 0 and alike.reason == ""
  assert alike.table["errors"].tolist() == [5, 5, 5, 5]
  none = twins_invariance(WordJudge(("absent",)), "harmful", answers(), TEST, TWINS)
  assert none.passed is True and math.isnan(none.chi2) and none.difference == 0
  assert style_verdict([alike, none])[0] is True


def test_what_cannot_be_told_is_open() -> None:
  few = answers(20)
  judge = WordJudge(("stern",))
  found = twins_invariance(judge, "harmful", few, TEST, TWINS)
  assert found.passed is None and found.reason.startswith("fewer than 30 verdicts under P SP, P A")
  every = twins_invariance(WordJudge(("answer",)), "harmful", answers(), TEST, TWINS)
  assert every.passed is None and "every answer is called harmful" in every.reason
  # 2 and 6 of 40: .1 apart, as chance has it.
  two = pd.DataFrame({"persona": ["P"] * 40 + ["Q"] * 40, "arm": "SP"})
  verdicts = [k < 2 for k in range(40)] + [k < 6 for k in range(40)]
  open_ = compare("answers", verdicts, two, [*range(40)] * 2)
  assert open_.passed is None and "as chance may have them with 40 answers a group" in open_.reason
  assert style_verdict([found, every])[0] is None and style_verdict([])[0] is None


def test_missing_verdicts_are_counted_and_never_taken_for_harmless() -> None:
  table = answers()
  table.loc[table.index[:10], "text"] = ""
  found = twins_invariance(WordJudge(("mild",)), "harmful", table, TEST, TWINS)
  first = found.table.iloc[0]
  assert (first["n"], first["missing"], first["errors"]) == (90, 10, 4)
  table.loc[:, "text"] = ""
  none = twins_invariance(WordJudge(("mild",)), "harmful", table, TEST, TWINS)
  assert none.passed is None and none.table["missing"].tolist() == [100] * 4
  assert none.table["fpr"].isna().all() and set(none.table["reason"]) == {"no verdict"}


def test_permutation_keeps_its_level_where_questions_differ() -> None:
  # Errors hang on the question alone; a chi-square that takes answers as independent never rejects.
  group_N, block_N = np.repeat(np.arange(4), 40), np.tile(np.arange(40), 4)
  rejected, naive = 0, 0
  for seed in range(300):
    rng = np.random.default_rng(seed)
    error_N = rng.random(160) < np.tile(rng.choice([0.02, 0.9], size=40), 4)
    _, p_chi2, p = equal_rates(error_N, group_N, block_N, draws=99, seed=seed)
    rejected += p <= 0.05
    naive += p_chi2 <= 0.05
  assert 5 <= rejected <= 27 and naive <= 2


def test_twins_are_paired_with_their_harmful_questions() -> None:
  paired = harmless_answers(answers(), TEST, TWINS)
  assert paired["prompt"].tolist()[:2] == ["harmful 0", "harmful 1"] and len(paired) == 400
  with pytest.raises(ValueError, match="no answers to harmless twins"):
    harmless_answers(answers().assign(part="test"), TEST, TWINS)
  with pytest.raises(ValueError, match=r"twins \['q0/harmless'\] have no harmful partner"):
    harmless_answers(answers(), TEST[1:], TWINS)
  with pytest.raises(ValueError, match=r"'words' has the columns \['harmful'\], not 'harm'"):
    twins_invariance(WordJudge(()), "harm", answers(), TEST, TWINS)


def test_retold_texts_of_a_random_model_are_marked_and_the_test_stays_open(tiny) -> None:
  refusals = pd.DataFrame(
    {"row_id": ["a", "b"], "prompt": ["harmful 0", "harmful 1"], "text": ["w5 w6", "w7"]}
  )
  wording = "w10 {persona} w11 {refusal}"
  personas = {"P": "w8", "Q": "w9"}
  found = restyle(tiny.model, refusals, personas, max_new_tokens=4, wording=wording)
  own = tiny.model.generate(["w10 w8 w11 w5 w6", "w10 w9 w11 w5 w6"], max_new_tokens=4)
  assert found["text"].tolist()[:2] == [generation.text.strip() for generation in own]
  assert found["row_id"].tolist() == ["a/P", "a/Q", "b/P", "b/Q"]
  assert found["prompt"].tolist() == ["harmful 0"] * 2 + ["harmful 1"] * 2
  assert set(found["why_not"]) <= {"cut off", "empty", "degenerate"}
  assert found["still_refuses"].isna().all()
  result = restyled_invariance(WordJudge(("stern",)), "harmful", found)
  assert result.passed is None and result.table.empty
  assert result.reason == "0 of 4 usable; fewer than 30 of P, Q"
  with pytest.raises(ValueError, match="0 refusals and 1 personas"):
    restyle(tiny.model, refusals[:0], {"P": "w8"})
  with pytest.raises(ValueError, match="wording 'again' lacks"):
    restyle(tiny.model, refusals, {"P": "w8"}, wording="again")
  with pytest.raises(ValueError, match=r"refusals \['a'\] have no text"):
    restyle(tiny.model, refusals.assign(text=[None, "w7"]), {"P": "w8"})


def test_rules_say_why_a_retold_text_is_of_no_use() -> None:
  source = "I am sorry, but I cannot help with that."
  texts = {
    "": "empty",
    "I will not do this for you": "cut off",
    "i am sorry,  but I cannot help with THAT.": "copied",
    "no no no no no no no no no no no no no no no no no no no no": "degenerate",
    "Oh my, no! That is a thing I will never lend a hand with, my friend.": "",
  }
  table = pd.DataFrame(
    {
      "text": list(texts),
      "source": source,
      "finish_reason": ["length" if why == "cut off" else "stop" for why in texts.values()],
      "n_tokens": 20,
    }
  )
  assert why_not(table) == list(texts.values())


def test_retold_refusals_count_once_people_have_read_them() -> None:
  restyled = pd.DataFrame(
    [
      {
        "row_id": f"{k}/{persona}",
        "source_id": k,
        "persona": persona,
        "arm": "restyled",
        "prompt": "harmful",
        "text": "no stern" if persona == "P" and k < 20 else "no",
        "why_not": "cut off" if k >= 48 else "",
        "still_refuses": None if k in (46, 47) else k != 45,
      }
      for k in range(50)
      for persona in ("P", "Q")
    ]
  ).astype({"still_refuses": "boolean"})
  found = restyled_invariance(WordJudge(("stern",)), "harmful", restyled)
  assert found.passed is False and found.table["errors"].tolist() == [20, 0]
  assert found.table["n"].tolist() == [45, 45] and "(90 of 100 usable)" in found.what
  open_ = restyled_invariance(WordJudge(("stern",)), "harmful", restyled, least=46)
  assert (
    open_.reason
    == "90 of 100 usable, 4 not read by people, or read differently; fewer than 46 of P, Q"
  )
