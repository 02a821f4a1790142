"""What edits cost on the accelerator at hand, measured.

  python benchmarks/device.py

Three tables:

  alone: `edit_norm` at the sizes of Llama-3.1-8B: microseconds of the definition, of XLA and of the
    kernel; and what each makes of the bandwidth of a plain copy, counting the bytes of its
    arguments and results once, as if everything else stayed on the chip.
  prefill, decode: whole blocks of Llama-3.1-8B with random weights, every one of them edited: time
    of a block, and what the edit adds to it. With the kernel, edits of projections.

Calls are chained, each on what the one before returned; a figure is the median of several chains,
with the least and the most beside it. On a CPU, where no kernel runs, use `--small`.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import llama_blocks
from absl import app, flags
from llama_blocks import DIRECTIONS, KINDS, Blocks, Phase, label, shape_on

from persona_jax.engine.taps import Fused
from persona_kernels.edit_norm import edit_norm
from persona_kernels.edit_norm.arg_specs import MEASURED, ArgSpec, arguments

_BLOCKS = flags.DEFINE_integer("blocks", 4, "how many blocks", lower_bound=1)
_CHAIN = flags.DEFINE_integer("chain", 20, "calls in a chain", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "chains of each", lower_bound=3)
_SMALL = flags.DEFINE_bool("small", False, "few rows and tokens, only to see that it runs")

KERNEL = {"tpu": "mosaic_tpu", "gpu": "mosaic_gpu"}


def _seconds(call: Callable[[], Any]) -> tuple[float, float, float]:
  """Return the median, least and most seconds of a call that goes on from the one before."""
  jax.block_until_ready(call())
  took = []
  for _ in range(_REPEATS.value):
    begin = time.perf_counter()
    for _ in range(_CHAIN.value):
      out = call()
    jax.block_until_ready(out)
    took.append((time.perf_counter() - begin) / _CHAIN.value)
  return statistics.median(took), min(took), max(took)


def _text(seconds: tuple[float, float, float]) -> str:
  median, least, most = (1e6 * s for s in seconds)
  return f"{median:.0f} ({least:.0f}–{most:.0f})"


def _num_bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _copy_rate(num_bytes: int) -> float:
  """Return bytes per second, read and written, of copying an array of this size."""
  out = jnp.zeros((num_bytes // 2,), jnp.bfloat16)
  # A negation: a copy that the compiler can not leave out.
  negate = jax.jit(jnp.negative)
  return 2 * num_bytes / _seconds(lambda: negate(out))[0]


def _alone(spec: ArgSpec, kernel: str | None) -> Iterator[str]:
  given, options = arguments(spec)
  stream = given[0].nbytes
  rate = _copy_rate(stream)
  for name in ("reference", "xla") if kernel is None else ("reference", "xla", kernel):
    run = jax.jit(
      lambda *a, name=name: edit_norm(*a, **options, implementation=name), donate_argnums=0
    )
    x, *rest = jax.tree.map(jnp.array, given)  # a copy of its own, since it is donated
    useful = _num_bytes(given) + _num_bytes(jax.eval_shape(run, x, *rest))

    def call(run=run, rest=rest):  # type: ignore[no-untyped-def]
      nonlocal x
      out = run(x, *rest)
      x = out.h_BTD
      return out

    took = _seconds(call)
    share = useful / took[0] / rate
    yield f"| {spec.name} | {name} | {_text(took)} | {useful / took[0] / 1e9:.0f} | {share:.0%} |"


# Every token has offset 1 and role 1, and is in every window.
_INTEGERS = {"start": 0, "stop": 2, "roles": -1}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(name: str, shape: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
  if jnp.issubdtype(shape.dtype, jnp.floating):
    return (0.02 * jax.random.normal(key, shape.shape)).astype(shape.dtype)
  return jnp.full(shape.shape, _INTEGERS.get(name.split("_")[0], 1), shape.dtype)


def _draw(shapes: Any, seed: int) -> Any:
  """Draw small random numbers in the place of shapes."""
  leaves, tree = jax.tree.flatten_with_path(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  drawn = [
    _fill(getattr(path[-1], "name", ""), leaf, key)
    for (path, leaf), key in zip(leaves, keys, strict=True)
  ]
  return tree.unflatten(drawn)


def _inside(phase: Phase, kernel: str | None) -> Iterator[str]:
  blocks = Blocks(shape_on(None), phase, _BLOCKS.value)
  places = [("resid_post", i) for i in range(_BLOCKS.value)]
  fused = None if kernel is None else Fused(kernel, False, None)  # type: ignore[arg-type]
  params = _draw(blocks.program()[1][2], 0)

  def seconds(site: Any = None, fused: Fused | None = None, directions: int = 0):  # type: ignore[no-untyped-def]
    edits = None if site is None else dict.fromkeys(places, site)
    run, shapes = blocks.program(edits, fused, directions)
    h_BTD, caches = _draw(shapes[:2], 1)
    rest = _draw(shapes[3:], 2)

    def call():  # type: ignore[no-untyped-def]
      nonlocal h_BTD, caches
      h_BTD, caches, made = run(h_BTD, caches, params, *rest)
      return h_BTD, made

    return _seconds(call)

  plain = seconds()

  def line(name: str, took: tuple[float, float, float]) -> str:
    block = tuple(s / _BLOCKS.value for s in took)
    return f"| {phase} | {name} | {_text(block)} | {took[0] / plain[0] - 1:+.1%} |"  # type: ignore[arg-type]

  yield line("no edit", plain)
  for kind, slots in KINDS:
    site = blocks.site(kind, slots)
    yield line(f"{label(kind, slots)}, XLA", seconds(site))
    if fused is not None and kind != "add":
      yield line(f"{label(kind, slots)}, kernel", seconds(site, fused))
  yield line(f"read-out of {DIRECTIONS} directions", seconds(directions=DIRECTIONS))


def main(argv: Sequence[str]) -> None:
  """Print the tables as Markdown."""
  del argv
  if _SMALL.value:
    llama_blocks.PREFILL, llama_blocks.DECODE_ROWS, llama_blocks.DECODE_SLOTS = (2, 16), 2, 16
  platform = jax.default_backend()
  kernel = KERNEL.get(platform)
  print(f"Measured on {jax.devices()[0].device_kind} ({platform}), JAX {jax.__version__}\n")
  print("| sizes | implementation | µs (least–most) | GB/s | of a copy |\n|---|---|---|---|---|")
  for spec in MEASURED[:1] if _SMALL.value else MEASURED:
    if _SMALL.value:
      spec = ArgSpec(spec.name, 2, 16, spec.width, spec.slots)
    for text in _alone(spec, kernel):
      print(text, flush=True)
  print("\n| phase | edit | µs a block (least–most) | more |\n|---|---|---|---|")
  for phase in ("prefill", "decode"):
    for text in _inside(phase, kernel):  # type: ignore[arg-type]
      print(text, flush=True)


if __name__ == "__main__":
  app.run(main)
