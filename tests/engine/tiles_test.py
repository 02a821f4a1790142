"""Tiles: every row in one, prompts and what begins alike together, few of them and few sizes."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import persona_jax as pj
from persona_jax.edits.table import ROLES
from persona_jax.engine.rows import Row
from persona_jax.engine.tiles import tiles
from persona_jax.engine.tree import Tree, first_place

BLOCKS = 6
DIRECTION = pj.Direction(np.ones((1, BLOCKS, 4)), "v")


def row(ids, *edits) -> Row:
  return Row(tuple(ids), len(ids), (ROLES["user"],) * len(ids), edits)


def text(number: int, length: int) -> list[int]:
  """Tokens that no other number has in common with this one."""
  return [1000 * number + n for n in range(1, 1 + length)]


def passes(rows, tiled) -> int:
  """Token-block passes of all tiles."""
  mine = [[rows[n] for n in tile] for tile in tiled]
  return sum(Tree(m, [len(r.ids) - 1 for r in m]).passes(BLOCKS) for m in mine)


def added(coef, block=3, tokens="all"):
  return pj.add(DIRECTION, coef, unit="unit", blocks=block, tokens=tokens)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
  st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=60),
  st.integers(1, 40),
)
def test_every_row_is_in_one_tile_and_no_tile_is_too_large(prompts, most):
  rows = [row(ids) for ids in prompts]
  tiled = tiles(rows, most)
  assert sorted(n for tile in tiled for n in tile) == list(range(len(rows)))
  assert all(len(tile) <= most for tile in tiled)
  # No more tiles than if each were filled to seven eighths.
  assert len(tiled) <= -(-8 * len(rows) // (7 * most)) + 1


def test_rows_of_a_system_text_stand_together():
  # 12 personas of like length, 40 questions of several lengths, in an order of questions.
  rng = np.random.default_rng(0)
  head = text(99, 10)
  personas = [[*head, *text(p, 300)] for p in range(12)]
  questions = [text(20 + q, int(rng.integers(10, 40))) for q in range(40)]
  rows = [row([*persona, *question]) for question in questions for persona in personas]
  tiled = tiles(rows, 128)
  least = Tree(rows, [len(r.ids) - 1 for r in rows], min_run=1).passes(BLOCKS)
  assert passes(rows, tiled) <= 1.1 * least
  by_length = sorted(range(len(rows)), key=lambda n: len(rows[n].ids))
  before = [by_length[i : i + 120] for i in range(0, len(rows), 120)]
  assert passes(rows, before) > 1.5 * least
  # A tile ends with a persona, as 120 of 128 rows are full enough.
  assert [len(tile) for tile in tiled] == [120] * 4


@pytest.mark.parametrize(("conditions", "sizes"), [(40, [120, 120, 80]), (20, [160, 160])])
def test_prompts_are_not_divided_and_tiles_are_alike(conditions, sizes):
  most = 128 if conditions == 40 else 256
  edits = [added(c, tokens="generated") for c in range(1, conditions + 1)]
  count = sum(sizes) // conditions
  rows = [row(text(p, 50 + p), edit) for edit in edits for p in range(count)]
  tiled = tiles(rows, most)
  assert [len(tile) for tile in tiled] == sizes
  assert passes(rows, tiled) == BLOCKS * sum(50 + p - 1 for p in range(count))


def test_a_prompt_of_more_rows_than_a_tile_is_divided_by_block():
  rows = [row(text(1, 20), added(c, block)) for c in (1, 2, 3, 4) for block in range(BLOCKS)]
  tiled = tiles(rows, 8)
  assert [len(tile) for tile in tiled] == [8, 8, 8]
  blocks = [{rows[n].edits[0].blocks[0] for n in tile} for tile in tiled]
  assert blocks == [{0, 1}, {2, 3}, {4, 5}]
  firsts = [first_place(rows[n].edits[0]) for tile in tiled for n in tile]
  assert firsts == sorted(firsts)


def test_prompts_without_a_common_beginning_stand_by_length():
  rng = np.random.default_rng(1)
  rows = [row(text(n, int(rng.integers(5, 400)))) for n in range(200)]
  tiled = tiles(rows, 64)
  assert [len(tile) for tile in tiled] == [50] * 4
  lengths = [len(rows[n].ids) for tile in tiled for n in tile]
  assert lengths == sorted(lengths)


def test_a_conversation_that_grows_for_a_thousand_turns_is_ordered():
  whole = text(1, 10_000)
  rows = [row(whole[: 10 * n]) for n in range(1, 1001)]
  assert sum(map(len, tiles(rows, 64))) == 1000
