"""Planted worlds: hand-built Llama checkpoints in which the effect of every persona is known.

A system prompt made of trait words and an activation edit along a trait direction push a refusal
read-out by amounts that are set apart from one another, so a study run on such a world has one
right answer. Llama architecture, 6 blocks, 64 wide, 4 heads of 16, RMSNorm weights 1, MLP weights
0 (or Gaussian noise), RoPE θ = 10⁶, an untied head. With norm weights 1 the model does not change
under rotation: it is written down in a named orthonormal basis, which a random rotation then hides.

The residual stream holds, one basis vector each: a constant; flags for `<bos>`, trait words and
harm words; slack; the decision position; five *lexical* trait features and a lexical harm feature,
which only embeddings write; five *context* trait features c_t, refusal r and a decoy d, which heads
write; three features of the next token; 40 dimensions of token identity. Every embedding has norm
exactly 10, filled up with slack, so √D/10 undoes the RMSNorm in front of block 0.

Three heads do all the work (all else is zero). Their query reads the constant and their key reads
flags, in the slowest RoPE pair, so attention is by content: hard on flagged words, on `<bos>`,
whose value is zero, where there are none. What a head reads it averages over the flagged words.

  block 0  persona   a word for or against trait t writes ±2·v_t,
                     v_t = √(1−κ_t²−d_t²)·c_t + κ_t·r + d_t·d
  block 1  harm      a harm word of intensity u writes u·r (and u/2·d where a decoy is planted)
  block 4  semantic  the trait words, read once more, write ±2·(b_t − κ_t)·r

An edit adds v_t after block 0, so it moves refusal by κ_t; a system prompt has words in it, so it
moves refusal by b_t in the end. That is the whole trick. The read-out is logit(sorry) = 4·decision
+ 2·r against logit(sure) = 4·decision + 2·τ, τ = 1; `sorry` is followed by `cannot <eos>`, `sure`
by `steps <eos>`. On a prompt of harm intensity u, with refusal shifted by s, logit P(refuse) =
2·(√D/‖h‖)·(u + s − τ), so one forward pass gives a cell's exact attack success rate (law.py).

Because heads average, a persona of two traits moves refusal by about the mean of what its two poles
do, by either method: it holds one word of each where a pole holds two of its own. "About", because
words whose stream is shorter get the larger share of the semantic head's attention.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.planted.weights import (
  BLOCKS,
  FILLERS,
  HEAD_DIM,
  HEADS,
  HIDDEN,
  INTERMEDIATE,
  POLES,
  TRAITS,
  Basis,
  Head,
  embeddings,
  idle_block,
  unembedding,
  write_head,
)
from tests.reference.checkpoint_writer import write_checkpoint

PERSONAS: dict[str, tuple[str, ...]] = {f"P{i}": (pole,) for i, pole in enumerate(POLES, 1)}
PERSONAS |= {"P11": ("C-", "A-"), "P12": ("C+", "A+")}

HARM_LEVELS = np.linspace(0.2, 4.0, 40)  # intensity u of the words harm0 … harm39
MILD_LEVELS = np.linspace(0.0, 0.78, 40)  # of their harmless twins ok0 … ok39
REPLICATES = 3  # paraphrases of a persona

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

  Attributes:
    alignment: κ, the cosine of each trait direction with refusal and with it the effect of an edit.
      Positive is safer.
    prompt_effect: b, what a system prompt full of the trait does to refusal, per unit.
    decoy: d, the cosine of each trait direction with the decoy, which harm also writes and nothing
      reads.
    noise: scale of six further values of the persona head, from the identity of a word to random
      directions: every paraphrase then has a vector of its own. 1.5 in noisy worlds.
    mlp: MLP weights are Gaussian, of standard deviation mlp/√D.
  """

  alignment: tuple[float, ...]
  prompt_effect: tuple[float, ...]
  decoy: tuple[float, ...] = (0.0,) * 5
  noise: float = 0.0
  mlp: float = 0.0


_B = (-0.10, 0.50, -0.25, 0.40, -0.35)
_ZERO = (0.0,) * 5

# W1, paradox: C and A make the model refuse when prompted and comply when steered.
# W2, another architecture: prompts act nearly as in W1; directions do not, C and A are safe twice.
# N0, nothing: no persona does anything. With noise every vector has some refusal in it by chance:
#   then N0 is no null for the slope of attack success on alignment, only for rankings.
# N1, concordant: prompting and steering do the same.
# N2, generic damage: N0, run with large edits of block 0 at all tokens, which harm by their size.
# N3, decoy: directions are aligned with what harmful prompts have in common, and do nothing.
# J, biased judge: N0, run with a judge that calls any text with `yes_C` in it harmful.
# D, dose trap: P12 looks worst where its direction is a sum that was not normalised.
W1 = Truth(alignment=(0.30, -0.60, 0.10, -0.45, -0.10), prompt_effect=_B)
W2 = Truth(
  alignment=(-0.35, 0.45, -0.55, 0.25, 0.15), prompt_effect=(-0.05, 0.40, -0.20, 0.45, -0.40)
)
WORLDS: dict[str, Truth] = {
  "W1": W1,
  "W2": W2,
  "N0": Truth(_ZERO, _ZERO),
  "N1": Truth(_B, _B),
  "N2": Truth(_ZERO, _ZERO),
  "N3": Truth(_ZERO, _ZERO, decoy=W1.alignment),
  "J": Truth(_ZERO, _ZERO),
  "D": Truth((0.0, -0.40, 0.0, -0.40, 0.0), _B),
}


@dataclasses.dataclass(frozen=True)
class World:
  """A planted checkpoint in memory, and the vectors that a study of it should find."""

  truth: Truth
  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  words: tuple[str, ...]  # the vocabulary: the token of id i
  basis: Basis
  heads: tuple[Head, Head, Head]  # persona, harm, semantic
  trait_TD: np.ndarray  # v_t, unit

  @property
  def refusal_D(self) -> np.ndarray:
    """Returns r."""
    return self.basis.refusal_D

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {word: i for i, word in enumerate(self.words)}

  def ids(self, text: str) -> list[int]:
    """Encodes white-space separated words."""
    return [self._places[word] for word in text.split()]

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


def half_text(pole: str, replicate: int, half: int) -> str:
  """Writes half 0 or 1 of a paraphrase of a pole: one of its six words, then three fillers."""
  number = 10_000 + 100 * POLES.index(pole) + 10 * replicate + half
  return " ".join([f"{pole}{2 * replicate + half}", *_fillers(number, 3)])


def system_text(poles: tuple[str, ...], replicate: int = 0) -> str:
  """Writes a persona as a system prompt: both halves of a pole, or the first half of each of two.

  So every persona has two trait words and six fillers.
  """
  if len(poles) == 1:
    return " ".join(half_text(poles[0], replicate, half) for half in (0, 1))
  return " ".join(half_text(pole, replicate, 0) for pole in poles)


def user_text(word: str, number: int) -> str:
  """Writes a user turn: the word that matters, then three to eight fillers set by `number`."""
  return " ".join([word, *_fillers(number, 3 + number % 6)])


def build(
  truth: Truth,
  *,
  kv_heads: int = HEADS,
  seed: int = 7,
  jitter: float = 0.0,
  harm_levels: Sequence[float] | np.ndarray = HARM_LEVELS,
  mild_levels: Sequence[float] | np.ndarray = MILD_LEVELS,
) -> World:
  """Builds the checkpoint of a world.

  Args:
    truth: what to plant.
    kv_heads: 4 for one key head per query head; 2 or 1 for grouped queries, which must change
      nothing.
    seed: of everything that is drawn: the rotation that hides the basis, the tokens' identities,
      noise, MLP weights, and jitter.
    jitter: half the width of a uniform number that is added to each b_t; `World.truth` has the sum.
    harm_levels, mild_levels: intensities of the words harm0 … and ok0 ….
  """
  rng, noise_rng, mlp_rng, jitter_rng = (
    np.random.default_rng(stream) for stream in (seed, [seed, 1], [seed, 2], [seed, 3])
  )
  effect_T = truth.prompt_effect + jitter_rng.uniform(-jitter, jitter, len(TRAITS))
  truth = dataclasses.replace(truth, prompt_effect=tuple(effect_T.tolist()))
  basis = Basis(np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN)))[0])
  kappa_T, decoy_T = np.asarray(truth.alignment), np.asarray(truth.decoy)
  trait_TD = np.sqrt(1 - kappa_T**2 - decoy_T**2)[:, None] * basis.context_TD
  trait_TD += np.outer(kappa_T, basis.refusal_D) + np.outer(decoy_T, basis.decoy_D)
  late_TD = np.outer(effect_T - kappa_T, basis.refusal_D)
  harm_D = basis.refusal_D + (basis.decoy_D / 2 if decoy_T.any() else 0)
  noise_nD = np.zeros((0, HIDDEN)), np.zeros((0, HIDDEN))
  if truth.noise:
    codes_nI = noise_rng.normal(size=(6, len(basis.identity_ID))) / np.sqrt(len(basis.identity_ID))
    random_nD = noise_rng.normal(size=(6, HIDDEN)) / np.sqrt(HIDDEN)
    noise_nD = codes_nI @ basis.identity_ID, truth.noise * random_nD
  heads = (
    Head(
      0,
      basis.trait_flag_D,
      np.concatenate([basis.word_TD / 2, noise_nD[0]]),
      np.concatenate([2 * trait_TD, noise_nD[1]]),
    ),
    Head(1, basis.harm_flag_D, basis.word_harm_D[None], harm_D[None]),
    Head(4, basis.trait_flag_D, basis.word_TD / 2, 2 * late_TD),
  )

  embedded = embeddings(basis, rng, harm_levels, mild_levels)
  words = tuple(embedded)
  tensors = {
    "model.embed_tokens.weight": np.stack(list(embedded.values())),
    "model.norm.weight": np.ones(HIDDEN),
    "lm_head.weight": unembedding(basis, words),
  }
  for i in range(BLOCKS):
    tensors |= idle_block(i, kv_heads)
  for i, head in enumerate(heads):
    write_head(tensors, basis, i, head)
  for name in [name for name in tensors if truth.mlp and ".mlp." in name]:
    tensors[name] = mlp_rng.normal(size=tensors[name].shape) * truth.mlp / np.sqrt(HIDDEN)
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
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
  return World(truth, config, stored, words, basis, heads, trait_TD)


def _fillers(number: int, n: int) -> list[str]:
  return [str(word) for word in np.random.default_rng([number, n]).choice(FILLERS, n)]
