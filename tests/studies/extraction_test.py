"""The extraction study on a tiny model, with a bank of roles of its own."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.studies import extraction as study
from persona_jax.studies.extraction.pages import write_pages

BANK = """
questions = ["w5 w6", "w7 w8", "w9 w10", "w11 w12", "w13 w14", "w15 w16", "w17 w18"]

["brave <role>"]
positive = ["w20 w21 w22", "w23 w24 w25"]
negative = ["w30 w31 w32", "w33 w34 w35"]

[calm]
positive = ["w40 w41 w42", "w43 w44 w45"]
negative = ["w50 w51 w52", "w53 w54 w55"]
"""


@pytest.fixture
def settings(tmp_path):
  (tmp_path / "bank.toml").write_text(BANK)
  return study.Settings(
    bank=str(tmp_path / "bank.toml"),
    only=(),
    methods=("diff_means", "pca_center", "lat", "likelihood"),
    source="prompts",
    site="resid_post",
    train_questions=4,
    held_out_questions=2,
    answer_tokens=4,
    train_block=1,
    train_steps=2,
    train_batch=2,
    train_rate=0.05,
    lat_seed=0,
    store=False,
    seed=0,
  )


def run(tiny, settings, directory):
  found = study.contrasts(settings)
  config_hash = study.start(tiny.model, settings, found, directory)
  directions = study.extract(tiny.model, settings, found, directory, progress=False)
  evidence = study.examine(tiny.model, settings, found, directions, directory)
  return (
    found,
    directions,
    evidence,
    write_pages(tiny.model, settings, config_hash, found, evidence, directory),
  )


def test_directions_are_extracted_judged_and_reported(tiny, settings, tmp_path):
  found, directions, evidence, index = run(tiny, settings, tmp_path / "run")
  first = found[0]
  assert not set(first.train) & set(first.held_out)
  assert (len(first.train), len(first.held_out)) == (4, 2)
  positive, negative, label = first.pairs(first.train)
  assert label == [0] * 4 + [1] * 4 and len(positive) == len(negative) == 8
  d = directions["diff_means"]["brave <role>"]
  theirs = pj.extract(tiny.model, positive, negative, replicates=label)
  np.testing.assert_allclose(d.vectors_SLD, theirs.vectors_SLD, atol=1e-5)
  trained = directions["likelihood"]["calm"]
  assert trained.provenance["blocks"] == [1] and trained.mean_LD[1].any()
  assert [e.method for e in evidence["calm"]] == list(settings.methods)
  mean, *_, likely = evidence["calm"]
  assert list(mean.separation["block"]) == [0, 1, 2] and list(likely.separation["block"]) == [1]
  assert mean.block == mean.separation.sort_values(["auc", "d"]).iloc[-1]["block"]
  z = pj.project(tiny.model, found[1].pairs(found[1].held_out)[0], mean.direction)
  top = mean.extremes.iloc[0]
  assert mean.extremes["projection"].is_monotonic_decreasing
  assert top["projection"] >= z[:, mean.block, 0].max() - 1e-4
  page = (tmp_path / "run" / "pages" / "calm.html").read_text()
  assert "<h1>calm</h1>" in page and "AUC" in page and "data:image/png;base64," in page
  assert f"{mean.direction.hash[:12]}" in page
  text = index.read_text()
  assert "brave &lt;role&gt;" in text and "brave <role>" not in text
  assert text.count("likelihood") == 2


def test_an_extraction_goes_on_where_it_was(tiny, settings, tmp_path, monkeypatch):
  _, directions, *_ = run(tiny, settings, tmp_path / "run")
  monkeypatch.setattr(study.stages, "extract_by_methods", None)
  monkeypatch.setattr(study.stages, "train_direction", None)
  _, again, *_ = run(tiny, settings, tmp_path / "run")
  for method in settings.methods:
    assert again[method]["calm"].hash == directions[method]["calm"].hash
  other = dataclasses.replace(settings, seed=1)
  with pytest.raises(ValueError, match=r"holds another extraction \(\['settings', 'contrasts'\]"):
    run(tiny, other, tmp_path / "run")


def test_answers_are_read_without_the_text_that_made_them(tiny, settings, tmp_path):
  settings = dataclasses.replace(
    settings, source="answers", methods=("diff_means", "lda"), store=True, only=("calm",)
  )
  found, directions, evidence, _ = run(tiny, settings, tmp_path / "run")
  kept = json.loads((tmp_path / "run" / "answers" / "calm-train.json").read_text())
  assert len(kept) == 16 and all([m["role"] for m in c] == ["user", "assistant"] for c in kept)
  theirs = pj.extract(
    tiny.model, kept[:8], kept[8:], tokens="answer_mean", replicates=[0] * 4 + [1] * 4
  )
  found_LD = directions["diff_means"]["calm"].mean_LD
  np.testing.assert_allclose(found_LD, theirs.mean_LD, atol=1e-5)
  assert (tmp_path / "run" / "activations" / "activations" / "zarr.json").is_file()
  assert len(evidence["calm"]) == 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(methods=("pca",)), "name some of"),
    (dict(methods=("lda", "lda")), "once"),
    (dict(source="text"), "'prompts' or 'answers'"),
    (dict(train_questions=2), "at least 4 and 2"),
    (dict(bank="none.toml"), "'traits' or a TOML file"),
    (dict(bank="traits", only=("X",)), "the traits are"),
    (dict(site="mlp_out"), "vectors are trained at 'resid_post'"),
  ],
)
def test_bad_settings_are_refused(settings, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(settings, **change)


def test_the_config_gives_settings():
  path = pathlib.Path("configs/extract_directions.py")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().to_dict()
  for field in ("model", "dtype", "system_default", "chat_template"):
    config.pop(field)
  settings = study.Settings.of(config)
  assert {*settings.read, *settings.trained} == set(settings.methods) and len(settings.methods) == 9
  with pytest.raises(ValueError, match=r"no settings \['colour'\]"):
    study.Settings.of(config | {"colour": 1})


def test_bad_banks_are_refused(settings, tmp_path):
  for text, message in (
    ("[a]\npositive = ['x']\nnegative = []", "needs 'positive' and 'negative'"),
    ("questions = ['x']", "has no roles"),
    ("[a", "not a TOML file"),
  ):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      study.contrasts(dataclasses.replace(settings, bank=str(path)))
  with pytest.raises(ValueError, match="the bank has 7"):
    study.contrasts(dataclasses.replace(settings, train_questions=6))
  with pytest.raises(ValueError, match="has no roles .'bold'."):
    study.contrasts(dataclasses.replace(settings, only=("bold",)))
  big_five = dataclasses.replace(settings, bank="traits", train_questions=8, held_out_questions=4)
  assert [c.name for c in study.contrasts(big_five)] == ["O+", "C+", "E+", "A+", "N+"]
