"""Which block and coefficient: AUC and effect by their definitions, the rules on tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.directions import separation as separating
from persona_jax.directions.selection import (
  Fluency,
  choose,
  fluent,
  largest_fluent,
  middle,
  try_coefficients,
)
from persona_jax.directions.separation import projections, separation, separation_of

CHATS = [
  [
    {"role": "user", "content": f"w{5 + n} w9"},
    {"role": "assistant", "content": " ".join(f"w{(7 * n + i) % 80 + 10}" for i in range(6))},
  ]
  for n in range(6)
]


def test_separation_is_auc_and_cohens_d(tiny):
  rng = np.random.default_rng(0)
  x_NL, y_NL = rng.normal(size=(2, 30, 2)) + np.asarray([1.0, 0.0])[:, None, None] * [0.8, 3.0]
  frame = separation_of(x_NL, y_NL, draws=500)
  for block in (0, 1):
    x, y = x_NL[:, block], y_NL[:, block]
    auc = np.mean([[a > b for b in y] for a in x])
    spread = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    row = frame.iloc[block]
    assert row["auc"] == pytest.approx(auc)
    assert row["d"] == pytest.approx((x.mean() - y.mean()) / spread)
    assert row["auc_low"] <= row["auc"] <= row["auc_high"]
    assert row["d_low"] < row["d"] < row["d_high"]
  ties = separation_of(np.ones((4, 1)), np.ones((4, 1)), draws=10)
  assert ties["auc"].iloc[0] == 0.5 and np.isnan(ties["d"].iloc[0])
  # On a model, at the tokens that the direction was read at.
  positives, negatives = CHATS[:3], CHATS[3:]
  d = pj.extract(tiny.model, positives, negatives, tokens="answer_mean")
  found = separation(tiny.model, d, positives, negatives, draws=50)
  z = pj.project(tiny.model, CHATS, d, tokens=pj.Window(start=0))[:, :, 0]
  wins = (z[:3, None] > z[None, 3:]).mean(axis=(0, 1))
  np.testing.assert_allclose(found["auc"], wins, atol=1e-6)


def test_coefficients_are_tried_and_the_largest_fluent_one_is_found(tiny):
  d = tiny.direction(norm=3.0)
  make = lambda block, c: pj.add(d, c, unit="unit", blocks=block, tokens="all")
  prompts, seen = ["w5 w6", "w9"], []
  frame = try_coefficients(
    tiny.model, make, [0, 2], [1.0, 30.0, -1.0], prompts, max_new_tokens=5,
    degenerate=lambda text: False, effect=lambda edit: float(edit.blocks[0]),
    progress=seen.append,
  )  # fmt: skip
  assert list(zip(frame["block"], frame["coefficient"], strict=True)) == [
    (-1, 0.0), *((b, c) for b in (0, 2) for c in (1.0, 30.0, -1.0))
  ]  # fmt: skip
  assert sum(seen) == 7 and frame["kl"].iloc[0] == 0
  assert (frame["kl"].iloc[1:] > 0).all() and frame["kl"].iloc[2] > frame["kl"].iloc[1]
  answers = tiny.model.generate(prompts, edits=[[make(2, 30.0)]] * 2, max_new_tokens=5)
  scores = tiny.model.score(prompts, [g.token_ids for g in answers])
  nll = np.mean([-s / len(g.token_ids) for s, g in zip(scores, answers, strict=True)])
  row = frame[(frame["block"] == 2) & (frame["coefficient"] == 30.0)].iloc[0]
  assert row["nll"] == pytest.approx(nll, rel=1e-4) and row["answer"] == answers[0].text
  assert frame["effect"].tolist()[1:] == [0, 0, 0, 2, 2, 2]


def trials(rows):
  columns = ["block", "coefficient", "nll", "degenerate", "effect"]
  frame = pd.DataFrame([(-1, 0.0, 2.0, 0.0, np.nan), *rows], columns=columns)
  return frame.assign(kl=frame["coefficient"].abs() / 10, problem="")


def test_the_rule_of_the_largest_fluent_coefficient():
  frame = trials(
    [
      (4, 1.0, 2.5, 0.0, 0.2),
      (4, 2.0, 3.5, 0.0, 0.6),  # too unlikely
      (4, 4.0, 2.1, 0.0, 0.9),  # likely again, beyond noise
      (4, -1.0, 2.9, 0.0, -0.2),
      (5, 1.0, 2.5, 0.5, 0.8),  # degenerate from the first on
      (6, 1.0, 2.0, 0.1, 0.1),
      (6, 2.0, 3.0, 0.1, 0.3),  # at the bounds
    ]
  )
  found = largest_fluent(frame)
  assert [tuple(x) for x in found[["block", "coefficient"]].to_numpy()] == [
    (4, -1.0), (4, 1.0), (5, 0.0), (6, 2.0)
  ]  # fmt: skip

  table = pd.DataFrame({"block": [4, 5, 6], "auc": [0.9, 1.0, 0.8], "d": [1.0, 2.0, 1.0]})
  assert choose(table)[:2] == (5, None)
  assert choose(table, frame)[:2] == (6, 2.0)  # of the largest effect
  assert choose(table, frame.assign(effect=np.nan))[:2] == (4, 1.0)
  strict = Fluency(most_nats=0.2, most_degenerate=0.0)
  with pytest.raises(ValueError, match="no coefficient is fluent"):
    choose(table, frame, strict)


def test_what_a_trial_lacks_makes_it_not_fluent():
  frame = trials([(4, 1.0, 2.5, 0.0, 0.2), (4, 2.0, 2.5, 0.0, 0.3)])
  assert fluent(frame, Fluency()).all()
  assert fluent(frame, Fluency(most_kl=0.15)).tolist() == [True, True, False]
  frame.loc[1, "problem"] = "an edit was not delivered"
  assert fluent(frame, Fluency()).tolist() == [True, False, True]
  assert largest_fluent(frame)["coefficient"].tolist() == [0.0]
  frame.loc[2, ["nll", "kl"]] = np.nan
  assert fluent(frame, Fluency(most_kl=9.0)).tolist() == [True, False, False]


def test_blocks_are_chosen_among_those_that_are_allowed():
  table = pd.DataFrame({"block": [0, 3, 6], "auc": [1.0, 0.9, 1.0], "d": [9.0, 1.0, 5.0]})
  assert choose(table)[0] == 0
  assert choose(table)[2] == (
    "largest AUC on held-out pairs, 1.000, of blocks 0 to 6, and of 2 blocks with it the largest d"
  )
  assert choose(table, among=middle(8))[0] == 3 and list(middle(8)) == [2, 3, 4, 5]
  assert list(middle(3)) == [1] and list(middle(1)) == [0]
  with pytest.raises(ValueError, match=r"no vector at any of the blocks \[1, 2\]"):
    choose(table, among=[2, 1])


def test_intervals_draw_what_pairs_have_in_common():
  # Two questions, of which one tells apart and one does not, ten pairs each: with pairs drawn by
  # themselves it looks sure, with questions drawn it is not.
  rng = np.random.default_rng(0)
  question = [0] * 10 + [1] * 10
  x_N1 = (np.repeat([3.0, 0.0], 10) + 0.1 * rng.normal(size=20))[:, None]
  y_N1 = 0.1 * rng.normal(size=(20, 1))
  alone = separation_of(x_N1, y_N1, draws=4000).iloc[0]
  drawn = separation_of(x_N1, y_N1, factors=[question], draws=4000).iloc[0]
  assert drawn["auc"] == alone["auc"]
  # Both questions are drawn half of the time, either of them alone a quarter each.
  assert drawn["auc_low"] == pytest.approx((x_N1[10:] > y_N1[10:].T).mean(), abs=0.02)
  assert drawn["auc_high"] == 1.0 and alone["auc_low"] > drawn["auc_low"] + 0.05
  with pytest.raises(ValueError, match="3 labels for 20 pairs"):
    separation_of(x_N1, y_N1, factors=[[1, 2, 3]])


def test_intervals_are_corrected_for_the_bias_of_their_draws():
  drawn = np.arange(1000.0)
  # Half lie below the estimate: plain percentiles.
  np.testing.assert_allclose(
    separating._interval(499.5, drawn, 0.95), np.quantile(drawn, [0.025, 0.975])
  )
  # A tenth: Φ⁻¹(0.1) = -1.2816, so the percentiles are Φ(-2.5631 ± 1.9600).
  np.testing.assert_allclose(
    separating._interval(99.5, drawn, 0.95), np.quantile(drawn, [3.05e-06, 0.27320]), atol=0.02
  )
  np.testing.assert_array_equal(separating._interval(3.0, np.full(9, 3.0), 0.95), (3.0, 3.0))
  assert np.isnan(separating._interval(np.nan, drawn, 0.95)).all()
  np.testing.assert_array_equal(
    separating._interval(-1.0, np.asarray([np.nan, 2.0]), 0.95), (2.0, 2.0)
  )


def test_corrected_intervals_hold_the_truth_more_often_and_are_narrower():
  rng, found = np.random.default_rng(0), []
  questions, wordings = (x.ravel() for x in np.meshgrid(range(12), range(3), indexing="ij"))
  for seed in range(80):
    x_N, y_N = (
      rng.normal(0, 0.8, 12)[questions] + rng.normal(0, 0.5, 3)[wordings] + rng.normal(0, 0.3, 36)
      for _ in range(2)
    )
    x_N += 5
    (row,) = separation_of(
      x_N[:, None], y_N[:, None], factors=(questions, wordings), draws=500, seed=seed
    ).itertuples()
    assert row.d_low < row.d < row.d_high
    weight_BN = separating._weights(36, (questions, wordings), 500, np.random.default_rng(seed))
    plain = np.nanquantile(separating._effects(x_N, y_N, weight_BN)[1:], [0.025, 0.975])
    truth = 5 / np.sqrt(0.8**2 + 0.5**2 + 0.3**2)
    for low, high in ((row.d_low, row.d_high), plain):
      found.append((low <= truth <= high, high - low))
  held, width = np.asarray(found).reshape(80, 2, 2).mean(axis=0).T
  assert held[0] > held[1] + 0.05 and width[0] < width[1] * 0.9


def test_weights_of_two_factors_multiply():
  rng = np.random.default_rng(0)
  weight_BN = separating._weights(6, [[0, 0, 0, 1, 1, 1], list("abcabc")], 500, rng)
  assert (weight_BN[0] == 1).all() and (weight_BN.sum(axis=1) == 6).all()
  for w in weight_BN[1:]:
    table = w.reshape(2, 3)  # how often the row was drawn times how often the column was
    rows, columns = table.sum(axis=1) / 3, table.sum(axis=0) / 2
    np.testing.assert_array_equal(table, np.outer(rows, columns))
  assert len({tuple(w) for w in weight_BN}) > 10
  with pytest.raises(ValueError, match="no pairs"):
    separation_of(np.zeros((0, 2)), np.zeros((0, 2)))


def test_prompts_are_read_where_the_direction_was_or_where_it_is_said(tiny):
  d = tiny.direction()
  with pytest.raises(ValueError, match="does not say at which tokens it was read"):
    separation(tiny.model, d, CHATS[:1], CHATS[1:2])
  with pytest.raises(ValueError, match=r"prompts \[1\] have no token at 'answer_mean'"):
    projections(tiny.model, [d], [CHATS[0], "w5 w6"], tokens="answer_mean")
  z_RNK, blocks = projections(tiny.model, [d, tiny.direction(1)], CHATS[:3], tokens="prompt:-2")
  assert z_RNK.shape == (2, 3, 3) and blocks == [0, 1, 2]
  reads = tiny.model.capture(CHATS[:3], pj.Capture(blocks=2))["resid_post", 2]
  end = [tiny.model.encode(chat).prompt_length for chat in CHATS[:3]]
  theirs = [reads[n, at - 2] @ d.unit_LD[2] for n, at in enumerate(end)]
  np.testing.assert_allclose(z_RNK[0, :, 2], theirs, atol=1e-4)
  for tokens in ("prompt:-0", "prompt:1", "end"):
    with pytest.raises(ValueError, match="'prompt:-k'"):
      projections(tiny.model, [d], CHATS[:1], tokens=tokens)


def test_a_coefficient_that_is_too_large_is_a_line_of_the_table(tiny):
  d = tiny.direction(norm=1.0)
  make = lambda block, c: pj.add(d, c, unit="unit", blocks=block, tokens="all")
  frame = try_coefficients(tiny.model, make, [1], [0.5, 3e38], ["w5 w6"], max_new_tokens=4)
  assert frame["problem"].tolist()[:2] == ["", ""] and "not delivered" in frame["problem"].iloc[2]
  assert fluent(frame, Fluency(most_nats=1e9)).tolist() == [True, True, False]


def test_prompts_that_are_not_answered_are_left_out(tiny):
  first = tiny.model.generate(["w5 w6"], max_new_tokens=1)[0].token_ids[0]
  stops = dataclasses.replace(tiny.model.tokenizer, eos_ids=(first,))
  model = dataclasses.replace(tiny.model, tokenizer=stops)
  make = lambda block, c: pj.add(tiny.direction(norm=1.0), c, unit="unit", blocks=block)
  answers = model.generate(["w5 w6", "w9"], max_new_tokens=4)
  silent = [not g.token_ids for g in answers]
  frame = try_coefficients(model, make, [1], [0.5], ["w5 w6", "w9"], max_new_tokens=4)
  assert (frame["prompts"] == 2 - sum(silent)).all() and frame["nll"].notna().all()
