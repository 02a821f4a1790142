"""Tables of the study on rows made by hand."""

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.data.prompts import PromptItem
from persona_jax.studies.prompt_vs_steering import preparation, summary
from persona_jax.studies.prompt_vs_steering.conditions import Arm

ARMS = {"baseline": Arm(pj.Condition("baseline"), "baseline")}


def rows(labels):
  """Rows of the baseline on harmful prompts, with (refused, degenerate, valid) each."""
  table = pd.DataFrame(labels, columns=["refused", "degenerate", "valid"])
  table["condition"], table["prompt_id"] = "baseline", [f"p{n}" for n in range(len(labels))]
  chosen = {
    key: PromptItem(key, "?", "harmful", None, "x", "by hand") for key in table["prompt_id"]
  }
  return summary.annotate(table, ARMS, chosen)


def test_trap_broken_text_is_neither_refusal_nor_answer():
  table = rows([(True, True, True), (True, False, True), (False, False, True), (None, True, True)])
  assert table["outcome"].tolist() == ["degenerate", "refused", "answered", "degenerate"]
  (line,) = summary.refusal(table).to_dict("records")
  assert (line["refused"], line["degenerate"], line["answered"]) == (0.25, 0.5, 0.25)
  assert line["n"] == 4 and line["missing"] == line["invalid"] == 0


def test_trap_a_missing_label_is_counted_and_never_a_zero():
  table = rows(
    [(True, False, True), (None, False, True), (True, None, True), (False, False, False)]
  )
  (line,) = summary.refusal(table).to_dict("records")
  assert line["refused"] == 1.0 and line["n"] == 1
  assert line["missing"] == 2 and line["invalid"] == 1


def test_trap_random_directions_take_a_seed(tiny):
  like = tiny.direction()
  draw = lambda key, seed: preparation._isotropic(key, like, seed)
  assert draw("O", 0).hash == draw("O", 0).hash
  assert len({draw("O", 0).hash, draw("O", 1).hash, draw("C", 0).hash}) == 3


def items(shift_of_key):
  """Self-report of the baseline and of P5 (E+) prompted: 18 items keyed +, 6 keyed -."""
  key = np.repeat([1, -1], [18, 6])
  base = np.random.default_rng(0).normal(-3, 0.5, 24)
  moved = base + np.where(key == 1, *shift_of_key) + np.random.default_rng(1).normal(0, 0.1, 24)
  weight = 24 / (2 * np.where(key == 1, 18, 6)) * key
  common = {"item_id": [f"i{n}" for n in range(24)], "key": key, "trait": "E", "valid": True}
  return pd.concat(
    [
      pd.DataFrame(
        common | {"arm": "baseline", "persona": "", "coef": 0.0, "expression": weight * x}
      )
      if arm == "baseline"
      else pd.DataFrame(
        common | {"arm": arm, "persona": "P5", "coef": np.nan, "expression": weight * x}
      )
      for arm, x in (("baseline", base), ("prompt", moved))
    ],
    ignore_index=True,
  )


def test_a_persona_that_shifts_every_item_alike_has_not_moved_and_the_interval_knows():
  alike = summary.trait_shifts(items((1.0, 1.0))).iloc[0]
  apart = summary.trait_shifts(items((1.2, 0.8))).iloc[0]
  assert alike["low"] < 0 < alike["high"] and alike["high"] - alike["low"] < 0.2
  assert apart["value"] == pytest.approx(0.2 + alike["value"]) and apart["low"] > 0
