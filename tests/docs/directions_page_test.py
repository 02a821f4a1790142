"""docs/directions.md: its code runs on the real model, its tables list what there is."""

import importlib
import re
from typing import Any

import persona_jax as pj
from persona_jax.directions.extract import KNOWN
from persona_jax.directions.formats.exchange import FORMATS
from tests.docs.families_page_test import ROOT

PAGE = (ROOT / "docs" / "directions.md").read_text()


def column(header: str) -> list[str]:
  """Returns the names in the first column of the table that begins so."""
  table = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
  return [line.split("|")[1].strip().strip("`") for line in table]


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  space: dict[str, Any] = {}
  for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
    exec(code, space)
  assert pj.load_direction("c.safetensors").hash == space["direction"].hash
  assert space["table"]["auc"].between(0, 1).all() and 6 <= space["block"] < 24
  assert space["why"].startswith("largest AUC")


def test_the_tables_list_all_methods_and_formats():
  assert column("| method |") == [*KNOWN, "trained"]
  assert column("| format |") == list(FORMATS)


def test_modules_and_functions_that_are_named_are_there():
  named = re.findall(r"`directions\.([a-z_]+)((?:\.\w+)*)`", PAGE)
  assert len(named) > 5
  for module, rest in named:
    found = importlib.import_module(f"persona_jax.directions.{module}")
    for name in filter(None, rest.split(".")):
      found = getattr(found, name)
