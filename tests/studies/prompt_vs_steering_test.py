"""The study on the first blocks of the real model, at the smallest size that has every part."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from persona_jax.data.items import load_ipip120
from persona_jax.report import draw_all, write_report
from persona_jax.scorers import self_report
from persona_jax.scorers.self_report import SelfReport
from persona_jax.studies import prompt_vs_steering as study
from persona_jax.studies.prompt_vs_steering import stages, summary

SMALL = study.Settings(
  personas=("P3", "P4", "P12"), block=4, coef=0.2, curve=(0.2,), breakdown=(0.8,),
  window="answer", extract_questions=2, dose_prompts=1, dose_tokens=12, pairs=1, trait_questions=1,
  max_new_tokens=6, tuned_on_self_report=True, replicate=0, seed=0,
)  # fmt: skip

# Of each trait's 24 items, the first four of each key.
ITEMS = [
  item
  for trait in "OCEAN"
  for key in (1, -1)
  for item in [i for i in load_ipip120() if (i.trait, i.key) == (trait, key)][:4]
]


def describe(model, config_hash, arms, directory):
  return study.describe(model, config_hash, arms, directory, questionnaire=ITEMS, progress=False)


@pytest.fixture(scope="module")
def model(smollm2):
  """Its tokenizer, template and width, and six of its thirty blocks: the study, sooner."""
  arch = dataclasses.replace(smollm2.arch, pattern=smollm2.arch.pattern[:6])
  params = smollm2.params | {"blocks": smollm2.params["blocks"][:6]}
  return dataclasses.replace(smollm2, arch=arch, params=params)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
  """One study run to the end: (directory, prepared, arms, curve arms, prompts, rows, items)."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stages, "_CHUNK", 10)
    yield run_study(model, tmp_path_factory)


def run_study(model, tmp_path_factory):
  directory = tmp_path_factory.mktemp("study")
  config_hash = study.start(model, SMALL, directory)
  prepared = study.prepare(model, SMALL, directory, progress=False)
  arms, curve = study.arms(SMALL, prepared), study.curve_arms(SMALL, prepared)
  prompts = study.prompts(SMALL)
  by_name = {**arms, **study.breakdown_arms(SMALL, prepared)}
  rows = study.generate(model, SMALL, by_name, prompts, directory, progress=False)
  items = describe(model, config_hash, {**arms, **curve}, directory)
  edited = items[items["arm"].isin(["steer", "random"])]
  assert edited["valid"].all() and (edited["tokens_edited"] == edited["n_tokens"]).all()
  return directory, config_hash, prepared, by_name, curve, prompts, rows, items


def test_every_arm_meets_its_prompts_and_every_edited_row_is_valid(done):
  _, _, _, by_name, _, prompts, table, _ = done
  grid = table[table["condition"].isin([n for n, a in by_name.items() if a.trait is None])]
  assert len(grid) == 10 * 4  # baseline and 3 arms of 3 personas; a pair, a question each for C, A
  assert len(table) == len(grid) + 2 * 2 * 2  # 2 traits, steer and random, on 2 questions
  assert table["row_id"].is_unique
  edited = table[table["method"] == "steer"]
  assert edited["valid"].all()
  np.testing.assert_allclose(edited["delivered_dose"], 1.0, atol=1e-3)
  assert (edited["tokens_edited"] == edited["n_tokens"]).all()
  assert edited.groupby("condition")["direction_hash"].nunique().eq(1).all()


def test_random_arm_has_the_size_of_the_steer_arm_and_poles_are_opposite(done):
  _, _, prepared, arms, _, _, _, _ = done
  size = {
    name: np.linalg.norm(a.condition.edits[0].delta_LD)
    for name, a in arms.items()
    if a.condition.edits and a.persona
  }
  expected = 0.2 * prepared.dose.resid_L[4]
  assert size == pytest.approx(dict.fromkeys(size, expected), rel=1e-5)
  delta = lambda name: arms[name].condition.edits[0].delta_LD[0]
  for arm in ("steer", "random"):
    np.testing.assert_allclose(delta(f"P3 {arm}"), -delta(f"P4 {arm}"), atol=1e-5)
  assert abs(delta("P3 steer") @ delta("P3 random")) < 0.3 * expected**2


def test_self_report_holds_the_right_items_and_balances_keys(done, model):
  _, _, _, arms, curve, _, _, items = done
  per_condition = items.groupby("condition").size()
  assert per_condition["baseline"] == 16 and per_condition["P12 steer"] == 16
  assert per_condition["P3 prompt"] == 8 and per_condition["A steer -0.2"] == 8
  # Both poles of C are personas, whose arms are the points of its curve; none of A is.
  assert set(curve) == {f"A {arm} {sign}0.2" for arm in ("steer", "random") for sign in "+-"}
  one = items[(items["condition"] == "P3 prompt")]
  per_token = one["key"] * one["logprob"] / one["n_tokens"]
  plus, minus = (per_token[one["key"] == key].mean() for key in (1, -1))
  assert one["expression"].mean() == pytest.approx((plus + minus) / 2)
  first = one.iloc[0]
  text = next(i.text for i in load_ipip120() if i.item_id == first["item_id"])
  prompt = arms["P3 prompt"].condition.apply(SelfReport([]).question)
  (score,) = model.score([prompt], [text])
  assert score == pytest.approx(first["logprob"], abs=1e-3)


def test_finished_stages_are_read_not_computed_again(done, model, monkeypatch):
  directory, config_hash, prepared, arms, curve, prompts, run, items = done

  def never(*args, **kwargs):
    raise AssertionError("computed again")

  monkeypatch.setattr(type(model), "generate", never)
  monkeypatch.setattr(self_report, "score_rows", never)
  monkeypatch.setattr(type(model), "capture", never)
  assert study.start(model, SMALL, directory) == config_hash
  again = study.prepare(model, SMALL, directory, progress=False)
  assert {k: d.hash for k, d in again.personas.items()} == {
    k: d.hash for k, d in prepared.personas.items()
  }
  everything = {n: a for n, a in arms.items() if a.trait is None} | curve
  table = describe(model, config_hash, everything, directory)
  pd.testing.assert_frame_equal(table, items)


def test_lost_self_report_part_is_computed_to_the_same_numbers(done, model):
  directory, config_hash, _, arms, curve, _, _, items = done
  parts = list((directory / "self_report").glob("part-*.parquet"))
  assert len(parts) == 2
  min(parts, key=lambda path: len(pd.read_parquet(path))).unlink()
  everything = {n: a for n, a in arms.items() if a.trait is None} | curve
  table = describe(model, config_hash, everything, directory)
  pd.testing.assert_frame_equal(table, items)


def test_other_settings_are_refused_in_the_same_directory(done, model):
  directory = done[0]
  with pytest.raises(ValueError, match="pairs: 1 there, 2 now"):
    study.start(model, dataclasses.replace(SMALL, pairs=2), directory)


def test_report_is_written_with_every_number_it_names(done, model, tmp_path):
  directory, config_hash, prepared, by_name, curve, prompts, rows, items = done
  data = study.analyse(model, SMALL, config_hash, prepared, rows, items, prompts, by_name, tmp_path)
  figures = draw_all(data, tmp_path / "figures")
  text = write_report(data, figures, tmp_path / "report.html").read_text()
  assert {"comparison", "dose_response"} <= set(figures)
  assert config_hash in text and prepared.traits["C"].hash in text
  assert "Pipeline demonstration, not a safety measurement" in data.title
  assert (tmp_path / "tables" / "slopes.parquet").exists()
  assert set(data.refusal["arm"]) == {"baseline", "prompt", "steer", "random"}


def test_tables_equal_numbers_worked_out_by_hand(done):
  _, _, _, arms, _, prompts, run, items = done
  shifts = summary.trait_shifts(items).set_index(["persona", "arm", "trait"])
  base = items[items["condition"] == "baseline"].set_index("item_id")["expression"]
  mine = items[items["condition"] == "P4 steer"].set_index("item_id")["expression"]
  by_hand = -(mine - base[mine.index]).mean()  # P4 is the low pole: its own direction is down
  assert shifts.loc[("P4", "steer", "C"), "value"] == pytest.approx(by_hand)
  contrast = summary.contrasts(items).set_index(["trait", "arm"])
  high = items[items["condition"] == "P3 steer"].set_index("item_id")["expression"]
  assert contrast.loc[("C", "steer"), "value"] == pytest.approx(((high - mine) / 2).mean())
  rates = summary.refusal(summary.annotate(run, arms, prompts))
  assert len(rates) == 10 * 2 and (rates["n"] == 1).all()


def test_config_files_give_settings(done):
  import importlib.util
  import pathlib

  for path in (pathlib.Path("configs/demo.py"),):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().to_dict()
    for field in ("model", "dtype", "resid_dtype", "system_default", "chat_template"):
      config.pop(field)
    study.Settings.of(config)
    with pytest.raises(ValueError, match=r"no settings \['colour'\]"):
      study.Settings.of(config | {"colour": 1})


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(curve=(0.2, 0.1)), "ascending"),
    (dict(coef=0.3), "one of the doses"),
    (dict(breakdown=(0.2, 0.8)), "must lie above curve"),
    (dict(personas=("P13",)), "P12"),
    (dict(pairs=151), "1 to 150"),
  ],
)
def test_bad_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change)


def test_unfinished_study_of_other_code_is_refused(done, model, tmp_path):
  content = json.loads((done[0] / "config.json").read_text())
  content["versions"]["code"] = "0123456789ab"
  (tmp_path / "config.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="another version .*code: 0123456789ab there"):
    study.start(model, SMALL, tmp_path)


def test_config_on_disk_is_the_settings(done):
  content = json.loads((done[0] / "config.json").read_text())
  assert content["settings"]["curve"] == [0.2] and content["model"]["dtype"] == "float32"
