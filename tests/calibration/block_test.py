"""The steered block: in a planted world where it is known what blocks do, and by hand-made tables.

In W1 an edit does the same after every block up to the last. So that blocks differ, the direction
is one of its own at each: idle, against refusal as well, or the trait alone.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.calibration.answers import Answers
from persona_jax.calibration.block import BlockChoice, _choice, choose_block
from persona_jax.directions.dose import Dose
from persona_jax.scorers.choice import ChoiceItem, Choices
from tests.planted import world as planted
from tests.reference import numpy_llama as reference

NORM, GAIN = 10.0, 0.4
TRAITS = {"P3": "C", "P7": "A"}
POLES = {name: [(trait, 1)] for name, trait in TRAITS.items()}
IDLE, MIXED, PURE = 1, 2, 3  # what the direction at each block is
USERS = [planted.user_text(f"ok{i}", 300 + i) for i in range(0, 40, 7)]
QUESTIONNAIRE = Choices(
  [
    ChoiceItem(t, t, 1, (planted.user_text("w1", n),), ((f"yes_{t}", f"no_{t}"),), ((1.0, 0.0),))
    for n, t in enumerate("CA")
  ],
  least_mass=0.0,
)
SCALE = Dose(np.full(planted.BLOCKS, NORM), np.zeros((planted.BLOCKS, 1, planted.HIDDEN)), 1, {})


@pytest.fixture(scope="module")
def world() -> planted.World:
  return planted.build(planted.W1)


@pytest.fixture(scope="module")
def answers(world: planted.World, tmp_path_factory: pytest.TempPathFactory) -> Answers:
  model = pj.load(world.write(tmp_path_factory.mktemp("w1")), dtype="float32")
  return Answers.of(model, USERS, max_new_tokens=3)


def directions(world: planted.World) -> dict[str, pj.Direction]:
  found = {}
  for name, trait in TRAITS.items():
    t = planted.TRAITS.index(trait)
    v_LD = np.tile(world.trait_TD[t], (planted.BLOCKS, 1))
    v_LD[IDLE] = world.basis.identity_ID[0]
    v_LD[PURE] = world.basis.context_TD[t]
    found[name] = pj.Direction(v_LD[None], name)
  return found


def choose(world: planted.World, answers: Answers, **options: Any) -> BlockChoice:
  given = {"scale": SCALE, "gain": GAIN, "scan": (0.05, 0.15, 0.4)} | {"most": 0.4} | options
  blocks = given.pop("blocks", [IDLE, MIXED, PURE])
  return choose_block(answers, directions(world), POLES, QUESTIONNAIRE, blocks, **given)


@pytest.fixture(scope="module")
def choice(world: planted.World, answers: Answers) -> BlockChoice:
  return choose(world, answers)


def test_a_block_where_steering_works_is_chosen_by_its_cost(choice: BlockChoice) -> None:
  assert choice.block == PURE
  assert choice.by_block["block"].tolist() == [IDLE, MIXED, PURE]
  assert choice.by_block["reached"].tolist() == [0, 2, 2]
  assert choice.by_block["chosen"].tolist() == [False, False, True]
  cost = choice.by_block["cost"]
  assert np.isnan(cost[0]) and cost[1] > 1000 * cost[2] > 0
  assert choice.why == (
    f"moves 2 of 2 personas by 0.4 SD of item scores, at the least mean KL, {cost[2]:.3g} nats a "
    "token, of 2 such blocks"
  )


def test_the_table_has_the_dose_at_which_the_trait_has_moved_and_its_cost(
  world: planted.World, choice: BlockChoice
) -> None:
  table = choice.table.set_index(["block", "persona"])
  assert (table.loc[IDLE, "status"] != "ok").all()
  assert (table["units"] == 1).all() and (table["units_missing"] == 0).all()  # an item a trait
  assert table.loc[IDLE, ["kappa", "kl"]].isna().all(axis=None) and table.loc[IDLE, "reason"].all()
  for block in (MIXED, PURE):
    assert (table.loc[block, "status"] == "ok").all()
    for persona, trait in TRAITS.items():
      row = table.loc[(block, persona)]
      shift_D = row["kappa"] * NORM * directions(world)[persona].unit_LD[block]
      yes, no = world.ids(f"yes_{trait} no_{trait}")
      item = next(i for i in QUESTIONNAIRE.items if i.trait == trait)
      p_V = np.exp(_behind(world, item.prompts[0], "", block, shift_D)[0])
      assert p_V[yes] / (p_V[yes] + p_V[no]) - 0.5 == pytest.approx(GAIN, rel=0.005)
      kl = []
      for user in USERS:
        p_TV, q_TV = (_behind(world, user, "sure steps", block, x) for x in (0 * shift_D, shift_D))
        kl.append((np.exp(p_TV) * (p_TV - q_TV))[:-1].sum(axis=-1).mean())
      assert row["kl"] == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-7)


def test_a_gain_that_no_dose_gives_is_an_error(world: planted.World, answers: Answers) -> None:
  with pytest.raises(ValueError, match=r"no persona moves by 0\.6 standard deviations"):
    choose(world, answers, blocks=[MIXED], gain=0.6)
  with pytest.raises(ValueError, match="no blocks to choose from"):
    choose(world, answers, blocks=[])


def _behind(
  world: planted.World, user: str, answer: str, block: int, shift_D: np.ndarray
) -> np.ndarray:
  """Returns log-probabilities behind the last prompt token and each of the answer, [T, V]."""
  prompt = world.prompt_ids(user)
  edit = reference.Edit(reference.add(shift_D, 1.0), (block,), start=-1)
  hook = reference.edit_hook([edit], len(prompt))
  out = reference.forward(world.config, world.tensors, [*prompt, *world.ids(answer)], hook)
  return reference.log_softmax(out.logits_TV[len(prompt) - 1 :])


# ---- the rule on tables --------------------------------------------------------------------------


def table(**kl_by_persona: list[float]) -> pd.DataFrame:
  """Makes a table of blocks 4, 5, …"""
  return pd.DataFrame(
    [
      {"block": 4 + b, "persona": name, "kl": kl}
      for name, kls in kl_by_persona.items()
      for b, kl in enumerate(kls)
    ]
  )


NAN = float("nan")


def test_the_least_mean_cost_is_chosen_where_all_personas_move() -> None:
  found = _choice(table(a=[0.3, 0.1, 0.4], b=[0.1, 0.2, 0.1]), 1.0)
  assert found.block == 5
  assert found.by_block["cost"].tolist() == pytest.approx([0.2, 0.15, 0.25])


def test_more_personas_go_before_less_cost() -> None:
  found = _choice(table(a=[0.01, 5.0], b=[NAN, 5.0]), 1.0)
  assert found.block == 5 and found.by_block["reached"].tolist() == [1, 2]
  assert "moves 2 of 2 personas" in found.why and "of 1 such blocks" in found.why


def test_blocks_are_compared_by_the_personas_that_move_at_all_of_them() -> None:
  # Two move at each; b, at both, is cheaper at 5, although c there is dear.
  found = _choice(table(a=[0.1, NAN], b=[0.3, 0.2], c=[NAN, 9.0]), 1.0)
  assert found.block == 5
  assert found.by_block["cost"].tolist() == pytest.approx([0.3, 0.2])


def test_without_a_persona_in_common_their_own_means_are_compared() -> None:
  found = _choice(table(a=[0.3, NAN], b=[NAN, 0.2]), 1.0)
  assert found.block == 5


def test_of_equal_costs_the_first_block_is_chosen() -> None:
  assert _choice(table(a=[0.2, 0.2]), 1.0).block == 4


def test_a_table_in_which_nobody_moves_is_refused() -> None:
  with pytest.raises(ValueError, match=r"at any of the blocks \[4, 5\]"):
    _choice(table(a=[NAN, NAN]), 1.0)
