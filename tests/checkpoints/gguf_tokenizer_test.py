"""The splitters of GGUF tokenizers that came after the golden file: Qwen2's."""

import itertools
import json
import unicodedata

import pytest

from persona_jax.checkpoints.gguf import GGUFFile
from persona_jax.checkpoints.registry import registry_file
from persona_jax.checkpoints.tokenizer import Tokenizer
from tests.reference import tiny_gguf
from tests.reference.make_tokenizer_reference import GOLDEN, ids_digest
from tests.reference.tokenizer_strings import STRINGS

TINY = {name: value for name, value in tiny_gguf.FIELDS.items() if name.startswith("tokenizer.")}
PRES = ("qwen2", "deepseek-r1-qwen")


@pytest.fixture(scope="module")
def smollm2_fields():
  return GGUFFile(registry_file("smollm2-135m-instruct")).tokenizer_fields


def tiny(pre):
  return Tokenizer.from_gguf(TINY | {"tokenizer.ggml.pre": pre})


def digits_meet(text):
  return any(
    unicodedata.category(a)[0] == unicodedata.category(b)[0] == "N"
    for a, b in itertools.pairwise(text)
  )


@pytest.mark.parametrize("pre", PRES)
def test_ids_equal_llama_3s_but_where_digits_meet_or_characters_are_composed(smollm2_fields, pre):
  tokenizer = Tokenizer.from_gguf(smollm2_fields | {"tokenizer.ggml.pre": pre})
  golden = json.loads(GOLDEN.read_text())["digests"]["llama-bpe"]
  wrong, same = [], 0
  for text, expected in zip(STRINGS, golden, strict=True):
    if digits_meet(text) or unicodedata.normalize("NFC", text) != text:
      continue
    ids = tokenizer.encode(text)
    same += 1
    if f"{len(ids)}:{ids_digest(ids)[:16]}" != expected:
      wrong.append(text[:60])
  assert not wrong and same > 300


@pytest.mark.parametrize("pre", PRES)
def test_every_digit_is_a_word(pre):
  splitter = tiny(pre).backend.pre_tokenizer
  assert [word for word, _ in splitter.pre_tokenize_str("I'LL x1234, \n\n9")] == [
    "I", "'LL", "Ġx", "1", "2", "3", "4", ",", "ĠĊĊ", "9",
  ]  # fmt: skip


@pytest.mark.parametrize("pre", PRES)
def test_characters_are_composed_and_offsets_are_those_of_the_text_as_given(pre):
  tokenizer = tiny(pre)
  ((ids, offsets),) = tokenizer.encode_with_offsets(["he\u0301x"])
  assert ids == tokenizer.encode("h\u00e9x") and tokenizer.decode(ids) == "h\u00e9x"
  assert (offsets[0], offsets[-1]) == ((0, 1), (3, 4))
  assert len(tiny("gpt-2").encode("e\u0301")) == 3


def test_a_word_of_the_vocabulary_is_merged_and_special_tokens_stay():
  tokenizer = tiny("qwen2")
  assert len(tokenizer.encode("word")) == 4  # no merges lead there
  assert tokenizer.encode("<|end|>hell") == [0, tokenizer.token_id("hell")]


def test_an_unknown_splitter_is_refused_with_what_is_handled():
  with pytest.raises(ValueError, match="'qwen35'; handled: 'gpt-2', 'llama-bpe', .*'qwen2'"):
    tiny("qwen35")
