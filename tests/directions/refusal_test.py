"""The refusal direction: the published rule on tables with known answers, and its scores."""

import dataclasses
import math

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions import refusal_scores
from persona_jax.directions.refusal import (
  Candidate,
  NoRefusalDirection,
  filtered_out,
  refusal_direction,
  refusal_tokens,
  select,
)
from persona_jax.directions.separation import separation
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.next_tokens import next_logits, token_kl
from tests.planted import world as planted

GOOD = Candidate(-1, 3, bypass=-5.0, induce=1.0, kl=0.05)


def table(*changes):
  """Candidates like the good one, at blocks 0, 1, … of position -1."""
  return [dataclasses.replace(GOOD, block=n, **change) for n, change in enumerate(changes)]


def test_the_best_bypass_of_those_that_pass_is_chosen():
  rows = table(
    dict(bypass=-9.0, kl=0.11),  # says other things
    dict(bypass=-9.0, induce=-0.1),  # does not make refuse
    dict(bypass=math.nan),
    dict(bypass=-6.0),
    dict(bypass=-7.0),
    dict(bypass=-6.5),
    dict(bypass=-9.0),  # layer 7 of 8: the last fifth begins at int(0.8 x 8) = 6
  )
  assert select(rows, 8).block == 4
  assert select(rows[:4], 8).block == 3
  assert select(rows, 8, last_share=None).block == 6
  assert select(rows, 8, most_kl=None).block == 0
  assert select(rows, 8, most_kl=0.2, least_induce=None).block == 0
  assert select(rows[1:], 8, least_induce=None).block == 1


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (dict(kl=0.1), ""),  # as much as is allowed
    (dict(kl=0.1001), "KL 0.1 > 0.1"),
    (dict(induce=0.0), ""),
    (dict(induce=-1e-6), "induces -1e-06 < 0"),
    (dict(block=4), ""),  # layer 5
    (dict(block=5), "it is of the last 20% of the layers"),  # layer 6 = int(8 x 0.8)
    (dict(kl=math.nan), "a score is NaN"),
  ],
)
def test_filters_are_those_of_the_paper_at_their_edges(change, reason):
  assert filtered_out(dataclasses.replace(GOOD, **change), 8) == reason


def test_of_equals_the_earliest_position_and_block_is_chosen():
  rows = [dataclasses.replace(GOOD, position=p, block=b) for p in (-1, -3, -2) for b in (2, 1)]
  chosen = select(rows, 8)
  assert (chosen.position, chosen.block) == (-3, 1)


def test_where_none_passes_it_is_said_why():
  with pytest.raises(ValueError, match=r"none of 3 candidates .*\(KL: 2, last layers: 1\)"):
    select(table(dict(kl=1.0), dict(kl=2.0)) + [dataclasses.replace(GOOD, block=7)], 8)


def test_scores_are_those_of_the_definition():
  z_NV = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  p_NV = np.exp(z_NV.astype(np.float64))
  p_NV /= p_NV.sum(axis=1, keepdims=True)
  share_N = p_NV[:, [1, 4]].sum(axis=1)
  np.testing.assert_allclose(
    refusal_scores.log_odds(z_NV, [1, 4]), np.log(share_N / (1 - share_N)), rtol=1e-6
  )
  # The authors' epsilon matters only where nothing, or everything, refuses.
  published = refusal_scores.published_log_odds(z_NV, [1, 4])
  np.testing.assert_allclose(published, np.log(share_N / (1 - share_N)), rtol=1e-6)
  far_NV = np.asarray([[0.0, 60.0]], np.float32)
  assert refusal_scores.log_odds(far_NV, [0]) == -60
  assert refusal_scores.published_log_odds(far_NV, [0]) == pytest.approx(-18.42, abs=0.01)
  q_NV = p_NV[:, ::-1]
  theirs = (p_NV * np.log(p_NV / q_NV)).sum(axis=1)
  np.testing.assert_allclose(
    refusal_scores.divergence(z_NV, z_NV[:, ::-1]), theirs, rtol=1e-3, atol=1e-5
  )


def test_log_odds_of_many_rows_are_those_of_each():
  z_NV = np.random.default_rng(1).normal(size=(150, 9)).astype(np.float32)
  alone = [refusal_scores.log_odds(z_NV[n : n + 1], [2, 5])[0] for n in range(150)]
  np.testing.assert_array_equal(refusal_scores.log_odds(z_NV, [2, 5]), alone)


PROMPTS = [f"w{5 + n} w{20 + n} w9" for n in range(6)]


def test_next_logits_and_divergences_are_those_of_forward(tiny):
  d = tiny.direction(norm=6.0)
  edits = [[], [pj.add(d, 1.0, unit="raw", blocks=1, tokens="all")], [pj.ablate(d, blocks="all")]]
  pairs = [(p, e) for p in PROMPTS[:3] for e in edits]
  rows = encode_rows(tiny.model, [p for p, _ in pairs], [e for _, e in pairs])
  found = next_logits(tiny.model, rows)

  def whole(row):
    table = pj.compile_edits(tiny.model, [list(row.edits)]) if row.edits else None
    ids, roles = (np.asarray([x], np.int32) for x in (row.ids, row.roles))
    end = np.asarray([row.prompt_length])
    return np.asarray(
      pj.forward(tiny.model, ids, table, prompt_lengths_B=end, roles_BT=roles)[0][0]
    )

  for row, z_V in zip(rows, found, strict=True):
    np.testing.assert_allclose(z_V, whole(row)[-1], atol=1e-4)
  couples = [(rows[0], rows[1]), (rows[3], rows[5])]
  kl = token_kl(tiny.model, couples, [[1, 3], [2]])
  for (p, q), at, found_T in zip(couples, [[1, 3], [2]], kl, strict=True):
    log_p, log_q = (
      z - np.log(np.exp(z).sum(axis=-1, keepdims=True)) for z in (whole(p)[at], whole(q)[at])
    )
    np.testing.assert_allclose(
      found_T, (np.exp(log_p) * (log_p - log_q)).sum(axis=-1), rtol=1e-3, atol=1e-6
    )


def test_a_direction_is_found_on_a_model(tiny):
  harmless = [f"w{40 + n} w{30 - n} w8" for n in range(6)]
  tried = []
  found = refusal_direction(
    tiny.model,
    PROMPTS[:4],
    harmless[:4],
    held_out_harmful=PROMPTS[4:],
    held_out_harmless=harmless[4:],
    refusal_ids=[7, 11],
    most_kl=None,
    least_induce=None,
    last_share=None,
    progress=lambda done, of: tried.append((done, of)),
  )
  tail = 1  # the template ends with "w4"
  assert tried[-1] == (3 * tail, 3 * tail) and len(found.candidates) == 3 * tail
  assert found.direction.provenance["position"] == found.chosen.position == -1
  x, y = (
    np.stack(
      [
        tiny.model.capture(ps, pj.Capture(reduce="last"))["resid_post", b].mean(axis=0)
        for b in range(3)
      ]
    )
    for ps in (PROMPTS[:4], harmless[:4])
  )
  np.testing.assert_allclose(found.direction.mean_LD, x - y, atol=1e-5)
  best = min(found.candidates, key=lambda c: c.bypass)
  assert found.chosen == best
  # The scores, by generation with the edits themselves.
  v_D = found.direction.mean_LD[best.block]
  np.testing.assert_array_equal(found.causal.mean_LD, np.tile(v_D, (3, 1)))
  removed = [
    pj.ablate(found.causal, blocks="all", tokens="all", site=site, allow_other_site=True)
    for site in refusal_scores.ABLATED_SITES
  ]
  rows = encode_rows(tiny.model, PROMPTS[4:], [removed] * 2)
  assert refusal_scores.published_log_odds(
    next_logits(tiny.model, rows), [7, 11]
  ).mean() == pytest.approx(best.bypass, abs=1e-5)
  frame = found.table()
  assert (frame["left_out"] == "").all() and len(frame) == 3 * tail
  with pytest.raises(ValueError, match="2 held-out prompts are among those"):
    refusal_direction(
      tiny.model, PROMPTS, harmless[:4], held_out_harmful=PROMPTS[4:],
      held_out_harmless=harmless[4:], refusal_ids=[7],
    )  # fmt: skip
  raw = [pj.Raw(p) for p in PROMPTS]
  with pytest.raises(ValueError, match="no tokens of a template behind the instruction"):
    refusal_direction(
      tiny.model, raw[:2], raw[2:4], held_out_harmful=raw[4:5], held_out_harmless=raw[5:],
      refusal_ids=[7],
    )  # fmt: skip


def test_candidates_of_one_batch_score_as_each_by_itself(tiny):
  rng = np.random.default_rng(0)
  width = tiny.model.arch.width
  vectors = [(rng.normal(size=width), block) for block in (0, 1, 2, 1)]
  # Nothing to add or ablate, and what no activation can be changed by: they have no scores.
  vectors += [(np.zeros(width), 1), (np.full(width, 1e-9), 1)]
  harmful, harmless = (encode_rows(tiny.model, p, None) for p in (PROMPTS[:3], PROMPTS[3:5]))
  found = refusal_scores.score_all(tiny.model, vectors, harmful, harmless, [7, 11])
  for vector, together in zip(vectors, found, strict=True):
    (alone,) = refusal_scores.score_all(tiny.model, [vector], harmful, harmless, [7, 11])
    np.testing.assert_allclose(together, alone, atol=1e-5)
  assert np.isfinite(found[:4]).all() and np.isnan(found[4:]).all()
  # Those that induce too little are not ablated; the others score the same.
  least = sorted(scores.induce for scores in found[:4])[2]
  told = []
  some = refusal_scores.score_all(
    tiny.model, vectors, harmful, harmless, [7, 11], lambda *n: told.append(n), least_induce=least
  )
  assert told[-1] == (6, 6) and told == sorted(told)
  for scores, every in zip(some[:4], found[:4], strict=True):
    assert scores.induce == pytest.approx(every.induce, abs=1e-6)
    if every.induce >= least:
      np.testing.assert_allclose(scores, every, atol=1e-5)
    else:
      assert np.isnan(scores.bypass) and np.isnan(scores.kl)


def test_refusal_tokens_come_from_judged_texts(tiny):
  refusals, answers = ["w7 w8", "w7 w9", "w11 w5", "w20"], ["w20 w5", "w21 w6", "w22", "w20 w9"]
  assert set(refusal_tokens(tiny.model, refusals, answers)) == {
    tiny.model.tokenizer.encode(word)[0] for word in ("w7",)
  }
  with pytest.raises(ValueError, match="give refusal_ids"):
    refusal_tokens(tiny.model, answers, answers)


@pytest.fixture(scope="module")
def w1(tmp_path_factory):
  """A world with a planted refusal direction, which blocks 1 to 4 write and all later ones keep."""
  world = planted.build(planted.W1)
  return world, pj.load(world.write(tmp_path_factory.mktemp("w1")), dtype="float32")


HARM = [planted.user_text(f"harm{n}", 200 + n) for n in range(20, 40)]
MILD = [planted.user_text(f"ok{n}", 200 + n) for n in range(20, 40)]


def search(model, **options):
  return refusal_direction(
    model, HARM[::2], MILD[::2], held_out_harmful=HARM[1::2], held_out_harmless=MILD[1::2],
    refusal_ids=[model.tokenizer.token_id("sorry")], **options,
  )  # fmt: skip


def test_the_planted_refusal_direction_is_found_by_the_published_rule(w1):
  world, model = w1
  found = search(model)
  assert 1 <= found.chosen.block <= 4
  unit_D = found.direction.unit_LD[found.chosen.block]
  assert unit_D @ world.refusal_D > 0.99
  # What it promises: without it harmful prompts are not refused, with it harmless ones are.
  assert found.baseline_harmful > 0 > found.chosen.bypass + 1
  assert found.chosen.induce > 0 > found.baseline_harmless and found.chosen.kl < 0.1
  # All candidates are in the table, those that were not tried as well, and why they are out.
  table = found.table()
  blocks, positions = model.arch.num_blocks, -int(table["position"].min())
  assert len(table) == blocks * positions
  last = table["block"] >= int(0.8 * blocks) - 1
  assert table.loc[last, ["bypass", "induce", "kl"]].isna().all(axis=None)
  assert (table.loc[last, "left_out"] == "it is of the last 20% of the layers").all()
  early = table[(table["block"] == 0) & (table["position"] == -1)].iloc[0]
  assert early["left_out"]  # nothing of refusal is written there yet
  # Held-out prompts are told apart along it, read at its own token.
  held_out = separation(model, found.direction, HARM[1::2], MILD[1::2], draws=10)
  assert held_out.set_index("block").loc[found.chosen.block, "auc"] == 1.0


def test_candidates_of_several_positions_are_means_there(w1):
  world, model = w1
  none = dict(most_kl=None, least_induce=None, last_share=None)
  found = search(model, positions=3, **none)
  assert len(found.candidates) == 3 * model.arch.num_blocks
  at = found.chosen.position
  means = []
  for prompts in (HARM[::2], MILD[::2]):
    reads = model.capture(prompts, pj.Capture())
    ends = [model.encode(prompt).prompt_length for prompt in prompts]
    blocks = range(model.arch.num_blocks)
    means.append(
      [np.mean([reads["resid_post", b][n, e + at] for n, e in enumerate(ends)], 0) for b in blocks]
    )
  np.testing.assert_allclose(found.direction.mean_LD, np.subtract(*means), atol=1e-4)
  assert found.direction.provenance["tokens"] == f"prompt:{at}"
  assert found.chosen.bypass == np.nanmin([c.bypass for c in found.candidates])


def test_where_no_candidate_passes_the_table_is_not_lost(w1):
  _, model = w1
  with pytest.raises(NoRefusalDirection, match="none of 6 candidates passes") as caught:
    search(model, positions=1, least_induce=1e6)
  table = caught.value.table
  # Of six blocks the last three are not tried, and at the first the template's token is the same.
  assert len(table) == 6 and table["left_out"].str.startswith("induces").sum() == 2
  assert table["induce"].notna().tolist() == [False, True, True, False, False, False]
  assert table[["bypass", "kl"]].isna().all(axis=None)  # not ablated: they cannot be chosen
