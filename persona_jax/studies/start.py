"""config.json of a study's directory: what is asked for, so that nothing else goes on with it."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_jax.data.hashing import content_hash
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_json
from persona_jax.runs.versions import check_versions, code_hash, describe_model, versions


def begin(
  model: Model,
  settings: Mapping[str, Any],
  inputs: Mapping[str, str],
  directory: Path,
  stages: Sequence[str] = (),
) -> str:
  """Write config.json, or check that the one there asks for the same study; return its hash.

  Args:
    model: the model.
    settings: every knob, as plain values.
    inputs: hashes of the texts that the study reads, by name.
    directory: the study's.
    stages: packages and modules that make what the directory keeps, besides those of rows; not
      those that only read it, so that a corrected table or figure needs no new study.

  Raises:
    ValueError: the directory holds a study with other settings, texts or another model, or of
      another version of the code or of JAX.
  """
  what = {
    "model": describe_model(model),
    "settings": json.loads(json.dumps(dict(settings))),
    "inputs": dict(inputs),
  }
  now = versions() | ({"stages": code_hash(tuple(stages))} if stages else {})
  path = directory / "config.json"
  if path.exists():
    there = json.loads(path.read_text())
    differing = []
    for part, mine in what.items():
      theirs = there.get(part, {})
      differing += [
        f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} now"
        for key in dict.fromkeys([*theirs, *mine])
        if theirs.get(key) != mine.get(key)
      ]
    if differing:
      raise ValueError(
        f"{directory} holds a study with other settings ({'; '.join(differing)}); choose another "
        "--workdir, or remove that one."
      )
    check_versions(there["versions"], directory, now)
    return str(there["hash"])
  config_hash = content_hash(what)
  date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
  where = {"model_source": model.identity.source, "versions": now, "started": date}
  write_json({"hash": config_hash, **what, **where}, path)
  return config_hash
