"""The built wheel works outside the checkout: code, kernels, data files and type marker."""

import json
import pathlib
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = {
  "persona_jax": ROOT / "persona_jax",
  "persona_kernels": ROOT / "kernels/persona_kernels",
}


def run(command: Sequence[object], **kwargs: object) -> str:
  """Runs a command and returns its output; fails the test with what it printed."""
  result = subprocess.run(
    [str(part) for part in command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    **kwargs,
  )
  assert result.returncode == 0, f"{command} failed:\n{result.stdout}"
  return result.stdout


def package_files() -> dict[str, bytes]:
  """Maps each file of the two packages, by its name in the wheel, to its bytes."""
  return {
    f"{package}/{path.relative_to(folder).as_posix()}": path.read_bytes()
    for package, folder in PACKAGES.items()
    for path in folder.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("wheel")
  pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps"]
  run([*pip_wheel, "--no-build-isolation", "--wheel-dir", folder, ROOT])
  (path,) = folder.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def clean_python(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The interpreter of a new environment that holds the wheel, and the dependencies behind it.

  The dependencies are those of the running environment, by one line of path: its own .pth files
  are not read from there, so the checkout itself stays out of reach.
  """
  folder = tmp_path_factory.mktemp("clean")
  venv.create(folder, with_pip=False, symlinks=True)
  python = folder / "bin" / "python"
  pip = [sys.executable, "-m", "pip", "--python", python, "install"]
  run([*pip, "--no-index", "--no-deps", wheel])
  own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
  (pathlib.Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
  return python


def run_outside(python: pathlib.Path, *args: str, folder: pathlib.Path) -> str:
  """Runs the clean interpreter from `folder`, without this process's Python settings."""
  env = {"JAX_PLATFORMS": "cpu", "HOME": str(folder), "PATH": "/usr/bin:/bin"}
  return run([python, *args], cwd=folder, env=env)


def test_wheel_holds_every_file_of_both_packages(wheel: pathlib.Path) -> None:
  with zipfile.ZipFile(wheel) as archive:
    contents = {
      name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
    }
  expected = package_files()
  assert sorted(contents) == sorted(expected)
  assert contents == expected


def test_wheel_has_type_marker_and_licence(wheel: pathlib.Path) -> None:
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
  assert {"persona_jax/py.typed", "persona_kernels/py.typed"} <= set(names)
  assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_packages_come_from_the_wheel(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  code = (
    "import importlib.metadata, json, persona_jax, persona_kernels;"
    "print(json.dumps([persona_jax.__file__, persona_kernels.__file__,"
    " importlib.metadata.version('persona_jax')]))"
  )
  output = run_outside(clean_python, "-c", code, folder=tmp_path)
  *files, version = json.loads(output.splitlines()[-1])
  environment = clean_python.parents[1].resolve()
  assert all(pathlib.Path(file).resolve().is_relative_to(environment) for file in files)
  assert version == "0.1.0"


def test_installed_package_reads_its_persona_data(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  code = "from persona_jax import personas; print(len(personas.load_personas()))"
  assert run_outside(clean_python, "-c", code, folder=tmp_path).split()[-1] == "12"


def test_installed_fetch_command_runs(clean_python: pathlib.Path, tmp_path: pathlib.Path) -> None:
  output = run_outside(clean_python, "-m", "persona_jax.fetch", "--help", folder=tmp_path)
  assert "usage:" in output
