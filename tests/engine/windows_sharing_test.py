"""Models with sliding windows and caps: rows that share, leave, grow equal a pass of each whole."""

import dataclasses

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import forward, segments
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.generate import run_tile
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.settings import Settings
from tests.engine.whole import generate_with_logits, whole_logprobs, whole_pass
from tests.fixtures import TEMPLATE, Tiny
from tests.parity import family_numbers
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors
from tests.reference.random_llama import vocabulary

SYSTEM = " ".join(f"w{i}" for i in range(40, 60))
PROMPTS = [
  pj.Raw("w5"),
  pj.Raw(f"{SYSTEM} w5 w6"),
  pj.Raw(f"{SYSTEM} w60 w61 w62 w63 w64 w65 w66 w67 w68 w69 w8"),
  pj.Raw(f"{SYSTEM} w60 w61 w62 w63 w64 w65 w66 w67 w68 w69 w9 w10 w11"),
]
STOPS = (7, 30, 50, 61, 88)  # end sampled answers at many different lengths
BLOCKS = 2
BUDGET = 36  # more than a cache has slots at first; of rows that end early


GEMMA, QWEN = "gemma2, both caps", "qwen3, YaRN, sliding window"


@pytest.fixture(scope="module", params=[GEMMA, QWEN], ids=["gemma2", "qwen3"])
def windowed(request, tmp_path_factory) -> Tiny:
  """Two blocks, one of them with a window of 5 or 6 tokens."""
  config = CONFIGS[request.param] | {"max_position_embeddings": 512, "num_hidden_layers": BLOCKS}
  shapes = family_numbers.load()[request.param]["shapes"]
  shapes = {name: shape for name, shape in shapes.items() if f"layers.{BLOCKS}" not in name}
  tensors = random_tensors(config, shapes)
  directory = tmp_path_factory.mktemp("windowed")
  write_checkpoint(directory, config, tensors, vocabulary(config), TEMPLATE)
  model = pj.load(directory, dtype="float32")
  assert sorted(kind.window is None for kind in model.arch.kinds) == [False, True]
  return Tiny(model, config, tensors, directory)


def conditions(tiny: Tiny) -> list[list[pj.Edit]]:
  d, e = tiny.direction(0, norm=6.0), tiny.direction(1, norm=6.0)
  return [
    [],
    [pj.add(d, 1.0, unit="raw", blocks=0, tokens="all")],
    [pj.add(e, 1.0, unit="raw", blocks=1, tokens="last:1"), pj.ablate(d, blocks=0)],
    [pj.add(d, -1.0, unit="raw", blocks=(0, 1), tokens=pj.Window(start=-9, stop=9))],
  ]


def test_rows_with_sliding_windows_equal_a_pass_of_each_whole(windowed, leave_early, monkeypatch):
  model = windowed.model
  monkeypatch.setattr(segments, "levels", lambda size: [size, 4])  # each compiles programs
  ends = model.arch.family.name == "gemma2"
  # Every prompt with two conditions, every condition with two prompts.
  pairs = [
    (p, e)
    for i, p in enumerate(PROMPTS)
    for j, e in enumerate(conditions(windowed))
    if (i + j) % 2 == 0
  ]
  prompts, edits = [p for p, _ in pairs], [e for _, e in pairs]
  rows = [
    dataclasses.replace(row, seed=n) for n, row in enumerate(encode_rows(model, prompts, edits))
  ]
  settings = Settings(
    BUDGET if ends else 6, Sampling(1.0), stop_ids=STOPS if ends else (), logprobs=True
  )
  ours, work = run_tile(model, rows, settings)
  assert work.passes < 0.9 * BLOCKS * sum(len(row.ids) for row in rows)
  sizes = {size for size, _, _ in work.decoding.segments}
  slots = {slots for _, slots, _ in work.decoding.segments}
  assert (len(slots) > 1) == (len(sizes) > 1) == ends

  whole = whole_logprobs(model, rows, [g.token_ids for g in ours])
  for g, logprobs in zip(ours, whole, strict=True):
    np.testing.assert_allclose(logprobs, g.logprobs, atol=1e-4)


@pytest.mark.parametrize("windowed", [GEMMA], ids=["gemma2"], indirect=True)
def test_long_prompts_that_share_equal_a_pass_of_each_whole(windowed, monkeypatch):
  """Longer than what attention takes at once, behind a shared beginning of 150 tokens."""
  model = windowed.model
  capture = pj.Capture(
    ("attn_out", "resid_post"), reduce="mean", tokens=pj.Window(start=-7, stop=0)
  )
  text = lambda first, count: " ".join(f"w{5 + (first + 7 * i) % 90}" for i in range(count))
  prompts = [pj.Raw(f"{text(0, 150)} {text(n, 137 + n)}") for n in (1, 2)]
  pairs = [(p, e) for p in prompts for e in conditions(windowed)[:3]]
  rows = encode_rows(model, [p for p, _ in pairs], [e for _, e in pairs])
  ours, logits, work = generate_with_logits(model, rows, Settings(3))
  assert work.passes < 0.7 * BLOCKS * sum(len(row.ids) for row in rows)
  got = model.capture([p for p, _ in pairs], capture, edits=[e for _, e in pairs])
  # The reference attends at once, with masks of T x T.
  monkeypatch.setattr(forward, "masks_are_whole", lambda tokens: True)
  whole, reads = whole_pass(model, rows, [g.token_ids for g in ours], capture)
  for a_TV, b_TV in zip(logits, whole, strict=True):
    np.testing.assert_allclose(a_TV, b_TV, atol=1e-4)
  for where, x_BD in got.items():
    np.testing.assert_allclose(x_BD, np.asarray(reads[where]), atol=1e-4)
