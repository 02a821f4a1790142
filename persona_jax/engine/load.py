"""`pj.load`: a name, a directory or a file becomes a `Model`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tqdm
from jax.sharding import Mesh

from persona_jax import sharding
from persona_jax.checkpoints.checkpoint import open_checkpoint
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.engine.model import Model
from persona_jax.engine.taps import Kernels, choose
from persona_jax.models import families
from persona_jax.models.family import Family
from persona_jax.models.params import load_params, placed_params
from persona_jax.personas.chat import Chat
from persona_jax.personas.template import PLAIN_TEMPLATE

_DTYPES = ("float32", "bfloat16", "float16")


def _dtype_name(name: str, value: Any) -> str:
  try:
    resolved = jnp.dtype(value).name
  except TypeError:
    resolved = str(value)
  if resolved not in _DTYPES:
    raise ValueError(f"{name}={value!r}: use one of {_DTYPES}.")
  return resolved


def _with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
  if template != "plain":
    return dataclasses.replace(tokenizer, chat_template=template)
  line, blank = tokenizer.encode("\n"), tokenizer.encode("\n\n")
  if len(line) != 1:
    raise ValueError(
      f'chat_template="plain": a new line, which ends an answer, is {len(line)} tokens of this '
      "vocabulary; it must be one."
    )
  ends = tuple(dict.fromkeys((*tokenizer.eos_ids, *line, *(blank if len(blank) == 1 else ()))))
  return dataclasses.replace(tokenizer, chat_template=PLAIN_TEMPLATE, eos_ids=ends)


def load(
  source: str | Path,
  *,
  dtype: str | None = None,
  resid_dtype: str | None = None,
  mesh: Mesh | None = None,
  system_default: Literal["keep", "empty", "drop"] = "keep",
  chat_template: str | None = None,
  template_options: Mapping[str, Any] | None = None,
  family: Family | None = None,
  kernels: Kernels = "auto",
  progress: bool = False,
  weights: bool = True,
) -> Model:
  """Load a model; never downloads.

  Args:
    source: a registry name (`smollm2-135m-instruct` or `gemma-3-270m`) or a hub id (`owner/name`,
      `owner/name@revision`, `owner/name/file.gguf`), both fetched once by `python -m
      persona_jax.fetch NAME`; a directory with config.json, safetensors in one file or several, and
      tokenizer files, or one that `Model.save` wrote; or a .gguf file.
    dtype: of the weights and products: "float32", "bfloat16" or "float16". Default: "float32" on a
      CPU, "bfloat16" on a GPU or TPU, with a residual stream in float32. Keys and values are in it
      too, but for those of generated tokens on a CPU, which are in float32.
    resid_dtype: of the residual stream; default `dtype`, where that is given. "float32" keeps small
      edits that bfloat16 swallows.
    mesh: devices to load onto, see `pj.make_mesh`: parameters are split over its axis "model", rows
      over "data". None: the default device.
    system_default: what a chat without a system message gets: "keep" what the template does (many
      insert a default text), "empty" an empty system message, "drop" no system block at all.
    chat_template: "plain" or Jinja source, to use in the place of the checkpoint's own. "plain" is
      for base models, which have none: an interview in plain text with the system message at its
      head, where an answer ends with its line.
    template_options: values of variables that the chat template reads, such as {"enable_thinking":
      False} for Qwen3.
    family: the adapter to use; default the one for the checkpoint's `model_type`.
    kernels: how the engine runs edits of projections where a branch joins the residual stream:
      "auto" (what wins on the platform, see BENCHMARKS.md), "xla", or "mosaic_tpu" or "mosaic_gpu"
      (Hopper), which fuse the addition, the edit and the norm (on a CPU in a simulator: slow, for
      tests). "xla" keeps attention of long prompts in plain XLA too, where the platform has a
      kernel for it. `pj.forward` is always plain XLA, which has derivatives.
    progress: whether to show a bar while weights are read.
    weights: False reads none, and a directory needs none (for a hub id, `python -m
      persona_jax.fetch NAME --no_weights`). Parameters are then shapes: the model can be planned
      for (`pj.plan`), not run.

  Raises:
    FileNotFoundError: nothing is there; for a registry name or a hub id the message says which
      command fetches it.
    ValueError: the checkpoint holds something that is not supported, or an argument is unknown.
  """
  device = sharding.first_device(mesh)
  choose(kernels, mesh, device)  # refuses an unknown name before weights are read
  if dtype is None:
    dtype = "float32" if device.platform == "cpu" else "bfloat16"
    resid_dtype = "float32" if resid_dtype is None else resid_dtype
  dtype = _dtype_name("dtype", dtype)
  resid = dtype if resid_dtype is None else _dtype_name("resid_dtype", resid_dtype)
  checkpoint = open_checkpoint(source, weights=weights)
  tokenizer = checkpoint.tokenizer
  if chat_template is not None:
    tokenizer = _with_template(tokenizer, chat_template)
  chat = Chat.of(tokenizer, system_default, template_options)
  family = family or families.family(str(checkpoint.config.get("model_type")))
  arch = family.parse(checkpoint.config)
  if tokenizer.vocab_size > arch.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {arch.vocab_size} rows."
    )
  if not weights:
    params = placed_params(arch, dtype, mesh)
  elif checkpoint.restore is not None:
    placed = placed_params(arch, dtype, mesh)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(placed))
    with tqdm.tqdm(
      total=total, unit="B", unit_scale=True, desc="weights", disable=not progress
    ) as bar:
      params = checkpoint.restore(placed)
      bar.update(total)
  else:
    params = load_params(checkpoint, arch, dtype, mesh, progress=progress)
  config, identity = json.dumps(checkpoint.config), checkpoint.identity
  return Model(params, arch, tokenizer, chat, identity, dtype, resid, mesh, config, kernels)
