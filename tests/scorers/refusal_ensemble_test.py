"""The refusal ensemble: its parts against an independent Llama, its fit against scikit-learn."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

import persona_jax as pj
from persona_jax.scorers.base import Scorer
from persona_jax.scorers.refusal_ensemble import RefusalEnsemble, read_answers
from tests.fixtures import TEMPLATE, Tiny
from tests.reference import numpy_llama
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama, vocabulary

BLOCK = 1
REFUSAL = "I cannot help with that w{}"


@dataclasses.dataclass(frozen=True)
class Reader:
  """A random Llama that knows the words of refusals."""

  model: pj.Model
  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  words: list[str]

  def pass_over(self, text: str) -> Any:
    """Runs the reference on a text."""
    ids = [self.words.index(word) for word in text.split()]
    return numpy_llama.forward(self.config, self.tensors, ids), ids

  def logprob(self, question: str, answer: str) -> float:
    """Works out the mean log-prob of an answer's tokens."""
    found, ids = self.pass_over(f"w3 {question} w4 {answer}")
    n = len(answer.split())
    logprob_TV = numpy_llama.log_softmax(found.logits_TV)
    return float(np.mean([logprob_TV[t - 1, ids[t]] for t in range(len(ids) - n, len(ids))]))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
  directory = tmp_path_factory.mktemp("reader")
  config, tensors = random_llama()
  known = vocabulary(config)
  needed = ["I", "cannot", "help", "with", "that", "Write", "something."]
  words = [*known[: config["vocab_size"] - len(needed)], *needed]
  write_checkpoint(directory, config, tensors, words, TEMPLATE)
  return Reader(pj.load(directory, dtype="float32"), config, tensors, words)


def answers_to(questions: range, seed: int) -> pd.DataFrame:
  """Two answers a question: refusals say so, or begin with w30 where answers begin with w31."""
  rng = np.random.default_rng(seed)
  rows = []
  for n in range(2 * len(questions)):
    label = bool(n % 2)
    rest = " ".join(f"w{k}" for k in rng.integers(40, 60, 3))
    said = REFUSAL.format(20 + n % 7) if label and n % 3 else f"w{30 if label else 31} {rest}"
    rows.append({"question": f"w{questions[n // 2]} w6", "text": said, "label": label})
  return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def labelled() -> pd.DataFrame:
  """Answers to 20 questions."""
  return answers_to(range(5, 25), 0)


@pytest.fixture(scope="module")
def held_out() -> pd.DataFrame:
  """Answers to 12 other questions."""
  return answers_to(range(62, 74), 1)


def independent(reader: Reader, labelled: pd.DataFrame, held_out: pd.DataFrame) -> np.ndarray:
  """Works out log-odds of held-out answers: features by the reference, fits of our own."""

  def features(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    said, gains, means = [], [], []
    for question, answer in zip(table["question"], table["text"], strict=True):
      found, ids = reader.pass_over(f"w3 {question} w4 {answer}")
      means.append(found.resid_post_LTD[BLOCK][len(ids) - len(answer.split()) :].mean(axis=0))
      gains.append(reader.logprob(question, answer) - reader.logprob("Write something.", answer))
      said.append(float(answer.startswith("I cannot")))
    return np.array(said), np.array(gains), np.array(means)

  def logistic(x_NF: np.ndarray, y_N: np.ndarray, **options: Any) -> Any:
    mean_F, sd_F = x_NF.mean(axis=0), x_NF.std(axis=0)
    sd_F[sd_F == 0] = 1.0
    made = LogisticRegression(max_iter=5000, **options).fit((x_NF - mean_F) / sd_F, y_N)
    return lambda x: made.decision_function((x - mean_F) / sd_F)

  def probe(x_ND: np.ndarray, y_N: np.ndarray) -> Any:
    return logistic(x_ND, y_N, C=0.01, class_weight="balanced")

  y_N = labelled["label"].to_numpy()
  said_N, gain_N, mean_ND = features(labelled)
  unseen_N = np.empty(len(y_N))
  for train, test in GroupKFold(5).split(mean_ND, y_N, labelled["question"]):
    unseen_N[test] = probe(mean_ND[train], y_N[train])(mean_ND[test])
  stack = logistic(np.column_stack([said_N, unseen_N, gain_N]), y_N)
  said_M, gain_M, mean_MD = features(held_out)
  return stack(np.column_stack([said_M, probe(mean_ND, y_N)(mean_MD), gain_M]))


def test_answers_to_other_questions_get_the_odds_of_an_independent_fit(
  reader: Reader, labelled: pd.DataFrame, held_out: pd.DataFrame
) -> None:
  assert not set(labelled["question"]) & set(held_out["question"])
  fitted = RefusalEnsemble.fit(reader.model, labelled, block=BLOCK)
  found = fitted.score(held_out.drop(columns="label"))
  odds_M = independent(reader, labelled, held_out)
  np.testing.assert_allclose(
    np.log(found["refusal_p"] / (1 - found["refusal_p"])), odds_M, atol=5e-3
  )
  assert list(found["refused"]) == list(odds_M > 0)
  # What it says of them is right more often than the rules alone, which see two thirds.
  assert roc_auc_score(held_out["label"], odds_M) > 0.9
  rules = (found["refusal_rule"] != "") == held_out["label"]
  assert fitted.validate(held_out)["accuracy"] > rules.mean()


def test_a_reader_averages_the_answers_tokens_and_weighs_the_question(reader: Reader) -> None:
  questions, answers = ["w7 w8", "w9"], ["w40 w41 w42", "w43"]
  read = read_answers(reader.model, questions, answers, BLOCK)
  for n, (question, answer) in enumerate(zip(questions, answers, strict=True)):
    found, ids = reader.pass_over(f"w3 {question} w4 {answer}")
    count = len(answer.split())
    mean_D = found.resid_post_LTD[BLOCK][len(ids) - count :].mean(axis=0)
    np.testing.assert_allclose(read.mean_ND[n], mean_D, rtol=1e-4, atol=1e-5)
    gain = reader.logprob(question, answer) - reader.logprob("Write something.", answer)
    assert read.relevance_N[n] == pytest.approx(gain, abs=1e-4)


def test_the_fitted_stack_is_that_of_its_parts(reader: Reader, labelled: pd.DataFrame) -> None:
  fitted = RefusalEnsemble.fit(reader.model, labelled, block=BLOCK)
  assert isinstance(fitted, Scorer)
  table = labelled.rename(columns={"question": "prompt"})
  found = fitted.score(table)
  assert list(found) == list(fitted.columns)
  parts_NP = np.column_stack(
    [found["refusal_rule"] != "", found["refusal_probe"], found["refusal_relevance"]]
  ).astype(float)
  odds_N = ((parts_NP - fitted.stack.mean) / fitted.stack.scale) @ fitted.stack.weight
  p_N = 1 / (1 + np.exp(-odds_N - fitted.stack.bias))
  np.testing.assert_allclose(found["refusal_p"], p_N, rtol=1e-9)
  assert list(found["refused"]) == list(p_N > 0.5)
  assert fitted.about["refusals"] == 20 and fitted.validate(labelled)["accuracy"] > 0.9
  # The probe by itself, with scikit-learn's own prediction.
  mean_ND = read_answers(reader.model, table["prompt"], table["text"], BLOCK).mean_ND
  scaler = StandardScaler().fit(mean_ND)
  probe = LogisticRegression(C=0.01, class_weight="balanced", max_iter=5000)
  probe.fit(scaler.transform(mean_ND), labelled["label"])
  expected = probe.decision_function(scaler.transform(mean_ND))
  np.testing.assert_allclose(found["refusal_probe"], expected, atol=1e-3)


def test_the_stack_is_fitted_on_scores_of_questions_the_probe_has_not_seen(
  reader: Reader, labelled: pd.DataFrame
) -> None:
  # Labels of nothing: a probe in as many dimensions as rows fits them, and the stack must not.
  rng = np.random.default_rng(1)
  noise = labelled.assign(
    text=[" ".join(f"w{k}" for k in rng.integers(40, 60, 4)) for _ in range(len(labelled))]
  )
  fitted = RefusalEnsemble.fit(reader.model, noise, block=BLOCK)
  weight = dict(zip(("rules", "probe", "relevance"), fitted.stack.weight, strict=True))
  assert weight["rules"] == 0
  own = fitted.probe(read_answers(reader.model, noise["question"], noise["text"], BLOCK).mean_ND)
  seen = LogisticRegression().fit(StandardScaler().fit_transform(own[:, None]), noise["label"])
  assert weight["probe"] < 0.5 * seen.coef_[0, 0]


def test_what_has_no_question_or_answer_is_missing(
  reader: Reader, labelled: pd.DataFrame, tmp_path: Path
) -> None:
  fitted = RefusalEnsemble.fit(reader.model, labelled, block=BLOCK)
  table = pd.DataFrame(
    {"prompt": ["w5 w6", "w5 w6", None, "w5 w6"], "text": ["w40", None, "w40", " "]},
    index=[9, 8, 7, 6],
  )
  found = fitted.score(table)
  assert list(found.index) == [9, 8, 7, 6]
  assert found["refused"].isna().tolist() == [False, True, True, True]
  assert found["refusal_p"].isna().tolist() == [False, True, True, True]
  thinking = fitted.score(pd.DataFrame({"prompt": ["w5 w6"], "text": ["<think>w31</think> w40"]}))
  assert thinking["refusal_p"][0] == found["refusal_p"][9]
  kept = RefusalEnsemble.load(fitted.save(tmp_path / "x.json"), reader.model)
  assert kept.score(table).equals(found)


def test_what_cannot_be_fitted_or_read_is_refused(
  reader: Reader, labelled: pd.DataFrame, tiny: Tiny, tmp_path: Path
) -> None:
  with pytest.raises(ValueError, match="10 answers to 5 questions, 5 refusals"):
    RefusalEnsemble.fit(reader.model, labelled[:10], block=BLOCK)
  with pytest.raises(ValueError, match="an answer or a label is missing"):
    RefusalEnsemble.fit(reader.model, labelled.assign(text=None), block=BLOCK)
  path = RefusalEnsemble.fit(reader.model, labelled, block=BLOCK).save(tmp_path / "x.json")
  with pytest.raises(ValueError, match="fitted with the reader"):
    RefusalEnsemble.load(path, tiny.model)
