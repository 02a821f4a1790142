"""Fluency: the unedited model's own log-probabilities, and a threshold that answers can bear."""

import math

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.scorers import Fluency
from persona_jax.scorers.fluency import answers_needed, least_logprob, unlikely
from tests.fixtures import Tiny
from tests.reference import numpy_llama

PROMPTS = ["w10 w11 w12", "w5", "w10 w11 w12", "w7", "w7"]
ANSWERS = [[20, 21, 22], [30], [40, 20], [], None]


def test_the_mean_is_the_references_over_the_tokens_as_they_were_generated(tiny: Tiny) -> None:
  table = pd.DataFrame({"prompt": PROMPTS, "token_ids": ANSWERS}, index=[4, 3, 2, 1, 0])
  found = Fluency(tiny.model).score(table)
  assert list(found.columns) == ["mean_logprob"] and found.index.equals(table.index)
  for value, prompt, ids in zip(found["mean_logprob"][:3], PROMPTS, ANSWERS, strict=False):
    # The prompt as a chat without a system message, which the template cuts as "w3 … w4".
    asked = tiny.model.tokenizer.encode(f"w3 {prompt} w4")
    expected = numpy_llama.score(tiny.config, tiny.tensors, asked, ids).mean()
    assert value == pytest.approx(expected, abs=5e-5)
  assert found["mean_logprob"].isna().tolist() == [False, False, False, True, True]


def test_what_a_large_edit_writes_is_less_likely_than_what_the_model_writes(tiny: Tiny) -> None:
  prompts = [f"w{n} w{n + 1}" for n in range(10, 18)]
  edit = pj.add(tiny.direction(3), 40.0, unit="raw", blocks=1)
  own = tiny.model.generate(prompts, max_new_tokens=6)
  other = tiny.model.generate(prompts, max_new_tokens=6, edits=[edit] * 8)
  tables = [
    pd.DataFrame({"prompt": prompts, "token_ids": [list(a.token_ids) for a in answers]})
    for answers in (own, other)
  ]
  mine, theirs = (Fluency(tiny.model).score(table)["mean_logprob"] for table in tables)
  least = least_logprob(mine, 12.5)
  assert least == mine.min()
  assert not unlikely(mine, least).any() and unlikely(theirs, least).mean() > 0.5
  both = pd.concat(tables, ignore_index=True).assign(label=[False] * 8 + [True] * 8)
  agreed = Fluency(tiny.model, percentile=12.5).validate(both)
  assert agreed["classes"][True]["recall"] == unlikely(theirs, least).mean()
  assert agreed["classes"][False]["recall"] == 1.0


def test_the_threshold_is_an_answer_below_which_few_enough_lie() -> None:
  values = pd.Series([*(-np.arange(200.0) / 100), math.nan])
  assert answers_needed(0.5) == 200
  least = least_logprob(values, 0.5)
  assert least == -1.99 and not unlikely(values, least).fillna(False).any()
  # 400 answers: two lie at or below, so one below.
  more = pd.Series(-np.arange(400.0) / 100)
  assert least_logprob(more, 0.5) == -3.98 and unlikely(more, -3.98).sum() == 1
  assert unlikely(values, -1.0).isna().sum() == 1


def test_too_few_answers_and_faulty_percentiles_say_what_fits(tiny: Tiny) -> None:
  with pytest.raises(ValueError, match=r"199 answers have no 0.5 percentile; 200 have"):
    least_logprob(pd.Series(np.arange(199.0)), 0.5)
  with pytest.raises(ValueError, match="percentile 0: a number between 0 and 100"):
    answers_needed(0)
  with pytest.raises(ValueError, match="token_ids"):
    Fluency(tiny.model).score(pd.DataFrame({"prompt": ["w5"], "text": ["w6"]}))
