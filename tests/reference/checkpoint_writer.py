"""Writes small checkpoints for tests: a Hugging Face directory with a tokenizer of whole words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers


def write_checkpoint(
  directory: Path,
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  words: Sequence[str],
  chat_template: str | None = None,
  *,
  bos_token: str | None = None,
  eos_token: str | None = None,
  pad_token: str | None = None,
  unk_token: str | None = None,
  special_words: Sequence[str] = (),
) -> Path:
  """Writes config.json, model.safetensors and tokenizer files that `open_checkpoint` reads.

  Word i of `words` is token i; texts are split at white space, and special words anywhere. Decoding
  puts a space between words. A word outside `words` fails, unless `unk_token` is given.

  Args:
    directory: made if absent.
    config: content of config.json.
    tensors: Hugging Face name → array, stored in its own dtype.
    words: the vocabulary, without repeats.
    chat_template: Jinja source.
    bos_token, eos_token, pad_token, unk_token: words of the vocabulary. All but `unk_token` are
      special; a generation stops at `eos_token`.
    special_words: further special words, such as "<user>".

  Returns:
    The directory.
  """
  directory.mkdir(parents=True, exist_ok=True)
  vocabulary = {word: i for i, word in enumerate(words)}
  assert len(vocabulary) == len(words), "words repeat"
  named = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
  special = dict.fromkeys([word for word in named.values() if word] + list(special_words))
  unknown = [word for word in [*special, unk_token or words[0]] if word not in vocabulary]
  assert not unknown, f"not in words: {unknown}"

  model = tokenizers.models.WordLevel(vocabulary, unk_token=unk_token or "<no unknown word>")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(word, special=True, normalized=False) for word in special]
  )
  tokenizer.save(str(directory / "tokenizer.json"))

  settings: dict[str, Any] = {name: word for name, word in named.items() if word}
  if chat_template is not None:
    settings["chat_template"] = chat_template
  ends = {"eos_token_id": vocabulary[eos_token]} if eos_token else {}
  _write_json(directory / "tokenizer_config.json", settings)
  _write_json(directory / "generation_config.json", ends)
  _write_json(directory / "config.json", config)
  contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  safetensors.numpy.save_file(contiguous, directory / "model.safetensors")
  return directory


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
