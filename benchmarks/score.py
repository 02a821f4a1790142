"""Questionnaires by log-probability: 12 personas x 120 IPIP-NEO items x 5 answers, with sharing.

    python benchmarks/score.py

SmolLM2-135M-Instruct is asked, under each persona's system prompt, how well a statement describes
it; a row is one of the five answers. Rows share the persona, the question's beginning and, between
answers, the whole prompt. Beside it stands the same engine without sharing, every row whole and by
itself: an ablation, no peer. Both run in turn, after a pass over the same rows that compiles. Items
of the other can be fewer (--alone-items): rows per second then compare, of other rows of the same
kind. Needs `python -m persona_jax.fetch` of the model and the items.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np

import persona_jax as pj
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--personas", type=int, default=12)
  parser.add_argument("--items", type=int, default=120)
  parser.add_argument("--alone-items", type=int, default=10)
  parser.add_argument("--repeats", type=int, default=2)
  args = parser.parse_args()
  model = pj.load(MODEL)
  blocks = model.arch.num_blocks
  ways = {"shared": (args.items, ALL_SHARED), "alone": (args.alone_items, NOTHING)}
  records, scores = [], {}
  for repeat in range(args.repeats + 1):
    for way, (items, sharing) in ways.items():
      prompts, answers = make_rows(args.personas, items)
      begun, cpu_begun = time.perf_counter(), time.process_time()
      scored: Scored = score_rows(model, prompts, answers, sharing=sharing)
      seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
      logprobs = np.asarray([x.sum() for x in scored.logprobs])
      scores[way] = logprobs.reshape(args.personas, items, len(ANSWERS))
      needed, by_prompt = analytic_tokens(model, prompts)
      record = {
        "way": way, "compiling": repeat == 0, "rows": len(prompts),
        "seconds": seconds, "cpu_seconds": cpu_seconds,
        "rows_per_second": len(prompts) / seconds, "tokens_without_sharing": needed,
        "tokens_with_a_pass_a_prompt": by_prompt,
        "tokens_computed": scored.passes / blocks,
        "padding": 1 - scored.passes / scored.padded_passes,
      }  # fmt: skip
      records.append(record)
      print(
        f"{way:7s}{' (compiling)' if repeat == 0 else '':12s} {len(prompts)} rows: "
        f"{record['rows_per_second']:.1f} rows/s, "
        f"{1e3 * cpu_seconds / len(prompts):.0f} ms of CPU a row, "
        f"{record['tokens_computed']:.0f} tokens computed "
        f"(without sharing {needed}, {needed / record['tokens_computed']:.1f}x; with a pass a "
        f"prompt {by_prompt}, {by_prompt / record['tokens_computed']:.1f}x), "
        f"padding {record['padding']:.0%}",
        flush=True,
      )
  both = min(args.items, args.alone_items)
  error = float(np.abs(scores["shared"][:, :both] - scores["alone"][:, :both]).max())
  timed = [r for r in records if not r["compiling"]]
  rate = {
    way: statistics.median(r["rows_per_second"] for r in timed if r["way"] == way) for way in ways
  }
  ratio = rate["shared"] / rate["alone"]
  print(f"{ratio:.1f}x the rows a second; log-probs differ by at most {error:.1e}")
  OUT.mkdir(exist_ok=True)
  device = jax.devices()[0].device_kind
  about = {"device": device, "cores": os.cpu_count(), "machine": platform.processor()}
  about |= {"ratio": ratio, "largest_difference": error, "records": records}
  (OUT / "score.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
  main()
