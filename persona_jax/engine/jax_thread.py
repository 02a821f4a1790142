"""What JAX keeps for each thread: its settings, and how often functions were traced."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Settings of JAX that change what a program computes. JAX keeps them by thread, so a program made
# in another one must be given them.
_SETTINGS: dict[str, Callable[[Any], contextlib.AbstractContextManager[Any]]] = {
  "jax_default_matmul_precision": jax.default_matmul_precision,
  "jax_enable_x64": jax.enable_x64,
  "jax_default_prng_impl": jax.default_prng_impl,
  "jax_threefry_partitionable": jax.threefry_partitionable,
  "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
  "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}


def settings() -> tuple[Any, ...]:
  """Return JAX's settings as they are in this thread."""
  return tuple(getattr(jax.config, name) for name in _SETTINGS)


@contextlib.contextmanager
def using(given: tuple[Any, ...]) -> Iterator[None]:
  """Give this thread the settings of another one, as `settings` returned them."""
  with contextlib.ExitStack() as stack:
    for setting, value in zip(_SETTINGS.values(), given, strict=True):
      stack.enter_context(setting(value))
    yield


class _Traces(threading.local):
  """How often Python has run functions under a trace in this thread, by name."""

  def __init__(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()


_TRACES = _Traces()


def _note_trace(event: str, duration_secs: float, **about: str | int) -> None:
  del duration_secs
  if event == "/jax/core/compile/jaxpr_trace_duration":
    _TRACES.counts[str(about.get("fun_name"))] += 1


# JAX tells of a trace that it makes, not of one that it still has.
jax.monitoring.register_event_duration_secs_listener(_note_trace)


def traces(function: str) -> int:
  """Return how often functions of this name were traced in this thread."""
  return _TRACES.counts[function]
