"""Judges: rubrics, expected values by an independent Llama, and an endpoint over real HTTP."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.scorers.base import Scorer
from persona_jax.scorers.judges import Endpoint, EndpointJudge, LocalJudge, Rubric, load_rubric
from tests.fixtures import TEMPLATE
from tests.reference import numpy_llama
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama, vocabulary
from tests.scorers.endpoint_server import Answer, Server, reply

NAMES = ("coherence", "competence", "harm", "refusal", "specificity", "trait")
RUBRIC = Rubric("harm", 1, "w5 {question} w6 {answer} w7", ("w8", "w9"), (0.0, 1.0))
ROWS = pd.DataFrame({"prompt": ["w10", "w10", "w11"], "text": ["w12 w13", "w14", "w12"]})


# ---- rubrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_our_rubrics_see_question_and_answer_and_no_condition(name: str) -> None:
  rubric = load_rubric(name)
  assert rubric.name == name
  assert rubric.places - {"trait"} == {"question", "answer"}
  assert rubric.is_binary == (name in ("harm", "refusal", "competence"))
  places = {"trait": "calm"} if "trait" in rubric.places else {}
  asked = rubric.ask("What {x}?", "No {y}.", rubric.orders()[1], **places)
  assert "What {x}?" in asked and "No {y}." in asked  # braces of texts are text
  lines = asked.splitlines()
  assert lines[-len(rubric.options) - 2] == f"A. {rubric.options[-1]}"


def test_expected_values_renormalise_the_letters_in_either_order() -> None:
  rubric = load_rubric("coherence")
  rising, falling = rubric.orders()
  p = {"A": 0.1, "B": 0.3}  # of .4 in all
  assert rubric.expected(p, rising) == pytest.approx(0.75 * 25)
  assert rubric.expected(p, falling) == pytest.approx(0.25 * 100 + 0.75 * 75)
  assert np.isnan(rubric.expected({}, rising))


def test_bad_rubrics_say_what_fits(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match=r"lacks \['answer'\]"):
    Rubric("x", 1, "{question}", ("no", "yes"), (0.0, 1.0))
  with pytest.raises(ValueError, match="rising ones"):
    Rubric("x", 1, "{question} {answer}", ("no", "yes"), (1.0, 0.0))
  with pytest.raises(ValueError, match="2 to 8 different ones"):
    Rubric("x", 1, "{question} {answer}", ("no", "no"), (0.0, 1.0))
  with pytest.raises(ValueError, match="unknown rubric 'hurt'; known: coherence, competence, harm"):
    load_rubric("hurt")
  file = tmp_path / "mine.toml"
  file.write_text('name = "x"\nversion = 1\ntext = "{question}{answer}"\noptions = ["n", "y"]\n')
  with pytest.raises(ValueError, match="'values'"):
    load_rubric(file)
  file.write_text(file.read_text() + "values = [0, 1]\n")
  assert load_rubric(str(file)).is_binary
  with pytest.raises(ValueError, match=r"given are \['answer', 'question'\]"):
    load_rubric("trait").ask("q", "a", (0, 1, 2, 3, 4))


# ---- on our own engine ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reader:
  """A random Llama that knows the words of the rubric."""

  model: pj.Model
  config: dict
  tensors: dict
  words: list[str]

  def expected(self, question: str, answer: str) -> tuple[float, float]:
    """Works out the value, and the least mass of the letters, by the reference."""
    values, masses = [], []
    for order in RUBRIC.orders():
      chat = f"w3 {RUBRIC.ask(question, answer, order)} w4"
      ids = [self.words.index(word) for word in chat.split()]
      logits_TV = numpy_llama.forward(self.config, self.tensors, ids).logits_TV
      p_V = np.exp(numpy_llama.log_softmax(logits_TV[-1:])[0])
      p_J = np.array([p_V[self.words.index(letter)] for letter in "AB"])
      values.append(p_J[order.index(1)] / p_J.sum())
      masses.append(p_J.sum())
    return float(np.mean(values)), float(min(masses))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
  directory = tmp_path_factory.mktemp("reader")
  config, tensors = random_llama()
  asked = " ".join(RUBRIC.ask("w10", "w12", order) for order in RUBRIC.orders())
  known = vocabulary(config)
  needed = [w for w in dict.fromkeys(["A", "B", *asked.split()]) if w not in known]
  words = [*known[: config["vocab_size"] - len(needed)], *needed]
  write_checkpoint(directory, config, tensors, words, TEMPLATE)
  return Reader(pj.load(directory, dtype="float32"), config, tensors, words)


def test_a_local_judge_gives_the_expected_value_of_both_orders(reader: Reader) -> None:
  judge = LocalJudge(reader.model, RUBRIC, least_mass=0.0)
  assert isinstance(judge, Scorer)
  assert judge.columns == ("judge_harm", "judge_harm_reason", "judge_harm_verdict")
  found = judge.score(ROWS)
  truth = [reader.expected(*row)[0] for row in ROWS.itertuples(index=False)]
  np.testing.assert_allclose(found["judge_harm"], truth, atol=1e-5)
  assert list(found["judge_harm_verdict"]) == [value > 0.5 for value in truth]
  assert set(found["judge_harm_reason"]) == {""}


def test_what_a_local_judge_does_not_answer_is_missing_and_no_zero(reader: Reader) -> None:
  masses = [reader.expected(*row)[1] for row in ROWS.itertuples(index=False)]
  least = float(np.mean(sorted(masses)[1:3]))  # far from all, by whatever sums are rounded
  table = pd.concat([ROWS, pd.DataFrame({"prompt": ["w10"], "text": [None]})], ignore_index=True)
  found = LocalJudge(reader.model, RUBRIC, least_mass=least).score(table)
  missing = [mass < least for mass in masses]
  assert any(missing) and not all(missing)
  assert list(found["judge_harm"].isna()) == [*missing, True]
  assert found["judge_harm_verdict"].isna().sum() == sum(missing) + 1
  assert list(found["judge_harm_reason"] == "") == [not m for m in missing] + [False]
  assert found["judge_harm_reason"].iloc[-1] == "no text"


def test_a_thought_is_not_judged_and_equal_rows_are_asked_once(reader: Reader) -> None:
  judge = LocalJudge(reader.model, RUBRIC, least_mass=0.0)
  table = pd.DataFrame({"prompt": ["w10"] * 2, "text": ["w12", "<think>w14</think> w12"]})
  found = judge.score(table)["judge_harm"]
  assert found[0] == found[1]
  assert found[0] == pytest.approx(reader.expected("w10", "w12")[0], abs=1e-5)


def test_validation_compares_verdicts_and_values(reader: Reader) -> None:
  judge = LocalJudge(reader.model, RUBRIC, least_mass=0.0)
  values = judge.score(ROWS)["judge_harm"].to_numpy()
  found = judge.validate(ROWS.assign(label=pd.array(values > 0.5, dtype="boolean")))
  assert found["accuracy"] == 1.0
  graded = judge.validate(ROWS.assign(label=values + 0.1))
  assert graded["mae"] == pytest.approx(0.1) and graded["spearman"] == pytest.approx(1.0)
  assert graded["n_compared"] == 3


# ---- behind an endpoint --------------------------------------------------------------------------


def rule(text: str, number: int) -> tuple[int, bytes]:
  """Says with .8 that the answer w14 is the option w9, whichever its letter, and others are not."""
  del number
  letter = {line[3:]: line[0] for line in text.splitlines() if line[1:3] == ". "}
  said = letter["w9" if "w14" in text else "w8"]
  other = "A" if said == "B" else "B"
  return 200, reply(said, {said: 0.8, other: 0.1, "w": 0.1})


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
  """Starts servers, and stops them at the end."""
  started: list[Server] = []

  def start(answer: Answer) -> Server:
    started.append(Server(answer))
    return started[-1]

  yield start
  for server in started:
    server.stop()


def judge_at(server: Server | str, cache: Path, **options: object) -> EndpointJudge:
  url = server if isinstance(server, str) else server.url
  options = {"key_variable": "", "timeout": 20.0, "retries": 2} | options
  return EndpointJudge(RUBRIC, Endpoint(url, "judge", **options), cache)  # type: ignore[arg-type]


def test_an_endpoint_is_asked_in_both_orders_and_weighed_by_probability(
  serve: Callable[[Answer], Server], tmp_path: Path
) -> None:
  server = serve(rule)
  judge = judge_at(server, tmp_path, price_in=2.0, price_out=3.0)
  found = judge.score(ROWS)
  np.testing.assert_allclose(found["judge_harm"], [1 / 9, 8 / 9, 1 / 9])
  assert list(found["judge_harm_verdict"]) == [False, True, False]
  assert len(server.asked) == judge.usage.requests == 6
  assert (judge.usage.tokens_in, judge.usage.tokens_out) == (60, 6)
  assert judge.usage.cost == pytest.approx((60 * 2 + 6 * 3) / 1e6)
  assert all(body["logprobs"] and body["temperature"] == 0 for body in server.asked)
  assert "logprobs" not in str(judge.describe["judge"])
  # Without probabilities the letter itself counts.
  plain = judge_at(server, tmp_path, logprobs=False).score(ROWS)
  assert list(plain["judge_harm"]) == [0.0, 1.0, 0.0]


def test_replies_are_kept_and_only_what_is_missing_is_asked_again(
  serve: Callable[[Answer], Server], tmp_path: Path
) -> None:
  server = serve(rule)
  judge_at(server, tmp_path).score(ROWS[:2])
  again = judge_at(server, tmp_path)
  found = again.score(ROWS)
  assert len(server.asked) == 6
  assert (again.usage.cached, again.usage.requests) == (4, 2)
  assert found["judge_harm"].notna().all()
  # The same server on another port is the same judge; on another host it needs a name for that.
  moved = dataclasses.replace(again.endpoint, base_url="https://127.0.0.1:1/v1/")
  at = EndpointJudge(RUBRIC, moved, tmp_path)
  assert at.score(ROWS)["judge_harm"].notna().all() and at.usage.cached == 6
  assert at.describe["base_url"] == "https://127.0.0.1:1/v1/"
  elsewhere = dataclasses.replace(moved, base_url="http://10.0.0.1/v1")
  path = lambda endpoint, rubric=RUBRIC: EndpointJudge(rubric, endpoint, tmp_path).path_of("x")
  assert path(moved) == path(again.endpoint) != path(elsewhere)
  named = [dataclasses.replace(one, name="lab") for one in (moved, elsewhere)]
  assert path(named[0]) == path(named[1]) != path(moved)
  # Another version of the rubric is another question, even in the same words; as are other words.
  assert path(moved, dataclasses.replace(RUBRIC, version=RUBRIC.version + 1)) != path(moved)
  other = dataclasses.replace(RUBRIC, text=RUBRIC.text + " w20")
  EndpointJudge(other, again.endpoint, tmp_path).score(ROWS[:1])
  assert len(server.asked) == 8
  for file in tmp_path.rglob("*.json"):
    file.write_text(file.read_text()[:5])  # cut off while it was written
  judge_at(server, tmp_path).score(ROWS[:1])
  assert len(server.asked) == 10
  for file in tmp_path.rglob("*.json"):
    file.write_text('{"text": "A"}')  # whole, but of another form
  judge_at(server, tmp_path).score(ROWS[:1])
  assert len(server.asked) == 12


def test_a_cost_needs_both_prices() -> None:
  with pytest.raises(ValueError, match=r"price_in=2.0, price_out=None: both"):
    Endpoint("http://localhost", "judge", price_in=2.0)
  with pytest.raises(ValueError, match=r"price_in=None, price_out=3.0: both"):
    Endpoint("http://localhost", "judge", price_out=3.0)


def test_a_server_that_fails_now_and_then_is_asked_again(
  serve: Callable[[Answer], Server], tmp_path: Path
) -> None:
  def answer(text: str, number: int) -> tuple[int, bytes]:
    if number % 3 == 1:
      return 429, b'{"error": {"message": "too many"}}'
    return (500, b"oops") if number % 3 == 2 else rule(text, number)

  server = serve(answer)
  judge = judge_at(server, tmp_path, concurrency=1)
  found = judge.score(ROWS)
  assert found["judge_harm"].notna().all()
  assert len(server.asked) == 3 * judge.usage.requests == 18
  assert not judge.usage.failures


@pytest.mark.parametrize(
  ("status", "body", "reason"),
  [
    (500, b"oops", "endpoint: status 500"),
    (401, b'{"error": {"message": "no"}}', "endpoint: status 401"),
    (200, b"{}", "endpoint: not a reply of the API's form"),
    (200, b'{"choices": [', "endpoint: not a reply of the API's form"),
    (200, reply("maybe"), "the reply is none of the letters AB"),
    (200, reply("A B"), "the reply is none of the letters AB"),
    (200, reply("x", {"x": 0.9, "A": 0.1}), "the options have 0.1 of the probability, 0.5 needed"),
  ],
)
def test_what_fails_is_missing_with_its_reason(
  serve: Callable[[Answer], Server], tmp_path: Path, status: int, body: bytes, reason: str
) -> None:
  server = serve(lambda text, number: (status, body))
  judge = judge_at(server, tmp_path)
  found = judge.score(ROWS[:1])
  assert found["judge_harm"].isna().all() and found["judge_harm_verdict"].isna().all()
  assert list(found["judge_harm_reason"]) == [reason]
  assert judge.usage.failures == {reason: 2}
  assert len(server.asked) == (2 * 3 if status == 500 else 2)  # twice more of what may pass
  if reason.startswith("endpoint"):
    assert not list(tmp_path.rglob("*.json"))  # what failed is not kept


def test_no_more_requests_are_open_than_allowed(
  serve: Callable[[Answer], Server], tmp_path: Path
) -> None:
  full = threading.Semaphore(0)
  begun = threading.Barrier(3)

  def answer(text: str, number: int) -> tuple[int, bytes]:
    begun.wait(10)  # until three are open
    full.release()
    return rule(text, number)

  server = serve(answer)
  table = pd.DataFrame({"prompt": ["w10"] * 6, "text": [f"w{n}" for n in range(20, 26)]})
  found = judge_at(server, tmp_path, concurrency=3).score(table)
  assert found["judge_harm"].notna().all()
  assert server.most == 3


def test_a_slow_server_and_one_that_is_gone_lose_no_reply_and_make_no_zero(
  serve: Callable[[Answer], Server], tmp_path: Path
) -> None:
  ended = threading.Event()

  def answer(text: str, number: int) -> tuple[int, bytes]:
    if "w14" in text:
      ended.wait(20)  # longer than anybody waits for it
    return rule(text, number)

  server = serve(answer)
  judge = judge_at(server, tmp_path, timeout=0.3, retries=0)
  found = judge.score(ROWS)
  assert list(found["judge_harm"].isna()) == [False, True, False]
  assert found["judge_harm_reason"][1] == "endpoint: no reply in time"
  ended.set()
  url = server.url
  server.stop()
  gone = judge_at(url, tmp_path, retries=0)
  left = gone.score(ROWS)
  assert list(left["judge_harm"].isna()) == [False, True, False]
  assert left["judge_harm_reason"][1] == "endpoint: no connection"
  assert (gone.usage.cached, gone.usage.failures) == (4, {"endpoint: no connection": 2})


def test_a_judge_runs_inside_a_running_loop_and_keeps_the_key_to_itself(
  serve: Callable[[Answer], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  server = serve(rule)
  with pytest.raises(ValueError, match="environment variable JUDGE_KEY is not set"):
    judge_at(server, tmp_path, key_variable="JUDGE_KEY")
  monkeypatch.setenv("JUDGE_KEY", "secret-1")
  judge = judge_at(server, tmp_path, key_variable="JUDGE_KEY")

  async def cell() -> pd.DataFrame:  # as a notebook runs one
    return judge.score(ROWS)

  assert asyncio.run(cell())["judge_harm"].notna().all()
  assert set(server.keys) == {"Bearer secret-1"}
  assert "secret-1" not in repr(judge.describe)
  assert not any("secret-1" in file.read_text() for file in tmp_path.rglob("*.json"))
