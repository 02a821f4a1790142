"""Chat templates against transformers, roles of tokens, the sandbox, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from persona_jax.checkpoints import Tokenizer, open_checkpoint
from persona_jax.personas.chat import (
  ROLES,
  Chat,
  Prompt,
  Raw,
  Rendered,
  encode_prompt,
)
from persona_jax.personas.template import compile_template
from persona_jax.personas.thinking import split_thinking
from tests.reference.chat_templates import CHATS, QWEN3_STYLE, R1_BOS, R1_EOS, SMOLLM2, TEMPLATES
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.make_chat_reference import GOLDEN

RENDERINGS = json.loads(GOLDEN.read_text(encoding="utf-8"))
WORDS = ("<bos>", "<eos>", "<user>", "<assistant>", "<sys>", "<think>", "</think>", "a", "b", "c")
WORLD = (
  "{{ bos_token }}{% for m in messages %}"
  "{{ '<sys>' if m.role == 'system' else '<' ~ m.role ~ '>' }} "
  "{{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
R1_USER, R1_ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
OPENING = ("qwq_style", "r1_opening_style")  # whose prompts end in "<think>\n"


def _chat(name: str, system_default: str = "keep") -> Chat:
  template, bos, eos = TEMPLATES[name]
  return Chat(template, bos, eos, system_default)


def _answered(answer: str, title: str = "question") -> list[dict[str, str]]:
  return [*CHATS[title], {"role": "assistant", "content": answer}]


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


def _r1_tokenizer(directory: Path, name: str) -> Tokenizer:
  words = (R1_BOS, R1_EOS, R1_USER, R1_ASSISTANT, "<think>", "</think>", "a", "b", "c")
  write_checkpoint(
    directory, {}, {}, words, TEMPLATES[name][0], bos_token=R1_BOS, eos_token=R1_EOS,
    special_words=words[2:6],
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


@pytest.mark.parametrize("name", ["qwen3_style", "qwq_style", "r1_style", "r1_opening_style"])
def test_drop_is_keep_where_the_template_has_no_system_block_of_its_own(name: str) -> None:
  for title, chat in CHATS.items():
    assert _chat(name, "drop").render(chat).text == RENDERINGS[name][title]
    assert _chat(name, "drop").render(chat) == _chat(name, "keep").render(chat)


def test_system_default_empty_for_qwq_and_r1() -> None:
  kept = _chat("qwq_style").render("Hi").text
  assert _chat("qwq_style", "empty").render("Hi").text == "<|im_start|>system\n<|im_end|>\n" + kept
  for name in ("r1_style", "r1_opening_style"):
    assert _chat(name, "empty").render("Hi") == _chat(name).render("Hi")


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
  answered = _chat("smollm2").render(_answered("<think>2 + 2"))
  assert _pieces(answered)[-1] == ("<think>2 + 2", "think")


def test_only_what_an_answer_begins_with_is_a_thought() -> None:
  answer = "\n<think>a</think> The tag is <think>."
  assert _pieces(_chat("smollm2").render(_answered(answer)))[1:] == [
    ("\n", "assistant"), ("<think>a</think>", "think"), (" The tag is <think>.", "assistant"),
  ]  # fmt: skip


@pytest.mark.parametrize("title", ["thoughts", "thought opened before"])
@pytest.mark.parametrize(
  ("name", "kept"),
  [
    ("qwen3_style", "Hello!"),
    ("qwq_style", "Hello!"),
    ("r1_style", "\n\nHello!"),
    ("r1_opening_style", "\n\nHello!"),
  ],
)
def test_what_is_left_of_a_message_whose_thought_the_template_cuts_is_the_assistants(
  name: str, kept: str, title: str
) -> None:
  assert _pieces(_chat(name).render(CHATS[title])) == [
    ("Hi", "user"), (kept, "assistant"), ("Bye", "user"),
  ]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_style", "qwq_style"])
def test_cutting_a_thought_leaves_the_white_space_of_other_messages_theirs(name: str) -> None:
  assert _pieces(_chat(name).render(CHATS["padded thoughts"])) == [
    (" Hi\n", "user"), ("Hello! ", "assistant"), ("<think>\n", "user"),
  ]  # fmt: skip


def test_a_message_whose_thought_the_template_writes_anew_keeps_its_roles() -> None:
  anew = Chat(
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}<think>\n"
    "{% set parts = m.content.split('</think>') %}{{ parts[0].split('<think>')[-1].strip() }}\n"
    "</think>\n\n{{ parts[1].lstrip() }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
  )
  assert _pieces(anew.render(CHATS["thoughts"])) == [
    ("Hi", "user"), ("<think>\nwhich one?\n</think>", "think"), ("\n\nHello!", "assistant"),
    ("Bye", "user"),
  ]  # fmt: skip


def test_a_message_that_the_template_cuts_keeps_the_role_of_the_rest() -> None:
  cut = "{% for m in messages %}[{{ m.content.split('|')[@] }}]{% endfor %}"
  assert _pieces(Chat(cut.replace("@", "0")).render("kept|gone")) == [("kept", "user")]
  assert _pieces(Chat(cut.replace("@", "1")).render("gone|kept")) == [("kept", "user")]


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize(
  ("answer", "written", "pieces"),
  [
    ("", "", []),
    ("2 + 2", "2 + 2", [("2 + 2", "think")]),
    ("a\n</think>\n\nb", "a\n</think>\n\nb", [("a\n</think>", "think"), ("\n\nb", "assistant")]),
    ("<think>a</think>b", "a</think>b", [("a</think>", "think"), ("b", "assistant")]),
    ("<think>\na", "a", [("a", "think")]),
    (" \n<think>\n\na", "\na", [("\na", "think")]),
    (
      "</think>b <think>c",
      "</think>b <think>c",
      [("</think>", "think"), ("b <think>c", "assistant")],
    ),
    ("a <think>b", "a <think>b", [("a <think>b", "think")]),
  ],
)
def test_an_answer_goes_on_with_the_thought_that_the_prompt_opens(
  name: str, answer: str, written: str, pieces: list[tuple[str, str]]
) -> None:
  rendered = _chat(name).render(_answered(answer))
  assert rendered.text == RENDERINGS[name]["question"]
  assert rendered.text.endswith("<think>\n")
  assert rendered.answer == written
  assert _pieces(rendered) == [("What is 2 + 2?", "user"), *pieces]


def test_an_opening_without_line_break_is_cut_without_one() -> None:
  rendered = Chat("{{ messages[0].content }}[<think>").render(_answered("<think>\na"))
  assert rendered.text + rendered.answer == "What is 2 + 2?[<think>\na"


def test_an_answer_keeps_its_opening_where_the_prompt_has_none() -> None:
  answer = "<think>\na</think>b"
  for name in ("smollm2", "qwen3_style", "r1_style"):
    rendered = _chat(name).render(_answered(answer))
    assert rendered.answer == answer
    assert _pieces(rendered)[-2:] == [("<think>\na</think>", "think"), ("b", "assistant")]


def test_an_empty_thought_as_answer_is_qwen3_without_thinking() -> None:
  rendered = _chat("qwen3_style").render(_answered("<think>\n\n</think>\n\n"))
  assert rendered.text + rendered.answer == compile_template(QWEN3_STYLE).render(
    messages=CHATS["question"], add_generation_prompt=True, enable_thinking=False
  )
  assert not rendered.opens_thought


def test_an_option_reaches_the_template_and_an_unknown_one_is_refused() -> None:
  chat = dataclasses.replace(_chat("qwen3_style"), options=(("enable_thinking", False),))
  assert chat.render(CHATS["question"]).text == compile_template(QWEN3_STYLE).render(
    messages=CHATS["question"], add_generation_prompt=True, enable_thinking=False
  )
  with pytest.raises(ValueError, match=r"no options \['enable_thought'\]; it reads \['enable_thin"):
    dataclasses.replace(chat, options=(("enable_thought", False),))


@pytest.mark.parametrize(
  ("name", "answer", "opens"),
  [
    *((name, None, True) for name in OPENING),
    *((name, "a", True) for name in OPENING),
    *((name, "a</think>", False) for name in OPENING),
    *((name, "<think>a</think>b<think>", False) for name in OPENING),
    *((name, None, False) for name in ("smollm2", "qwen3_style", "r1_style")),
    *((name, "a", False) for name in ("smollm2", "qwen3_style", "r1_style")),
    ("r1_style", "<think>\n", True),
    ("r1_style", "<think>\na</think>b", False),
  ],
)
def test_a_rendered_prompt_tells_whether_it_leaves_a_thought_open(
  name: str, answer: str | None, opens: bool
) -> None:
  chat = CHATS["thoughts"] if answer is None else _answered(answer)
  assert _chat(name).render(chat).opens_thought is opens


def test_raw_text_leaves_a_thought_open_if_it_ends_in_its_opening() -> None:
  for text, opens in (("a<think>\n", True), ("<think>a", False), ("<think>\n\n</think>", False)):
    assert Chat(None).render(Raw(text)).opens_thought is opens


@pytest.mark.parametrize(
  ("text", "opened", "thought", "answer"),
  [
    ("<think>\na\n</think>\n\nb\n", False, "a", "b\n"),
    ("a\n</think>\n\nb\n", True, "a", "b\n"),
    ("<think>\na\n</think>\n\nb", True, "a", "b"),
    ("\n\n</think>\n\nb", True, "", "b"),
    ("\n<think>a", False, "a", ""),
    ("a\n", True, "a", ""),
    ("", True, "", ""),
    ("", False, "", ""),
    (" b\n", False, "", " b\n"),
    ("a</think>b", False, "", "a</think>b"),
    ("b <think>c</think>", False, "", "b <think>c</think>"),
    ("a<think></think>b</think> <think>c", True, "a<think>", "b</think> <think>c"),
  ],
)
def test_a_generated_text_is_split_into_thought_and_answer(
  text: str, opened: bool, thought: str, answer: str
) -> None:
  assert split_thinking(text, opened) == (thought, answer)


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


@pytest.mark.parametrize("name", ["r1_style", "r1_opening_style"])
def test_roles_of_thoughts_reach_their_tokens(name: str, tmp_path: Path) -> None:
  tokenizer = _r1_tokenizer(tmp_path, name)
  chat = Chat.of(tokenizer)
  messages = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "<think> a </think> c"},
    {"role": "user", "content": "b c"},
  ]
  prompt = f"{R1_BOS} a {R1_USER} b {R1_ASSISTANT} c {R1_EOS} {R1_USER} b c {R1_ASSISTANT}".split()
  roles = [4, 0, 4, 1, 4, 2, 4, 4, 1, 1, 4]
  answer, answer_roles = "<think> a b </think> c".split(), [3, 3, 3, 3, 2]
  opens = name == "r1_opening_style"
  if opens:  # the prompt has the opening, and the answer has not
    prompt, roles, answer, answer_roles = (
      [*prompt, "<think>"],
      [*roles, 4],
      answer[1:],
      [3, 3, 3, 2],
    )

  encoded = encode_prompt(tokenizer, chat, messages)
  assert [tokenizer.id_to_token(i) for i in encoded.ids] == prompt
  assert encoded.roles.tolist() == roles
  assert encoded.opens_thought is opens

  messages.append({"role": "assistant", "content": "<think>\na b\n</think>\n\nc"})
  encoded = encode_prompt(tokenizer, chat, messages)
  assert [tokenizer.id_to_token(i) for i in encoded.ids] == prompt + answer
  assert encoded.prompt_length == len(prompt)
  assert encoded.roles.tolist() == roles + answer_roles
  assert not encoded.opens_thought

  messages[-1]["content"] = "<think> a b"
  encoded = encode_prompt(tokenizer, chat, messages)
  assert set(encoded.roles[encoded.prompt_length :].tolist()) == {ROLES["think"]}
  assert encoded.opens_thought
