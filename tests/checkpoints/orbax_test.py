"""Models saved as Orbax directories; tests/sharding moves one between meshes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import persona_jax as pj
from persona_jax import convert


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
  path = tmp_path_factory.mktemp("orbax") / "model"
  tiny.model.save(path)
  return path


def leaves(model):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def test_saved_model_loads_to_the_same_model(tiny, saved):
  again = pj.load(saved)
  assert again.identity == tiny.model.identity and again.identity.source == str(saved)
  assert again.arch == tiny.model.arch and again.tokenizer == tiny.model.tokenizer
  assert again.chat == tiny.model.chat and again.config == tiny.model.config
  for ours, theirs in zip(leaves(again), leaves(tiny.model), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
  ours, theirs = (m.generate(["w5 w6"], max_new_tokens=4)[0] for m in (again, tiny.model))
  assert ours.token_ids == theirs.token_ids


def test_copy_that_lost_precision_is_another_model(tiny, tmp_path):
  half = pj.load(tiny.directory, dtype="bfloat16")
  assert half.identity == tiny.model.identity  # what was read, whatever it is computed in
  half.save(tmp_path / "half")
  stored = pj.load(tmp_path / "half")
  assert stored.identity.sha256 != tiny.model.identity.sha256
  assert stored.identity.quantisation == "F32→bfloat16"
  direction = dataclasses.replace(
    tiny.direction(), provenance={"model_hash": tiny.model.identity.sha256}
  )
  direction.save(tmp_path / "d.safetensors")
  with pytest.raises(ValueError, match="allow_other_model"):
    pj.load_direction(tmp_path / "d.safetensors", model=stored)
  widened = pj.load(tmp_path / "half", dtype="float32")
  np.testing.assert_array_equal(leaves(widened)[0], leaves(half)[0].astype(np.float32))


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tiny, saved, tmp_path):
  with pytest.raises(FileExistsError, match=str(saved)):
    tiny.model.save(saved)
  assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_damaged_directories_are_refused(tiny, tmp_path):
  path = tmp_path / "model"
  tiny.model.save(path)
  manifest = json.loads((path / "persona_jax.json").read_text())
  manifest["config"]["intermediate_size"] += 2
  (path / "persona_jax.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=r"params cannot be restored: blocks\.0\.down_FD is \("):
    pj.load(path)
  (path / "persona_jax.json").write_text(json.dumps(manifest | {"version": 99}))
  with pytest.raises(ValueError, match="version 99; this package reads 1"):
    pj.load(path)
  (path / "persona_jax.json").write_text(json.dumps(manifest))
  (path / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
    pj.load(path)


def test_convert_command_writes_what_load_reads(tiny, tmp_path, capsys):
  out = tmp_path / "out"
  assert convert.main([str(tiny.directory), str(out)]) == 0
  printed = capsys.readouterr()
  assert f'pj.load("{out}", dtype="float32")' in printed.out and "weights" in printed.err
  np.testing.assert_array_equal(leaves(pj.load(out))[0], leaves(tiny.model)[0])
  assert convert.main([str(tiny.directory), str(out)]) == 1
  assert "not converted" in capsys.readouterr().err
  assert convert.main(["no/such-model", str(tmp_path / "other")]) == 1
  assert "persona_jax.fetch no/such-model" in capsys.readouterr().err
