"""Windows on the thought of an answer; two words of the vocabulary take the place of its tags."""

import dataclasses

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.table import ROLES
from persona_jax.engine.rows import make_row

PROMPT = pj.Raw("w5 w6 w7 w8")
STEPS = 8


@pytest.fixture
def think(tiny, monkeypatch):
  """Sets the tags' ids."""

  def use(opening, closing):
    monkeypatch.setattr(pj.Model, "think_ids", (opening, closing))

  return use


def add(tiny, tokens):
  return pj.add(tiny.direction(), 0.5, unit="raw", blocks=0, tokens=tokens)


def edited(generation):
  trace = generation.trace
  return trace.offsets_T[trace.change_IT[0] > 0].tolist()


def test_roles_follow_the_tags_and_only_at_the_beginning(tiny):
  row = make_row(tiny.model.encode(PROMPT))
  thought, answer = ROLES["think"], ROLES["assistant"]
  assert row.answer_roles([8, 3, 9, 8, 9], (8, 9)) == [thought] * 3 + [answer] * 2
  assert row.answer_roles([3, 8, 3, 9], (8, 9)) == [answer] * 4
  assert row.answer_roles([8, 3, 3], (8, 9)) == [thought] * 3
  assert row.answer_roles([8, 3], (-1, -1)) == [answer] * 2
  opened = dataclasses.replace(row, opens_thought=True)
  assert opened.answer_roles([3, 9, 3], (8, 9)) == [thought, thought, answer]


@pytest.mark.parametrize("tokens", ["think", "after-think", pj.Window(("think",), start=1)])
@pytest.mark.parametrize("opened", [False, True])
def test_decoding_edits_the_tokens_of_the_roles(tiny, think, tokens, opened, monkeypatch):
  if opened:
    encode = pj.Model.encode
    monkeypatch.setattr(
      pj.Model,
      "encode",
      lambda self, prompt: dataclasses.replace(encode(self, prompt), opens_thought=True),
    )
  kw = dict(max_new_tokens=STEPS, trace=True)
  (plain,) = tiny.model.generate([PROMPT], **kw)
  opening, closing = plain.token_ids[0], plain.token_ids[2]
  think(-1 if opened else opening, closing)
  (got,) = tiny.model.generate([PROMPT], edits=[add(tiny, tokens)], **kw)
  # What a reader of the answer would call the thought: up to the first closing tag.
  fed = got.token_ids[:-1]
  end = fed.index(closing) + 1 if closing in fed else len(fed)
  expected = range(end) if tokens != "after-think" else range(end, len(fed))
  assert opened or fed[0] == opening
  assert edited(got) == [n for n in expected if tokens in ("think", "after-think") or n >= 1]


def test_scores_know_the_thought_too(tiny, think):
  opening, closing, ids = 8, 9, [8, 20, 21, 9, 30, 31, 32]
  think(opening, closing)
  windows = ("think", "after-think", pj.Window(start=0, stop=4), pj.Window(start=4))
  scores = tiny.model.score(
    [PROMPT] * 4, [ids] * 4, edits=[add(tiny, w) for w in windows], per_token=True
  )
  np.testing.assert_allclose(scores[0], scores[2], atol=1e-5)
  np.testing.assert_allclose(scores[1], scores[3], atol=1e-5)
  assert np.abs(np.asarray(scores[0]) - np.asarray(scores[1])).max() > 1e-3


def test_a_window_without_a_thought_makes_the_row_invalid(tiny):
  (row,) = tiny.model.generate([PROMPT], edits=[add(tiny, "think")], max_new_tokens=3)
  assert not row.valid and row.tokens_edited == 0


def test_the_tags_of_a_vocabulary_are_found(tiny):
  assert tiny.model.think_ids == (-1, -1)
