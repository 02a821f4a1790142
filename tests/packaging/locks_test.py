"""The lock files agree with pyproject.toml, pin every package by hash and name no host."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCK = "requirements.lock"
JAX_011_LOCK = "requirements-jax0.11.lock"
PARITY_LOCK = "tests/parity/requirements.txt"
# The platforms that CPU users have. Each lock serves the Pythons named with it.
PLATFORMS = {
  "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
  "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
SERVED = [(LOCK, "3.11"), (LOCK, "3.12"), (LOCK, "3.13"), (JAX_011_LOCK, "3.12")]


def normalise(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def locked_entries(lock: str) -> list[str]:
  """Returns a lock's requirements, each with its hashes, as one line."""
  text = (ROOT / lock).read_text()
  lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
  return "\n".join(lines).replace("\\\n", " ").splitlines()


def pins(lock: str, python: str, platform: str) -> dict[str, str]:
  """Maps package name to the one version that a lock installs on this Python and platform."""
  environment = {
    "python_version": python,
    "python_full_version": f"{python}.9",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    **PLATFORMS[platform],
  }
  found: dict[str, str] = {}
  for entry in locked_entries(lock):
    requirement = Requirement(entry.split("--hash", 1)[0].strip())
    if requirement.marker is not None and not requirement.marker.evaluate(environment):
      continue
    (specifier,) = requirement.specifier
    assert normalise(requirement.name) not in found, f"{requirement.name} is pinned twice"
    found[normalise(requirement.name)] = specifier.version
  return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("lock", "python"), SERVED)
def test_lock_satisfies_pyproject(lock: str, python: str, platform: str) -> None:
  pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
  project = pyproject["project"]
  wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
  wanted += pyproject["build-system"]["requires"]
  locked = pins(lock, python, platform)
  for requirement in map(Requirement, wanted):
    version = locked[normalise(requirement.name)]
    assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


@pytest.mark.parametrize(
  ("lock", "python", "jax", "flax"),
  [
    (LOCK, "3.11", "0.10.2", "0.12.8"),
    (LOCK, "3.12", "0.12.0.1", "0.12.12"),
    (JAX_011_LOCK, "3.12", "0.11.2", "0.12.12"),
  ],
)
def test_lock_gives_the_supported_pair(lock: str, python: str, jax: str, flax: str) -> None:
  locked = pins(lock, python, "linux")
  assert (locked["jax"], locked["jaxlib"], locked["flax"]) == (jax, jax, flax)


@pytest.mark.parametrize("lock", [LOCK, JAX_011_LOCK, PARITY_LOCK])
def test_every_locked_package_has_a_hash(lock: str) -> None:
  entries = locked_entries(lock)
  assert len(entries) > 20
  assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", [LOCK, JAX_011_LOCK, PARITY_LOCK])
def test_lock_names_no_host_or_path(lock: str) -> None:
  text = (ROOT / lock).read_text()
  assert re.search(r"://|file:|^-|index-url|find-links|\s/", text, flags=re.MULTILINE) is None


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_parity_shares_versions_with_the_main_lock(python: str) -> None:
  main, parity = pins(LOCK, python, "linux"), pins(PARITY_LOCK, python, "linux")
  shared = sorted(main.keys() & parity.keys())
  assert {"gguf", "numpy", "tokenizers"} <= set(shared)
  assert [parity[name] for name in shared] == [main[name] for name in shared]


def test_citation_names_the_version_of_the_package() -> None:
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  citation = (ROOT / "CITATION.cff").read_text()
  assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [project["version"]]
