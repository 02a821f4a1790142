"""Models saved as Orbax directories; tests/sharding moves one between meshes."""

import dataclasses
import json
import shutil

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


# Orbax leaves tasks of the reads that it gave up on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_file_of_a_directory_cut_short_or_lost_is_an_error_of_one_line(tiny, saved, tmp_path):
  files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
  assert len(files) > 5
  for file in files:
    for kept in (None, 0.5):
      copy = tmp_path / "copy"
      shutil.copytree(saved, copy)
      content = (copy / file).read_bytes()
      (copy / file).unlink()
      if kept is not None:
        (copy / file).write_bytes(content[: int(len(content) * kept)])
      try:
        params = leaves(pj.load(copy))
      except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(copy) in str(error), (file, kept, error)
      else:  # a file that Orbax can do without
        for now, before in zip(params, leaves(tiny.model), strict=True):
          np.testing.assert_array_equal(now, before)
      shutil.rmtree(copy)


def test_parameters_that_are_not_those_that_were_written_are_refused(tiny, saved, tmp_path):
  manifest = json.loads((saved / "persona_jax.json").read_text())
  name = "blocks.1.q_DNH"
  changed = jax.tree.map(lambda leaf: leaf, tiny.model.params)
  q_DNH = changed["blocks"][1]["q_DNH"]
  for case, message in (("swap", f"'{name}' is damaged"), ("NaN", f"'{name}' holds a NaN")):
    new = q_DNH.at[0, 0, 0].set(np.nan) if case == "NaN" else q_DNH[::-1]
    changed["blocks"][1]["q_DNH"] = new
    path = tmp_path / case
    dataclasses.replace(tiny.model, params=changed).save(path)
    own = json.loads((path / "persona_jax.json").read_text())
    assert own["identity"] == manifest["identity"]
    own["checksums"] = manifest["checksums"]  # as if the bytes had changed under it
    (path / "persona_jax.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=message):
      pj.load(path)


def test_changed_parameters_under_a_name_are_another_model(tiny, tmp_path):
  changed = dataclasses.replace(
    tiny.model, params=jax.tree.map(lambda leaf: 2 * leaf, tiny.model.params)
  )
  changed.save(tmp_path / "doubled", name="doubled")
  identity = pj.load(tmp_path / "doubled").identity
  assert identity.name == "doubled" and identity.sha256 != tiny.model.identity.sha256


def test_failed_save_leaves_nothing(tiny, tmp_path):
  broken = dataclasses.replace(tiny.model, config=json.dumps({"x": 1}), params={"a": "no array"})
  with pytest.raises(TypeError, match="Parameter .*a.* is str"):
    broken.save(tmp_path / "model")
  assert not list(tmp_path.iterdir())
  # and one that fails after the parameters were written
  settings = dataclasses.replace(tiny.model.tokenizer, chat_template=b"no text")
  with pytest.raises(TypeError, match="not JSON serializable"):
    dataclasses.replace(tiny.model, tokenizer=settings).save(tmp_path / "model")
  assert not list(tmp_path.iterdir())


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
