"""Persona space against scikit-learn, the axis by its definition, floors and trajectories."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

import persona_jax as pj
from persona_jax.directions.space import assistant_axis, floors, mean_vectors, persona_space
from persona_jax.directions.trajectories import token_projections, turn_projections


def roles(count=12, width=20, planted=2, seed=0):
  """Role vectors that spread along few planted directions, and a little along all."""
  rng = np.random.default_rng(seed)
  plane = np.linalg.qr(rng.normal(size=(width, planted)))[0].T
  x_RD = rng.normal(size=(count, planted)) * [6.0, 3.0][:planted] @ plane
  x_RD = x_RD + 0.3 * rng.normal(size=(count, width)) + 5
  return [pj.Direction(np.stack([x, -x])[None], f"role {n}") for n, x in enumerate(x_RD)], x_RD


def test_components_are_those_of_scikit_learn_and_chance_is_told_apart():
  ds, x_RD = roles(40, 60)
  space = persona_space(ds, 0)
  theirs = PCA(n_components=39).fit(x_RD)
  np.testing.assert_allclose(space.explained_K, theirs.explained_variance_ratio_, rtol=1e-4)
  cos_K = (space.component_KD * theirs.components_).sum(axis=1)
  np.testing.assert_allclose(np.abs(cos_K), 1, atol=1e-3)
  np.testing.assert_allclose(
    space.project(x_RD), theirs.transform(x_RD) * np.sign(cos_K), atol=1e-2
  )
  np.testing.assert_allclose(space.project(x_RD), space.loading_RK, atol=1e-4)
  assert ((space.loading_RK**3).sum(axis=0) >= 0).all()
  assert space.num_real == 2
  noise = [pj.Direction(np.random.default_rng(n).normal(size=(1, 1, 20)), "n") for n in range(12)]
  assert persona_space(noise, 0).num_real <= 1
  again = persona_space(ds, 0)
  np.testing.assert_array_equal(space.null_K, again.null_K)
  assert space.cosine(ds[0]) == pytest.approx(space.component_KD @ ds[0].unit_LD[0], abs=1e-6)
  with pytest.raises(ValueError, match="2 roles"):
    persona_space(ds[:2], 0)
  with pytest.raises(ValueError, match="blocks 0 to 1"):
    persona_space(ds, 2)


CHATS = [
  [
    {"role": "user", "content": f"w{5 + n} w9"},
    {"role": "assistant", "content": " ".join(f"w{(7 * n + i) % 80 + 10}" for i in range(6))},
  ]
  for n in range(6)
]


def test_role_vectors_are_means_over_answers_and_the_axis_is_their_difference(tiny):
  labels = ["default", "pirate", "default", "sage", "pirate", "sage"]
  found = mean_vectors(tiny.model, CHATS, labels)
  reads = tiny.model.capture(CHATS, pj.Capture(reduce="mean", tokens=pj.Window(start=0)))
  means = {}
  for label in set(labels):
    chosen = [n for n, other in enumerate(labels) if other == label]
    means[label] = np.stack([reads["resid_post", b][chosen].mean(axis=0) for b in range(3)])
    np.testing.assert_allclose(found[label].mean_LD, means[label], atol=1e-5)
  axis = assistant_axis(found["default"], [found["pirate"], found["sage"]])
  theirs = means["default"] - (means["pirate"] + means["sage"]) / 2
  np.testing.assert_allclose(axis.mean_LD, theirs, atol=1e-5)
  assert set(axis.provenance["roles"]) == {"pirate", "sage"}
  with pytest.raises(ValueError, match="0 roles"):
    assistant_axis(found["default"], [])


def test_floors_are_percentiles_and_hold_the_projection_up(tiny):
  axis = tiny.direction(norm=2.0)
  found = floors(tiny.model, CHATS, axis, [1, 2], percentile=60.0)
  z_PLR = pj.project(tiny.model, CHATS, axis, tokens=pj.Window(start=0))
  for block in (1, 2):
    assert found.floor[block] == pytest.approx(np.percentile(z_PLR[:, block, 0], 60.0), abs=1e-5)
  before, after = (
    tiny.model.capture(CHATS, pj.Capture(blocks=1, bank=axis), edits=edits)["resid_post", 1]
    for edits in (None, [found.edits()] * len(CHATS))
  )
  held = np.maximum(before, found.floor[1])
  np.testing.assert_allclose(after, held, atol=1e-4)
  # What is written for assistant-axis does the same.
  edits = found.capping("p60").edits("p60", 3)
  theirs = tiny.model.capture(CHATS, pj.Capture(blocks=1, bank=axis), edits=[edits] * len(CHATS))
  np.testing.assert_allclose(theirs["resid_post", 1], held, atol=1e-4)
  with pytest.raises(ValueError, match="0 to 100"):
    floors(tiny.model, CHATS, axis, [1], percentile=101)
  with pytest.raises(ValueError, match=r"chats \[0\] have no answer"):
    floors(tiny.model, ["w5"], axis, [1])


def test_projections_of_a_conversation_by_token_and_turn(tiny):
  chat = [
    *CHATS[0],
    {"role": "user", "content": "w30"},
    {"role": "assistant", "content": "w31 w32"},
  ]
  a, b = tiny.direction(0), tiny.direction(1)
  frame = token_projections(tiny.model, [chat, CHATS[1]], [a, b], 1)
  row = tiny.model.encode(chat)
  mine = frame[frame["chat"] == 0]
  assert len(mine) == len(row.ids) and list(mine["position"]) == list(range(len(row.ids)))
  h_TD = tiny.model.capture([chat], pj.Capture(blocks=1))["resid_post", 1][0]
  np.testing.assert_allclose(mine[a.concept], h_TD @ a.unit_LD[1], atol=1e-4)
  turns = turn_projections(frame)
  assert turns[turns["chat"] == 0]["role"].tolist() == ["user", "assistant"] * 2
  assert turns[turns["chat"] == 0]["turn"].tolist() == [0, 1, 2, 3]
  spoken = mine[(mine["turn"] == 1) & (mine["role"] == "assistant")]
  assert turns["tokens"].iloc[1] == len(spoken) >= 6
  assert turns[b.concept].iloc[1] == pytest.approx(spoken[b.concept].mean())
  with pytest.raises(ValueError, match="different names"):
    token_projections(tiny.model, [chat], [a, a], 1)
