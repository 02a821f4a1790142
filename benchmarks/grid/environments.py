"""Builds the peers' environments: `python -m benchmarks.grid.environments`.

  .venv-bench-hf        PyTorch, transformers
  .venv-bench-steering  PyTorch, repeng and steering-vectors, older transformers and NumPy
  .venv-bench-llama     llama.cpp, compiled for this machine's processor through llama-cpp-python:
                        needs a C++ compiler and cmake, and about 12 minutes of CPU time

Versions and hashes are those of `requirements-*.txt` beside this file. PyTorch is in none of them,
since the right build depends on the machine (see BUILD.md): it is installed first, by version. An
environment that is there and whose requirements have not changed is left alone.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCH = "2.13.0"


@dataclasses.dataclass(frozen=True)
class Environment:
  """One virtual environment.

  Attributes:
    name: the end of its directory's name, and of its requirements file's.
    needs_torch: whether PyTorch is installed first.
    compiled: a package that is built from source, with what cmake is told.
  """

  name: str
  needs_torch: bool = False
  compiled: str | None = None

  @property
  def directory(self) -> Path:
    """Where it lies."""
    return ROOT / f".venv-bench-{self.name}"

  @property
  def python(self) -> Path:
    """Its interpreter."""
    return self.directory / "bin" / "python"

  @property
  def requirements(self) -> Path:
    """Its pinned packages."""
    return Path(__file__).parent / f"requirements-{self.name}.txt"

  @property
  def stamp(self) -> Path:
    """A file that is there once everything is installed; its name follows from what that is."""
    content = f"{self}{TORCH}{sys.version_info[:2]}{self.directory}{self.requirements.read_text()}"
    if self.compiled:
      content += cmake_args()
    return self.directory / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.stamp"


ENVIRONMENTS = {
  e.name: e
  for e in (
    Environment("hf", needs_torch=True),
    Environment("steering", needs_torch=True),
    Environment("llama", compiled="llama-cpp-python"),
  )
}
CMAKE_ARGS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
# Of processors with matrix tiles: with them llama.cpp dies of an illegal instruction in its first
# product of quantised weights (0.3.36, Sapphire Rapids, a virtual machine; JAX uses them there).
WITHOUT_TILES = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def cmake_args() -> str:
  """Return what cmake is told on this machine."""
  cpuinfo = Path("/proc/cpuinfo")
  if not cpuinfo.exists() or "amx_tile" not in cpuinfo.read_text():
    return CMAKE_ARGS
  return f"{CMAKE_ARGS} -DCMAKE_C_FLAGS='{WITHOUT_TILES}' -DCMAKE_CXX_FLAGS='{WITHOUT_TILES}'"


def make(environment: Environment, torch_pip_args: list[str]) -> None:
  """Make an environment anew, unless it is there.

  Raises:
    subprocess.CalledProcessError: pip or the compiler has failed; their output says why.
  """
  if environment.stamp.exists():
    return
  print(f"Making {environment.directory.name}", flush=True)
  shutil.rmtree(environment.directory, ignore_errors=True)
  subprocess.run([sys.executable, "-m", "venv", environment.directory], check=True)
  pip = [environment.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
  if environment.needs_torch:
    subprocess.run([*pip, *torch_pip_args, f"torch=={TORCH}"], check=True)
  # The file names every package but PyTorch, so nothing is left for pip to resolve.
  options = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
  if environment.compiled:
    # What pip built before may be for other options.
    options += [f"--no-binary={environment.compiled}", "--no-cache-dir"]
  subprocess.run(
    [*pip, *options, "-r", environment.requirements],
    check=True,
    env=os.environ | {"CMAKE_ARGS": cmake_args()},
  )
  environment.stamp.touch()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("names", nargs="*", default=sorted(ENVIRONMENTS), metavar="NAME")
  parser.add_argument("--torch-pip-args", default="", help="as TORCH_PIP_ARGS of `make parity`")
  options = parser.parse_args()
  failed = []
  for name in options.names:
    try:
      make(ENVIRONMENTS[name], options.torch_pip_args.split())
    except subprocess.CalledProcessError as error:
      print(f"{name}: {error}", file=sys.stderr)
      failed.append(name)
  if failed:
    raise SystemExit(f"not made: {', '.join(failed)}; the benchmark runs without these peers")


if __name__ == "__main__":
  main()
