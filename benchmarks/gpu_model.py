"""Random weights of Llama-3.1-8B's sizes, for us and Hugging Face, and grids of random words."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

import persona_jax as pj
from benchmarks.grid.grids import Grid
from benchmarks.llama_blocks import LLAMA_8B
from persona_jax.checkpoints.checkpoint import Identity
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.models import llama
from persona_jax.models.params import axes_of, placed_params, stored_shape
from persona_jax.personas.chat import Chat

TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}w2"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is run.

  Attributes:
    config: of the model.
    prompts, conditions, new_tokens: of the first grid.
    long: tokens of a prompt of the second grid, which has 8 prompts and 20 conditions.
    attention: (rows, tokens) of the attention section.
    matrix: of the square product that is the ceiling.
    copied: bytes of the copy.
    questionnaire: personas and items of the score section.
    captured: prompts of the capture section.
  """

  config: dict[str, Any]
  prompts: int = 32
  conditions: int = 8
  new_tokens: int = 64
  long: int = 512
  attention: tuple[tuple[int, int], ...] = ((16, 512), (8, 2048), (2, 8192))
  matrix: int = 8192
  copied: int = 2 << 30
  questionnaire: tuple[int, int] = (12, 120)
  captured: int = 20_000


LARGE = Sizes({**LLAMA_8B, "num_hidden_layers": 32})
SMALL = Sizes(
  {
    **LLAMA_8B, "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
  },
  prompts=4, conditions=2, new_tokens=8, long=160, attention=((2, 256),), matrix=256,
  copied=1 << 20, questionnaire=(2, 4), captured=50,
)  # fmt: skip


def make_model(config: dict[str, Any]) -> pj.Model:
  """Return a model with random weights, 0.02 a standard deviation, drawn where they stay."""
  arch = llama.parse(config)
  leaves, tree = jax.tree.flatten_with_path(placed_params(arch, "bfloat16"))

  @jax.jit
  def normal(key: jax.Array, like: jax.Array) -> jax.Array:
    return (0.02 * jax.random.normal(key, like.shape, jnp.float32)).astype(like.dtype)

  params = []
  for number, (path, leaf) in enumerate(leaves):
    blank = jnp.zeros(leaf.shape, leaf.dtype)
    is_scale = "norm" in str(path[-1])
    params.append(blank + 1 if is_scale else normal(jax.random.key(number), blank))
  words = {f"w{n}": n for n in range(arch.vocab_size)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = Tokenizer(backend, chat_template=TEMPLATE)
  return pj.Model(
    tree.unflatten(params), arch, tokenizer, Chat.of(tokenizer),
    Identity("random Llama-3.1-8B", "", "", "BF16", "bfloat16"),
    "bfloat16", "float32", None, json.dumps(config),
  )  # fmt: skip


def make_grids(model: pj.Model, sizes: Sizes) -> dict[str, Grid]:
  """Return the two grids of `make bench`, of random words."""
  rng = np.random.default_rng(0)
  vocab, width = model.arch.vocab_size, model.arch.width

  def texts(lengths: Any) -> tuple[str, ...]:
    return tuple(" ".join(f"w{n}" for n in rng.integers(3, vocab, size - 2)) for size in lengths)

  grids = {}
  for name, made, conditions, window in (
    ("all_tokens", texts(rng.integers(39, 56, sizes.prompts)), sizes.conditions, "all"),
    ("20_generated", texts([sizes.long] * 8), 20, "generated"),
  ):
    ids = tuple(tuple(int(i) for i in model.encode(text).ids) for text in made)
    vectors_CD = rng.normal(size=(conditions, width)).astype(np.float32)
    vectors_CD *= 0.1 * np.arange(1, conditions + 1)[:, None] / np.sqrt(width)
    block = model.arch.num_blocks // 2 - 1
    grids[name] = Grid(name, made, ids, vectors_CD, block, window, sizes.new_tokens)  # type: ignore[arg-type]
  return grids


def peer_model(model: pj.Model) -> Any:
  """Return transformers' Llama with a copy of our weights, on the GPU.

  Raises:
    ImportError: no PyTorch or transformers.
    RuntimeError: PyTorch sees no GPU.
  """
  import torch
  import transformers
  from transformers.models.llama import modeling_llama

  from benchmarks.grid.peers import causal_lm

  on = "cuda" if jax.default_backend() == "gpu" else "cpu"
  if on == "cuda" and not torch.cuda.is_available():
    raise RuntimeError("PyTorch sees no GPU")
  fields = {k: v for k, v in json.loads(model.config).items() if k != "model_type"}
  config = transformers.LlamaConfig(**fields, attn_implementation="sdpa", dtype="bfloat16")
  with torch.device("meta"):
    peer = transformers.LlamaForCausalLM(config)
  state = {}
  for name, weight in model.arch.family.weight_map(model.arch).items():
    leaf = model.params
    for key in weight.path:
      leaf = leaf[key]
    axes = axes_of(str(weight.path[-1]))
    stored = leaf.transpose([axes.index(a) for a in weight.axes.replace(",", "")])
    stored = stored.reshape(stored_shape(weight, leaf.shape)).astype(jnp.bfloat16)
    state[name] = torch.from_dlpack(stored.block_until_ready()).clone()
  peer.load_state_dict(state, assign=True)
  with torch.device(on):  # its frequencies are no part of the state
    peer.model.rotary_emb = modeling_llama.LlamaRotaryEmbedding(config)
  return causal_lm.greedy(peer.eval().to(on))
