"""What conditions do to fixed answers, token by token against the float64 reference.

On a random model, where every token is moved otherwise: which tokens are read, shows.
"""

import numpy as np
import pytest

import persona_jax as pj
from persona_jax.calibration import answers as answers_module
from persona_jax.calibration.answers import Answers
from persona_jax.edits.window import as_window
from tests.fixtures import Tiny
from tests.reference import numpy_llama as reference

BLOCK = 1
ANSWERS = {"w5 w9": "w30 w31 w32", "w6": "w33 w34"}


@pytest.fixture(scope="module")
def answers(tiny: Tiny) -> Answers:
  chats = [
    [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    for user, answer in ANSWERS.items()
  ]
  return Answers.of(tiny.model, chats)


@pytest.fixture(scope="module")
def conditions(tiny: Tiny) -> list[pj.Condition]:
  edit = pj.add(tiny.direction(), 2.0, unit="unit", blocks=BLOCK, tokens="answer")
  return [pj.Condition("prompted", system="w40 w41"), pj.Condition("steered", edits=edit)]


def whole(tiny: Tiny, answers: Answers, condition: pj.Condition) -> list[reference.Output]:
  """Runs each chat, cut to the answer and the prompt's last token."""
  found = []
  for chat in answers.chats:
    row = tiny.model.encode(condition.apply(chat))
    edits = []
    if condition.edits:
      change = reference.add(tiny.direction().unit_LD[BLOCK], 2.0)
      edits = [reference.Edit(change, (BLOCK,), start=-1)]
    hook = reference.edit_hook(edits, row.prompt_length)
    out = reference.forward(tiny.config, tiny.tensors, row.ids, hook)
    first = row.prompt_length - 1
    assert len(row.ids) - row.prompt_length == len(chat[-1]["content"].split())
    found.append(reference.Output(out.logits_TV[first:], out.resid_post_LTD[:, first:]))
  return found


def test_projections_are_means_over_the_answer_and_the_token_before_it(
  tiny: Tiny, answers: Answers, conditions: list[pj.Condition]
) -> None:
  directions = [tiny.direction(3), tiny.direction(4)]  # each condition has its own
  found_CNK = answers.projections(conditions, directions, [2, 0])
  expected_CNK = [
    [
      [(out.resid_post_LTD[b] @ d.unit_LD[b].astype(np.float64)).mean() for b in (2, 0)]
      for out in whole(tiny, answers, condition)
    ]
    for condition, d in zip(conditions, directions, strict=True)
  ]
  np.testing.assert_allclose(found_CNK, expected_CNK, rtol=1e-4, atol=1e-4)


def test_shifts_are_mean_distances_from_the_unedited_model(
  tiny: Tiny,
  answers: Answers,
  conditions: list[pj.Condition],
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setattr(answers_module, "_BYTES", 1)
  many = [conditions[n] for n in (0, 1, 0, 1, 1, 0, 0, 0, 1)]  # more than are held at a time
  plain = whole(tiny, answers, pj.Condition("none"))
  expected_CN = [
    [
      np.linalg.norm(out.resid_post_LTD[2] - base.resid_post_LTD[2], axis=-1).mean()
      for out, base in zip(whole(tiny, answers, condition), plain, strict=True)
    ]
    for condition in many
  ]
  np.testing.assert_allclose(answers.shifts(many, 2), expected_CN, rtol=1e-4)


def test_one_pass_measures_what_three_do(
  tiny: Tiny, answers: Answers, conditions: list[pj.Condition]
) -> None:
  directions = [tiny.direction(3), tiny.direction(4)]
  found = answers.moved(conditions, directions, [2, 0])
  plain = answers.projections([pj.Condition("none")] * 2, directions, [2, 0])
  along = answers.projections(conditions, directions, [2, 0]) - plain
  np.testing.assert_allclose(found.shift_CN, answers.shifts(conditions, 2), rtol=1e-5)
  np.testing.assert_allclose(found.along_CNK, along, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.kl_CN, answers.kl(conditions), rtol=1e-4, atol=1e-6)


def test_divergences_are_means_over_the_tokens_that_the_answer_has(
  tiny: Tiny, answers: Answers, conditions: list[pj.Condition]
) -> None:
  log_p = [
    [reference.log_softmax(out.logits_TV)[:-1] for out in whole(tiny, answers, condition)]
    for condition in (pj.Condition("none"), *conditions)
  ]
  expected_CN = [
    [(np.exp(p) * (p - q)).sum(-1).mean() for p, q in zip(log_p[0], mine, strict=True)]
    for mine in log_p[1:]
  ]
  np.testing.assert_allclose(answers.kl(conditions), expected_CN, rtol=1e-3)
  np.testing.assert_allclose(answers.kl([pj.Condition("none")]), 0, atol=1e-6)


def test_a_baseline_stands_round_the_prompt_while_it_is_answered_and_not_after(tiny: Tiny) -> None:
  baseline = pj.Condition("neutral", system="w40 w41")
  (chat,) = Answers.of(tiny.model, ["w5 w9"], max_new_tokens=2, baseline=baseline).chats
  (expected,) = tiny.model.generate([baseline.apply("w5 w9")], max_new_tokens=2)
  assert [message["role"] for message in chat] == ["user", "assistant"]
  assert chat[-1]["content"] == expected.text


@pytest.mark.parametrize(
  ("window", "share"),
  [("answer", [1, 1]), ("all", [1, 1]), ("generated", [3 / 4, 2 / 3]), ("last:2", [1 / 4, 1 / 3])],
)
def test_the_share_of_tokens_that_an_edit_is_on_is_counted(
  answers: Answers, window: str, share: list[float]
) -> None:
  np.testing.assert_allclose(answers.held(as_window(window)), share)


def test_what_is_left_out_is_counted(tiny: Tiny) -> None:
  texts = ["w30 w31 w32", " ", "w33", "w34 w35"]
  chats = [
    [{"role": "user", "content": "w5"}, {"role": "assistant", "content": text}] for text in texts
  ]
  answers = Answers.of(tiny.model, chats)
  assert (len(answers), answers.num_empty) == (3, 1)
  measured = pj.dose(tiny.model, chats, skip=1)
  assert (measured.provenance["prompts"], measured.provenance["too_short"]) == (4, 2)
  assert measured.num_tokens == 2 + 1
