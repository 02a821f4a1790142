"""Scores and activations on one GPU, by us and by Hugging Face: two sections of `gpu.py`.

  score    a questionnaire: personas x items x 5 answers of one token, as log-probabilities. The
           peer has one pass a prompt for all answers, or each persona's beginning prefilled once
  capture  `resid_post` of every block at the last token of many prompts, into means and variances.
           The peer adds sums up in float64 on the device, or keeps every activation

Texts are random words, with in common what a questionnaire's have: a persona of 150 tokens, a
question's beginning of 30. The prompts of the capture share only the template.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import persona_jax as pj
from benchmarks.grid.engine_section import seconds
from persona_jax.engine.score import score_rows

PEER_TOKENS = 16_384  # of a batch, with padding
WARM = 2048  # prompts that the peer captures before the clock


def _words(rng: np.random.Generator, vocab: int, count: int) -> str:
  return " ".join(f"w{n}" for n in rng.integers(3, vocab, count))


def score_section(
  model: pj.Model, peer: Any, personas: int, items: int, repetitions: int
) -> dict[str, Any]:
  """Return rows a second of each arm, and how far their log-probabilities lie apart."""
  rng, vocab = np.random.default_rng(1), model.arch.vocab_size
  question = _words(rng, vocab, 30)
  statements = [_words(rng, vocab, int(rng.integers(5, 16))) for _ in range(items)]
  systems = [_words(rng, vocab, 150) for _ in range(personas)]
  once = [
    [{"role": "system", "content": s}, {"role": "user", "content": f"{question} {t}"}]
    for s in systems
    for t in statements
  ]
  answers = [f"w{n}" for n in range(3, 8)]
  prompts = [prompt for prompt in once for _ in answers]
  given = answers * len(once)
  ids = [[int(i) for i in model.encode(prompt).ids] for prompt in once]
  fed = sum(map(len, ids))
  groups = [n // items for n in range(len(once))]
  answer_ids = [int(model.tokenizer.encode(a)[0]) for a in answers]
  computed = score_rows(model, prompts, given).passes / model.arch.num_blocks

  found: dict[str, np.ndarray] = {}
  arms: dict[str, Callable[[], Any]] = {
    "ours": lambda: found.update(ours=model.score(prompts, given).reshape(-1, len(answers)))
  }
  if peer is not None:
    from benchmarks.grid.peers import hf_reads

    arms["hf"] = lambda: found.update(hf=hf_reads.scores(peer.model, ids, answer_ids, PEER_TOKENS))
    arms["hf_reuse"] = lambda: found.update(
      hf_reuse=hf_reads.scores_reusing(peer.model, ids, answer_ids, PEER_TOKENS, groups)
    )
  section = {
    "rows": len(prompts), "tokens_of_prompts": fed, "tokens_computed_by_us": computed,
    "warm_s": {name: seconds(run) for name, run in arms.items()},
    **_timed(arms, len(prompts), repetitions),
  }  # fmt: skip
  if peer is not None:
    section["logprob_distance"] = {
      name: float(np.abs(found[name] - found["ours"]).mean()) for name in ("hf", "hf_reuse")
    }
  return section


def capture_section(model: pj.Model, peer: Any, count: int, repetitions: int) -> dict[str, Any]:
  """Return prompts a second of each arm, and how far their means lie apart."""
  rng, vocab = np.random.default_rng(2), model.arch.vocab_size
  texts = [_words(rng, vocab, int(rng.integers(20, 61))) for _ in range(count)]
  what = pj.Capture(reduce="last")
  ids = [[int(i) for i in model.encode(text).ids] for text in texts]
  found: dict[str, np.ndarray] = {}

  def ours(count: int = count) -> None:
    moments = model.moments(texts[:count], what)
    blocks = range(model.arch.num_blocks)
    found["ours"] = np.stack([moments.mean["resid_post", n][0] for n in blocks])
    section["padding"] = moments.work.padding

  arms: dict[str, Callable[..., Any]] = {"ours": ours}
  if peer is not None:
    from benchmarks.grid.peers import hf_reads

    def theirs(name: str, count: int = count) -> None:
      of = {"hf": hf_reads.moments, "hf_stored": hf_reads.moments_stored}[name]
      found[name] = of(peer.model, ids[:count], "last", PEER_TOKENS)[0]

    for name in ("hf", "hf_stored"):
      arms[name] = functools.partial(theirs, name)
  section: dict[str, Any] = {"prompts": count, "tokens": sum(map(len, ids))}
  arms["ours"]()  # whole, for its shapes of programs
  if peer is not None:
    for name in ("hf", "hf_stored"):
      theirs(name, WARM)
  section |= _timed(arms, count, repetitions)
  if peer is not None:
    error_LD = found["hf"] - found["ours"]
    norm_L = np.linalg.norm(found["ours"], axis=-1)
    section["distance_of_means"] = float((np.linalg.norm(error_LD, axis=-1) / norm_L).max())
  return section


def _timed(arms: dict[str, Callable[[], Any]], count: int, repetitions: int) -> dict[str, Any]:
  """Run arms in turn; return seconds of each run, rates and ratios."""
  took: dict[str, list[float]] = {name: [] for name in arms}
  for _ in range(repetitions):
    for name, run in arms.items():
      took[name].append(seconds(run))
  rate = {name: count / statistics.median(each) for name, each in took.items()}
  ratio = {name: rate["ours"] / r for name, r in rate.items() if name != "ours"}
  return {"seconds": took, "per_second": rate, "ratio": ratio}
