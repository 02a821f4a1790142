"""`pj.match` in a planted world, where it is known what either arm does.

In W1 the system prompt of a pole writes 2 v on every token after it and then, at block 4, refusal
that an edit does not write. What a match says is computed once more by the float64 reference.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.calibration.answers import Answers
from persona_jax.calibration.gauge import Gauge, pairs_of
from persona_jax.calibration.match import PromptArm, match_to
from persona_jax.directions.dose import Dose
from persona_jax.scorers.choice import ChoiceItem, Choices
from tests.planted import world as planted
from tests.reference import numpy_llama as reference

BLOCK, LATE, NORM = 2, 5, 10.0
PERSONAS = {name: planted.PERSONAS[name] for name in ("P3", "P4", "P7", "P12")}  # C+ C- A+ C+A+
SINGLE = ["P3", "P4", "P7"]
POLES = {
  name: [(pole[0], 1 if pole[1] == "+" else -1) for pole in poles]
  for name, poles in PERSONAS.items()
}
PROMPTED = {
  name: pj.Condition(name, system=planted.system_text(poles)) for name, poles in PERSONAS.items()
}
USERS = [planted.user_text(f"ok{i}", 300 + i) for i in range(0, 40, 7)]
ASKED = {
  trait: [planted.user_text(planted.FILLERS[7 * t + i], 20_000 + 4 * t + i) for i in range(2)]
  for t, trait in enumerate("CA")
}
QUESTIONNAIRE = Choices(
  [
    ChoiceItem(f"{t}-{i}", t, 1, (text,), ((f"yes_{t}", f"no_{t}"),), ((1.0, 0.0),))
    for t, texts in ASKED.items()
    for i, text in enumerate(texts)
  ],
  least_mass=0.0,
)
SCALE = Dose(np.full(planted.BLOCKS, NORM), np.zeros((planted.BLOCKS, 1, planted.HIDDEN)), 1, {})
SCAN = (0.05, 0.15, 0.35, 0.6)
SCALES = ["norm", "proj", "proj_here", "trait", "kl"]
Table = pd.DataFrame


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """W1 with its answers, and its planted directions."""

  world: planted.World
  model: pj.Model
  answers: Answers

  def unit_D(self, persona: str) -> np.ndarray:
    """Returns the unit sum of a persona's planted directions."""
    v_D = sum(s * self.world.trait_TD[planted.TRAITS.index(t)] for t, s in POLES[persona])
    return v_D / np.linalg.norm(v_D)

  def direction(self, *personas: str) -> pj.Direction:
    """Makes a direction that has a persona a replicate."""
    v_SD = np.stack([self.unit_D(persona) for persona in personas])
    return pj.Direction(np.repeat(v_SD[:, None], planted.BLOCKS, axis=1), " ".join(personas))

  def match(self, by: Any, prompted: Any = None, directions: Any = None, **options: Any) -> Table:
    """Matches all personas, or those of `prompted`."""
    prompted = PROMPTED if prompted is None else prompted
    directions = directions or {name: self.direction(name) for name in prompted}
    given = {"prompts": self.answers, "blocks": BLOCK, "scale": SCALE, "scan": SCAN}
    given |= {"questionnaire": QUESTIONNAIRE, "poles": POLES}
    found = pj.match(self.model, prompted, directions, by=by, **(given | options))
    return found.set_index("persona")

  def expected(
    self, persona: str, read_block: int, system: str = "", shift_D: np.ndarray | None = None
  ) -> list[float]:
    """Works out, in float64, what a prompt or a shift achieves on each scale."""
    norm, proj, here, kl = [], [], [], []
    for user in USERS:
      h0_LTD, p0_TV = self._run(user, "sure steps")
      h_LTD, p_TV = self._run(user, "sure steps", system, shift_D)
      norm.append(np.linalg.norm(h_LTD[BLOCK] - h0_LTD[BLOCK], axis=-1).mean() / NORM)
      along_LT = (h_LTD - h0_LTD) @ self.unit_D(persona)
      proj.append(along_LT[read_block].mean())
      here.append(along_LT[BLOCK].mean())
      kl.append((np.exp(p0_TV) * (p0_TV - p_TV))[:-1].sum(-1).mean())  # behind the last is nothing
    gains = []
    for trait, sign in POLES[persona]:
      yes, no = self.world.ids(f"yes_{trait} no_{trait}")
      p_NV = np.stack([self._run(text, "", system, shift_D)[1][0] for text in ASKED[trait]])
      gains.append(sign * (1 / (1 + np.exp(p_NV[:, no] - p_NV[:, yes])) - 0.5).mean())
    means = [float(np.mean(x)) for x in (norm, proj, here, kl)]
    return [*means[:3], min(gains), means[3]]

  def _run(
    self, user: str, answer: str, system: str = "", shift_D: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns [L, T, D] from the last prompt token on, and log-probabilities there, [T, V]."""
    prompt = self.world.prompt_ids(user, system)
    edits = []
    if shift_D is not None:
      edits = [reference.Edit(reference.add(shift_D, 1.0), (BLOCK,), start=-1)]
    ids, first = [*prompt, *self.world.ids(answer)], len(prompt) - 1
    hook = reference.edit_hook(edits, len(prompt))
    out = reference.forward(self.world.config, self.world.tensors, ids, hook)
    return out.resid_post_LTD[:, first:], reference.log_softmax(out.logits_TV[first:])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
  world = planted.build(planted.W1)
  model = pj.load(world.write(tmp_path_factory.mktemp("w1")), dtype="float32")
  return Study(world, model, Answers.of(model, USERS, max_new_tokens=3))


@pytest.fixture(scope="module")
def tables(study: Study) -> dict[str, Table]:
  return {
    "norm": study.match("norm"),
    "proj": study.match("proj"),
    "late": study.match("proj", read_block=LATE),
    # It saturates: 1 % of the gain is 6 % of dose.
    "trait": study.match("trait", tolerance=0.005, read_block=LATE),
    "kl": study.match("kl", read_block=LATE),
  }


# ---- the four scales -----------------------------------------------------------------------------


def test_equal_shift_at_the_edited_block_is_what_the_prompt_writes(
  study: Study, tables: dict[str, Table]
) -> None:
  proj = tables["proj"]
  assert (proj["status"] == "ok").all() and (proj["read_block"] == BLOCK).all()
  np.testing.assert_allclose(proj.loc[SINGLE, "coef_raw"], 2, rtol=0.01)
  # A word of each: the mean of 2 v_C and 2 v_A.
  v_C, v_A = study.unit_D("P3"), study.unit_D("P7")
  assert proj.loc["P12", "coef_raw"] == pytest.approx(np.linalg.norm(v_C + v_A), rel=0.01)


def test_equal_shift_behind_the_late_head_has_what_it_writes_in_it(
  tables: dict[str, Table],
) -> None:
  late, kappa, b = (
    tables["late"],
    *map(np.asarray, (planted.W1.alignment, planted.W1.prompt_effect)),
  )
  assert (late["status"] == "ok").all() and (late["read_block"] == LATE).all()
  for persona, t in (("P3", 1), ("P7", 3)):
    # 2 (b - κ) r more, of which v has κ; words of a longer stream write 2 % less.
    expected = 2 * (1 + (b[t] - kappa[t]) * kappa[t])
    assert late.loc[persona, "coef_raw"] == pytest.approx(expected, rel=0.05)
  assert (late.loc[SINGLE, "coef_raw"] < 0.7 * tables["proj"].loc[SINGLE, "coef_raw"]).all()


def test_equal_expression_agrees_with_equal_shift_before_the_late_head(
  tables: dict[str, Table],
) -> None:
  trait = tables["trait"]
  assert (trait["status"] == "ok").all()
  np.testing.assert_allclose(trait["coef"], tables["proj"]["coef"], rtol=0.05)


def test_equal_divergence_is_solved_to_one_per_cent(tables: dict[str, Table]) -> None:
  kl = tables["kl"]
  assert (kl["status"] == "ok").all() and kl["target"].between(0.05, 0.2).all()
  np.testing.assert_allclose(kl["achieved_kl"], kl["target"], rtol=0.01)


def test_norm_is_the_median_of_the_prompts_and_the_same_for_all(
  study: Study, tables: dict[str, Table]
) -> None:
  norm = tables["norm"]
  np.testing.assert_array_equal(norm["coef"], np.median(norm["target_norm"]))
  np.testing.assert_array_equal(norm["target"], norm["coef"])
  np.testing.assert_allclose(norm["achieved_norm"], norm["coef"], rtol=1e-5)
  given = study.match("norm", kappa=0.3, tokens="generated", questionnaire=None)
  assert given["coef"].tolist() == given["target"].tolist() == [0.3] * 4
  np.testing.assert_array_equal(given["target_norm"], norm["target_norm"])
  np.testing.assert_allclose(given["achieved_norm"], 0.2, rtol=1e-5)  # two of the three tokens


def test_prompts_that_were_measured_once_serve_every_scale(
  study: Study, tables: dict[str, Table]
) -> None:
  arm = PromptArm.of(
    study.model,
    PROMPTED,
    {name: study.direction(name) for name in PROMPTED},
    prompts=study.answers,
    blocks=BLOCK,
    scale=SCALE,
    questionnaire=QUESTIONNAIRE,
    poles=POLES,
  )
  for by in ("norm", "proj"):
    found = match_to(arm, by=by, scan=SCAN).set_index("persona")  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(found, tables[by], rtol=1e-5)
  without = dataclasses.replace(arm, gauge=dataclasses.replace(arm.gauge, questionnaire=None))
  with pytest.raises(ValueError, match="needs a questionnaire and the poles"):
    match_to(without, by="trait", scan=SCAN)


@pytest.mark.parametrize("table", ["norm", "proj", "late", "trait", "kl"])
def test_what_both_arms_do_on_every_scale_is_that_of_the_reference(
  study: Study, tables: dict[str, Table], table: str
) -> None:
  found = tables[table]
  read_block = LATE if table in ("late", "trait", "kl") else BLOCK
  assert (found["read_block"] == read_block).all()
  for persona, row in found.iterrows():
    prompted = study.expected(str(persona), read_block, PROMPTED[str(persona)].system or "")
    np.testing.assert_allclose(row[[f"target_{s}" for s in SCALES]].tolist(), prompted, rtol=2e-4)
    assert row["coef_raw"] == NORM * row["coef"]
    shift_D = row["coef_raw"] * study.unit_D(str(persona))
    steered = study.expected(str(persona), read_block, shift_D=shift_D)
    np.testing.assert_allclose(row[[f"achieved_{s}" for s in SCALES]].tolist(), steered, rtol=2e-4)


@pytest.mark.parametrize("by", ["proj", "trait", "kl"])
def test_the_target_is_the_prompts_value_and_is_met_within_the_tolerance(
  tables: dict[str, Table], by: str
) -> None:
  found = tables[by]
  np.testing.assert_array_equal(found["target"], found[f"target_{by}"])
  np.testing.assert_allclose(found[f"achieved_{by}"], found["target"], rtol=0.005)
  assert (found["by"] == by).all() and (found["block"] == BLOCK).all()
  assert (found["coef_low"] <= found["coef"]).all() and (found["coef"] <= found["coef_high"]).all()
  assert (found["unreached"] == 0).all() and (found["r2"] > 0.99).all()
  assert (found["reason"] == "").all() and found["replicate"].isna().all()


def test_at_the_edited_block_the_match_is_in_closed_form_whatever_is_read_behind_it(
  study: Study, tables: dict[str, Table]
) -> None:
  for name in ("proj", "late"):
    np.testing.assert_allclose(
      tables[name]["coef_here"], tables[name]["target_proj_here"] / NORM, rtol=1e-6
    )
  np.testing.assert_allclose(tables["late"]["coef_here"], tables["proj"]["coef"], rtol=0.005)
  for name in ("norm", "trait", "kl"):
    assert tables[name]["coef_here"].isna().all()
  # Two of the three tokens that are read: half as much again is needed for the same mean.
  part = study.match("proj", {"P3": PROMPTED["P3"]}, tokens="generated").loc["P3"]
  assert part["coef_here"] == pytest.approx(1.5 * tables["proj"].loc["P3", "coef_here"], rel=1e-6)
  assert part["coef"] == pytest.approx(part["coef_here"], rel=0.005)
  assert part["achieved_proj_here"] == pytest.approx(part["target_proj_here"], rel=0.005)


def test_one_coefficient_for_all_is_the_median_of_those_that_are_ok(
  tables: dict[str, Table], lost: Table
) -> None:
  for table in tables.values():
    np.testing.assert_array_equal(table["coef_pooled"], np.median(table["coef"]))
  np.testing.assert_array_equal(lost["coef_pooled"], lost.loc[["P7", "P12"], "coef"].mean())


def test_units_are_prompts_or_items_and_all_are_there(tables: dict[str, Table]) -> None:
  for name in ("norm", "proj", "late", "kl"):
    assert (tables[name]["units"] == len(USERS)).all()
  assert tables["trait"]["units"].tolist() == [2, 2, 2, 4]  # P12 has two traits
  for table in tables.values():
    assert (table["units_missing"] == 0).all() and (table["items_missing"] == 0).all()


# ---- items that the model no longer answers ------------------------------------------------------


def forgetful(answered: int, lost: int) -> dict[str, Any]:
  """Asks P3 items of C: yes or no, and others that C+ gives up from a dose between .2 and .35 on.

  These have no, or yes followed by no: as likely as no is, and always no.
  """
  yes_no = dataclasses.replace(QUESTIONNAIRE.items[0], item_id="yes")
  no = dataclasses.replace(yes_no, options=(("yes_C no_C", "no_C"),))
  items = [dataclasses.replace(yes_no, item_id=f"yes {n}") for n in range(answered)]
  items += [dataclasses.replace(no, item_id=f"no {n}") for n in range(lost)]
  questionnaire = Choices(items, least_mass=2.5e-8)
  poles, prompted = {"P3": POLES["P3"]}, {"P3": PROMPTED["P3"]}
  return {"prompted": prompted, "questionnaire": questionnaire, "poles": poles}


def gains(study: Study, given: dict[str, Any]) -> np.ndarray:
  """Works out the gain of each item under the prompt, in standard deviations."""
  conditions = {"none": pj.Condition("none"), "P3": PROMPTED["P3"]}
  asked = {name: (condition, ["C"]) for name, condition in conditions.items()}
  table = given["questionnaire"].measure(study.model, asked)
  plain, prompted = (table.loc[table["condition"] == name, "score"].to_numpy() for name in asked)
  return (prompted - plain) / plain.std()


def test_an_item_that_is_lost_at_a_dose_is_in_neither_arm(
  study: Study, tables: dict[str, Table]
) -> None:
  given = forgetful(2, 1)
  row = study.match("trait", tolerance=0.005, **given).loc["P3"]
  gain_I = gains(study, given)
  assert gain_I[2] < 0.2 * gain_I[0]
  assert row["status"] == "ok" and (row["units"], row["units_missing"]) == (2, 1)
  assert row["target"] == row["target_trait"] == pytest.approx(gain_I[:2].mean(), rel=1e-4)
  assert row["achieved_trait"] == pytest.approx(row["target"], rel=0.005)
  # With the third item in the target alone, a smaller dose would meet it.
  assert row["coef"] == pytest.approx(tables["proj"].loc["P3", "coef"], rel=0.05)
  assert row["items_missing"] == 1


def test_what_a_match_achieves_on_the_trait_rests_on_items_of_both_arms(study: Study) -> None:
  given = forgetful(2, 1)
  gain_I = gains(study, given)
  small = study.match("norm", kappa=0.15, **given).loc["P3"]
  assert (small["items_missing"], small["units"], small["units_missing"]) == (0, len(USERS), 0)
  assert small["target_trait"] == pytest.approx(gain_I.mean(), rel=1e-4)
  large = study.match("norm", kappa=0.5, **given).loc["P3"]
  assert (large["items_missing"], large["units"], large["units_missing"]) == (1, len(USERS), 0)
  assert large["target_trait"] == pytest.approx(gain_I[:2].mean(), rel=1e-4)
  # From even odds, .9935 under the prompt, all but to certainty.
  assert large["achieved_trait"] == pytest.approx(gain_I[0] * 0.5 / 0.493525, rel=1e-3)


def test_with_fewer_than_half_of_the_items_left_there_is_no_match_and_no_value(
  study: Study,
) -> None:
  given = forgetful(1, 2)
  row = study.match("trait", **given).loc["P3"]
  assert row["status"] == "unreachable" and np.isnan(row["coef"]) and np.isnan(row["coef_pooled"])
  assert row["reason"].endswith("; at 0.35 1 of 3 units have a value, fewer than half")
  row = study.match("norm", kappa=0.5, **given).loc["P3"]
  assert row["status"] == "ok" and row["items_missing"] == 2
  assert np.isnan(row["achieved_trait"]) and not np.isnan(row["target_trait"])


# ---- what cannot be matched ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lost(study: Study) -> Table:
  """P3 may take a small dose only, and P4 is steered the other way."""
  directions = {name: study.direction(name) for name in PERSONAS} | {"P4": study.direction("P3")}
  most = dict.fromkeys(PERSONAS, 0.6) | {"P3": 0.15}
  return study.match("proj", directions=directions, most=most)


def test_a_target_out_of_reach_is_unreachable_and_not_the_largest_dose(lost: Table) -> None:
  numbers = ["coef", "coef_low", "coef_high", "coef_raw", *(f"achieved_{s}" for s in SCALES)]
  assert lost["status"].tolist() == ["unreachable", "unreachable", "ok", "ok"]
  assert lost.loc[["P3", "P4"], numbers].isna().all(axis=None)
  assert lost.loc[["P7", "P12"], numbers].notna().all(axis=None)
  assert lost.loc["P3", "target"] == pytest.approx(2, rel=0.01)
  assert lost.loc["P3", "reason"].endswith(
    "is above 1.5, the largest response up to coefficient 0.15"
  )


def test_a_direction_that_the_prompt_moves_the_other_way_is_unreachable(lost: Table) -> None:
  assert lost.loc["P4", "target"] == pytest.approx(-2, rel=0.01)
  assert "not above 0" in lost.loc["P4", "reason"]


# ---- replicates ----------------------------------------------------------------------------------


def test_replicate_k_of_the_direction_goes_with_condition_k(study: Study) -> None:
  texts = [PROMPTED[name].system for name in ("P3", "P7")]
  conditions = [pj.Condition(f"{k}", system=text, replicate=k) for k, text in enumerate(texts)]
  prompted = {"two": conditions, "one": conditions}
  directions = {"two": study.direction("P3", "P7"), "one": study.direction("P3")}
  found = study.match("proj", prompted, directions, questionnaire=None, poles=None)
  assert list(zip(found.index, found["replicate"], strict=True)) == [
    ("two", 0), ("two", 1), ("one", 0), ("one", 1)
  ]  # fmt: skip
  cosine = study.unit_D("P3") @ study.unit_D("P7")  # .27: what a wrong pair has
  np.testing.assert_allclose(found["coef_raw"], [2, 2, 2, 2 * cosine], rtol=0.01)
  assert found[["target_trait", "achieved_trait"]].isna().all(axis=None)  # no questionnaire
  assert found[["achieved_norm", "achieved_proj", "achieved_kl"]].notna().all(axis=None)


def test_one_condition_has_the_mean_direction(study: Study) -> None:
  direction = study.direction("P3", "P7")
  (pair,) = pairs_of({"P3": PROMPTED["P3"]}, {"P3": direction})
  assert pair.direction is direction and pair.replicate is None  # edits add its mean
  conditions = [pj.Condition(f"{k}", system="w1", replicate=k) for k in range(2)]
  pairs = pairs_of({"P3": conditions}, {"P3": direction})
  for k, pair in enumerate(pairs):
    assert (pair.replicate, pair.prompt) == (k, conditions[k])
    np.testing.assert_array_equal(pair.direction.vectors_SLD, direction.vectors_SLD[k : k + 1])


# ---- arguments -----------------------------------------------------------------------------------

ONES = pj.Direction(np.ones((1, planted.BLOCKS, planted.HIDDEN)), "ones")
STEERED = pj.Condition("both", system="w1", edits=pj.add(ONES, 1, unit="raw", blocks=BLOCK))
THREE = [pj.Condition(f"{k}", system="w1") for k in range(3)]


@pytest.mark.parametrize(
  ("prompted", "message"),
  [
    ({"P7": PROMPTED["P7"]}, "give both of every persona"),
    ({"P3": PROMPTED["P3"], "P7": PROMPTED["P7"]}, "give both of every persona"),
    ({"P3": pj.Condition("none")}, "give conditions with a prompt and without edits"),
    ({"P3": [PROMPTED["P3"], STEERED]}, r"\['both'\]; give conditions with a prompt and without"),
    ({"P3": []}, "no condition"),
    ({"P3": THREE}, "3 prompt conditions and 2 replicates"),
  ],
)
def test_arms_that_do_not_fit_are_refused(study: Study, prompted: Any, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    study.match("proj", prompted, {"P3": study.direction("P3", "P7")})


@pytest.mark.parametrize(
  ("by", "options", "message"),
  [
    ("size", {}, "by='size': use one of"),
    ("trait", {"questionnaire": None}, "needs a questionnaire and the poles"),
    ("trait", {"poles": None}, "needs a questionnaire and the poles"),
    ("norm", {"poles": {"P7": POLES["P7"]}}, "the poles of 'P3' are not given"),
    ("trait", {"poles": {"P3": [("O", 1)]}}, r"traits \['O'\] have no items"),
    ("proj", {"read_block": 1}, "read_block=1 is before the edited block 2"),
    ("proj", {"blocks": 6}, "block"),
    ("proj", {"most": {"P7": 0.3}}, "most has no dose for 'P3'"),
    ("norm", {"kappa": 0.0}, "must be above 0"),
  ],
)
def test_what_a_scale_lacks_is_named(
  study: Study, by: str, options: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    study.match(by, {"P3": PROMPTED["P3"]}, **options)


# ---- answers and units ---------------------------------------------------------------------------


def test_answers_are_greedy_and_those_given_are_kept(study: Study) -> None:
  assert [chat[-1]["content"] for chat in study.answers.chats] == ["sure steps"] * len(USERS)
  given = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
  assert Answers.of(study.model, [given]).chats == (given,)
  empty = [given[0], {"role": "assistant", "content": " "}]
  some = Answers.of(study.model, [given, empty, given])
  assert (len(some), some.num_empty, study.answers.num_empty) == (2, 1, 0)
  with pytest.raises(ValueError, match="has edits"):
    Answers.of(study.model, USERS, baseline=STEERED)
  with pytest.raises(ValueError, match=r"not pj\.Raw"):
    Answers.of(study.model, [pj.Raw("w1")])
  with pytest.raises(ValueError, match="none of 1 prompts"):
    Answers.of(study.model, [empty])


def test_prompts_without_an_answer_are_missing_units(study: Study) -> None:
  answers = Answers(study.model, study.answers.chats, num_empty=3)
  given = {"questionnaire": None, "poles": None, "prompts": answers}
  row = study.match("norm", {"P3": PROMPTED["P3"]}, **given).loc["P3"]
  assert (row["units"], row["units_missing"]) == (len(USERS), 3)
  assert row["items_missing"] is pd.NA


def test_without_a_scale_it_is_measured_on_the_answers(study: Study) -> None:
  long = {"role": "assistant", "content": "sure steps w1 w2 w3 w4"}
  chats = [[{"role": "user", "content": user}, long] for user in USERS]
  options = {"prompts": chats, "questionnaire": None, "poles": None, "kappa": 0.2}
  found = study.match("norm", {"P3": PROMPTED["P3"]}, scale=None, **options).loc["P3"]
  measured = pj.dose(study.model, chats).resid_L[BLOCK]
  assert found["coef_raw"] == pytest.approx(0.2 * measured)
  assert found["target_norm"] == pytest.approx(2 / measured, rel=0.01)


def test_gains_are_in_standard_deviations_of_items_or_else_in_their_range(study: Study) -> None:
  of = lambda items: Gauge.of(
    study.answers, BLOCK, scale=SCALE, questionnaire=Choices(items, least_mass=0.0), poles=POLES
  )
  items = list(QUESTIONNAIRE.items)
  values = [(1.0, 0.0), (3.0, 0.0), (0.0, 5.0), (0.0, 5.0)]
  items = [dataclasses.replace(item, values=(v,)) for item, v in zip(items, values, strict=True)]
  gauge = of(items)
  np.testing.assert_allclose(gauge.plain["C"], [0.5, 1.5], rtol=1e-5)  # yes is as likely as no
  assert gauge.spread["C"] == pytest.approx(0.5)
  assert gauge.spread["A"] == 5.0  # two alike: their range
  assert of(items[1:]).spread["C"] == 3.0  # one: its range
