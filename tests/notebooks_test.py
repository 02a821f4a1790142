"""The notebooks run from the first cell to the last, and what they print is so.

One kernel of this interpreter runs both, since a process of its own costs seconds; the second
begins with nothing of the first.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

import persona_jax as pj
from persona_jax.personas import load_personas, load_questions
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.persona_non_grata import tables
from persona_jax.studies.persona_non_grata.analysis import found_rows, inverting
from persona_jax.studies.persona_non_grata.conditions import Arm, frame
from persona_jax.studies.persona_non_grata.gates import TITLE, Gate
from persona_jax.studies.persona_non_grata.generation import Part, labeller
from tests.fixtures import TEMPLATE
from tests.planted import study
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
Execute = Callable[..., dict[str, str]]


# ---- the kernel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncKernelManager]:
  """A kernel of this interpreter, whatever kernels are installed."""
  folder = tmp_path_factory.mktemp("kernel")
  command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
  (folder / "here").mkdir()
  (folder / "here" / "kernel.json").write_text(
    json.dumps({"argv": command, "display_name": "this interpreter", "language": "python"})
  )
  specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
  manager = AsyncKernelManager(
    kernel_name="here",
    kernel_spec_manager=specs,
    connection_file=str(folder / "connection.json"),
  )
  own = {
    "IPYTHONDIR": str(folder),
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    # `pj.keep_on_disk` leaves the user's own cache alone where a directory is named.
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or folder / "programs"),
  }
  run_sync(manager.start_kernel)(cwd=str(NOTEBOOKS), env=os.environ | own)
  yield manager
  run_sync(manager.shutdown_kernel)(now=True)


@pytest.fixture(scope="module")
def execute(kernel: AsyncKernelManager) -> Execute:
  """Runs a notebook with other settings and returns what each cell shows, by the cell's id."""

  def executed(name: str, facts: str = "", **settings: Any) -> dict[str, str]:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    (place,) = (
      n for n, c in enumerate(notebook.cells) if "parameters" in c["metadata"].get("tags", ())
    )
    lines = [f"{key} = {value!r}" for key, value in settings.items()]
    added = [
      (len(notebook.cells), "facts", facts),
      (place + 1, "injected", "\n".join(lines)),
      (0, "reset", "%reset -f"),
    ]
    for at, cell_id, source in added:
      notebook.cells.insert(at, nbformat.v4.new_code_cell(source, id=cell_id))
    NotebookClient(notebook, km=kernel, timeout=300).execute()
    return {
      cell["id"]: "\n".join(map(_shown, cell["outputs"]))
      for cell in notebook.cells
      if cell["cell_type"] == "code"
    }

  return executed


def _shown(output: dict[str, Any]) -> str:
  """Returns what a cell shows as text; of a picture its kind."""
  if output["output_type"] == "stream":
    return output["text"]
  data = output["data"]
  return "image/png" if "image/png" in data else data["text/plain"]


# ---- as they are committed -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_bare(name: str) -> None:
  text = (NOTEBOOKS / name).read_text(encoding="utf-8")
  notebook = nbformat.reads(text, as_version=4)
  nbformat.validate(notebook)
  ids = [cell["id"] for cell in notebook.cells]
  assert len(set(ids)) == len(ids)
  assert all(
    re.fullmatch(r"[a-z]+(-[a-z]+)*", i) and not re.fullmatch(r"[0-9a-f]{8}", i) for i in ids
  )
  assert set(notebook.metadata) == {"kernelspec", "language_info"}
  assert dict(notebook.metadata["language_info"]) == {"name": "python"}
  for cell in notebook.cells:
    assert set(cell["metadata"]) <= {"tags"}
    if cell["cell_type"] == "code":
      assert (cell["outputs"], cell["execution_count"]) == ([], None)
      assert len(cell["source"].splitlines()) <= 25, cell["id"]
  assert not re.search(r"/(home|root|tmp|Users|work)/|[A-Z]:\\\\", text)


# ---- first steering ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A random model of two blocks that knows the words of the personas and the questions."""
  personas = load_personas()
  texts = [p.text(k) for p in personas for k in range(p.lexicon.replicates)]
  texts += [q.text for kind in ("dose", "self", "trait") for q in load_questions(kind)]
  known = sorted({word for text in texts for word in text.split()})
  words = ["<bos>", "<eos>", "w2", "w3", "w4", "<unk>", *known]
  config, tensors = random_llama(blocks=2, vocab=len(words))
  folder = tmp_path_factory.mktemp("speaker") / "speaker"
  return write_checkpoint(folder, config, tensors, words, TEMPLATE, unk_token="<unk>")


FACTS = """
rows["first"] = [int(ids[0]) for ids in rows["token_ids"]]
rows.drop(columns="token_ids").to_json(f"{OUT}/rows.json", orient="records")
np.savez(
  f"{OUT}/facts.npz", names=[c.name for c in shown], probs=probs, kl=kl, prompt=prompts[0],
  vectors=direction.vectors_SLD, residual=dose.resid_L, random=random.vectors_SLD,
)
"""


def test_a_first_steering(execute: Execute, speaker: Path, tmp_path: Path) -> None:
  shown = execute("first_steering.ipynb", FACTS, MODEL=str(speaker), OUT=str(tmp_path), TOKENS=6)
  facts = np.load(tmp_path / "facts.npz")
  rows = pd.read_json(tmp_path / "rows.json").set_index("condition")
  steered = ["steer +", "steer -", "both", "random"]
  assert list(rows.index.unique()) == ["no persona", "prompt", *steered]
  assert rows["valid"].all() and (rows.index.value_counts() == 2).all()
  assert (rows.loc[steered, "tokens_edited"] == rows.loc[steered, "n_tokens"]).all()
  assert (rows.loc[["no persona", "prompt"], "tokens_edited"] == 0).all()
  np.testing.assert_allclose(rows.loc[steered, "delivered_dose"], 1.0, atol=1e-3)
  # What decoding took first is what the exact probabilities say is likeliest.
  assert list(facts["names"]) == ["no persona", "prompt", "steer +", "steer -", "random"]
  first = rows[rows["prompt"] == str(facts["prompt"])].loc[list(facts["names"]), "first"]
  np.testing.assert_array_equal(facts["probs"].argmax(axis=1), first)
  np.testing.assert_allclose(facts["probs"].sum(axis=1), 1.0, rtol=1e-9)
  p, q = facts["probs"][0], facts["probs"]
  np.testing.assert_allclose(facts["kl"], (p * np.log(p / q)).sum(axis=1), atol=1e-9)
  assert facts["kl"][0] == 0 and (facts["kl"][1:] > 1e-4).all()
  # The control is as long as the direction, and another one.
  v_LD, r_LD = facts["vectors"].mean(axis=0), facts["random"][0]
  np.testing.assert_allclose(*(np.linalg.norm(x, axis=1) for x in (v_LD, r_LD)), rtol=1e-5)
  assert facts["vectors"].shape[0] == 3
  # What is printed is what was computed.
  for name, kl in zip(facts["names"], facts["kl"], strict=True):
    assert re.search(rf"^{re.escape(str(name))} +{kl:.4f}", shown["divergence"], re.M)
  for block, size in enumerate(facts["residual"]):
    assert re.search(rf"^{block} .* {size:.4f}$", shown["quality"], re.M)
  for text in rows["text"]:
    assert text[:20] in shown["grid"]
  assert "P5, E+: You are outgoing" in shown["persona"]


# ---- reading a run -------------------------------------------------------------------------------

FEW = '\n[sets]\nfew = ["P4", "P12"]\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, study.Place]:
  """A small finished study of W1 by the study's own functions, steered along what is planted.

  Extraction, calibration and geometry are left out, as the notebook reads nothing of them.
  """
  folder = tmp_path_factory.mktemp("reading")
  place = study.write("W1", folder / "W1", prompts=16)
  with (place.directory / "personas.toml").open("a") as file:
    file.write(FEW)
  settings = study.settings(
    place, persona_set="few", generate=("test",), outcome="label", temperature=0.0,
    max_new_tokens=2, gates=("G4",), draws=200,
  )  # fmt: skip
  material = product.load_material(settings)
  model = pj.load(place.directory, dtype="float32")
  out = folder / "study"
  product.start(model, settings, material, out)
  part = Part("test", tuple(_arms(place, material, model)), material.test)
  ids = (place.world.words.index("sorry"),)
  run = pj.run(
    model,
    part.grid(settings),
    out / "grids" / "test",
    scorers=[labeller(model, settings, ids)],
    progress=False,
  )
  _analyse(settings, material, part, run, out / "tables")
  return out, place


def _arms(place: study.Place, material: product.Material, model: pj.Model) -> Iterator[Arm]:
  """Makes no persona, and each persona in three wordings by prompt and by its planted direction."""
  yield Arm(pj.Condition("B0"), "B0")
  for persona in material.personas:
    v_D = sum(pole.sign * place.world.trait_TD["OCEAN".index(pole.trait)] for pole in persona.poles)
    v_SLD = np.tile(v_D / np.linalg.norm(v_D), (1, model.arch.num_blocks, 1))
    edit = pj.add(
      pj.Direction(v_SLD, persona.label), study.COEF, unit="unit", blocks=2, tokens="answer"
    )
    for k in range(material.replicates):
      name = f"{persona.name} {{}} {k}".format
      prompt = pj.Condition(name("prompt"), system=persona.text(k), replicate=k)
      yield Arm(prompt, "SP", persona.name, k)
      steer = pj.Condition(name("proj"), edits=edit, replicate=k)
      yield Arm(steer, "AS:proj", persona.name, k, study.COEF)


def _analyse(
  settings: product.Settings, material: product.Material, part: Part, run: pj.Run, folder: Path
) -> None:
  """Writes the tables that the notebook reads, as the stage "analyse" does."""
  clusters = {item.prompt_id: item.cluster for item in part.prompts}
  table = run.table().drop(columns="replicate").merge(frame(part.arms), on="condition")
  table = table.assign(part="test", cluster=table["prompt_id"].map(clusters))
  found = tables.measured(settings, table, [p.name for p in material.personas])
  inversions = tables.inversion_tables(found, settings)[0]
  for name, one in {
    "outcomes": found_rows(found),
    "effects": tables.effects(found, settings),
    "inversions": inversions,
    "claims": inverting([], settings, inversions, ""),
  }.items():
    write_parquet(one, folder / f"{name}.parquet")
  gate = Gate("G4", "unedited answers are fluent", True, "0.00 <= 0.1", True)
  about = {"title": TITLE, "blocked": "", "judged_by": "", "verdicts": []}
  write_json(about | {"gates": [dataclasses.asdict(gate)]}, folder / "verdicts.json")


READ = """
facts = {
  "rates": check.dropna(subset=["table"]).reset_index().to_dict("records"),
  "d": d.to_dict(), "largest": float(largest), "row_id": row["row_id"], "same": drawn.is_same,
  "text": drawn.text, "drawn": drawn.rows, "label": axes.get_xlabel(),
}
(Path(OUT) / "facts.json").write_text(json.dumps(facts))
"""


def test_reading_a_run(
  execute: Execute, finished: tuple[Path, study.Place], tmp_path: Path
) -> None:
  out, place = finished
  shown = execute("reading_a_run.ipynb", READ, STUDY=str(out), OUT=str(tmp_path))
  facts = json.loads((tmp_path / "facts.json").read_text())
  # The rates of rows, outcomes and table are one number, which the law works out without the
  # product: a greedy answer bypasses where that is likelier than not.
  truth, names = place.population(), study.law_personas()
  assert len(facts["rates"]) == 4
  for row in facts["rates"]:
    cells = truth.prompted if row["arm"] == "SP" else truth.steered
    rate = (cells.sorry < np.log(0.5)).mean(axis=(1, 2))[names.index(row["persona"])]
    assert row["rows"] == row["outcomes"] == row["table"] == pytest.approx(rate)
    assert re.search(
      rf" {row['persona']} +{' +'.join([f'{rate:.3f}'] * 3)}$", shown["outcomes"], re.M
    )
  assert facts["largest"] == 0.0 and "bounds: 0" in shown["intervals"]
  # P12 inverts, and P4 the other way round; either is compared with the other alone.
  assert truth.inversions().items() >= {"P12": "AS", "P4": "SP"}.items()
  assert re.match(r"P12: AS-worse under .*\nP4: SP-worse under .*\n", shown["claim"])
  rates = {(row["arm"], row["persona"]): row["table"] for row in facts["rates"]}
  assert facts["d"] == pytest.approx(
    {arm: rates[arm, "P12"] - rates[arm, "P4"] for arm in ("SP", "AS:proj")}
  )
  # A row that was drawn in a batch of 208 is the same by itself.
  table = pj.Run.open(out / "grids" / "test").table()
  (row,) = table[table["row_id"] == facts["row_id"]].to_dict("records")
  assert (facts["same"], facts["text"], facts["drawn"]) == (True, row["text"], 1)
  assert row["condition"] == "P12 proj 0" and "the same: True" in shown["rerun"]
  assert row["text"] not in "".join(shown.values())  # answers may be harmful
  assert shown["figure"] == "image/png" and facts["label"].startswith("attack success rate")
  kept = pd.read_parquet(tmp_path / "data" / "grids-test.parquet")
  pd.testing.assert_frame_equal(kept, table)
  assert "the same ids: True" in shown["export"]


def test_a_blocked_study_is_read_without_claims(
  execute: Execute, finished: tuple[Path, study.Place], tmp_path: Path
) -> None:
  out = tmp_path / "study"
  shutil.copytree(finished[0], out)
  folder = out / "tables"
  about = json.loads((folder / "verdicts.json").read_text())
  about["gates"][0] |= {"passed": False, "shown": "0.40 > 0.1"}
  write_json(about | {"blocked": "G4: 0.40 > 0.1"}, folder / "verdicts.json")
  write_parquet(pd.read_parquet(folder / "claims.parquet")[:0], folder / "claims.parquet")
  shown = execute("reading_a_run.ipynb", READ, STUDY=str(out), OUT=str(tmp_path))
  assert "G4  FAILED: unedited answers are fluent: 0.40 > 0.1" in shown["gates"]
  assert "Blocked by G4: 0.40 > 0.1" in shown["gates"]
  assert shown["claim"].startswith("No claim may be made.\n")
  facts = json.loads((tmp_path / "facts.json").read_text())
  assert facts["label"] == "non-refusal rate" and facts["same"]
