"""Print what a file of directions holds: `python -m persona_jax.directions.inspect FILE`.

FILE is a file or folder of any of the formats, or the name of directions that are shipped in a
wheel (hidden-directions). With --cosines NAME, cosines of all its directions with that one.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.directions.formats.exchange import (
  FORMATS,
  detect_format,
  read_directions,
)
from persona_jax.directions.formats.rows import FormatWarning, blocks_of
from persona_jax.directions.shipped import path_of

_SHOWN = ("model", "model_type", "method", "tokens", "num_pairs", "file_dtype", "file_sha256")


def main(argv: Sequence[str] | None = None) -> int:
  """Print one file or folder and return an exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m persona_jax.directions.inspect", description=__doc__
  )
  parser.add_argument("file", metavar="FILE")
  parser.add_argument("--format", choices=FORMATS, help="default: as it looks")
  parser.add_argument("--num-blocks", type=int, metavar="L", help="of the model")
  parser.add_argument("--cosines", metavar="NAME", help="print cosines with this direction")
  parser.add_argument(
    "--block", type=int, help="of the cosines; default the one that the file recommends, else all"
  )
  parser.add_argument("--layer", type=int, help="hidden_directions: block of a vector [D]")
  args = parser.parse_args(argv)
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always", FormatWarning)
    try:
      path = path_of(args.file)
      name = args.format or detect_format(path, num_blocks=args.num_blocks)
      options = {} if args.layer is None else {"layer": args.layer}
      directions = read_directions(path, name, num_blocks=args.num_blocks, **options)
      lines = list(
        describe(directions)
        if args.cosines is None
        else cosines(directions, args.cosines, args.block)
      )
    except (OSError, ValueError) as error:
      print(f"cannot be read: {error}", file=sys.stderr)
      return 1
  print(f"{path.name}: {len(directions)} of format {name} ({FORMATS[name].holds})")
  for warning in told:
    print(f"note: {warning.message}")
  print("\n".join(lines))
  return 0


def describe(directions: Sequence[Direction]) -> Iterator[str]:
  """Describe directions: provenance, and for one its norms by block, else one line each."""
  if len(directions) > 1:
    yield f"{'direction':<36} {'site':<11} {'S':>2} {'L':>3} {'width':>6}  norms"
    for d in directions:
      s, count, width = d.vectors_SLD.shape
      norm_L = d.norm_L[blocks_of(d)]
      yield (
        f"{d.concept:<36} {d.site:<11} {s:>2} {count:>3} {width:>6}  "
        f"{norm_L.min():.3g} to {norm_L.max():.3g}"
      )
    return
  (d,) = directions
  s, count, width = d.vectors_SLD.shape
  yield f"{d.concept!r} at {d.site}: {s} replicates, {count} blocks of width {width}"
  for key in _SHOWN:
    if key in d.provenance:
      yield f"  {key:<12} {d.provenance[key]}"
  unit_LD = d.unit_LD
  next_L = np.append((unit_LD[1:] * unit_LD[:-1]).sum(axis=1), np.nan)
  yield f"  {'block':>5} {'norm':>9} {'cos to next':>12} {'reliability':>12}"
  for block in range(count):
    if not d.norm_L[block]:
      yield f"  {block:>5} {'none':>9}"
      continue
    reliability = "" if d.reliability_L is None else f"{np.mean(d.reliability_L[block]):.3f}"
    cosine = "" if np.isnan(next_L[block]) else f"{next_L[block]:.3f}"
    yield f"  {block:>5} {d.norm_L[block]:>9.4g} {cosine:>12} {reliability:>12}"


def cosines(directions: Sequence[Direction], name: str, block: int | None = None) -> Iterator[str]:
  """Give the cosine of each direction with the one of a name, at a block or at all.

  Raises:
    ValueError: there is none of that name, or it has no such block.
  """
  named = {d.concept: d for d in directions}
  if name not in named:
    raise ValueError(f"no direction {name!r}; there are {list(named)}.")
  other = named[name]
  if block is None:
    block = other.provenance.get("recommended_block")
  num_blocks = other.vectors_SLD.shape[1]
  if block is not None and not 0 <= block < num_blocks:
    raise ValueError(f"block {block}: the directions have blocks 0 to {num_blocks - 1}.")
  cos = {  # NaN at blocks where either has no vector
    d.concept: np.where(
      (d.norm_L > 0) & (other.norm_L > 0), (d.unit_LD * other.unit_LD).sum(axis=1), np.nan
    )
    for d in directions
    if d is not other and d.vectors_SLD.shape[1:] == other.vectors_SLD.shape[1:]
  }
  if block is not None:
    yield f"cosine with {name} at block {block}"
    for concept in sorted(cos, key=lambda c: np.nan_to_num(cos[c][block], nan=2.0)):
      value = cos[concept][block]
      yield f"  {concept:<36} " + ("none" if np.isnan(value) else f"{value:+.3f}")
    return
  yield f"cosine with {name} by block"
  for concept, cos_L in cos.items():
    shown = (" none" if np.isnan(c) else f"{c:+.2f}" for c in cos_L)
    yield f"  {concept:<24} " + " ".join(shown)


if __name__ == "__main__":
  sys.exit(main())
