"""Makes the work: the two grids, and the model's weights in the peers' formats.

  python -m benchmarks.grid.work benchmarks/out/work

All tools get the same numbers: the registry's SmolLM2-135M-Instruct (Q4_1 and Q8_0 in its file),
dequantised to float32 once by `pj.load`.

  hf/              transformers' directory: our float32 parameters under their names
  model-f32.gguf   the registry's file with every tensor dequantised by the `gguf` package
  model-q4_1.gguf  the registry's file itself
  model-q8_0.gguf, model-q4_0.gguf   its matrices quantised again, to the formats for which
                   llama.cpp's products on a CPU are fastest; the embedding Q8_0
  work.json, vectors.npz   the grids, see `grids.py`

Both float32 files are read again by `pj.load`, and each parameter must be the same bits.
"""

import argparse
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import gguf
import jax
import numpy as np
from safetensors.numpy import save_file

import persona_jax as pj
from benchmarks.grid.grids import Grid, write
from persona_jax.checkpoints.registry import registry_file
from persona_jax.models.params import axes_of, stored_shape
from persona_jax.personas.persona import load_questions

MODEL = "smollm2-135m-instruct"
BLOCK = 15
NEW_TOKENS = 64
SHORT = range(39, 56)  # tokens of a prompt of the first grid, template included
LONG = 512  # of the second
# What a condition adds, in units of the median residual norm at the block.
AMOUNTS_8 = (-0.6, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.6)
AMOUNTS_20 = tuple(round(0.05 * n, 2) for n in range(-10, 11) if n)


def short_texts(model: pj.Model, count: int) -> list[str]:
  """Return everyday questions, each of 39 to 55 tokens in the chat template."""
  texts = [question.text for question in load_questions("neutral")]
  fitting = [text for text in texts if len(model.encode(text).ids) in SHORT]
  return fitting[:count]


def long_texts(model: pj.Model, count: int) -> list[str]:
  """Return everyday texts, each of exactly 512 tokens in the chat template.

  Each begins at another question, so that they have only the template in common.
  """
  texts = []
  questions = [question.text for question in load_questions("neutral")]
  for first in range(count):
    turned = questions[7 * first :] + questions[: 7 * first]
    words = " ".join([*turned, "Which of these would you answer first, and how?"]).split()
    length = next(n for n in range(len(words), 0, -1) if _tokens(model, words[:n]) <= LONG)
    words = words[:length]
    while _tokens(model, words) < LONG:  # some tokens short where the next word has several
      words.append("and")
    texts.append(" ".join(words))
  return texts


def _tokens(model: pj.Model, words: list[str]) -> int:
  return len(model.encode(" ".join(words)).ids)


def make_grids(model: pj.Model) -> list[Grid]:
  """Return the two grids.

  Raises:
    ValueError: the prompts do not have the lengths that they should.
  """
  short, long = short_texts(model, 16), long_texts(model, 8)
  norm = _median_norm(model, short)
  grids = []
  for name, texts, amounts, window, seed in (
    ("all_tokens", short, AMOUNTS_8, "all", 0),
    ("20_generated", long, AMOUNTS_20, "generated", 1),
  ):
    prompts = tuple(tuple(int(i) for i in model.encode(text).ids) for text in texts)
    directions_CD = np.random.default_rng(seed).normal(size=(len(amounts), model.arch.width))
    directions_CD /= np.linalg.norm(directions_CD, axis=-1, keepdims=True)
    vectors_CD = (norm * np.asarray(amounts)[:, None] * directions_CD).astype(np.float32)
    grids.append(Grid(name, tuple(texts), prompts, vectors_CD, BLOCK, window, NEW_TOKENS))
  lengths = [[len(ids) for ids in grid.prompts] for grid in grids]
  if len(short) != 16 or set(lengths[1]) != {LONG}:
    raise ValueError(f"16 prompts of {SHORT} and 8 of {LONG} tokens are needed; got {lengths}")
  return grids


def _median_norm(model: pj.Model, texts: list[str]) -> float:
  """Return the median norm of the residual stream at the block, at last prompt tokens."""
  reads = model.capture(texts, pj.Capture(blocks=(BLOCK,), reduce="last"))
  return float(np.median(np.linalg.norm(reads["resid_post", BLOCK], axis=-1)))


def write_hf(model: pj.Model, directory: Path) -> None:
  """Write the parameters as a transformers directory, with no end-of-sequence token."""
  directory.mkdir(parents=True, exist_ok=True)
  arch, tensors = model.arch, {}
  for name, weight in arch.family.weight_map(arch).items():
    leaf = model.params
    for key in weight.path:
      leaf = leaf[key]
    axes = axes_of(str(weight.path[-1]))
    stored = np.asarray(leaf).transpose([axes.index(a) for a in weight.axes.replace(",", "")])
    tensors[name] = np.ascontiguousarray(stored).reshape(stored_shape(weight, leaf.shape))
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
  config = json.loads(model.config) | {"dtype": "float32"}
  config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
  (directory / "config.json").write_text(json.dumps(config, indent=1))
  model.tokenizer.backend.save(str(directory / "tokenizer.json"))


def write_gguf(source: Path, target: Path, matrices: str = "F32") -> None:
  """Copy a GGUF file with every tensor dequantised to float32, or its matrices to a format.

  `matrices` is a name of `gguf.GGMLQuantizationType`. The embedding, which is the head too, is kept
  in Q8_0 at least, as is usual.
  """
  kind_of = gguf.GGMLQuantizationType
  reader = gguf.GGUFReader(source)
  architecture = str(reader.fields["general.architecture"].contents())
  writer = gguf.GGUFWriter(target, architecture)
  for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
      continue
    kind, *of = field.types
    writer.add_key_value(name, field.contents(), kind, of[-1] if of else None)
  file_types = {"F32": "ALL_F32", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
  writer.add_file_type(gguf.LlamaFileType[file_types[matrices]])
  for tensor in reader.tensors:
    data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    kind = kind_of[matrices] if data.ndim == 2 else kind_of.F32
    if tensor.name == "token_embd.weight" and kind is not kind_of.F32:
      kind = kind_of.Q8_0
    if kind is kind_of.F32:
      writer.add_tensor(tensor.name, data)
    else:
      writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def check(model: pj.Model, source: Path) -> None:
  """Check that a written file holds the model's parameters, bit by bit.

  Raises:
    ValueError: it does not.
  """
  read = pj.load(source)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), model.params, read.params)
  if not jax.tree.all(same):
    raise ValueError(f"{source} holds other weights than {MODEL}")


def build(directory: Path) -> None:
  """Write everything; a no-op where the same has been written."""
  sources = b"".join(
    (Path(__file__).parent / name).read_bytes() for name in ("work.py", "grids.py")
  )
  made_by = hashlib.sha256(sources + registry_file(MODEL).name.encode()).hexdigest()
  written = directory / "work.json"
  if written.is_file() and json.loads(written.read_text())["identity"].get("made_by") == made_by:
    return
  directory.mkdir(parents=True, exist_ok=True)
  written.unlink(missing_ok=True)
  model = pj.load(MODEL, dtype="float32")
  grids = make_grids(model)
  write_hf(model, directory / "hf")
  quantised, target = registry_file(MODEL), directory / "model-q4_1.gguf"
  if not target.exists():
    os.symlink(quantised, target)
  write_gguf(quantised, directory / "model-f32.gguf")
  for matrices in ("Q8_0", "Q4_0"):
    write_gguf(quantised, directory / f"model-{matrices.lower()}.gguf", matrices)
  for source in (directory / "hf", directory / "model-f32.gguf"):
    check(model, source)
  identity = dataclasses.asdict(model.identity)
  kept = {name: identity[name] for name in ("name", "sha256", "quantisation")}
  write(directory, grids, kept | {"made_by": made_by})


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("directory", type=Path)
  build(parser.parse_args().directory)


if __name__ == "__main__":
  main()
