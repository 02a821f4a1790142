"""Numbers and names as figures write them."""

import numpy as np
import pandas as pd
import pytest

from persona_jax.report.look import minus_signs, named, required, with_interval


def test_numbers_have_true_minus_signs_and_words_their_hyphens() -> None:
  assert with_interval(-0.2, -0.31, 0.05) == "−0.20 [−0.31, 0.05]"
  assert with_interval(0.2, np.nan, np.nan) == "0.20"
  assert with_interval(np.nan, 0.1, 0.2) == "n/m"
  assert minus_signs("non-refusal, gap -0.06 < .3") == "non-refusal, gap −0.06 < .3"


def test_a_table_without_rows_or_columns_that_a_figure_draws_is_named() -> None:
  table = pd.DataFrame({"persona": ["P1"], "rate": [0.2]})
  required(table, "effects", ("persona", "rate"))
  with pytest.raises(ValueError, match=r"'effects' has 1 rows and lacks the columns \['low'\]"):
    required(table, "effects", ("persona", "rate", "low"))
  with pytest.raises(ValueError, match="'effects' has 0 rows"):
    required(table[:0], "effects", ("persona",))


def test_personas_come_in_the_order_of_their_labels_and_unknown_ones_are_named() -> None:
  table = pd.DataFrame({"persona": ["P2", "", "P1"]})
  assert named(table, {"P1": "one", "P2": "two", "P3": "three"}) == ["P1", "P2"]
  with pytest.raises(ValueError, match=r"\['P2'\] of the table have no label"):
    named(table, {"P1": "one"})
  with pytest.raises(ValueError, match="no persona of the table"):
    named(table[1:2], {"P1": "one"})
