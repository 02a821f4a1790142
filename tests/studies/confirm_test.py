"""The confirm split: drawn apart, opened once, and what H3 rests on then; twins; side effects."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from configs import persona_non_grata
from persona_jax.data.abilities import KnowledgeItem
from persona_jax.data.near_copies import near_copies
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import tables
from persona_jax.studies.persona_non_grata.conditions import Arm
from persona_jax.studies.persona_non_grata.refusal import common_categories
from persona_jax.studies.persona_non_grata.side_effects import side_effects
from tests.planted import study


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> study.Place:
  return study.write("W1", tmp_path_factory.mktemp("world"), prompts=12)


def _apart(place: study.Place) -> dict[str, object]:
  """Returns settings of a study with a confirm split, twins and prompts that sound risky."""
  files = place.directory
  return {
    "test": f"{files}/test.jsonl+{files}/confirm.jsonl",
    "twins": f"{files}/test.jsonl+{files}/twins.jsonl",
    "over": f"{files}/twins.jsonl",
    "confirm_prompts": 12,
    "over_prompts": 12,
  }


# ---- material ------------------------------------------------------------------------------------


def test_the_config_has_as_many_prompts_as_the_protocol_wants_and_none_twice() -> None:
  config = persona_non_grata.get_config().to_dict()
  fields = {k: v for k, v in config.items() if k not in study.MODEL_FIELDS}
  chosen = product.Settings.of(fields)
  material = product.load_material(chosen)
  harmful = [
    material.harmful, material.held_out_harmful, material.test, material.confirm, material.partners,
  ]  # fmt: skip
  assert [len(part) for part in harmful] == [128, 32, 200, 100, 100]
  harmless = [
    material.harmless, material.held_out_harmless, material.calibration, material.twins,
    material.over,
  ]  # fmt: skip
  assert [len(part) for part in harmless] == [128, 32, 64, 100, 100]
  for parts in (harmful, harmless):
    clusters = near_copies([item.text for part in parts for item in part])
    ends = np.cumsum([0, *map(len, parts)])
    sets = [set(clusters[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    assert sum(map(len, sets)) == len(set.union(*sets))
  pairs = zip(material.twins, material.partners, strict=True)
  assert all((a.pair_id, a.kind, b.kind) == (b.pair_id, "harmless", "harmful") for a, b in pairs)
  assert (len(material.util), chosen.dose_prompts, chosen.control_prompts) == (570, 100, 100)
  # HarmBench names no categories, and no direction is made of those without one.
  assert len(common_categories(material.harmful)) == 3
  assert "" not in common_categories(material.harmful)


def test_other_parts_are_the_same_with_and_without_confirm_twins_and_over(
  place: study.Place,
) -> None:
  asked = _apart(place)
  none = product.load_material(
    study.settings(place, **{**asked, "confirm_prompts": 0, "over_prompts": 0})
  ).hashes()
  some = product.load_material(study.settings(place, **asked, twin_prompts=6)).hashes()
  assert {name for name in none if none[name] != some[name]} == {
    "confirm", "over", "twins", "partners"
  }  # fmt: skip


def test_a_twin_whose_partner_is_in_the_direction_or_in_confirm_is_left_out(
  place: study.Place, tmp_path: Path
) -> None:
  pairs = str(tmp_path / "pairs.jsonl")
  lines = [
    {"prompt_id": f"{kind}{n}", "text": f"{kind} {n} x", "kind": kind, "pair_id": f"p{n}"}
    for n in range(20)
    for kind in ("harmful", "harmless")
  ]
  Path(pairs).write_text("\n".join(map(json.dumps, lines)))
  asked = {
    "harmful": pairs, "test": pairs, "twins": pairs, "train_prompts": 3, "held_out_prompts": 2,
    "test_prompts": 6, "confirm_prompts": 4,
  }  # fmt: skip
  material = product.load_material(study.settings(place, **asked, twin_prompts=11))
  apart = (*material.harmful, *material.held_out_harmful, *material.confirm)
  assert len({i.pair_id for i in (*apart, *material.partners)}) == 20
  assert material.partners[:6] == material.test  # those of the test come first
  assert [i.pair_id for i in material.twins] == [i.pair_id for i in material.partners]
  assert {i.kind for i in material.twins} == {"harmless"}
  with pytest.raises(ValueError, match=r"twin_prompts=12: '.*' has 11 pairs whose harmful side is"):
    product.load_material(study.settings(place, **asked, twin_prompts=12))


def test_a_confirm_split_that_labels_are_asked_of_must_be_generated(place: study.Place) -> None:
  asked = {"outcome": "label", "generate": ("test",), "confirm_prompts": 4}
  with pytest.raises(ValueError, match="confirm_prompts=4 and generate=.*generate 'confirm'"):
    study.settings(place, **asked)
  with pytest.raises(ValueError, match=r"'over' has no prompts \(over_prompts=0\)"):
    study.settings(place, generate=("over",))
  with pytest.raises(ValueError, match="confirm_prompts=999: .* that no other part has"):
    product.load_material(study.settings(place, **{**_apart(place), "confirm_prompts": 999}))


# ---- opening -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(place: study.Place, tmp_path_factory: pytest.TempPathFactory) -> study.Steered:
  """A study of three personas, up to its arms."""
  out = tmp_path_factory.mktemp("made")
  lines = (place.directory / "personas.toml").read_text().splitlines()
  few = [x for x in lines if not re.match(r"P\d+ = ", x) or x.split()[0] in ("P3", "P4", "P12")]
  (out / "few.toml").write_text("\n".join(few))
  return study.steered(place, out, **_apart(place), personas=str(out / "few.toml"))


@pytest.fixture(scope="module")
def rows(
  made: study.Steered, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Rows of a study before and after its confirm split is opened."""
  out = tmp_path_factory.mktemp("rows")

  def of(with_confirm: bool) -> pd.DataFrame:
    parts = product.parts_of(
      made.model, made.settings, made.material, made.extracted, None, made.calibrated, out,
      with_confirm=with_confirm,
    )  # fmt: skip
    return product.generate(made.model, made.settings, parts, made.ids, out, progress=False)

  return of(False), of(True)


def test_nothing_of_confirm_is_run_before_and_all_else_is_the_same_after(
  made: study.Steered, rows: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
  closed, opened = rows
  assert list(closed["part"].unique()) == ["test", "over"]
  confirm = opened[opened["part"] == "confirm"]
  pd.testing.assert_frame_equal(
    opened.drop(index=confirm.index).reset_index(drop=True), closed.reset_index(drop=True)
  )
  assert set(confirm["prompt_id"]) == {item.prompt_id for item in made.material.confirm}
  names = [p.name for p in made.material.personas]
  assert tables.confirmed_inversions(made.settings, closed, names) is None
  found = tables.confirmed_inversions(made.settings, opened, names)
  (row,) = found.query("persona == 'P12' and direction == 'AS-worse'").to_dict("records")
  for arm, short in (("SP", "d_SP"), ("AS:proj", "d_AS")):
    mean = confirm[confirm["arm"] == arm].groupby("persona")["p_bypass"].mean()
    assert row[short] == pytest.approx(mean["P12"] - mean.drop("P12").mean())


def test_every_row_names_the_split_that_it_is_of(
  made: study.Steered, rows: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
  opened = rows[1]
  hashes = made.material.hashes()
  for name, mine in opened.groupby("part"):
    assert set(mine["split_hash"]) == {hashes[name][:16]}
  assert opened["split_hash"].nunique() == 3


def test_a_second_opening_is_the_first_and_none_of_another_study(
  made: study.Steered, tmp_path: Path
) -> None:
  one, other = tmp_path / "one", tmp_path / "other"
  started = product.start(made.model, made.settings, made.material, one)
  assert not product.is_confirm_open(made.material, one)
  record = product.open_confirm(made.material, one)
  config = json.loads((one / "config.json").read_text())
  assert json.loads((one / "confirm_opened.json").read_text()) == record
  assert record["config_hash"] == started == config["hash"]
  assert record["code_hash"] == {k: config["versions"][k] for k in ("code", "stages")}
  assert record["date"] and record["prompts"] == 12
  assert product.is_confirm_open(made.material, one)
  assert product.open_confirm(made.material, one) == record
  # Whoever begins anew in the directory, with other settings, finds the record there.
  other.mkdir()
  (other / "confirm_opened.json").write_text(json.dumps(record))
  product.start(made.model, dataclasses.replace(made.settings, delta=0.1), made.material, other)
  for again in (product.open_confirm, product.is_confirm_open):
    with pytest.raises(ValueError, match="opened on .* by another study .config_hash: .*once"):
      again(made.material, other)


def test_there_must_be_something_to_open(place: study.Place, tmp_path: Path) -> None:
  with pytest.raises(ValueError, match="no confirm split to open: confirm_prompts=0"):
    product.open_confirm(product.load_material(study.settings(place)), tmp_path)


# ---- side effects --------------------------------------------------------------------------------


def test_side_effects_are_rates_by_arm_and_persona(place: study.Place) -> None:
  rows = [
    {
      "part": part, "arm": arm, "persona": persona, "replicate": k, "prompt_id": f"{part}{n}",
      "cluster": f"c{n}", "label": label, "p_bypass": 0.75,
    }
    for part in ("over", "test")
    for arm, persona, labels in (
      ("B0", "", ["bypass"] * 4),
      ("SP", "P1", ["refuse", "bypass", "degenerate", "unparsed"]),
      ("AS:proj", "P1", ["refuse"] * 4),
    )
    for k in ((0,) if arm == "B0" else (0, 1))
    for n, label in enumerate(labels)
  ]  # fmt: skip
  asked = pd.DataFrame(
    [
      {
        "arm": "SP", "persona": "P1", "replicate": 0, "item_id": f"i{n}",
        "correct": [1, 0, 0, np.nan][n],
      }
      for n in range(4)
    ]
  )  # fmt: skip
  matches = pd.DataFrame(
    {"persona": "P1", "replicate": [0, 1], "by": "proj", "target_kl": [0.2, 0.4],
     "target_trait": [0.5, -0.1], "achieved_trait": [0.3, 0.4]}
  ).assign(achieved_kl=[0.1, np.nan])  # fmt: skip
  found = side_effects(study.settings(place), pd.DataFrame(rows), asked, matches)
  value = found.set_index(["measure", "by", "arm"]).sort_index()
  assert value.loc["over_refusal", "first_token"]["value"].tolist() == pytest.approx([0.25] * 3)
  refused = value.loc["over_refusal", "label"].loc[["B0", "SP", "AS:proj"]]
  assert refused["value"].tolist() == pytest.approx([0, 1 / 3, 1])
  assert refused["missing"].tolist() == [0, 2, 0]
  accuracy = value.loc["accuracy", "letter", "SP"]
  assert (accuracy["value"], accuracy["n"], accuracy["missing"]) == (pytest.approx(1 / 3), 3, 1)
  assert value.loc["kl", "match", "SP"]["value"] == pytest.approx(0.3)
  assert value.loc["trait", "match", "SP"]["value"] == pytest.approx(0.2)
  assert value.loc["trait", "match", "AS:proj"]["value"] == pytest.approx(0.35)
  steered = value.loc["kl", "match", "AS:proj"]
  assert (steered["value"], steered["n"], steered["missing"]) == (0.1, 1, 1)
  assert np.isnan(steered["low"]) and steered["reason"] == "mean over replicates; no interval"


def test_over_refusal_of_a_study_is_the_mean_of_its_exact_first_tokens(
  made: study.Steered, rows: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
  closed = rows[0]
  over = closed[closed["part"] == "over"]
  means = 1 - over.groupby(["arm", "persona"])["p_bypass"].mean()
  table = side_effects(made.settings, closed, pd.DataFrame(), made.calibrated.matches)
  found = table.set_index(["arm", "persona"])
  assert set(found["measure"]) == {"over_refusal"}  # nothing else was measured
  assert found["value"].to_dict() == pytest.approx(means.to_dict())
  assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
  assert set(over["arm"]) == {"B0", "SP", "AS:proj"}
  assert len(means) == 1 + 2 * 3


def test_questions_are_answered_with_the_likeliest_letter_and_asked_once(
  smollm2: pj.Model, place: study.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  items = [
    KnowledgeItem("i1", "Which is a colour?", ("red", "seven"), 0),
    KnowledgeItem("i2", "How many legs has a dog?", ("two", "three", "four"), 2),
  ]
  system = "You are tidy."
  arms = [
    Arm(pj.Condition("B0"), "B0"),
    Arm(pj.Condition("P1 0", system=system), "SP", "P1"),
    Arm(pj.Condition("x"), "placebo"),
  ]
  chosen = study.settings(place)
  table = product.ask_items(smollm2, chosen, items, arms, tmp_path, progress=False)
  assert table["arm"].tolist() == ["B0", "B0", "SP", "SP"]  # no other arm is asked
  for row, (item, text) in zip(
    table.to_dict("records"), [(i, s) for s in (None, system) for i in items], strict=True
  ):
    lines = [f"{x}. {option}" for x, option in zip("ABC", item.options, strict=False)]
    asked = "\n".join([item.question, *lines, "Reply with one letter."])
    chat = [] if text is None else [{"role": "system", "content": text}]
    chats = [[*chat, {"role": "user", "content": asked}]] * len(item.options)
    p = np.exp(smollm2.score(chats, list("ABC"[: len(item.options)])))
    assert row["correct"] == (np.argmax(p) == item.answer)
    assert row["p_correct"] == pytest.approx(p[item.answer] / p.sum(), rel=1e-4)
    assert row["mass"] == pytest.approx(p.sum(), rel=1e-4)
  monkeypatch.setattr(
    "persona_jax.studies.persona_non_grata.utility.score_rows", None
  )  # nothing is left to score
  again = product.ask_items(smollm2, chosen, items, arms, tmp_path, progress=False)
  pd.testing.assert_frame_equal(again, table)
  assert product.ask_items(smollm2, chosen, [], arms, tmp_path, progress=False).empty
