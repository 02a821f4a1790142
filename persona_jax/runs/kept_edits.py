"""Conditions of a run as files, so that a row can be drawn again from the run's directory alone.

DIR/conditions.json          every condition, its edits' numbers by the hash of their bytes
DIR/edits/<hash>.npy         an array, once, however many edits hold it
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_jax.directions.direction import Direction
from persona_jax.edits.edit import Edit
from persona_jax.edits.gate import Joined, Negated, Probe, Rule
from persona_jax.edits.ramp import Ramp
from persona_jax.edits.window import Window, as_window
from persona_jax.engine.grid import Condition

_FILE, _FOLDER = "conditions.json", "edits"
_PLAIN = ("op", "kind", "site", "width", "unit", "concept", "direction_hash", "num_blocks")


def keep_conditions(conditions: Sequence[Condition], directory: Path) -> None:
  """Write conditions; arrays that are there are left alone.

  An edit that calls a user's function cannot be written; why stands in its place, and its rows
  cannot be drawn again without the grid.
  """
  kept = [
    {
      "name": condition.name,
      "system": condition.system,
      "prefix": condition.prefix,
      "replicate": condition.replicate,
      "edits": [_described(edit, directory) for edit in condition.edits],
    }
    for condition in conditions
  ]
  _write(directory / _FILE, json.dumps(kept, ensure_ascii=False).encode())


def read_condition(directory: Path, name: str) -> Condition:
  """Return a condition as it was run.

  Raises:
    FileNotFoundError: the directory keeps no conditions, as those of earlier versions, or an array
      is not there.
    ValueError: it has no such condition, an edit of it could not be kept, or an array's bytes are
      not what they were.
  """
  path = directory / _FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is not there: the run was written by a version that kept no conditions."
    )
  kept = {one["name"]: one for one in json.loads(path.read_text(encoding="utf-8"))}
  if name not in kept:
    raise ValueError(
      f"{path} has no condition {name!r}; it has {len(kept)}, such as {[*kept][:3]}."
    )
  one = kept[name]
  edits = [_edit(described, directory, name) for described in one["edits"]]
  return Condition(
    name, system=one["system"], prefix=one["prefix"], edits=edits, replicate=one["replicate"]
  )


def _described(edit: Edit, directory: Path) -> dict[str, Any]:
  if edit.call is not None:
    return {"lacking": f"{edit.op!r} calls a function of the user's, which no file holds"}
  arrays: dict[str, np.ndarray | None] = {
    **{f"numbers.{name}": array for name, array in edit.numbers.items()},
    "factor_LX": edit.factor_LX,
    "head_mask_N": edit.head_mask_N,
  }
  return {
    **{name: getattr(edit, name) for name in _PLAIN},
    "blocks": list(edit.blocks),
    "window": dataclasses.asdict(edit.window),
    "amounts": dict(edit.amounts),
    "ramp": None if edit.ramp is None else dataclasses.asdict(edit.ramp),
    "gate": edit.gate if isinstance(edit.gate, float) else _described_rule(edit.gate, directory),
    "norm_kept": edit.norm_kept,
    "arrays": {n: _keep_array(a, directory) for n, a in arrays.items() if a is not None},
  }


def _edit(kept: Mapping[str, Any], directory: Path, name: str) -> Edit:
  if "lacking" in kept:
    raise ValueError(f"condition {name!r}: its edit {kept['lacking']}.")
  arrays = {n: _read_array(key, directory) for n, key in kept["arrays"].items()}
  return Edit(
    **{field: kept[field] for field in _PLAIN},
    blocks=tuple(kept["blocks"]),
    numbers={n.removeprefix("numbers."): a for n, a in arrays.items() if n.startswith("numbers.")},
    window=_window(kept["window"]),
    amounts=kept["amounts"],
    factor_LX=arrays.get("factor_LX"),
    head_mask_N=arrays.get("head_mask_N"),
    ramp=None if kept["ramp"] is None else Ramp(**kept["ramp"]),
    gate=_rule(kept["gate"], directory) if isinstance(kept["gate"], dict) else kept["gate"],
    norm_kept=kept["norm_kept"],
  )


def _window(kept: Mapping[str, Any]) -> Window:
  roles = None if kept["roles"] is None else tuple(kept["roles"])
  return Window(**{**kept, "roles": roles})


def _described_rule(rule: Rule, directory: Path) -> dict[str, Any]:
  if isinstance(rule, Joined):
    return {"how": rule.how, "parts": [_described_rule(part, directory) for part in rule.parts]}
  if isinstance(rule, Negated):
    return {"not": _described_rule(rule.part, directory)}
  assert isinstance(rule, Probe), rule
  d, numbers = rule.direction, ("block", "above", "below", "replicate")
  return {
    "concept": d.concept,
    "read_at": d.site,
    "num_heads": d.num_heads,
    "vectors_SLD": _keep_array(d.vectors_SLD, directory),
    "gap_L": None if d.gap_L is None else _keep_array(d.gap_L, directory),
    "measure": rule.measure,
    "site": rule.site,
    "tokens": dataclasses.asdict(as_window(rule.tokens)),
    **{name: _plain(getattr(rule, name)) for name in numbers},
  }


def _rule(kept: Mapping[str, Any], directory: Path) -> Rule:
  if "how" in kept:
    return Joined(kept["how"], tuple(_rule(part, directory) for part in kept["parts"]))
  if "not" in kept:
    return Negated(_rule(kept["not"], directory))
  direction = Direction(
    _read_array(kept["vectors_SLD"], directory),
    kept["concept"],
    kept["read_at"],
    gap_L=None if kept["gap_L"] is None else _read_array(kept["gap_L"], directory),
    num_heads=kept["num_heads"],
  )
  names = ("block", "above", "below", "measure", "site", "replicate")
  own = {name: kept[name] for name in names}
  return Probe(direction, **own, tokens=_window(kept["tokens"]))


def _plain(number: Any) -> Any:
  return number.item() if isinstance(number, np.generic) else number


def _keep_array(array: np.ndarray, directory: Path) -> str:
  file = io.BytesIO()
  np.save(file, np.ascontiguousarray(array), allow_pickle=False)
  key = hashlib.sha256(file.getvalue()).hexdigest()
  path = directory / _FOLDER / f"{key}.npy"
  if not path.exists():
    _write(path, file.getvalue())
  return key


def _read_array(key: str, directory: Path) -> np.ndarray:
  path = directory / _FOLDER / f"{key}.npy"
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not there; an edit of the run needs it.")
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != key:
    raise ValueError(f"{path} is not what was written: its bytes have another hash.")
  return np.load(io.BytesIO(content), allow_pickle=False)


def _write(path: Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
  partial.write_bytes(content)
  partial.replace(path)
