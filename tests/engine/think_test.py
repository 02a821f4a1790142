"""Windows on the thought of an answer; two words of the vocabulary take the place of its tags."""

import dataclasses

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.edits.table import ALWAYS, ROLES
from persona_jax.edits.window import after_thought
from persona_jax.engine import encode as encoding
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
    encode = encoding.encode_rendered
    monkeypatch.setattr(
      encoding,
      "encode_rendered",
      lambda *rendered: dataclasses.replace(encode(*rendered), opens_thought=True),
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


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, None), (2, 3)])
@pytest.mark.parametrize("opened", [False, True])
def test_windows_count_from_the_end_of_the_thought(tiny, think, start, stop, opened, monkeypatch):
  if opened:
    encode = encoding.encode_rendered
    monkeypatch.setattr(
      encoding,
      "encode_rendered",
      lambda *rendered: dataclasses.replace(encode(*rendered), opens_thought=True),
    )
  kw = dict(max_new_tokens=STEPS, trace=True)
  (plain,) = tiny.model.generate([PROMPT], **kw)
  think(-1 if opened else plain.token_ids[0], plain.token_ids[2])
  window = pj.Window(start=start, stop=stop, origin="thought")
  (got,) = tiny.model.generate([PROMPT], edits=[add(tiny, window)], **kw)
  end = 3  # the closing tag is token 2, and nothing before it is edited
  expected = range(end + start, STEPS - 1 if stop is None else end + stop)
  assert edited(got) == list(expected) and got.tokens_edited == len(expected) and got.valid


def test_offsets_from_the_end_of_a_thought():
  user, thought, answer = ROLES["user"], ROLES["think"], ROLES["assistant"]
  roles = np.asarray([user, user, thought, thought, answer, answer, user, thought, answer])
  none = ALWAYS
  np.testing.assert_array_equal(after_thought(roles), [none, none, none, none, 0, 1, 2, none, 0])
  window = pj.Window(("assistant",), stop=1, origin="thought")
  assert np.flatnonzero(window.holds(np.arange(9) - 5, roles, after_thought(roles))).tolist() == [
    4,
    8,
  ]
  assert not window.holds(np.arange(9) - 5, roles, None).any()
  assert str(window) == "[:1] assistant after thought"


def test_scores_captures_and_forward_count_from_the_thought_too(tiny, think):
  think(8, 9)
  ids = [8, 20, 21, 9, 30, 31, 32]
  late = pj.Window(start=1, origin="thought")
  windows = (late, pj.Window(start=5))
  scores = tiny.model.score(
    [PROMPT] * 2, [ids] * 2, edits=[add(tiny, w) for w in windows], per_token=True
  )
  np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
  tokens = np.asarray([[5, 6, 7, 8, *ids]] * 2, np.int32)
  roles = np.asarray([[ROLES["user"]] * 4 + [ROLES["think"]] * 4 + [ROLES["assistant"]] * 3] * 2)
  table = pj.compile_edits(tiny.model, [add(tiny, w) for w in windows])
  kw = dict(prompt_lengths_B=np.asarray([4, 4]), roles_BT=roles)
  logits, _ = pj.forward(tiny.model, tokens, table, **kw)
  np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
  means = [
    pj.forward(tiny.model, tokens, None, pj.Capture(reduce="mean", tokens=w), **kw)[1]
    for w in windows
  ]
  for where, mean in means[0].items():
    np.testing.assert_allclose(mean, means[1][where], atol=1e-6)


def test_what_lies_before_the_end_of_a_thought_is_no_window():
  with pytest.raises(ValueError, match="start=-2 before the end of a thought"):
    pj.Window(start=-2, origin="thought")
  with pytest.raises(ValueError, match="'prompt' or 'thought'"):
    pj.Window(origin="answer")


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
