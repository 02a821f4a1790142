"""The pure forward pass against an independent float64 Llama; edits and captures at every site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.table import HEAD_SITE, SITES
from tests.reference import numpy_llama

IDS = [3, 17, 40, 9, 77, 21, 5, 60]
TWO = dict(tokens_BT=np.zeros((2, 3), int))


def relative(a, b) -> float:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(params=["tiny", "tiny_tied"])
def either(request):
  return request.getfixturevalue(request.param)


def test_logits_and_every_residual_equal_the_reference(either):
  expected = numpy_llama.forward(either.config, either.tensors, IDS)
  logits, reads = pj.forward(either.model, jnp.asarray([IDS]), None, pj.Capture())
  assert relative(logits[0], expected.logits_TV) < 1e-5
  for block in range(either.config["num_hidden_layers"]):
    assert relative(reads["resid_post", block][0], expected.resid_post_LTD[block]) < 1e-5


@pytest.mark.parametrize("site", [site for site in SITES if site != HEAD_SITE])
def test_edit_and_read_at_every_site_equal_a_hook(tiny, site):
  d = pj.Direction(tiny.direction(3).vectors_SLD, "v", site=site)
  v_D, seen = d.mean_LD[1], {}
  hooks = numpy_llama.edit_hook(
    [
      numpy_llama.Edit(numpy_llama.add(v_D, 1.5), (1,), site, -2, 1),
      numpy_llama.Edit(numpy_llama.cap(v_D, 0.2), (1,), site, -1, 3),
    ],
    prompt_length=5,
  )

  def recording(name, block, h_TD, positions_T):
    h_TD = hooks(name, block, h_TD, positions_T)
    seen[name, block] = h_TD
    return h_TD

  expected = numpy_llama.forward(tiny.config, tiny.tensors, IDS, recording)
  edits = [
    pj.add(d, 1.5, unit="raw", blocks=1, tokens=pj.Window(start=-2, stop=1)),
    pj.cap(d, 0.2, unit="unit", blocks=1, tokens=pj.Window(start=-1, stop=3)),
  ]
  table = pj.compile_edits(tiny.model, [edits])
  logits, reads = pj.forward(
    tiny.model, jnp.asarray([IDS]), table, pj.Capture((site,)), prompt_lengths_B=jnp.asarray([5])
  )
  assert relative(logits[0], expected.logits_TV) < 1e-5
  for block in range(3):
    assert relative(reads[site, block][0], seen[site, block]) < 1e-5
  plain = numpy_llama.forward(tiny.config, tiny.tensors, IDS).logits_TV
  assert relative(plain, expected.logits_TV) > 1e-3  # the edits did something


def test_padding_and_row_order_change_nothing(tiny):
  rows = [IDS, IDS[:3], IDS[:6]]
  alone = [pj.forward(tiny.model, jnp.asarray([r]), logits="last")[0][0] for r in rows]
  for order in ([0, 1, 2], [2, 0, 1]):
    padded = np.full((3, 11), 99)
    for b, n in enumerate(order):
      padded[b, : len(rows[n])] = rows[n]
    logits, _ = pj.forward(
      tiny.model,
      jnp.asarray(padded),
      lengths_B=jnp.asarray([len(rows[n]) for n in order]),
      logits="last",
    )
    for b, n in enumerate(order):
      np.testing.assert_allclose(logits[b], alone[n], atol=2e-5)


def test_pads_are_never_edited(tiny):
  table = pj.compile_edits(
    tiny.model, [pj.add(tiny.direction(), 5.0, unit="raw", blocks=0, tokens="all")]
  )
  padded = jnp.asarray([IDS + [99, 99]])
  _, edited = pj.forward(
    tiny.model, padded, table, pj.Capture(blocks=0), lengths_B=jnp.asarray([8])
  )
  _, plain = pj.forward(tiny.model, padded, None, pj.Capture(blocks=0), lengths_B=jnp.asarray([8]))
  change = np.abs(np.asarray(edited["resid_post", 0] - plain["resid_post", 0])[0]).max(axis=-1)
  assert (change[:8] > 0).all() and (change[8:] == 0).all()


def test_reductions_and_bank_agree_with_the_full_read(tiny):
  tokens, lengths, ends = jnp.asarray([IDS, IDS]), jnp.asarray([8, 6]), jnp.asarray([5, 6])
  kw = dict(lengths_B=lengths, prompt_lengths_B=ends, logits=None)
  d1, d2 = tiny.direction(1), tiny.direction(2)
  full = np.asarray(
    pj.forward(tiny.model, tokens, None, pj.Capture(blocks=2), **kw)[1]["resid_post", 2]
  )
  read = lambda **c: np.asarray(
    pj.forward(tiny.model, tokens, None, pj.Capture(blocks=[2], **c), **kw)[1]["resid_post", 2]
  )
  np.testing.assert_array_equal(read(reduce="last"), [full[0, 7], full[1, 5]])
  np.testing.assert_allclose(read(reduce="mean"), [full[0].mean(0), full[1, :6].mean(0)], rtol=1e-5)
  answer = read(reduce="mean", tokens="generated")
  np.testing.assert_allclose(answer[0], full[0, 5:8].mean(0), rtol=1e-5)
  assert np.isnan(answer[1]).all()  # row 1 has no answer token
  units = np.stack([d1.unit_LD[2], d2.unit_LD[2]])
  np.testing.assert_allclose(read(bank=[d1, d2]), full @ units.T, atol=1e-4)
  np.testing.assert_allclose(
    read(bank=units, reduce="last"), read(reduce="last") @ units.T, atol=1e-4
  )


def test_one_program_serves_all_vectors_amounts_windows_and_rows(tiny):
  traces = []

  @jax.jit
  def run(table):
    traces.append(1)
    return pj.forward(tiny.model, jnp.asarray([IDS, IDS]), table, logits="last")[0]

  first = pj.compile_edits(
    tiny.model,
    [[pj.cap(tiny.direction(0), 1.0, unit="unit", blocks=1, tokens="all")] * 2, None],
  )
  outs = [run(first)]
  for edits in (
    [None, pj.add(tiny.direction(1), -2, unit="raw", blocks=1, tokens="last:2")],
    [
      pj.ablate(tiny.direction(2), blocks=1, tokens="prompt"),
      [pj.scale(tiny.direction(3), 3.0, blocks=1)] * 2,
    ],
    [None, None],
  ):
    outs.append(run(pj.compile_edits(tiny.model, edits, like=first)))
  assert len(traces) == 1
  assert len({np.asarray(o).tobytes() for o in outs}) == 4


def test_grad_of_the_coefficient_equals_finite_differences(tiny):
  d = tiny.direction(4)
  unit = pj.compile_edits(tiny.model, [pj.add(d, 1.0, unit="unit", blocks=1, tokens="all")])

  def value(coef):
    table = jax.tree.map(lambda x: x * coef if x.dtype == jnp.float32 else x, unit)
    return pj.forward(tiny.model, jnp.asarray([IDS]), table, logits="last")[0][0, 11]

  step = 1e-2
  numeric = (value(0.5 + step) - value(0.5 - step)) / (2 * step)
  assert float(jax.grad(value)(0.5)) == pytest.approx(float(numeric), rel=1e-2)
  assert float(jax.grad(value)(0.0)) == pytest.approx(
    float((value(step) - value(-step)) / (2 * step)), rel=1e-2
  )


def test_vmap_over_tables_equals_a_loop(tiny):
  tables = [
    pj.compile_edits(
      tiny.model, [pj.add(tiny.direction(s), 1.0, unit="raw", blocks=1, tokens="all")]
    )
    for s in (1, 2, 3)
  ]
  run = lambda table: pj.forward(tiny.model, jnp.asarray([IDS]), table, logits="last")[0]
  stacked = jax.vmap(run)(jax.tree.map(lambda *xs: jnp.stack(xs), *tables))
  np.testing.assert_allclose(stacked, jnp.stack([run(t) for t in tables]), atol=1e-5)


def test_without_edits_no_hook_is_compiled(tiny):
  program = lambda edits: str(
    jax.make_jaxpr(lambda t: pj.forward(tiny.model, t, edits)[0])(jnp.asarray([IDS]))
  )
  empty = pj.compile_edits(tiny.model, [None])
  assert program(None) == program(empty)


def test_model_passes_through_jit_as_a_pytree(tiny):
  run = jax.jit(lambda model, tokens: pj.forward(model, tokens)[0])
  expected, _ = pj.forward(tiny.model, jnp.asarray([IDS]))
  np.testing.assert_allclose(run(tiny.model, jnp.asarray([IDS])), expected, atol=1e-5)
  assert len(jax.tree.leaves(tiny.model)) == 3 + 9 * 3


def test_the_next_batch_may_be_written_where_the_last_one_was(tiny):
  # At an address that a CPU takes without a copy, while it still computes.
  room = np.zeros(64 * 128 + 16, np.int32)
  ids_BT = room[(-room.ctypes.data % 64) // 4 :][: 64 * 128].reshape(64, 128)
  first, other = np.random.default_rng(0).integers(2, 100, (2, 64, 128))
  expected, _ = pj.forward(tiny.model, first, logits="last")
  for _ in range(5):
    ids_BT[:] = first
    logits, _ = pj.forward(tiny.model, ids_BT, logits="last")
    ids_BT[:] = other
    np.testing.assert_array_equal(logits, expected)


def test_bfloat16_stays_near_float32(tiny):
  half = pj.load(tiny.directory, dtype="bfloat16")
  mixed = pj.load(tiny.directory, dtype="bfloat16", resid_dtype="float32")
  expected = pj.forward(tiny.model, jnp.asarray([IDS]))[0]
  errors = [relative(pj.forward(m, jnp.asarray([IDS]))[0], expected) for m in (half, mixed)]
  assert half.params["embed_VD"].dtype == jnp.bfloat16
  assert 1e-5 < errors[1] < errors[0] < 0.1


@pytest.mark.parametrize(
  "kwargs,message",
  [
    (dict(tokens_BT=jnp.zeros((2,), int)), r"\[B, T\]"),
    (dict(tokens_BT=jnp.zeros((2, 3))), "integers"),
    (dict(tokens_BT=jnp.zeros((2, 3), int), logits="first"), "'last'"),
    (dict(tokens_BT=jnp.zeros((2, 3), int), lengths_B=jnp.zeros(3, int)), "lengths_B"),
    (dict(tokens_BT=jnp.zeros((0, 3), int)), r"shape \(0, 3\); give at least one row"),
    (dict(tokens_BT=jnp.zeros((2, 0), int)), r"shape \(2, 0\); give at least one row"),
    (dict(tokens_BT=np.zeros((1, 5000), int)), "a row of 5000 tokens exceeds the model's"),
    (dict(TWO, lengths_B=np.asarray([3, 4])), "lengths_B holds 3 to 4; .* 1 to 3 tokens"),
    (dict(TWO, lengths_B=[0, 3]), "lengths_B holds 0 to 3"),
    (dict(TWO, lengths_B=[3.0, 2.0]), "lengths_B holds float64; lengths are integers"),
    (dict(TWO, prompt_lengths_B=[2.5, 2.5]), "prompt_lengths_B holds float64"),
    (
      dict(TWO, lengths_B=[3, 2], prompt_lengths_B=[3, 3]),
      "prompt_lengths_B is 3 for row 1 of 2 tokens",
    ),
    (dict(TWO, prompt_lengths_B=[-1, 3]), "prompt_lengths_B is -1 for row 0 of 3 tokens"),
    (dict(TWO, roles_BT=[[0, 1, 9], [40, 2, -1]]), r"roles_BT holds \[-1, 9, 40\]; roles are"),
    (dict(TWO, roles_BT=np.zeros((2, 3))), "roles_BT holds float64; roles are integers"),
    (dict(tokens_BT=jnp.zeros((2, 3), int), capture=pj.Capture(blocks=3)), "blocks 0 to 2"),
    (
      dict(tokens_BT=jnp.zeros((2, 3), int), capture=pj.Capture(bank=np.ones((1, 7)))),
      r"\[R, 44\]",
    ),
  ],
)
def test_bad_arguments_are_refused(tiny, kwargs, message):
  with pytest.raises(ValueError, match=message):
    pj.forward(tiny.model, **kwargs)


def test_traced_lengths_and_roles_are_left_to_the_caller(tiny):
  def run(lengths_B, roles_BT):
    kw = dict(lengths_B=lengths_B, prompt_lengths_B=lengths_B, roles_BT=roles_BT)
    return pj.forward(tiny.model, **TWO, **kw)[0]

  shape = jax.eval_shape(run, np.asarray([1, 2]), np.ones((2, 3), int))
  assert shape.shape == (2, 3, 101)
  with pytest.raises(ValueError, match="lengths_B holds float32"):
    jax.eval_shape(run, np.ones(2, np.float32), np.ones((2, 3), int))


def test_role_windows_need_roles(tiny):
  edit = pj.add(tiny.direction(), 1, unit="raw", blocks=1, tokens=pj.Window(("user",)))
  table = pj.compile_edits(tiny.model, [edit])
  with pytest.raises(ValueError, match="roles_BT"):
    pj.forward(tiny.model, jnp.asarray([IDS]), table)
  roles = jnp.asarray([[0, 0, 1, 1, 4, 2, 2, 2]])
  _, reads = pj.forward(tiny.model, jnp.asarray([IDS]), table, pj.Capture(blocks=1), roles_BT=roles)
  _, plain = pj.forward(tiny.model, jnp.asarray([IDS]), None, pj.Capture(blocks=1), roles_BT=roles)
  change = np.abs(np.asarray(reads["resid_post", 1] - plain["resid_post", 1])[0]).max(axis=-1)
  assert (change > 0).tolist() == [False, False, True, True, False, False, False, False]
