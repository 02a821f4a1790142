"""Rows that share prefixes, trunks and prompts get what they would get alone, recomputed whole."""

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.table import SITES
from persona_jax.engine import lanes
from persona_jax.engine import prefill as prefilling
from persona_jax.engine.collect import capture as collect
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.generate import generate_tile
from persona_jax.engine.group_batch import GroupBatch
from persona_jax.engine.prefill import prefill
from persona_jax.engine.prefix import Wave, merged
from persona_jax.engine.programs import DIRECT, Dry
from persona_jax.engine.score import score_rows
from persona_jax.engine.settings import Settings
from persona_jax.engine.stream import moments
from persona_jax.engine.tile_plan import plan_tile
from persona_jax.engine.tree import Sharing, Tree
from persona_jax.models.layers import KV
from tests.engine.whole import generate_with_logits, whole_logprobs, whole_pass

N = 5
SYSTEM = " ".join(f"w{i}" for i in range(40, 60))
LONGER = " ".join(f"w{i}" for i in range(60, 75))
PROMPTS = [
  pj.Raw("w5"),  # of one token: nothing to share
  pj.Raw(f"{SYSTEM} w5 w6"),
  pj.Raw(f"{SYSTEM} {LONGER} w7"),
  pj.Raw(f"{SYSTEM} {LONGER} w8 w9 w10"),
  pj.Raw("w20 w21 w22 w23 w24 w25 w26"),
]
THRESHOLD = 0.7  # of the gate: some of the prompts lie above
OFF = {
  "prefix": Sharing(prefix=False),
  "trunk": Sharing(trunk=False),
  "prompt": Sharing(prompt=False),
  "attention": Sharing(attention=False),
  "nothing": Sharing(False, False, False, False),
}


def conditions(tiny) -> list[list[pj.Edit]]:
  """None, and edits with several first blocks, sites, windows, gates: all in one grid."""
  d, e = tiny.direction(0, norm=6.0), tiny.direction(1, norm=6.0)
  move = dict(unit="raw", allow_other_site=True)
  probe = pj.Probe(d, 1, above=THRESHOLD)
  return [
    [],
    [pj.add(d, 1.0, blocks=0, tokens="all", site="resid_pre", **move)],
    [pj.add(d, -1.0, blocks=1, tokens="all", **move)],
    [pj.add(d, 1.0, blocks=2, tokens="all", **move)],
    [pj.add(d, 2.0, blocks=1, tokens="all", **move), pj.ablate(e, blocks=2, tokens="generated")],
    [pj.add(e, 1.5, blocks=1, tokens="last:4", **move)],
    [pj.ablate(e, blocks="all", tokens="answer")],
    [pj.add(d, 1.0, blocks=(0, 2), tokens="prompt", **move).when(probe)],
    [pj.renorm_add(e, 1.0, unit="raw", blocks=1, tokens=pj.Window(start=-6, stop=2))],
  ]


def grid_rows(tiny, prompts=PROMPTS):
  pairs = [(p, e) for e in conditions(tiny) for p in prompts]
  return encode_rows(tiny.model, [p for p, _ in pairs], [e for _, e in pairs])


def some_of(*chosen: int) -> list[int]:
  """Return the numbers of the rows of some of the conditions."""
  return [n for n in range(9 * len(PROMPTS)) if n // len(PROMPTS) in chosen]


def test_the_gate_of_the_grid_is_open_for_some_prompts_only(tiny):
  gates = {edit.gate for row in grid_rows(tiny) for edit in row.edits}
  assert gates == {0.0, 1.0}


TRACED = Settings(N, logprobs=True, trace=True)


def compare(ours, theirs, atol=1e-4):
  for a, b in zip(ours, theirs, strict=True):
    assert a.token_ids == b.token_ids
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=atol)
    assert a.tokens_edited == b.tokens_edited and a.valid == b.valid
    np.testing.assert_allclose(a.delivered_dose, b.delivered_dose, atol=1e-4)


@pytest.fixture(scope="module")
def unshared(tiny):
  """Every row from its first token on and in every block, by the engine that shares nothing."""
  return generate_tile(tiny.model, grid_rows(tiny), TRACED, sharing=OFF["nothing"])


def test_a_grid_that_shares_nothing_equals_passes_over_whole_rows(tiny, unshared):
  rows = grid_rows(tiny)
  whole = whole_logprobs(tiny.model, rows, [g.token_ids for g in unshared])
  for row, g, logprobs in zip(rows, unshared, whole, strict=True):
    np.testing.assert_allclose(g.logprobs, logprobs, atol=1e-4, err_msg=str(row.edits))


def generate_and_compare_all_logits(tiny, rows, settings):
  ours, logits, work = generate_with_logits(tiny.model, rows, settings)
  whole, _ = whole_pass(tiny.model, rows, [g.token_ids for g in ours])
  for row, a_TV, b_TV in zip(rows, logits, whole, strict=True):
    np.testing.assert_allclose(a_TV, b_TV, atol=1e-4, err_msg=str(row.edits))
  return ours, work


def test_a_grid_that_shares_equals_each_row_alone(tiny, unshared):
  ours, _ = generate_and_compare_all_logits(tiny, grid_rows(tiny), TRACED)
  compare(ours, unshared)
  for a, b in zip(ours, unshared, strict=True):
    assert a.trace.places == b.trace.places
    np.testing.assert_array_equal(a.trace.offsets_T, b.trace.offsets_T)
    np.testing.assert_allclose(a.trace.change_IT, b.trace.change_IT, atol=1e-4)


@pytest.mark.parametrize("off", list(OFF)[:-1])
def test_a_grid_that_shares_less_equals_each_row_alone(tiny, unshared, off):
  # No edit, of a late block, of two with generated tokens, of the prompt's end, gated.
  rows, kept = grid_rows(tiny), some_of(0, 3, 4, 5, 7)
  ours = generate_tile(tiny.model, [rows[n] for n in kept], TRACED, sharing=OFF[off])
  compare(ours, [unshared[n] for n in kept])


def test_lanes_change_nothing(tiny, unshared, monkeypatch):
  # Every lane that saves a slot: prompts of many conditions, of few, long ones and short ones.
  monkeypatch.setattr(lanes, "LANE_SLOTS", 0)
  rows = grid_rows(tiny)
  kept = [n for n in some_of(0, 2, 4, 5) if rows[n].ids != rows[1].ids or n < 10]
  ours, _ = generate_and_compare_all_logits(tiny, [rows[n] for n in kept], TRACED)
  compare(ours, [unshared[n] for n in kept])
  plan = plan_tile(tiny.model, rows, kept, TRACED)
  assert any(len({m for _, m in shapes}) > 1 for shapes in plan.lanes.values()), plan.lanes


def test_a_row_by_itself_is_the_same(tiny, unshared):
  rows = grid_rows(tiny)
  for n in (11, 43):
    compare(generate_tile(tiny.model, [rows[n]], TRACED), [unshared[n]])


def test_order_of_rows_changes_nothing(tiny, unshared):
  rows = grid_rows(tiny)
  order = np.random.default_rng(3).permutation(len(rows))
  out, _ = generate_and_compare_all_logits(tiny, [rows[n] for n in order], TRACED)
  compare(out, [unshared[n] for n in order])


def site_edits(tiny, sites, blocks, coefs) -> list[list[pj.Edit]]:
  """One edit a row: at each site of each block, with each coefficient."""
  arch, rows = tiny.model.arch, []
  for site in sites:
    # Each its own: the same vector at "mlp_out" and "resid_post" would be one edit.
    v_SLD = np.random.default_rng(SITES.index(site)).normal(size=(1, 3, arch.site_width(site)))
    heads = {"num_heads": arch.num_heads} if site == "head_out" else {}
    d = pj.Direction(v_SLD, "v", site, **heads)
    for block in blocks:
      rows += [[pj.add(d, c, unit="unit", blocks=block, tokens="all")] for c in coefs]
  return rows


@pytest.mark.parametrize(("sites", "blocks"), [(SITES[::3], (1,)), (SITES, (0, 1, 2))])
def test_trunk_of_every_site_and_block(tiny, sites, blocks):
  edits = [[], *site_edits(tiny, sites, blocks, (3.0,) if len(blocks) > 1 else (3.0, -3.0, 6.0))]
  rows = encode_rows(tiny.model, [pj.Raw(f"{SYSTEM} w5")] * len(edits), edits)
  ours, work = generate_and_compare_all_logits(tiny, rows, Settings(3, logprobs=True))
  assert work.passes < 0.9 * 3 * sum(len(row.ids) - 1 for row in rows)
  assert len({g.logprobs for g in ours}) == len(rows)


def test_a_stage_makes_the_edits_of_its_own_blocks_only(tiny, monkeypatch):
  real, made = prefilling.compile_edits, []

  def noted(model, rows, *, blocks):
    table = real(model, rows, blocks=blocks)
    made.append((set(blocks), {block for _, block in table.sites}))
    return table

  monkeypatch.setattr(prefilling, "compile_edits", noted)
  edits = [[], *site_edits(tiny, ["mlp_out", "resid_post"], (0, 1, 2), (3.0,))]
  rows = encode_rows(tiny.model, [pj.Raw(f"{SYSTEM} w5")] * len(edits), edits)
  prefill(tiny.model, Tree(rows, [len(row.ids) - 1 for row in rows]), run=Dry())
  assert len(made) > 3 and all(sites and sites <= blocks for blocks, sites in made)


def test_what_is_computed_is_what_the_tree_says(tiny):
  rows = grid_rows(tiny)
  tree = Tree(rows, [len(row.ids) - 1 for row in rows])
  out = prefill(tiny.model, tree, trace=True)  # by programs that other tests have
  assert out.passes == tree.passes(3)
  unshared = sum(3 * (len(row.ids) - 1) for row in rows)
  assert out.passes < unshared / 2


def test_scores_share_and_change_nothing(tiny):
  pairs = [(p, e) for e in conditions(tiny)[::2] for p in PROMPTS[2:]]
  prompts, edits = [p for p, _ in pairs], [e for _, e in pairs]
  texts = [("w30 w31", "w30 w32", "w33")[n % 3] for n in range(len(pairs))]
  together = score_rows(tiny.model, prompts, texts, edits=edits)
  rows = encode_rows(tiny.model, prompts, edits)
  alone = whole_logprobs(tiny.model, rows, [tiny.model.tokenizer.encode(t) for t in texts])
  for n, logprobs in enumerate(alone):
    np.testing.assert_allclose(together.logprobs[n], logprobs, atol=1e-4)
  # Under an edit of all tokens, which are those of the prompt and of the text but for its last.
  assert together.tokens_edited[7] == len(rows[7].ids) + 1 and texts[7] == "w30 w32"


def test_scores_without_sharing_are_the_same_and_cost_what_they_must(tiny):
  prompts, texts = [PROMPTS[2]] * 3 + [PROMPTS[3]], ["w30 w31", "w30 w32", "w33", "w30"]
  ours, alone = (
    score_rows(tiny.model, prompts, texts, sharing=sharing)
    for sharing in (Sharing(), OFF["nothing"])
  )
  for a, b in zip(ours.logprobs, alone.logprobs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  lengths = [len(row.ids) for row in encode_rows(tiny.model, prompts, None)]
  assert alone.passes == 3 * (sum(lengths) + 2) and ours.passes < alone.passes / 2
  assert ours.padded_passes >= ours.passes


READS = ("resid_pre", "mlp_out", "resid_post")


def read_rows(tiny, prompts=PROMPTS):
  """Prompts and edits of rows that are read."""
  d = tiny.direction(0, norm=6.0)
  edits = [
    None,
    pj.add(d, 1.0, unit="raw", blocks=1, tokens="all"),
    pj.add(d, 1.0, unit="raw", blocks=2, tokens="all"),
    pj.ablate(d, blocks=2, tokens="last:1"),
  ]
  pairs = [(p, e) for p in prompts for e in edits]
  return [p for p, _ in pairs], [e for _, e in pairs]


@pytest.mark.parametrize(
  "options",
  [
    dict(reduce="last"),
    dict(reduce="mean", tokens="last:3"),
    dict(reduce="mean", tokens=pj.Window(("user",), start=-30, stop=-1)),
    dict(reduce="all", tokens="last:30"),
  ],
)
def test_what_is_read_through_the_tree_is_what_a_pass_of_each_row_reads(tiny, options):
  prompts, edits = read_rows(tiny)
  capture = pj.Capture(READS, **options)
  got = tiny.model.capture(prompts, capture, edits=edits)
  rows = encode_rows(tiny.model, prompts, edits)
  _, reads = whole_pass(tiny.model, rows, [()] * len(rows), capture)
  for where, x in reads.items():
    np.testing.assert_allclose(got[where], np.asarray(x), atol=3e-5)


@pytest.mark.parametrize(
  ("off", "options"),
  [
    ("trunk", dict(reduce="mean", tokens="last:3")),
    ("nothing", dict(reduce="mean", tokens="last:3")),
    ("nothing", dict(reduce="all", tokens="last:30")),
  ],
)
def test_what_is_read_without_sharing_is_the_same(tiny, off, options):
  prompts, edits = read_rows(tiny)
  what = pj.Capture(READS, **options)
  shared = tiny.model.capture(prompts, what, edits=edits)
  alone = collect(tiny.model, prompts, what, edits=edits, sharing=OFF[off])
  for where, x in shared.items():
    np.testing.assert_allclose(alone[where], x, atol=3e-5)


@pytest.mark.parametrize("reduce", ["last", "all"])
def test_moments_without_sharing_are_the_same_and_cost_what_they_must(tiny, reduce):
  prompts, edits = read_rows(tiny, PROMPTS[1:4])
  what = pj.Capture(blocks=2, reduce=reduce)
  ours, alone = (
    moments(tiny.model, prompts, what, edits=edits, sharing=sharing)
    for sharing in (Sharing(), OFF["nothing"])
  )
  for where in ours.mean:
    np.testing.assert_allclose(alone.mean[where], ours.mean[where], atol=3e-5)
    np.testing.assert_allclose(alone.variance[where], ours.variance[where], rtol=1e-4, atol=1e-5)
  assert alone.work.passes == 3 * alone.work.tokens == 3 * ours.work.tokens
  assert ours.work.passes < alone.work.passes / 2


def test_a_plan_without_sharing_counts_every_row_whole(tiny):
  d = tiny.direction()
  edits = [pj.add(d, c, unit="unit", blocks=1, tokens="all") for c in (1.0, 2.0)]
  conditions = [pj.Condition(f"c{n}", edits=e) for n, e in enumerate(edits)]
  grid = pj.Grid(PROMPTS[1:4], conditions, max_new_tokens=2)
  plans = {off: pj.plan(tiny.model, grid, sharing=OFF[off]) for off in OFF}
  shared = pj.plan(tiny.model, grid)
  assert plans["nothing"].passes == shared.unshared_passes > plans["trunk"].passes > shared.passes
  assert plans["nothing"].least_passes == shared.least_passes
  assert plans["attention"].tiles[0].lanes != shared.tiles[0].lanes
  assert plans["attention"].passes == shared.passes


def test_tiles_of_many_chunks_and_pieces(tiny, unshared, monkeypatch):
  monkeypatch.setattr(prefilling, "BATCH_TOKENS", 64)
  rows, numbers = grid_rows(tiny), some_of(0, 2, 4)
  ours = generate_tile(tiny.model, [rows[n] for n in numbers], TRACED)
  compare(ours, [unshared[n] for n in numbers])


def test_pieces_of_few_long_groups_equal_passes_over_whole_rows(tiny, monkeypatch):
  # 21 classes of 90 tokens, which are padded to no more groups, in pieces of 8, 8 and 5.
  prompts = [pj.Raw(f"w{5 + n} " + "w4 w7 " * 45) for n in range(7)]
  edits = [[edit] for (edit,) in site_edits(tiny, ["resid_post"], [1], [3.0, -3.0, 6.0])]
  pairs = [(prompt, edit) for prompt in prompts for edit in edits]
  rows = encode_rows(tiny.model, [p for p, _ in pairs], [e for _, e in pairs])
  monkeypatch.setattr(prefilling, "BATCH_TOKENS", 1000)
  generate_and_compare_all_logits(tiny, rows, Settings(2))


def test_merged_waves_stand_in_the_order_of_the_batch():
  def wave(class_R, slots, first):
    classes = max(class_R) + 1
    values = first + np.arange(classes, dtype=np.float32)
    kv = KV.of(
      *(np.tile(values[:, None, None, None], (1, slots, 1, 2)) for _ in range(2)), "float32"
    )
    positions = np.tile(np.arange(slots, dtype=np.int32), (classes, 1))
    return Wave([kv], [np.asarray(class_R, np.int32)], [positions])

  a, b = wave([0, 0, 1, 1, -1], 2, 10.0), wave([0, 1, -1, 2, 2], 3, 20.0)
  order = [3, 1, 0, 2, 4]
  (both,) = merged([a, b], 100, order, run=DIRECT)
  assert both.class_of[0].tolist() == [2, 1, 3, 0, 4]
  # By class: the values of the first wave's slots and of the second's, and which are empty.
  seen = np.where(both.position_of[0] < 0, -1, np.asarray(both.kv[0].v_BKSH)[:, 0, :, 0])
  assert seen.tolist() == [
    [11, 11, 22, 22, 22],
    [10, 10, 21, 21, 21],
    [10, 10, 20, 20, 20],
    [11, 11, -1, -1, -1],
    [-1, -1, 22, 22, 22],
  ]
  assert len(merged([a, b], 0, order, run=DIRECT)) == 2  # would copy slots, and may not


def test_edits_that_are_alike_share_as_one_object_does(tiny):
  d = tiny.direction()
  make = lambda coef=1.0: pj.add(d, coef, unit="unit", blocks=0, tokens="all")
  prompts, texts = [pj.Raw(f"{SYSTEM} w{5 + i}") for i in range(3)], ["w30"] * 3
  one, alike, by_row, other = (
    score_rows(tiny.model, prompts, texts, edits=edits)
    for edits in (
      [make()] * 3,
      [make() for _ in prompts],
      [make([1.0] * 3)] * 3,
      [make(n) for n in (1.0, 2.0, 3.0)],
    )
  )
  assert one.passes == alike.passes == by_row.passes < other.passes
  for a, b in zip(one.logprobs, by_row.logprobs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bound", [200, 1300, 4096])
@pytest.mark.parametrize("groups", [1, 3, 6, 9, 20])
def test_pieces_of_a_batch_keep_their_bound(tiny, groups, bound):
  rows = encode_rows(tiny.model, [pj.Raw(f"w{n + 5} " + "w4 " * 99) for n in range(groups)], None)
  tree = Tree(rows, [len(row.ids) for row in rows])
  (nodes,) = tree.waves
  batch = GroupBatch(tree, tree.groups(nodes, 0), 100)
  pieces = list(batch.pieces(bound))
  assert sum(len(part.groups) for _, part in pieces) == groups
  for piece, part in pieces:
    assert part.size * 100 <= bound and piece.stop - piece.start == part.size <= batch.size
    assert part.size >= len(part.groups) and piece.stop <= batch.size
  ends = [piece.stop for piece, _ in pieces]
  assert [piece.start for piece, _ in pieces] == [0, *ends[:-1]]
