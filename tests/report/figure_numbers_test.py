"""Numbers inside figures: which are read, and what each is found to be."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from persona_jax.report.figure_numbers import Sources, numbers, written
from persona_jax.report.look import svg_markup

TABLES = {
  "rates": pd.DataFrame(
    {"arm": ["SP", "AS", "AS"], "rate": [0.214, -0.3, np.nan], "n": [40, 1200, 7],
     "why": ["", "gap 0.06 < 0.3", ""], "crosses": [True, False, True]}
  ),
}  # fmt: skip
DRAWS = {"rates": ("arm", "rate", "n", "why", "crosses")}


def _found(text: str, **given: object) -> list[object]:
  sources = Sources(TABLES, DRAWS, given)
  return [sources.find(one) for one in numbers(text)]


def test_all_texts_of_a_figure_are_read_and_ticks_are_not() -> None:
  figure = Figure()
  axes = figure.subplots()
  axes.plot([0, 1], [0.111, 0.222])
  axes.set_xticks([0.0, 1.0], ["0.7", "0.8"])
  axes.text(0, 0.15, "first 0.21\nsecond −0.30 [−.5, 1.2e-3]")
  axes.set_title("of 40 prompts")
  figure.supxlabel("67 % at P12, C+ A− and R²")
  texts = {one.number for one in written(svg_markup(figure, "F1"))}
  assert texts == {"0.21", "−0.30", "−.5", "1.2e-3", "40", "67 %"}


def test_a_cell_is_found_as_it_is_rounded_and_signed() -> None:
  cell = {"table": "rates", "column": "rate", "row": 0}
  assert _found("0.21 and 0.214 and .2 and 21 %") == [cell] * 4
  assert _found("−0.30") == [{"table": "rates", "column": "rate", "row": 1}]
  assert _found("1,200") == [{"table": "rates", "column": "n", "row": 1}]
  assert _found("0.215 0.40 −0.21 0.22") == [None] * 4


def test_texts_counts_and_constants_are_found_and_nothing_else() -> None:
  assert _found("0.06") == [{"table": "rates", "column": "why", "row": 1}]
  assert _found("3") == [{"table": "rates", "rows where": {}}]
  assert _found("2") == [{"table": "rates", "rows where": {"arm": ["AS"]}}]
  kinds = pd.DataFrame({"kind": ["a"] * 4 + ["b"] * 3 + ["c"] * 9 + ["d"] * 2, "y": 0.5})
  (seven,) = numbers("a cloud of 7")
  assert Sources({"points": kinds}, {"points": ("kind",)}, {}).find(seven) == {
    "table": "points", "rows where": {"kind": ["not c", "not d"]}
  }  # fmt: skip
  assert _found("95 %") == [{"given": "level of an interval"}]
  assert _found("±0.05 of 4.5", margin=0.05, name="model 4.5") == [
    {"given": "margin"}, {"given": "name"}]  # fmt: skip
  assert _found("5") == [None]


@pytest.mark.parametrize("text", ["P12", "C+", "R-cov", "v1.2.3", "135M", "x0.5"])
def test_what_is_part_of_a_word_is_no_number(text: str) -> None:
  assert list(numbers(text)) == []
