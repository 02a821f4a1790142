"""One row drawn again from its run's directory alone."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.runs.kept_edits import read_condition
from persona_jax.runs.rerun import _exponentials, main, rerun
from tests.fixtures import Tiny
from tests.reference.numpy_noise import numpy_exponentials

PROMPTS = {"p": "w5 w6 w7", "q": [{"role": "user", "content": "w8"}], "r": pj.Raw("w3 w9 w4")}


def conditions(tiny: Tiny) -> list[pj.Condition]:
  a, b = tiny.direction(), tiny.direction(1)
  scale = pj.dose(tiny.model, ["w5 w6"])
  return [
    pj.Condition("plain"),
    pj.Condition("added", edits=pj.add(a, 2.0, unit="resid", blocks=1, scale=scale), replicate=0),
    pj.Condition(
      "many",
      edits=[
        pj.ablate(b, blocks=[0, 1]),
        pj.cap(a, 0.3, unit="unit", blocks=2, tokens=pj.Window(("user", "assistant"), -2, 3)),
        pj.add(b, 1.5, unit="unit", blocks=0, tokens="generated").ramped(pj.Ramp(steps=3)),
        pj.rotate(a, b, 0.4, blocks=1).keep_norm(),
      ],
    ),
    pj.Condition(
      "gated",
      edits=pj.add(a, 2.0, unit="unit", blocks=1).when(
        pj.Probe(b, 0, above=-0.05, tokens="last:2") & ~pj.Probe(a, 1, below=-1e6)
      ),
    ),
  ]


@pytest.fixture(scope="module")
def done(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> pj.Run:
  grid = pj.Grid(
    PROMPTS, conditions(tiny), samples=2, max_new_tokens=6, temperature=0.8, seed=3, paired=False
  )
  return pj.run(
    tiny.model, grid, tmp_path_factory.mktemp("study") / "grids" / "test", progress=False
  )


def test_every_row_is_the_same_when_it_is_drawn_again(tiny: Tiny, done: pj.Run) -> None:
  table = done.table()
  assert len(table) == 4 * 3 * 2
  assert table.groupby("condition")["text"].nunique().min() > 1
  gated = table[table["condition"] == "gated"]
  assert set(gated["tokens_edited"] == 0) == {False, True}  # the gate is on for some prompts
  for row in table.to_dict("records"):
    found = rerun(done.directory, row["row_id"], model=tiny.model)
    assert found.is_same, str(found)
    assert found.text == row["text"] and found.versions == ()


def test_the_command_needs_nothing_but_the_directory(
  done: pj.Run, capsys: pytest.CaptureFixture[str]
) -> None:
  study = done.directory.parent.parent  # runs below are looked through
  row_id = done.table()["row_id"].iloc[-1]
  assert main(["--run", str(study), "--row", row_id]) == 0
  assert "the same" in capsys.readouterr().out
  assert main(["--run", str(study), "--row", "0123"]) == 2
  assert "no run in" in capsys.readouterr().err
  assert main(["--run", str(study / "grids" / "none"), "--row", row_id]) == 2


def test_a_row_that_was_changed_is_found_and_told_where(
  tiny: Tiny, done: pj.Run, tmp_path: Path
) -> None:
  copy = tmp_path / "copy"
  shutil.copytree(done.directory, copy)
  (file,) = (copy / "results").glob("*.parquet")
  table = pd.read_parquet(file)
  (at,) = np.flatnonzero(table["cell"] == 0)
  ids = list(table["token_ids"].iloc[at])
  table.at[at, "token_ids"] = np.array([*ids[:2], (ids[2] + 1) % 90, *ids[3:]])
  table.to_parquet(file, index=False)
  found = rerun(copy, table["row_id"].iloc[at], model=tiny.model)
  assert (found.is_same, found.differs_at) == (False, 2)
  said = tiny.model.tokenizer.decode(ids[:3])
  expected = tiny.model.score([PROMPTS["p"]], [said], per_token=True)[0][2]
  assert found.logprob_now == pytest.approx(float(expected), abs=1e-4)
  assert found.logprob_then is not None and "NOT the same, from token 2 on" in str(found)
  # Decoding compares log-probabilities over the temperature, less the logarithm of the noise.
  seed, then = int(table["seed"].iloc[at]), (ids[2] + 1) % 90
  noise_V = numpy_exponentials(seed, 2, tiny.model.arch.vocab_size)
  assert found.margin == pytest.approx(
    (found.logprob_now - found.logprob_then) / 0.8 - np.log(noise_V[ids[2]] / noise_V[then]),
    abs=1e-4,
  )
  assert found.margin > found.rounding and "which is no rounding" in str(found)
  tie = dataclasses.replace(found, margin=2e-6)
  assert tie.is_near_tie and "2e-06 nats it was chosen, which rounding may decide" in str(tie)


def test_a_text_that_was_changed_is_found(tiny: Tiny, done: pj.Run, tmp_path: Path) -> None:
  copy = tmp_path / "copy"
  shutil.copytree(done.directory, copy)
  (file,) = (copy / "results").glob("*.parquet")
  table = pd.read_parquet(file)
  table["text"] += " w5"
  table.to_parquet(file, index=False)
  found = rerun(copy, table["row_id"].iloc[0], model=tiny.model)
  assert not found.is_same and found.differs_at is None and found.margin is None
  assert "the same tokens, but NOT the same text" in str(found)


def test_its_tile_gives_the_row_of_the_run(
  done: pj.Run, capsys: pytest.CaptureFixture[str]
) -> None:
  row_id = done.table().query("condition == 'gated'")["row_id"].iloc[0]
  assert main(["--run", str(done.directory), "--row", row_id, "--tile"]) == 0
  assert "drawn in its tile of 24 rows: the same" in capsys.readouterr().out


def test_noise_of_tokens_is_that_of_the_whole_vocabulary() -> None:
  found = _exponentials(123456789012345, 3, range(200), 200)
  np.testing.assert_allclose(found, numpy_exponentials(123456789012345, 3, 200), rtol=1e-5)


def test_what_is_kept_is_checked(tiny: Tiny, done: pj.Run, tmp_path: Path) -> None:
  row = done.table().query("condition == 'added'").iloc[0]["row_id"]
  copy = tmp_path / "copy"
  shutil.copytree(done.directory, copy)
  for path in (copy / "edits").glob("*.npy"):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
  with pytest.raises(ValueError, match="its bytes have another hash"):
    rerun(copy, row, model=tiny.model)
  shutil.rmtree(copy / "edits")
  with pytest.raises(FileNotFoundError, match="an edit of the run needs it"):
    rerun(copy, row, model=tiny.model)
  (copy / "conditions.json").unlink()
  with pytest.raises(FileNotFoundError, match="kept no conditions"):
    rerun(copy, row, model=tiny.model)


def test_other_models_and_edits_that_no_file_holds_are_refused(
  tiny: Tiny, tiny_tied: Tiny, done: pj.Run, tmp_path: Path
) -> None:
  row = done.table()["row_id"].iloc[0]
  with pytest.raises(ValueError, match="not the run's model: it differs in sha256"):
    rerun(done.directory, row, model=tiny_tied.model)
  custom = pj.custom_edit(lambda h, params, offset: h, (), site="resid_post", blocks=1)
  grid = pj.Grid(["w5"], [pj.Condition("c", edits=custom)], max_new_tokens=2)
  run = pj.run(tiny.model, grid, tmp_path / "run", progress=False)
  with pytest.raises(ValueError, match="calls a function of the user's"):
    rerun(run.directory, run.table()["row_id"].iloc[0], model=tiny.model)


def test_a_gate_comes_back_as_it_was(tiny: Tiny, done: pj.Run) -> None:
  (there,) = next(c for c in conditions(tiny) if c.name == "gated").edits
  (here,) = read_condition(done.directory, "gated").edits
  assert here.describe() == there.describe()
