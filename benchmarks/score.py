"""Questionnaires by log-probability: 12 personas x 120 IPIP-NEO items x 5 answers, and a peer.

    python -m benchmarks.score          (make bench-score)

SmolLM2-135M-Instruct in float32 is asked, under each persona's system prompt, how well a statement
describes it; a row is one of the five answers. Ours is one call over texts: rows share the persona,
the question's beginning and, between answers, the whole prompt. The peer is Hugging Face on the
same weights and token ids (`grid/peers/hf_reads.py`): one pass a prompt for all five answers, and
the same with each persona's beginning prefilled once by hand. A third is this engine without
sharing, every row whole and by itself: an ablation, no peer.

All run in turn on two cores, each after a pass over the same rows (the peer: some of them) that
compiles. Items of the ablation are fewer (--alone-items); those of the peer can be (--peer-items),
but what it reads once for each persona then serves fewer rows than ours. Log-probabilities are
compared where both have them.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import persona_jax as pj
from benchmarks.grid import machine, work
from benchmarks.grid.environments import ENVIRONMENTS, ROOT
from benchmarks.grid.protocol import THREADS
from persona_jax.data.items import load_ipip120
from persona_jax.engine.score import Scored, score_rows
from persona_jax.engine.tree import ALL_SHARED, Sharing
from persona_jax.personas import load_personas

OUT = Path(__file__).parent / "out"
MODEL = "smollm2-135m-instruct"
QUESTION = (
  "Rate how accurately the statement describes you, from 1 (very inaccurate) to 5 (very accurate). "
  "Answer with the number only. Statement: {}"
)
ANSWERS = ("1", "2", "3", "4", "5")
NOTHING = Sharing(False, False, False, False)
PEER_TOKENS = 2048  # of a batch, with padding


def make_rows(num_personas: int, num_items: int) -> tuple[list[list[dict[str, str]]], list[str]]:
  """Return prompts and continuations of all rows."""
  prompts, answers = [], []
  for persona in load_personas()[:num_personas]:
    for item in load_ipip120()[:num_items]:
      question = {"role": "user", "content": QUESTION.format(item.text)}
      prompts += [[{"role": "system", "content": persona.text()}, question]] * len(ANSWERS)
      answers += ANSWERS
  return prompts, answers


def analytic_tokens(model: pj.Model, prompts: list) -> tuple[int, int]:
  """Count the tokens that must be fed if nothing is shared: all but each row's last.

  Returns:
    With a pass for every answer, and with one for the answers of a prompt (each is one token).
  """
  fed = {answer: len(model.tokenizer.encode(answer)) - 1 for answer in ANSWERS}
  assert not any(fed.values()), "an answer is more than one token"
  lengths: dict[int, int] = {}
  for prompt in prompts:
    if id(prompt) not in lengths:
      lengths[id(prompt)] = len(model.encode(prompt).ids)
  return sum(lengths[id(prompt)] for prompt in prompts), sum(lengths.values())


def peer(call: str, request: dict[str, Any], directory: Path) -> dict[str, Any]:
  """Run Hugging Face on a request in a process of its own; return what it answers.

  Raises:
    RuntimeError: it failed, or its environment has not been made.
  """
  if not ENVIRONMENTS["hf"].stamp.exists():
    raise RuntimeError("make the peer's environment: python -m benchmarks.grid.environments hf")
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "request.json"
    file.write_text(json.dumps({"call": call, **request}))
    command = [ENVIRONMENTS["hf"].python, "-m", "benchmarks.grid.peers.hf_reads", directory, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{call}: {done.stderr[-2000:]}")
  found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--personas", type=int, default=12)
  parser.add_argument("--items", type=int, default=120)
  parser.add_argument("--alone-items", type=int, default=5)
  parser.add_argument("--peer-items", type=int, default=120)
  parser.add_argument("--repeats", type=int, default=2)
  args = parser.parse_args()
  machine.use_cores(THREADS)
  directory = OUT / "work"
  work.build(directory)
  model = pj.load(MODEL, dtype="float32")
  asked = Asked(model, args.personas)
  ours = {"shared": (args.items, ALL_SHARED), "alone": (args.alone_items, NOTHING)}
  records: list[dict[str, Any]] = []
  scores: dict[str, np.ndarray] = {}
  for repeat in range(args.repeats + 1):
    for way, (items, sharing) in ours.items():
      if way == "alone" and repeat > 1:
        continue
      scores[way], record = asked.by_us(items, sharing)
      _keep(records, {"way": way, "compiling": repeat == 0, **record})
    for way in ("hf", "hf_reuse") if repeat and args.peer_items else ():
      scores[way], record = asked.by_peer(way, args.peer_items, directory)
      _keep(records, {"way": way, "compiling": False, **record})
  timed: dict[str, list[float]] = {}
  for r in records:
    if not r["compiling"]:
      timed.setdefault(r["way"], []).append(r["rows_per_second"])
  rate = {way: statistics.median(rates) for way, rates in timed.items()}
  about: dict[str, Any] = {"device": machine.device(), "rows_per_second": rate, "ratio": {}}
  about["largest_difference"] = {}
  for way in set(rate) - {"shared"}:
    both = min(scores[way].shape[1], args.items)
    error = float(np.abs(scores["shared"][:, :both] - scores[way][:, :both]).max())
    about["ratio"][way], about["largest_difference"][way] = rate["shared"] / rate[way], error
    print(
      f"ours against {way}: {rate['shared'] / rate[way]:.1f}x the rows a second; "
      f"log-probs differ by at most {error:.1e}"
    )
  OUT.mkdir(exist_ok=True)
  (OUT / "score.json").write_text(json.dumps(about | {"records": records}, indent=1))


class Asked:
  """The questions to a model, by us and by the peer."""

  def __init__(self, model: pj.Model, personas: int):
    self.model, self.personas = model, personas

  def by_us(self, items: int, sharing: Sharing) -> tuple[np.ndarray, dict[str, Any]]:
    """Return log-probabilities [personas, items, answers] and what they cost."""
    prompts, answers = make_rows(self.personas, items)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    scored: Scored = score_rows(self.model, prompts, answers, sharing=sharing)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    needed, by_prompt = analytic_tokens(self.model, prompts)
    logprobs = np.asarray([x.sum() for x in scored.logprobs])
    return logprobs.reshape(self.personas, items, len(ANSWERS)), {
      "rows": len(prompts), "seconds": seconds, "cpu_seconds": cpu_seconds,
      "rows_per_second": len(prompts) / seconds, "tokens_without_sharing": needed,
      "tokens_with_a_pass_a_prompt": by_prompt,
      "tokens_computed": scored.passes / self.model.arch.num_blocks,
      "padding": 1 - scored.passes / scored.padded_passes,
    }  # fmt: skip

  def by_peer(self, way: str, items: int, directory: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the same of Hugging Face."""
    prompts, _ = make_rows(self.personas, items)
    once = prompts[:: len(ANSWERS)]
    request = {
      "prompts": [[int(i) for i in self.model.encode(p).ids] for p in once],
      "answers": [self.model.tokenizer.encode(answer)[0] for answer in ANSWERS],
      "groups": [n // items for n in range(len(once))],
      "tokens": PEER_TOKENS, "warm": min(items, 24),
    }  # fmt: skip
    call = {"hf": "scores", "hf_reuse": "scores_reusing"}[way]
    record = peer(call, request, directory)
    logprobs = np.asarray(record.pop("logprobs")).reshape(self.personas, items, len(ANSWERS))
    record |= {"rows": len(prompts), "rows_per_second": len(prompts) / record["seconds"]}
    return logprobs, record


def _keep(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
  """Keep a record, and print it."""
  records.append(record)
  text = (
    f"{record['way']:8s}{' (compiling)' if record['compiling'] else '':12s} {record['rows']} rows: "
    f"{record['rows_per_second']:.1f} rows/s, "
    f"{1e3 * record['cpu_seconds'] / record['rows']:.0f} ms of CPU a row"
  )
  if "tokens_computed" in record:
    needed, by_prompt, computed = (
      record[key]
      for key in ("tokens_without_sharing", "tokens_with_a_pass_a_prompt", "tokens_computed")
    )
    text += (
      f", {computed:.0f} tokens computed (without sharing {needed}, {needed / computed:.1f}x; with "
      f"a pass a prompt {by_prompt}, {by_prompt / computed:.1f}x), padding {record['padding']:.0%}"
    )
  print(text, flush=True)


if __name__ == "__main__":
  main()
