"""What edits cost on TPUs, from the compiler, with no TPU: bytes, microseconds, share of a block.

  make bench-kernels

Three tables, for each chip:

  1. `edit_norm` by itself, at the sizes of Llama-3.1-8B. Bytes of the definition and of XLA are the
     compiler's; those of the kernel are counted from its block specs ("analytic": for a custom call
     the compiler only repeats what it was told). Microseconds are bytes over the HBM bandwidth of
     the data sheet.
  2. Edits inside two whole blocks of Llama-3.1-8B at prefill, 16384 tokens: the cycles that the
     compiler estimates, against the same program without edits. For the kernel: the compiler's
     cycles of all but the kernel, and for it the cycles that the compiler gives an addition, times
     the ratio of bytes.
  3. A read-out of 300 directions at both blocks in a step of decoding 256 rows.

Everything here is a compiler estimate or analytic; nothing is measured.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags

from persona_jax.edits.apply import TokenInfo
from persona_jax.edits.table import AddEdit, EditTable, ProjEdit, Site, When
from persona_jax.engine.capture import Capture, resolve
from persona_jax.engine.forward import run_blocks
from persona_jax.engine.taps import Fused
from persona_jax.models import llama
from persona_jax.models.layers import KV
from persona_kernels.chips import CHIPS, Chip, one_device
from persona_kernels.edit_norm import edit_norm, mosaic_tpu
from persona_kernels.edit_norm.arg_specs import MEASURED, ArgSpec, shapes

_CHIPS = flags.DEFINE_list("chips", [chip.name for chip in CHIPS], "which chips to compile for")

# Two blocks of Llama-3.1-8B: the edit acts on the output of the first.
LLAMA_8B = {
  "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
  "num_key_value_heads": 8, "intermediate_size": 14336, "num_hidden_layers": 2,
  "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
  "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
# 16384 tokens as short rows: attention is then a small part, and the edit's share is not flattered.
PREFILL = (128, 128)
DECODE_ROWS, DECODE_SLOTS, DIRECTIONS = 256, 1024, 300

Shape = Callable[..., jax.ShapeDtypeStruct]


def _shape_on(sharding: jax.sharding.Sharding) -> Shape:
  def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)

  return shape


def _estimated_cycles(compiled: jax.stages.Compiled) -> int:
  """Add up the cycles that the compiler writes beside each operation, our own kernels left out."""
  lines = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" not in line]
  return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', "\n".join(lines))))


def _cycles_a_byte(shape: Shape) -> float:
  """Return what the compiler thinks that moving a byte takes, from an addition of long arrays."""
  h = shape(*PREFILL, 4096, dtype="bfloat16")
  cycles = _estimated_cycles(jax.jit(lambda x, y: x + y).lower(h, h).compile())
  return cycles / (3 * h.size * 2)


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


def _site(shape: Shape, rows: int, kind: str, slots: int) -> Site:
  def number(dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return shape(rows, slots, dtype=dtype)

  start, stop, roles = (number("int32") for _ in range(3))
  if kind == "add":
    return Site(add=AddEdit(shape(rows, slots, 4096), start, stop, roles))
  when = When(start, stop, roles, number())
  keep = shape(rows, dtype="bool") if kind == "keep norm" else None
  return Site(
    proj=ProjEdit(
      shape(rows, slots, 4096), shape(rows, slots, slots), *(number() for _ in range(6)), keep, when
    )
  )


def _inside(chip: Chip) -> list[str]:
  shape = _shape_on(one_device(chip))
  arch = llama.parse(LLAMA_8B)
  rows, tokens = PREFILL
  params = jax.tree.map(
    lambda x: shape(*x.shape, dtype="bfloat16"), arch.family.abstract_params(arch)
  )
  whole = shape(rows, tokens, dtype="int32")
  info = TokenInfo(whole, whole, shape(rows, tokens, dtype="bool"))
  h_BTD = shape(rows, tokens, 4096, dtype="bfloat16")

  def cycles(site: Site | None, fused: Fused | None = None) -> int:
    def run(params, h_BTD, position_BT, info, site):  # type: ignore[no-untyped-def]
      edits = None if site is None else EditTable({("resid_post", 0): site})
      out = run_blocks(arch, params, h_BTD, position_BT, info, edits=edits, fused=fused)
      return out.h_BTD, out.delivery

    return _estimated_cycles(jax.jit(run).lower(params, h_BTD, whole, info, site).compile())

  plain = cycles(None)
  lines = [f"| {chip.name} | no edit | {plain / 2e6:.1f} | |"]
  for kind, slots in (("add", 1), ("projection", 1), ("projection", 4), ("projection", 8),
                      ("keep norm", 1)):  # fmt: skip
    more = cycles(_site(shape, rows, kind, slots)) - plain
    label = f"{kind}, {slots} slot{'s' * (slots > 1)}"
    lines.append(f"| {chip.name} | {label}, XLA | {more / 1e6:+.2f} | {2 * more / plain:+.1%} |")
  # The kernel reads the stream and the branch and writes their sum: the bytes of an addition.
  around = cycles(_site(shape, rows, "projection", 1), Fused("mosaic_tpu", False, None))
  more = around + 3 * h_BTD.size * 2 * _cycles_a_byte(shape) - plain
  label = "projection, 1 slot, kernel (analytic)"
  lines.append(f"| {chip.name} | {label} | {more / 1e6:+.2f} | {2 * more / plain:+.1%} |")
  return lines


def _read_out(chip: Chip) -> str:
  shape = _shape_on(one_device(chip))
  arch = llama.parse(LLAMA_8B)
  params = jax.tree.map(
    lambda x: shape(*x.shape, dtype="bfloat16"), arch.family.abstract_params(arch)
  )
  rows, slots = DECODE_ROWS, DECODE_SLOTS
  whole = shape(rows, 1, dtype="int32")
  info = TokenInfo(whole, whole, shape(rows, 1, dtype="bool"))
  kv = KV(*(shape(rows, 8, slots, 128, dtype="bfloat16") for _ in range(2)))
  spec, _ = resolve(Capture(), arch)
  banks = dict.fromkeys(range(2), shape(DIRECTIONS, 4096))

  def cycles(reads: bool) -> int:
    def run(params, caches, h_BTD, position_BT, slot_BS, info, banks):  # type: ignore[no-untyped-def]
      out = run_blocks(
        arch, params, h_BTD, position_BT, info, slot_position_BS=slot_BS, caches=caches,
        cursor=slots - 1, spec=spec if reads else None, banks=banks if reads else None,
      )  # fmt: skip
      return out.h_BTD, out.caches, out.reads

    h_BTD, slot_BS = shape(rows, 1, 4096, dtype="bfloat16"), shape(rows, slots, dtype="int32")
    lowered = jax.jit(run, donate_argnums=1).lower(
      params, [kv, kv], h_BTD, whole, slot_BS, info, banks
    )
    return _estimated_cycles(lowered.compile())

  plain, read = cycles(False), cycles(True)
  return f"| {chip.name} | {plain / 2e6:.2f} | {read / 2e6:.2f} | {read / plain - 1:+.1%} |"


def main(argv: Sequence[str]) -> None:
  """Print the tables as Markdown."""
  del argv
  chips = [chip for chip in CHIPS if chip.name in _CHIPS.value]
  print("\n`edit_norm` alone: bytes in units of B T D 2, microseconds\n")
  print("| chip | sizes | definition | XLA | kernel (analytic) |\n|---|---|---|---|---|")
  for chip in chips:
    for spec in MEASURED:
      print(_alone(chip, spec), flush=True)
  print("\nEdits inside a prefill block: millions of estimated cycles a block, share of a block\n")
  print("| chip | edit | cycles | share |\n|---|---|---|---|")
  for chip in chips:
    print("\n".join(_inside(chip)), flush=True)
  print(f"\nRead-out of {DIRECTIONS} directions a block in a decoding step, by XLA\n")
  print("| chip | block | with read-out | share |\n|---|---|---|---|")
  for chip in chips:
    print(_read_out(chip), flush=True)


if __name__ == "__main__":
  app.run(main)
