"""Exploratory p are corrected family by family, against statsmodels."""

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from persona_jax.studies.persona_non_grata.exploratory import FAMILIES, corrected


def test_a_test_of_several_rows_counts_once_and_families_are_parted() -> None:
  doses = pd.DataFrame(
    {
      "dose": [0.1, 0.2] * 3,
      "persona": ["P1", "P1", "P2", "P2", "P3", "P3"],
      "p_odd": [0.01, 0.01, 0.04, 0.04, 0.5, 0.5],
    }
  )
  effects = pd.DataFrame(
    {
      "arm": ["SP", "SP", "AS", "AS"],
      "persona": ["P1", "P2", "P1", "P2"],
      "p_equivalent": [0.01, 0.02, 0.03, np.nan],
    }
  )
  found = corrected({"doses": doses, "effects": effects, "kept": pd.DataFrame()})
  three = multipletests([0.01, 0.04, 0.5], method="fdr_bh")[1]
  np.testing.assert_allclose(found["doses"]["q_odd"], np.repeat(three, 2))
  assert list(found["doses"].columns) == ["dose", "persona", "p_odd", "q_odd"]
  # A test that could not be made does not make the other easier.
  np.testing.assert_allclose(found["effects"]["q_equivalent"], [0.02, 0.02, 0.06, np.nan])
  families = found["families"].set_index(["table", "p", "family"])
  assert families.loc[("doses", "p_odd", ""), "tests"] == 3
  assert list(families.loc["effects"]["tests"]) == [2, 2]
  assert found["kept"].empty and "q_odd" not in doses


def test_names_of_corrected_columns() -> None:
  names = {family.p: family.q for family in FAMILIES}
  assert names["p_R-cov"] == "q_R-cov" and names["cos_p"] == "cos_q" and names["p"] == "q"
