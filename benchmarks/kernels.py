"""What edits cost on TPUs, from the compiler, with no TPU: bytes, microseconds, share of a block.

  make bench-kernels

Four tables, for each chip:

  alone: `edit_norm` by itself, at the sizes of Llama-3.1-8B. Bytes of the definition and of XLA are
    the compiler's; those of the kernel are counted from its block specs ("analytic": for a custom
    call the compiler only repeats what it was told). Microseconds are bytes over the HBM bandwidth
    of the data sheet.
  prefill: an edit inside two whole blocks of Llama-3.1-8B, 16384 tokens: the cycles that the
    compiler estimates, against the same program without it. For the kernel: the compiler's cycles
    of all but the kernel, and for it its bytes at the bandwidth of the data sheet, a second being
    as many cycles as the compiler gives a long product over its seconds at full speed.
  decode: the same for a step of 256 rows with 1024 slots, both blocks edited.
  read-out: of 300 directions at both blocks in that step.

Everything here is a compiler estimate or analytic; nothing is measured.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from absl import app, flags
from llama_blocks import DIRECTIONS, KINDS, Blocks, Phase, Shape, label, shape_on

from persona_jax.engine.taps import Fused
from persona_kernels.chips import CHIPS, Chip, one_device
from persona_kernels.edit_norm import edit_norm, mosaic_tpu
from persona_kernels.edit_norm.arg_specs import MEASURED, ArgSpec, shapes

_CHIPS = flags.DEFINE_list("chips", [chip.name for chip in CHIPS], "which chips to compile for")
_TABLES = flags.DEFINE_list(
  "tables", ["alone", "prefill", "decode", "read-out"], "which tables to print"
)

NUM_BLOCKS = 2


# What the compiler writes beside some copies that run beside other work: it does not know.
_UNKNOWN = 2**63 - 1


def _estimated_cycles(compiled: jax.stages.Compiled) -> int:
  """Add up the cycles that the compiler writes beside each operation, our own kernels left out."""
  lines = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" not in line]
  figures = map(int, re.findall(r'"estimated_cycles":"(\d+)"', "\n".join(lines)))
  return sum(cycles for cycles in figures if cycles != _UNKNOWN)


def _cycles_per_second(shape: Shape) -> float:
  """Return the cycles that the compiler gives a long product, over its seconds at full speed.

  Both are the compiler's. No product runs faster, so that a second holds at most as many cycles,
  and the share of what is known in seconds is at most what we print.
  """
  x, w = shape(16384, 4096, dtype="bfloat16"), shape(4096, 14336, dtype="bfloat16")
  product = jax.jit(jnp.matmul).lower(x, w).compile()
  return _estimated_cycles(product) / product.cost_analysis()["optimal_seconds"]


def _alone(chip: Chip, spec: ArgSpec) -> str:
  args, options = shapes(spec)
  here = one_device(chip)
  args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
  unit = spec.rows * spec.tokens * spec.width * jnp.dtype(spec.dtype).itemsize
  cells = []
  for name in ("reference", "xla"):
    run = jax.jit(
      lambda *a, name=name: edit_norm(*a, **options, implementation=name), donate_argnums=0
    )
    moved = run.lower(*args).compile().cost_analysis()["bytes accessed"]
    cells.append((moved / unit, moved / chip.bandwidth))
  moved = mosaic_tpu.bytes_moved(args[0], args[2], args[4], jnp.dtype(spec.dtype))
  cells.append((moved / unit, moved / chip.bandwidth))
  text = " | ".join(f"{share:.1f}, {1e6 * seconds:.0f}" for share, seconds in cells)
  return f"| {chip.name} | {spec.name} | {text} |"


def _cycles(blocks: Blocks, *args: Any, **options: Any) -> int:
  run, shapes_of = blocks.program(*args, **options)
  return _estimated_cycles(run.lower(*shapes_of).compile())


def _inside(chip: Chip, phase: Phase) -> Iterator[str]:
  blocks = Blocks(shape_on(one_device(chip)), phase, NUM_BLOCKS)
  # At prefill the first block alone: at the last one the stream leaves the program anyway.
  edited = 1 if phase == "prefill" else NUM_BLOCKS
  places = [("resid_post", i) for i in range(edited)]
  plain = _cycles(blocks)
  yield f"| {chip.name} | no edit | {plain / NUM_BLOCKS / 1e6:.2f} | |"

  def line(name: str, cycles: float) -> str:
    more = (cycles - plain) / edited
    return f"| {chip.name} | {name} | {more / 1e6:+.2f} | {NUM_BLOCKS * more / plain:+.1%} |"

  for kind, slots in KINDS:
    site = blocks.site(kind, slots)
    yield line(f"{label(kind, slots)}, XLA", _cycles(blocks, dict.fromkeys(places, site)))
  rate = _cycles_per_second(blocks.shape)
  for slots in (1, 8):
    site = blocks.site("projection", slots)
    around = _cycles(blocks, dict.fromkeys(places, site), Fused("mosaic_tpu", False, None))
    kernel = _kernel_bytes(blocks, slots) / chip.bandwidth * rate
    itself = f"analytic, {NUM_BLOCKS * kernel / plain:.1%} by itself"
    yield line(f"{label('projection', slots)}, kernel ({itself})", around + edited * kernel)


def _kernel_bytes(blocks: Blocks, slots: int) -> int:
  rows, tokens, width = blocks.stream.shape
  args, _ = shapes(ArgSpec("", rows, tokens, width, slots))
  return mosaic_tpu.bytes_moved(blocks.stream, args[2], None, None)


def _read_out(chip: Chip) -> str:
  blocks = Blocks(shape_on(one_device(chip)), "decode", NUM_BLOCKS)
  plain, read = _cycles(blocks), _cycles(blocks, directions=DIRECTIONS)
  cells = " | ".join(f"{cycles / NUM_BLOCKS / 1e6:.2f}" for cycles in (plain, read))
  return f"| {chip.name} | {cells} | {read / plain - 1:+.1%} |"


def main(argv: Sequence[str]) -> None:
  """Print the tables as Markdown."""
  del argv
  chips = [chip for chip in CHIPS if chip.name in _CHIPS.value]
  if "alone" in _TABLES.value:
    print("\n`edit_norm` alone: bytes in units of B T D 2, microseconds\n")
    print("| chip | sizes | definition | XLA | kernel (analytic) |\n|---|---|---|---|---|")
    for chip in chips:
      for spec in MEASURED:
        print(_alone(chip, spec), flush=True)
  for phase in get_args(Phase):
    if phase in _TABLES.value:
      print(f"\nEdits inside a block, {phase}: millions of estimated cycles, share of the block\n")
      print("| chip | edit | cycles | share |\n|---|---|---|---|")
      for chip in chips:
        for line in _inside(chip, phase):
          print(line, flush=True)
  if "read-out" in _TABLES.value:
    print(f"\nRead-out of {DIRECTIONS} directions a block in a decoding step, by XLA\n")
    print("| chip | block | with read-out | share |\n|---|---|---|---|")
    for chip in chips:
      print(_read_out(chip), flush=True)


if __name__ == "__main__":
  app.run(main)
