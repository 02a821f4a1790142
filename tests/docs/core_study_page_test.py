"""docs/core_study.md: what it names is there, its tables list what there is, its personas load."""

import re
from pathlib import Path
from typing import get_args

import pytest

from configs import persona_non_grata, persona_non_grata_planted, persona_non_grata_tiny
from persona_jax import stats
from persona_jax.calibration.gauge import SCALES
from persona_jax.calibration.solve import Status
from persona_jax.geometry.decoy import VERDICTS
from persona_jax.personas.persona import load_personas, load_poles
from persona_jax.personas.wording import check_texts
from persona_jax.scorers.labels import LABELS
from persona_jax.studies.persona_non_grata import STAGES, gates, settings
from tests.docs.families_page_test import ROOT
from tests.planted.world import WORLDS

PAGE = (ROOT / "docs" / "core_study.md").read_text()
STUDY = ROOT / "persona_jax" / "studies" / "persona_non_grata"


def column(header: str) -> list[str]:
  """Returns the names in the first column of the table that begins so."""
  table = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
  return [line.split("|")[1].strip().strip("`") for line in table]


@pytest.mark.parametrize(
  ("header", "names"),
  [
    ("| stage |", STAGES),
    ("| match |", SCALES),
    ("| status |", get_args(Status)),
    ("| code |", settings.CONTROLS),
    ("| gate |", settings.GATES),
    ("| world |", tuple(WORLDS)),
  ],
)
def test_tables_list_all_there_is(header: str, names: tuple[str, ...]) -> None:
  assert column(header) == list(names)


def test_config_fields_are_in_every_config() -> None:
  fields = set(re.findall(r"\bconfig\.(\w+)", PAGE)) - {"json"}
  assert len(fields) > 10
  for module in (persona_non_grata, persona_non_grata_tiny, persona_non_grata_planted):
    assert fields <= set(module.get_config())


def test_flags_are_those_of_the_experiment() -> None:
  source = (ROOT / "experiments" / "persona_non_grata.py").read_text()
  known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)) | {
    "noise",
    "power",
    "no_weights",
    "run",
    "row",
    "to",
    "out",
  }  # of the tests' programs, and of the library's own
  assert set(re.findall(r"--(\w+)", PAGE)) <= known


def test_files_and_modules_that_are_named_are_there() -> None:
  files = set(re.findall(r"\b(?:tests|configs|experiments)/[\w/]+\.py", PAGE))
  files |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (tests[\w.]+)", PAGE)}
  assert len(files) > 8
  assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


def test_tables_that_are_named_are_written() -> None:
  source = "".join((STUDY / f"{name}.py").read_text() for name in ("analysis", "exploratory"))
  named = set(re.findall(r"`tables/(\w+)\.parquet`", PAGE))
  assert len(named) > 3
  assert [name for name in named if f'"{name}":' not in source] == []


def test_labels_verdicts_titles_and_statistics_are_those_of_the_code() -> None:
  listed = re.search(r"One label a row: ([\w, ]+)\.", PAGE)
  assert listed is not None
  assert re.findall(r"(?!or\b)\b\w+", listed[1]) == list(LABELS)
  assert re.findall(r'verdict "([^"]+)"', PAGE) == [VERDICTS[True, False]]
  assert gates.WEAK_TITLE in " ".join(PAGE.split())
  named = re.findall(r"`stats\.(\w+)`", PAGE)
  assert named
  assert [name for name in named if not hasattr(stats, name)] == []


def test_the_personas_on_the_page_load_and_have_nothing_to_mend(tmp_path: Path) -> None:
  (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
  path = tmp_path / "mine.toml"
  path.write_text(text)
  assert [(p.name, p.label) for p in load_personas(str(path))] == [("tidy", "C+"), ("messy", "C-")]
  assert check_texts(load_poles(str(path))) == []
