"""The confirm split: opened once, on demand, with a record of when and by which study.

Until then nothing of it is run, first tokens neither. Once it is open, the claim of H3 rests on it
alone. The record is in the study's directory: another directory is another study, and whoever reads
one has to ask how many there were.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_jax.runs.run import write_json
from persona_jax.studies.persona_non_grata.material import Material

RECORD = "confirm_opened.json"


def open_confirm(material: Material, directory: Path) -> dict[str, Any]:
  """Open the confirm split of a study that was started, and return the record of it.

  A study that goes on finds its own record and leaves it as it is.

  Raises:
    ValueError: there is no confirm split, or it was opened here under other settings, texts or
      code.
    FileNotFoundError: the directory holds no study (`start`).
  """
  if not material.confirm:
    raise ValueError("there is no confirm split to open: confirm_prompts=0.")
  asked = _asked(material, directory)
  path = directory / RECORD
  if path.exists():
    return _checked(asked, path)
  record = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **asked}
  write_json(record, path)
  return record


def is_confirm_open(material: Material, directory: Path) -> bool:
  """Tell whether the study has opened its confirm split.

  Raises:
    ValueError: it was opened here under other settings, texts or code.
    FileNotFoundError: the directory holds no study (`start`).
  """
  path = directory / RECORD
  if not path.exists():
    return False
  _checked(_asked(material, directory), path)
  return True


def _asked(material: Material, directory: Path) -> dict[str, Any]:
  config = json.loads((directory / "config.json").read_text())
  return {
    "config_hash": config["hash"],
    "code_hash": {name: config["versions"][name] for name in ("code", "stages")},
    "split_hash": material.hashes()["confirm"],
    "prompts": len(material.confirm),
  }


def _checked(asked: Mapping[str, Any], path: Path) -> dict[str, Any]:
  record = json.loads(path.read_text())
  differing = [
    f"{key}: {record.get(key)!r} there, {value!r} now"
    for key, value in asked.items()
    if record.get(key) != value
  ]
  if differing:
    raise ValueError(
      f"{path}: the confirm split was opened on {record.get('date')} by another study "
      f"({'; '.join(differing)}); it is opened once."
    )
  return record
