"""Compiled programs: made once for each shape, ahead if wished, and listed.

The engine's host code calls the device through a `Runner`. `Live` compiles what it has not met and
runs it; `Dry` only works out shapes and notes which programs would be needed. So a plan is the same
code as the run; `engine.plan.plan` says what it can't foresee.
"""

import abc
import copy
import dataclasses
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

import jax
from absl import logging

from persona_jax.engine import jax_thread
from persona_jax.engine.background import Background
from persona_jax.engine.need import Need, Program, program_key

# A grid takes some dozens. Of a model of 30 blocks one takes 8 MiB of the host's memory on average
# (measured on a CPU), so these are 4 GiB.
MOST_PROGRAMS = 512


# Errors by which JAX may say that memory is too little.
_OF_MEMORY = (MemoryError, jax.errors.JaxRuntimeError)


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
      # With its traceback it would hold its callers' frames, and with them the arrays of a tile
      # that is to be run again in halves. Of other errors the traceback is what the user needs.
      light = isinstance(error, _OF_MEMORY)
      self._made.set_exception(error.with_traceback(None) if light else error)

  @property
  def begun(self) -> bool:
    """Whether someone has compiled it, or is about to."""
    return self._claim.locked()

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
    if isinstance(error, _OF_MEMORY):
      raise copy.copy(error)  # raised as a new one, it leaves the one that is kept without frames
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
    self._ahead = Background("compile-ahead")

  def call(
    self, device: jax.Device | None, name: str, fn: Any, args: Any, static: dict[str, Any]
  ) -> Any:
    """Run a function on a device; None is that of its arguments."""
    key = program_key(device, name, fn, args, static)
    entry = self._entries.get(key)
    if entry is None or entry.failed:
      entry = self._entry(Need(device, name, fn, args, static))
    entry.calls += 1
    entry.last_use = next(self._clock)
    try:
      compiled = entry.compiled
    finally:
      if entry.failed:  # what its error holds goes with it
        with self._lock:
          if self._entries.get(key) is entry:
            del self._entries[key]
    return compiled(*args)

  def __len__(self) -> int:
    """Return how many programs there are, compiled or only known."""
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

  def discard(self, needs: Iterable[Need]) -> None:
    """Forget those of the programs that nobody has compiled or called."""
    with self._lock:
      for need in needs:
        entry = self._entries.get(need.key)
        if entry is not None and not entry.begun and not entry.calls:
          del self._entries[need.key]

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
    key = program_key(device, name, fn, args, static)
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
