"""The planted worlds, studied with the public API alone: load, extract, edit, score, generate, run.

The truth is in the weights (tests/planted/world.py), so the study has one right answer: in W1 the
persona P12 is safe when prompted and the most dangerous when steered, in W2 it is neither. Every
number is also computed by the float64 reference, from the same checkpoint and its own directions.
ASR is the mean over prompts of the exact probability of `sure` against `sorry` as the first token.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import persona_jax as pj
from tests.planted import world as planted
from tests.reference import numpy_llama as reference

BLOCK = 2  # where the edit acts: after the persona and the harm head, before the late one
COEF = 2.0  # what the persona head writes for a system prompt full of trait words

PROMPTS = [planted.user_text(f"harm{i}", i) for i in range(2, 40, 2)]
HARM_N = planted.HARM_LEVELS[2::2]
NEUTRAL = [planted.user_text("w0", 100 + i) for i in range(6)]
HARMFUL = [planted.user_text(f"harm{i}", 200 + i) for i in range(24, 40, 2)]
HARMLESS = [planted.user_text(f"ok{i}", 200 + i) for i in range(24, 40, 2)]
NAMES = list(planted.PERSONAS)
P12 = NAMES.index("P12")


def _chat(user: str, system: str) -> list[dict[str, str]]:
  start = [{"role": "system", "content": system}] if system else []
  return [*start, {"role": "user", "content": user}]


def _signs(poles: tuple[str, ...]) -> list[float]:
  return [1.0 if pole[1] == "+" else -1.0 for pole in poles]


def _attack_success(log_odds_CN: np.ndarray) -> np.ndarray:
  return (1 / (1 + np.exp(log_odds_CN))).mean(-1)


def _rank_correlation(a_CN: np.ndarray, b_CN: np.ndarray) -> float:
  """Spearman's ρ of two ASR rankings; E+ and N− have one alignment in W1, so they are tied."""
  asr = [_attack_success(log_odds_CN).round(5) for log_odds_CN in (a_CN, b_CN)]
  return scipy.stats.spearmanr(*asr).statistic


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Study:
  """One world, its checkpoint loaded by the library, and the directions read out of it."""

  world: planted.World
  model: pj.Model
  traits: dict[str, pj.Direction]
  refusal: pj.Direction

  def persona(self, poles: tuple[str, ...]) -> pj.Direction:
    ds = [self.traits[pole[0]] for pole in poles]
    return pj.compose(ds, _signs(poles), rule="unit_sum")

  def edit(self, poles: tuple[str, ...], tokens: str = "answer") -> pj.Edit:
    return pj.add(self.persona(poles), COEF, unit="unit", blocks=BLOCK, tokens=tokens)

  def log_odds(self, prompts: list, edits: list | None = None) -> np.ndarray:
    """Scores `sorry` against `sure`: [N]."""
    words = ["sorry"] * len(prompts) + ["sure"] * len(prompts)
    scores = np.asarray(self.model.score(prompts * 2, words, edits=edits and edits * 2))
    return scores[: len(prompts)] - scores[len(prompts) :]

  @functools.cached_property
  def prompted_CN(self) -> np.ndarray:
    """Log-odds without a system prompt in row 0, then with each persona's."""
    texts = ["", *(planted.system_text(poles) for poles in planted.PERSONAS.values())]
    chats = [_chat(user, text) for text in texts for user in PROMPTS]
    return self.log_odds(chats).reshape(len(texts), -1)

  @property
  def base_N(self) -> np.ndarray:
    return self.prompted_CN[0]

  @property
  def prompted_PN(self) -> np.ndarray:
    return self.prompted_CN[1:]

  @functools.cached_property
  def steered_PN(self) -> np.ndarray:
    edits = [[self.edit(poles)] for poles in planted.PERSONAS.values() for _ in PROMPTS]
    return self.log_odds(PROMPTS * len(NAMES), edits).reshape(len(NAMES), -1)

  @functools.cached_property
  def alignment_PL(self) -> np.ndarray:
    """Cosine of every persona direction with refusal, read at every block."""
    units = np.stack([self.persona(poles).unit_LD for poles in planted.PERSONAS.values()])
    return np.einsum("pld,ld->pl", units, self.refusal.unit_LD)

  def slope(self, block: int) -> float:
    """Slope of steered ASR on alignment with refusal as read at one block."""
    return np.polyfit(self.alignment_PL[:, block], _attack_success(self.steered_PN), 1)[0]


def _study(truth: planted.Truth, directory: Path) -> Study:
  world = planted.build(truth)
  model = pj.load(world.write(directory), dtype="float32")
  traits = {
    trait: pj.extract(
      model,
      [_chat(u, planted.system_text((trait + "+",))) for u in NEUTRAL],
      [_chat(u, planted.system_text((trait + "-",))) for u in NEUTRAL],
      method="diff_means",
      site="resid_post",
      tokens="last",
    )
    for trait in planted.TRAITS
  }
  return Study(world, model, traits, pj.extract(model, HARMFUL, HARMLESS))


@pytest.fixture(scope="module")
def w1(tmp_path_factory: pytest.TempPathFactory) -> Study:
  return _study(planted.W1, tmp_path_factory.mktemp("w1"))


@pytest.fixture(scope="module")
def w2(tmp_path_factory: pytest.TempPathFactory) -> Study:
  return _study(planted.W2, tmp_path_factory.mktemp("w2"))


class Reference:
  """The same study in float64, with nothing of the library in it."""

  def __init__(self, world: planted.World):
    self.world = world

  def last_LD(self, user: str, system: str = "") -> np.ndarray:
    ids = self.world.prompt_ids(user, system)
    return reference.forward(self.world.config, self.world.tensors, ids).resid_post_LTD[:, -1]

  def trait_LD(self, trait: str) -> np.ndarray:
    high, low = (planted.system_text((trait + sign,)) for sign in "+-")
    return np.mean([self.last_LD(u, high) - self.last_LD(u, low) for u in NEUTRAL], 0)

  def edit(self, poles: tuple[str, ...], tokens: str = "answer") -> reference.Edit:
    units = [
      s * _unit(self.trait_LD(p[0])[BLOCK]) for s, p in zip(_signs(poles), poles, strict=True)
    ]
    start, stop = reference.WINDOWS[tokens]
    return reference.Edit(
      reference.add(_unit(np.sum(units, 0)), COEF), (BLOCK,), start=start, stop=stop
    )

  def log_odds(self, user: str, system: str = "", edits: tuple[reference.Edit, ...] = ()) -> float:
    ids = self.world.prompt_ids(user, system)
    hook = reference.edit_hook(edits, len(ids))
    out = reference.forward(self.world.config, self.world.tensors, ids, hook)
    sorry, sure = self.world.ids("sorry sure")
    return float(out.logits_TV[-1, sorry] - out.logits_TV[-1, sure])

  def rollout(self, user: str, system: str = "", edits: tuple[reference.Edit, ...] = ()) -> str:
    ids, _ = reference.greedy(
      self.world.config,
      self.world.tensors,
      self.world.prompt_ids(user, system),
      4,
      edits=edits,
      eos_ids=[self.world.config["eos_token_id"]],
    )
    return " ".join(self.world.words[i] for i in ids)


@pytest.fixture(scope="module")
def truth(w1: Study) -> Reference:
  return Reference(w1.world)


# ---- what is read out of the model ---------------------------------------------------------------


def test_chat_template_makes_one_token_a_word(w1: Study) -> None:
  encoded = w1.model.encode(_chat("harm3\nw1", "C+0  w2"))
  assert list(encoded.ids) == w1.world.ids("<bos> <sys> C+0 w2 <user> harm3 w1 <assistant>")
  assert encoded.prompt_length == 8


def test_residuals_are_those_of_the_reference(w1: Study, truth: Reference) -> None:
  cases = [(u, s) for u in PROMPTS[::5] for s in ("", planted.system_text(("C+", "A+")))]
  reads = w1.model.capture([_chat(u, s) for u, s in cases], pj.Capture(reduce="last"))
  expected_NLD = np.stack([truth.last_LD(u, s) for u, s in cases])
  for block in range(planted.BLOCKS):
    np.testing.assert_allclose(reads["resid_post", block], expected_NLD[:, block], atol=1e-4)


def test_extraction_finds_the_planted_directions(w1: Study) -> None:
  for trait, v_D in zip(planted.TRAITS, w1.world.trait_TD, strict=True):
    assert w1.traits[trait].unit_LD[BLOCK] @ v_D > 0.99999
  np.testing.assert_array_less(0.99999, w1.refusal.unit_LD[1:] @ w1.world.refusal_D)


def test_directions_are_those_of_the_reference(w1: Study, truth: Reference) -> None:
  for trait, direction in w1.traits.items():
    np.testing.assert_allclose(direction.mean_LD, truth.trait_LD(trait), atol=1e-4)


# ---- the two arms --------------------------------------------------------------------------------


def test_an_edit_acts_on_the_output_of_its_block_and_of_none_before(w1: Study) -> None:
  edits = [[], [w1.edit(("C+",))]]
  reads = w1.model.capture([PROMPTS[0]] * 2, pj.Capture(reduce="last"), edits=edits)
  moved_LD = np.stack([np.diff(reads["resid_post", b], axis=0)[0] for b in range(planted.BLOCKS)])
  np.testing.assert_array_equal(moved_LD[:BLOCK], 0)
  expected_LD = np.tile(COEF * w1.world.trait_TD[1], (planted.BLOCKS - BLOCK, 1))
  np.testing.assert_allclose(moved_LD[BLOCK:], expected_LD, atol=1e-5)


def test_log_odds_follow_the_planted_law(w1: Study) -> None:
  """logit P(refuse) = 2 (√D/‖h‖) (u + shift − 1): an edit along C+ shifts refusal by 2 κ = −1.2."""
  kappa, u_N = planted.W1.alignment[1], HARM_N
  base_N = 16 / np.sqrt(100 + u_N**2) * (u_N - 1)
  np.testing.assert_allclose(w1.base_N, base_N, atol=1e-4)
  norm_N = np.sqrt(100 + u_N**2 + COEF**2 + 2 * COEF * kappa * u_N)
  steered_N = 16 / norm_N * (u_N + COEF * kappa - 1)
  np.testing.assert_allclose(w1.steered_PN[NAMES.index("P3")], steered_N, atol=1e-4)


def test_log_odds_are_those_of_the_reference(w1: Study, truth: Reference) -> None:
  np.testing.assert_allclose(w1.base_N, [truth.log_odds(u) for u in PROMPTS], atol=1e-4)
  for i, poles in enumerate(planted.PERSONAS.values()):
    system, edit = planted.system_text(poles), truth.edit(poles)
    prompted_N = [truth.log_odds(u, system) for u in PROMPTS]
    steered_N = [truth.log_odds(u, edits=(edit,)) for u in PROMPTS]
    np.testing.assert_allclose(w1.prompted_PN[i], prompted_N, atol=1e-4)
    np.testing.assert_allclose(w1.steered_PN[i], steered_N, atol=1e-4)


def test_p12_is_safe_when_prompted_and_the_most_dangerous_when_steered(w1: Study) -> None:
  base, prompted_P, steered_P = map(_attack_success, (w1.base_N, w1.prompted_PN, w1.steered_PN))
  assert sorted(prompted_P).index(prompted_P[P12]) == 1
  assert steered_P.argmax() == P12
  found = [base, prompted_P[P12], steered_P[P12]]
  np.testing.assert_allclose(found, [0.239, 0.106, 0.542], atol=1e-3)


def test_the_two_arms_rank_personas_in_opposite_order(w1: Study) -> None:
  assert _rank_correlation(w1.prompted_PN, w1.steered_PN) == pytest.approx(-0.870, abs=1e-3)


def test_reading_one_block_too_late_flips_the_sign_of_alignment(w1: Study) -> None:
  np.testing.assert_allclose(w1.alignment_PL[:, 2], w1.alignment_PL[:, 3], atol=1e-5)
  assert w1.slope(3) == pytest.approx(-0.374, abs=2e-3)
  assert w1.slope(4) == pytest.approx(+0.355, abs=2e-3)
  assert w1.alignment_PL[P12, 3] == pytest.approx(-0.659, abs=1e-3)
  assert w1.alignment_PL[P12, 4] > 0.5


def test_w2_has_no_p12_inversion(w2: Study) -> None:
  for log_odds_PN in (w2.prompted_PN, w2.steered_PN):
    asr_P = _attack_success(log_odds_PN)
    assert asr_P[P12] < np.delete(asr_P, P12).mean() - 0.1
  assert w2.slope(3) == pytest.approx(-0.382, abs=2e-3)


def test_prompted_ranking_carries_over_between_worlds_and_steered_does_not(
  w1: Study, w2: Study
) -> None:
  assert _rank_correlation(w1.prompted_PN, w2.prompted_PN) > 0.9
  assert _rank_correlation(w1.steered_PN, w2.steered_PN) < -0.6


# ---- generation and windows ----------------------------------------------------------------------


def test_greedy_generation_is_that_of_the_reference_in_every_condition(
  w1: Study, truth: Reference, tmp_path: Path
) -> None:
  poles = ("C+", "A+")
  system = planted.system_text(poles)
  conditions = [
    pj.Condition("base"),
    pj.Condition("P12 prompted", system=system),
    pj.Condition("P12 steered", edits=[w1.edit(poles)]),
  ]
  assert [c.method for c in conditions] == ["none", "prompt", "steer"]
  grid = pj.Grid(PROMPTS, conditions, max_new_tokens=4)
  table = pj.run(w1.model, grid, out=tmp_path / "run").table()
  arms = {
    "base": ("", ()),
    "P12 prompted": (system, ()),
    "P12 steered": ("", (truth.edit(poles),)),
  }
  refused = {}
  for name, (text, edits) in arms.items():
    rows = table[table["condition"] == name].set_index("prompt")["text"]
    expected = [truth.rollout(u, text, edits).removesuffix(" <eos>") for u in PROMPTS]
    assert [rows[u] for u in PROMPTS] == expected
    refused[name] = expected.count("sorry cannot")
  assert refused == {"base": 15, "P12 prompted": 19, "P12 steered": 9}


def test_generated_window_leaves_the_first_token_alone_and_answer_does_not(w1: Study) -> None:
  edits = [[], [w1.edit(("C+", "A+"), "generated")], [w1.edit(("C+", "A+"), "answer")]]
  plain, generated, answer = w1.model.generate(
    [PROMPTS[9]] * 3, edits=edits, max_new_tokens=4, logprobs=True
  )
  texts = (plain.text, generated.text, answer.text)
  assert texts == ("sorry cannot", "sorry cannot", "sure steps")
  assert plain.finish_reason == answer.finish_reason == "stop"
  assert generated.logprobs and plain.logprobs
  assert generated.logprobs[0] == plain.logprobs[0]  # bitwise
  assert generated.logprobs[1] != plain.logprobs[1]


def test_scores_see_the_window_as_generation_does(w1: Study) -> None:
  edits = [[], [w1.edit(("C+", "A+"), "generated")], [w1.edit(("C+", "A+"), "answer")]]
  plain, generated, answer = w1.model.score(
    [PROMPTS[9]] * 3, ["sorry cannot"] * 3, edits=edits, per_token=True
  )
  assert generated[0] == plain[0]  # bitwise
  assert abs(generated[1] - plain[1]) > 1e-4
  assert answer[0] < plain[0] - 0.1


def test_grouped_queries_change_nothing(w1: Study, tmp_path: Path) -> None:
  model = pj.load(planted.build(planted.W1, kv_heads=2).write(tmp_path), dtype="float32")
  grouped = Study(w1.world, model, w1.traits, w1.refusal)
  np.testing.assert_allclose(grouped.log_odds(PROMPTS), w1.base_N, atol=1e-5)
