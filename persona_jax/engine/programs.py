"""Compiled programs: made once for each shape, ahead if wished, and listed.

The engine's host code calls the device through a `Runner`. `Live` compiles what it has not met and
runs it; `Dry` only works out shapes and notes which programs would be needed. So a plan is the same
code as the run; `engine.plan.plan` says what it can't foresee.
"""

import abc
import copy
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import SingleDeviceSharding

from persona_jax._compat import CPU_BLOCK_OPTIONS
from persona_jax.data.wheels import cache_dir
from persona_jax.engine import jax_thread

# A grid takes some dozens. Of a model of 30 blocks one takes 8 MiB of the host's memory on average
# (measured on a CPU), so these are 4 GiB.
MOST_PROGRAMS = 512
# Names of programs whose first argument is parameters of the model.
TAKE_PARAMS = ("block", "embed", "decode", "log-probs")


class Runner(Protocol):
  """Calls a jitted function: `run(name, fn, *args, **static)`."""

  @property
  def is_dry(self) -> bool:
    """Whether it gives shapes, and runs nothing."""

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any: ...

  def on(self, device: jax.Device | None) -> "Runner":
    """Return a runner whose programs are for a device; None leaves it to the arguments."""


class _Direct:
  """Calls functions as they are: under a trace, or where arrays are split over a mesh."""

  is_dry = False

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    del name
    return fn(*args, **static)

  def on(self, device: jax.Device | None) -> Runner:
    """Return itself: the arrays say where they are."""
    del device
    return self


DIRECT: Runner = _Direct()


class _Table(abc.ABC):
  """A runner that knows its programs: subclasses say what a call of one does."""

  is_dry: bool

  @abc.abstractmethod
  def call(
    self, device: jax.Device | None, name: str, fn: Any, args: Any, static: dict[str, Any]
  ) -> Any:
    """Call a function on a device; None is that of its arguments."""

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    """Call a function on the device of its arguments."""
    return self.call(None, name, fn, args, static)

  def on(self, device: jax.Device | None) -> Runner:
    """Return a runner that calls functions here for a device."""
    return self if device is None else _On(self, device)


@dataclasses.dataclass(frozen=True)
class _On:
  """A table on one device."""

  run: _Table
  device: jax.Device

  @property
  def is_dry(self) -> bool:
    return self.run.is_dry

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    return self.run.call(self.device, name, fn, args, static)

  def on(self, device: jax.Device | None) -> Runner:
    return self.run.on(device)


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program.

  Attributes:
    name: what it does.
    shapes: of its largest arguments, for people.
    seconds: tracing and compiling, or reading from disk.
    argument_bytes, temp_bytes, output_bytes, alias_bytes: as the compiler reports; aliased bytes
      are those of outputs that take the place of donated arguments. -1 where it says nothing.
    traces: how many times Python ran the function to trace it, as JAX reports; 0 where JAX still
      had the trace of an earlier program, such as that of a plan that is gone.
    calls: how many times it was run.
  """

  name: str
  shapes: str
  seconds: float
  argument_bytes: int
  temp_bytes: int
  output_bytes: int
  alias_bytes: int
  traces: int
  calls: int

  @property
  def total_bytes(self) -> int:
    """Device memory while it runs: arguments, outputs that alias none, temporaries."""
    return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes


class Need:
  """A program that is wanted: a function with the shapes of its arguments, on one device.

  It is compiled under the settings of JAX that it was made under, in whatever thread.
  """

  def __init__(
    self,
    device: jax.Device | None,
    name: str,
    fn: Any,
    args: tuple[Any, ...],
    static: dict[str, Any],
  ):
    self.name, self.fn, self.static = name, fn, static
    self.key = _key(device, name, fn, args, static)
    self._settings = jax_thread.settings()
    self._device: Any = device or _device_of(jax.tree.leaves(args))
    place = SingleDeviceSharding(self._device)
    self.args = jax.tree.map(lambda leaf: _shape_of(leaf, place), args)
    self._lock = threading.Lock()
    self._traced: Any = None
    self._results: Any = None
    self._donated_bytes = 0
    self.traces = 0

  def _trace(self) -> Any:
    """Trace the function; who comes second waits, and traces nothing again."""
    with self._lock:
      if self._traced is None:
        before = jax_thread.traces(self.fn.__name__)
        with jax_thread.using(self._settings):
          self._traced = self.fn.trace(*self.args, **self.static)
        self.traces += jax_thread.traces(self.fn.__name__) - before
        self._results = jax.tree.map(_shape_of, self._traced.out_info)
        donated = [x for x in jax.tree.leaves(self._traced.args_info) if x.donated]
        self._donated_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in donated)
      return self._traced

  @property
  def shapes(self) -> str:
    """Shapes of the largest arguments but the parameters, repetitions counted."""
    leaves = jax.tree.leaves(self.args[self.name in TAKE_PARAMS :])
    counts: dict[str, int] = {}
    for leaf in sorted(leaves, key=lambda leaf: -leaf.size):
      text = f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"
      counts[text] = counts.get(text, 0) + 1
    return " ".join(t if n == 1 else f"{n}x{t}" for t, n in list(counts.items())[:5])

  @property
  def argument_bytes(self) -> int:
    """Bytes of the arguments."""
    return tree_bytes(self.args)

  @property
  def new_result_bytes(self) -> int:
    """Bytes of the results that take no donated argument's place."""
    return max(0, tree_bytes(self.results()) - self._donated_bytes)

  def results(self) -> Any:
    """Return the results as shapes."""
    if self._results is None:
      self._trace()
    return self._results

  def forget(self) -> None:
    """Let JAX forget the function: it keeps what it has compiled, and so the memory, for itself.

    Other programs of the function stay with those who hold them; new ones are traced again.
    """
    self.fn.clear_cache()

  @property
  def _options(self) -> dict[str, Any]:
    """What the compiler is told of it."""
    on_cpu = self._device.platform == "cpu"
    return dict(CPU_BLOCK_OPTIONS) if self.name == "block" and on_cpu else {}

  def compile(self) -> tuple[Any, float]:
    """Compile it; return the program and the seconds that took."""
    start = time.perf_counter()
    with jax_thread.using(self._settings):
      compiled = self._trace().lower().compile(compiler_options=self._options)
    with self._lock:
      self._traced = None  # large, and of no further use
    return compiled, time.perf_counter() - start


class _Entry:
  """A program of the table, compiled by whoever claims it first."""

  def __init__(self, need: Need):
    self.need, self.calls, self.last_use = need, 0, 0
    self._claim = threading.Lock()
    self._made: Future[tuple[Any, float]] = Future()

  def compile(self) -> None:
    """Compile it, unless someone already does."""
    if not self._claim.acquire(blocking=False):
      return
    try:
      self._made.set_result(self.need.compile())
    except BaseException as error:
      self._made.set_exception(error.with_traceback(None))

  @property
  def error(self) -> BaseException | None:
    """Why it could not be compiled; None if it was, or is being."""
    return self._made.exception() if self._made.done() else None

  @property
  def failed(self) -> bool:
    """Whether it could not be compiled."""
    return self.error is not None

  @property
  def compiled(self) -> Any:
    """The program; waits for it."""
    return self._result()[0]

  def _result(self) -> tuple[Any, float]:
    """Return the program and the seconds that it took; waits for it."""
    self.compile()
    error = self._made.exception()  # waits
    if error is not None:
      # Raised as a new one: the one that is kept would hold its callers' frames, and with them the
      # arrays of a tile that is to be run again in halves.
      raise copy.copy(error)
    return self._made.result()

  def describe(self) -> Program:
    """Return what is known of it; waits for it."""
    compiled, seconds = self._result()
    memory = compiled.memory_analysis()
    arguments, temp, output, alias = (
      int(getattr(memory, f"{kind}_size_in_bytes", -1))
      for kind in ("argument", "temp", "output", "alias")
    )
    need = self.need
    sizes = (arguments, temp, output, alias)
    return Program(need.name, need.shapes, seconds, *sizes, need.traces, self.calls)


class Live(_Table):
  """Compiles and runs programs; one table serves the process, as JAX's own cache does.

  Attributes:
    most: how many programs are kept. When there are more, those that were not used for longest are
      dropped, a quarter at once, and with them their memory; one that is called again is compiled
      again, or read from disk.
  """

  is_dry = False

  def __init__(self, most: int = MOST_PROGRAMS) -> None:
    """Begin with none.

    Raises:
      ValueError: `most` is below 1.
    """
    if most < 1:
      raise ValueError(f"most={most}: keep at least 1 program.")
    self.most = most
    self._clock = itertools.count(1)
    self._entries: dict[Hashable, _Entry] = {}
    self._lock = threading.Lock()
    self._ahead = ThreadPoolExecutor(1, thread_name_prefix="compile-ahead")

  def call(
    self, device: jax.Device | None, name: str, fn: Any, args: Any, static: dict[str, Any]
  ) -> Any:
    """Run a function on a device; None is that of its arguments."""
    key = _key(device, name, fn, args, static)
    entry = self._entries.get(key)
    if entry is None or entry.failed:
      entry = self._entry(Need(device, name, fn, args, static))
    entry.calls += 1
    entry.last_use = next(self._clock)
    return entry.compiled(*args)

  def __len__(self) -> int:
    """Return how many programs there are, or are being compiled."""
    return len(self._entries)

  def count(self, name: str) -> int:
    """Return how many of them have a name."""
    return sum(entry.need.name == name for entry in list(self._entries.values()))

  def clear(self) -> None:
    """Forget all programs, and with them their memory; they are compiled again when called."""
    with self._lock:
      self._drop(len(self._entries))

  def know(self, needs: Iterable[Need]) -> list[Need]:
    """Take programs in, to be compiled when they are called; return those that the table has."""
    return [self._entry(need).need for need in needs]

  def prepare(self, needed: Callable[[], Iterable[Need]]) -> Future[None]:
    """Compile in the background what is not there yet.

    Args:
      needed: called in the background too, under this thread's settings of JAX; gives the programs.

    Returns:
      What is done when they are compiled.
    """

    settings = jax_thread.settings()

    def compile_all() -> None:
      try:
        with jax_thread.using(settings):
          needs = list(needed())
      except Exception as error:
        logging.warning("programs are not compiled ahead: they could not be planned: %r", error)
        return
      # The longest first: who calls this is about to need the others, and compiles them himself.
      for need in sorted(needs, key=lambda need: need.name != "decode"):
        if threading.main_thread().is_alive():  # at exit, what is still queued is of no use
          entry = self._entry(need)
          entry.compile()
          if entry.failed:  # who calls it tries again, and is told
            logging.warning("program %r could not be compiled ahead: %r", need.name, entry.error)

    return self._ahead.submit(compile_all)

  def describe(self, needs: Iterable[Need]) -> list[Program]:
    """Return the programs of these needs, compiled."""
    return [self._entry(need).describe() for need in needs]

  def _entry(self, need: Need) -> _Entry:
    with self._lock:
      entry = self._entries.get(need.key)
      if entry is None or entry.failed:
        entry = self._entries[need.key] = _Entry(need)
      entry.last_use = next(self._clock)
      if len(self._entries) > self.most:
        # Not one by one: each time JAX's traces of the functions go too.
        self._drop(len(self._entries) - max(1, self.most * 3 // 4))
      return entry

  def _drop(self, count: int) -> None:
    """Forget the programs that were not used for longest; who runs or compiles one still has it."""
    oldest = sorted(self._entries.items(), key=lambda item: item[1].last_use)[:count]
    for key, _ in oldest:
      del self._entries[key]
    for need in {entry.need.fn: entry.need for _, entry in oldest}.values():
      need.forget()


PROGRAMS = Live()


class Dry(_Table):
  """Runs nothing: returns shapes, and notes what would be run.

  Args:
    table: where programs are to be known at once, so that nobody traces them a second time.

  Attributes:
    needs: programs by key, in the order of first use.
    calls: how often each would be run.
  """

  is_dry = True

  def __init__(self, table: Live | None = None) -> None:
    self._table = table
    self.needs: dict[Hashable, Need] = {}
    self.calls: dict[Hashable, int] = {}
    self._results: dict[Hashable, Any] = {}

  def call(
    self, device: jax.Device | None, name: str, fn: Any, args: Any, static: dict[str, Any]
  ) -> Any:
    """Return the shapes of a function's results on a device; None is that of its arguments."""
    key = _key(device, name, fn, args, static)
    if key not in self.needs:
      need = Need(device, name, fn, args, static)
      if self._table is not None:
        (need,) = self._table.know([need])
      self.needs[key] = need
      self._results[key] = need.results()
    self.calls[key] = self.calls.get(key, 0) + 1
    return self._returned(self.needs[key], args, self._results[key])

  def _returned(self, need: Need, args: tuple[Any, ...], results: Any) -> Any:
    """Return what a call of a program gives."""
    del need, args
    return results

  def __iter__(self) -> Iterator[Need]:
    return iter(self.needs.values())


def _key(
  device: jax.Device | None, name: str, fn: Callable[..., Any], args: Any, static: dict[str, Any]
) -> Hashable:
  leaves, tree = jax.tree.flatten(args)
  shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in leaves)
  place = device or _device_of(leaves)
  return name, fn, tree, shapes, tuple(sorted(static.items())), place, jax_thread.settings()


def device_of(leaf: Any) -> jax.Device | None:
  """Return the device of an array or a shape; None if it has none of its own."""
  if isinstance(leaf, jax.core.Tracer):
    return None
  place = getattr(leaf, "sharding", None)
  if place is None or len(place.device_set) != 1:
    return None
  (device,) = place.device_set
  return device


def _device_of(leaves: Iterable[Any]) -> jax.Device:
  """Return the device of the first array that lies on one, else JAX's default."""
  for leaf in leaves:
    device = device_of(leaf)
    if device is not None:
      return device
  default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
  if default is None or isinstance(default, str):  # a platform
    return jax.local_devices(backend=default)[0]
  return default


def tree_bytes(tree: Any) -> int:
  """Return the bytes of the arrays, or shapes of arrays, in a pytree."""
  return sum(int(np.prod(np.shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shape_of(leaf: Any, place: SingleDeviceSharding | None = None) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place)


def keep_on_disk() -> Path | None:
  """Let JAX keep compiled programs on disk, so that the next process reads them.

  Does nothing where the user has set a directory of his own (`jax_compilation_cache_dir`, the
  variable JAX_COMPILATION_CACHE_DIR) or switched JAX's cache off. Otherwise it is a folder of the
  cache that models and prompts are in.

  Returns:
    The directory, or None where the cache is off.
  """
  config: Any = jax.config
  if not config.jax_enable_compilation_cache:
    return None
  if config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    # JAX leaves out programs that compile in under a second; here they are many. And it decides at
    # the first program of a process whether there is a cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
  return Path(config.jax_compilation_cache_dir)
