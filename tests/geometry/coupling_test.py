"""Gradients against forward derivatives, finite differences and what is planted in W1."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.directions.refusal_scores import log_odds
from persona_jax.engine.encode import encode_rows
from persona_jax.engine.next_tokens import next_logits
from persona_jax.geometry.coupling import derivative, finite_differences
from persona_jax.geometry.decoy import alignment_correlation, alignment_table
from persona_jax.geometry.gradients import Gradients, gradients, refusal_mask
from tests.parity import family_numbers
from tests.planted import world as planted
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors
from tests.reference.random_families import rows as family_rows
from tests.reference.random_llama import vocabulary

PROMPTS = [f"w{5 + n} w{20 + n} w9" + " w7" * (n % 4) for n in range(6)]
IDS = [7, 11]
BLOCKS = range(3)


@pytest.fixture(scope="module")
def found(tiny: Any) -> Gradients:
  return gradients(tiny.model, PROMPTS, tiny.direction(1), "all", IDS, read="all", batch=4)


def test_gradients_are_the_derivatives_of_forward(tiny: Any, found: Gradients) -> None:
  ds, r = [tiny.direction(k) for k in (2, 3)], tiny.direction(1)
  odds_RL, projection_RJL = found.on_log_odds(ds), found.on_projection(ds)
  for i, d in enumerate(ds):
    for block in BLOCKS:
      slope = derivative(tiny.model, PROMPTS, d, r, block, IDS, read="all")
      assert odds_RL[i, block] == pytest.approx(slope.log_odds, abs=1e-6)
      np.testing.assert_allclose(projection_RJL[i, :, block], slope.projection_J, atol=1e-6)


def test_gradients_are_central_differences(tiny: Any, found: Gradients) -> None:
  """In float32, with steps of 0.05 along a unit vector: within 1 % and 5e-5."""
  d, r, step = tiny.direction(2), tiny.direction(1), 0.05
  odds_L, projection_JL = found.on_log_odds([d])[0], found.on_projection([d])[0]
  for block in BLOCKS:
    table = finite_differences(
      tiny.model, PROMPTS, d, r, block, [step, -step], IDS, unit="unit"
    ).set_index(["outcome", "read", "coef"])["finite"]
    for key, slope in [(("log_odds", -1), odds_L[block])] + [
      (("projection", j), projection_JL[j, block]) for j in range(block, 3)
    ]:
      central = (table[*key, step] - table[*key, -step]) / (2 * step)
      assert central == pytest.approx(slope, rel=1e-2, abs=5e-5)


def test_a_projection_feels_no_block_above_it(found: Gradients) -> None:
  for j in BLOCKS:
    assert not found.projection_JLD[j, j + 1 :].any()
    assert found.projection_JLD[j, : j + 1].any(axis=-1).all()


def test_an_addition_moves_the_projection_at_its_own_block_by_the_cosine(
  tiny: Any, found: Gradients
) -> None:
  d, r = tiny.direction(2), tiny.direction(1)
  diagonal_L = found.on_projection([d])[0][BLOCKS, BLOCKS]
  np.testing.assert_allclose(diagonal_L, (d.unit_LD * r.unit_LD).sum(axis=1), atol=1e-6)


def test_base_outcomes_are_those_of_the_engine(tiny: Any, found: Gradients) -> None:
  z_NV = next_logits(tiny.model, encode_rows(tiny.model, PROMPTS, None))
  expected_P = log_odds(z_NV, np.flatnonzero(refusal_mask(tiny.model, IDS)))
  np.testing.assert_allclose(found.base_P, expected_P, atol=1e-5)
  reads = tiny.model.capture(PROMPTS, pj.Capture(reduce="last", bank=tiny.direction(1)))
  for j in BLOCKS:
    np.testing.assert_allclose(found.base_JP[j], reads["resid_post", j][:, 0], atol=1e-5)


def test_prompts_do_not_feel_their_batch(tiny: Any, found: Gradients) -> None:
  alone = gradients(tiny.model, PROMPTS[3:4], tiny.direction(1), [2, 0], IDS)
  np.testing.assert_allclose(alone.log_odds_PLD[0], found.log_odds_PLD[3, [2, 0]], atol=1e-5)
  assert alone.read == () and alone.projection_JLD.shape[0] == 0
  d = tiny.direction(2)
  np.testing.assert_allclose(
    found.on_log_odds_of_prompts([d], 2).mean(axis=1), found.on_log_odds([d])[:, 2], atol=1e-9
  )


def test_long_prompts_and_prompts_of_one_token(tiny: Any) -> None:
  prompts = [pj.Raw("w5 " * 150), pj.Raw("w9")]
  d, r = tiny.direction(2), tiny.direction(1)
  both = gradients(tiny.model, prompts, r, [1], IDS, read=[2])
  slope = derivative(tiny.model, prompts, d, r, 1, IDS, read=[2])
  assert both.on_log_odds([d])[0, 0] == pytest.approx(slope.log_odds, abs=1e-6)
  assert both.on_projection([d])[0, 0, 0] == pytest.approx(slope.projection_J[0], abs=1e-6)


def test_directions_of_another_site_are_added_and_read_there(tiny: Any) -> None:
  d, r = (pj.Direction(tiny.direction(k).vectors_SLD, "d", "mlp_out") for k in (2, 1))
  back = gradients(tiny.model, PROMPTS, r, [0, 1], IDS, read=[1, 2])
  for n, block in enumerate((0, 1)):
    slope = derivative(tiny.model, PROMPTS, d, r, block, IDS, read=[1, 2])
    assert back.on_log_odds([d])[0, n] == pytest.approx(slope.log_odds, abs=1e-6)
    np.testing.assert_allclose(back.on_projection([d])[0, :, n], slope.projection_J, atol=1e-6)
  with pytest.raises(ValueError, match="at site 'mlp_out'"):
    back.on_log_odds([tiny.direction(2)])


@pytest.mark.parametrize("name", ["gemma2, both caps", "qwen3, YaRN, sliding window"])
def test_caps_and_sliding_windows_are_differentiated_too(name: str, tmp_path: Path) -> None:
  config = CONFIGS[name]
  tensors = random_tensors(config, family_numbers.load()[name]["shapes"])
  write_checkpoint(tmp_path, config, tensors, vocabulary(config))
  model = pj.load(tmp_path, dtype="float32")
  shape = (1, model.arch.num_blocks, model.arch.width)
  rng = np.random.default_rng(0)
  d, r = (pj.Direction(rng.normal(size=shape), "d") for _ in range(2))
  prompts = [pj.Raw(" ".join(f"w{i}" for i in ids)) for ids in family_rows()]
  back = gradients(model, prompts, r, "all", IDS, read=[2])
  for block in range(2):
    slope = derivative(model, prompts, d, r, block, IDS, read=[2])
    assert back.on_log_odds([d])[0, block] == pytest.approx(slope.log_odds, abs=1e-5)
    np.testing.assert_allclose(back.on_projection([d])[0, :, block], slope.projection_J, atol=1e-5)


def test_linearity_is_1_for_small_doses_and_counts_the_unit(tiny: Any) -> None:
  d, r = tiny.direction(2, norm=4.0), tiny.direction(1)
  table = finite_differences(tiny.model, PROMPTS, d, r, 1, [0.01, 0.5], IDS, unit="raw")
  assert sorted(set(table["alpha"].round(6))) == [0.04, 2.0]
  small = table[(table["coef"] == 0.01) & (table["outcome"] == "projection")]
  np.testing.assert_allclose(small["linearity"], 1, atol=0.02)
  np.testing.assert_allclose(
    table["linearity"], table["finite"] / (table["alpha"] * table["slope"]), rtol=1e-12
  )
  own = table[table["read"] == 1]
  np.testing.assert_allclose(own["linearity"], 1, atol=1e-4)  # of the block itself at any dose


def test_exact_log_odds_do_not_saturate() -> None:
  z_NV = np.asarray([[0.0, 60.0, 0.0], [3.0, 1.0, 1.0]])
  found = log_odds(z_NV, [0])
  np.testing.assert_allclose(found, [-60, 2 - np.log(2)], rtol=1e-12)


def test_what_cannot_be_measured_is_refused(tiny: Any) -> None:
  r, answered = (
    tiny.direction(1),
    [
      {"role": "user", "content": "w5"},
      {"role": "assistant", "content": "w6"},
    ],
  )
  with pytest.raises(ValueError, match=r"prompts \[1\] end with an answer"):
    gradients(tiny.model, [PROMPTS[0], answered], r, "all", IDS)
  with pytest.raises(ValueError, match="no prompts"):
    gradients(tiny.model, [], r, "all", IDS)
  with pytest.raises(ValueError, match="refusal_ids"):
    refusal_mask(tiny.model, [101])
  with pytest.raises(ValueError, match="doses other than 0"):
    finite_differences(tiny.model, PROMPTS, r, r, 0, [0.0], IDS, unit="unit")


# ---- planted ------------------------------------------------------------------------------------


def everywhere(v_D: np.ndarray, concept: str) -> pj.Direction:
  return pj.Direction(np.broadcast_to(v_D, (1, planted.BLOCKS, len(v_D))), concept)


USERS = [planted.user_text(f"harm{i}", i) for i in (4, 9, 14, 19, 24, 29)]


@pytest.fixture(scope="module")
def w1(tmp_path_factory: pytest.TempPathFactory) -> tuple[planted.World, pj.Model]:
  world = planted.build(planted.W1)
  return world, pj.load(world.write(tmp_path_factory.mktemp("coupling")), dtype="float32")


def test_coupling_to_the_projection_is_the_planted_alignment(
  w1: tuple[planted.World, pj.Model],
) -> None:
  world, model = w1
  traits = [everywhere(v, t) for v, t in zip(world.trait_TD, planted.TRAITS, strict=True)]
  r = everywhere(world.refusal_D, "refusal")
  found = gradients(model, USERS, r, range(4), world.ids("sorry"), read=range(1, 6))
  for j, read in enumerate(found.read):
    for n, block in enumerate(found.blocks):
      if read >= block:
        np.testing.assert_allclose(
          found.on_projection(traits)[:, j, n], planted.W1.alignment, atol=1e-4
        )


def blind(world: planted.World, model: pj.Model) -> np.ndarray:
  """Finds a unit vector that no weight reads and no last token has: it can change nothing."""
  weights = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "lm_head.weight")
  reading = [x for name, x in world.tensors.items() if name.endswith(weights)]
  reads = model.capture(USERS, pj.Capture(reduce="last"))
  rows = np.concatenate([*reading, *reads.values()])
  _, s, basis = np.linalg.svd(rows, full_matrices=True)
  assert s[-1] < 1e-5
  return basis[-1]


def test_a_decoy_aligns_and_is_not_coupled(w1: tuple[planted.World, pj.Model]) -> None:
  """World N3 by hand: the refusal direction that is read holds a part that nothing reads."""
  world, model = w1
  decoy_D = blind(world, model)
  r = everywhere(0.89 * world.refusal_D + 0.456 * decoy_D, "refusal")
  c_D = world.trait_TD[1]
  ds = [everywhere(c_D, "C"), everywhere(decoy_D, "decoy")]
  null = pj.controls(ds[0], "R-iso", n=64)["R-iso"]
  back = gradients(model, USERS, r, [2], world.ids("sorry"))
  table = alignment_table(ds, r, back, null).set_index("direction")
  assert table.loc["C", "verdict"] == "aligned and coupled"
  assert table.loc["decoy", "verdict"] == "cosine does not explain"
  assert table.loc["decoy", "cos"] == pytest.approx(0.456, abs=1e-3)
  assert table.loc["decoy", "coupling"] == pytest.approx(0, abs=1e-4)
  assert table.loc["C", "low"] < table.loc["C", "coupling"] < table.loc["C", "high"] < 0


def test_verdicts_follow_both_bands_and_correlation_is_over_directions() -> None:
  rng = np.random.default_rng(0)
  width = 40
  gradient_D = np.zeros(width)
  gradient_D[0] = 1.0
  r_D = np.zeros(width)
  r_D[1] = 1.0

  def one(v_D: np.ndarray, name: str) -> pj.Direction:
    return pj.Direction(np.asarray(v_D)[None, None], name)

  g_PLD = np.float32(np.broadcast_to(gradient_D, (3, 1, width)))
  back = Gradients(
    (0,), (), "resid_post", g_PLD, np.zeros((0, 1, width)), np.zeros(3), np.zeros((0, 3)), ""
  )
  eye = np.eye(width)
  ds = [one(eye[0] + eye[1], "both"), one(eye[1], "cosine"), one(eye[0], "coupling")]
  ds += [one(eye[5], "none"), one(np.zeros(width), "empty")]
  null = [one(rng.normal(size=width), f"{k}") for k in range(80)]
  table = alignment_table(ds, one(r_D, "r"), back, null)
  assert table["verdict"].tolist() == [
    "aligned and coupled",
    "cosine does not explain",
    "coupled, not aligned",
    "neither",
    "undefined",
  ]
  points = [one(rng.normal(size=width), f"{k}") for k in range(30)]
  correlation = alignment_correlation(alignment_table(points, one(r_D, "r"), back, null)).iloc[0]
  assert correlation["n"] == 30 and correlation["low"] < 0 < correlation["high"]
  same = alignment_correlation(alignment_table(points, one(gradient_D, "r"), back, null)).iloc[0]
  assert same["rho"] == pytest.approx(1)
  with pytest.raises(ValueError, match="null= is empty"):
    alignment_table(ds, one(r_D, "r"), back, [])
