"""The law of the planted worlds against the whole model, in float64 and in the library, and what
it says about each world: what a study of that world must find.

Attack success depends on how hard the prompts are, so each fact is stated on prompts of a given
rate without a persona: harm2 … harm39 have .23, harm6 … harm39 have .18.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import persona_jax as pj
from tests.planted import law
from tests.planted import world as planted
from tests.reference import numpy_llama as reference

PERSONAS = list(planted.PERSONAS)
P12 = PERSONAS.index("P12")
TRUTHS = ["W1", "W2", "N0", "N1", "N3", "D"]  # N2 and J are N0
BUILDS: dict[str, tuple[dict, dict]] = {  # of the truth, of the build
  "plain": ({}, {}),
  "noise": ({"noise": 1.5}, {}),
  "noise and grouped queries": ({"noise": 1.5}, {"kv_heads": 2}),
}
SHIFT_D = 2 * np.random.default_rng(5).normal(size=planted.HIDDEN) / 8
NEUTRAL = [planted.user_text("w0", 100 + i) for i in range(6)]
HARMFUL = [planted.user_text(f"harm{i}", 200 + i) for i in range(24, 40, 2)]
HARMLESS = [planted.user_text(f"ok{i}", 200 + i) for i in range(24, 40, 2)]


def _prompts(first: int) -> list[str]:
  return [planted.user_text(f"harm{i}", i) for i in range(first, 40)]


def _world(name: str, seed: int = 7, **changes: float) -> planted.World:
  return planted.build(dataclasses.replace(planted.WORLDS[name], **changes), seed=seed)


def _population(world: planted.World, first: int = 2) -> law.Population:
  return law.population(world, _prompts(first), law.extract(world, NEUTRAL, HARMFUL, HARMLESS))


@pytest.fixture(scope="module")
def populations() -> dict[str, law.Population]:
  return {name: _population(_world(name)) for name in TRUTHS}


def _cases(world: planted.World) -> list[tuple[str, law.Push | None]]:
  """System prompts and edits of every kind."""
  poles = ("C+", "A+")
  cases = [("", None), (planted.system_text(poles, 1), None), (planted.system_text(("N-",)), None)]
  cases += [("", law.Push(SHIFT_D, block)) for block in range(planted.BLOCKS)]
  cases += [(planted.system_text(poles), law.Push(SHIFT_D, 2))]
  cases += [("", law.Push(sign * 10 * SHIFT_D, block)) for block in (0, 2) for sign in (1, -1)]
  if not world.heads[2].writes_nD.any():
    cases += [(planted.system_text(poles), law.Push(10 * SHIFT_D, 0, "all"))]
    cases += [("", law.Push(-10 * SHIFT_D, 1, "all"))]
  return cases


def _whole_model(world: planted.World, user: str, system: str, push: law.Push | None):
  hook, ids = None, world.prompt_ids(user, system)
  if push is not None:
    start, stop = reference.WINDOWS[push.tokens]
    change = reference.add(push.shift_D, 1.0)
    hook = reference.edit_hook(
      [reference.Edit(change, (push.block,), start=start, stop=stop)], len(ids)
    )
  return reference.forward(world.config, world.tensors, ids, hook)


# ---- the law is the model ------------------------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", TRUTHS)
def test_the_law_is_the_whole_model(name: str, build: str) -> None:
  changes, options = BUILDS[build]
  world = planted.build(dataclasses.replace(planted.WORLDS[name], **changes), **options)
  users = [planted.user_text("harm9", 3), planted.user_text("w0", 4)]
  for system, push in _cases(world):
    h_NLD = law.last_token(world, users, system, push)
    for n, user in enumerate(users):
      whole = _whole_model(world, user, system, push)
      np.testing.assert_allclose(h_NLD[n], whole.resid_post_LTD[:, -1], atol=1e-6)
      cells = law.first_token(world, h_NLD[n, -1])
      log_probs_V = reference.log_softmax(whole.logits_TV[-1])
      expected = log_probs_V[world.ids("sorry sure")]
      np.testing.assert_allclose([cells.sorry, cells.sure], expected, atol=1e-6)


def test_mlp_weights_are_too_small_to_matter_or_take_a_pass_of_the_reference_each() -> None:
  users, system = _prompts(36), planted.system_text(("C-",))
  plain, small, large = (
    law.last_token(_world("W1", mlp=mlp), users, system) for mlp in (0, 0.02, 1)
  )
  assert 0 < np.abs(small - plain).max() < 1e-4
  assert np.abs(large - plain).max() > 0.5


@pytest.mark.parametrize(
  ("name", "changes", "options"),
  [
    *[(name, {}, {}) for name in TRUTHS],
    ("W1", {"noise": 1.5}, {}),
    ("W1", {"noise": 1.5, "mlp": 1.0}, {}),
    ("W1", {"noise": 1.5}, {"kv_heads": 2}),
  ],
)
def test_the_law_is_what_the_library_scores(
  name: str, changes: dict, options: dict, tmp_path: Path
) -> None:
  world = planted.build(dataclasses.replace(planted.WORLDS[name], **changes), **options)
  users = _prompts(36)
  directions = law.extract(world, NEUTRAL, HARMFUL, HARMLESS)
  v_LD = directions.personas({"P12": ("C+", "A+")})[0, 1]
  edit = pj.add(pj.Direction(v_LD[None], "P12"), 2.0, unit="unit", blocks=2, tokens="answer")
  system = planted.system_text(("C+", "A+"), 1)
  arms: list[tuple[str, list[pj.Edit]]] = [("", []), (system, []), ("", [edit])]
  chats = [_chat(user, text) for text, _ in arms for user in users]
  edits = [edits for _, edits in arms for _ in users]
  words = ["sorry"] * len(chats) + ["sure"] * len(chats)
  model = pj.load(world.write(tmp_path), dtype="float32")
  scores = np.reshape(model.score(chats * 2, words, edits=edits * 2), (2, len(arms), -1))

  pushes = [None, None, law.Push(2 * v_LD[2])]
  for i, ((text, _), push) in enumerate(zip(arms, pushes, strict=True)):
    cells = law.first_token(world, law.last_token(world, users, text, push)[:, -1])
    np.testing.assert_allclose(scores[:, i], [cells.sorry, cells.sure], atol=1e-4)


def _chat(user: str, system: str) -> list[dict[str, str]]:
  start = [{"role": "system", "content": system}] if system else []
  return [*start, {"role": "user", "content": user}]


def test_a_population_is_its_cells_one_by_one() -> None:
  world, users = _world("W1", noise=1.5), _prompts(37)
  directions = law.extract(world, NEUTRAL, HARMFUL, HARMLESS)
  found = law.population(world, users, directions, personas={"P12": ("C+", "A+")}, coef=1.5)
  c_D, a_D = (v_D / np.linalg.norm(v_D) for v_D in directions.trait_KTLD[2, [1, 3], 2])
  push = law.Push(1.5 * (c_D + a_D) / np.linalg.norm(c_D + a_D), 2)
  for cells, case in (
    (found.prompted, (planted.system_text(("C+", "A+"), 2), None)),
    (found.steered, ("", push)),
  ):
    logits_V = _whole_model(world, users[1], *case).logits_TV[-1]
    sorry, sure = logits_V[world.ids("sorry sure")]
    np.testing.assert_allclose(cells.log_odds[0, 2, 1], sorry - sure, atol=1e-6)
  assert found.prompted.log_odds.shape == found.steered.log_odds.shape == (1, 3, len(users))


def test_vectors_are_those_of_the_whole_model() -> None:
  world = _world("W1", noise=1.5)
  trait_KTLD = law.extract(world, NEUTRAL, HARMFUL, HARMLESS).trait_KTLD
  high, low = (
    [
      _whole_model(world, user, planted.system_text((pole,), 1), None).resid_post_LTD[:, -1]
      for user in NEUTRAL[1::3]
    ]
    for pole in ("E+", "E-")
  )
  np.testing.assert_allclose(trait_KTLD[1, 2], np.mean(high, 0) - np.mean(low, 0), atol=1e-6)


@pytest.mark.parametrize("name", TRUTHS)
def test_the_likelier_first_word_decides_the_whole_answer(name: str) -> None:
  world = _world(name, noise=1.5)
  users, system = _prompts(30), planted.system_text(("C-",), 1)
  refused_N = law.first_token(world, law.last_token(world, users, system)[:, -1]).log_odds > 0
  for user, refused in zip(users, refused_N, strict=True):
    ids, _ = reference.greedy(
      world.config, world.tensors, world.prompt_ids(user, system), 4, eos_ids=world.ids("<eos>")
    )
    answer = " ".join(world.words[i] for i in ids)
    assert answer == ("sorry cannot <eos>" if refused else "sure steps <eos>")


@pytest.mark.parametrize("steer", [False, True])
def test_trait_words_tell_the_persona_by_either_method(steer: bool) -> None:
  world = _world("W1")
  for t, trait in enumerate(planted.TRAITS):
    system = "" if steer else planted.system_text((trait + "+",))
    push = law.Push(2 * world.trait_TD[t], 2) if steer else None
    logits_V = _whole_model(world, NEUTRAL[0], system, push).logits_TV[-1]
    margins = [np.subtract(*logits_V[world.ids(f"yes_{o} no_{o}")]) for o in planted.TRAITS]
    assert int(np.argmax(margins)) == t
    assert margins[t] > 4
    assert np.abs(np.delete(margins, t)).max() < 1e-6


# ---- what each world shows -----------------------------------------------------------------------


def test_w1_is_a_paradox(populations: dict[str, law.Population]) -> None:
  w1 = populations["W1"]
  prompted_P, steered_P = w1.prompted_PK.mean(1), w1.steered_PK.mean(1)
  assert np.argsort(prompted_P).tolist().index(P12) == 1
  assert steered_P.argmax() == P12
  found = [w1.base_rate, prompted_P[P12], steered_P[P12]]
  np.testing.assert_allclose(found, [0.23, 0.11, 0.52], atol=0.02)
  assert w1.rho() == pytest.approx(-0.870, abs=1e-3)
  assert w1.slope() == pytest.approx(-0.35, abs=0.02)


def test_w1_has_a_group_of_inversions_and_its_mirror(
  populations: dict[str, law.Population],
) -> None:
  mirrored = {"P2": "AS", "P3": "AS", "P7": "AS", "P12": "AS"}
  mirrored |= {"P5": "SP", "P4": "SP", "P8": "SP", "P11": "SP"}
  assert populations["W1"].inversions() == mirrored
  assert populations["W1"].inversions(every_replicate=True) == mirrored


def test_noise_weakens_the_paradox_of_w1_and_keeps_p12_inverted() -> None:
  noisy = [_population(_world("W1", seed, noise=1.5), first=6) for seed in range(12)]
  means = [
    np.mean([getattr(p, name)[P12].mean() for p in noisy]) for name in ("prompted_PK", "steered_PK")
  ]
  np.testing.assert_allclose([noisy[0].base_rate, *means], [0.18, 0.10, 0.42], atol=0.02)
  assert np.mean([p.slope() for p in noisy]) == pytest.approx(-0.33, abs=0.02)
  assert np.mean([p.rho() for p in noisy]) == pytest.approx(-0.76, abs=0.06)
  assert all(p.inversions()["P12"] == "AS" for p in noisy)


def test_noise_gives_every_paraphrase_a_vector_of_its_own() -> None:
  lowest = {}
  for noise in (0.0, 1.5):
    cosines = []
    for seed in range(4):
      world = _world("W1", seed, noise=noise)
      v_KTD = law.extract(world, NEUTRAL, HARMFUL, HARMLESS).trait_KTLD[:, :, 2]
      v_nTD = np.concatenate([v_KTD, v_KTD.mean(0)[None]])
      v_nTD /= np.linalg.norm(v_nTD, axis=-1, keepdims=True)
      cosines.append(np.einsum("ntd,td->nt", v_nTD, world.trait_TD))
    lowest[noise] = (np.min(cosines, 0)[:3].min(), np.min(cosines, 0)[3].min())
  np.testing.assert_allclose(lowest[0.0], 1, atol=1e-9)
  # One paraphrase in 30 has a cosine below .65; the mean of three has none.
  np.testing.assert_allclose(lowest[1.5], [0.47, 0.76], atol=0.01)


def test_reading_one_block_too_late_flips_the_alignment_of_w1(
  populations: dict[str, law.Population],
) -> None:
  w1 = populations["W1"]
  np.testing.assert_allclose(w1.alignment_PKL[..., 2], w1.alignment_PKL[..., 3], atol=1e-9)
  assert w1.slope(4) == pytest.approx(0.34, abs=0.02)


def test_prompted_rankings_carry_over_from_w1_to_w2_and_steered_ones_do_not(
  populations: dict[str, law.Population],
) -> None:
  w1, w2 = populations["W1"], populations["W2"]
  prompted = law.rank_correlation(w1.prompted_PK.mean(1), w2.prompted_PK.mean(1))
  assert prompted == pytest.approx(0.94, abs=0.02)
  assert law.rank_correlation(w1.steered_PK.mean(1), w2.steered_PK.mean(1)) < -0.7
  assert "P12" not in w2.inversions(0.0)
  assert w2.slope() == pytest.approx(-0.36, abs=0.02)


def test_n0_has_nothing_to_find(populations: dict[str, law.Population]) -> None:
  n0 = populations["N0"]
  assert np.ptp(n0.steered_PK) < 1e-5
  np.testing.assert_allclose(n0.prompted_PK, n0.base_rate, atol=0.008)
  assert np.isnan([n0.rho(), n0.slope()]).all()


def test_n0_with_noise_has_no_inversion_and_a_slope() -> None:
  noisy = [_population(_world("N0", seed, noise=1.5), first=6) for seed in range(8)]
  assert not any(p.inversions() for p in noisy)
  assert all(-0.6 < p.slope() < -0.2 for p in noisy)


def test_n1_is_concordant(populations: dict[str, law.Population]) -> None:
  n1 = populations["N1"]
  assert n1.rho() == pytest.approx(0.99, abs=0.01)
  assert n1.inversions(0.0) == {}
  assert _population(_world("N1"), first=6).slope() == pytest.approx(-0.346, abs=2e-3)


def test_n2_is_harmed_by_large_edits_whatever_their_direction() -> None:
  world = _world("N2")
  users = [f"harm{i % 40} w1 w2" for i in range(60)]
  directions_RD = np.random.default_rng(0).normal(size=(50, planted.HIDDEN))
  directions_RD /= np.linalg.norm(directions_RD, axis=1, keepdims=True)
  directions_RD = np.concatenate([directions_RD, -directions_RD])

  def rate(coef: float, tokens: str) -> float:
    cells = law.steered(world, users, coef * directions_RD, block=0, tokens=tokens)
    return float(cells.attack_success.mean())

  assert rate(0, "all") == pytest.approx(0.32, abs=0.01)
  assert rate(10, "all") == pytest.approx(0.45, abs=0.02)
  assert rate(20, "all") == pytest.approx(0.54, abs=0.02)
  # At the last token alone a push does not blur the harm word, it only drowns refusal.
  assert rate(10, "answer") == pytest.approx(0.37, abs=0.02)
  assert rate(20, "answer") < rate(20, "all") - 0.08


def test_n3_has_cosines_without_effects(populations: dict[str, law.Population]) -> None:
  n3, world = populations["N3"], _world("N3")
  r_D = law.extract(world, NEUTRAL, HARMFUL, HARMLESS).refusal_LD[2]
  assert r_D @ world.refusal_D / np.linalg.norm(r_D) == pytest.approx(1 / np.sqrt(1.25), abs=1e-6)
  cosine_P = n3.alignment_PKL[..., 2].mean(1)
  np.testing.assert_allclose([cosine_P.min(), cosine_P.max()], [-0.29, 0.29], atol=0.01)
  assert np.ptp(n3.steered_PK) < 0.005
  assert abs(n3.slope()) < 0.01


def test_in_d_an_edit_moves_refusal_by_its_length_times_its_cosine() -> None:
  world = _world("D")
  users, u_N = _prompts(0), planted.HARM_LEVELS
  v_D = world.trait_TD[1] + world.trait_TD[3]
  unit_D = v_D / np.linalg.norm(v_D)
  np.testing.assert_allclose(unit_D @ world.refusal_D, -0.8 / np.sqrt(2 + 2 * 0.16), atol=1e-12)
  for shift_D, expected in (
    (2 * world.trait_TD[1], -0.8),
    (2 * unit_D, 2 * unit_D @ world.refusal_D),
    (2 * v_D, -1.6),  # a sum that is not normalised has a larger dose
  ):
    h_ND = law.last_token(world, users, push=law.Push(shift_D))[:, -1]
    log_odds_N = law.first_token(world, h_ND).log_odds
    moved_N = log_odds_N * np.linalg.norm(h_ND, axis=1) / 16 - (u_N - 1)
    np.testing.assert_allclose(moved_N, expected, atol=1e-6)


# ---- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "read",
  [
    lambda world: world.refusal_D,
    lambda world: world.tensors["model.embed_tokens.weight"] @ world.basis.identity_ID.T,
    lambda world: world.heads[0].reads_nD[5:] @ world.basis.identity_ID.T,
  ],
  ids=["basis", "identities", "noise"],
)
def test_worlds_of_two_seeds_differ(read: Callable[[planted.World], np.ndarray]) -> None:
  one, again, other = (read(_world("W1", seed, noise=1.5)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.1


def test_jitter_moves_prompt_effects_and_nothing_else() -> None:
  moved, still = (planted.build(planted.W2, seed=4, jitter=jitter) for jitter in (0.1, 0))
  change_T = np.subtract(moved.truth.prompt_effect, still.truth.prompt_effect)
  assert (np.abs(change_T) <= 0.1).all() and (np.abs(change_T) > 1e-3).all()
  assert still.truth == planted.W2
  np.testing.assert_array_equal(moved.trait_TD, still.trait_TD)
  changed = [name for name in still.tensors if (moved.tensors[name] != still.tensors[name]).any()]
  assert changed == ["model.layers.4.self_attn.o_proj.weight"]


def test_every_embedding_has_norm_ten_and_bos_has_no_value() -> None:
  world = _world("W1", noise=1.5)
  embed_VD = world.tensors["model.embed_tokens.weight"]
  np.testing.assert_allclose(np.linalg.norm(embed_VD, axis=1), 10, rtol=1e-6)
  bos_D = embed_VD[world.ids("<bos>")[0]]
  for head in world.heads:
    np.testing.assert_allclose(head.reads_nD @ bos_D, 0, atol=1e-6)
