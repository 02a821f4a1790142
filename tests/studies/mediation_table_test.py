"""The table of mediation, on hand-made rows."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from configs import persona_non_grata
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata.control_tables import control_table
from persona_jax.studies.persona_non_grata.legends import unexplained
from persona_jax.studies.persona_non_grata.mediation_table import VARIANTS, mediation_table
from tests.planted import study

BASE_N = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
# What each variant adds to the probability of a bypass, by prompt.
ADDED = {
  "v": np.asarray([0.35, 0.25, 0.3, 0.2, 0.25, 0.15]),
  "v_perp_r": np.asarray([0.1, 0.1, 0.05, 0.05, 0.0, 0.0]),
  "v_par_r": np.asarray([0.25, 0.25, 0.2, 0.2, 0.15, 0.15]),
  "floor r": np.asarray([0.0, 0.0, 0.0, 0.0, 0.0, 0.06]),
  "floor random": np.asarray([0.3, 0.2, 0.3, 0.2, 0.3, 0.1]),
}


@pytest.fixture(scope="module")
def settings() -> product.Settings:
  config = persona_non_grata.get_config().to_dict()
  fields = {k: v for k, v in config.items() if k not in study.MODEL_FIELDS}
  return dataclasses.replace(product.Settings.of(fields), draws=400)


def _rows(arm: str, control: str, persona: str, p_N: np.ndarray) -> list[dict[str, object]]:
  """Makes two samples a prompt, which share its probability; two prompts are a cluster."""
  return [
    {"part": "controls", "arm": arm, "control": control, "persona": persona,
     "condition": f"{persona} {control}", "prompt_id": f"p{n}", "cluster": f"c{n // 2}",
     "sample": sample, "p_bypass": p_N[n]}
    for n, sample in itertools.product(range(6), range(2))
  ]  # fmt: skip


@pytest.fixture
def table() -> pd.DataFrame:
  rows = _rows("B0", "", "", BASE_N)
  for persona, sign in (("P1", 1), ("P2", -0.3)):
    for code, added_N in ADDED.items():
      if (persona, code) != ("P2", "floor r"):
        rows += _rows("control", code, persona, BASE_N + sign * added_N)
  rows += _rows("control", "R-cov", "", BASE_N + 0.01)
  rows += _rows("control", "-v", "P1", BASE_N - 0.05)
  test = [{**row, "part": "test"} for row in _rows("B0", "", "", BASE_N + 0.3)]
  return pd.DataFrame(rows + test).sample(frac=1, random_state=0, ignore_index=True)


def test_every_variant_that_was_run_has_its_effect_paired_by_prompt(
  table: pd.DataFrame, settings: product.Settings
) -> None:
  found = mediation_table(table, settings).set_index(["persona", "variant"])
  assert [v for p, v in found.index if p == "P1"] == [v for v in VARIANTS if v in ADDED]
  assert ("P2", "floor r") not in found.index and len(found) == 9
  for (persona, variant), row in found.iterrows():
    sign = {"P1": 1, "P2": -0.3}[persona]
    assert row["effect"] == pytest.approx(sign * ADDED[variant].mean())
    assert (row["n"], row["reason"]) == (6, "")
  # Of three clusters, each comes three times in 1 of 27 draws: bounds are means of single ones.
  np.testing.assert_allclose(found.loc[("P1", "v"), ["low", "high"]].astype(float), [0.2, 0.3])
  bounds = found.loc[("P1", "floor r"), ["low", "high"]].astype(float)
  np.testing.assert_allclose(bounds, [0.0, 0.03], atol=1e-9)


def test_the_whole_direction_is_that_of_the_controls_and_shares_are_ratios(
  table: pd.DataFrame, settings: product.Settings
) -> None:
  found = mediation_table(table, settings).set_index(["variant", "persona"])
  controls = control_table(table, settings).set_index("persona")
  for name in ("P1", "P2"):
    whole = found.loc["v"].loc[name]
    np.testing.assert_array_equal(
      whole[["effect", "low", "high"]].astype(float),
      controls.loc[name, ["effect", "low", "high"]].astype(float),
    )
    kept = found.loc[("v_perp_r", name), "effect"] / whole["effect"]
    assert controls.loc[name, "kept_v_perp_r"] == pytest.approx(kept)
  restored = 1 - found.loc[("floor r", "P1"), "effect"] / found.loc[("v", "P1"), "effect"]
  assert controls.loc["P1", "restored_r"] == pytest.approx(restored)


def test_a_missing_prompt_leaves_no_effect_but_a_reason(
  table: pd.DataFrame, settings: product.Settings
) -> None:
  gone = (table["control"] == "v_par_r") & (table["prompt_id"] == "p3")
  found = mediation_table(table[~gone], settings).set_index(["persona", "variant"])
  assert np.isnan(found.loc[("P1", "v_par_r"), "effect"])
  assert found.loc[("P1", "v_par_r"), "reason"]
  assert found.loc[("P1", "v"), "effect"] == pytest.approx(0.25)


def test_without_controls_it_is_empty_and_its_columns_are_explained(
  table: pd.DataFrame, settings: product.Settings
) -> None:
  none = mediation_table(table[table["part"] == "test"], settings)
  assert none.empty
  assert unexplained("mediation", list(none.columns)) == []
