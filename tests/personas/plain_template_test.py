"""Base models are prompted in plain text: `pj.load(…, chat_template="plain")`."""

import dataclasses

import pytest

import persona_jax as pj
from tests.fixtures import TEMPLATE
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama

CHAT = [
  {"role": "system", "content": "You are outgoing."},
  {"role": "user", "content": "How was your day?"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A model without a template of its own, whose vocabulary has new lines as tokens."""
  config, tensors = random_llama(blocks=1)
  words = [f"w{i}" for i in range(config["vocab_size"])]
  words[5:7] = ["\n", "\n\n"]
  path = tmp_path_factory.mktemp("base")
  return write_checkpoint(path, config, tensors, words, special_words=("\n\n", "\n"))


def test_system_message_heads_an_interview(directory):
  model = pj.load(directory, chat_template="plain")
  rendered = model.chat.render(CHAT)
  assert rendered.text == ("You are outgoing.\n\nInterviewer:\nHow was your day?\n\nPerson:\n")
  spoken = {role: rendered.text[a:b] for a, b, role in rendered.role_spans if role != "template"}
  assert spoken == {"system": "You are outgoing.", "user": "How was your day?"}


@pytest.mark.parametrize("default", ["keep", "drop"])
def test_without_a_system_message_the_interview_begins(directory, default):
  model = pj.load(directory, chat_template="plain", system_default=default)
  assert model.chat.render(CHAT[1:]).text == "Interviewer:\nHow was your day?\n\nPerson:\n"


def test_answer_ends_with_its_line(directory):
  plain = pj.load(directory)
  assert plain.tokenizer.eos_ids == (1,)
  with pytest.raises(ValueError, match="no chat template"):
    plain.encode(CHAT)
  model = pj.load(directory, chat_template="plain")
  assert model.tokenizer.eos_ids == (1, 5, 6)
  assert model.chat != plain.chat and model.tokenizer != plain.tokenizer


def test_template_of_ones_own(directory):
  model = pj.load(directory, chat_template=TEMPLATE)
  assert model.chat.template == TEMPLATE
  assert dataclasses.replace(model.tokenizer, chat_template=None) == pj.load(directory).tokenizer


def test_plain_needs_a_new_line_token(tiny):
  with pytest.raises(ValueError, match="a new line, which ends an answer, is 0 tokens"):
    pj.load(tiny.directory, chat_template="plain")
