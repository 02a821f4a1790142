"""Studies of other models: which can be compared, and which are left out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from persona_jax.studies.persona_non_grata.other_models import prompt_arms

OURS: Any = SimpleNamespace(
  outcome="label", labels="rules", samples=1, temperature=0.0, max_new_tokens=64
)
MATERIAL: Any = SimpleNamespace(
  personas=[SimpleNamespace(name=name) for name in ("P1", "P2")],
  hashes=lambda: {"personas": "aa", "test": "bb", "questions": "cc"},
)


def _study(directory: Path, blocked: str = "", judged_by: str = "j", **settings: object) -> Path:
  """Writes what a study of another model leaves, as far as it is read."""
  (directory / "tables").mkdir(parents=True)
  inputs = {"personas": "aa", "test": settings.pop("test", "bb"), "questions": "other"}
  config = {"settings": vars(OURS) | settings, "inputs": inputs}
  (directory / "config.json").write_text(json.dumps(config))
  verdicts = {"blocked": blocked, "judged_by": judged_by}
  (directory / "tables" / "verdicts.json").write_text(json.dumps(verdicts))
  rows = [
    {"arm": arm, "persona": name, "replicate": 0, "prompt_id": f"t{n}", "cluster": f"c{n}",
     "y": float(arm == "SP" and name == "P2")}
    for arm in ("SP", "AS:proj") for name in ("P1", "P2") for n in range(3)
  ]  # fmt: skip
  pd.DataFrame(rows).to_parquet(directory / "tables" / "outcomes.parquet")
  return directory


def test_prompt_arms_are_read_and_a_study_that_fails_its_gates_is_left_out(tmp_path: Path) -> None:
  good, bad = _study(tmp_path / "good"), _study(tmp_path / "bad", "G5: no labels")
  arms, left_out = prompt_arms(OURS, MATERIAL, [good, bad], "j")
  assert left_out == {str(bad): "fails its gates (G5: no labels)"}
  (outcomes,) = arms.values()
  assert list(arms) == [str(good)] and outcomes.arms == ("SP",)
  np.testing.assert_array_equal(outcomes.mean_MP, [[0.0, 1.0]])


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"test": "zz"}, r"differs in \['test'\]"),
    ({"outcome": "first_token"}, r"differs in \['outcome'\]"),
    ({"max_new_tokens": 9, "judged_by": "k"}, r"differs in \['max_new_tokens', 'judges'\]"),
    # Even one that fails its gates: what differs is a mistake in the flag.
    ({"blocked": "G1: .1 < .5", "temperature": 1.0}, r"differs in \['temperature'\]"),
  ],
)
def test_a_study_of_another_kind_is_an_error(
  tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
  with pytest.raises(ValueError, match=said):
    prompt_arms(OURS, MATERIAL, [_study(tmp_path / "x", **changes)], "j")


def test_a_study_without_an_analysis_or_a_persona_is_an_error(tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match="holds no analysed study"):
    prompt_arms(OURS, MATERIAL, [tmp_path], "j")
  more: Any = SimpleNamespace(
    personas=[*MATERIAL.personas, SimpleNamespace(name="P3")], hashes=MATERIAL.hashes
  )
  with pytest.raises(ValueError, match=r"has no outcomes of \['P3'\]"):
    prompt_arms(OURS, more, [_study(tmp_path / "x")], "j")
