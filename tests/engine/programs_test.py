"""Programs are compiled once, ahead if asked for, and kept on disk."""

import collections
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import persona_jax as pj
from persona_jax.engine.background import Background
from persona_jax.engine.disk_cache import keep_on_disk
from persona_jax.engine.need import Need
from persona_jax.engine.programs import PROGRAMS, Dry, Live


@jax.jit
def double(x):
  return {"twice": 2 * x, "sum": x.sum()}


def test_a_shape_is_compiled_once_and_a_dry_run_says_which():
  live, dry = Live(), Dry()
  xs = [np.ones(3, np.float32), np.ones(3, np.float32), np.ones(4, np.float32)]
  for x in xs:
    shapes, real = dry("double", double, x), live("double", double, x)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
      lambda r: (r.shape, r.dtype), real
    )
    np.testing.assert_array_equal(real["twice"], 2 * x)
  assert len(live) == len(list(dry)) == 2 and list(dry.calls.values()) == [2, 1]
  first, second = live.describe(dry)
  assert (first.calls, second.calls) == (2, 1) and first.shapes == "float32[3]"
  assert first.argument_bytes == 12 and first.output_bytes >= 16


def test_programs_made_ahead_are_used():
  live, dry, compiled = Live(), Dry(), []

  def heard(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
      compiled.append(threading.current_thread())

  x = np.ones(5, np.float32)
  tripled = jax.jit(lambda x: 3 * x)
  dry("tripled", tripled, x)
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    live.prepare(lambda: dry).result()
    (thread,) = compiled
    assert thread is not threading.current_thread()
    np.testing.assert_array_equal(live("tripled", tripled, x), 3 * x)
    assert compiled == [thread] and len(live) == 1 and live.describe(dry)[0].calls == 1
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)


def test_a_program_that_failed_may_be_tried_again():
  live, broken = Live(), [True]

  @jax.jit
  def moody(x):
    if broken:
      raise ValueError("not now")
    return x + 1

  with pytest.raises(ValueError, match="not now"):
    live("moody", moody, np.ones(2, np.float32))
  broken.clear()
  np.testing.assert_array_equal(live("moody", moody, np.ones(2, np.float32)), [2, 2])


def test_an_error_of_tracing_is_the_users_own():
  @jax.jit
  def branches(x):
    return x if x.sum() > 0 else 2 * x

  live, x = Live(), np.ones(2, np.float32)
  for _ in range(2):
    with pytest.raises(jax.errors.TracerBoolConversionError) as error:
      live("branches", branches, x)
    assert any(entry.name == "branches" for entry in error.traceback)
    assert len(live) == 0  # nothing is kept with the frames of the error
  live.prepare(lambda: [Need(None, "branches", branches, (x,), {})]).result()
  with pytest.raises(jax.errors.TracerBoolConversionError):
    live("branches", branches, x)


def test_at_exit_no_more_programs_are_compiled(tmp_path):
  script = """
import time
import jax, numpy as np
from persona_jax.engine.need import Need
from persona_jax.engine.programs import Live

@jax.jit
def slow(x):
  print("traced", flush=True)
  time.sleep(0.5)
  return x + 1

needs = [Need(None, "slow", slow, (np.ones(n, np.float32),), {}) for n in range(1, 9)]
live = Live()
live.prepare(lambda: needs)
live.prepare(lambda: needs)
time.sleep(0.2)
"""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
  )
  assert 1 <= done.stdout.count("traced") <= 2 and not done.stderr


def test_known_programs_that_nobody_wants_are_discarded():
  live, x = Live(), np.ones(7, np.float32)
  needs = live.know([Need(None, "double", double, (np.ones(n, np.float32),), {}) for n in (7, 9)])
  live("double", double, x)
  live.discard(needs)
  assert len(live) == 1 and live.describe([needs[0]])[0].calls == 1


def test_programs_that_were_not_used_for_longest_are_dropped():
  live, traced = Live(most=4), []

  @jax.jit
  def note(x):
    traced.append(x.shape[0])
    return x + 1

  call = lambda n: np.testing.assert_array_equal(live("note", note, np.ones(n)), np.full(n, 2.0))
  for n in (1, 2, 3, 4, 1):
    call(n)
  assert len(live) == 4 and traced == [1, 2, 3, 4]
  call(5)  # 2 and 3 go
  assert len(live) == 3
  for n in (1, 4, 5, 2):
    call(n)
  assert len(live) == 4 and traced == [1, 2, 3, 4, 5, 2]
  with pytest.raises(ValueError, match="at least 1"):
    Live(most=0)


def test_programs_that_are_dropped_are_given_back():
  live = Live(most=1)

  def executables() -> int:
    gc.collect()
    return len(jax.devices()[0].client.live_executables())

  fn = jax.jit(lambda x: jnp.sort(x) * 3)
  live("sort", fn, np.ones(3))
  before = executables()
  for n in range(4, 8):
    live("sort", fn, np.ones(n))
  assert len(live) == 1 and executables() <= before
  live.clear()
  assert len(live) == 0 and executables() < before


def test_traces_are_those_that_python_made():
  made = []

  @jax.jit
  def noted(x):
    made.append(x.shape)
    return jax.nn.relu(x) + 1  # a jitted function inside is not counted

  live, dry, x = Live(), Dry(), np.ones(6, np.float32)
  dry("noted", noted, x)
  for _ in range(3):
    live.describe(dry)
    live("noted", noted, x)
  assert made == [(6,)] and [p.traces for p in live.describe(dry)] == [1]
  # Another table asks again; JAX has the trace.
  other = Live()
  other("noted", noted, x)
  (need,) = (entry.need for entry in other._entries.values())
  assert made == [(6,)] and other.describe([need])[0].traces == 0


def test_jobs_that_are_cancelled_or_get_no_thread_are_left_out(monkeypatch):
  background, go, did = Background("jobs"), threading.Event(), []

  def no_thread(self):
    raise RuntimeError("can't start new thread")

  with monkeypatch.context() as patch:
    patch.setattr(threading.Thread, "start", no_thread)
    assert background.submit(lambda: did.append(0)).cancelled()
  background.submit(lambda: go.wait() and None)
  dropped, last = (background.submit(lambda n=n: did.append(n)) for n in (1, 2))
  assert dropped.cancel()
  go.set()
  last.result()
  assert did == [2]


def test_what_fails_in_the_background_is_logged(caplog):
  def needed():
    raise ZeroDivisionError("a plan that can't be made")

  @jax.jit
  def broken(x):
    raise ValueError("can't be traced")

  live, x = Live(), np.ones(2, np.float32)
  with caplog.at_level("WARNING"):
    live.prepare(needed).result()
    assert "a plan that can't be made" in caplog.text
    live.prepare(lambda: [Need(None, "broken", broken, (x,), {})]).result()
  assert "can't be traced" in caplog.text and "'broken'" in caplog.text


@jax.jit
def square(x):
  return x @ x


def test_settings_of_jax_make_a_program_of_their_own():
  live, x = Live(), np.eye(3, dtype=np.float32)
  live("square", square, x)
  with jax.default_matmul_precision("highest"):
    live("square", square, x)
  with jax.enable_x64(True):
    live("square", square, x)
    assert live("square", square, x.astype(np.float64)).dtype == np.float64
  live("square", square, x)
  assert len(live) == 4


def test_programs_made_ahead_have_the_settings_of_who_asked():
  live, x = Live(), np.eye(3, dtype=np.float64)

  def needed():
    dry = Dry()
    assert dry("square", square, x).dtype == np.float64
    return dry

  with jax.default_matmul_precision("highest"), jax.enable_x64(True):
    live.prepare(needed).result()
    assert len(live) == 1
    assert live("square", square, x).dtype == np.float64
  assert len(live) == 1


SCRIPT = """
import sys
import numpy as np, jax
from persona_jax.engine.disk_cache import keep_on_disk
from persona_jax.engine.programs import Live
print(keep_on_disk())
for n in map(int, sys.argv[1:]):
  Live()("times", jax.jit(lambda x: n * x), np.ones(7, np.float32))
"""


def run_script(*factors: int, **env: str) -> Path:
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, *map(str, factors)],
    env={**os.environ, **env},
    capture_output=True,
    text=True,
    check=True,
  )
  return Path(done.stdout.strip())


def programs_in(where: Path) -> set[str]:
  return {path.name for path in where.glob("*-cache")}


def test_the_next_process_reads_programs_from_disk(tmp_path):
  where = run_script(3, XDG_CACHE_HOME=str(tmp_path))
  assert where == tmp_path / "persona_jax" / "programs"
  (made,) = programs_in(where)
  # Now as a directory of the user's own.
  assert run_script(3, 4, JAX_COMPILATION_CACHE_DIR=str(where)) == where
  assert made in programs_in(where) and len(programs_in(where)) == 2


@pytest.fixture
def empty_disk_cache(tmp_path):
  """JAX keeps every program in a folder of its own."""
  names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
  options = {f"jax_{name}": None for name in (*names, "enable_compilation_cache")}
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in zip(options, (str(tmp_path / "programs"), 0.0, True), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_the_same_grid_again_reads_all_its_programs_from_disk(tiny, tmp_path, empty_disk_cache):
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=1, tokens="all")
  conditions = [pj.Condition("none"), pj.Condition("steered", edits=edit)]
  grid = pj.Grid([pj.Raw("w5 w6 " * 51)], conditions, max_new_tokens=3)  # as no other test has it
  events: collections.Counter[str] = collections.Counter()

  def heard(event: str, **_) -> None:
    events[event.rpartition("/")[2]] += 1

  jax.monitoring.register_event_listener(heard)
  try:
    texts = []
    for name in ("first", "second"):
      PROGRAMS.clear()
      jax.clear_caches()
      events.clear()
      run = pj.run(tiny.model, grid, out=tmp_path / name, progress=False)
      texts.append(run.table()["text"].tolist())
      if name == "first":
        assert events["cache_misses"] > 5
    assert events["cache_hits"] == events["compile_requests_use_cache"] > 5
    assert texts[0] == texts[1]
  finally:
    jax.monitoring.unregister_event_listener(heard)


def test_a_directory_and_a_threshold_of_the_users_own_are_kept(tmp_path, empty_disk_cache):
  own = tmp_path / "programs"
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1000)
  assert keep_on_disk() == own
  Live()("thrice", jax.jit(lambda x: 3 * x), np.ones(7, np.float32))
  assert not programs_in(own)  # of a program that compiles in some hundredths
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)  # as JAX leaves it
  assert keep_on_disk() == own
  Live()("fourfold", jax.jit(lambda x: 4 * x), np.ones(7, np.float32))
  assert len(programs_in(own)) == 1


def test_a_cache_that_is_off_stays_off():
  before, kept = jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    assert keep_on_disk() is None and jax.config.jax_compilation_cache_dir == kept
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
