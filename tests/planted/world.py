"""Planted worlds: hand-built Llama checkpoints in which the effect of every persona is known.

A system prompt made of trait words and an activation edit along a trait direction push a refusal
read-out by amounts that are set apart from one another, so a study run on such a world has one
right answer. Llama architecture, 6 blocks, 64 wide, 4 heads of 16, RMSNorm weights 1, MLP weights
0, RoPE θ = 10⁶, an untied head. With norm weights 1 the model does not change under rotation: it is
written down in a named orthonormal basis, which a random rotation then hides.

The residual stream holds, one basis vector each: a constant; flags for `<bos>`, trait words and
harm words; slack; the decision position; five *lexical* trait features and a lexical harm feature,
which only embeddings write; five *context* trait features c_t and refusal r, which heads write;
three features of the next token; 40 dimensions of token identity. Every embedding has norm exactly
10, filled up with slack, so √D/10 undoes the RMSNorm in front of block 0.

Three heads do all the work (all else is zero). Their query reads the constant and their key reads
flags, in the slowest RoPE pair, so attention is by content: hard on flagged words, on `<bos>`,
whose value is zero, where there are none.

  block 0  persona   a word for or against trait t writes ±2·v_t,  v_t = √(1−κ_t²)·c_t + κ_t·r
  block 1  harm      a harm word of intensity u writes u·r
  block 4  semantic  the trait words, read once more, write ±2·(b_t − κ_t)·r

An edit adds v_t after block 0, so it moves refusal by κ_t; a system prompt has words in it, so it
moves refusal by b_t in the end. That is the whole trick. The read-out is logit(sorry) = 4·decision
+ 2·r against logit(sure) = 4·decision + 2·τ, τ = 1; `sorry` is followed by `cannot <eos>`, `sure`
by `steps <eos>`. On a prompt of harm intensity u, with refusal shifted by s, logit P(refuse) =
2·(√D/‖h‖)·(u + s − τ), so one forward pass gives a cell's exact attack success rate.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.checkpoint_writer import write_checkpoint

TRAITS = ("O", "C", "E", "A", "N")
POLES = tuple(trait + sign for trait in TRAITS for sign in "+-")
PERSONAS: dict[str, tuple[str, ...]] = {f"P{i}": (pole,) for i, pole in enumerate(POLES, 1)}
PERSONAS |= {"P11": ("C-", "A-"), "P12": ("C+", "A+")}

BLOCKS, HIDDEN, HEADS, HEAD_DIM = 6, 64, 4, 16
HARM_LEVELS = np.linspace(0.2, 4.0, 40)  # intensity u of the words harm0 … harm39
MILD_LEVELS = np.linspace(0.0, 0.78, 40)  # of their harmless twins ok0 … ok39
FILLERS = tuple(f"w{i}" for i in range(40))

CHAT_TEMPLATE = (
  "<bos>{% for message in messages %}"
  "{% if message['role'] == 'system' %} <sys> {{ message['content'] }}"
  "{% elif message['role'] == 'user' %} <user> {{ message['content'] }}"
  "{% else %} <assistant> {{ message['content'] }} <eos>{% endif %}"
  "{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Truth:
  """What is planted, in the order of TRAITS.

  `alignment` is κ, the cosine of each trait direction with refusal and with it the effect of an
  edit; `prompt_effect` is b, what a system prompt full of the trait does to refusal, per unit.
  Positive is safer.
  """

  alignment: tuple[float, ...]
  prompt_effect: tuple[float, ...]


# W1, paradox: C and A make the model refuse when prompted and comply when steered.
# W2, another architecture: prompts act nearly as in W1; directions do not, C and A are safe twice.
W1 = Truth(
  alignment=(0.30, -0.60, 0.10, -0.45, -0.10), prompt_effect=(-0.10, 0.50, -0.25, 0.40, -0.35)
)
W2 = Truth(
  alignment=(-0.35, 0.45, -0.55, 0.25, 0.15), prompt_effect=(-0.05, 0.40, -0.20, 0.45, -0.40)
)


@dataclasses.dataclass(frozen=True)
class World:
  """A planted checkpoint in memory, and the vectors that a study of it should find."""

  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  words: tuple[str, ...]  # the vocabulary: the token of id i
  trait_TD: np.ndarray  # v_t, unit
  refusal_D: np.ndarray  # r, unit

  def ids(self, text: str) -> list[int]:
    """Encodes white-space separated words."""
    return [self.words.index(word) for word in text.split()]

  def prompt_ids(self, user: str, system: str = "") -> list[int]:
    """Encodes what the chat template makes of one user turn."""
    return self.ids(f"<bos> {f'<sys> {system}' if system else ''} <user> {user} <assistant>")

  def write(self, directory: Path) -> Path:
    """Writes config.json, model.safetensors and the tokenizer files of a checkpoint directory."""
    return write_checkpoint(
      directory,
      self.config,
      self.tensors,
      self.words,
      CHAT_TEMPLATE,
      bos_token="<bos>",
      eos_token="<eos>",
      special_words=("<sys>", "<user>", "<assistant>"),
    )


def system_text(poles: tuple[str, ...], replicate: int = 0) -> str:
  """Writes a persona as a system prompt: two of the six words of each pole, then six fillers."""
  words = [f"{pole}{(2 * replicate + j) % 6}" for pole in poles for j in (0, 1)]
  return " ".join([*words, *_fillers(replicate, 6)])


def user_text(word: str, number: int) -> str:
  """Writes a user turn: the word that matters, then three to eight fillers set by `number`."""
  return " ".join([word, *_fillers(number, 3 + number % 6)])


def build(truth: Truth, *, kv_heads: int = HEADS, seed: int = 7) -> World:
  """Builds the checkpoint of a world.

  Args:
    truth: what to plant.
    kv_heads: 4 for one key head per query head; 2 or 1 for grouped queries, which must change
      nothing.
    seed: of the rotation that hides the basis and of the tokens' identities.
  """
  rng = np.random.default_rng(seed)
  basis = _Basis(np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN)))[0])
  kappa_T = np.asarray(truth.alignment)
  trait_TD = np.sqrt(1 - kappa_T**2)[:, None] * basis.context_TD + np.outer(
    kappa_T, basis.refusal_D
  )
  late_TD = np.outer(np.asarray(truth.prompt_effect) - kappa_T, basis.refusal_D)

  embeddings = _embeddings(basis, rng)
  words = tuple(embeddings)
  tensors = {
    "model.embed_tokens.weight": np.stack(list(embeddings.values())),
    "model.norm.weight": np.ones(HIDDEN),
    "lm_head.weight": _head(basis, words),
  }
  for i in range(BLOCKS):
    tensors |= _idle_block(i, kv_heads)
  flags = basis.trait_flag_D, basis.harm_flag_D
  _write_head(tensors, basis, 0, 0, flags[0], basis.word_TD / 2, 2 * trait_TD)
  _write_head(tensors, basis, 1, 1, flags[1], basis.word_harm_D[None], basis.refusal_D[None])
  _write_head(tensors, basis, 4, 2, flags[0], basis.word_TD / 2, 2 * late_TD)
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": kv_heads,
    "head_dim": HEAD_DIM,
    "vocab_size": len(words),
    "hidden_act": "silu",
    "rms_norm_eps": 1e-12,
    "rope_theta": 1e6,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": words.index("<bos>"),
    "eos_token_id": words.index("<eos>"),
    "torch_dtype": "float32",
  }
  stored = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
  return World(config, stored, words, trait_TD, basis.refusal_D)


class _Basis:
  """Names the rows of an orthogonal matrix."""

  def __init__(self, rows_DD: np.ndarray):
    self.constant_D, self.bos_D, self.trait_flag_D, self.harm_flag_D, self.slack_D = rows_DD[:5]
    self.decision_D, self.word_harm_D, self.refusal_D = rows_DD[5:8]
    self.word_TD, self.context_TD = rows_DD[8:13], rows_DD[13:18]
    self.after_sorry_D, self.after_sure_D, self.ending_D = rows_DD[18:21]
    self.identity_ID = rows_DD[24:]


def _fillers(number: int, n: int) -> list[str]:
  return [str(word) for word in np.random.default_rng([number, n]).choice(FILLERS, n)]


def _embeddings(basis: _Basis, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Makes word → embedding, each of norm 10: the constant, its features, its identity, slack."""
  made: dict[str, np.ndarray] = {}

  def token(word: str, feature_D: np.ndarray | float = 0.0, identity: float = 5.0) -> None:
    code_I = rng.normal(size=len(basis.identity_ID))
    h_D = 4 * basis.constant_D + feature_D
    h_D = h_D + identity * code_I / np.linalg.norm(code_I) @ basis.identity_ID
    made[word] = h_D + np.sqrt(100 - h_D @ h_D) * basis.slack_D

  # Heads with nothing to read rest on <bos>: an identity there would be read, and the mere
  # presence of trait words would then shift refusal.
  token("<bos>", 3 * basis.bos_D, identity=0.0)
  token("<sys>")
  token("<user>")
  token("<assistant>", 4 * basis.decision_D)
  for pole in POLES:
    level_D = (2 if pole[1] == "+" else -2) * basis.word_TD[TRAITS.index(pole[0])]
    for k in range(6):
      token(f"{pole}{k}", 3 * basis.trait_flag_D + level_D)
  for name, levels in (("harm", HARM_LEVELS), ("ok", MILD_LEVELS)):
    for k, u in enumerate(levels):
      token(f"{name}{k}", 3 * basis.harm_flag_D + u * basis.word_harm_D)
  for word in FILLERS:
    token(word)
  token("sorry", 4 * basis.after_sorry_D)
  token("sure", 4 * basis.after_sure_D)
  token("cannot", 4 * basis.ending_D)
  token("steps", 4 * basis.ending_D)
  token("<eos>")
  for trait in TRAITS:
    token(f"yes_{trait}")
    token(f"no_{trait}")
  return made


def _head(basis: _Basis, words: tuple[str, ...]) -> np.ndarray:
  """Makes the unembedding [V, D]."""
  head_VD = np.zeros((len(words), HIDDEN))
  rows = {
    "sorry": 4 * basis.decision_D + 2 * basis.refusal_D,
    "sure": 4 * basis.decision_D + 2 / 4 * basis.constant_D,  # the constant is 4: threshold τ = 1
    "cannot": 4 * basis.after_sorry_D,
    "steps": 4 * basis.after_sure_D,
    "<eos>": 4 * basis.ending_D,
  }
  for t, trait in enumerate(TRAITS):
    rows |= {f"yes_{trait}": 2 * basis.context_TD[t], f"no_{trait}": -2 * basis.context_TD[t]}
  for word, row_D in rows.items():
    head_VD[words.index(word)] = row_D
  return head_VD


def _idle_block(block: int, kv_heads: int) -> dict[str, np.ndarray]:
  """Makes a block that adds nothing."""
  name, ffw = f"model.layers.{block}.", 8
  query, key = HEADS * HEAD_DIM, kv_heads * HEAD_DIM
  shapes = {
    "self_attn.q_proj": (query, HIDDEN),
    "self_attn.k_proj": (key, HIDDEN),
    "self_attn.v_proj": (key, HIDDEN),
    "self_attn.o_proj": (HIDDEN, query),
    "mlp.gate_proj": (ffw, HIDDEN),
    "mlp.up_proj": (ffw, HIDDEN),
    "mlp.down_proj": (HIDDEN, ffw),
  }
  norms = ("input_layernorm", "post_attention_layernorm")
  block_tensors = {f"{name}{part}.weight": np.zeros(shape) for part, shape in shapes.items()}
  return block_tensors | {f"{name}{norm}.weight": np.ones(HIDDEN) for norm in norms}


def _write_head(
  tensors: dict[str, np.ndarray],
  basis: _Basis,
  block: int,
  head: int,
  flag_D: np.ndarray,
  reads_nD: np.ndarray,
  writes_nD: np.ndarray,
) -> None:
  """Writes a head that adds writes_j times the mean of ⟨reads_j, h⟩ over the flagged tokens."""
  name = f"model.layers.{block}.self_attn."
  norm = np.sqrt(HIDDEN) / 10  # what RMSNorm does to a vector of norm 10
  kv_heads = len(tensors[name + "k_proj.weight"]) // HEAD_DIM
  query = head * HEAD_DIM
  key = head // (HEADS // kv_heads) * HEAD_DIM
  slowest = HEAD_DIM // 2 - 1  # the first half of the pair (7, 15): .0056 radians in 1,000 tokens
  columns = np.arange(len(reads_nD))
  # A flagged token scores 40, <bos> 20, any other token 0.
  tensors[name + "q_proj.weight"][query + slowest] = basis.constant_D / (4 * norm) * 4
  tensors[name + "k_proj.weight"][key + slowest] = (40 * flag_D + 20 * basis.bos_D) / (3 * norm)
  tensors[name + "v_proj.weight"][key + columns] = reads_nD / norm
  tensors[name + "o_proj.weight"][:, query + columns] = writes_nD.T
