"""Pages of directions: methods are told apart, odd intervals are drawn, texts are escaped."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from persona_jax.report.direction_page import (
  DirectionPage,
  MethodLine,
  draw,
  write_index,
  write_page,
)


def line(name: str, blocks=(0, 1, 2)) -> MethodLine:
  table = pd.DataFrame({"block": list(blocks)})
  for column, value in (("auc", 0.9), ("d", 2.0)):
    table[column] = value
    table[f"{column}_low"], table[f"{column}_high"] = value - 0.1, value + 0.1
  extremes = pd.DataFrame({"projection": [1.0], "side": ["positive"], "text": ["<b>x</b> | y"]})
  return MethodLine(
    name, table, np.asarray([0.5, 0.6, 0.7]), blocks[0], "why", "0" * 64, np.asarray([0.8, 0.9]),
    (0.85, 0.7, 1.0), (np.nan, np.nan, np.nan), np.asarray([0.7, 0.9]), extremes,
  )  # fmt: skip


@pytest.fixture
def page() -> DirectionPage:
  lines = [line(f"method {n}") for n in range(9)]
  names = [one.method for one in lines]
  return DirectionPage("a <concept>", {"model": "m"}, lines, pd.DataFrame(np.eye(9), names, names))


def test_nine_methods_have_nine_looks(page):
  auc = draw(page).axes[0]
  looks = {(x.get_color(), x.get_linestyle(), x.get_marker()) for x in auc.get_lines()[:9]}
  assert len(looks) == 9


def test_an_interval_that_does_not_hold_its_estimate_is_drawn(page):
  one = line("trained", blocks=(1,))
  odd = one.separation.assign(auc_low=0.95, auc_high=0.97)
  figure = draw(dataclasses.replace(page, lines=[dataclasses.replace(one, separation=odd)]))
  assert figure.axes


def test_a_page_says_all_and_escapes_texts(page, tmp_path):
  trials = pd.DataFrame(
    {
      "coefficient": [-0.1, 0.0, 0.1], "nll": [1.0, 0.5, 1.0], "kl": [0.2, 0.0, 0.1],
      "degenerate": [0.5, 0.0, 0.25], "prompts": 4, "problem": ["not delivered", "", ""],
      "answer": ["<i>", "b", "c"], "fluent": [False, True, True], "largest": [False, False, True],
    }
  )  # fmt: skip
  file = write_page(dataclasses.replace(page, trials=trials), tmp_path / "pages" / "a.html")
  text = file.read_text()
  assert "<h1>a &lt;concept&gt;</h1>" in text and "&lt;b&gt;x&lt;/b&gt; | y" in text
  cells = "<td>0.85 [0.70, 1.00]</td><td>–</td><td>0.80 (0.70 to 0.90)</td>"
  assert cells in text.replace("\n", "")
  assert "0.85 (0.80 to 0.90)" in text and text.count("<details") == 9
  assert "not delivered" in text and "<td>1 of 4</td>" in text.replace("\n", "")
  assert "<b>+0.1</b>" in text and "&lt;i&gt;" in text
  cosines = pd.DataFrame([[1.0, -0.25], [-0.25, 1.0]], ["x", "refusal"], ["x", "refusal"])
  cosines.attrs["block"] = 7
  index = write_index([(page, file)], tmp_path / "report.html", cosines, "told <so>").read_text()
  assert "Cosines at block 7" in index and "told &lt;so&gt;" in index and "-0.25" in index
  assert index.count('href="pages/a.html"') == 9
