"""Compiled programs: made once for each shape, ahead if wished, and listed.

The engine's host code calls the device through a `Runner`. `Live` compiles what it has not met and
runs it; `Dry` only works out shapes and notes which programs would be needed. So a plan is the same
code as the run, and what it announces is what will be compiled.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from persona_jax.data.wheels import cache_dir


class Runner(Protocol):
  """Calls a jitted function: `run(name, fn, *args, **static)`."""

  is_dry: bool

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any: ...


class _Direct:
  """Calls functions as they are: under a trace, or where arrays are split over a mesh."""

  is_dry = False

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    del name
    return fn(*args, **static)


DIRECT: Runner = _Direct()


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program.

  Attributes:
    name: what it does.
    shapes: of its largest arguments, for people.
    seconds: tracing and compiling, or reading from disk.
    argument_bytes, temp_bytes, output_bytes, alias_bytes: as the compiler reports; aliased bytes
      are those of outputs that take the place of donated arguments. -1 where it says nothing.
    traces: how many times the function was traced for it.
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
  """A program that is wanted: a function with the shapes of its arguments."""

  def __init__(self, name: str, fn: Any, args: tuple[Any, ...], static: dict[str, Any]):
    self.name, self._fn, self.static = name, fn, static
    self.args = jax.tree.map(_shape_of, args)
    self._device = jax.config.jax_default_device  # type: ignore[attr-defined]
    self.key = _key(name, fn, args, static)
    self._lock = threading.Lock()
    self._traced: Any = None
    self._results: Any = None
    self._donated_bytes = 0

  def _trace(self) -> Any:
    """Trace the function; who comes second waits, and traces nothing again."""
    with self._lock:
      if self._traced is None:
        self._traced = self._fn.trace(*self.args, **self.static)
        self._results = jax.tree.map(_shape_of, self._traced.out_info)
        donated = [x for x in jax.tree.leaves(self._traced.args_info) if x.donated]
        self._donated_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in donated)
      return self._traced

  @property
  def shapes(self) -> str:
    """Shapes of the largest arguments, repetitions counted."""
    leaves = jax.tree.leaves(self.args)
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

  def compile(self) -> tuple[Any, float]:
    """Compile it; return the program and the seconds that took."""
    start = time.perf_counter()
    with jax.default_device(self._device):
      compiled = self._trace().lower().compile()
    with self._lock:
      self._traced = None  # large, and of no further use
    return compiled, time.perf_counter() - start


class _Entry:
  """A program of the table, compiled by whoever claims it first."""

  def __init__(self, need: Need):
    self.need, self.calls = need, 0
    self._claim = threading.Lock()
    self._made: Future[tuple[Any, float]] = Future()

  def compile(self) -> None:
    """Compile it, unless someone already does."""
    if not self._claim.acquire(blocking=False):
      return
    try:
      self._made.set_result(self.need.compile())
    except BaseException as error:
      self._made.set_exception(error)

  @property
  def failed(self) -> bool:
    """Whether it could not be compiled."""
    return self._made.done() and self._made.exception() is not None

  @property
  def compiled(self) -> Any:
    """The program; waits for it."""
    self.compile()
    return self._made.result()[0]

  def describe(self) -> Program:
    """Return what is known of it; waits for it."""
    self.compile()
    compiled, seconds = self._made.result()
    memory = compiled.memory_analysis()
    arguments, temp, output, alias = (
      int(getattr(memory, f"{kind}_size_in_bytes", -1))
      for kind in ("argument", "temp", "output", "alias")
    )
    need = self.need
    return Program(need.name, need.shapes, seconds, arguments, temp, output, alias, 1, self.calls)


class Live:
  """Compiles and runs programs; one table serves the process, as JAX's own cache does."""

  is_dry = False

  def __init__(self) -> None:
    self._entries: dict[Hashable, _Entry] = {}
    self._lock = threading.Lock()
    self._ahead = ThreadPoolExecutor(1, thread_name_prefix="compile-ahead")

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    """Run a function on arrays, compiled first if it is new."""
    key = _key(name, fn, args, static)
    entry = self._entries.get(key)
    if entry is None or entry.failed:
      entry = self._entry(Need(name, fn, args, static))
    entry.calls += 1
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
      self._entries.clear()

  def know(self, needs: Iterable[Need]) -> list[Need]:
    """Take programs in, to be compiled when they are called; return those that the table has."""
    return [self._entry(need).need for need in needs]

  def prepare(self, needed: Callable[[], Iterable[Need]]) -> None:
    """Compile in the background what is not there yet.

    Args:
      needed: called in the background too; gives the programs.
    """

    def compile_all() -> None:
      # The longest first: who calls this is about to need the others, and compiles them himself.
      for need in sorted(needed(), key=lambda need: need.name != "decode"):
        if threading.main_thread().is_alive():  # at exit, what is still queued is of no use
          self._entry(need).compile()

    self._ahead.submit(compile_all)

  def describe(self, needs: Iterable[Need]) -> list[Program]:
    """Return the programs of these needs, compiled."""
    return [self._entry(need).describe() for need in needs]

  def _entry(self, need: Need) -> _Entry:
    with self._lock:
      entry = self._entries.get(need.key)
      if entry is None or entry.failed:
        entry = self._entries[need.key] = _Entry(need)
      return entry


PROGRAMS = Live()


class Dry:
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

  def __call__(self, name: str, fn: Any, *args: Any, **static: Any) -> Any:
    """Return the shapes of a function's results."""
    key = _key(name, fn, args, static)
    if key not in self.needs:
      need = Need(name, fn, args, static)
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


def _key(name: str, fn: Callable[..., Any], args: Any, static: dict[str, Any]) -> Hashable:
  leaves, tree = jax.tree.flatten(args)
  shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in leaves)
  return name, fn, tree, shapes, tuple(sorted(static.items()))


def tree_bytes(tree: Any) -> int:
  """Return the bytes of the arrays, or shapes of arrays, in a pytree."""
  return sum(int(np.prod(np.shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


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
