"""A model on the second of two forced host devices; devices_test.py runs it by itself.

Prints one JSON object: what was generated, scored and read on each, and which devices the programs
are for.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=2"]
)

import jax  # noqa: E402
import numpy as np  # noqa: E402

import persona_jax as pj  # noqa: E402
from persona_jax.engine.need import Need  # noqa: E402
from persona_jax.engine.programs import PROGRAMS  # noqa: E402
from tests.fixtures import Tiny, make_tiny  # noqa: E402

PROMPTS = [pj.Raw(f"w5 w6 w7 w{i}") for i in range(5, 8)]


def devices_of(compiled: object) -> set[int]:
  shardings = jax.tree.leaves(compiled.input_shardings)  # type: ignore[attr-defined]
  return {device.id for sharding in shardings for device in sharding.device_set}


def work(tiny: Tiny, model: pj.Model) -> dict[str, object]:
  PROGRAMS.clear()
  edits = [pj.add(tiny.direction(), float(c), unit="unit", blocks=0) for c in range(len(PROMPTS))]
  # More tokens than one segment has, so that programs are made ahead.
  answers = model.generate(PROMPTS, edits=edits, max_new_tokens=40)
  scores = model.score(PROMPTS, ["w8 w9"] * len(PROMPTS), edits=edits)
  reads = model.capture(PROMPTS, pj.Capture(("resid_post",), [0], "mean"))
  (value,) = jax.tree.leaves(reads)[:1]
  ids = set()
  for entry in list(PROGRAMS._entries.values()):
    ids |= devices_of(entry.compiled)
  return {
    "tokens": [g.token_ids for g in answers],
    "scores": np.asarray(scores).tolist(),
    "reads": np.asarray(value, float).ravel()[:20].tolist(),
    "devices": sorted(ids),
  }


def planned(tiny: Tiny, model: pj.Model) -> dict[str, object]:
  PROGRAMS.clear()
  # No answer ends early, which a plan does not foresee.
  model = dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, eos_ids=()))
  edits = pj.add(tiny.direction(), 1.0, unit="unit", blocks=0)
  grid = pj.Grid(PROMPTS, [pj.Condition("c", edits=edits)], max_new_tokens=4)
  plan = pj.plan(model, grid)
  pj.compile(model, plan)
  ids = set()
  for entry in PROGRAMS._entries.values():
    ids |= devices_of(entry.compiled)
  before = len(PROGRAMS)
  pj.run(model, grid, out=Path(tempfile.mkdtemp()) / "run", progress=False)
  return {"devices": sorted(ids), "more in the run": len(PROGRAMS) - before}


def main() -> None:
  second = jax.devices()[1]
  # Of the second device there are many programs twice.
  jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_enable_compilation_cache", True)
  tiny = make_tiny(Path(tempfile.mkdtemp()), blocks=1)
  ahead: list[Need] = []
  prepare = PROGRAMS.prepare

  def noted(needed):  # type: ignore[no-untyped-def]
    def needs():  # type: ignore[no-untyped-def]
      found = list(needed())
      ahead.extend(found)
      return found

    return prepare(needs)

  PROGRAMS.prepare = noted  # type: ignore[method-assign]
  out: dict[str, object] = {"first": work(tiny, tiny.model)}
  moved = jax.device_put(tiny.model, second)
  out["moved"] = work(tiny, moved)
  out["plan"] = planned(tiny, moved)
  with jax.default_device(second):
    there = pj.load(tiny.directory)
    out["default"] = work(tiny, there)
  out["models"] = [model.device.id for model in (tiny.model, moved, there)]
  out["compiled ahead"] = len(ahead)
  print(json.dumps(out))


if __name__ == "__main__":
  main()
