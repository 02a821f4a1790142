"""Chat templates against transformers, roles of tokens, the sandbox, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from persona_jax.checkpoints import Tokenizer, open_checkpoint
from persona_jax.personas.chat import ROLES, Chat, Prompt, Raw, Rendered, encode_prompt
from tests.reference.chat_templates import CHATS, SMOLLM2, TEMPLATES
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.make_chat_reference import GOLDEN

RENDERINGS = json.loads(GOLDEN.read_text(encoding="utf-8"))
WORDS = ("<bos>", "<eos>", "<user>", "<assistant>", "<sys>", "<think>", "</think>", "a", "b", "c")
WORLD = (
  "{{ bos_token }}{% for m in messages %}"
  "{{ '<sys>' if m.role == 'system' else '<' ~ m.role ~ '>' }} "
  "{{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _chat(name: str, system_default: str = "keep") -> Chat:
  template, bos, eos = TEMPLATES[name]
  return Chat(template, bos, eos, system_default)


def _pieces(rendered: Rendered) -> list[tuple[str, str]]:
  """Returns (text, role) of every span that the template did not write."""
  everything = rendered.text + rendered.answer
  return [(everything[a:b], role) for a, b, role in rendered.role_spans if role != "template"]


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Tokenizer:
  return open_checkpoint("smollm2-135m-instruct").tokenizer


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
  directory: Path = tmp_path_factory.mktemp("words")
  write_checkpoint(
    directory, {}, {}, WORDS, WORLD, bos_token="<bos>", eos_token="<eos>",
    special_words=("<user>", "<assistant>", "<sys>"),
  )  # fmt: skip
  return Tokenizer.from_directory(directory)


@pytest.mark.parametrize("title", list(CHATS))
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_rendering_equals_that_of_transformers(name: str, title: str) -> None:
  expected = RENDERINGS[name][title]
  if expected is None:
    with pytest.raises(ValueError, match="the chat template failed"):
      _chat(name).render(CHATS[title])
  else:
    assert _chat(name).render(CHATS[title]).text == expected


def test_the_smollm2_template_here_is_the_one_in_the_file(smollm2_tokenizer: Tokenizer) -> None:
  assert smollm2_tokenizer.chat_template == SMOLLM2
  assert Chat.of(smollm2_tokenizer, "drop") == _chat("smollm2", "drop")


def test_a_string_is_one_user_turn() -> None:
  chat = _chat("smollm2")
  assert chat.render("Hi") == chat.render([{"role": "user", "content": "Hi"}])


def test_system_default_keep_empty_and_drop_for_smollm2() -> None:
  turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
  system = "<|im_start|>system\n{}<|im_end|>\n"
  assert _chat("smollm2", "keep").render("Hi").text == system.format(default) + turn
  assert _chat("smollm2", "empty").render("Hi").text == system.format("") + turn
  assert _chat("smollm2", "drop").render("Hi").text == turn


def test_system_default_drop_cuts_the_fixed_part_and_keeps_bos_in_llama3_style() -> None:
  assert _chat("llama3_style", "drop").render(CHATS["two turns"]).text == (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
  )


@pytest.mark.parametrize("system_default", ["keep", "empty", "drop"])
def test_a_given_system_message_makes_system_default_irrelevant(system_default: str) -> None:
  assert _chat("smollm2", system_default).render(CHATS["system"]).text == (
    "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n"
  )


@pytest.mark.parametrize("system_default", ["empty", "drop"])
def test_a_template_without_system_messages_refuses_to_empty_or_drop_one(
  system_default: str,
) -> None:
  with pytest.raises(ValueError, match="System role not supported"):
    _chat("gemma_style", system_default).render("Hi")


def test_drop_is_refused_where_the_system_text_is_merged_into_the_first_turn() -> None:
  merged = (
    "{% for m in messages if m.role != 'system' %}"
    "[INST] {% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}"
    "{{ m.content }} [/INST]{% endfor %}"
  )
  with pytest.raises(ValueError, match="does not write a system message as a block of its own"):
    Chat(merged, system_default="drop").render("Hi")


def test_a_final_assistant_message_is_an_open_answer() -> None:
  chat = _chat("smollm2")
  prompt = CHATS["lookalike"]
  rendered = chat.render([*prompt, {"role": "assistant", "content": " Sure, "}])
  assert rendered.text == chat.render(prompt).text
  assert rendered.answer == " Sure, "
  assert rendered.role_spans[-1] == (len(rendered.text), len(rendered.text) + 7, "assistant")


def test_roles_are_found_where_messages_look_like_the_template() -> None:
  rendered = _chat("smollm2").render(CHATS["lookalike"])
  assert _pieces(rendered) == [("user", "user"), ("assistant", "assistant"), ("system", "user")]
  assert rendered.text[: rendered.role_spans[1][0]].endswith("<|im_start|>user\n")


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_role_spans_divide_the_text_without_gaps(name: str) -> None:
  for title, chat in CHATS.items():
    if RENDERINGS[name][title] is None:
      continue
    rendered = _chat(name).render(chat)
    ends = [0, *(end for _, end, _ in rendered.role_spans)]
    assert [start for start, _, _ in rendered.role_spans] == ends[:-1]
    assert ends[-1] == len(rendered.text)


def test_white_space_around_a_message_is_its_own_unless_the_template_trims_it() -> None:
  chat = CHATS["padded system"]
  assert _pieces(_chat("smollm2").render(chat)) == [
    (" a \n", "system"), (" b ", "user"), (" c\n", "assistant"), ("\n", "user"),
  ]  # fmt: skip
  assert _pieces(_chat("llama3_style").render(chat)) == [
    ("a", "system"), ("b", "user"), ("c", "assistant"),
  ]  # fmt: skip


def test_thoughts_have_a_role_of_their_own() -> None:
  thought = "<think>\nwhich one?\n</think>"
  assert _pieces(_chat("smollm2").render(CHATS["thoughts"])) == [
    ("Hi", "user"), (thought, "think"), ("\n\nHello!", "assistant"), ("Bye", "user"),
  ]  # fmt: skip
  answered = [*CHATS["question"], {"role": "assistant", "content": "<think>2 + 2"}]
  assert _pieces(_chat("smollm2").render(answered))[-1] == ("<think>2 + 2", "think")


def test_a_message_that_the_template_cuts_keeps_the_role_of_the_rest() -> None:
  assert _pieces(_chat("qwen3_style").render(CHATS["thoughts"])) == [
    ("Hi", "user"), ("Hello!", "assistant"), ("Bye", "user"),
  ]  # fmt: skip
  cut = Chat("{% for m in messages %}[{{ m.content.split('|')[0] }}]{% endfor %}")
  assert _pieces(cut.render("kept|gone")) == [("kept", "user")]


def test_a_template_whose_wording_depends_on_the_message_is_refused() -> None:
  with pytest.raises(ValueError, match="depending on what it says"):
    Chat("{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}").render("Hi")


def test_raw_text_is_taken_as_it_is_and_needs_no_template() -> None:
  text = "<|im_start|>user\n{{ x }}"
  assert Chat(None).render(Raw(text)) == Rendered(text, "", ((0, len(text), "user"),))
  with pytest.raises(ValueError, match=r"no chat template; give Raw\(text\)"):
    Chat(None).render("Hi")


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ([], "non-empty list of messages"),
    (7, r"a prompt is a string, .* got 7"),
    ([{"role": "user"}], "message 0 is .* must have the keys"),
    ([{"role": "user", "content": "a", "name": "b"}], "message 0 is .* must have the keys"),
    (["Hi"], "message 0 is 'Hi'"),
    ([{"role": "tool", "content": "a"}], "message 0 has the role 'tool'; it must be one of system"),
    ([{"role": "user", "content": None}], "message 0 has the content None"),
    (
      [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
      "message 1 is a system message; only the first may be one",
    ),
    ([{"role": "assistant", "content": "a"}], "an answer needs a prompt before it"),
    ([{"role": "user", "content": "".join(map(chr, range(0xFDD0, 0xFDF0)))}], "noncharacters"),
  ],
)
def test_messages_that_cannot_be_used_are_refused(prompt: Prompt, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    _chat("smollm2").render(prompt)


def test_unknown_system_default_is_refused() -> None:
  with pytest.raises(
    ValueError, match="system_default='none'; it must be one of keep, empty, drop"
  ):
    Chat(SMOLLM2, system_default="none")


def test_a_template_that_is_no_jinja_is_refused_at_once() -> None:
  with pytest.raises(ValueError, match="the chat template is no valid Jinja: line 1"):
    Chat("{% for m in messages %}")


@pytest.mark.parametrize(
  "template",
  ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}"],
)
def test_a_template_that_fails_is_an_error_that_says_so(template: str) -> None:
  with pytest.raises(ValueError, match="the chat template failed on messages of user"):
    Chat(template).render("Hi")


@pytest.mark.parametrize(
  "escape",
  [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__.__builtins__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ self._TemplateReference__context.environment.loader }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{% include '/etc/hostname' %}",
    "{% for i in range(10000000) %}x{% endfor %}",
  ],
)
def test_a_template_cannot_get_out_of_the_sandbox(escape: str) -> None:
  with pytest.raises(ValueError, match="the chat template failed"):
    Chat(escape).render("Hi")


def test_what_the_sandbox_hides_renders_to_nothing() -> None:
  for hidden in ("''.__class__", "''|attr('__class__')|attr('__mro__')", "messages.__init__"):
    assert Chat("[{{ " + hidden + " }}]").render("Hi").text == "[]"


def test_a_message_is_text_and_never_a_template() -> None:
  assert "{{ 7 * 6 }}" in _chat("smollm2").render("{{ 7 * 6 }}").text


def test_strftime_now_tells_the_date_and_tojson_escapes_nothing() -> None:
  template = "{{ strftime_now('%Y') | int > 2000 }} {{ {'a': '<\u00e9>'} | tojson }}"
  assert Chat(template).render("Hi").text == 'True {"a": "<\u00e9>"}'


def test_encoded_smollm2_chat_has_known_ids_and_roles(smollm2_tokenizer: Tokenizer) -> None:
  chat = Chat.of(smollm2_tokenizer, "drop")
  encoded = encode_prompt(smollm2_tokenizer, chat, "Hi there")
  assert encoded.ids == smollm2_tokenizer.encode(chat.render("Hi there").text)
  assert encoded.prompt_length == len(encoded.ids)
  assert encoded.roles.dtype == np.int8
  words = [smollm2_tokenizer.id_to_token(i) for i in encoded.ids]
  said = [word for word, role in zip(words, encoded.roles, strict=True) if role == ROLES["user"]]
  assert said == ["Hi", "\u0120there"]
  assert encoded.ids[0] == smollm2_tokenizer.bos_id
  assert set(encoded.roles.tolist()) == {ROLES["user"], ROLES["template"]}


def test_an_answer_is_tokenised_by_itself_and_leaves_the_prompt_alone(
  smollm2_tokenizer: Tokenizer,
) -> None:
  chat = Chat.of(smollm2_tokenizer)
  prompt = encode_prompt(smollm2_tokenizer, chat, "Hi")
  answer = "\n\nSure"  # would merge with the line break before it
  messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
  encoded = encode_prompt(smollm2_tokenizer, chat, messages)
  assert encoded.prompt_length == prompt.prompt_length
  assert encoded.ids == prompt.ids + smollm2_tokenizer.encode(answer)
  assert set(encoded.roles[encoded.prompt_length :].tolist()) == {ROLES["assistant"]}


def test_every_role_reaches_its_tokens(word_tokenizer: Tokenizer) -> None:
  messages = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b c"},
    {"role": "assistant", "content": "<think> a </think> b"},
  ]
  encoded = encode_prompt(word_tokenizer, Chat.of(word_tokenizer), messages)
  words = [word_tokenizer.id_to_token(i) for i in encoded.ids]
  assert words == "<bos> <sys> a <user> b c <assistant> <think> a </think> b".split()
  assert encoded.roles.tolist() == [4, 4, 0, 4, 1, 1, 4, 3, 3, 3, 2]
  assert encoded.prompt_length == 7


def test_a_token_that_joins_template_and_message_is_the_messages(
  smollm2_tokenizer: Tokenizer,
) -> None:
  chat = Chat("[INST] {{ messages[0].content }} [/INST]")
  encoded = encode_prompt(smollm2_tokenizer, chat, "Hi")
  said = [i for i, role in zip(encoded.ids, encoded.roles, strict=True) if role == ROLES["user"]]
  assert [smollm2_tokenizer.id_to_token(i) for i in said] == ["\u0120Hi"]


def test_raw_text_gets_bos_only_if_the_model_expects_it_and_it_is_absent(
  word_tokenizer: Tokenizer,
) -> None:
  chat = Chat.of(word_tokenizer)
  assert encode_prompt(word_tokenizer, chat, Raw("a b")).ids == [7, 8]
  expecting = Tokenizer(word_tokenizer.backend, bos_id=0, eos_ids=(1,), add_bos=True)
  for text in ("a b", "<bos> a b"):
    encoded = encode_prompt(expecting, chat, Raw(text))
    assert encoded.ids == [0, 7, 8]
    assert encoded.roles.tolist() == [ROLES["user"]] * 3
  assert encode_prompt(expecting, chat, "a").ids == [0, 2, 7, 3]


def test_a_prompt_without_tokens_is_refused(word_tokenizer: Tokenizer) -> None:
  with pytest.raises(ValueError, match="has no tokens"):
    encode_prompt(word_tokenizer, Chat.of(word_tokenizer), Raw(""))
