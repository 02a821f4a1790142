"""The prefix tree against a count of all distinct (tokens, edits) by position and block."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import persona_jax as pj
from persona_jax.edits.table import ROLES
from persona_jax.engine.rows import Row
from persona_jax.engine.tree import Sharing, Tree, body_place, first_place, stages

BLOCKS, D = 6, 4
DIRECTION = pj.Direction(np.ones((1, BLOCKS, D)), "v")
EDITS = {
  (site, block, tokens): pj.add(
    DIRECTION, 1.0, unit="unit", blocks=block, site=site, tokens=tokens, allow_other_site=True
  )
  for site in ("resid_pre", "mlp_in", "resid_post")
  for block in (0, 2, 3, 5)
  for tokens in ("all", "answer", "generated", "last:3", pj.Window(start=-5, stop=-2))
}


def make_row(ids, edits=()) -> Row:
  return Row(tuple(ids), len(ids), (ROLES["user"],) * len(ids), tuple(edits))


def least_passes(rows, stops) -> int:
  """Counts by the definition: what a block computes at a position, of all rows, is distinct in …"""
  seen = set()
  for row, stop in zip(rows, stops, strict=True):
    for t in range(stop):
      held = {id(e): x[: t + 1] for e, x in zip(row.edits, row.edit_tokens, strict=True)}
      for block in range(BLOCKS):
        before = tuple(
          (id(e), held[id(e)].tobytes())
          for e in row.edits
          if held[id(e)].any() and first_place(e) < body_place(block)
        )
        seen.add((row.ids[: t + 1], block, before))
  return len(seen)


rows_of = st.lists(
  st.builds(
    make_row,
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.lists(st.sampled_from(list(EDITS.values())), max_size=2),
  ),
  min_size=1,
  max_size=7,
)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(rows_of)
def test_tree_computes_the_least_there_is(rows):
  stops = [len(row.ids) - 1 for row in rows]
  tree = Tree(rows, stops, min_run=1)
  assert tree.passes(BLOCKS) == least_passes(rows, stops)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(rows_of, st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.booleans())
def test_every_token_of_every_row_is_in_one_node(rows, min_run, prefix, trunk, prompt):
  stops = [len(row.ids) - 1 for row in rows]
  tree = Tree(rows, stops, sharing=Sharing(prefix, trunk, prompt), min_run=min_run)
  assert sorted(tree.order) == list(range(len(rows)))
  for r, stop in enumerate(stops):
    chain = [tree.nodes[n] for n in tree.chain(r)]
    assert [node.depth for node in chain] == list(range(len(chain)))
    edges = [0] + [node.stop for node in chain]
    assert edges[-1] == stop and [node.start for node in chain] == edges[:-1]
    for node in chain:
      assert r in node.rows
      same = {rows[other].ids[: node.stop] for other in node.rows}
      assert same == {rows[r].ids[: node.stop]}
  for wave in tree.waves:
    for place in (0, body_place(2), body_place(BLOCKS)):
      groups = tree.groups(wave, place)
      members = sorted(r for group in groups for r in group.rows)
      assert members == sorted(r for n in wave for r in tree.nodes[n].rows)


def conditions(count: int, block: int, tokens: str, site: str = "resid_post"):
  return [
    pj.add(
      DIRECTION,
      float(c),
      unit="unit",
      blocks=block,
      site=site,
      tokens=tokens,
      allow_other_site=True,
    )
    for c in range(1, count + 1)
  ]


def test_twenty_conditions_at_mid_depth():
  rows = [make_row(range(33), [e]) for e in conditions(20, 2, "all")]
  tree = Tree(rows, [32] * 20)
  # Blocks 0 to 2 once, behind which rows part; 3 to 5 for each of the 20.
  assert tree.passes(BLOCKS) == 32 * (3 + 20 * 3)
  rows = [make_row(range(33), [e]) for e in conditions(20, 2, "all", "mlp_in")]
  assert Tree(rows, [32] * 20).passes(BLOCKS) == 32 * (2 + 20 * 4)
  off = Tree(rows, [32] * 20, sharing=Sharing(trunk=False))
  assert off.passes(BLOCKS) == 32 * 20 * BLOCKS


@pytest.mark.parametrize("tokens", ["generated", "answer"])
def test_edits_of_the_answer_share_the_whole_prompt(tokens):
  rows = [make_row(range(33), [e]) for e in conditions(20, 2, tokens)]
  assert Tree(rows, [32] * 20).passes(BLOCKS) == 32 * BLOCKS
  off = Tree(rows, [32] * 20, sharing=Sharing(prompt=False))
  assert off.passes(BLOCKS) == 32 * (3 + 20 * 3)


def test_an_edit_from_the_middle_of_the_prompt_divides_it_there():
  rows = [make_row(range(40)), make_row(range(40), conditions(1, 1, "last:10"))]
  tree = Tree(rows, [39, 39])
  assert [(node.start, node.stop) for node in tree.nodes] == [(0, 30), (30, 39)]
  assert tree.passes(BLOCKS) == 30 * BLOCKS + 9 * (2 + 2 * 4)


def test_rows_of_other_lengths_share_an_edited_stem_unless_it_counts_from_the_end():
  stem = list(range(20))
  prompts = [[*stem, 30], [*stem, 31, 32, 33]]
  steady = conditions(1, 2, "all")[0]
  for edit, stems in ((steady, 1), (steady.ramped(pj.Ramp(steps=4)), 2)):
    rows = [make_row(p, [edit]) for p in prompts]
    tree = Tree(rows, list(map(len, prompts)))
    assert len(tree.groups([0], body_place(BLOCKS))) == stems


def test_nested_prefixes_and_runs_too_short_to_share():
  persona, question = list(range(20)), list(range(30, 50))
  prompts = [
    [*persona, *question, 60],
    [*persona, *question, 61, 62],
    [*persona, 70, 71],
    [0, 1, 9],
  ]
  tree = Tree([make_row(p) for p in prompts], list(map(len, prompts)))
  runs = [(node.depth, node.start, node.stop, node.rows) for node in tree.nodes]
  # [0, 1] is common to all, but not worth a pass of its own; nor is the end of each question.
  assert runs == [
    (0, 0, 20, (0, 1, 2)),
    (1, 20, 40, (0, 1)),
    (2, 40, 41, (0,)),
    (2, 40, 42, (1,)),
    (1, 20, 22, (2,)),
    (0, 0, 3, (3,)),
  ]


def test_one_token_prompts_have_no_node():
  tree = Tree([make_row([5]), make_row([5, 6, 7])], [0, 2])
  assert tree.chain(0) == [] and len(tree.chain(1)) == 1 and sorted(tree.order) == [0, 1]


def test_rows_that_part_together_stand_together():
  late, early = conditions(2, 4, "all"), conditions(2, 1, "all")
  rows = [
    make_row(range(20), edits)
    for edits in ([early[0], late[0]], [early[1]], [early[0], late[1]], [], [early[1], late[0]])
  ]
  assert Tree(rows, [19] * 5).order == [0, 2, 1, 4, 3]


def test_stages_end_where_rows_part():
  assert stages([], 6) == [(0, 6)]
  assert stages([body_place(2)], 6) == [(0, 3), (3, 6)]
  assert stages([body_place(2) - 1, body_place(5)], 6) == [(0, 2), (2, 6)]


def test_a_closed_gate_divides_nothing():
  edit = conditions(1, 0, "all")[0]
  closed = dataclasses.replace(edit, gate=0.0)
  rows = [make_row(range(20)), make_row(range(20), [closed]), make_row(range(20), [edit])]
  assert Tree(rows, [19] * 3).passes(BLOCKS) == 19 * (1 + 2 * 5)
