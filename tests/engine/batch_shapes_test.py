"""Padded shapes: what fits in them, how few there are, and what padding costs beside a program."""

import jax
import numpy as np
import pytest

from persona_jax.edits.table import ROLES
from persona_jax.engine import group_batch, rows
from persona_jax.engine.group_batch import GroupBatch, runs
from persona_jax.engine.rows import Row, group_bucket, length_bucket
from persona_jax.engine.tree import Tree


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def backend(request, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: request.param)
  return request.param


def test_a_bucket_holds_what_is_put_into_it(backend):
  for n in range(1, 700):
    for other in (1, 7, 64, 300):
      length, size = length_bucket(n, other), group_bucket(n, other)
      assert n <= length <= length_bucket(n) and n <= size <= group_bucket(n)
      if backend == "cpu":
        assert length % 4 == 0
      else:  # a program costs more there than any padding
        assert length == length_bucket(n) and size == group_bucket(n)
        assert length % {"gpu": 16, "tpu": 32}[backend] == 0


def test_padding_of_many_rows_costs_less_than_a_program(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert [length_bucket(n) for n in (1, 8, 9, 128, 129, 257)] == [8, 8, 16, 128, 144, 288]
  assert [length_bucket(18, n) for n in (1, 42, 43, 10_000)] == [24, 24, 20, 20]
  assert [length_bucket(129, n) for n in (17, 18, 37, 86)] == [144, 136, 132, 132]
  assert [group_bucket(n) for n in (1, 2, 9, 49, 65)] == [1, 8, 16, 56, 80]
  assert [group_bucket(5, n) for n in (85, 86, 256)] == [8, 6, 5]
  for n in range(1, 200):
    for length in (1, 16, 100, 400):
      assert (group_bucket(n, length) - n) * length < rows._program_tokens()


def tree_of(lengths: list[int]) -> Tree:
  """Rows that share nothing, of so many tokens."""
  made = [Row((n, *range(1000, 999 + t)), t, (ROLES["user"],) * t) for n, t in enumerate(lengths)]
  return Tree(made, lengths)


@pytest.mark.parametrize("seed", range(5))
def test_runs_hold_every_node_once_and_waste_little(seed, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  tokens = 4096
  rng = np.random.default_rng(seed)
  most, count = 2 ** int(rng.integers(3, 10)), int(rng.integers(1, 600))
  tree = tree_of(rng.integers(1, 1 + most, count).tolist())
  found = list(runs(tree, tree.waves[0], tokens))
  assert sorted(n for run in found for n in run.nodes) == sorted(tree.waves[0])
  ends = [max(tree.nodes[n].length for n in run.nodes) for run in found]
  assert ends == sorted(ends)
  for run, longest in zip(found, ends, strict=True):
    assert longest <= run.length
    lengths = [tree.nodes[n].length for n in run.nodes]
    batch = GroupBatch(tree, tree.groups(run.nodes, 0), run.length)
    if len(run.nodes) > 1:
      assert batch.size * run.length <= max(tokens, group_bucket(len(lengths)) * run.length)
      fine = lambda t: length_bucket(t, 1 << 30)
      assert sum(fine(longest) - fine(t) for t in lengths) <= group_batch._CPU_RUN_TOKENS


def test_runs_part_only_where_lengths_differ_when_padded(backend):
  # 17 and 20, or 17 and 32, are of one length with padding: two runs of them save nothing.
  step = {"cpu": 4, "gpu": 16, "tpu": 32}[backend]
  lengths = [*range(16 // step * step + 1, 16 // step * step + step + 1)] * 60
  tree = tree_of(lengths)
  found = list(runs(tree, tree.waves[0], 1 << 20))
  assert len(found) == 1 and len(found[0].nodes) == len(lengths)


def test_endings_of_a_questionnaire_are_padded_little(monkeypatch):
  # 8 to 17 tokens, as those of IPIP-NEO's items behind a common beginning, 120 of 2 personas.
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  lengths = (
    np.random.default_rng(0).choice(np.arange(8, 18), 240, p=np.r_[[0.12] * 8, 0.02, 0.02]).tolist()
  )
  tree = tree_of(lengths)
  padded = 0
  for run in runs(tree, tree.waves[0], 4096):
    padded += GroupBatch(tree, tree.groups(run.nodes, 0), run.length).size * run.length
  assert 1 - sum(lengths) / padded <= 0.25  # 50 % in one run
