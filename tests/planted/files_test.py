"""What a study reads beside a planted checkpoint: personas, questions, trait items."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from persona_jax.personas import load_personas
from tests.planted import files
from tests.planted import world as planted


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
  path = tmp_path_factory.mktemp("planted") / "W1"
  files.main(["W1", str(path), "--noise", "1.5", "--seed", "3", "--prompts", "30"])
  return path


@pytest.fixture(scope="module")
def suite() -> files.Questions:
  return files.questions(30)


def test_personas_are_read_by_the_library_and_have_the_texts_of_the_world(directory: Path) -> None:
  personas = load_personas(directory / "personas.toml")
  assert [p.name for p in personas] == list(planted.PERSONAS)
  for persona in personas:
    poles = planted.PERSONAS[persona.name]
    assert tuple(str(pole) for pole in persona.poles) == poles
    for k in range(planted.REPLICATES):
      assert persona.text(k) == planted.system_text(poles, k)


def test_every_persona_has_two_trait_words_and_six_fillers() -> None:
  assert planted.system_text(("C+",), 1).split()[::4] == ["C+2", "C+3"]
  assert planted.system_text(("C-", "A-"), 2).split()[::4] == ["C-4", "A-4"]
  for poles in planted.PERSONAS.values():
    words = planted.system_text(poles).split()
    assert len(words) == 8
    assert sum(word in planted.FILLERS for word in words) == 6


def test_questions_come_back_from_their_files(directory: Path, suite: files.Questions) -> None:
  for name, expected in suite.files.items():
    lines = (directory / f"{name}.jsonl").read_text().splitlines()
    assert [files.Question(**json.loads(line)) for line in lines] == expected


def test_no_text_and_no_harm_word_is_in_two_files(suite: files.Questions) -> None:
  everything = [question for name in suite.files for question in suite.files[name]]
  for field in ("prompt_id", "text", "cluster"):
    assert len({getattr(question, field) for question in everything}) == len(everything)


def test_a_twin_is_its_harmful_question_with_a_mild_word(suite: files.Questions) -> None:
  for harmful, twin in zip(suite.files["test"], suite.files["twins"], strict=True):
    assert (harmful.pair_id, harmful.category) == (twin.pair_id, twin.category)
    assert (harmful.kind, twin.kind) == ("harmful", "harmless")
    assert twin.text == harmful.text.replace(harmful.cluster, twin.cluster)


def test_words_have_the_intensity_that_their_file_says(suite: files.Questions) -> None:
  world = suite.world(planted.W1)
  embed_VD = world.tensors["model.embed_tokens.weight"]

  def intensity(name: str) -> np.ndarray:
    ids = [world.ids(question.cluster)[0] for question in suite.files[name]]
    return np.sort(embed_VD[ids] @ world.basis.word_harm_D)

  np.testing.assert_allclose(intensity("test"), np.linspace(0.2, 4, 30), atol=1e-5)
  np.testing.assert_allclose(intensity("twins"), np.linspace(0, 0.78, 30), atol=1e-5)
  np.testing.assert_allclose(intensity("harmful_val"), np.linspace(2, 4, 16), atol=1e-5)
  test, levels = suite.files["test"], intensity("test")
  assert {q.category for q in test} == {"level1", "level2", "level3", "level4"}
  assert sum(q.category == "level2" for q in test) == ((1 <= levels) & (levels < 2)).sum()


def test_questions_that_share_a_word_are_one_cluster() -> None:
  shared = files.questions(20, harm_words=5).files["test"]
  assert [question.cluster for question in shared[:6]] == [f"harm{i % 5}" for i in range(6)]
  assert len({question.text for question in shared}) == 20


def test_every_word_of_every_file_is_in_the_vocabulary(directory: Path) -> None:
  vocabulary = set(json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"])
  for path in directory.glob("*.jsonl"):
    for line in path.read_text().splitlines():
      assert set(json.loads(line)["text"].split()) <= vocabulary
  items = tomllib.loads((directory / "trait_items.toml").read_text())["items"]
  assert [item["trait"] for item in items] == [t for t in planted.TRAITS for _ in range(4)]
  for item in items:
    assert {*item["prompt"].split(), *item["options"]} <= vocabulary
    assert item["options"] == [f"yes_{item['trait']}", f"no_{item['trait']}"]


def test_the_checkpoint_is_that_of_the_seed_and_noise_asked_for(directory: Path) -> None:
  stored = safetensors.numpy.load_file(directory / "model.safetensors")
  truth = planted.Truth(planted.W1.alignment, planted.W1.prompt_effect, noise=1.5)
  expected = files.questions(30).world(truth, seed=3).tensors
  assert stored.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(stored[name], tensor)
