"""The real model against numbers that `make parity` took from transformers in float32."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from tests.parity import reference_numbers
from tests.parity.prompts import PROMPTS, prompts_hash

KEPT = reference_numbers.load()
GREEDY_STEPS = 16


@pytest.fixture(scope="module")
def last(smollm2: pj.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Logits [V] and every block's output [L, D] at the last token of each prompt, in two batches."""
  rows = {name: [int(i) for i in smollm2.encode(chat).ids] for name, chat in PROMPTS.items()}
  by_length = sorted(rows, key=lambda name: len(rows[name]))
  measured = {}
  for names in (by_length[:12], by_length[12:]):
    tokens_BT = np.zeros((len(names), len(rows[names[-1]])), np.int32)
    for b, name in enumerate(names):
      tokens_BT[b, : len(rows[name])] = rows[name]
    logits_BV, reads = pj.forward(
      smollm2,
      jnp.asarray(tokens_BT),
      None,
      pj.Capture(reduce="last"),
      lengths_B=jnp.asarray([len(rows[name]) for name in names]),
      logits="last",
    )
    assert logits_BV is not None
    resid_LBD = np.stack([reads["resid_post", i] for i in range(smollm2.arch.num_blocks)])
    for b, name in enumerate(names):
      measured[name] = np.asarray(logits_BV[b]), resid_LBD[:, b]
  return measured


def test_the_numbers_are_of_this_model_and_these_prompts(smollm2: pj.Model) -> None:
  assert KEPT["model_sha256"] == smollm2.identity.sha256
  assert KEPT["prompts_sha256"] == prompts_hash()
  assert list(KEPT["prompts"]) == list(PROMPTS)
  assert KEPT["dtype"] == "float32" == smollm2.dtype
  lengths = {name: len(smollm2.encode(chat).ids) for name, chat in PROMPTS.items()}
  assert lengths == {name: kept["n_tokens"] for name, kept in KEPT["prompts"].items()}


@pytest.mark.parametrize("name", PROMPTS)
def test_last_logits_and_residual_norms_are_those_of_transformers(
  last: dict[str, tuple[np.ndarray, np.ndarray]], name: str
) -> None:
  errors = reference_numbers.relative_errors(KEPT["prompts"][name], *last[name])
  assert max(errors.values()) <= 1e-4, errors


def test_greedy_tokens_are_those_of_transformers(smollm2: pj.Model) -> None:
  # The shorter prompts; make parity takes all, and 64 tokens of each.
  short = [name for name, kept in KEPT["prompts"].items() if kept["n_tokens"] <= 50]
  answers = smollm2.generate([PROMPTS[name] for name in short], max_new_tokens=GREEDY_STEPS)
  expected: dict[str, Any] = {
    name: reference_numbers.settled_ids(KEPT["prompts"][name], GREEDY_STEPS) for name in short
  }
  got = {
    name: list(answer.token_ids[: len(expected[name])])
    for name, answer in zip(short, answers, strict=True)
  }
  assert got == expected
  assert sum(len(ids) for ids in expected.values()) > 130  # near ties leave most of them
