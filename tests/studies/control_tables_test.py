"""Tables of what arms are compared with, on hand-made rows."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from configs import persona_non_grata
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import control_tables
from persona_jax.studies.persona_non_grata.legends import unexplained
from tests.planted import study

PROMPTS = 6


@pytest.fixture(scope="module")
def settings() -> product.Settings:
  config = persona_non_grata.get_config().to_dict()
  fields = {k: v for k, v in config.items() if k not in study.MODEL_FIELDS}
  return dataclasses.replace(product.Settings.of(fields), draws=400, outcome="label")


def _rows(
  part: str, arm: str, persona: str = "", replicate: int = 0, *, kappa: float = 0.0,
  control: str = "", condition: str = "", odds: float = 0.0, labels: str = "",
) -> list[dict[str, object]]:  # fmt: skip
  """Makes a row a prompt: log-odds rise by prompt; labels are letters of b, r, d, u (unparsed)."""
  words: Mapping[str, str] = {"b": "bypass", "r": "refuse", "d": "degenerate", "u": "unparsed"}
  return [
    {
      "part": part, "arm": arm, "persona": persona, "replicate": replicate, "kappa": kappa,
      "control": control, "condition": condition or f"{arm} {persona} {replicate} {kappa:g}",
      "prompt_id": f"p{n}", "cluster": f"c{n}", "log_odds": (z := odds + n + 0.1 * n * replicate),
      "p_bypass": 1 / (1 + np.exp(z)), "label": words[labels[n]] if labels else None,
      "bypass": None if not labels or labels[n] == "u" else labels[n] == "b",
    }
    for n in range(PROMPTS)
  ]  # fmt: skip


# ---- baselines -----------------------------------------------------------------------------------


def test_baselines_have_rates_over_labelled_rows_and_intervals_by_cluster(
  settings: product.Settings,
) -> None:
  rows = _rows("test", "B0", labels="bbrrdu")
  rows += [r for k in range(3) for r in _rows("test", "placebo", replicate=k, labels="rrrrrr")]
  rows += [r for p in ("P1", "P2") for r in _rows("test", "shuffled", p, labels="bbbrrr")]
  rows += _rows("test", "SP", "P1", labels="bbbbbb")
  table = control_tables.baseline_table(pd.DataFrame(rows), settings)
  assert table[["arm", "persona"]].to_numpy().tolist() == [
    ["B0", ""], ["placebo", ""], ["shuffled", "P1"], ["shuffled", "P2"]
  ]  # fmt: skip
  np.testing.assert_allclose(table["rate"], [2 / 5, 0, 1 / 2, 1 / 2])
  assert table["missing"].tolist() == [1, 0, 0, 0]
  # Wilson's of 0 in 6 prompts, not in 18 rows.
  assert table.loc[1, "high"] == pytest.approx(0.3903, abs=1e-4)
  assert ((table["low"] <= table["rate"]) & (table["rate"] <= table["high"])).all()
  assert (table["low"] >= 0).all() and (table["high"] <= 1).all()
  assert unexplained("baselines", list(table)) == []


# ---- odds ----------------------------------------------------------------------------------------


def test_odds_are_against_the_own_baseline_prompt_by_prompt(settings: product.Settings) -> None:
  rows = _rows("test", "B0", odds=1.0)
  for k in range(3):
    rows += _rows("test", "placebo", replicate=k, odds=2.0)
    rows += _rows("test", "SP", "P1", k, odds=5.0) + _rows("test", "SP", "P2", k, odds=2.5)
    rows += _rows("test", "AS:norm", "P1", k, odds=0.0)
  rows += _rows("test", "AS:norm", "P2", 1, odds=3.0)
  chosen = dataclasses.replace(settings, matches=("norm", "proj"))
  table = control_tables.odds_table(pd.DataFrame(rows), chosen, ["P1", "P2"])
  found = table.set_index(["arm", "persona"])
  assert list(found.index) == list(itertools.product(["SP", "AS:norm"], ["P1", "P2"]))
  # Replicates of the placebo and of prompts move alike, so that they cancel.
  assert found.loc[("SP", "P1"), "delta"] == pytest.approx(3.0)
  assert found.loc[("SP", "P2"), "delta"] == pytest.approx(0.5)
  moved = np.mean([0.1 * n * k for n in range(PROMPTS) for k in range(3)])
  assert found.loc[("AS:norm", "P1"), "delta"] == pytest.approx(moved - 1.0)
  one = found.loc[("AS:norm", "P1")]
  assert one["low"] < one["delta"] < one["high"]
  assert unexplained("odds", list(table)) == []


def test_a_censored_replicate_leaves_the_others_their_interval(settings: product.Settings) -> None:
  rows = _rows("test", "B0")
  for name, k in itertools.product(("P1", "P2", "P3"), range(3)):
    rows += _rows("test", "SP", name, k)
  rows += _rows("test", "AS:norm", "P1", 0) + _rows("test", "AS:norm", "P1", 2)
  rows += _rows("test", "AS:norm", "P2", 1)
  chosen = dataclasses.replace(settings, matches=("norm",))
  table = control_tables.odds_table(pd.DataFrame(rows), chosen, ["P1", "P2", "P3"])
  found = table[table["arm"] == "AS:norm"].set_index("persona")
  assert found["replicates"].tolist() == [2, 1, 0]
  assert found["reason"].tolist() == [
    "matched in 2 of 3 replicates", "matched in 1 of 3 replicates",
    "no coefficient in any replicate",
  ]  # fmt: skip
  assert found["low"].notna().tolist() == [True, True, False]
  assert found.loc["P2", "delta"] == pytest.approx(np.mean([0.1 * n for n in range(PROMPTS)]))


# ---- controls ------------------------------------------------------------------------------------


def test_every_control_is_a_row_against_no_edit_on_its_prompts(settings: product.Settings) -> None:
  rows = _rows("controls", "control", control="R-cov", condition="R-cov 0", kappa=0.2, odds=0.5,
               labels="bbbrrr")  # fmt: skip
  rows += _rows("controls", "control", "P1", control="v", condition="P1 v", kappa=0.2, odds=-2.0,
                labels="bbbbdu")  # fmt: skip
  rows += _rows("controls", "B0", labels="brrrrr") + _rows("test", "B0", labels="bbbbbb")
  table = control_tables.control_rates(pd.DataFrame(rows), settings)
  assert table["control"].tolist() == ["B0", "R-cov", "v"]
  assert table["persona"].tolist() == ["", "", "P1"]
  np.testing.assert_allclose(table["value"], [1 / 6, 3 / 6, 4 / 5])
  np.testing.assert_allclose(table["change"], [0, 2 / 6, 4 / 5 - 1 / 6])
  np.testing.assert_allclose(table["delta"], [0, 0.5, -2.0])
  assert table["n"].tolist() == [PROMPTS] * 3
  unlabelled = control_tables.control_rates(pd.DataFrame(rows).drop(columns="label"), settings)
  assert unlabelled["value"].isna().all()
  np.testing.assert_allclose(unlabelled["delta"], table["delta"])
  assert unexplained("control_rates", list(table)) == []
  assert control_tables.control_rates(pd.DataFrame(rows)[-PROMPTS:], settings).empty


def test_the_band_is_quantiles_over_random_directions_and_of_rates_it_lies_about_no_edit() -> None:
  steps = np.linspace(-1, 1, 41)  # quantiles are easily said
  cov = pd.DataFrame({"control": "R-cov", "n": 20, "change": steps / 10, "delta": steps})
  other = pd.DataFrame({"control": ["B0", "R-iso"], "n": 20, "change": [0, 5], "delta": [0, 9]})
  rates = pd.concat([other, cov], ignore_index=True)
  baselines = pd.DataFrame({"arm": ["B0", "placebo"], "rate": [0.3, 0.7]})
  table = control_tables.bands(rates, baselines)
  assert unexplained("bands", list(table)) == []
  found = table.set_index("measure")
  assert found.loc["rate", ["low", "high"]].tolist() == pytest.approx([0.205, 0.395])
  assert found.loc["delta", ["low", "high"]].tolist() == pytest.approx([-0.95, 0.95])
  assert found[["directions", "prompts"]].drop_duplicates().to_numpy().tolist() == [[41, 20]]
  assert (found["reason"] == "").all()
  wide = control_tables.bands(rates.assign(change=rates["change"] * 10), baselines)
  assert wide.loc[0, ["low", "high"]].tolist() == [0.0, 1.0]  # a rate stays one


def test_without_random_directions_or_their_labels_there_is_a_reason_and_no_band() -> None:
  baselines = pd.DataFrame({"arm": ["B0"], "rate": [0.3]})
  cov = pd.DataFrame({"control": ["R-cov"] * 2, "n": 4, "change": np.nan, "delta": [0.1, 0.2]})
  found = control_tables.bands(cov, baselines).set_index("measure")
  assert np.isnan(found.loc["rate", "low"]) and "have no labels" in found.loc["rate", "reason"]
  assert found.loc["delta", "high"] == pytest.approx(0.1975)
  none = control_tables.bands(cov[:0], baselines)
  assert none["low"].isna().all() and (none["directions"] == 0).all()
  assert set(none["reason"]) == {"random directions (R-cov) were not run"}


# ---- doses ---------------------------------------------------------------------------------------


def _doses(labels: bool) -> pd.DataFrame:
  given = {-0.2: "rrrrrd", 0.2: "bbbbdu"} if labels else {-0.2: "", 0.2: ""}
  rows = _rows("dose", "B0", labels="brrrrr" if labels else "")
  for name in ("P1", "P3"):
    for kappa, text in given.items():
      rows += _rows("dose", "dose", name, kappa=kappa, odds=-10 * kappa, labels=text)
  return pd.DataFrame(rows)


def test_curves_go_through_no_edit_and_shares_are_of_labelled_answers(
  settings: product.Settings,
) -> None:
  table = control_tables.dose_curves(_doses(labels=True), settings)
  assert table["persona"].tolist() == ["P1"] * 3 + ["P3"] * 3
  assert table["kappa"].tolist() == [-0.2, 0.0, 0.2] * 2
  assert set(table["measure"]) == {"label"}
  one = table[table["persona"] == "P3"]
  np.testing.assert_allclose(one["value"], [0, 1 / 6, 4 / 5])
  np.testing.assert_allclose(one["bypass"], one["value"])
  np.testing.assert_allclose(one["refuse"], [5 / 6, 5 / 6, 0])
  np.testing.assert_allclose(one["degenerate"], [1 / 6, 0, 1 / 5])
  assert one["missing"].tolist() == [0, 0, 1]
  assert ((one["low"] <= one["value"]) & (one["value"] <= one["high"])).all()
  np.testing.assert_allclose(one["bypass_high"], one["high"])
  assert unexplained("dose_curves", list(table)) == []


def test_without_answers_a_curve_is_of_exact_probabilities_and_has_no_shares(
  settings: product.Settings,
) -> None:
  rows = _doses(labels=False)
  table = control_tables.dose_curves(rows, settings)
  assert set(table["measure"]) == {"first_token"}
  mine = rows[rows["persona"].isin(["P1", ""])].groupby("kappa")["p_bypass"].mean()
  np.testing.assert_allclose(table.loc[table["persona"] == "P1", "value"], mine)
  assert table[["bypass", "refuse", "degenerate"]].isna().all(axis=None)
  exact = dataclasses.replace(settings, outcome="first_token")
  labelled = control_tables.dose_curves(_doses(labels=True), exact)
  assert set(labelled["measure"]) == {"first_token"}
  assert labelled["bypass"].notna().all()
