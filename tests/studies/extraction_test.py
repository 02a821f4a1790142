"""The extraction study on a tiny model, with a bank of roles of its own."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from configs import extract_directions
from persona_jax.data.prompts import PromptItem
from persona_jax.directions.refusal import refusal_direction
from persona_jax.personas.persona import TRAITS, Lexicon, Persona, Pole, Question
from persona_jax.studies import extraction as study
from persona_jax.studies.extraction import coefficients as coefficient_stage
from persona_jax.studies.extraction import contrasts as contrast_stage
from persona_jax.studies.extraction import refusal as refusal_stage
from persona_jax.studies.extraction.evidence import by_question, method_cosines
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
    composites=(),
    methods=("diff_means", "pca_center", "lat", "likelihood"),
    persona_in="system",
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
    depth=(0.0, 1.0),
    coefficients=(),
    coefficient_prompts=2,
    coefficient_tokens=4,
    refusal_pairs=0,
    refusal_held_out=0,
    store=False,
    seed=0,
  )


def run(tiny, settings, directory):
  found = study.load_contrasts(settings)
  config_hash = study.start(tiny.model, settings, found, directory)
  directions = study.extract(tiny.model, settings, found, directory, progress=False)
  evidence = study.examine(tiny.model, settings, found, directions, directory, progress=False)
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
  positive, negative, label, question, asked = first.pairs(first.train)
  assert label == [0] * 4 + [1] * 4 and len(positive) == len(negative) == 8
  assert question == [0, 1, 2, 3] * 2 and asked == list(first.train) * 2
  d = directions["diff_means"]["brave <role>"]
  theirs = pj.extract(tiny.model, positive, negative, replicates=label)
  np.testing.assert_allclose(d.vectors_SLD, theirs.vectors_SLD, atol=1e-5)
  np.testing.assert_allclose(d.reliability_L, theirs.reliability_L, atol=1e-3)  # 4 questions: even
  trained = directions["likelihood"]["calm"]
  assert trained.provenance["blocks"] == [1] and trained.mean_LD[1].any()
  assert [e.method for e in evidence["calm"]] == list(settings.methods)
  mean, *_, likely = evidence["calm"]
  assert list(mean.separation["block"]) == [0, 1, 2] and list(likely.separation["block"]) == [1]
  assert mean.block == mean.separation.sort_values(["auc", "d"]).iloc[-1]["block"]
  held_out = found[1].pairs(found[1].held_out)
  z = pj.project(tiny.model, held_out.positive, mean.direction)
  top = mean.extremes.iloc[0]
  assert mean.extremes["projection"].is_monotonic_decreasing
  assert top["projection"] >= z[:, mean.block, 0].max() - 1e-4
  # One wording's vector on the other's pairs.
  crossed = []
  for s in (0, 1):
    v = pj.Direction(mean.direction.vectors_SLD[s, None], "v")
    mine = [n for n, k in enumerate(held_out.wording) if k != s]
    x, y = (
      pj.project(tiny.model, [side[n] for n in mine], v)[:, mean.block, 0]
      for side in (held_out.positive, held_out.negative)
    )
    crossed.append((x[:, None] > y).mean())
  np.testing.assert_allclose(mean.other_wordings, crossed)
  # Each question's pairs are the right way round: no interval says how other questions differ.
  x, y = (
    pj.project(tiny.model, side, mean.direction)[:, mean.block, 0]
    for side in (held_out.positive, held_out.negative)
  )
  for q in set(held_out.question):
    mine = [n for n, k in enumerate(held_out.question) if k == q]
    assert x[mine].min() > y[mine].max()
  assert mean.within[0] == 1.0 and np.isnan(mean.within[1:]).all()
  assert not len(likely.other_wordings) and np.isnan([*likely.within, *likely.confirmed]).all()
  table = pd.read_parquet(tmp_path / "run" / "evidence.parquet")
  assert len(table) == 2 * (3 * 3 + 1) and table["chosen"].sum() == 8
  assert set(table["sha256"]) == {e.direction.hash for mine in evidence.values() for e in mine}
  cosines = method_cosines(evidence["calm"])
  u, v = (d["calm"].unit_LD[1] for d in (directions["diff_means"], directions["likelihood"]))
  assert cosines.loc["diff_means", "likelihood"] == pytest.approx(u @ v, abs=1e-5)
  page = (tmp_path / "run" / "pages" / "calm.html").read_text()
  assert "<h1>calm</h1>" in page and "AUC" in page and "data:image/png;base64," in page
  assert f"{mean.direction.hash[:12]}" in page
  for method in settings.methods:  # every method's, not the first's only
    assert f"<summary>{method}, block" in page
  text = index.read_text()
  assert text.count("+1.00") == 2
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
  with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 now; contrasts: '"):
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
    (dict(site="stream"), "site='stream'"),
    (dict(store=True, methods=("diff_means", "likelihood")), "no method of .* reads activations"),
    (dict(depth=(0.8, 0.2)), "the smaller first"),
    (dict(coefficients=(0.0, 0.1)), "above 0"),
    (dict(refusal_pairs=3), "at least 4 and 2"),
    (
      dict(refusal_pairs=4, refusal_held_out=2, methods=("lda",), site="attn_out"),
      "refusal_pairs=0",
    ),
    (dict(persona_in="assistant"), "'system' or 'user'"),
    (dict(train_rate=0.0), "learning_rate=0.0 must be above 0"),
    (dict(answer_tokens=0), "answer_tokens=0"),
    (dict(composites=("C+ A+",)), "composites=.* are of traits"),
    (dict(bank="traits", composites=("C+ C-",)), "two poles of different traits"),
    (dict(bank="traits", composites=("C+ A+",), only=("C",)), r"different traits of \['C'\] fit"),
  ],
)
def test_bad_settings_are_refused(settings, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(settings, **change)


def test_the_config_gives_settings():
  config = extract_directions.get_config().to_dict()
  for field in ("model", "dtype", "resid_dtype", "system_default", "chat_template"):
    config.pop(field)
  settings = study.Settings.of(config)
  assert {*settings.read, *settings.trained} == set(settings.methods) and len(settings.methods) == 9
  names = [contrast.name for contrast in study.load_contrasts(settings)]
  assert names == ["O+", "C+", "E+", "A+", "N+", "C+ A+", "C+ A+ (sum)"]
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
      study.load_contrasts(dataclasses.replace(settings, bank=str(path)))
  with pytest.raises(ValueError, match="the bank has 7"):
    study.load_contrasts(dataclasses.replace(settings, train_questions=6))
  with pytest.raises(ValueError, match="has no roles .'bold'."):
    study.load_contrasts(dataclasses.replace(settings, only=("bold",)))
  big_five = dataclasses.replace(settings, bank="traits", train_questions=8, held_out_questions=4)
  assert [c.name for c in study.load_contrasts(big_five)] == ["O+", "C+", "E+", "A+", "N+"]


def in_words_of_the_tiny_model(monkeypatch):
  """The traits' texts and our questions, in words that its tokenizer has."""
  numbers = itertools.count()
  lexicon = Lexicon(
    "tiny",
    {
      Pole(t, sign): tuple(
        tuple(f"w{next(numbers) % 80 + 5} w{next(numbers) % 80 + 5}" for _ in "ab")
        for _ in range(3)
      )
      for t in TRAITS
      for sign in (1, -1)
    },
  )
  asked = [Question(f"q{n}", f"w{n + 40} w9", "self") for n in range(12)]
  for module in (contrast_stage, coefficient_stage, study.stages):
    monkeypatch.setattr(module, "load_questions", lambda kind: asked)
  monkeypatch.setattr(contrast_stage, "load_poles", lambda: lexicon)
  return lexicon


def test_composites_are_extracted_and_put_together(tiny, settings, tmp_path, monkeypatch):
  lexicon = in_words_of_the_tiny_model(monkeypatch)
  settings = dataclasses.replace(
    settings, bank="traits", only=("C", "A"), composites=("C- A+",), methods=("diff_means",)
  )
  found, directions, evidence, index = run(tiny, settings, tmp_path / "run")
  assert [c.name for c in found] == ["C+", "A+", "C- A+", "C- A+ (sum)"]
  persona = Persona("x", (Pole("C", -1), Pole("A", 1)), lexicon)
  assert found[2].positive == found[3].positive == tuple(persona.text(k) for k in range(3))
  assert found[2].negative[0] == persona.contrast().text(0)
  mine = directions["diff_means"]
  both = pj.compose([mine["C+"], mine["A+"]], [-1, 1])
  np.testing.assert_array_equal(mine["C- A+ (sum)"].vectors_SLD, both.vectors_SLD)
  assert len(evidence["C- A+ (sum)"]) == 1
  assert "C- A+ (sum)" in index.read_text()
  again = run(tiny, settings, tmp_path / "run")[1]
  assert again["diff_means"]["C- A+ (sum)"].hash == mine["C- A+ (sum)"].hash


def test_answers_without_a_token_leave_their_pair_out(tiny, settings, tmp_path, monkeypatch):
  settings = dataclasses.replace(
    settings, source="answers", methods=("diff_means",), only=("calm",)
  )
  real = study.stages.with_answers

  def silent(*args, **options):
    chats = real(*args, **options)
    chats[1][-1]["content"] = ""
    return chats

  monkeypatch.setattr(study.stages, "with_answers", silent)
  found, directions, evidence, _ = run(tiny, settings, tmp_path / "run")
  (mean,) = evidence["calm"]
  assert directions["diff_means"]["calm"].provenance["num_pairs"] == 7
  assert (mean.held_out, mean.asked) == (3, 4)
  page = (tmp_path / "run" / "pages" / "calm.html").read_text()
  assert "held-out pairs: 3 of 4" in page
  kept = json.loads((tmp_path / "run" / "answers" / "calm-train.json").read_text())
  for chat in kept[:4]:
    chat[-1]["content"] = ""
  (tmp_path / "run" / "answers" / "calm-train.json").write_text(json.dumps(kept))
  with pytest.raises(ValueError, match=r"'calm', train: wordings \[0\] have no pair of answers"):
    study.stages.pairs(tiny.model, settings, found[0], "train", tmp_path / "run")


def test_roles_have_wordings_of_their_own_number_and_files_of_their_own(tiny, settings, tmp_path):
  path = tmp_path / "more.toml"
  path.write_text(BANK.replace(', "w43 w44 w45"', "").replace(', "w53 w54 w55"', ""))
  settings = dataclasses.replace(settings, bank=str(path), methods=("diff_means", "lda"))
  _, directions, evidence, _ = run(tiny, settings, tmp_path / "run")
  for method in settings.methods:
    assert [len(d.vectors_SLD) for d in directions[method].values()] == [2, 1]
  assert not len(evidence["calm"][0].other_wordings)
  path.write_text(BANK.replace("[calm]", '["brave :role:"]'))
  with pytest.raises(ValueError, match="need different files"):
    study.load_contrasts(settings)


def test_coefficients_are_tried_and_shown(tiny, settings, tmp_path, monkeypatch):
  in_words_of_the_tiny_model(monkeypatch)
  settings = dataclasses.replace(
    settings, methods=("diff_means",), only=("calm",), coefficients=(0.1, 0.5)
  )
  found, _, evidence, _ = run(tiny, settings, tmp_path / "run")
  first = evidence["calm"][0]
  where = tmp_path / "run"
  tried = study.try_out(tiny.model, settings, evidence, where, progress=False)["calm"]
  assert sorted(tried["coefficient"]) == [-0.5, -0.1, 0.0, 0.1, 0.5]
  assert set(tried["block"]) == {-1, first.block} and tried["kl"].iloc[1:].gt(0).all()
  monkeypatch.setattr(coefficient_stage, "dose", None)  # nothing is measured again
  again = study.try_out(tiny.model, settings, evidence, where, progress=False)
  pd.testing.assert_frame_equal(again["calm"], tried)
  write_pages(tiny.model, settings, "h" * 64, found, evidence, where, trials=again)
  page = (where / "pages" / "calm.html").read_text()
  assert "Coefficients (diff_means" in page and "Added while 2 harmless questions" in page
  off = dataclasses.replace(settings, coefficients=())
  assert study.try_out(tiny.model, off, evidence, where) == {}


def test_each_question_is_judged_at_the_block_of_the_others():
  # Three questions of two pairs; block 5 tells the first two apart and block 6 the last.
  question = [0, 0, 1, 1, 2, 2]
  up, level = [1.0, 2.0], [0.0, 0.0]
  x_NK = np.asarray([[*up, *up, *level], [*level, *level, *up]]).T
  y_NK = np.zeros((6, 2))
  within_Q, confirmed_Q = by_question(x_NK, y_NK, [5, 6], [5, 6], 5, question)
  assert within_Q.tolist() == [1.0, 1.0, 0.5]
  # Without question 0: 1 likes block 5 and 2 block 6, and of equals the lower block is chosen.
  assert confirmed_Q.tolist() == [1.0, 1.0, 0.5]
  _, confirmed_Q = by_question(x_NK[:, ::-1], y_NK, [5, 6], [5, 6], 6, question)
  assert confirmed_Q.tolist() == [0.5, 0.5, 0.5]  # now that is the one that tells only 2 apart
  assert not len(by_question(x_NK[:2], y_NK[:2], [5, 6], [5, 6], 5, [0, 0])[0])


def test_texts_can_stand_in_the_user_message(tiny, settings, tmp_path):
  settings = dataclasses.replace(
    settings, persona_in="user", source="answers", methods=("diff_means",), only=("calm",)
  )
  (contrast,) = study.load_contrasts(settings)
  positive = contrast.pairs(contrast.train, "user").positive
  question = contrast.train[0]
  assert positive[0] == [{"role": "user", "content": f"w40 w41 w42\n\n{question}"}]
  _, directions, evidence, _ = run(tiny, settings, tmp_path / "run")
  kept = json.loads((tmp_path / "run" / "answers" / "calm-train.json").read_text())
  assert kept[0][0] == {"role": "user", "content": question} and len(kept[0]) == 2
  shown = evidence["calm"][0].extremes["text"].iloc[0]
  assert shown.count(" | ") == 1 and shown.split(" | ")[0] in contrast.held_out


def test_what_enters_the_first_block_is_the_same_everywhere_and_has_no_component(tiny, settings):
  (contrast,) = study.load_contrasts(dataclasses.replace(settings, only=("calm",)))
  positive, negative, *_ = contrast.pairs(contrast.train)
  for method in ("pca_center", "diff_means"):
    d = pj.extract(tiny.model, positive, negative, method=method, site="resid_pre")
    assert not d.mean_LD[0].any() and d.mean_LD[1:].any(axis=1).all()


def test_the_refusal_direction_is_found_or_it_is_said_why_not(
  tiny, settings, tmp_path, monkeypatch
):
  assert study.find_refusal(tiny.model, settings, tmp_path) is None
  settings = dataclasses.replace(settings, refusal_pairs=4, refusal_held_out=2)
  pairs = [
    PromptItem(f"{n}/{kind}", f"w{n + 5} w{at}", kind, f"{n}", "x", "test")
    for n in range(6)
    for kind, at in (("harmful", 40), ("harmless", 50))
  ]
  monkeypatch.setattr(refusal_stage, "load_prompts", lambda name: pairs)
  found = study.find_refusal(tiny.model, settings, tmp_path / "a", progress=False)
  assert found.direction is None and "0 of the model's 8 answers" in found.problem
  again = study.find_refusal(tiny.model, settings, tmp_path / "a", progress=False)
  assert again.problem == found.problem and again.table.empty
  # Answers that hold the word which half of the harmful prompts are answered with are refusals.
  said = {g.text for g in tiny.model.generate([p.text for p in pairs[::2]], max_new_tokens=24)}
  monkeypatch.setattr(
    refusal_stage.RefusalRules, "rule_of", lambda self, text: "x" if text in said else ""
  )
  monkeypatch.setattr(
    refusal_stage,
    "refusal_direction",
    functools.partial(refusal_direction, most_kl=None, least_induce=None),
  )
  found = study.find_refusal(tiny.model, settings, tmp_path / "b", progress=False)
  assert found.problem == "" and len(found.table) >= 3
  again = study.find_refusal(tiny.model, settings, tmp_path / "b", progress=False)
  assert again.direction.hash == found.direction.hash
  pd.testing.assert_frame_equal(again.table, found.table)
  contrasts, _, evidence, _ = run(tiny, settings, tmp_path / "run")
  index = write_pages(
    tiny.model, settings, "h" * 64, contrasts, evidence, tmp_path / "run", refusal=found
  )
  text = index.read_text()
  assert (
    "Refusal direction (Arditi et al. 2024; 4 pairs" in text
    and "<th>refusal (Arditi et al.)</th>" in text
  )
  with pytest.raises(ValueError, match="66 pairs for the refusal direction; there are 6"):
    many = dataclasses.replace(settings, refusal_pairs=64)
    study.find_refusal(tiny.model, many, tmp_path / "c", progress=False)
