"""The algebra of edits: what each operation does to a projection, and what holds for all."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
import persona_kernels.edit_norm as edit_norm
from persona_jax.edits.apply import TokenInfo, apply_site
from persona_jax.edits.table import ROLES

D, BLOCKS = 16, 4
finite = st.floats(-100, 100, width=32)
seeds = st.integers(0, 2**31)
settings = hypothesis.settings(max_examples=40, deadline=None)


class Arch:
  """As much of a model as `pj.compile_edits` looks at."""

  def __init__(self) -> None:
    from persona_jax.models.llama import parse

    sizes = dict(
      num_hidden_layers=BLOCKS, hidden_size=D, num_attention_heads=2, intermediate_size=8,
      vocab_size=32,
    )  # fmt: skip
    self.arch = parse({"model_type": "llama", **sizes})


def direction(seed: int, norm: float = 3.0) -> pj.Direction:
  v = np.random.default_rng(seed).normal(size=(1, BLOCKS, D))
  return pj.Direction(norm * v / np.linalg.norm(v, axis=-1, keepdims=True), f"v{seed}")


def apply(edits_per_row, h_BTD, *, dtype=jnp.float32, offsets=None, roles=None):
  """Applies edits at block 1; returns (h after, delivery) with h in `dtype`."""
  h_BTD = jnp.asarray(h_BTD, dtype)
  b, t, _ = h_BTD.shape
  table = pj.compile_edits(Arch(), edits_per_row)
  offset_BT = jnp.broadcast_to(jnp.arange(t) if offsets is None else jnp.asarray(offsets), (b, t))
  role_BT = jnp.full((b, t), ROLES["user"]) if roles is None else jnp.asarray(roles)
  tokens = TokenInfo(offset_BT, role_BT, jnp.ones((b, t), bool))
  return apply_site(table.sites["resid_post", 1], h_BTD, tokens)


def random_h(seed: int, rows: int = 1, tokens: int = 3, size: float = 10.0) -> np.ndarray:
  return (size * np.random.default_rng(seed).normal(size=(rows, tokens, D))).astype(np.float32)


def projection(h_BTD, d: pj.Direction) -> np.ndarray:
  return np.asarray(h_BTD, np.float64) @ d.unit_LD[1].astype(np.float64)


OPERATIONS = {
  "add": (lambda d: pj.add(d, 2.5, unit="unit", blocks=1, tokens="all"), lambda a: a + 2.5),
  "ablate": (lambda d: pj.ablate(d, blocks=1, tokens="all"), lambda a: 0 * a),
  "set_to": (lambda d: pj.set_to(d, -4, unit="unit", blocks=1, tokens="all"), lambda a: 0 * a - 4),
  "scale": (lambda d: pj.scale(d, 0.25, blocks=1, tokens="all"), lambda a: 0.25 * a),
  "clamp": (
    lambda d: pj.clamp(d, -1, 2, unit="unit", blocks=1, tokens="all"),
    lambda a: np.clip(a, -1, 2),
  ),
  "cap": (
    lambda d: pj.cap(d, 0.5, unit="unit", blocks=1, tokens="all"),
    lambda a: np.minimum(a, 0.5),
  ),
  "floor": (
    lambda d: pj.floor(d, 0.5, unit="unit", blocks=1, tokens="all"),
    lambda a: np.maximum(a, 0.5),
  ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_moves_the_projection_as_defined_and_nothing_else(name):
  make, wanted = OPERATIONS[name]
  d = direction(5)
  h = random_h(6, tokens=7)
  out, _ = apply([make(d)], h)
  np.testing.assert_allclose(projection(out, d), wanted(projection(h, d)), atol=2e-5)
  p_D = d.unit_LD[1]
  off_axis = lambda x: x - (x @ p_D)[..., None] * p_D
  np.testing.assert_allclose(off_axis(np.asarray(out)), off_axis(h), atol=2e-5)


def test_scale_takes_a_factor_for_each_row():
  d, h = direction(5), random_h(6, rows=3)
  edit = pj.scale(d, [0.0, 1.0, -2.0], blocks=1, tokens="all")
  out, _ = apply([edit] * 3, h)
  wanted = projection(h, d) * np.array([[0.0], [1.0], [-2.0]])
  np.testing.assert_allclose(projection(out, d), wanted, atol=2e-5)
  assert edit.at_row(2, 3).amounts == {"factor": -2.0}
  with pytest.raises(ValueError, match="given for 3 rows; this batch has 2"):
    apply([edit] * 2, h[:2])


@pytest.mark.parametrize(
  "unit,expected",
  [
    ("raw", 2.0 * 3.0),
    ("unit", 2.0),
    ("resid", 2.0 * 7.0),
    ("sigma", 2.0 * 0.5),
    ("gap", 2.0 * 1.5),
  ],
)
def test_unit_sets_the_length_of_an_addition(unit, expected):
  d = pj.Direction(direction(1).vectors_SLD, "v", gap_L=np.full(BLOCKS, 1.5))
  sample = 0.5 * np.sign(np.arange(100) % 2 - 0.5)[:, None] * d.unit_LD[1]
  scale = pj.Dose(np.full(BLOCKS, 7.0), np.stack([sample] * BLOCKS), 100, {})
  h = random_h(2)
  out, _ = apply([pj.add(d, 2.0, unit=unit, blocks=1, tokens="all", scale=scale)], h)
  np.testing.assert_allclose(np.linalg.norm(np.asarray(out) - h, axis=-1), expected, rtol=1e-5)


def test_non_unit_vector_projects_like_its_unit_vector():
  h = random_h(3)
  outs = [
    np.asarray(apply([pj.ablate(direction(4, norm), blocks=1, tokens="all")], h)[0])
    for norm in (1.0, 40.0)
  ]
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)


@settings
@hypothesis.given(seeds, st.sampled_from(sorted(OPERATIONS)), st.sampled_from(sorted(OPERATIONS)))
def test_slots_act_one_after_another_like_hooks(seed, first, second):
  d1, d2 = direction(seed), direction(seed + 1)
  h = random_h(seed)
  together, _ = apply([[OPERATIONS[first][0](d1), OPERATIONS[second][0](d2)]], h)
  after_first, _ = apply([OPERATIONS[first][0](d1)], h)
  after_both, _ = apply([OPERATIONS[second][0](d2)], after_first)
  np.testing.assert_allclose(together, after_both, atol=1e-4)


@settings
@hypothesis.given(seeds)
def test_xla_path_equals_the_definition_in_float64(seed):
  rng = np.random.default_rng(seed)
  b, t, s = 3, 4, 4
  p = rng.normal(size=(b, s, D))
  p /= np.linalg.norm(p, axis=-1, keepdims=True)
  lo = np.where(rng.random((b, s)) < 0.5, -np.inf, rng.normal(size=(b, s)) - 2)
  hi = np.where(rng.random((b, s)) < 0.5, np.inf, rng.normal(size=(b, s)) + 2)
  values = dict(
    h_BTD=5 * rng.normal(size=(b, t, D)),
    p_BSD=p,
    gram_BSS=np.einsum("brd,bsd->brs", p, p),
    beta_BS=rng.choice([0.0, -1.0, 0.5], (b, s)),
    shift_BS=rng.normal(size=(b, s)),
    lo_BS=lo,
    hi_BS=hi,
    above_BS=np.where(rng.random((b, s)) < 0.7, -np.inf, -4),
    below_BS=np.where(rng.random((b, s)) < 0.7, np.inf, 4),
    strength_BTS=rng.choice([0.0, 0.5, 1.0], (b, t, s)),
  )
  with jax.enable_x64(True):
    wide = {k: jnp.asarray(v, jnp.float64) for k, v in values.items()}
    expected = edit_norm.edit_slots(
      wide.pop("h_BTD"), edit_norm.Slots(**wide), implementation="reference"
    )
    expected = np.asarray(expected)
  narrow = {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}
  got = edit_norm.edit_slots(narrow.pop("h_BTD"), edit_norm.Slots(**narrow), implementation="xla")
  np.testing.assert_allclose(got, expected, atol=5e-5)


@pytest.mark.bits
@settings
@hypothesis.given(seeds, hnp.arrays(np.float32, (1, 2, D), elements=finite))
def test_neutral_row_keeps_its_bits(seed, h):
  h[0, 0, :3] = [-0.0, np.inf, np.nan]
  for dtype in (jnp.float32, jnp.bfloat16):
    rows = jnp.asarray(np.concatenate([h, h]), dtype)
    for edit in (
      pj.add(direction(seed), 1.0, unit="raw", blocks=1, tokens="all"),
      pj.ablate(direction(seed), blocks=1, tokens="all"),
    ):
      out, _ = apply([edit, None], rows, dtype=dtype)
      assert np.asarray(out[1]).tobytes() == np.asarray(rows[1]).tobytes()


@settings
@hypothesis.given(seeds)
def test_ablating_twice_is_ablating_once(seed):
  d, h = direction(seed), random_h(seed)
  once, _ = apply([pj.ablate(d, blocks=1, tokens="all")], h)
  twice, _ = apply([[pj.ablate(d, blocks=1, tokens="all")] * 2], h)
  np.testing.assert_allclose(once, twice, atol=1e-4)


@settings
@hypothesis.given(seeds, st.floats(-5, 5))
def test_cap_is_the_floor_of_the_negated_vector(seed, bound):
  d, h = direction(seed), random_h(seed)
  negated = pj.Direction(-d.vectors_SLD, "-v")
  capped, _ = apply([pj.cap(d, bound, unit="unit", blocks=1, tokens="all")], h)
  floored, _ = apply([pj.floor(negated, -bound, unit="unit", blocks=1, tokens="all")], h)
  np.testing.assert_allclose(capped, floored, atol=1e-5)


def test_small_addition_to_a_large_projection_keeps_its_size():
  d = direction(0)
  h = (1e4 * d.unit_LD[1])[None, None].astype(np.float32)
  small = pj.add(d, 1.0, unit="unit", blocks=1, tokens="all")
  no_cap = pj.cap(d, 1e9, unit="unit", blocks=1, tokens="all")
  for edits in (small, [small, no_cap]):
    _, delivery = apply([edits], h)
    assert float(delivery.requested_B[0]) == pytest.approx(1.0, rel=1e-5)


def test_bfloat16_swallows_a_small_edit_and_the_dose_says_so():
  d = pj.Direction(np.eye(D)[None, :1].repeat(BLOCKS, 1), "axis")
  h = np.zeros((1, 1, D), np.float32)
  h[..., 0] = 1000.0
  small = pj.add(d, 1.9, unit="raw", blocks=1, tokens="all")
  _, swallowed = apply([small], h, dtype=jnp.bfloat16)
  assert float(swallowed.realised_B[0] / swallowed.requested_B[0]) == 0.0
  _, kept = apply([small], h)
  assert float(kept.realised_B[0] / kept.requested_B[0]) == pytest.approx(1.0, rel=1e-4)


def test_dose_is_nan_for_a_cap_that_does_not_bind_but_the_token_counts():
  d = direction(0)
  _, delivery = apply([pj.cap(d, 1e6, unit="unit", blocks=1, tokens="all")], random_h(0))
  assert float(delivery.requested_B[0]) == 0.0 and np.asarray(delivery.edited_BT).sum() == 3


@pytest.mark.parametrize(
  "tokens,on",
  [
    ("all", [1, 1, 1, 1, 1, 1]), ("prompt", [1, 1, 1, 1, 0, 0]), ("generated", [0, 0, 0, 0, 1, 1]),
    ("answer", [0, 0, 0, 1, 1, 1]), ("last:1", [0, 0, 0, 1, 0, 0]), ("last:3", [0, 1, 1, 1, 0, 0]),
    (pj.Window(start=-2, stop=1), [0, 0, 1, 1, 1, 0]), (pj.Window(("user",)), [0, 1, 1, 0, 0, 0]),
    (pj.Window(("user", "system"), stop=-2), [1, 1, 0, 0, 0, 0]),
  ],
)  # fmt: skip
def test_window_names_exactly_these_tokens(tokens, on):
  roles = [[ROLES[r] for r in ("system", "user", "user", "template", "assistant", "assistant")]]
  _, delivery = apply(
    [pj.add(direction(0), 1.0, unit="raw", blocks=1, tokens=tokens)],
    random_h(0, tokens=6),
    offsets=np.arange(6) - 4,
    roles=roles,
  )
  assert np.asarray(delivery.edited_BT)[0].astype(int).tolist() == on


def test_two_windows_of_a_row_overlap_by_adding_up():
  d = direction(0)
  edits = [
    pj.add(d, 1.0, unit="unit", blocks=1, tokens="answer"),
    pj.add(d, 2.0, unit="unit", blocks=1, tokens="generated"),
  ]
  h = random_h(1, tokens=3)
  out, _ = apply([edits], h, offsets=np.arange(3) - 2)
  np.testing.assert_allclose(projection(out, d) - projection(h, d), [[0, 1, 3]], atol=1e-5)


def test_one_amount_a_row_goes_to_that_row():
  d, h = direction(0), random_h(0, rows=3)
  edit = pj.set_to(d, [1.0, 2.0, 3.0], unit="unit", blocks=1, tokens="all")
  out, _ = apply([edit] * 3, h)
  np.testing.assert_allclose(projection(out, d), np.repeat([[1.0], [2.0], [3.0]], 3, 1), atol=1e-5)
  with pytest.raises(ValueError, match="given for 3 rows; this batch has 2"):
    pj.compile_edits(Arch(), [edit] * 2)


def test_like_pins_the_shape_of_a_table():
  d = direction(0)
  wide = pj.compile_edits(
    Arch(), [[pj.ablate(direction(i), blocks=(1, 2)) for i in range(3)], None]
  )
  new = pj.compile_edits(Arch(), [pj.add(d, 1, unit="raw", blocks=1), None], like=wide)
  assert jax.tree.structure(new) == jax.tree.structure(wide)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, wide)
  with pytest.raises(ValueError, match="not .*3"):
    pj.compile_edits(Arch(), [pj.add(d, 1, unit="raw", blocks=3), None], like=wide)
  with pytest.raises(ValueError, match="4 slots.* need 5"):
    pj.compile_edits(Arch(), [[pj.ablate(d, blocks=1)] * 5, None], like=wide)


def add_with(d=None, **changes):
  return pj.add(d or direction(0), **{"coef": 1, "unit": "raw", "blocks": 1, **changes})


def zero_direction():
  return pj.Direction(np.zeros((1, BLOCKS, D)), "z")


def narrow_direction():
  return pj.Direction(np.ones((1, BLOCKS, 8)), "w")


def scale_of(blocks=BLOCKS, width=D, site="resid_post"):
  return pj.Dose(np.ones(blocks), np.ones((blocks, 5, width)), 5, {}, site)


def nine_edits():
  return [pj.ablate(direction(i), blocks=1) for i in range(9)]


def test_a_table_is_laid_out_without_a_program():
  compiled = []

  def heard(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
      compiled.append(event)

  rows = [[make(direction(n))] for n, (make, _) in enumerate(OPERATIONS.values())]
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    pj.compile_edits(Arch(), [*rows, *[[]] * 23])  # as many rows as no other table has
    pj.compile_edits(Arch(), [row for row in rows for _ in range(2)])
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  assert not compiled


def test_scale_of_the_edits_site_is_taken():
  edit = add_with(
    unit="resid", site="mlp_out", scale=scale_of(site="mlp_out"), allow_other_site=True
  )
  assert edit.numbers["shift"].tolist() == [[1.0]] and edit.num_blocks == BLOCKS


ERRORS = {
  "zero vector": (lambda: add_with(zero_direction()), "zero vector"),
  "NaN vector": (lambda: pj.Direction(np.full((1, BLOCKS, D), np.nan), "n"), "NaN"),
  "infinite coef": (lambda: add_with(coef=np.inf), "finite"),
  "unknown block": (lambda: add_with(blocks=4), "blocks from 0 to 3|from 0 to 3"),
  "negative block": (lambda: add_with(blocks=-1), "from 0 to 3"),
  "unknown unit": (lambda: add_with(unit="percent"), "'raw', 'unit'"),
  "resid without scale": (lambda: add_with(unit="resid"), "pj.dose"),
  "gap without classes": (lambda: add_with(unit="gap"), "two classes"),
  "unknown window": (lambda: add_with(tokens="response"), "last:k"),
  "empty window": (lambda: pj.Window(start=2, stop=2), "empty"),
  "unknown role": (lambda: pj.Window(("bot",)), "assistant"),
  "unknown site": (lambda: add_with(site="head"), "resid_post"),
  "another site": (lambda: add_with(site="resid_pre"), "allow_other_site"),
  "unknown replicate": (lambda: add_with(replicate=1), "replicates 0 to 0"),
  "word for an amount": (lambda: add_with(coef="strong"), "coef='strong'.*one a row"),
  "no amount": (lambda: pj.scale(direction(0), [], blocks=1), "factor=.*one a row"),
  "bounds of different rows": (
    lambda: pj.clamp(direction(0), [1, 2], [3, 4, 5], unit="raw", blocks=1),
    "2 values of lo, 3",
  ),
  "probe between blocks": (lambda: pj.Probe(direction(0), 1.5, above=0), "block=1.5"),
  "crossed bounds": (lambda: pj.clamp(direction(0), 2, 1, unit="raw", blocks=1), "lo=2 > hi=1"),
  "wrong width": (
    lambda: pj.compile_edits(Arch(), [add_with(narrow_direction())]),
    "width 8; this model's is 16",
  ),
  "wrong number of blocks": (
    lambda: pj.compile_edits(Arch(), [add_with(pj.Direction(np.ones((1, BLOCKS + 1, D)), "b"))]),
    "'b' has 5 blocks; this model has 4",
  ),
  "scale of another site": (
    lambda: add_with(unit="resid", scale=scale_of(site="mlp_out")),
    "'mlp_out'; the edit acts at 'resid_post'",
  ),
  "edit at another site than its scale": (
    lambda: pj.cap(
      direction(0),
      1,
      unit="sigma",
      blocks=1,
      scale=scale_of(),
      site="mlp_out",
      allow_other_site=True,
    ),
    "'resid_post'; the edit acts at 'mlp_out'",
  ),
  "scale of other blocks": (
    lambda: pj.set_to(direction(0), 1, unit="resid", blocks=1, scale=scale_of(BLOCKS + 1)),
    r"\(5, 16\).*\(4, 16\)",
  ),
  "scale of another width": (
    lambda: pj.clamp(direction(0), 0, 1, unit="sigma", blocks=1, scale=scale_of(width=8)),
    r"\(4, 8\).*\(4, 16\)",
  ),
  "too many slots": (
    lambda: pj.compile_edits(Arch(), [nine_edits()]),
    "9 edits meet .* at most 8",
  ),
  "no edit": (lambda: pj.compile_edits(Arch(), ["add"]), "pj.add"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_by_name(case):
  act, message = ERRORS[case]
  with pytest.raises(ValueError, match=message):
    act()
