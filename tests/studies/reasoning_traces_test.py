"""The study of reasoning traces on planted worlds whose answers follow thoughts, or ignore them.

Persona P3 (C+) shifts refusal by +1 when prompted and by -1.2 when steered at the dose 2; harm
words have the intensities .5, 1.5 and 3, and 1 is the threshold. So with no persona the thought is
`eager` at .5, prompted it never is, and steered it is at .5 and 1.5.
"""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import persona_jax as pj
from persona_jax.directions.dose import Dose
from persona_jax.report.trace_figures import draw_traces
from persona_jax.scorers import Degenerate, Labels, RefusalRules
from persona_jax.studies import reasoning_traces as study
from persona_jax.studies.dose_file import write_dose
from persona_jax.studies.reasoning_traces.spans import write_spans
from tests.planted import thinking

SCORER = Labels(RefusalRules((("sorry", r"\bsorry\b"),)), Degenerate(min_words=1))
MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")


@dataclasses.dataclass(frozen=True)
class Done:
  """A study that was run."""

  model: pj.Model
  settings: study.Settings
  items: list
  arms: list
  thoughts: pd.DataFrame
  answers: pd.DataFrame
  found: study.Findings
  directory: Path


def fields(place: Path, **changes) -> dict:
  config = importlib.import_module("configs.reasoning_traces_tiny").get_config().to_dict()
  made = {key: value for key, value in config.items() if key not in MODEL_FIELDS}
  cues = place / "cues.toml"
  cues.parent.mkdir(parents=True, exist_ok=True)
  cues.write_text('version = 7\n[cues]\ncare = ["careful"]\nhaste = ["eager"]\n')
  made |= {
    "personas": str(place / "personas.toml"), "named": ("P3",), "directions": str(place / "v"),
    "block": 2, "kappa": 2.0, "harmful": str(place / "harmful.jsonl"), "prompts": 12,
    "think_tokens": 6, "answer_tokens": 5, "at_budget": "truncated", "cues": str(cues),
    "draws": 200,
  }  # fmt: skip
  return made | changes


def run_study(world, place: Path, directory: Path, **changes) -> Done:
  model = pj.load(place, dtype="float32")
  blocks = model.arch.num_blocks
  vector_SLD = np.tile(world.trait_TD[1], (1, blocks, 1))
  (place / "v").mkdir(exist_ok=True)
  pj.Direction(vector_SLD, "C+").save(place / "v" / "C+.safetensors")
  write_dose(Dose(np.ones(blocks, np.float32), vector_SLD.repeat(2, 0).swapaxes(0, 1), 2, {}),
             directory / "dose.npz")  # fmt: skip
  settings = study.Settings.of(fields(place, **changes))
  items = study.load_items(settings)
  study.start(model, settings, items, directory)
  arms = study.make_arms(settings, study.prepare(model, settings, directory))
  thoughts = study.think(model, settings, items, arms, directory, progress=False)
  answers = study.answer(
    model, settings, items, arms, thoughts, directory, scorer=SCORER, progress=False
  )
  found = study.analyse(settings, arms, thoughts, answers, directory)
  return Done(model, settings, items, arms, thoughts, answers, found, directory)


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Done:
  place = tmp_path_factory.mktemp("world")
  return run_study(thinking.write(True, place), place, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def ignored(tmp_path_factory) -> Done:
  place = tmp_path_factory.mktemp("world")
  return run_study(thinking.write(False, place), place, tmp_path_factory.mktemp("study"))


@pytest.fixture(params=["followed", "ignored"])
def done(request) -> tuple[bool, Done]:
  return request.param == "followed", request.getfixturevalue(request.param)


def cells(table: pd.DataFrame, **which) -> dict:
  for column, value in which.items():
    table = table[table[column] == value]
  return {
    (row["thought"], row["answer"]) if row["what"] == "cell" else row["what"]: row["value"]
    for row in table.to_dict("records")
  }


def test_thoughts_are_the_planted_ones(done) -> None:
  _, run = done
  thoughts = run.thoughts
  assert (thoughts["thought"] == "ended").all() and (thoughts["n_think_tokens"] == 1).all()
  assert thoughts["valid"].all() and thoughts["same_tokens"].all()
  eager = (thoughts["trace"] == "eager").groupby(thoughts["thinker"]).sum()
  assert eager.to_dict() == {"B0": 4, "P3 prompt": 0, "P3 steer": 8}


def test_the_swap_tells_followed_thoughts_from_ignored_ones(done) -> None:
  followed, run = done
  table = run.found.tables["swap"]
  got = cells(table, first="prompt", second="steer", outcome="bypass")
  of_thought, of_answer = (2 / 3, 0) if followed else (0, 2 / 3)
  expected = {
    ("prompt", "prompt"): 0,
    ("prompt", "steer"): of_answer,
    ("steer", "prompt"): of_thought,
    ("steer", "steer"): 2 / 3,
    "thought_effect": of_thought,
    "answer_effect": of_answer,
    "interaction": 0,
  }
  assert got == pytest.approx(expected)
  refused = cells(table, first="prompt", second="steer", outcome="refused")
  assert refused == pytest.approx({
    key: 1 - value if isinstance(key, tuple) else -value for key, value in expected.items()
  })  # fmt: skip
  moved = table[(table["what"] == "thought_effect") & (table["outcome"] == "bypass")]
  assert (moved["low"] > 0).any() == followed


def test_edits_of_thought_and_of_answer_are_told_apart(done) -> None:
  followed, run = done
  got = cells(run.found.tables["windows"], outcome="bypass")
  think, answer = (2 / 3, 1 / 3) if followed else (1 / 3, 2 / 3)
  assert got[("plain", "plain")] == pytest.approx(1 / 3)
  assert got[("steered", "plain")] == pytest.approx(think)
  assert got[("plain", "steered")] == pytest.approx(answer)
  assert got[("steered", "steered")] == pytest.approx(2 / 3)
  # Last of the prompt, thought and tag; of four answer tokens the last is never read.
  for edited, tokens in (("think", 3), ("answer", 3), ("both", 6)):
    table = pj.Run.open(run.directory / "answer" / f"P3_steer_{edited}").table()
    assert set(table["tokens_edited"]) == {tokens} and table["valid"].all()


def test_an_answer_behind_its_own_thought_is_that_given_in_one_go(followed) -> None:
  run = followed
  thoughts = run.thoughts.set_index(["thinker", "prompt_id"])["trace"]
  text_of = {item.prompt_id: item.text for item in run.items}
  own = run.answers[run.answers["own"] & run.answers["edited"].isin(["neither", "both"])]
  arm_of = {arm.name: arm for arm in run.arms}
  answerers = [arm_of[name].answerer for name in own["arm"]]
  whole = run.model.generate(
    [c.apply(text_of[p]) for c, p in zip(answerers, own["prompt_id"], strict=True)],
    edits=[list(c.edits) for c in answerers],
    max_new_tokens=10,
  )
  parts = [
    f"{thoughts[thinker, prompt]} </think> {text}"
    for thinker, prompt, text in own[["thinker", "prompt_id", "text"]].itertuples(index=False)
  ]
  assert len(parts) == 36 and [one.text for one in whole] == parts


def test_cues_and_figures(followed, tmp_path) -> None:
  run = followed
  table = run.found.tables["cues"].set_index(["method", "persona", "cue", "measure"])["value"]
  assert table["none", "all", "haste", "per_100"] == pytest.approx(100 / 3)
  assert table["steer", "P3", "haste", "per_100"] == pytest.approx(200 / 3)
  assert table["prompt", "P3", "care", "first"] == 0
  at = run.found.tables["positions"].set_index(["method", "cue", "tenth"])["value"]
  # All of a thought of one word begins in its first tenth.
  assert at["steer", "haste", 1] == pytest.approx(2000 / 3) and at["steer", "haste", 2] == 0
  paths = draw_traces(run.found.tables["positions"], run.found.tables["swap"], tmp_path)
  assert set(paths) == {"cue_positions", "trace_swap"}
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())
  assert run.found.measures and "heuristic" in " ".join(run.found.notes)
  study.write_summary(run.found, paths, tmp_path / "summary.md")
  assert "Trace swap" in (tmp_path / "summary.md").read_text()
  assert "thought_effect" in study.screen(run.found)
  # Length does not vary and the cue tells the outcome: no logit, and it says so.
  association = run.found.tables["association"]
  assert association["coef"].isna().all() and association["reason"].str.contains("log_length").all()
  paired = run.found.tables["matched"].set_index(["a", "b", "measure"])
  assert paired.loc[("prompt", "steer", "bypass"), "pairs"] == 12
  assert paired.loc[("prompt", "steer", "bypass"), "value"] == pytest.approx(-2 / 3)


def test_thoughts_at_the_budget_have_no_answer_or_are_closed(followed, tmp_path) -> None:
  run = followed
  place = Path(run.settings.personas).parent
  world = thinking.build_thinking(True)
  cut = run_study(world, place, tmp_path / "cut", think_tokens=1)
  assert set(cut.answers["label"]) == {"truncated"} and cut.answers["bypass"].isna().all()
  swap = cut.found.tables["swap"]
  assert swap["value"].isna().all() and (swap["reason"] == "no rows").all()
  assert (swap["missing"] == 12).all()
  assert not cut.found.measures and "demonstration" in cut.found.title
  assert cut.thoughts["care_first"].isna().all() and cut.thoughts["care_at"].isna().all()
  closed = run_study(world, place, tmp_path / "closed", think_tokens=1, at_budget="closed")
  assert closed.thoughts["forced"].all()
  # The tag is what the model would have written: nothing else changes.
  keys = ["arm", "thinker", "prompt_id"]
  pd.testing.assert_frame_equal(
    closed.answers[[*keys, "text", "label"]], run.answers[[*keys, "text", "label"]]
  )


def test_stages_resume_and_plan(followed, tmp_path) -> None:
  run = followed
  before = sorted((p, p.stat().st_mtime_ns) for p in run.directory.rglob("tile-*.parquet"))
  again = study.think(run.model, run.settings, run.items, run.arms, run.directory, progress=False)
  pd.testing.assert_frame_equal(again, run.thoughts)
  assert before == sorted((p, p.stat().st_mtime_ns) for p in run.directory.rglob("tile-*.parquet"))
  study.require(["analyse"], run.directory)
  with pytest.raises(ValueError, match="'think', 'answer'"):
    study.require(["analyse"], tmp_path)
  text = study.describe(run.model, run.settings, run.items[:3])
  assert "think: 3 thinkers x 3 = 9 thoughts of up to 6 tokens" in text
  assert "answer: 5 arms, 11 pairs of thinker and arm x 3 = 33 answers" in text


def test_spans_are_blind_and_read_back(followed, tmp_path) -> None:
  run = followed
  lists, path = run.settings.lists(), tmp_path / "spans.csv"
  thoughts = pd.DataFrame(
    {"trace": ["I am careful now. It is not so.", None, "An eager man runs."]}
  )
  assert write_spans(thoughts, lists, path, number=8) == 6
  sheet = pd.read_csv(path, keep_default_na=False)
  assert list(sheet.columns) == ["span_id", "text", "cue", "label"]
  sheet["label"] = [str(int(c == "care" and "careful" in t)) for t, c in
                    zip(sheet["text"], sheet["cue"], strict=True)]  # fmt: skip
  sheet.loc[sheet["cue"] == "haste", "label"] = ""
  sheet.to_csv(path, index=False)
  found = study.analyse(
    run.settings, run.arms, run.thoughts, run.answers, tmp_path,
    judged=study.read_judged(lists, path),
  )  # fmt: skip
  table = found.tables["validation"].set_index("cue")
  assert table.loc["care", "kept"] and not table.loc["haste", "kept"]
  assert set(found.tables["cues"]["cue"]) == {"care"}
  assert any("Dropped" in note and "haste" in note for note in found.notes)
  sheet.assign(label="2").to_csv(path, index=False)
  with pytest.raises(ValueError, match="1, 0 or nothing"):
    study.read_judged(lists, path)


@pytest.mark.parametrize("name", ["reasoning_traces", "reasoning_traces_tiny"])
def test_configs_have_the_settings_of_the_study(name) -> None:
  config = importlib.import_module(f"configs.{name}").get_config("somewhere").to_dict()
  assert config["model"] == "somewhere"
  study.Settings.of({k: v for k, v in config.items() if k not in MODEL_FIELDS})


def test_settings_say_what_fits(tmp_path) -> None:
  good = fields(tmp_path)
  for change, said in (
    ({"edited": ("think",)}, "'both' among them"),
    ({"swaps": (("steer", "steer"),)}, "two different"),
    ({"samples": 2}, "greedy"),
    ({"at_budget": "never"}, "'truncated', 'closed'"),
    ({"prompts": 1}, "at least 2"),
  ):
    with pytest.raises(ValueError, match=said):
      study.Settings.of(good | change)
