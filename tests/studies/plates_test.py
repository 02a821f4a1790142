"""Which figures of a study are drawn and of which tables, and what its page says first."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from configs import persona_non_grata
from persona_jax.personas.persona import load_personas
from persona_jax.report.study_page import Plate
from persona_jax.studies.persona_non_grata.listings import listings
from persona_jax.studies.persona_non_grata.plates import Drawn, draw
from persona_jax.studies.persona_non_grata.reporting import cells, lead
from persona_jax.studies.persona_non_grata.settings import Settings

PERSONAS = load_personas("big_five")
TESTED = ("F1", "F5", "F6", "F10")


@pytest.fixture(scope="module")
def settings() -> Settings:
  fields = persona_non_grata.get_config().to_dict()
  names = {field.name for field in dataclasses.fields(Settings)}
  made = Settings.of({name: value for name, value in fields.items() if name in names})
  return dataclasses.replace(made, matches=("norm", "proj"))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
  rng = np.random.default_rng(0)
  arms, names = ("SP", "AS:norm", "AS:proj"), [p.name for p in PERSONAS]
  effects = pd.DataFrame([{"arm": arm, "persona": name} for arm in arms for name in names])
  effects["rate"] = rng.uniform(0.2, 0.6, len(effects))
  effects = effects.assign(
    low=effects["rate"] - 0.1, high=effects["rate"] + 0.1, effect=effects["rate"] - 0.3
  )
  pairs = [(p, q) for n, p in enumerate(names) for q in names[n + 1 :]]
  rates = effects.set_index(["arm", "persona"])["rate"]
  crossings = pd.DataFrame(
    [{"p": p, "q": q, "match": arm,
      "crosses": (rates["SP", p] < rates["SP", q]) != (rates[arm, p] < rates[arm, q])}
     for arm in arms[1:] for p, q in pairs]
  )  # fmt: skip
  inversions = pd.DataFrame(
    [{"persona": "P12", "direction": "AS-worse", "match": arm, "d_SP": -0.1, "SP_low": -0.15,
      "SP_high": -0.06, "d_AS": 0.2, "AS_low": 0.11, "AS_high": 0.3, "p": 0.002, "p_holm": 0.004,
      "inverted": True, "reason": "", "d_SP_0": -0.1, "d_AS_0": 0.2} for arm in arms[1:]]
  )  # fmt: skip
  specifications = pd.DataFrame(
    [{"block": b, "window": "all", "rule": "sum", "kappa": k, "d_sp": -0.1, "d_as": k - 0.1,
      "coherent": True, "holds": k > 0.2, "primary": b == 5} for b in (4, 5) for k in (0.1, 0.3)]
  )  # fmt: skip
  rankings = pd.DataFrame(
    [{"x": "SP", "y": arm, "rho": 0.31, "low": -0.2, "high": 0.7, "reliability_x": 0.8,
      "reliability_y": 0.75, "measurable": True, "reason": ""} for arm in arms[1:]]
  )  # fmt: skip
  bands = pd.DataFrame(
    {"measure": ["rate", "delta"], "control": "R-cov", "low": [0.2, -1.0], "high": [0.4, 1.0],
     "directions": 64, "prompts": 20, "reason": ""}
  )  # fmt: skip
  return {
    "effects": effects,
    "baselines": pd.DataFrame({"arm": ["B0"], "persona": "", "rate": 0.3, "low": 0.2, "high": 0.4}),
    "bands": bands, "crossings": crossings, "inversions": inversions, "rankings": rankings,
    "inversions_confirm": inversions[:0], "specifications": specifications,
    "odds": effects.assign(delta=effects["rate"], replicates=3),
    "dose_curves": pd.DataFrame(), "geometry_alignment": pd.DataFrame(), "dif": pd.DataFrame(),
    "geometry_census": pd.DataFrame(), "mediation": pd.DataFrame(), "lacking": pd.DataFrame(),
    "side_effects": pd.DataFrame(), "matches": pd.DataFrame({"block": [5]}),
  }  # fmt: skip


def _plate(drawn: Drawn, name: str) -> Plate:
  (plate,) = [plate for plate in drawn.plates if plate.id == name]
  return plate


def test_what_is_tested_is_drawn_where_no_gate_fails(
  settings: Settings, tables: dict[str, pd.DataFrame]
) -> None:
  drawn = draw(settings, tables, PERSONAS, blocked="", untested="")
  names = [plate.id for plate in drawn.plates]
  assert names == ["F1", "F2", "F2b", "F5", "F6", "F10", "F11"]
  assert "Attack success rate (intention to treat)" in _plate(drawn, "F2").caption
  assert drawn.absent["F3"] == "no dose curve was run"
  assert "reasoning_traces.py" in drawn.absent["F14"]
  shown = {listing.table for listing in listings(tables, "")}
  assert {"rankings", "inversions"} <= shown


def test_where_no_persona_was_elicited_nothing_tested_is_shown(
  settings: Settings, tables: dict[str, pd.DataFrame]
) -> None:
  drawn = draw(settings, tables, PERSONAS, blocked="", untested="no trait was elicited")
  assert not {plate.id for plate in drawn.plates} & set(TESTED)
  for name in TESTED:
    assert "nothing is tested (no trait was elicited)" in drawn.absent[name]
  shown = {listing.table for listing in listings(tables, "no trait was elicited")}
  assert not shown & {"rankings", "inversions"} and "effects" in shown


def test_rates_of_first_tokens_are_called_so(
  settings: Settings, tables: dict[str, pd.DataFrame]
) -> None:
  exact = dataclasses.replace(settings, outcome="first_token")
  drawn = draw(exact, tables, PERSONAS, blocked="G1: refuses .1", untested="G1: refuses .1")
  assert drawn.plates[0].id == "F2b"  # what holds for any model comes first
  assert "Non-refusal rate (first token, exact)" in _plate(drawn, "F2").caption


def test_an_open_confirm_split_is_what_the_third_hypothesis_is_drawn_of(
  settings: Settings, tables: dict[str, pd.DataFrame]
) -> None:
  confirm = tables["inversions"].assign(d_AS=0.25)
  both = tables | {"inversions_confirm": confirm}
  plate = _plate(draw(settings, both, PERSONAS, blocked="", untested=""), "F6")
  assert list(plate.draws) == ["inversions_confirm"] and "confirm split" in plate.caption
  (axes,) = plate.figure.axes
  assert any(0.25 in line.get_xdata() for line in axes.get_lines())
  test = _plate(draw(settings, tables, PERSONAS, blocked="", untested=""), "F6")
  assert list(test.draws) == ["inversions"] and "test split" in test.caption


def test_rankings_of_fewer_than_two_personas_are_no_figure(
  settings: Settings, tables: dict[str, pd.DataFrame]
) -> None:
  few = pd.DataFrame([{"x": "SP", "y": "AS:norm", "measurable": False, "reason": "fewer than two"}])
  drawn = draw(settings, tables | {"rankings": few}, PERSONAS, blocked="", untested="")
  assert drawn.absent["F5"] == "fewer than two rankings can be compared"


# ---- words ---------------------------------------------------------------------------------------


def test_the_lead_tells_a_gate_that_fails_from_one_that_was_not_measured() -> None:
  gates = pd.DataFrame({"name": ["G1", "G5"], "state": ["passed", "not measured"]})
  assert "was not measured on a gate" in lead(gates, "G5: no labels", "G5", has_harm=False)[0]
  failed = gates.assign(state=["FAILED", "not measured"])
  assert "fails a gate below" in lead(failed, "G1: .1 < .5", "G1", has_harm=False)[0]
  open_ = lead(gates, "", "", has_harm=True)
  assert "finds of use" in open_[1] and len(open_) == 2
  assert "no hypothesis is tested" in lead(gates, "", "nobody", has_harm=False)[-1]


def test_all_that_was_written_as_a_persona_is_folded_and_no_edit_at_dose_zero_has_its_cell() -> (
  None
):
  rows = pd.DataFrame(
    [
      {"part": part, "arm": arm, "persona": name, "kappa": kappa, "control": "", "kind": kind,
       "prompt_id": "t", "replicate": 0, "prompt": "x", "text": "y", "label": "bypass",
       "row_id": "r", "log_odds": 0.1}
      for part, arm, name, kappa, kind in (
        ("twins", "B0", "", 0.0, "harmless"), ("twins", "SP", "P1", 0.0, "harmless"),
        ("test", "B0", "", 0.0, "harmful"), ("dose", "B0", "", 0.0, "harmful"),
        ("dose", "dose", "P1", -0.2, "harmful"),
      )
    ]
  )  # fmt: skip
  found = {cell.anchor: cell for cell in cells(rows)}
  assert set(found) == {
    "rows-twins-B0-", "rows-twins-SP-P1", "rows-B0-", "rows-dose--0", "rows-dose-P1-m0.2"
  }  # fmt: skip
  folded = {anchor: bool(cell.rows["is_folded"].all()) for anchor, cell in found.items()}
  assert not folded.pop("rows-twins-B0-") and all(folded.values())
  assert found["rows-dose--0"].title == "no edit, dose 0"
