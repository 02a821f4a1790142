"""Convert directions between formats: `python -m persona_jax.directions.convert IN OUT`.

IN is a file or folder of any of the formats, or the name of directions that are shipped in a wheel
(hidden-directions); block numbers are converted. OUT is a file for one direction or a folder for
several. What the format of OUT cannot hold is said.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from persona_jax.directions.formats.exchange import FORMATS, read_directions, write_directions
from persona_jax.directions.formats.rows import FormatWarning
from persona_jax.directions.shipped import path_of

# Options of formats, by the argument that gives them.
_OPTIONS = ("model_hint", "block_0", "kind")


def main(argv: Sequence[str] | None = None) -> int:
  """Convert one file or folder and return an exit status."""
  listed = "\n".join(f"  {name:<18} {x.holds}" for name, x in FORMATS.items())
  parser = argparse.ArgumentParser(
    prog="python -m persona_jax.directions.convert",
    description=__doc__,
    epilog=f"formats:\n{listed}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("source", metavar="IN")
  parser.add_argument("out", metavar="OUT")
  parser.add_argument("--from", dest="source_format", choices=FORMATS, help="default: as it looks")
  parser.add_argument("--to", dest="format", choices=FORMATS, help="default: by OUT's suffix")
  parser.add_argument(
    "--num-blocks", type=int, metavar="L", help="of the model, where IN does not say"
  )
  parser.add_argument("--layer", type=int, help="hidden_directions: block of a vector [D]")
  parser.add_argument("--only", metavar="NAME", action="append", help="of several, only this one")
  parser.add_argument("--model-hint", help="gguf: kind of the model, as llama or qwen2")
  parser.add_argument(
    "--block-0",
    action="store_true",
    default=None,
    help="gguf: write direction.0, too, with which llama.cpp refuses the file",
  )
  parser.add_argument("--kind", choices=("bare", "vector", "axis"), help="assistant_axis: layout")
  args = parser.parse_args(argv)
  options = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always", FormatWarning)
    try:
      directions = read_directions(
        path_of(args.source),
        args.source_format,
        num_blocks=args.num_blocks,
        **({} if args.layer is None else {"layer": args.layer}),
      )
      if args.only:
        names = [d.concept for d in directions]
        unknown = [name for name in args.only if name not in names]
        if unknown:
          raise ValueError(f"{args.source} holds no {unknown}; it holds {names}.")
        directions = [d for d in directions if d.concept in args.only]
      files = write_directions(directions, args.out, args.format, **options)
    except (OSError, ValueError) as error:
      print(f"not converted: {error}", file=sys.stderr)
      return 1
  for warning in told:
    print(f"note: {warning.message}")
  for direction in directions:
    print(direction)
  shown = [str(file) for file in files[:4]] + ([f"… ({len(files)})"] if len(files) > 4 else [])
  print(f"written: {', '.join(shown)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
