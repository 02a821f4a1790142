"""A synthetic study in neutral words, for the tests of the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from persona_jax.report import ReportData, draw_all

PERSONAS = (
  *(("P1", "O+"), ("P2", "O-"), ("P3", "C+"), ("P4", "C-"), ("P5", "E+"), ("P6", "E-")),
  *(("P7", "A+"), ("P8", "A-"), ("P9", "N+"), ("P10", "N-"), ("P11", "C- A-"), ("P12", "C+ A+")),
)
COEFS = (0.05, 0.1, 0.2)
STRENGTH = {"prompt": 0.09, "steer": 0.16, "random": 0.01}
PROMPTS = (
  ("harmless-01", "What do people keep in a garden shed?", "harmless"),
  ("harmless-02", "How do I sharpen a kitchen knife?", "harmless"),
  ("harmful-01", "A stand-in for a request that a model should decline.", "harmful"),
  ("harmful-02", "Another stand-in for such a request.", "harmful"),
)
LONG_HASH = "0123456789abcdef" * 4


def make_data(**changes: object) -> ReportData:
  """Return a study of twelve personas; `changes` replace fields."""
  rng = np.random.default_rng(0)
  fields: dict[str, object] = {
    "title": "Personas by prompt and by steering",
    "verdict": [
      "Steering moves the self-report of 5 of 5 traits in the direction named.",
      "The system prompt moves 4 of 5, by less.",
      "A random direction of the same norm moves none.",
    ],
    "limits": [
      "This model refuses 31 % [22 %, 41 %] of harmful prompts without a persona (n = 80).",
      "It cannot rank personas by danger: the intervals of all twelve overlap.",
    ],
    "setup": {
      "model": "smollm2-135m-instruct",
      "quantisation": "Q4_1",
      "block": 15,
      "dose unit": "median residual norm",
      "tokens": "answer",
      "seed": 0,
      "wall clock (s)": 123.456,
      "model sha256": LONG_HASH,
      "config hash": LONG_HASH[::-1],
      "jax": "0.10.2",
    },
    "refusal": _refusal(rng),
    "traits": _traits(rng),
    "curves": _curves(rng),
    "slopes": _slopes(),
    "degeneration": pd.DataFrame(
      [
        (coef, arm, rate, max(rate - 0.05, 0.0), rate + 0.08, 60)
        for arm, top in (("steer", 0.6), ("random", 0.2))
        for coef, rate in ((0.05, 0.02), (0.1, 0.2 * top), (0.2, top))
      ],
      columns=["coef", "arm", "rate", "low", "high", "n"],
    ),
    "completions": _completions(),
  }
  return ReportData(**(fields | changes))  # type: ignore[arg-type]


def _refusal(rng: np.random.Generator) -> pd.DataFrame:
  rows = []
  cells = [("baseline", "", "", math.nan)]
  cells += [
    (arm, persona, label, math.nan if arm == "prompt" else 0.1)
    for persona, label in PERSONAS
    for arm in STRENGTH
  ]
  for arm, persona, label, coef in cells:
    for kind, middle in (("harmful", 0.32), ("harmless", 0.08)):
      rate = float(np.clip(middle + rng.normal(0, 0.08), 0.0, 1.0))
      rows.append(
        {
          **{"arm": arm, "persona": persona, "label": label, "kind": kind, "coef": coef, "n": 80},
          **{"refused": rate, "refused_low": max(rate - 0.09, 0.0), "refused_high": rate + 0.1},
          **{"degenerate": 0.05, "degenerate_low": 0.02, "degenerate_high": 0.12, "invalid": 0},
        }
      )
  return pd.DataFrame(rows)


def _traits(rng: np.random.Generator) -> pd.DataFrame:
  rows = []
  for persona, label in PERSONAS:
    for pole in label.split():
      for arm, strength in STRENGTH.items():
        value, half = strength + rng.normal(0, 0.02), 0.04
        coef = math.nan if arm == "prompt" else 0.1
        interval = (value, value - half, value + half, 24, "")
        if (persona, arm) == ("P9", "prompt"):
          interval = (math.nan, math.nan, math.nan, 0, "no item was scored")
        rows.append((arm, persona, label, pole[0], coef, *interval))
  columns = ["arm", "persona", "label", "trait", "coef", "value", "low", "high", "n", "reason"]
  return pd.DataFrame(rows, columns=columns)


def _curves(rng: np.random.Generator) -> pd.DataFrame:
  rows = []
  for trait in "OCEAN":
    for arm, slope in (("steer", 1.4), ("random", 0.1)):
      for coef in (*(-c for c in reversed(COEFS)), 0.0, *COEFS):
        value = slope * coef + (rng.normal(0, 0.02) if coef else 0.0)
        half = 0.05 if coef else 0.0
        rows.append((trait, arm, coef, value, value - half, value + half, 24))
  return pd.DataFrame(rows, columns=["trait", "arm", "coef", "value", "low", "high", "n"])


def _slopes() -> pd.DataFrame:
  rows = [
    (trait, arm, slope, slope - 0.3, slope + 0.3, 168, "")
    for trait in "OCEAN"
    for arm, slope in (("steer", 1.4), ("random", 0.1))
    if (trait, arm) != ("N", "random")
  ]
  rows.append(("N", "random", math.nan, math.nan, math.nan, 1, "one coefficient is no slope"))
  return pd.DataFrame(rows, columns=["trait", "arm", "value", "low", "high", "n", "reason"])


def _completions() -> pd.DataFrame:
  rows: list[dict[str, object]] = []
  cells = [("baseline", "", "", math.nan)]
  cells += [
    (arm, persona, label, math.nan if arm == "prompt" else 0.1)
    for persona, label in PERSONAS
    for arm in STRENGTH
  ]
  for prompt_id, prompt, kind in PROMPTS:
    for arm, persona, label, coef in cells:
      manner = {"C+": "Tidy shelves, labelled jars", "C-": "Oh, whatever fits"}.get(label, "Tools")
      rows.append(
        {
          **{"prompt_id": prompt_id, "prompt": prompt, "kind": kind, "arm": arm},
          **{"persona": persona, "label": label, "coef": coef},
          "text": f"{manner}, a rake and a hose. They are hung on the wall where one can see them.",
          "refused": kind == "harmful" and arm != "steer",
          "degenerate": arm == "steer" and persona == "P9",
          "row_id": f"{prompt_id}-{arm}-{persona or 'none'}",
        }
      )
  return pd.DataFrame(rows)


@pytest.fixture
def make() -> Callable[..., ReportData]:
  return make_data


@pytest.fixture
def data() -> ReportData:
  return make_data()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  return draw_all(make_data(), tmp_path_factory.mktemp("report") / "figures")
