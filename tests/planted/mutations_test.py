"""Faults planted in the product, one at a time: each must show in a study of a known world.

One honest study is shared. A fault is put where the product calls; then only what it touches is
read, made or measured again, and compared with the law.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.edits import window
from persona_jax.scorers.labels import Labels
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import conditions, extraction, generation, refusal
from tests.planted import check, study
from tests.planted.check import complaints
from tests.planted.study import Study

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Study:
  """A study of four personas, drawn at a high temperature so that some answers are degenerate."""
  folder = tmp_path_factory.mktemp("honest")
  place = study.write("W1", folder / "W1", noise=0.5, prompts=12)
  with (place.directory / "personas.toml").open("a") as file:
    file.write('\n[sets]\nfew = ["P3", "P7", "P11", "P12"]\n')
  return study.run(
    place, folder / "study", persona_set="few", calibration_prompts=2, calibration_tokens=1,
    generate=("test",), temperature=2.0, max_new_tokens=3, least_words=3,
  )  # fmt: skip


def read_again(run: Study) -> Study:
  """Reads directions from their files, and puts composites together."""
  extracted = product.extract(run.model, run.settings, run.material, run.out, progress=False)
  found = product.find_refusal(run.model, run.settings, run.material, run.out, progress=False)
  return dataclasses.replace(run, extracted=extracted, refusal=found)


def measured_again(run: Study, folder: Path) -> Study:
  """Makes eight conditions of P12 and P3 again and measures their first tokens."""
  arms = conditions.test_arms(run.settings, run.material, run.extracted, run.calibrated)
  mine = [a for a in arms if a.persona == "P12"] + [a for a in arms if a.persona == "P3"][:2]
  part = generation.Part("test", tuple(mine), run.material.test)
  table = generation.first_tokens(run.model, part, run.refusal.ids, folder, progress=False)
  return dataclasses.replace(run, table=table.assign(part="test", sample=0))


def labelled_again(run: Study, folder: Path) -> Study:
  """Puts the table together from the answers that are there, which are labelled again."""
  shutil.copytree(run.out, folder / "study")
  arms = conditions.test_arms(run.settings, run.material, run.extracted, run.calibrated)
  parts = [generation.Part("test", tuple(arms), run.material.test)]
  table = generation.generate(
    run.model, run.settings, parts, run.refusal.ids, folder / "study", progress=False
  )
  return dataclasses.replace(run, table=table)


def _some(run: Study, words: str) -> bool:
  return any(words in complaint for complaint in complaints(run))


# ---- without a fault -----------------------------------------------------------------------------


def test_nothing_is_to_be_said_against_the_honest_study(honest: Study) -> None:
  assert complaints(honest) == []
  cells = honest.table.groupby("arm").size()
  assert cells["SP"] == cells["AS:proj"] == 4 * 3 * 12
  assert (honest.table["label"].value_counts()[["refuse", "bypass", "degenerate"]] > 20).all()


def test_nothing_is_to_be_said_against_what_is_done_again(honest: Study, tmp_path: Path) -> None:
  assert complaints(read_again(honest)) == []
  assert complaints(measured_again(honest, tmp_path)) == []
  assert complaints(labelled_again(honest, tmp_path)) == []


# ---- directions ----------------------------------------------------------------------------------


def test_a_sign_that_is_lost_between_poles_is_found(honest: Study, monkeypatch: Patch) -> None:
  monkeypatch.setattr(extraction, "_signed", lambda direction, sign, concept: direction)
  assert _some(read_again(honest), "direction of P11 0 differs")


def test_directions_of_the_wrong_sign_are_found(honest: Study, monkeypatch: Patch) -> None:
  _on_load(monkeypatch, extraction, np.negative)
  assert _some(read_again(honest), "direction of C+ is not the planted one")


def test_a_refusal_direction_of_the_wrong_sign_is_found(honest: Study, monkeypatch: Patch) -> None:
  _on_load(monkeypatch, refusal, np.negative)
  assert _some(read_again(honest), "direction of refusal has cosines")


@pytest.mark.parametrize("step", [1, -1])
def test_trait_directions_that_moved_by_a_block_in_their_file_are_found(
  honest: Study, monkeypatch: Patch, step: int
) -> None:
  _on_load(monkeypatch, extraction, lambda v_SLD: np.roll(v_SLD, step, axis=1))
  assert _some(read_again(honest), f"direction of C+ 0 differs at block {4 if step > 0 else 3}")


@pytest.mark.parametrize("step", [1, -1])
def test_a_refusal_direction_that_moved_by_a_block_in_its_file_is_found(
  honest: Study, monkeypatch: Patch, step: int
) -> None:
  _on_load(monkeypatch, refusal, lambda v_SLD: np.roll(v_SLD, step, axis=1))
  assert _some(read_again(honest), "direction of refusal has cosines")


def test_a_composite_that_is_not_normalised_is_found(honest: Study, monkeypatch: Patch) -> None:
  made = extraction.compose

  def summed(parts: Sequence[pj.Direction], signs: Any, rule: str, **more: Any) -> pj.Direction:
    unit = [
      dataclasses.replace(
        d, vectors_SLD=d.vectors_SLD / np.linalg.norm(d.vectors_SLD, axis=-1)[..., None]
      )
      for d in parts
    ]
    return made(unit, signs, "sum", **more)

  monkeypatch.setattr(extraction, "compose", summed)
  found = complaints(read_again(honest))
  assert len(found) == 2  # all else is as it should be
  assert all("has the length 1." in complaint for complaint in found)


# ---- edits ---------------------------------------------------------------------------------------


def test_edits_of_the_wrong_sign_are_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  added = conditions.add
  monkeypatch.setattr(conditions, "add", lambda d, coef, **more: added(d, -coef, **more))
  assert _some(measured_again(honest, tmp_path), "cells of AS:proj differ")


@pytest.mark.parametrize("step", [1, -1])
def test_edits_of_a_neighbouring_block_are_found(
  honest: Study, monkeypatch: Patch, step: int
) -> None:
  added = conditions.add

  def elsewhere(d: pj.Direction, coef: float, *, blocks: int, **more: Any) -> pj.Edit:
    return added(d, coef, blocks=blocks + step, **more)

  monkeypatch.setattr(conditions, "add", elsewhere)
  # Blocks 1 to 3 only pass on what is there: no probability can tell, the residual stream does.
  assert _some(honest, f"edit moves the output of block {2 if step > 0 else 1} by")


def test_edits_behind_the_late_head_are_found_in_the_cells(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  added = conditions.add
  monkeypatch.setattr(
    conditions, "add", lambda d, coef, **more: added(d, coef, **(more | {"blocks": 4}))
  )
  assert _some(measured_again(honest, tmp_path), "cells of AS:proj differ")


def test_a_window_that_is_ignored_is_found(honest: Study, monkeypatch: Patch) -> None:
  monkeypatch.setitem(window._NAMED, "generated", window.Window())
  assert complaints(honest) == ["first token is moved by an edit of generated tokens"]


def test_a_window_that_is_not_handed_on_to_the_edits_is_found(
  honest: Study, monkeypatch: Patch
) -> None:
  added = conditions.add

  def everywhere(d: pj.Direction, coef: float, *, tokens: str, **more: Any) -> pj.Edit:
    return added(d, coef, **more)

  monkeypatch.setattr(conditions, "add", everywhere)
  assert _some(honest, "edits act on other tokens than")


def test_an_arm_that_was_not_measured_is_found(honest: Study) -> None:
  table = honest.table[honest.table["arm"] != "SP"]
  assert _some(dataclasses.replace(honest, table=table), "no cells of SP")


def test_replicates_that_are_mixed_up_between_the_arms_are_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  right = conditions.replicate_of
  monkeypatch.setattr(conditions, "replicate_of", lambda d, k: right(d, (k + 1) % 3))
  assert _some(measured_again(honest, tmp_path), "cells of AS:proj differ")


# ---- conditions and labels -----------------------------------------------------------------------


def test_names_of_two_conditions_that_are_swapped_are_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  right = generation.frame
  swap = {"P3 proj 0": "P12 prompt 1", "P12 prompt 1": "P3 proj 0"}
  monkeypatch.setattr(generation, "frame", lambda arms: right(arms).replace({"condition": swap}))
  found = complaints(labelled_again(honest, tmp_path))
  assert [complaint.split(" differ")[0] for complaint in found] == [
    "cells of SP",
    "cells of AS:proj",
  ]


def test_labels_of_two_conditions_that_are_swapped_are_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  right = Labels.score

  def swapped(self: Labels, table: pd.DataFrame) -> pd.DataFrame:
    labels = right(self, table)
    a, b = (table.index[table["condition"] == name] for name in ("P3 proj 0", "P12 prompt 1"))
    out = labels.copy()
    out.loc[a], out.loc[b] = labels.loc[b].to_numpy(), labels.loc[a].to_numpy()
    return out

  monkeypatch.setattr(Labels, "score", swapped)
  assert _some(labelled_again(honest, tmp_path), "answers is not")


def test_degenerate_answers_that_count_as_refusals_are_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  right = Labels._label

  def lenient(self: Labels, *of_row: Any) -> str:
    label = right(self, *of_row)
    return "refuse" if label == "degenerate" else label

  monkeypatch.setattr(Labels, "_label", lenient)
  (found,) = complaints(labelled_again(honest, tmp_path))
  assert "answers is not degenerate" in found


class Asked:
  """A judge that asks the model itself about an answer, by default as it is."""

  name = "labels"
  columns = ("label", "bypass")

  def __init__(self, run: Study, edits_of: Callable[[str], Any] = lambda condition: None):
    self.run, self.edits_of = run, edits_of

  def score(self, table: pd.DataFrame) -> pd.DataFrame:
    texts = {item.prompt_id: item.text for item in self.run.material.test}
    asked = [
      f"{texts[p]} {text}" for p, text in zip(table["prompt_id"], table["text"], strict=True)
    ]
    odds = refusal.first_token_log_odds(
      self.run.model, asked, self.run.refusal.ids, [self.edits_of(c) for c in table["condition"]]
    )
    labels = np.where(odds > 0, "refuse", "bypass")
    bypass = pd.array(labels == "bypass", dtype="boolean")
    return pd.DataFrame({"label": labels, "bypass": bypass}, index=table.index)


def test_a_judge_that_was_left_steered_is_found(
  honest: Study, monkeypatch: Patch, tmp_path: Path
) -> None:
  steered = {a.condition.name: a.condition.edits for a in check.steering(honest)}
  for judge, is_found in ((Asked(honest), False), (Asked(honest, steered.get), True)):
    monkeypatch.setattr(generation, "labeller", lambda model, settings, ids, judge=judge: judge)
    again = labelled_again(honest, tmp_path / str(is_found))
    assert _some(again, "same text has two labels") == is_found


def _on_load(monkeypatch: Patch, module: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
  """Changes the vectors of directions on their way out of their files."""
  load = module.load_direction

  def changed(path: Path, **more: Any) -> pj.Direction:
    direction = load(path, **more)
    return dataclasses.replace(direction, vectors_SLD=change(direction.vectors_SLD))

  monkeypatch.setattr(module, "load_direction", changed)
