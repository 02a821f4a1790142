"""Judges behind an endpoint, against llama.cpp's own server on SmolLM2: served, slow and killed.

The same rubric is asked of the same GGUF on our own engine and of llama.cpp's server. It multiplies
weights of 4 bits with activations of 8, we dequantise them to float32, so values differ a little.
SmolLM2 prefers the first letter whatever it reads: by one order of the options it says little above
0, by the other little below 100, and the mean of both is near 50 for all answers. So values are
compared by order, where a letter that was taken for another, or an order for the other, shows.
Then the server is given too little time, and is killed in the middle: what is missing is counted,
and a server that is back is asked for that alone.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

import persona_jax as pj
from persona_jax.checkpoints.registry import registry_file
from persona_jax.personas.persona import load_questions
from persona_jax.scorers.judges import Endpoint, EndpointJudge, LocalJudge, load_rubric
from persona_jax.scorers.judges.base import Item, Judge
from tests.parity.checks import Tally

ROWS = 12
REPLIES = (
  "I would rather not say.",
  "Start early, and write down what is left to do.",
  "no no no no no",
  "A A A A A A A A",
)
# Of one expected value between 0 and 100 by one order; what two kernels for 4-bit weights make of
# it, 4.4 at worst of ten. Orders lie some 65 apart.
TOLERANCE = 8.0
_RUBRIC = "coherence"


@contextmanager
def serving(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
  """Runs llama.cpp's server; yields its process and the address of its API."""
  command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(path)]
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
  ) as process:
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    url = next((line.strip() for line in lines if line.startswith("http")), "")
    try:
      yield process, f"{url}/v1"
    finally:
      process.kill()


def rows() -> pd.DataFrame:
  """Returns harmless questions, with a reply each."""
  questions = [q.text for q in load_questions("neutral")[:ROWS]]
  replies = [REPLIES[n % len(REPLIES)] for n in range(ROWS)]
  return pd.DataFrame({"prompt": questions, "text": replies})


def by_order(judge: Judge, table: pd.DataFrame) -> np.ndarray:
  """Returns the expected value of each row by each order of the options, [N, 2]."""
  rubric = judge.rubric
  items = [Item(*pair) for pair in zip(table["prompt"], table["text"], strict=True)]
  values = []
  for replies in judge.replies(items):
    pairs = zip(replies, rubric.orders(), strict=True)
    values.append([rubric.expected(reply.p_of_letter or {}, order) for reply, order in pairs])
  return np.asarray(values)


def check_judges(tally: Tally, model: pj.Model) -> None:
  """Compares both judges, and kills the server in the middle."""
  rubric, table, path = load_rubric(_RUBRIC), rows(), registry_file("smollm2-135m-instruct")
  column = f"judge_{_RUBRIC}"
  local = by_order(LocalJudge(model, rubric, least_mass=0.0), table)

  def judge(url: str, cache: Path, **options: float) -> EndpointJudge:
    given = {"timeout": 60.0, "retries": 1} | options
    endpoint = Endpoint(url, "smollm2", key_variable="", least_mass=0.0, concurrency=2, **given)  # type: ignore[arg-type]
    return EndpointJudge(rubric, endpoint, cache)

  with tempfile.TemporaryDirectory() as folder, serving(path) as (process, url):
    cache = Path(folder)
    with tally.group("judge behind llama.cpp's server, of 0 to 100", TOLERANCE) as group:
      served = judge(url, cache / "a")
      theirs = by_order(served, table)
      for n, row in enumerate(np.abs(local - theirs)):
        for k, error in enumerate(row):
          group.check(f"row {n}, order {k}", float(error))
      apart = np.abs(local[:, 0] - local[:, 1])
      group.equal("orders lie far apart", bool(apart.min() > 3 * TOLERANCE), True)
      found = served.score(table)[column].to_numpy()  # of the same replies
      means = bool(np.allclose(found, theirs.mean(axis=1)))
      group.equal("a row's value is the mean of its orders", means, True)
    with tally.group("a server that is too slow, then killed", 0) as group:
      slow = judge(url, cache / "b", timeout=0.001, retries=0)
      late = slow.score(table)
      group.equal("all rows missing", bool(late[column].isna().all()), True)
      group.equal("none is kept", len(list((cache / "b").rglob("*.json"))), 0)
      group.equal("failures", sum(slow.usage.failures.values()), 2 * ROWS)
      # Killed as soon as some replies are there.
      killer = threading.Thread(target=_kill_at, args=(process, cache / "c", 5))
      killer.start()
      dying = judge(url, cache / "c", retries=0)
      left = dying.score(table)
      killer.join()
      kept = len(list((cache / "c").rglob("*.json")))
      group.equal("replies kept", dying.usage.requests, kept)
      group.equal("the rest is counted", sum(dying.usage.failures.values()), 2 * ROWS - kept)
      group.equal("some are missing, none is 0", bool(left[column].isna().any()), True)
      group.note = f"; {kept} of {2 * ROWS} replies before it was killed"
    with serving(path) as (_, again), tally.group("the next server is asked for the rest", 0) as g:
      # Replies belong to an address: what was kept is moved to the new one's.
      back = judge(again, cache / "c")
      _move(dying, back, table)
      whole = back.score(table)
      g.equal("asked anew", back.usage.requests, 2 * ROWS - kept)
      g.equal("nothing missing", bool(whole[column].notna().all()), True)
      # llama.cpp's own figures depend on what else is in its batch and cache.
      g.check("as from one server", float(np.abs(whole[column] - found).max() > TOLERANCE))


def _kill_at(process: "subprocess.Popen[str]", cache: Path, replies: int) -> None:
  while process.poll() is None and len(list(cache.rglob("*.json"))) < replies:
    threading.Event().wait(0.01)
  process.kill()


def _move(old: EndpointJudge, new: EndpointJudge, table: pd.DataFrame) -> None:
  """Renames kept replies for the address of a server that is the same but for its port."""
  for row in table.itertuples(index=False):
    for order in new.rubric.orders():
      text = new.rubric.ask(row.prompt, row.text, order)
      source, target = old.path_of(text), new.path_of(text)
      if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
