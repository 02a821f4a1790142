"""A program that is wanted, before and after it is compiled."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from persona_jax import sharding
from persona_jax._compat import CPU_BLOCK_OPTIONS
from persona_jax.engine import jax_thread

# Names of programs whose first argument is parameters of the model.
TAKE_PARAMS = ("block", "embed", "decode", "log-probs")
# Names of programs whose results are one of their arguments as it has become, and take its place;
# the argument's number. So a dry run needn't trace them, the longest there are.
TAKE_PLACE = {"decode": 5}


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
    self.key = program_key(device, name, fn, args, static)
    self._settings = jax_thread.settings()
    self.device: Any = device or _device_of(jax.tree.leaves(args))
    place = SingleDeviceSharding(self.device)
    self.args = jax.tree.map(lambda leaf: shape_of(leaf, place), args)
    self._lock = threading.Lock()
    self._traced: Any = None
    self._results: Any = None
    self._donated_bytes = 0
    if name in TAKE_PLACE:
      self._results = jax.tree.map(shape_of, self.args[TAKE_PLACE[name]])
      self._donated_bytes = tree_bytes(self._results)
    self.traces = 0

  def _trace(self) -> Any:
    """Trace the function; a second caller waits, and has the first one's trace."""
    with self._lock:
      if self._traced is None:
        before = jax_thread.traces(self.fn.__name__)
        with jax_thread.using(self._settings):
          self._traced = self.fn.trace(*self.args, **self.static)
        self.traces += jax_thread.traces(self.fn.__name__) - before
        self._results = jax.tree.map(shape_of, self._traced.out_info)
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
    on_cpu = self.device.platform == "cpu"
    return dict(CPU_BLOCK_OPTIONS) if self.name == "block" and on_cpu else {}

  def compile(self) -> tuple[Any, float]:
    """Compile it; return the program and the seconds that took."""
    start = time.perf_counter()
    with jax_thread.using(self._settings):
      compiled = self._trace().lower().compile(compiler_options=self._options)
    with self._lock:
      self._traced = None  # large, and of no further use
    return compiled, time.perf_counter() - start


def program_key(
  device: jax.Device | None, name: str, fn: Callable[..., Any], args: Any, static: dict[str, Any]
) -> Hashable:
  """Return what tells a program from others: function, shapes, device, settings of JAX."""
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
  return sharding.first_device(None)


def tree_bytes(tree: Any) -> int:
  """Return the bytes of the arrays, or shapes of arrays, in a pytree."""
  return sum(int(np.prod(np.shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def shape_of(leaf: Any, place: SingleDeviceSharding | None = None) -> jax.ShapeDtypeStruct:
  """Return the shape of an array, for a place if one is given."""
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place)
