"""A tile that is out of memory is run in halves; no row is lost, one that is too large is named."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import batches, generate, score, stream
from persona_jax.engine.halving import Halving, Limit, cut_to_fit, is_out_of_memory
from persona_jax.engine.need import Need
from persona_jax.engine.sampling import Sampling
from persona_jax.engine.settings import Settings
from persona_jax.engine.tree import ALL_SHARED

STEM = " ".join(f"w{i}" for i in range(20, 40))
PROMPTS = [f"{STEM} w{i}" + " w9" * (i % 3) for i in range(5, 12)]
HALVED = r"rows ran out of memory; running it in halves"


def too_large(size: int) -> jax.Array:
  return jnp.zeros((size, 1 << 48), jnp.int8).block_until_ready()


def small_device(monkeypatch, module, most: int) -> list[int]:
  """Makes prefills of more than so many rows fail as the device does; returns their sizes."""
  real, sizes = module.prefill, []

  @functools.wraps(real)
  def prefill(model, tree, **options):
    if not getattr(options.get("run"), "is_dry", False):
      sizes.append(len(tree.rows))
      if len(tree.rows) > most:
        too_large(len(tree.rows))
    return real(model, tree, **options)

  monkeypatch.setattr(module, "prefill", prefill)
  return sizes


def test_a_tile_is_halved_and_its_parts_come_in_order():
  def run(numbers):
    if len(numbers) > 3:
      too_large(len(numbers))
    return numbers

  with pytest.warns(UserWarning, match=HALVED) as told:
    in_parts = Halving(run, str)
    parts = list(in_parts(range(11)))
    later = list(in_parts(range(20, 25)))  # is not tried whole again
  assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
  assert later == [[20, 21, 22], [23, 24]]
  assert [str(w.message).split()[3] for w in told] == ["11", "6"]


def test_a_tile_that_fails_when_it_is_waited_for_is_halved_too():
  done = []

  def begin(numbers):
    done.append(f"begin {numbers[0]}")
    if len(numbers) > 6:
      too_large(len(numbers))
    return numbers

  def wait(numbers):
    done.append(f"wait {numbers[0]}")
    if len(numbers) > 3:
      too_large(len(numbers))

  with pytest.warns(UserWarning, match=HALVED) as told:
    parts = list(Halving(begin, str).ahead([range(5), range(5, 7), range(10, 18)], wait))
  assert parts == [[5, 6], [0, 1, 2], [3, 4], [10, 11, 12], [13, 14, 15], [16, 17]]
  # The second tile was begun before the first was waited for; what is too large is known then.
  assert done[:3] == ["begin 0", "begin 5", "wait 0"] and len(told) == 1
  with pytest.raises(MemoryError, match="row 7 is too long"):
    list(Halving(list, "row {} is too long".format).ahead([[7]], lambda _: too_large(8)))
  assert list(Halving(list, str).ahead([], too_large)) == []


@pytest.mark.parametrize("late", [False, True], ids=["begun", "waited for"])
def test_a_tile_that_fails_beside_another_is_run_by_itself(late, recwarn):
  alive, ran, units = [], [], {0: 5, 1: 5, 2: 5, 3: 8, 4: 2, 5: 2}  # of 10 that there are

  def too_many():
    if sum(units[n] for part in alive for n in part) > 10:
      too_large(sum(units.values()))

  def begin(numbers):
    alive.append(numbers)
    ran.append(numbers)
    if not late:
      try:
        too_many()
      except jax.errors.JaxRuntimeError:
        alive.remove(numbers)
        raise
    return numbers

  def wait(numbers):
    try:
      if late:
        too_many()
    finally:
      alive.remove(numbers)

  parts = list(Halving(begin, str).ahead([[0, 1], [2], [3], [4], [5]], wait))
  assert sorted(parts) == [[0, 1], [2], [3], [4], [5]] and not recwarn.list
  assert len(ran) > len(parts)  # of which some were tried twice
  with pytest.warns(UserWarning, match=HALVED):  # what fails by itself is cut
    assert sorted(Halving(begin, str).ahead([[2], [0, 1, 4]], wait)) == [[0, 1], [2], [4]]


def test_what_was_found_too_large_stays_so():
  limit = Limit()

  def begin(numbers):
    if len(numbers) > 2:
      limit.most = 1  # as another finds out meanwhile
      too_large(len(numbers))
    return numbers

  with pytest.warns(UserWarning, match=HALVED):
    parts = list(Halving(begin, str, limit=limit)(range(8)))
  assert parts == [[n] for n in range(8)] and limit.most == 1


def test_moments_of_a_device_that_fails_late_are_whole(tiny, monkeypatch):
  what, prompts = pj.Capture(blocks=1, reduce="mean"), [f"{STEM} w{i}" for i in range(5, 29)]
  whole = tiny.model.moments(prompts, what)
  monkeypatch.setattr(batches, "TILE_TOKENS", 8 * 24)
  real, sizes = jax.block_until_ready, []

  def late(x):
    if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], dict):  # a tile's reads
      sizes.append(next(iter(x[0].values())).shape[0])
      if sizes[-1] > 4:
        too_large(sizes[-1])
    return real(x)

  monkeypatch.setattr(jax, "block_until_ready", late)
  with pytest.warns(UserWarning, match=HALVED):
    parts = tiny.model.moments(prompts, what)
  assert parts.work.prompts == 24 and max(sizes) > 4
  np.testing.assert_array_equal(parts.count_G, whole.count_G)
  np.testing.assert_allclose(parts.mean["resid_post", 1], whole.mean["resid_post", 1], atol=5e-5)


def test_a_tile_is_cut_until_its_parts_fit():
  assert cut_to_fit(range(7), lambda n: sum(n) < 8) == [[0, 1, 2, 3], [4], [5], [6]]
  assert cut_to_fit([3], lambda n: False) == [[3]]


def test_one_row_that_does_not_fit_is_an_error_and_so_is_any_other_error():
  with pytest.raises(MemoryError, match="row 7 is too long"):
    list(Halving(lambda numbers: too_large(1 << 8), "row {} is too long".format)([7]))
  with pytest.raises(ZeroDivisionError):
    list(Halving(lambda numbers: 1 // 0, str)([7, 8]))


def test_only_errors_of_memory_are_taken_for_such():
  with pytest.raises(jax.errors.JaxRuntimeError) as error:
    too_large(4)
  assert is_out_of_memory(error.value) and is_out_of_memory(MemoryError())
  assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: other"))


def test_generate_goes_on_in_halves(tiny, monkeypatch):
  expected = tiny.model.generate(PROMPTS, max_new_tokens=3)
  sizes = small_device(monkeypatch, generate, 2)
  with pytest.warns(UserWarning, match=f"7 {HALVED}"):
    got = tiny.model.generate(PROMPTS, max_new_tokens=3)
  assert sizes == [7, 4, 2, 2, 2, 1]
  assert [g.token_ids for g in got] == [g.token_ids for g in expected]


def test_score_goes_on_in_halves(tiny, monkeypatch):
  d, told = tiny.direction(), []
  edits = [pj.add(d, n, unit="raw", blocks=1) if n % 2 else None for n in range(7)]
  # The first two share a pass.
  prompts, texts = [PROMPTS[0], *PROMPTS], ["w20 w22 w31", *(f"w20 w2{n} w30" for n in range(2, 9))]
  args = prompts, texts
  expected = score.score_rows(tiny.model, *args, edits=[None, *edits])
  sizes = small_device(monkeypatch, score, 2)
  with pytest.warns(UserWarning, match=f"7 {HALVED}"):
    got = score.score_rows(tiny.model, *args, edits=[None, *edits], progress=told.append)
  assert sizes == [7, 4, 2, 2, 2, 1] and told == [3, 2, 2, 1]
  for a, b in zip(got.logprobs, expected.logprobs, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  np.testing.assert_array_equal(got.tokens_edited, expected.tokens_edited)
  np.testing.assert_allclose(got.delivered_dose, expected.delivered_dose, atol=1e-5)


@pytest.mark.parametrize("reduce", ["all", "last", "mean"])
def test_captures_and_moments_go_on_in_halves(tiny, monkeypatch, reduce):
  what, groups = pj.Capture(blocks=(0, 2), reduce=reduce), ["a", "b", "a", "b", "c", "a", "c"]
  reads = tiny.model.capture(PROMPTS, what)
  whole = tiny.model.moments(PROMPTS, what, groups=groups, covariance=True)
  sizes = small_device(monkeypatch, batches, 2)
  with pytest.warns(UserWarning, match=HALVED):
    got = tiny.model.capture(PROMPTS, what)
  assert sum(n for n in sizes if n <= 2) == 7 and sizes[0] == 7
  for where, x in reads.items():
    np.testing.assert_allclose(got[where], x, atol=2e-5)
  with pytest.warns(UserWarning, match=HALVED):
    parts = tiny.model.moments(PROMPTS, what, groups=groups, covariance=True)
  order = [parts.index(label) for label in whole.labels]
  np.testing.assert_array_equal(parts.count_G[order], whole.count_G)
  assert parts.work.prompts == 7
  for name in ("mean", "variance", "covariance"):
    for where, x in getattr(whole, name).items():
      np.testing.assert_allclose(getattr(parts, name)[where][order], x, atol=5e-5)


def test_gates_and_directions_read_in_halves(tiny, monkeypatch):
  d = tiny.direction()
  probe = pj.Probe(d, 1, above=0.0)
  edits = [pj.add(d, 1.0, unit="raw", blocks=1).when(probe)] * len(PROMPTS)
  gated = [g.tokens_edited for g in tiny.model.generate(PROMPTS, edits=edits, max_new_tokens=2)]
  v_LD = pj.extract(tiny.model, PROMPTS[:4], PROMPTS[3:]).mean_LD
  small_device(monkeypatch, batches, 2)
  with pytest.warns(UserWarning, match=HALVED):
    got = tiny.model.generate(PROMPTS, edits=edits, max_new_tokens=2)
  assert [g.tokens_edited for g in got] == gated
  with pytest.warns(UserWarning, match=HALVED):
    np.testing.assert_allclose(
      pj.extract(tiny.model, PROMPTS[:4], PROMPTS[3:]).mean_LD, v_LD, atol=2e-5
    )


@pytest.mark.filterwarnings("ignore:a tile of")
def test_a_prompt_that_does_not_fit_is_named_with_what_it_needs(tiny, monkeypatch):
  model, needs = tiny.model, r"by itself: it is predicted to take [\d.]+ MiB, .* may be filled"
  size = lambda text: len(model.encode(text).ids)
  small_device(monkeypatch, generate, 0)
  with pytest.raises(
    MemoryError, match=f"prompt 0 of {size(PROMPTS[0])} .*{needs}.*max_new_tokens"
  ):
    model.generate(PROMPTS[:1], max_new_tokens=3)
  small_device(monkeypatch, score, 0)
  with pytest.raises(MemoryError, match=f"prompt 0 with its continuation of .*{needs}.*shorter"):
    model.score(PROMPTS[:2], ["w20 w21", "w22"])
  small_device(monkeypatch, batches, 0)
  for read in (model.capture, model.moments):
    with pytest.raises(MemoryError, match=f"prompt 0 of {size(PROMPTS[0])} .*{needs}.*fewer sites"):
      read(PROMPTS[:1], pj.Capture())


def test_scores_are_cut_into_tiles_that_are_predicted_to_fit(tiny, monkeypatch):
  prompts = [*PROMPTS, *(" ".join([text] * 4) for text in PROMPTS)]
  texts = ["w20 w21"] * len(prompts)
  expected = tiny.model.score(prompts, texts)
  rows = score.encode_rows(tiny.model, prompts, None)
  passes = [score._Pass(row, (1,), [2]) for row in rows]
  limit = score._peak(tiny.model, passes[7:11])
  assert limit < score._peak(tiny.model, passes)
  monkeypatch.setattr(score, "memory_limit", lambda mesh: limit)
  sizes = small_device(monkeypatch, score, 14)
  np.testing.assert_allclose(tiny.model.score(prompts, texts), expected, atol=2e-5)
  assert sum(sizes) == 14 and len(sizes) > 1


def test_a_program_that_ran_out_of_memory_keeps_no_arrays_of_the_tile(tiny, monkeypatch):
  real, alive = Need.compile, []

  def compile(need):
    if need.name == "decode" and need.args[3].token_B.shape[0] > 4:
      too_large(1)
    return real(need)

  def run(numbers):
    gc.collect()
    alive.append(sum(x.nbytes for x in jax.live_arrays()))
    return generate.generate_tile(tiny.model, [rows[n] for n in numbers], settings)

  settings = Settings(3, Sampling(0.9))  # whose programs no other test has
  rows = score.encode_rows(tiny.model, PROMPTS[:4] * 2, None)
  generate.generate_tile(tiny.model, rows[:4], settings)  # what is made once and stays
  monkeypatch.setattr(Need, "compile", compile)
  with pytest.warns(UserWarning, match=f"8 {HALVED}"):
    assert len([g for part in Halving(run, str)(range(8)) for g in part]) == 8
  assert alive[1] <= alive[0]


def test_captures_are_cut_into_tiles_that_are_predicted_to_fit(tiny, monkeypatch):
  what = pj.Capture(("attn_out", "resid_post"), reduce="all")
  prompts = [*PROMPTS, *(" ".join([text] * 4) for text in PROMPTS)]
  expected = tiny.model.capture(prompts, what)
  rows = score.encode_rows(tiny.model, prompts, None)
  spec, banks = batches.resolve(what, tiny.model.arch)
  places = spec.places(banks, tiny.model.arch)
  peak = lambda rows: batches._peak(tiny.model, rows, spec, banks, places, ALL_SHARED)
  limit = peak(rows[7:11])
  assert limit < peak(rows)
  monkeypatch.setattr(batches, "memory_limit", lambda mesh: limit)
  sizes = small_device(monkeypatch, batches, 14)
  for where, x in tiny.model.capture(prompts, what).items():
    np.testing.assert_allclose(x, expected[where], atol=2e-5)
  assert sum(sizes) == 14 and len(sizes) > 1


def test_a_stream_that_ran_out_of_memory_is_cut_before(tiny, monkeypatch):
  what, prompts = pj.Capture(blocks=1, reduce="last"), [f"{STEM} w{i}" for i in range(5, 29)]
  whole = tiny.model.moments(prompts, what)
  monkeypatch.setattr(batches, "TILE_TOKENS", 8 * 24)
  monkeypatch.setattr(stream, "_PIECE", 8)
  sizes = small_device(monkeypatch, batches, 4)
  with pytest.warns(UserWarning, match=HALVED) as told:
    parts = tiny.model.moments(prompts, what)
  assert len([w for w in told if "halves" in str(w.message)]) == 1
  assert sizes == [8, 4, 4, 4, 4, 4, 4]
  np.testing.assert_allclose(parts.mean["resid_post", 1], whole.mean["resid_post", 1], atol=5e-5)


def test_a_read_tile_does_not_keep_keys_and_values(tiny):
  rows = score.encode_rows(tiny.model, PROMPTS, None)
  (tile,) = batches.batches(tiny.model, rows, pj.Capture(reduce="last"))
  assert not tile.prefix.waves and tile.prefix.passes > 0
