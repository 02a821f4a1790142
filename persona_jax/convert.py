"""Convert a checkpoint into an Orbax directory: `python -m persona_jax.convert SOURCE OUT`.

SOURCE is anything that `pj.load` takes; OUT is then one too, and loads onto any mesh without
renaming or transposing. Weights keep their type unless --dtype gives another; scales of norms are
float32, as in the engine, and a mixture of types becomes float32, as GGUF does.
"""

import argparse
import sys
from collections.abc import Sequence

from persona_jax.checkpoints.checkpoint import open_checkpoint
from persona_jax.engine.load import load
from persona_jax.sharding import make_mesh


def main(argv: Sequence[str] | None = None) -> int:
  """Convert one checkpoint and return an exit status."""
  parser = argparse.ArgumentParser(prog="python -m persona_jax.convert", description=__doc__)
  parser.add_argument("source", metavar="SOURCE", help="registry name, hub id, directory or .gguf")
  parser.add_argument("out", metavar="OUT", help="directory to write; must not exist")
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument(
    "--model", type=int, default=1, metavar="N", help="split the weights over N devices meanwhile"
  )
  args = parser.parse_args(argv)
  try:
    mesh = make_mesh(model=args.model) if args.model > 1 else None
    dtype = args.dtype or open_checkpoint(args.source).identity.dtype
    model = load(args.source, dtype=dtype, mesh=mesh, progress=True)
    print(f"writing {args.out}", flush=True)
    model.save(args.out)
  except (OSError, ValueError) as error:
    print(f"not converted: {error}", file=sys.stderr)
    return 1
  print(f'{model!r}\nload it with: pj.load("{args.out}", dtype="{dtype}")')
  return 0


if __name__ == "__main__":
  sys.exit(main())
