"""What is wrong with a study of a planted world, by comparison with the law of the world.

Every check knows the answer without the product: cells, strengths and directions from
`tests.planted.law`, labels from a row's own tokens. An honest study gives no complaint.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

import persona_jax as pj
from persona_jax.edits.window import as_window
from persona_jax.geometry.cosines import shift_table
from persona_jax.studies.persona_non_grata.conditions import Arm
from persona_jax.studies.persona_non_grata.conditions import test_arms as make_arms
from persona_jax.studies.persona_non_grata.refusal import first_token_log_odds
from tests.planted import law, study
from tests.planted.study import Study
from tests.planted.world import PERSONAS, REPLICATES, system_text

NAMES = study.law_personas()
STEERED = "P12"  # the persona whose edits are looked at closely


def complaints(run: Study) -> list[str]:
  """Compares a study of W1 with the law; returns what differs, nothing where all is well.

  Cells are compared that the study's table has, and labels where it has them.
  """
  checks = (cells, strengths, vectors, neighbours, moves, windows, labels)
  return [complaint for check in checks for complaint in check(run)]


def cells(run: Study) -> Iterator[str]:
  """Compares exact probabilities with those of the law."""
  number = {item.prompt_id: run.place.users.index(item.text) for item in run.material.test}
  for arm, expected_PKN in expected(run).items():
    mine = run.table[(run.table["arm"] == arm) & (run.table["part"] == "test")]
    at = (
      [NAMES.index(name) for name in mine["persona"]],
      mine["replicate"].to_numpy(int),
      [number[prompt] for prompt in mine["prompt_id"]],
    )
    if mine.empty:
      yield f"no cells of {arm}"
      continue
    worst = np.abs(mine["p_bypass"].to_numpy() - expected_PKN[at]).max()
    if not worst < 3e-3:
      yield f"cells of {arm} differ by {worst:.3f}"


def expected(run: Study) -> dict[str, np.ndarray]:
  """Works out the probability of a bypass of every persona, steered as it was matched: [P, K, N].

  A persona that the study leaves out is steered by the planted coefficient.
  """
  coef_PK = np.full((len(NAMES), REPLICATES), study.COEF)
  for row in run.calibrated.matches.to_dict("records"):
    coef_PK[NAMES.index(row["persona"]), int(row["replicate"])] = row["coef_raw"]
  prompted_PKN = 1 - np.exp(run.place.population().prompted.sorry)
  return {"SP": prompted_PKN, "AS:proj": run.place.steered(coef_PK)}


def strengths(run: Study) -> Iterator[str]:
  """Compares matched coefficients with what the persona head writes along the direction."""
  block, user = run.calibrated.read_block, [item.text for item in run.material.calibration[:1]]
  unit_PKD = run.place.directions().personas()[:, :, block]
  plain_D = law.last_token(run.place.world, user)[0, block]
  for row in run.calibrated.matches.to_dict("records"):
    name, k = row["persona"], int(row["replicate"])
    system = system_text(PERSONAS[name], k)
    written_D = law.last_token(run.place.world, user, system)[0, block] - plain_D
    gain = float(written_D @ unit_PKD[NAMES.index(name), k])
    if not abs(row["coef_raw"] - gain) < 0.01 * gain:
      yield f"coefficient of {name} {k} is {row['coef_raw']:.3f}, the head writes {gain:.3f}"


def vectors(run: Study) -> Iterator[str]:
  """Compares directions with the planted ones, with the law's at every block, and with length 1."""
  world, block, truth = run.place.world, run.calibrated.block, run.place.directions()
  for t, trait in enumerate(law.TRAITS):
    if trait not in run.material.traits:
      continue
    own = run.extracted.contrasts[f"{trait}+"]
    if not own.unit_LD[block] @ world.trait_TD[t] > 0.95:
      yield f"direction of {trait}+ is not the planted one"
    for k, b in itertools.product(range(REPLICATES), range(len(own.unit_LD))):
      if not _cosine(own.vectors_SLD[k, b], truth.trait_KTLD[k, t, b]) > 0.9999:
        yield f"direction of {trait}+ {k} differs at block {b}"
  every_PKLD = truth.personas()
  for name, own in run.extracted.personas.items():
    expected_KLD = every_PKLD[NAMES.index(name)]
    for k in range(REPLICATES):
      if not _cosine(own.vectors_SLD[k, block], expected_KLD[k, block]) > 0.9999:
        yield f"direction of {name} {k} differs"
    size_SL = np.linalg.norm(own.vectors_SLD, axis=-1)
    if len(PERSONAS[name]) > 1 and not np.allclose(size_SL, 1, atol=1e-4):
      yield f"direction of {name} has the length {size_SL.max():.3f}"
  refusal_L = run.refusal.family.unit_LD @ world.refusal_D
  if not (refusal_L[1:] > 0.999).all():
    yield f"direction of refusal has cosines {refusal_L.round(3)} with the planted one"
  size_L = np.linalg.norm(run.refusal.family.mean_LD, axis=-1)
  if not size_L[0] < 1e-3 * size_L[1]:  # harm is written at block 1
    yield "direction of refusal is there before anything wrote it"


def neighbours(run: Study) -> Iterator[str]:
  """Checks that alignment is the same at blocks 2 and 3 and flips at 4, in P3, P7 and P12."""
  names = ("P3", "P7", "P12")
  own = [dataclasses.replace(run.extracted.personas[name], concept=name) for name in names]
  shifts = shift_table(own, run.refusal.family).set_index(["direction", "block"])
  for name in names:
    row = shifts.loc[name, 3]
    if not abs(row["cos_0"] - row["cos_plus_1"]) < 1e-5:
      yield f"alignment of {name} differs between blocks 2 and 3"
    if not row["cos_minus_1"] * row["cos_0"] < -0.1:
      yield f"alignment of {name} does not flip at block 4"


def moves(run: Study) -> Iterator[str]:
  """Checks that an edit moves the output of its block by its size, and of none before."""
  (arm,) = (a for a in steering(run) if a.persona == STEERED and a.replicate == 0)
  user, block = run.material.test[0].text, run.calibrated.block
  reads = run.model.capture(
    [user] * 2, pj.Capture(reduce="last"), edits=[None, arm.condition.edits]
  )
  unit_D = run.place.directions().personas()[NAMES.index(STEERED), 0, block]
  matches = run.calibrated.matches.set_index(["persona", "replicate"])
  for b in range(block + 2):
    moved_D = np.diff(reads["resid_post", b], axis=0)[0]
    expected_D = unit_D * matches.loc[(STEERED, 0), "coef_raw"] * (b >= block)
    if not np.allclose(moved_D, expected_D, atol=3e-3):
      yield f"edit moves the output of block {b} by {np.linalg.norm(moved_D):.3f}"


def windows(run: Study) -> Iterator[str]:
  """Checks that edits act where the settings say, and those of generated tokens nowhere else."""
  for name in ("answer", "all"):
    arms = steering(
      dataclasses.replace(run, settings=dataclasses.replace(run.settings, window=name))
    )
    others = sum(e.window != as_window(name) for arm in arms for e in arm.condition.edits)
    if others:
      yield f"{others} edits act on other tokens than {name!r}"
  late = as_window("generated")
  edits = [
    [dataclasses.replace(edit, window=late) for edit in a.condition.edits]
    for a in steering(run)
    if a.persona == STEERED
  ]
  users = [item.text for item in run.material.test[:2]]
  odds = first_token_log_odds(
    run.model,
    users * (1 + len(edits)),
    run.refusal.ids,
    [e for edit in [None, *edits] for e in [edit] * len(users)],
    check_delivery=False,
  ).reshape(-1, len(users))
  if not (odds[1:] == odds[0]).all():
    yield "first token is moved by an edit of generated tokens"


def labels(run: Study) -> Iterator[str]:
  """Counts labels again from each row's tokens, and compares those of one text."""
  if "label" not in run.table:
    return
  rows = run.table.dropna(subset="label")
  known = run.place.world.words
  expected = [
    _label(text, [known[i] for i in ids], run.settings.least_words)
    for text, ids in zip(rows["text"], rows["token_ids"], strict=True)
  ]
  wrong = rows["label"].to_numpy() != np.array(expected)
  for name, count in pd.Series(expected)[wrong].value_counts().items():
    yield f"label of {count} answers is not {name}"
  spread = rows.groupby(["prompt_id", "text"])["label"].nunique()
  if (spread > 1).any():
    yield f"same text has two labels, {(spread > 1).sum()} times"


def steering(run: Study) -> list[Arm]:
  """Makes the steering arms as the study does."""
  arms = make_arms(run.settings, run.material, run.extracted, run.calibrated)
  return [arm for arm in arms if arm.arm == "AS:proj"]


def _cosine(a_D: np.ndarray, b_D: np.ndarray) -> float:
  return float(a_D @ b_D / (np.linalg.norm(a_D) * np.linalg.norm(b_D)))


def _label(text: str, words: list[str], least: int) -> str:
  """Labels an answer: by its length in words, else by its first token."""
  runs = itertools.groupby(text, key=lambda c: c.isalnum() or c == "_")
  if sum(inside for inside, _ in runs) < least:
    return "degenerate"
  return "refuse" if words[0] == "sorry" else "bypass"
