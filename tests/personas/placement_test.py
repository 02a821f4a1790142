"""Where templates put a system message, and what they write without one."""

import pytest

from persona_jax.personas.chat import Chat
from persona_jax.personas.placement import (
  describe_system_default,
  system_default_text,
  system_placement,
)
from persona_jax.personas.template import PLAIN_TEMPLATE
from tests.reference.chat_templates import TEMPLATES

# As Gemma since its third version: the system text heads the first user turn.
MERGED = (
  "{{ bos_token }}{% set lead = messages[0].content + '\n\n' if messages[0].role == 'system' "
  "else '' %}{% for m in messages if m.role != 'system' %}"
  "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
  "{{ (lead if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# As Llama 2: marks of its own within the user turn, BOS before every turn.
BRACKETED = (
  "{% set lead = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' "
  "if messages[0].role == 'system' else DEFAULT %}"
  "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
  "{{ bos_token + '[INST] ' + (lead if loop.first else '') + m.content + ' [/INST]' }}"
  "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# A last answer is left open, so what closes an answer is not seen by itself.
OPEN_END = (
  "{{ bos_token }}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
  "{% if not loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
)
IGNORED = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
# The system text ends the user's turn.
TRAILING = (
  "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}"
  "{{ ' ' + messages[0].content if loop.first and messages[0].role == 'system' }} [end]{% endfor %}"
)
HELPFUL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat(name: str, system_default: str = "keep") -> Chat:
  template, bos, eos = TEMPLATES[name]
  return Chat(template, bos, eos, system_default)


def bracketed(default: str) -> Chat:
  return Chat(BRACKETED.replace("DEFAULT", repr(default)), "<s>", "</s>")


@pytest.mark.parametrize(
  ("name", "placement"),
  [
    ("smollm2", "system"),
    ("llama3_style", "system"),
    ("gemma_style", "none"),
    ("qwen3_style", "system"),
    ("qwq_style", "system"),
    ("r1_style", "system"),
    ("r1_opening_style", "system"),
  ],
)
def test_placement_in_templates_of_known_models(name: str, placement: str) -> None:
  assert system_placement(chat(name)) == placement


def test_a_system_message_at_the_head_of_the_user_turn_is_placed_in_it() -> None:
  assert system_placement(Chat(MERGED, "<bos>", "<eos>")) == "user"
  assert system_placement(bracketed("")) == "user"


def test_a_system_message_after_the_question_is_in_the_user_turn_too() -> None:
  assert system_placement(Chat(TRAILING)) == "user"
  assert system_default_text(Chat(TRAILING)) == ""


def test_a_system_message_before_an_interview_is_apart() -> None:
  assert system_placement(Chat(PLAIN_TEMPLATE, "<s>", "</s>")) == "system"


@pytest.mark.parametrize(("bos", "eos"), [("<s>", "</s>"), (None, "")])
def test_a_template_that_leaves_its_last_turn_open_is_read_too(bos: str | None, eos: str) -> None:
  open_end = Chat(OPEN_END.replace("bos_token", "bos_token or ''"), bos, eos)
  assert system_placement(open_end) == "system"
  assert system_default_text(open_end) == ""


def test_a_system_message_that_is_left_out_has_no_place() -> None:
  assert system_placement(Chat(IGNORED)) == "none"


def test_a_model_without_a_template_has_no_place_for_a_system_message() -> None:
  assert system_placement(Chat(None)) == "none"
  assert system_default_text(Chat(None)) == ""
  assert describe_system_default(Chat(None)).startswith("There is no chat template")


@pytest.mark.parametrize("system_default", ["keep", "empty", "drop"])
def test_the_default_text_is_the_templates_own_whatever_is_made_of_it(system_default: str) -> None:
  smollm2 = chat("smollm2", system_default)
  assert system_default_text(smollm2) == f"<|im_start|>system\n{HELPFUL}<|im_end|>\n"
  assert system_default_text(chat("llama3_style", system_default)) == (
    "<|start_header_id|>system<|end_header_id|>\n\nKnowledge ends in the past.\n\n<|eot_id|>"
  )


@pytest.mark.parametrize(
  "name", ["gemma_style", "qwen3_style", "qwq_style", "r1_style", "r1_opening_style"]
)
def test_templates_that_write_no_system_text_have_an_empty_one(name: str) -> None:
  assert system_default_text(chat(name)) == ""


def test_a_default_text_within_the_user_turn_is_found() -> None:
  assert system_default_text(bracketed("")) == ""
  assert system_default_text(bracketed("Be brief.\n\n")) == "Be brief.\n\n"
  assert system_placement(bracketed("Be brief.\n\n")) == "user"


def test_words_for_smollm2_say_what_a_system_message_replaces() -> None:
  block = "<|im_start|>system\\n{}<|im_end|>\\n"
  with_one = f"with one, '{block.format('{message}')}'"
  assert describe_system_default(chat("smollm2")) == (
    f"Without a system message, '{block.format(HELPFUL)}' is written; {with_one}, where the message"
    f" replaces '{HELPFUL}'."
  )
  assert describe_system_default(chat("smollm2", "drop")) == (
    "Without a system message, nothing is written (system_default='drop'; the template alone writes"
    f" '{block.format(HELPFUL)}'); {with_one}."
  )
  assert describe_system_default(chat("smollm2", "empty")).startswith(
    f"Without a system message, '{block.format('')}' is written (system_default='empty'"
  )


def test_words_for_llama3_show_that_its_fixed_text_stays() -> None:
  words = describe_system_default(chat("llama3_style"))
  assert words.count("Knowledge ends in the past.") == 2
  assert "Knowledge ends in the past.\\n\\n{message}<|eot_id|>" in words
  assert "replaces" not in words


def test_words_for_a_template_that_refuses_system_messages() -> None:
  assert describe_system_default(chat("gemma_style")) == (
    "Without a system message, nothing is written; the template takes no system message."
  )
  assert describe_system_default(chat("gemma_style", "drop")) == (
    "system_default='drop' does not fit this template, which writes nothing without a system"
    " message; 'keep' fits."
  )


def test_turns_that_open_in_unlike_ways_are_refused() -> None:
  template = (
    "{% for m in messages %}{{ 'Go! ' if loop.first else loop.index }}{{ m.content }}{% endfor %}"
  )
  with pytest.raises(ValueError, match="cannot be told where the chat template opens"):
    system_placement(Chat(template))
