"""Gemma 3, where it is read otherwise than the rest: GGUF tokenizer, multimodal checkpoints."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import persona_jax as pj
from persona_jax.checkpoints.checkpoint import Checkpoint
from persona_jax.checkpoints.registry import registry_file
from persona_jax.personas.persona import load_questions
from tests.parity.checks import Tally, relative_error
from tests.parity.reading import our_reading
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import vocabulary
from tests.reference.tokenizer_strings import STRINGS

MODEL = "gemma-3-270m"
# Plain texts, as for a base model; the last is longer than the window of 512 tokens.
TEXTS = {
  "verse": "Roses are red, violets are",
  "list": "The planets of the solar system, in order: Mercury, Venus,",
  "code": "def fibonacci(n):\n    if n < 2:\n        return n\n    return ",
  "unicode": "Übung macht den Meister. 練習は",
  "long": " ".join(question.text for question in load_questions("neutral")[:60]),
}


def check_token_ids(tally: Tally, checkpoint: Checkpoint) -> None:
  """The tokenizer built from scores against llama.cpp's own, on the same file."""
  if importlib.util.find_spec("cyllama") is None:
    print("  llama.cpp (cyllama) has no wheel for this platform: token ids are NOT checked here")
    return
  import cyllama.llama.llama_cpp as llama_cpp

  llama_cpp.disable_logging()
  options = llama_cpp.LlamaModelParams()
  options.n_gpu_layers = 0
  model = llama_cpp.LlamaModel(str(registry_file(MODEL)), options)
  vocab = model.get_vocab()
  with tally.group(f"{MODEL}: token ids, by llama.cpp", 0) as group:
    for text in (*STRINGS, *TEXTS.values()):
      expected = list(vocab.tokenize(text, False, True)) if text else []
      group.equal(repr(text[:40]), checkpoint.tokenizer.encode(text), expected)


_TEXT: dict[str, Any] = {
  "hidden_size": 44, "intermediate_size": 54, "num_hidden_layers": 7, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 101, "sliding_window": 6,
  "query_pre_attn_scalar": 10, "max_position_embeddings": 256,
}  # fmt: skip
_VISION: dict[str, Any] = {
  "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
  "image_size": 28, "patch_size": 14,
}  # fmt: skip


def check_multimodal(tally: Tally) -> None:
  """The text part of a checkpoint that transformers' own multimodal class has saved."""
  torch.manual_seed(0)
  config = transformers.Gemma3Config(
    text_config=_TEXT, vision_config=_VISION, mm_tokens_per_image=4, image_token_index=100,
    boi_token_index=98, eoi_token_index=99,
  )  # fmt: skip
  config._attn_implementation = "eager"
  reference = transformers.Gemma3ForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, weight in reference.named_parameters():
      weight.normal_(0, 0.02 if "norm" in name else weight.shape[-1] ** -0.5)
  rows = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22]]
  with tempfile.TemporaryDirectory() as folder:
    directory = Path(folder)
    write_checkpoint(directory, {}, {}, vocabulary({"vocab_size": 101}), eos_token="<eos>")
    reference.save_pretrained(directory)  # config.json and model.safetensors, by its own names
    model = pj.load(directory)
  with tally.group("gemma3, multimodal checkpoint: logits of texts", 1e-5, relative=True) as group:
    for row, ours in zip(rows, our_reading(model, rows), strict=True):
      with torch.no_grad():
        logits_TV = reference(input_ids=torch.tensor([row])).logits[0].numpy()
      group.check(f"{len(row)} tokens", relative_error(ours.logits_TV, np.asarray(logits_TV)))
