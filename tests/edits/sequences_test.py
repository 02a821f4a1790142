"""Every operation, alone and in any order, against float64 hooks applied one after another."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import persona_jax as pj
from persona_jax.edits.apply import TokenInfo, apply_site
from persona_jax.edits.table import ROLES
from tests.edits.algebra_test import BLOCKS, Arch, D, direction, random_h

T, PROMPT = 9, 4  # offsets -4 … 4
OFFSETS = np.arange(T) - PROMPT
ROLE_T = np.asarray([0, 1, 1, 4, 2, 3, 3, 2, 2])
D1, D2, D3 = direction(1), direction(2), direction(3)
V1, V2, V3 = (d.mean_LD[1].astype(np.float64) for d in (D1, D2, D3))
RNG = np.random.default_rng(7)
A_DR, B_RD, C_R = RNG.normal(size=(D, 3)) / 4, RNG.normal(size=(3, D)), RNG.normal(size=3)
ROTATION_RD = np.linalg.qr(RNG.normal(size=(D, 2)))[0].T
W_RD, BIAS_R = RNG.normal(size=(2, D)) / 4, RNG.normal(size=2)
SAE = {
  "W_enc": RNG.normal(size=(D, 5)) / 4,
  "W_dec": RNG.normal(size=(5, D)),
  "b_enc": RNG.normal(size=5),
  "b_dec": RNG.normal(size=D),
  "threshold": np.full(5, 0.3),
}
EVERY = dict(blocks=1, tokens="all")


@functools.cache
def sae() -> pj.SparseAutoencoder:
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "params.npz"
    np.savez(path, **SAE)
    return pj.load_sae(path)


def unit(v_D):
  return v_D / np.linalg.norm(v_D)


def move(v_D, f):
  """Returns the hook that turns a projection a on v̂ into f(a)."""

  def hook(h_TD):
    a_T = h_TD @ unit(v_D)
    return h_TD + np.outer(f(a_T) - a_T, unit(v_D))

  return hook


def turn(v_D, w_D, new_angle, only=lambda x: x > -np.inf):
  """Returns the hook that gives the part in the plane of v and w a new angle."""
  e1 = unit(v_D)
  e2 = unit(w_D - (w_D @ e1) * e1)

  def hook(h_TD):
    z_T = h_TD @ e1 + 1j * (h_TD @ e2)  # the plane as complex numbers
    to_T = np.abs(z_T) * np.exp(1j * new_angle(np.angle(z_T)))
    change_T = np.where(only(z_T.real), to_T - z_T, 0)
    return h_TD + np.outer(change_T.real, e1) + np.outer(change_T.imag, e2)

  return hook


def same_length(hook):
  def kept(h_TD):
    out_TD = hook(h_TD)
    norm = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)
    return out_TD * norm(h_TD) / norm(out_TD)

  return kept


def span_out(h_TD):
  q_DK = np.linalg.svd(np.stack([V1, V2, V3]).T, full_matrices=False)[0]
  return h_TD - h_TD @ q_DK @ q_DK.T


def feature(new):
  def hook(h_TD):
    x_T = h_TD @ SAE["W_enc"][:, 2] + SAE["b_enc"][2]
    f_T = np.where(x_T > 0.3, x_T, 0)
    return h_TD + np.outer(new(f_T) - f_T, SAE["W_dec"][2])

  return hook


def doubled(h_BTD, params, offset_BT):
  return h_BTD * params["by"] + 0.1 * offset_BT[..., None]


def doubled_hook(h_TD):
  return h_TD * 2.0 + 0.1 * OFFSETS[:, None]


def ramp_of(factor_T, hook):
  return lambda h_TD: h_TD + factor_T[:, None] * (hook(h_TD) - h_TD)


def within(mask_T, hook):
  return lambda h_TD: np.where(mask_T[:, None], hook(h_TD), h_TD)


LINEAR_T = np.clip((OFFSETS - 1 + 1) / 3, 0, 1)
EMA_T = 1 - 0.75 ** np.maximum(OFFSETS + 1, 0)
ADD = dict(unit="unit", **EVERY)

# name → (the edit, what it does to one row [T, D] in float64)
OPERATIONS = {
  "add": (pj.add(D1, 2.5, **ADD), lambda h: h + 2.5 * unit(V1)),
  "add raw": (pj.add(D2, -1, unit="raw", **EVERY), lambda h: h - V2),
  "ablate": (pj.ablate(D1, **EVERY), move(V1, lambda a: 0 * a)),
  "subspace": (pj.ablate_subspace([D1, D2, D3], **EVERY), span_out),
  "set": (pj.set_to(D2, -4, **ADD), move(V2, lambda a: 0 * a - 4)),
  "target": (
    pj.set_to(D2, 3, **ADD).where(below=1),
    move(V2, lambda a: np.where(a < 1, 3, a)),
  ),
  "mirror": (pj.scale(D3, -1, **EVERY).where(below=0), move(V3, np.abs)),
  "between": (
    pj.add(D3, 2, **ADD).where(above=-2, below=6),
    move(V3, lambda a: np.where((a >= -2) & (a < 6), a + 2, a)),
  ),
  "scale": (pj.scale(D1, 0.25, **EVERY), move(V1, lambda a: 0.25 * a)),
  "clamp": (pj.clamp(D2, -1, 2, **ADD), move(V2, lambda a: np.clip(a, -1, 2))),
  "cap": (pj.cap(D3, 0.5, **ADD), move(V3, lambda a: np.minimum(a, 0.5))),
  "floor": (pj.floor(D3, 0.5, **ADD), move(V3, lambda a: np.maximum(a, 0.5))),
  "renorm": (pj.renorm_add(D1, 9, **ADD), same_length(lambda h: h + 9 * unit(V1))),
  "keep norm": (pj.ablate(D2, **EVERY).keep_norm(), same_length(move(V2, lambda a: 0 * a))),
  "rotate by": (pj.rotate(D1, D2, 40, **EVERY), turn(V1, V2, lambda x: x + np.deg2rad(40))),
  "rotate to": (pj.rotate(D1, D2, to=200, **EVERY), turn(V1, V2, lambda x: np.deg2rad(200))),
  "adaptive": (
    pj.rotate(D1, D3, to=90, adaptive=True, **EVERY),
    turn(V1, V3, lambda x: np.pi / 2, lambda x: x > 0),
  ),
  "low rank": (
    pj.low_rank(A_DR, B_RD, C_R, coef=0.5, **EVERY),
    lambda h: h + 0.5 * (h @ A_DR + C_R) @ B_RD,
  ),
  "loreft": (
    pj.loreft(ROTATION_RD, W_RD, BIAS_R, **EVERY),
    lambda h: h + (h @ W_RD.T + BIAS_R - h @ ROTATION_RD.T) @ ROTATION_RD,
  ),
  "lm steer": (
    pj.lm_steer(A_DR, B_RD, -0.2, **EVERY),
    lambda h: h @ (np.eye(D) - 0.2 * A_DR @ B_RD),
  ),
  "feature add": (pj.sae_add(sae(), 2, 1.5, **EVERY), lambda h: h + 1.5 * SAE["W_dec"][2]),
  "feature set": (pj.sae_clamp(sae(), 2, 4.0, **EVERY), feature(lambda f: 0 * f + 4)),
  "feature clamp": (pj.sae_clamp(sae(), 2, 0, 1, **EVERY), feature(lambda f: np.clip(f, 0, 1))),
  "half way": (
    pj.custom_edit(lambda h, goal, o: h + 0.5 * (goal - h), V3, **EVERY),
    lambda h: h + 0.5 * (V3 - h),
  ),
  "custom": (pj.custom_edit(doubled, {"by": np.float32(2)}, **EVERY), doubled_hook),
  "linear ramp": (
    pj.add(D1, 3, **ADD).ramped(pj.Ramp(steps=3, start=1)),
    ramp_of(LINEAR_T, lambda h: h + 3 * unit(V1)),
  ),
  "average ramp": (
    pj.set_to(D2, 3, **ADD).ramped(pj.Ramp(rate=0.25)),
    ramp_of(EMA_T, move(V2, lambda a: 0 * a + 3)),
  ),
  "ramp down": (
    pj.add(D2, 3, **ADD).ramped(pj.Ramp(steps=4, first=2, last=-1, dead_band=0.6, cap=1.5)),
    ramp_of(
      np.asarray([1.5, 1.5, 1.5, 1.5, 1.25, 0, 0, -1, -1]), lambda h: h + 3 * unit(V2)
    ),
  ),
  "window": (
    pj.add(D3, 3, unit="unit", blocks=1, tokens="answer"),
    within(OFFSETS >= -1, lambda h: h + 3 * unit(V3)),
  ),
  "thought": (
    pj.ablate(D3, blocks=1, tokens=pj.Window(("think",))),
    within(ROLE_T == 3, move(V3, lambda a: 0 * a)),
  ),
}  # fmt: skip


# name → what it reads of h, and where it jumps
THRESHOLDS = {
  "target": (lambda h: h @ unit(V2), [1]),
  "mirror": (lambda h: h @ unit(V3), [0]),
  "between": (lambda h: h @ unit(V3), [-2, 6]),
  "adaptive": (lambda h: h @ unit(V1), [0]),
  "feature set": (lambda h: h @ SAE["W_enc"][:, 2] + SAE["b_enc"][2], [0.3]),
}


def tokens_of(num_rows):
  every = np.ones(T, bool)
  return TokenInfo(*(jnp.tile(x, (num_rows, 1)) for x in (OFFSETS, ROLE_T, every)))


def run(edits_per_row, h_BTD, dtype=jnp.float32):
  table = pj.compile_edits(Arch(), edits_per_row)
  if not table.sites:
    return jnp.asarray(h_BTD, dtype), None
  return apply_site(
    table.sites["resid_post", 1], jnp.asarray(h_BTD, dtype), tokens_of(len(edits_per_row))
  )


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_its_hook_and_changes_something(name):
  edit, hook = OPERATIONS[name]
  h_TD = random_h(5, tokens=T, size=4.0)[0]
  out, delivery = run([edit], h_TD[None])
  expected = hook(h_TD.astype(np.float64))
  np.testing.assert_allclose(out[0], expected, atol=2e-5 * np.abs(expected).max())
  changed_T = np.abs(expected - h_TD).max(axis=-1) > 1e-4
  assert changed_T.any()
  assert not (changed_T & ~np.asarray(delivery.edited_BT[0])).any()
  requested = ((expected - h_TD) ** 2).sum()
  assert float(delivery.requested_B[0]) == pytest.approx(requested, rel=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivative_equals_that_of_the_hook_also_under_vmap(name):
  edit, hook = OPERATIONS[name]
  h_TD, towards_TD, cotangent_TD = (random_h(n, tokens=T, size=4.0)[0] for n in (5, 6, 7))

  site = pj.compile_edits(Arch(), [edit]).sites["resid_post", 1]

  def value(h_TD):
    return jnp.vdot(apply_site(site, h_TD[None], tokens_of(1))[0], cotangent_TD)

  low, high = (hook(h_TD + step * towards_TD.astype(np.float64)) for step in (-1e-6, 1e-6))
  expected = ((high - low) * cotangent_TD).sum() / 2e-6
  scale = float(np.abs(towards_TD * cotangent_TD).sum())
  gradient_TD = jax.jit(jax.grad(value))(h_TD)
  assert float(jnp.vdot(gradient_TD, towards_TD)) == pytest.approx(expected, abs=1e-4 * scale)
  both = jax.jit(jax.vmap(jax.grad(value)))(jnp.stack([towards_TD, h_TD]))
  np.testing.assert_allclose(both[1], gradient_TD, atol=1e-4 * np.abs(gradient_TD).max())


names = st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=4).filter(
  lambda chosen: sum(3 if name == "subspace" else 1 for name in chosen) <= 6
)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(names, min_size=3, max_size=3), st.integers(0, 2**31))
def test_rows_with_any_edits_in_any_order_equal_hooks_one_after_another(rows, seed):
  h_BTD = random_h(seed, rows=3, tokens=T, size=4.0)
  out, _ = run([[OPERATIONS[name][0] for name in row] for row in rows], h_BTD)
  for b, row in enumerate(rows):
    expected = h_BTD[b].astype(np.float64)
    largest, clear_T = np.abs(expected).max(), np.ones(T, bool)
    for name in row:
      if name in THRESHOLDS:  # a token within rounding of one may fall to either side
        read, thresholds = THRESHOLDS[name]
        distance_Tn = np.abs(read(expected)[:, None] - np.asarray(thresholds))
        clear_T &= (distance_Tn > 1e-4 * largest).all(axis=1)
      expected = OPERATIONS[name][1](expected)
      largest = max(largest, np.abs(expected).max())
    if not row:
      assert np.asarray(out[b]).tobytes() == h_BTD[b].tobytes()
    off_T = np.abs(np.asarray(out[b]) - expected).max(axis=-1)
    assert (off_T[clear_T] < 2e-4 * largest).all(), (row, off_T)


@pytest.mark.parametrize("name", OPERATIONS)
def test_neutral_rows_and_tokens_keep_their_bits_beside_any_operation(name):
  edit, _ = OPERATIONS[name]
  special = np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, 1.0], np.float32)
  h_BTD = np.tile(np.resize(special, D), (2, T, 1))
  out, delivery = run([None, edit], h_BTD)
  assert np.asarray(out[0]).tobytes() == h_BTD[0].tobytes()
  assert not np.asarray(delivery.edited_BT[0]).any()
  untouched = ~np.asarray(delivery.edited_BT[1])
  assert np.asarray(out[1])[untouched].tobytes() == h_BTD[1][untouched].tobytes()


@pytest.mark.parametrize("name", OPERATIONS)
def test_gate_of_a_row_switches_the_edit(name):
  edit, hook = OPERATIONS[name]
  h_BTD = random_h(6, rows=2, tokens=T, size=4.0)
  off = dataclasses.replace(edit, gate=0.0)
  out, delivery = run([off, edit], h_BTD)
  assert np.asarray(out[0]).tobytes() == h_BTD[0].tobytes()
  assert not np.asarray(delivery.edited_BT[0]).any() and np.asarray(delivery.edited_BT[1]).any()
  expected = hook(h_BTD[1].astype(np.float64))
  np.testing.assert_allclose(out[1], expected, atol=2e-5 * np.abs(expected).max())


def test_every_table_of_one_shape_runs_in_one_trace():
  traces = []

  @jax.jit
  def once(table, h_BTD, tokens):
    traces.append(1)
    return apply_site(table.sites["resid_post", 1], h_BTD, tokens)[0]

  def rows(k):
    plus = lambda by: pj.custom_edit(doubled, {"by": np.float32(by)}, **EVERY)
    d, other = direction(10 + k), direction(20 + k)
    first = [
      pj.ablate(d, **EVERY),
      pj.rotate(d, other, 10 * (k + 1), **EVERY),
      pj.low_rank(A_DR * (k + 1), B_RD, **EVERY),
      plus(k + 1),
      pj.renorm_add(d, k + 1, **ADD),
    ]
    return [first, first[:2] if k % 2 else first[2:4], None][:3]

  model, h = Arch(), jnp.asarray(random_h(0, rows=3, tokens=T))
  tokens = TokenInfo(*(jnp.tile(x, (3, 1)) for x in (OFFSETS, ROLE_T, np.ones(T, bool))))
  table = pj.compile_edits(model, rows(0))
  outs = [once(table, h, tokens)]
  for k in (1, 2, 3):
    table = pj.compile_edits(model, rows(k), like=table)
    outs.append(once(table, h, tokens))
    alone = run(rows(k), h)[0]
    np.testing.assert_allclose(outs[-1], alone, rtol=1e-5, atol=1e-4)
  outs.append(once(pj.compile_edits(model, [None] * 3, like=table), h, tokens))
  assert np.asarray(outs[-1]).tobytes() == np.asarray(h).tobytes()
  assert len(traces) == 1
  with pytest.raises(ValueError, match="others, or another order"):
    pj.compile_edits(model, [rows(0)[0][::-1], None, None], like=table)


def test_rows_of_a_table_are_the_rows_it_was_made_of():
  rows = [[OPERATIONS[name][0]] for name in ("custom", "low rank", "rotate by", "set")]
  table = pj.compile_edits(Arch(), rows)
  h_BTD = random_h(1, rows=4, tokens=T)
  tokens = lambda b: TokenInfo(*(jnp.tile(x, (b, 1)) for x in (OFFSETS, ROLE_T, np.ones(T, bool))))
  whole = apply_site(table.sites["resid_post", 1], jnp.asarray(h_BTD), tokens(4))[0]
  order = np.asarray([3, 0])
  part = apply_site(table.rows(order).sites["resid_post", 1], jnp.asarray(h_BTD[order]), tokens(2))[
    0
  ]
  np.testing.assert_allclose(part, np.asarray(whole)[order], atol=1e-5)
  assert table.num_rows == 4


BAD = {
  "two angles": (lambda: pj.rotate(D1, D2, 10, to=20, **EVERY), "one of them, in degrees"),
  "parallel": (lambda: pj.rotate(D1, D1, 10, **EVERY), "span no plane"),
  "dependent": (lambda: pj.ablate_subspace([D1, D2, D1], **EVERY), "linearly dependent"),
  "no direction": (lambda: pj.ablate_subspace([], **EVERY), "got none"),
  "bounds crossed": (lambda: pj.ablate(D1, **EVERY).where(above=2, below=1), "no projection lies"),
  "no bound": (lambda: pj.ablate(D1, **EVERY).where(), "give a finite bound"),
  "bound of a rotation": (lambda: pj.rotate(D1, D2, 5, **EVERY).where(below=1), "has none"),
  "no ramp": (lambda: pj.ablate(D1, **EVERY).ramped(3), "takes a pj.Ramp"),
  "two ramps": (lambda: pj.Ramp(steps=2, rate=0.5), "one of them"),
  "rate": (lambda: pj.Ramp(rate=1.5), "between 0 and 1"),
  "dead band above cap": (lambda: pj.Ramp(steps=2, dead_band=2, cap=1), "dead_band <= cap"),
  "no rule": (lambda: pj.ablate(D1, **EVERY).when(0.5), "takes a pj.Probe"),
  "no threshold": (lambda: pj.Probe(D1, 1), "above=, below="),
  "unknown measure": (lambda: pj.Probe(D1, 1, above=0, measure="dot"), "'cosine'"),
  "unknown block of a probe": (lambda: pj.Probe(D1, BLOCKS, above=0), "blocks 0 to 3"),
  "undecided": (
    lambda: pj.compile_edits(Arch(), [pj.ablate(D1, **EVERY).when(pj.Probe(D1, 1, above=0))]),
    "pj.resolve_gates",
  ),
  "map of another width": (
    lambda: pj.compile_edits(Arch(), [pj.low_rank(np.ones((3, 1)), np.ones((1, 3)), blocks=1)]),
    "width 3; this model's is 16",
  ),
  "map that does not close": (
    lambda: pj.low_rank(np.ones((3, 1)), np.ones((2, 3)), blocks=1),
    r"B must be \[1, 3\]",
  ),
  "map for other blocks": (
    lambda: pj.low_rank(np.ones((2, 3, 1)), np.ones((1, 3)), blocks=[0, 1, 2]),
    "each of the 3 blocks",
  ),
  "map that does nothing": (lambda: pj.low_rank(A_DR, B_RD, coef=0, blocks=1), "not zero"),
  "rows not orthonormal": (lambda: pj.loreft(W_RD, W_RD, BIAS_R, blocks=1), "not orthonormal"),
  "unknown feature": (lambda: pj.sae_add(sae(), 5, 1.0, blocks=1), "features 0 to 4"),
  "bounds of a feature": (lambda: pj.sae_clamp(sae(), 1, 3, 2, blocks=1), "lo <= hi"),
  "feature of two blocks": (lambda: pj.sae_add(sae(), 1, 1.0, blocks=[0, 1]), "one block"),
  "no function": (lambda: pj.custom_edit(3, blocks=1), "needs a function"),
  "odd parameters": (lambda: pj.custom_edit(doubled, ["a"], blocks=1), "numbers and arrays"),
  "block of a function": (
    lambda: pj.compile_edits(Arch(), [pj.custom_edit(doubled, blocks=9)]),
    "unknown block",
  ),
  "map of zeros": (lambda: pj.low_rank(0 * A_DR, B_RD, blocks=1), "changes nothing"),
  "amount beyond float32": (lambda: pj.set_to(D1, 1e39, **ADD), "1e.39, more than float32"),
  "coefficient beyond float32": (
    lambda: pj.low_rank(A_DR, B_RD, coef=1e39, blocks=1),
    "more than float32",
  ),
  "feature beyond float32": (lambda: pj.sae_add(sae(), 0, 1e39, blocks=1), "more than float32"),
  "crossed in two steps": (
    lambda: pj.ablate(D1, **EVERY).where(above=2).where(below=1),
    "'above': 2.0, 'below': 1.0",
  ),
  "ramp of no steps": (lambda: pj.Ramp(steps=float("nan")), "whole numbers"),
  "ramp from nowhere": (lambda: pj.Ramp(steps=2, start=float("nan")), "whole numbers"),
  "half a token": (lambda: pj.Window(start=-1.5), "start=-1.5: give a whole number"),
  "a block and a half": (lambda: pj.ablate(D1, blocks=1.5), "blocks=1.5: name different"),
  "no block": (lambda: pj.ablate(D1, blocks=None), "blocks=None: name different"),
  "a bool for a block": (lambda: pj.ablate(D1, blocks=True), "blocks=True: name different"),
  "adaptive in words": (
    lambda: pj.rotate(D1, D2, to=90, adaptive="no", **EVERY),
    "adaptive='no'",
  ),
  "half a feature": (lambda: pj.sae_add(sae(), 1.5, 1.0, blocks=1), "feature=1.5"),
  "feature of another block": (
    lambda: pj.sae_add(dataclasses.replace(sae(), home=("mlp_out", 2)), 1, 1.0, blocks=1),
    "trained at 'mlp_out' of block 2",
  ),
  "heads elsewhere": (lambda: pj.ablate(D1, blocks=1, heads=1), "needs site='head_out'"),
  "function of another shape": (
    lambda: run([pj.custom_edit(lambda h, p, o: h[..., :3], **EVERY)], random_h(0, tokens=T)),
    "it must stay",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
  make, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    make()


def test_description_names_every_option():
  edit = pj.add(D1, 2, **ADD)
  options = [
    edit,
    edit.keep_norm(),
    edit.where(below=1),
    edit.ramped(pj.Ramp(steps=2)),
    edit.when(pj.Probe(D1, 1, above=0)),
    edit.when(~pj.Probe(D1, 1, above=0)),
    edit.when(pj.Probe(D1, 1, above=0) & pj.Probe(D2, 1, above=0)),
    edit.when(pj.Probe(D1, 1, above=0) | pj.Probe(D2, 1, above=0)),
  ]
  texts = {json.dumps(option.describe(), sort_keys=True, allow_nan=False) for option in options}
  assert len(texts) == len(options)


def test_roles_are_those_of_the_table():
  assert [ROLES["system"], ROLES["user"], ROLES["template"], ROLES["think"]] == [0, 1, 4, 3]


def test_a_whole_turn_asks_for_nothing_and_one_role_needs_no_tuple():
  h_BTD = random_h(3, tokens=T)
  out_BTD, delivery = run([pj.rotate(D1, D2, 360, **EVERY)], h_BTD)
  np.testing.assert_array_equal(out_BTD, h_BTD)
  assert float(delivery.requested_B[0]) == 0
  assert pj.Window(roles="user") == pj.Window(roles=("user",))


@pytest.mark.parametrize(
  "settings, message",
  {
    "top-k": ({"activation_fn_str": "topk"}, "'topk' is not handled"),
    "tanh": ({"activation_fn": "tanh-relu"}, "'tanh-relu' is not handled"),
    "a list": ([], "not an object of settings"),
  }.values(),
)
def test_settings_of_an_autoencoder_that_are_not_handled_are_refused(tmp_path, settings, message):
  tensors = {name: np.asarray(x, np.float32) for name, x in SAE.items() if name != "threshold"}
  safetensors.numpy.save_file(tensors, tmp_path / "sae_weights.safetensors")
  (tmp_path / "cfg.json").write_text(json.dumps({"hook_name": "blocks.2.hook_mlp_out"}))
  assert pj.load_sae(tmp_path).home == ("mlp_out", 2)
  (tmp_path / "cfg.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=message):
    pj.load_sae(tmp_path)
