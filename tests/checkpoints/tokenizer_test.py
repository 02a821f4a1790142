"""Token ids against an independent implementation, offsets, and what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.registry import registry_file
from persona_jax.checkpoints.tokenizer import Tokenizer
from tests.reference import tiny_gguf
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.make_tokenizer_reference import GOLDEN, PRES, ids_digest
from tests.reference.tokenizer_strings import STRINGS

TINY = {name: value for name, value in tiny_gguf.FIELDS.items() if name.startswith("tokenizer.")}
WORDS = ("<bos>", "<eos>", "<user>", "<unk>", "red", "green", "blue")


@pytest.fixture(scope="module")
def smollm2_fields() -> dict[str, Any]:
  return GGUFFile(registry_file("smollm2-135m-instruct")).tokenizer_fields


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_fields: dict[str, Any]) -> Tokenizer:
  return Tokenizer.from_gguf(smollm2_fields)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
  return write_checkpoint(
    tmp_path / "model", {}, {}, WORDS, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
    special_words=("<user>",),
  )  # fmt: skip


def _settings(directory: Path, **changes: object) -> None:
  path = directory / "tokenizer_config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_there_are_at_least_300_strings_and_they_are_those_of_the_golden_file() -> None:
  golden = json.loads(GOLDEN.read_text())
  assert len(STRINGS) == len(set(STRINGS)) >= 300
  assert max(map(len, STRINGS)) >= 20_000
  assert golden["strings_sha256"] == hashlib.sha256(json.dumps(STRINGS).encode()).hexdigest()


@pytest.mark.parametrize("pre", PRES)
def test_ids_equal_tiktokens_on_every_string(smollm2_fields: dict[str, Any], pre: str) -> None:
  tokenizer = Tokenizer.from_gguf({**smollm2_fields, "tokenizer.ggml.pre": pre})
  wrong = []
  for text, expected in zip(STRINGS, json.loads(GOLDEN.read_text())["digests"][pre], strict=True):
    ids = tokenizer.encode(text)
    if f"{len(ids)}:{ids_digest(ids)[:16]}" != expected:
      wrong.append(text[:60])
  assert not wrong


def test_ids_written_out_in_the_golden_file_are_equal_one_by_one(
  smollm2_tokenizer: Tokenizer,
) -> None:
  golden = json.loads(GOLDEN.read_text())["ids"]
  assert len(golden) == 12
  assert {i: smollm2_tokenizer.encode(STRINGS[int(i)]) for i in golden} == golden


def test_decoding_gives_every_string_back_but_for_bytes_the_vocabulary_lacks(
  smollm2_tokenizer: Tokenizer,
) -> None:
  lacking = set("\x04\x06\x13\x14\x16\x1d\U00040000\U00080000")
  for text in STRINGS:
    if not lacking & set(text):
      assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text), skip_special=False) == text


def test_smollm2_special_tokens(smollm2_tokenizer: Tokenizer) -> None:
  assert smollm2_tokenizer.vocab_size == 49_152
  assert smollm2_tokenizer.bos_id == 1
  assert smollm2_tokenizer.eos_ids == (2,)
  assert smollm2_tokenizer.pad_id == 2
  assert smollm2_tokenizer.add_bos is False
  assert smollm2_tokenizer.token_id("<|im_end|>") == 2
  assert smollm2_tokenizer.id_to_token(2) == "<|im_end|>"
  assert smollm2_tokenizer.encode("<|im_end|>") == [2]
  assert smollm2_tokenizer.decode([2, 28120, 2]) == smollm2_tokenizer.decode([28120])


def test_offsets_cover_the_text_and_spaces_belong_to_the_word_after(
  smollm2_tokenizer: Tokenizer,
) -> None:
  text = "Hello wide world<|im_end|>"
  ((ids, offsets),) = smollm2_tokenizer.encode_with_offsets([text])
  assert ids == smollm2_tokenizer.encode(text)
  assert [text[start:end] for start, end in offsets] == ["Hello", " wide", " world", "<|im_end|>"]


def test_all_tokens_of_one_character_have_its_offsets(smollm2_tokenizer: Tokenizer) -> None:
  ((_, offsets),) = smollm2_tokenizer.encode_with_offsets(["a\U0001f9d1b"])
  assert offsets[0] == (0, 1) and offsets[-1] == (2, 3)
  assert set(offsets[1:-1]) == {(1, 2)}


def test_a_file_may_name_further_end_tokens() -> None:
  fields = {**TINY, "tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 0}
  assert Tokenizer.from_gguf(fields).eos_ids == (0, 1)


def test_llama_bpe_takes_a_word_of_the_vocabulary_whole_and_gpt_2_merges() -> None:
  whole = Tokenizer.from_gguf({**TINY, "tokenizer.ggml.pre": "llama-bpe"})
  assert whole.encode("word") == [whole.token_id("word")]  # no merges lead there
  assert len(Tokenizer.from_gguf(TINY).encode("word")) == 4


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; handled: 'gpt2', 'llama'"),
    ({"tokenizer.ggml.model": "llama"}, r"lacks the fields \['tokenizer.ggml.scores'\]"),
    ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'; handled: 'gpt-2'"),
    ({"tokenizer.ggml.add_space_prefix": True}, "tokenizer.ggml.add_space_prefix is true"),
    ({"tokenizer.ggml.add_eos_token": True}, "tokenizer.ggml.add_eos_token is true"),
    ({"tokenizer.ggml.precompiled_charsmap": [1]}, "tokenizer.ggml.precompiled_charsmap"),
    ({"tokenizer.ggml.merges": ["h zz"]}, "tokenizer.ggml.merges does not fit"),
    ({"tokenizer.ggml.merges": ["he"]}, "merges has 'he'"),
    ({"tokenizer.ggml.token_type": [1]}, "token_type has 1"),
    ({"tokenizer.ggml.token_type": [6] * tiny_gguf.VOCAB}, r"token_type has \[6\]"),
    ({"tokenizer.ggml.eos_token_id": 99_999}, r"eos_id is 99999"),
  ],
)
def test_gguf_field_that_is_not_handled_is_named(change: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    Tokenizer.from_gguf({**TINY, **change})


def test_gguf_without_merges_is_refused() -> None:
  fields = {name: value for name, value in TINY.items() if name != "tokenizer.ggml.merges"}
  with pytest.raises(ValueError, match="lacks the fields .*merges"):
    Tokenizer.from_gguf(fields)


def test_directory_words_go_there_and_back(directory: Path) -> None:
  tokenizer = Tokenizer.from_directory(directory)
  assert tokenizer.encode("<bos><user>red blue") == [0, 2, 4, 6]
  assert tokenizer.decode([0, 2, 4, 6]) == "red blue"
  assert tokenizer.encode("purple") == [3]
  assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (1,), None)


def test_directory_end_tokens_are_those_of_generation_config_first(directory: Path) -> None:
  (directory / "config.json").write_text('{"eos_token_id": 4}')
  (directory / "generation_config.json").write_text('{"eos_token_id": [6, 5, 6]}')
  assert Tokenizer.from_directory(directory).eos_ids == (6, 5)
  (directory / "generation_config.json").unlink()
  assert Tokenizer.from_directory(directory).eos_ids == (4,)
  (directory / "config.json").unlink()
  assert Tokenizer.from_directory(directory).eos_ids == (1,)


def test_directory_template_file_comes_before_the_one_in_the_settings(directory: Path) -> None:
  assert Tokenizer.from_directory(directory).chat_template is None
  _settings(directory, chat_template=[{"name": "default", "template": "b"}])
  assert Tokenizer.from_directory(directory).chat_template == "b"
  (directory / "chat_template.jinja").write_text("a")
  assert Tokenizer.from_directory(directory).chat_template == "a"


def test_directory_bos_follows_the_setting_or_else_the_post_processor(directory: Path) -> None:
  assert Tokenizer.from_directory(directory).add_bos is False
  backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", 0)]
  )
  backend.enable_truncation(2)
  backend.enable_padding(length=9)
  backend.save(str(directory / "tokenizer.json"))
  tokenizer = Tokenizer.from_directory(directory)
  assert tokenizer.add_bos is True
  assert tokenizer.encode("red green blue") == [4, 5, 6]  # no BOS, not cut, not padded
  _settings(directory, add_bos_token=False)
  assert Tokenizer.from_directory(directory).add_bos is False


def test_directory_without_tokenizer_json_is_named(directory: Path) -> None:
  (directory / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
    Tokenizer.from_directory(directory)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("tokenizer.json", "{", r"tokenizer\.json: not a tokenizer"),
    ("tokenizer_config.json", "{", r"tokenizer_config\.json: not valid JSON"),
    ("tokenizer_config.json", "[]", "holds a JSON list; an object is needed"),
    ("tokenizer_config.json", '{"bos_token": "<s>"}', "bos_token is '<s>', which .* lacks"),
    ("tokenizer_config.json", '{"add_eos_token": true}', "add_eos_token is true"),
    ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is a int"),
    ("tokenizer_config.json", '{"chat_template": [{"name": "rag"}]}', r"\['rag'\]; one must be"),
    ("generation_config.json", '{"eos_token_id": "x"}', r"eos_token_id is \['x'\]"),
  ],
)
def test_directory_file_that_cannot_be_used_is_named(
  directory: Path, name: str, content: str, message: str
) -> None:
  (directory / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    Tokenizer.from_directory(directory)


def test_equal_content_is_equal_and_hashes_alike(directory: Path) -> None:
  one, two = Tokenizer.from_directory(directory), Tokenizer.from_directory(directory)
  assert one == two and hash(one) == hash(two)
  _settings(directory, chat_template="x")
  assert Tokenizer.from_directory(directory) != one


def test_tokens_and_ids_out_of_the_vocabulary_are_refused(directory: Path) -> None:
  tokenizer = Tokenizer.from_directory(directory)
  with pytest.raises(ValueError, match="'purple' is not one token"):
    tokenizer.token_id("purple")
  for token_id in (-1, 7):
    with pytest.raises(ValueError, match=f"no token has the id {token_id}; ids go from 0 to 6"):
      tokenizer.id_to_token(token_id)
