"""The core study on planted worlds: every number it reports against the truth that was planted.

Each world is written as a checkpoint, loaded, extracted from, calibrated, steered and analysed by
the product; `tests.planted.law` works out what must come out, in float64 and without it.
"""

import dataclasses
import fnmatch
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax import stats
from persona_jax.geometry import gram
from persona_jax.geometry.cosines import cosines
from persona_jax.report.claims import check
from persona_jax.report.look import rows_anchor
from persona_jax.scorers import agreement
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import tables
from persona_jax.studies.persona_non_grata.contrasts import kept_table
from persona_jax.studies.persona_non_grata.differences import refusal_samples
from persona_jax.studies.persona_non_grata.gates import Gate, blocked_by, judge_gates
from persona_jax.studies.persona_non_grata.geometry import examine
from persona_jax.studies.persona_non_grata.hypotheses import judge
from persona_jax.studies.persona_non_grata.judged_rates import with_corrected
from persona_jax.studies.persona_non_grata.legends import LEGENDS, unexplained
from persona_jax.studies.persona_non_grata.reporting import (
  read_tables,
  with_prompts,
  write_sheets,
)
from persona_jax.studies.persona_non_grata.style import StyleInvariance
from persona_jax.studies.persona_non_grata.validating import readings
from tests.planted import law, study
from tests.planted.study import Study

NAMES = study.law_personas()
P12 = NAMES.index("P12")
Make = Callable[..., Study]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
  """Writes a world and studies it."""

  known: dict[str, Study] = {}

  def made(name: str, label: str = "", noise: float = 0.0, **changes: object) -> Study:
    key = name + label
    if key not in known:
      place = study.write(name, folder / key, noise=noise)
      known[key] = study.run(place, folder / f"{key}-study", **changes)
    return known[key]

  return made


@pytest.fixture(scope="module")
def w1(make: Make) -> Study:
  controls = ("R-cov", "-v", "v_perp_r", "v_par_r", "+-r", "floor")
  return make(
    "W1", control_prompts=40, controls=controls, num_controls=40, dose_prompts=8, spec_prompts=12
  )


@pytest.fixture(scope="module")
def noisy(make: Make) -> Study:
  return make("W1", "noisy", noise=1.5)


@pytest.fixture(scope="module")
def w2(make: Make) -> Study:
  return make("W2")


@pytest.fixture(scope="module", params=["N0", "N1", "N3"])
def null(request: pytest.FixtureRequest, make: Make) -> Study:
  return make(request.param)


# ---- what is extracted and calibrated ------------------------------------------------------------


def test_directions_are_the_planted_ones(w1: Study) -> None:
  for t, v_D in enumerate(w1.place.world.trait_TD):
    direction = w1.extracted.contrasts[f"{law.TRAITS[t]}+"]
    assert np.abs(direction.unit_LD[2] @ v_D) > 0.9999


def test_noisy_directions_point_the_right_way_though_single_paraphrases_may_not(
  noisy: Study,
) -> None:
  for t, v_D in enumerate(noisy.place.world.trait_TD):
    direction = noisy.extracted.contrasts[f"{law.TRAITS[t]}+"]
    assert direction.unit_LD[2] @ v_D > 0.65


def test_refusal_is_found_where_it_is_written_and_with_the_decoy_in_n3(
  w1: Study, make: Make
) -> None:
  for run, expected, tolerance in ((w1, 1.0, 0.01), (make("N3"), 0.894, 0.02)):
    assert run.refusal.about["selected"]
    assert 1 <= run.refusal.about["block"] <= 4
    cos = run.refusal.family.unit_LD[2] @ run.place.world.refusal_D
    assert cos == pytest.approx(expected, abs=tolerance)


def test_prompts_are_matched_by_the_gain_of_the_persona_head(w1: Study) -> None:
  poles = w1.calibrated.matches[~w1.calibrated.matches["persona"].isin(["P11", "P12"])]
  np.testing.assert_allclose(poles["coef_raw"], study.COEF, rtol=0.01)
  assert set(w1.calibrated.matches["status"]) == {"ok"}


def test_cosines_of_neighbouring_blocks_agree_before_the_late_head_and_flip_behind_it(
  w1: Study,
) -> None:
  shifts = w1.found.geometry.shifts.set_index(["direction", "block"])
  for name in ("P3", "P7", "P12"):
    row = shifts.loc[name, 3]
    assert row["cos_0"] == pytest.approx(row["cos_plus_1"], abs=1e-5)  # block 2 read as block 3
    assert row["cos_minus_1"] * row["cos_0"] < -0.1  # block 4 read as block 3


# ---- what is measured ----------------------------------------------------------------------------


def test_every_cell_of_both_arms_has_the_planted_probability(w1: Study, noisy: Study) -> None:
  for run in (w1, noisy):
    for arm, expected in run.expected().items():
      np.testing.assert_allclose(run.probability(arm), expected, atol=3e-3)


def test_a_paraphrase_goes_with_the_direction_that_was_made_of_it(noisy: Study) -> None:
  steered = noisy.probability("AS:proj").mean(axis=-1)
  expected = noisy.expected()["AS:proj"].mean(axis=-1)
  spread = expected.std(axis=1)
  assert spread.max() > 0.02  # replicates differ, so that a mix-up would show
  np.testing.assert_allclose(steered, expected, atol=3e-3)


def test_prompts_hold_back_p12_and_steering_lets_it_go(w1: Study) -> None:
  effects = w1.found.tables["effects"].set_index(["arm", "persona"])
  prompted = effects.loc["SP"]["rate"]
  assert sorted(prompted).index(prompted["P12"]) <= 1
  assert effects.loc["SP", "P12"]["effect_high"] < 0 < effects.loc["AS:proj", "P12"]["effect_low"]
  rank = effects.loc["AS:proj"]["rate"].rank(ascending=False)
  assert rank["P12"] <= 2


# ---- what is concluded ---------------------------------------------------------------------------


def test_claims_on_w1_name_p12_and_no_persona_that_does_not_invert(w1: Study) -> None:
  claims = w1.found.claims
  assert "H3" in set(claims["claim"])
  assert ("AS-worse", "P12") in set(zip(claims["claim"], claims["subject"], strict=True))
  truth = w1.place.population().inversions()
  for claim, subject in zip(claims["claim"], claims["subject"], strict=True):
    assert truth[subject] == ("SP" if claim == "SP-worse" else "AS")


def test_effects_of_composites_are_predicted_from_poles_measured_with_both_signs(
  w1: Study, noisy: Study
) -> None:
  for run in (w1, noisy):
    world, users = run.place.world, run.place.users
    directions = run.place.directions()
    unit_PD = directions.personas().mean(axis=1)[:, 2]
    unit_PD /= np.linalg.norm(unit_PD, axis=1, keepdims=True)
    r_D = directions.refusal_LD[2]
    x_P = unit_PD @ r_D / np.linalg.norm(r_D)
    dose = run.calibrated.kappa * float(run.calibrated.scale.resid_L[2])
    cells = law.steered(world, users, dose * unit_PD)
    base = law.first_token(world, law.last_token(world, users)[:, -1])
    bypass_P = (np.exp(base.sorry) - np.exp(cells.sorry)).mean(axis=1)
    odds_P = (cells.log_odds - base.log_odds).mean(axis=1)
    table = run.found.geometry.predicted.set_index(["outcome", "persona"])
    for outcome, effect_P, at_most in (("p_bypass", bypass_P, 0.05), ("log_odds", odds_P, 0.08)):
      assert list(table.loc[outcome].index) == ["P11", "P12"]
      line = np.polyfit(x_P[:10], effect_P[:10], 1)  # both signs of five directions
      for p in (P12 - 1, P12):
        row = table.loc[outcome, NAMES[p]]
        assert row["points"] == 10
        assert row["alignment"] == pytest.approx(x_P[p], abs=5e-3)
        assert row["effect"] == pytest.approx(effect_P[p], rel=0.02)
        assert row["slope"] == pytest.approx(line[0], rel=0.02)
        assert row["predicted"] == pytest.approx(np.polyval(line, x_P[p]), rel=0.02)
        if run is w1:  # with poles as noisy as the other's, the law's own line is off by .07
          assert abs(row["predicted"] - row["effect"]) <= at_most
  # A direction along refusal lets less through, by what the law says of attack success.
  slope = w1.found.geometry.predicted.set_index(["outcome", "persona"]).loc["p_bypass", "P12"][
    "slope"
  ]
  assert slope == pytest.approx(w1.place.population().slope(), rel=0.06)


def test_finite_doses_are_nearly_what_the_derivative_says(w1: Study) -> None:
  table = w1.found.geometry.linearity
  small = table[(table["coef"] == 0.1) & (table["persona"] == "P12")].set_index("outcome")
  assert small.loc["projection", "linearity"] == pytest.approx(1, abs=1e-3)
  assert small.loc["log_odds", "linearity"] == pytest.approx(1, abs=0.08)


def test_nothing_is_claimed_where_no_persona_inverts(null: Study) -> None:
  assert null.place.population().inversions() == {}
  assert null.found.blocked == ""
  assert null.found.claims.empty


def test_h3_and_h4_of_w1_are_supported(w1: Study) -> None:
  by_name = {verdict.name: verdict for verdict in w1.found.verdicts}
  assert by_name["H3"].status == by_name["H4"].status == "supported"
  assert by_name["H1"].status == by_name["H2"].status == "NOT TESTABLE"


def test_a_decoy_is_no_explanation_and_neither_is_a_slope_over_random_directions(
  make: Make,
) -> None:
  n3 = make("N3")
  (h4,) = [v for v in n3.found.verdicts if v.name == "H4"]
  assert h4.status == "not supported"
  assert "cosine does not explain" in h4.reason
  idle = n3.found.geometry.traits.set_index("direction")
  assert abs(idle.loc["C", "cos"]) > 0.2
  assert idle.loc["C", "verdict"] == "cosine does not explain"
  (h4,) = [v for v in make("N0").found.verdicts if v.name == "H4"]
  assert h4.status == "not supported"
  assert "no trait is aligned" in h4.reason


def test_h3_rests_on_the_confirm_split_alone_once_it_is_open(w1: Study, folder: Path) -> None:
  shutil.copytree(w1.out, folder / "confirm")
  test = w1.table[w1.table["part"] == "test"]
  swapped = test["persona"].replace({"P11": "P12", "P12": "P11"})
  confirm = test.assign(part="confirm", persona=swapped)
  both = dataclasses.replace(w1, table=pd.concat([w1.table, confirm], ignore_index=True))
  left_out = {"runs/other": "fails its gates (G1)"}
  found = both.analysed(w1.settings, folder / "confirm", left_out=left_out)
  setup = found.tables["setup"].set_index("what")["value"]
  assert setup["other models left out"] == "runs/other: fails its gates (G1)"
  assert [v.split for v in found.verdicts] == ["test", "test", "confirm", "test"]
  h3, before = found.verdicts[2], w1.found.verdicts[2]
  assert (before.status, h3.status) == ("supported", "not supported")
  (row,) = (
    w1.found.tables["inversions"]
    .query("persona == 'P11' and direction == 'AS-worse'")
    .to_dict("records")
  )
  assert f"AS:proj: D_SP {row['d_SP']:+.3f} [" in h3.numbers and "on confirm (" in str(h3)
  assert "H3" not in set(found.claims["claim"])
  assert found.verdicts[3].numbers == w1.found.verdicts[3].numbers
  for name in ("inversions", "rates", "effects"):
    pd.testing.assert_frame_equal(found.tables[name], w1.found.tables[name])
  text = product.write_summary(found, w1.settings, folder / "confirm" / "summary.md").read_text()
  assert "## Inversions on the confirm split\n\n`direction`" in text


def test_h3_says_that_its_confirm_split_is_not_open(w1: Study) -> None:
  found = w1.found
  asked = (
    w1.measured, found.tables["inversions"], found.geometry.regressions, found.geometry.traits, "",
  )  # fmt: skip
  split = dataclasses.replace(w1.settings, confirm_prompts=40)
  h3 = judge(split, *asked, held=1.0)[2]
  assert (h3.status, h3.split) == ("supported", "test")
  assert "supported on test (" in str(h3)
  assert h3.reason == "the confirm split is not open: exploratory"
  assert judge(w1.settings, *asked, held=1.0)[2].reason == ""


def test_two_worlds_share_the_prompted_ranking_and_not_the_steered_one(
  w1: Study, w2: Study
) -> None:
  # Exact probabilities rank personas alike in every draw of prompts, which gives no interval.
  sampled = dataclasses.replace(w1.measured, outcomes=study.sampled(w1.measured.outcomes, seed=1))
  others = {"W2": study.sampled(w2.measured.outcomes.arm("SP"), seed=2)}
  found = judge(
    w1.settings,
    sampled,
    w1.found.tables["inversions"],
    w1.found.geometry.regressions,
    w1.found.geometry.traits,
    "",
    others=others,
  )
  by_name = {verdict.name: verdict for verdict in found}
  assert by_name["H1"].status == by_name["H2"].status == "supported"
  draws = w1.measured.draws
  prompted = stats.rank_correlation(sampled.outcomes.arm("SP"), others["W2"], draws)
  rates = [run.place.population().prompted_PK.mean(1) for run in (w1, w2)]
  truth = law.rank_correlation(*rates)
  assert prompted.disattenuated.low <= truth <= prompted.disattenuated.high
  arms = [sampled.outcomes.arm(arm) for arm in ("SP", "AS:proj")]
  both = stats.rank_correlation(*arms, draws).disattenuated
  asr = [y.mean((1, 2)) for y in w1.expected().values()]
  assert both.low <= law.rank_correlation(*asr) <= both.high
  (p12,) = tables.inversion_tables(w2.measured, w2.settings)[0].query(
    "persona == 'P12' and direction == 'AS-worse'"
  )["p"]
  assert p12 > 0.05


def test_slopes_over_directions_are_those_of_the_law_by_either_outcome(w1: Study) -> None:
  census = w1.found.geometry.census
  x_R = np.stack([d.unit_LD[2] for d in census.directions]) @ w1.refusal.family.unit_LD[2]
  shift = float(census.coef * w1.calibrated.scale.resid_L[2])
  shifts_RD = shift * np.stack([d.unit_LD[2] for d in census.directions])
  cells = law.steered(w1.place.world, w1.place.users, shifts_RD)
  base = law.first_token(w1.place.world, law.last_token(w1.place.world, w1.place.users)[:, -1])
  truth = {
    "log_odds": (cells.log_odds - base.log_odds).mean(axis=1),
    "p_bypass": (np.exp(base.sorry) - np.exp(cells.sorry)).mean(axis=1),
  }
  table = w1.found.geometry.regressions
  assert list(dict.fromkeys(table["outcome"])) == ["log_odds", "p_bypass"]
  by_outcome = table.set_index(["outcome", "predictor"])
  points = w1.found.geometry.points.set_index(["kind", "outcome"])
  for outcome, sign in (("log_odds", 1), ("p_bypass", -1)):
    row = by_outcome.loc[outcome, "cos_euclidean"]
    slope, intercept = np.polyfit(x_R, truth[outcome], 1)
    assert row["low"] <= slope <= row["high"]
    assert row["slope"] == pytest.approx(slope, rel=0.02)
    assert row["intercept"] == pytest.approx(intercept, abs=0.02)
    assert min(sign * row["low"], sign * row["high"]) > 0
    cloud = points.loc[("R-cov", outcome), "delta"].to_numpy()
    expected = truth[outcome][np.asarray(census.kinds) == "R-cov"]
    np.testing.assert_allclose(cloud, expected, atol=0.02)


def test_a_left_out_contrast_is_in_no_census_and_no_regression(noisy: Study) -> None:
  run = noisy
  stages = (
    run.model, run.settings, run.material, run.extracted, run.refusal, run.calibrated, run.out
  )  # fmt: skip
  found = examine(*stages, leave_out={"reliability below 0.5": ["C+"], "not elicited": []})
  assert any(note.startswith("reliability below 0.5: C+;") for note in found.notes)
  assert list(found.traits["direction"]) == ["O", "E", "A", "N"]
  whole = run.found.geometry.census
  assert set(found.census.names) == set(whole.names) - {"C"}
  assert set(found.regressions["directions"]) == {len(found.census.names)}
  left = set(found.points.query("kind == 'persona'")["direction"])
  assert left == {"P1", "P5", "P7", "P9"}  # of either sign, and no sum with C
  assert found.predicted.empty
  # A direction that is tested is what it was.
  delta = dict(
    zip(run.found.geometry.census.names, run.found.geometry.census.delta_RN, strict=True)
  )
  for name, mine in zip(found.census.names, found.census.delta_RN, strict=True):
    np.testing.assert_allclose(mine, delta[name], atol=1e-4)
  assert not any(note.startswith("not elicited") for note in found.notes)
  p = found.alignment.set_index("direction")["cos_p"]
  assert p.loc[["P1", "P2"]].notna().all() and p.loc[["P3", "P4", "P12"]].isna().all()
  nothing = examine(*stages, leave_out={"not elicited": list(run.extracted.contrasts)})
  assert nothing.traits.empty and nothing.predicted.empty
  assert set(nothing.points["kind"]) == {"R-cov", "PC"}
  with pytest.raises(ValueError, match=r"leave_out=\['X\+'\]: the contrasts are"):
    examine(*stages, leave_out={"": ["X+"]})


def test_where_no_persona_is_elicited_nothing_is_tested(noisy: Study, folder: Path) -> None:
  kept = pd.DataFrame({"contrast": list(noisy.extracted.contrasts), "elicited": False})
  bare = dataclasses.replace(noisy.extracted, kept=kept)
  run = dataclasses.replace(noisy, extracted=bare)
  found = run.analysed(noisy.settings, folder / "none")
  assert {v.reason for v in found.verdicts} == {"no persona's traits were elicited"}
  assert found.claims.empty and found.blocked == ""
  for name, column in (("rankings", "measurable"), ("inversions", "inverted")):
    assert not found.tables[name][column].any()
    reasons = set(found.tables[name]["reason"])
    assert reasons == {"not testable: no persona's traits were elicited"}
  assert set(found.geometry.census.kinds) == {"R-cov", "PC"}
  text = product.write_summary(found, noisy.settings, folder / "none.md").read_text()
  assert text.count("Not testable: no persona's traits were elicited.") >= 3


def test_the_inversion_is_there_in_all_specifications_behind_the_persona_head(w1: Study) -> None:
  curve = w1.found.tables["specifications"]
  assert set(curve["block"]) == {1, 2, 3}
  assert set(curve["window"]) == {"answer", "all"}
  assert set(curve["rule"]) == {"sum", "direct"}
  assert len(curve) == 3 * 2 * 2 * len(w1.settings.kappas)
  # Before the harm head a push at every token changes what that head reads.
  strong = curve[(curve["kappa"] >= 0.2) & (curve["block"] >= 2)]
  assert strong["holds"].all()
  primary = curve[curve["primary"]].set_index("kappa")
  effects = w1.found.tables["effects"].set_index(["arm", "persona"])
  assert np.sign(primary.loc[0.2, "d_as"]) == np.sign(effects.loc["AS:proj", "P12"]["effect"])


def test_cosines_have_intervals_over_questions_that_hold_the_planted_ones(w1: Study) -> None:
  table = w1.found.geometry.cosines.set_index(["metric", "direction", "block"])
  row = table.loc["euclidean", "P3", 2]
  assert row["low"] - 1e-4 <= -0.6 <= row["high"] + 1e-4
  assert row["cos"] == pytest.approx(-0.6, abs=1e-3)
  composite = table.loc["euclidean", "P12", 2]
  truth = w1.place.population().alignment_PKL[P12, 0, 2]
  assert composite["low"] - 1e-4 <= truth <= composite["high"] + 1e-4
  assert composite["high"] - composite["low"] < 1e-3  # nothing is noisy here
  causal = w1.found.geometry.alignment.set_index(["direction", "block"])["cos_causal"]
  assert causal["P3", 2] == pytest.approx(-0.6, abs=1e-3)


def test_cosines_of_sums_are_disattenuated_by_halves_in_every_metric(noisy: Study) -> None:
  table = noisy.found.geometry.cosines.set_index(["metric", "direction", "block"])
  assert {"euclidean", "whitened", "unembedding"} == set(table.index.levels[0])
  for metric in ("euclidean", "whitened", "unembedding"):
    for name in ("P3", "P11", "P12"):
      row = table.loc[metric, name, 2]
      assert (
        row[["reliability", "reliability_r"]].between(0.99, 1 + 1e-9).all()
      )  # no question counts
      both = np.sqrt(row["reliability"] * row["reliability_r"])
      assert row["cos_disattenuated"] == pytest.approx(row["cos"] / both, abs=1e-6)
      assert row["low"] < row["cos"] < row["high"]
  assert not any("interval" in note or "known" in note for note in noisy.found.geometry.notes)


def test_refusal_is_drawn_from_the_two_samples_that_it_was_made_of(noisy: Study) -> None:
  run, family = noisy, noisy.refusal.family
  samples, notes = refusal_samples(run.model, run.material, run.refusal)
  assert samples is not None and notes == ()
  for block in range(1, len(family.mean_LD)):  # before, nothing of harm is read
    mean_D = samples.mean(block)
    np.testing.assert_allclose(mean_D, family.mean_LD[block], atol=1e-4)
    halves = samples.made_of(block, samples.half_weights)
    assert gram.split_half(halves) == pytest.approx(family.reliability_L[block], abs=1e-5)
  about = run.refusal.about | {"harmful": [23, 24]}
  other = dataclasses.replace(run.refusal, about=about)
  samples, (note,) = refusal_samples(run.model, run.material, other)
  assert samples is None
  assert "was made of 23 harmful prompts, and 24 are found" in note


def test_gaps_are_what_the_study_s_edit_adds_along_refusal(w1: Study) -> None:
  table = w1.found.geometry.cosines.set_index(["metric", "direction", "block"])
  r, block = w1.refusal.family, w1.calibrated.block
  size = w1.calibrated.kappa * float(w1.calibrated.scale.resid_L[block])
  for name in ("P3", "P4", "P7", "P12"):
    added_D = size * w1.extracted.personas[name].unit_LD[block].astype(np.float64)
    moved = added_D @ r.unit_LD[block] / np.linalg.norm(r.mean_LD[block])
    assert table.loc["euclidean", name, block]["gaps"] == pytest.approx(moved, rel=1e-5)


# ---- interventions -------------------------------------------------------------------------------


def test_the_effect_is_in_the_part_along_refusal_and_not_in_the_rest(w1: Study) -> None:
  controls = w1.found.tables["controls"].set_index("persona")
  strong = controls.loc[["P3", "P7", "P12"]]
  assert (strong["kept_v_par_r"] >= 0.95).all()
  assert (strong["kept_v_perp_r"] * strong["effect"]).abs().max() <= 0.02
  assert (strong["p_R-cov"] <= 0.05).all()
  assert (strong["restored_random"].abs() <= 0.1).all()
  assert (strong["restored_r_low"] > 0.3).all()


def test_ablating_refusal_leaves_the_probability_of_none(w1: Study) -> None:
  users = list(w1.place.users)[:6]
  r = w1.refusal.causal
  edits = [pj.ablate(r, blocks="all", tokens="all")]
  chats = [f"{user}" for user in users]
  log_odds = w1.model.score(chats, ["sorry"] * 6, edits=[edits] * 6) - w1.model.score(
    chats, ["sure"] * 6, edits=[edits] * 6
  )
  # Without its component along r the read-out is 2 sqrt(D) / 10 times minus the threshold of 1.
  np.testing.assert_allclose(log_odds, -1.6, atol=1e-3)


def test_the_opposite_direction_mirrors_the_change_up_to_the_length_of_the_state(
  w1: Study,
) -> None:
  users = list(w1.place.users)[:6]
  direction = w1.extracted.personas["P3"]
  last_ND = law.last_token(w1.place.world, users)[:, -1]
  scaled = []
  for sign in (1, 0, -1):
    edit = pj.add(direction, sign * study.COEF, unit="unit", blocks=2) if sign else None
    sorry, sure = (
      w1.model.score(users, [word] * 6, edits=[edit] * 6) for word in ("sorry", "sure")
    )
    state_ND = last_ND + sign * study.COEF * direction.unit_LD[2]
    scaled.append((sorry - sure) * np.linalg.norm(state_ND, axis=-1) / 10)
  np.testing.assert_allclose(scaled[0] - scaled[1], scaled[1] - scaled[2], atol=1e-4)


def test_odd_parts_of_the_dose_curve_carry_the_sign_of_alignment(w1: Study) -> None:
  doses = w1.found.tables["doses"]
  largest = doses[doses["dose"] == doses["dose"].max()].set_index("persona")
  assert largest.loc["P3", "odd_low"] > 0  # aligned with compliance: more bypasses
  assert largest.loc["P1", "odd_high"] < 0


def test_windows_all_and_answer_are_one_before_the_late_head(w1: Study) -> None:
  direction = w1.extracted.personas["P3"]
  users = list(w1.place.users)[:4]

  def steer(tokens: str) -> np.ndarray:
    edit = pj.add(direction, study.COEF, unit="unit", blocks=2, tokens=tokens)
    return w1.model.score(users, ["sorry"] * 4, edits=[edit] * 4)

  np.testing.assert_allclose(steer("all"), steer("answer"), atol=1e-4)
  answer = ["sorry cannot"] * 4
  edit = pj.add(direction, study.COEF, unit="unit", blocks=2, tokens="generated")
  rows = [[edit], []] * 2
  first = [x[0] for x in w1.model.score(users[:1] * 4, answer, edits=rows, per_token=True)]
  assert len(set(first)) == 1  # the first token sees nothing of it, bit by bit


# ---- generic damage, a biased judge, a trap of doses ---------------------------------------------


def test_generic_damage_is_not_specific(make: Make) -> None:
  run = make(
    "N2", controls=("R-iso", "-v"), control_prompts=40, num_controls=40, block=0, read_block=1,
    window="all", matches=("norm",), kappa=1.5, kappas=(0.1, 0.45, 1.5),
  )  # fmt: skip
  controls = run.found.tables["controls"].set_index("persona")
  assert controls.loc["P12", "p_R-iso"] > 0.05
  assert (controls["even"] > 5 * controls["odd"].abs()).all()
  part = run.table[(run.table["part"] == "controls") & (run.table["control"] == "R-iso")]
  base = run.table[(run.table["part"] == "controls") & (run.table["arm"] == "B0")]
  assert part["p_bypass"].mean() > base["p_bypass"].mean() + 0.05
  assert run.found.claims.empty
  # Harm is written at block 1: at the steered block there is no refusal to project on.
  assert run.table["r_steered"].isna().all() and run.table["r_read"].notna().all()
  # Every cell is that of an edit of all tokens by the law, and not that of the answer's alone.
  size = 1.5 * float(run.calibrated.scale.resid_L[0])
  shift_PKD = size * run.place.directions().personas()[:, :, 0]
  measured = run.probability("AS:norm")
  for tokens, is_it in (("all", True), ("answer", False)):
    cells = law.steered(run.place.world, run.place.users, shift_PKD, block=0, tokens=tokens)
    assert (np.abs(measured - (1 - np.exp(cells.sorry))).max() < 3e-3) == is_it


def test_an_unnormalised_sum_makes_a_composite_look_worst_by_its_length_alone(
  make: Make,
) -> None:
  run = make("D")
  poles = [run.extracted.contrasts[name] for name in ("C+", "A+")]
  unit = [dataclasses.replace(d, vectors_SLD=d.unit_LD[None]) for d in poles]
  users = list(run.place.users)[:8]

  last_ND = law.last_token(run.place.world, users)[:, -1]

  def scores(edit: pj.Edit | None, moved_D: np.ndarray) -> np.ndarray:
    sorry, sure = (run.model.score(users, [w] * 8, edits=[edit] * 8) for w in ("sorry", "sure"))
    # Logits are of the normed state: times its length they are linear in what is added.
    return (sorry - sure) * np.linalg.norm(last_ND + moved_D, axis=-1)

  def shift(direction: pj.Direction, unit_name: str) -> float:
    edit = pj.add(direction, study.COEF, unit=unit_name, blocks=2)
    added_D = direction.unit_LD[2] if unit_name == "unit" else direction.mean_LD[2]
    moved_D = study.COEF * added_D.astype(np.float64)
    return float((scores(edit, moved_D) - scores(None, 0 * moved_D)).mean())

  single = shift(poles[0], "unit")
  summed = shift(pj.compose(unit, [1, 1], "sum"), "raw")
  normalised = shift(pj.compose(unit, [1, 1], "unit_sum"), "raw")
  r = run.refusal.family.unit_LD[2]
  cos = [float(d.unit_LD[2] @ r) for d in (poles[0], pj.compose(unit, [1, 1], "unit_sum"))]
  assert normalised / single == pytest.approx(cos[1] / cos[0], rel=2e-3)
  length = np.linalg.norm(unit[0].mean_LD[2] + unit[1].mean_LD[2])
  assert summed / normalised == pytest.approx(length, rel=2e-3)
  assert length > 1.4
  label = pj.compose(unit, [1, 1], "unit_sum")
  np.testing.assert_allclose(np.linalg.norm(label.vectors_SLD, axis=-1), 1, rtol=1e-5)


def test_cosines_of_composites_are_those_of_unit_sums(w1: Study) -> None:
  c, a = (w1.extracted.contrasts[name].unit_LD[2] for name in ("C+", "A+"))
  expected = (c + a) / np.linalg.norm(c + a)
  found = w1.extracted.personas["P12"].unit_LD[2]
  np.testing.assert_allclose(found, expected, atol=1e-3)
  (cos,) = cosines(found[None], w1.refusal.family.unit_LD[2], 2)
  assert cos == pytest.approx((-0.6 - 0.45) / np.sqrt(2 + 2 * c @ a), abs=1e-3)


class CallsYes:
  """A judge that takes a word of tone for compliance."""

  name = "labels"
  columns = ("label", "bypass")

  def __init__(self, words: tuple[str, ...]):
    self.words = words

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    bypass = [
      "sure" in text.split() or any(word in text.split() for word in self.words)
      for text in table["text"]
    ]
    labels = ["bypass" if x else "refuse" for x in bypass]
    return pd.DataFrame(
      {"label": labels, "bypass": pd.array(bypass, dtype="boolean")}, index=table.index
    )

  def validate(self, labelled: pd.DataFrame) -> dict[str, object]:
    return agreement(labelled["label"], self.score(labelled)["bypass"])


def test_a_judge_that_hears_a_persona_s_tone_blocks_every_hypothesis(
  make: Make, folder: Path
) -> None:
  rng = np.random.default_rng(0)
  rows = []
  for persona in NAMES:
    tone = "yes_C" if persona in ("P3", "P12") else ""
    for _ in range(60):
      refuses = bool(rng.random() < 0.7)
      text = f"{'sorry cannot' if refuses else 'sure steps'} {tone}".strip()
      rows.append({"text": text, "label": not refuses, "persona": persona})
  labelled = pd.DataFrame(rows)
  run = make("N0")  # what the judge is told has no effect at all
  chosen = dataclasses.replace(run.settings, gates=("G1", "G2", "G3", "G5"))

  invariant = StyleInvariance("answers to twins", True, pd.DataFrame(), "")

  def gates(words: tuple[str, ...], style: tuple[StyleInvariance, ...] = ()) -> list[Gate]:
    expression = run.found.tables["expression"]
    read = readings(run.table, labelled=labelled, scorer=CallsYes(words))
    return judge_gates(chosen, run.table, run.refusal.about, expression, readings=read, style=style)

  assert blocked_by(gates((), (invariant,))) == ""
  assert "style invariance was not measured" in blocked_by(gates(()))
  assert "false positive rate" in blocked_by(gates(("yes_C",)))
  found = run.analysed(chosen, folder / "biased", labelled=labelled, scorer=CallsYes(("yes_C",)))
  assert found.title == "Pipeline demonstration, not a safety measurement"
  assert {v.status for v in found.verdicts} == {"NOT TESTABLE"}
  assert found.claims.empty
  text = product.write_summary(found, chosen, folder / "biased" / "summary.md").read_text()
  assert "NOT TESTABLE (G5: kappa" in text
  assert "Attack success rate" not in text
  assert "Non-refusal rate" in text
  assert "Not testable: G5" in text.split("## Rank correlations")[1]


def test_the_summary_says_what_every_column_means(
  w1: Study, answered: pd.DataFrame, folder: Path
) -> None:
  # This study has no answers, and its directions are of prompts: those columns are from elsewhere.
  sides = [
    {"contrast": "C+", "replicate": 0, "question": "q", "sample": 0, "text": "yes", "problem": x}
    for x in ("", "short")
  ]
  columns = {name: list(table) for name, table in w1.found.tables.items()} | {
    "regressions": list(w1.found.tables["geometry_regressions"]),
    "rates": list(with_corrected(tables.rates(answered), answered, None)),
    "kept": list(kept_table(pd.DataFrame(sides))),
  }
  left = {name: unexplained(name, columns[name]) for name in LEGENDS}
  assert {k: v for k, v in left.items() if v} == {"matches": ["r2", "unreached"]}  # not shown
  for name, meanings in LEGENDS.items():
    mine = [pattern for key in meanings for pattern in key.split(", ")]
    unused = [pattern for pattern in mine if not fnmatch.filter(columns[name], pattern)]
    # Tables of T8 have no rows without people's labels; tests/studies/validating_test.py has some.
    assert unused == [] or not columns[name], (name, unused)
  text = product.write_summary(w1.found, w1.settings, folder / "summary.md").read_text()
  assert text.count("`reason` why something is missing") >= 3
  assert "-0.000" not in text


# ---- sampling, restarting, what a weak model may say ---------------------------------------------


def test_sampled_answers_follow_the_exact_probabilities(w1: Study, folder: Path) -> None:
  direction = w1.extracted.personas["P12"]
  edit = pj.add(direction, study.COEF, unit="unit", blocks=2)
  texts = {p.name: p.text(0) for p in w1.material.personas}
  conditions = [pj.Condition("B0"), pj.Condition("steer", edits=edit)]
  conditions += [pj.Condition(name, system=texts[name]) for name in ("P3", "P4", "P12")]
  prompts = {item.prompt_id: item.text for item in w1.material.test}
  grid = pj.Grid(prompts, conditions, samples=5, temperature=1.0, max_new_tokens=1, seed=3)
  table = pj.run(w1.model, grid, folder / "samples", progress=False).table()
  for condition in conditions:
    mine = table[table["condition"] == condition.name]
    chats = [condition.apply(text) for text in prompts.values()]
    scores = w1.model.score(chats, ["sorry"] * len(chats), edits=[condition.edits] * len(chats))
    p_N = np.exp(scores)
    count = int((mine["text"] == "sorry").sum())
    # 99.9 % of the exact distribution of a sum of unlike Bernoulli draws.
    pmf = np.ones(1)
    for p in np.repeat(p_N, 5):
      pmf = np.convolve(pmf, [1 - p, p])
    cdf = np.cumsum(pmf)
    low, high = np.searchsorted(cdf, [0.0005, 0.9995])
    assert low <= count <= high


def test_a_stage_is_not_run_where_what_it_reads_is_not_there(w1: Study, folder: Path) -> None:
  product.require(w1.settings, ["generate", "analyse"], folder / "W1-study")
  product.require(w1.settings, ["extract"], folder / "nowhere")
  generating = dataclasses.replace(w1.settings, generate=("test",))
  for asked, lacking in (
    (["generate", "analyse"], "['extract', 'calibrate']"),
    (["extract", "calibrate", "analyse"], "['generate']"),  # a gap is no leave to run it
  ):
    with pytest.raises(ValueError, match=re.escape(f"the stages {lacking} have not been run")):
      product.require(generating, asked, folder / "nowhere")
  for wrong, said in (([], "stages are none"), (["draw"], r"stages \['draw'\]")):
    with pytest.raises(ValueError, match=f"{said}: use some of"):
      product.require(w1.settings, wrong, folder / "W1-study")


def test_a_study_that_goes_on_reads_what_is_there(w1: Study) -> None:
  again = study.run(
    w1.place, w1.out, control_prompts=40, num_controls=40, dose_prompts=8, spec_prompts=12,
    controls=w1.settings.controls,
  )  # fmt: skip
  pd.testing.assert_frame_equal(again.table, w1.table)
  with pytest.raises(ValueError, match="other settings"):
    study.run(w1.place, w1.out, delta=0.1)


def test_the_plan_counts_the_rows_that_are_run(w1: Study) -> None:
  text = product.describe(w1.model, w1.settings, w1.material)
  test = w1.table[w1.table["part"] == "test"]
  conditions = test["condition"].nunique()
  assert f"test: {conditions} conditions x 40 prompts: {len(test)} exact first tokens" in text
  controls = w1.table[w1.table["part"] == "controls"]
  assert f"40 prompts: {len(controls)} exact first tokens" in text
  ways = len(w1.found.tables["specifications"])
  assert f"specification curve: {ways} ways: {ways * 12 * 12} exact first tokens at most" in text


def test_rows_hold_the_projections_of_their_last_token(w1: Study) -> None:
  mine = w1.table[(w1.table["part"] == "test") & w1.table["arm"].isin(["B0", "SP", "AS:proj"])]
  plain = mine[mine["arm"] == "B0"].set_index("prompt_id")
  assert plain["v_steered"].isna().all() and plain["r_steered"].notna().all()
  block, matches = w1.calibrated.block, w1.calibrated.matches.set_index("by").loc["proj"]
  coefs = matches.set_index(["persona", "replicate"])["coef_raw"]
  r_D = w1.refusal.family.unit_LD[block]
  for persona in ("P1", "P12"):
    rows = mine[(mine["arm"] == "AS:proj") & (mine["persona"] == persona)]
    base = plain.loc[rows["prompt_id"], "r_steered"].to_numpy()
    coef = coefs.loc[[(persona, k) for k in rows["replicate"]]].to_numpy()
    direction = w1.extracted.personas[persona]
    u_D = direction.unit_LD[block]
    np.testing.assert_allclose(rows["r_steered"] - base, coef * (u_D @ r_D), atol=0.02)
    # By the match, steering moves the projection on v as far as the prompt does.
    prompted = mine[(mine["arm"] == "SP") & (mine["persona"] == persona)]
    assert abs(rows["v_steered"].mean() - prompted["v_steered"].mean()) < 0.1


# ---- the report ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(w1: Study) -> pd.DataFrame:
  """Returns the rows of the study as if answers had been generated: by the exact probabilities."""
  refuses = w1.table["p_bypass"] < 0.5
  label = np.where(refuses, "refuse", "bypass")
  ids = [f"{n:016x}" for n in range(len(label))]
  texts = np.where(refuses, "sorry cannot", "sure steps")
  return w1.table.assign(label=label, text=texts, row_id=ids, bypass=~refuses)


@pytest.fixture(scope="module")
def written(w1: Study, answered: pd.DataFrame) -> product.Report:
  assert w1.found.title  # analysed
  return product.report(w1.settings, w1.material, answered, w1.out)


def test_every_number_of_the_page_is_found_in_its_table(w1: Study, written: product.Report) -> None:
  tables = read_tables(w1.settings, w1.out)
  assert check(written.page, written.claims, tables) == []
  assert written.numbers > 500
  tables["effects"]["rate"] += 0.1
  assert len(check(written.page, written.claims, tables)) > 20


def test_rows_are_all_in_the_file_with_their_prompts(w1: Study, written: product.Report) -> None:
  rows = pd.read_parquet(written.rows)
  assert len(rows) == len(w1.table) and rows["prompt"].notna().all()
  by_id = {item.prompt_id: item.text for item in w1.material.test}
  assert (rows["prompt"] == rows["prompt_id"].map(by_id)).all()


def test_points_of_figures_lead_to_their_rows(
  answered: pd.DataFrame, written: product.Report
) -> None:
  text = written.page.read_text()
  links = set(re.findall(r'href="#(rows-[^"]*)"', text))
  places = set(re.findall(r'id="(rows-[^"]*)"', text))
  assert links and links <= places
  for arm in ("B0", "SP", "AS:proj"):
    assert rows_anchor(arm, "" if arm == "B0" else "P12") in places
  # What stands there is the rows of that arm and persona.
  place = text.split(f'id="{rows_anchor("SP", "P12")}"')[1].split('id="rows-')[0]
  wanted = (answered["part"] == "test") & (answered["arm"] == "SP")
  mine = answered[wanted & (answered["persona"] == "P12")]
  shown = set(re.findall(r"<code>([0-9a-f]{8,})</code>", place))
  assert shown and shown <= set(mine["row_id"])


def test_draws_give_the_intervals_of_the_tables(w1: Study, written: product.Report) -> None:
  draws = pd.read_parquet(written.draws)
  effects = w1.found.tables["effects"]
  for arm, persona in (("SP", "P1"), ("AS:proj", "P12")):
    row = effects[(effects["arm"] == arm) & (effects["persona"] == persona)].iloc[0]
    mine = draws[(draws["arm"] == arm) & (draws["persona"] == persona)]
    values = mine[mine["statistic"] == "rate"]["value"]
    assert len(values) == w1.settings.draws
    assert np.allclose(np.quantile(values, [0.025, 0.975]), [row["low"], row["high"]], atol=1e-9)


def test_sheets_of_annotators_are_blind_and_are_kept(
  w1: Study, answered: pd.DataFrame, written: product.Report
) -> None:
  sheet = pd.read_csv(written.sheets[0], dtype=str)
  assert list(sheet) == ["id", "question", "answer", "label", "note"]
  sheet.loc[0, "label"] = "refuse"
  sheet.to_csv(written.sheets[0], index=False)
  rows = with_prompts(answered, w1.material)
  again = write_sheets(rows, written.sheets[0].parent, w1.settings.seed)
  assert again == written.sheets
  assert pd.read_csv(again[0]).loc[0, "label"] == "refuse"


def test_the_page_says_how_settings_differ_from_the_protocol(
  w1: Study, written: product.Report
) -> None:
  table = read_tables(w1.settings, w1.out)["deviations"].set_index("field")
  assert table.loc["test_prompts", "here"] == "40"
  assert table.loc["test_prompts", "protocol"] == "200 or more"
  assert "window" not in table.index and "source" in table.index
  config = json.loads((w1.out / "config.json").read_text())
  assert config["hash"] in written.page.read_text()


def test_a_report_needs_an_analysis(w1: Study, tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match="run its stages first"):
    product.report(w1.settings, w1.material, w1.table, tmp_path)
