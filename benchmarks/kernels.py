"""What edits cost on TPUs, from the compiler, with no TPU: bytes, microseconds, share of a block.

  make bench-kernels

Four tables, for each chip:

  alone: `edit_norm` by itself, at the sizes of Llama-3.1-8B. Bytes of the definition and of XLA are
    the compiler's; those of the kernel are counted from its block specs ("analytic": for a custom
    call the compiler only repeats what it was told). Microseconds are bytes over the HBM bandwidth
    of the data sheet.
  prefill: an edit inside two whole blocks of Llama-3.1-8B, 16384 tokens: the cycles that the
    compiler estimates, against the same program without it. For the kernel: the compiler's cycles
    of all but the kernel, and for its bytes the cycles that they take in an addition.
  decode: the same for a step of 256 rows with 1024 slots, both blocks edited.
  read-out: of 300 directions at both blocks in that step.

Everything here is a compiler estimate or analytic; nothing is measured.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

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
_TABLES = flags.DEFINE_list(
  "tables", ["alone", "prefill", "decode", "read-out"], "which tables to print"
)

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


class _Blocks:
  """Two whole blocks of Llama-3.1-8B compiled for one chip, at prefill or in a decoding step."""

  def __init__(self, chip: Chip, phase: str):
    self.shape = shape = _shape_on(one_device(chip))
    self._arch = arch = llama.parse(LLAMA_8B)
    rows, tokens = PREFILL if phase == "prefill" else (DECODE_ROWS, 1)
    self.rows = rows
    self.stream = shape(rows, tokens, 4096, dtype="bfloat16")
    self._params = jax.tree.map(
      lambda x: shape(*x.shape, dtype="bfloat16"), arch.family.abstract_params(arch)
    )
    self._position_BT = shape(rows, tokens, dtype="int32")
    self._info = TokenInfo(self._position_BT, self._position_BT, shape(rows, tokens, dtype="bool"))
    self._slot_BS, self._caches = None, None
    if phase == "decode":
      kv = KV(*(shape(rows, 8, DECODE_SLOTS, 128, dtype="bfloat16") for _ in range(2)))
      self._slot_BS, self._caches = shape(rows, DECODE_SLOTS, dtype="int32"), [kv, kv]

  def cycles(
    self,
    edits: Mapping[tuple[str, int], Site] | None = None,
    fused: Fused | None = None,
    directions: int = 0,
  ) -> int:
    """Return the estimated cycles of both blocks, a kernel of our own left out."""
    spec = resolve(Capture(), self._arch)[0] if directions else None
    banks = dict.fromkeys(range(2), self.shape(directions, 4096)) if directions else None

    def run(params, caches, h_BTD, position_BT, slot_BS, info, edits, banks):  # type: ignore[no-untyped-def]
      out = run_blocks(
        self._arch, params, h_BTD, position_BT, info, slot_position_BS=slot_BS, caches=caches,
        cursor=0 if caches is None else DECODE_SLOTS - 1, spec=spec, banks=banks,
        edits=None if edits is None else EditTable(edits), fused=fused,
      )  # fmt: skip
      return out.h_BTD, out.delivery, out.reads, None if caches is None else out.caches

    lowered = jax.jit(run, donate_argnums=1).lower(
      self._params, self._caches, self.stream, self._position_BT, self._slot_BS, self._info,
      edits, banks,
    )  # fmt: skip
    return _estimated_cycles(lowered.compile())


def _inside(chip: Chip, phase: str) -> Iterator[str]:
  blocks = _Blocks(chip, phase)
  places = [("resid_post", 0)] if phase == "prefill" else [("resid_post", i) for i in range(2)]
  plain = blocks.cycles()
  yield f"| {chip.name} | no edit | {plain / 2e6:.2f} | |"

  def line(label: str, cycles: float) -> str:
    more = (cycles - plain) / len(places)
    return f"| {chip.name} | {label} | {more / 1e6:+.2f} | {2 * more / plain:+.1%} |"

  for kind, slots in (("add", 1), ("projection", 1), ("projection", 4), ("projection", 8),
                      ("keep norm", 1)):  # fmt: skip
    site = _site(blocks.shape, blocks.rows, kind, slots)
    label = f"{kind}, {slots} slot{'s' * (slots > 1)}, XLA"
    yield line(label, blocks.cycles(dict.fromkeys(places, site)))
  # What the kernel moves, at the cycles that a byte takes in an addition.
  a_byte = _cycles_a_byte(blocks.shape)
  for slots in (1, 8):
    site = _site(blocks.shape, blocks.rows, "projection", slots)
    around = blocks.cycles(dict.fromkeys(places, site), Fused("mosaic_tpu", False, None))
    rows_bytes = 4 * blocks.rows * (site.proj.p_BSD.size // blocks.rows)
    moved = 3 * blocks.stream.size * 2 + rows_bytes
    label = f"projection, {slots} slot{'s' * (slots > 1)}, kernel (analytic)"
    yield line(label, around + len(places) * moved * a_byte)


def _read_out(chip: Chip) -> str:
  blocks = _Blocks(chip, "decode")
  plain, read = blocks.cycles(), blocks.cycles(directions=DIRECTIONS)
  return f"| {chip.name} | {plain / 2e6:.2f} | {read / 2e6:.2f} | {read / plain - 1:+.1%} |"


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
  for phase in ("prefill", "decode"):
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
