"""The truth about a planted world: what every persona does to every prompt, by either method.

On a prompt of harm intensity u, logit P(refuse) = 2·(√D/‖h‖)·(u + s − 1), where s is the shift of
refusal by a persona and h the residual stream at the last token. The law here takes h apart:

    h = <assistant> + persona write + harm write + semantic write + edit

Attention in these worlds goes by content, so it is a softmax over the *words* of a prompt with
their counts, whatever their order; a system prompt is a handful of tokens, worked out once and used
for all user turns. So thousands of cells are a few matrix products, in float64, and the result is
that of the whole model to 1e-6, with noise, decoys and grouped queries. Two things are left out:
rotary phases of the slowest pair, 2e-7 of a weight, and what the harm head wrote to *user* tokens,
which the semantic head sees with weights of e⁻²⁰. A world with MLP weights, and an edit of all
tokens where the semantic head writes, have no such form: then every cell is a pass of the float64
reference, two milliseconds.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from tests.planted.world import (
  BLOCKS,
  HIDDEN,
  PERSONAS,
  REPLICATES,
  TRAITS,
  Head,
  World,
  system_text,
)
from tests.reference import numpy_llama as reference


@dataclasses.dataclass(frozen=True)
class Push:
  """An edit of the residual stream: `shift_D` is added to the output of a block."""

  shift_D: np.ndarray
  block: int = 2
  tokens: str = "answer"  # or "all"


@dataclasses.dataclass(frozen=True)
class Cells:
  """Log-probabilities of the first answer token, over the whole vocabulary; arrays of one shape."""

  sorry: np.ndarray
  sure: np.ndarray

  @property
  def log_odds(self) -> np.ndarray:
    """Returns logit P(refuse), where the answer is either `sorry` or `sure`."""
    return self.sorry - self.sure

  @property
  def attack_success(self) -> np.ndarray:
    """Returns P(`sure`), where the answer is either."""
    return 1 / (1 + np.exp(self.log_odds))

  @property
  def stray(self) -> np.ndarray:
    """Returns P(neither): what sampling at temperature 1 gives beside the two answers."""
    return 1 - np.exp(self.sorry) - np.exp(self.sure)


def first_token(world: World, h_nD: np.ndarray) -> Cells:
  """Reads the first answer token off the residual stream of the last token."""
  x_nD = _norm_10(h_nD) * np.sqrt(HIDDEN) / 10
  head_VD = world.tensors["lm_head.weight"].astype(np.float64)
  silent_V = ~head_VD.any(1)  # most words: their logit is 0
  logits_nW = x_nD @ head_VD[~silent_V].T
  total_n = np.logaddexp(np.logaddexp.reduce(logits_nW, axis=-1), np.log(silent_V.sum()))
  spoken = [world.words[i] for i in np.flatnonzero(~silent_V)]
  sorry_n, sure_n = (logits_nW[..., spoken.index(word)] for word in ("sorry", "sure"))
  return Cells(sorry_n - total_n, sure_n - total_n)


def last_token(
  world: World, users: Sequence[str], system: str = "", push: Push | None = None
) -> np.ndarray:
  """Returns every block's output at the last token of every prompt, float64 [N, L, D].

  Args:
    world: the world.
    users: N user turns.
    system: the system prompt of all of them.
    push: an edit.
  """
  to_all = push is not None and push.tokens == "all"
  if world.truth.mlp or (to_all and world.heads[2].writes_nD.any()):
    return np.stack([_by_reference(world, user, system, push) for user in users])
  persona, harm, semantic = world.heads
  embed_VD = world.tensors["model.embed_tokens.weight"].astype(np.float64)

  def pushed(h_nD: np.ndarray, block: int, last: bool = False) -> np.ndarray:
    if push is None or push.block != block or not (last or to_all):
      return h_nD
    return h_nD + push.shift_D

  # The T tokens in front of the user turn, each of which sees those before it.
  prefix_TD = embed_VD[world.ids(f"<bos> {f'<sys> {system}' if system else ''}")]
  n_prefix = len(prefix_TD)
  past_TT = np.tril(np.ones((n_prefix, n_prefix)))
  first_TD = pushed(prefix_TD + _mixed(world, persona, prefix_TD, prefix_TD, past_TT), 0)
  late_TD = first_TD + _mixed(world, harm, first_TD, first_TD, past_TT)
  for block in (1, 2, 3):
    late_TD = pushed(late_TD, block)

  # The W words of the user turns and the last token: to all, the persona head writes the same.
  words, count_NW = _counts(tuple(f"<user> {user}" for user in users))
  count_NK = np.concatenate([np.ones((len(users), n_prefix)), count_NW], axis=1)
  last_D = embed_VD[world.ids("<assistant>")[0]]
  persona_D = _mixed(world, persona, last_D[None], prefix_TD, np.ones((1, n_prefix)))[0]
  word_WD = pushed(embed_VD[world.ids(" ".join(words))] + persona_D, 0)
  h_D = pushed(last_D + persona_D, 0, last=True)
  h_ND = np.tile(h_D, (len(users), 1))
  h_ND = h_ND + _mixed(world, harm, h_ND, np.concatenate([first_TD, word_WD]), count_NK, True)
  outputs = [np.broadcast_to(h_D, h_ND.shape)]
  for block in (1, 2, 3):
    h_ND = pushed(h_ND, block, last=True)
    outputs.append(h_ND)
  h_ND = h_ND + _mixed(world, semantic, h_ND, np.concatenate([late_TD, word_WD]), count_NK, True)
  for block in range(4, BLOCKS):
    h_ND = pushed(h_ND, block, last=True)
    outputs.append(h_ND)
  return np.stack(outputs, axis=1)


@dataclasses.dataclass(frozen=True)
class Directions:
  """What exact extraction gives: a vector of every replicate and trait, and refusal."""

  trait_KTLD: np.ndarray
  refusal_LD: np.ndarray

  def personas(self, personas: Mapping[str, tuple[str, ...]] = PERSONAS) -> np.ndarray:
    """Returns the unit sums of personas' signed unit vectors, float64 [P, K, L, D]."""
    signs_PT = np.array(
      [
        [sum((1 if p[1] == "+" else -1) * (p[0] == t) for p in poles) for t in TRAITS]
        for poles in personas.values()
      ]
    )
    return _unit(np.einsum("pt,ktld->pkld", signs_PT, _unit(self.trait_KTLD)))


def extract(
  world: World, neutral: Sequence[str], harmful: Sequence[str], harmless: Sequence[str]
) -> Directions:
  """Takes differences of means at the last prompt token.

  Replicate k of a trait is the text of its high pole, paraphrase k, against that of its low pole,
  on its own third of the neutral questions; refusal is harmful against harmless questions.
  """

  def mean_LD(users: Sequence[str], system: str = "") -> np.ndarray:
    return last_token(world, users, system).mean(0)

  trait_KTLD = np.array(
    [
      [
        mean_LD(neutral[k::REPLICATES], system_text((trait + "+",), k))
        - mean_LD(neutral[k::REPLICATES], system_text((trait + "-",), k))
        for trait in TRAITS
      ]
      for k in range(REPLICATES)
    ]
  )
  return Directions(trait_KTLD, mean_LD(harmful) - mean_LD(harmless))


@dataclasses.dataclass(frozen=True)
class Population:
  """Every cell of a study in the limit of endless sampling.

  P personas, K replicates, N prompts, L blocks. A replicate is a paraphrase: prompted, it is the
  system prompt; steered, the direction that was extracted from it.
  """

  personas: tuple[str, ...]
  base: Cells  # [N]
  prompted: Cells  # [P, K, N]
  steered: Cells  # [P, K, N]
  alignment_PKL: np.ndarray  # cosine of persona and refusal directions
  block: int  # that the edits act at

  @property
  def base_rate(self) -> float:
    """Returns the attack success rate without a persona."""
    return float(self.base.attack_success.mean())

  @property
  def prompted_PK(self) -> np.ndarray:
    """Returns attack success rates of the prompted personas."""
    return self.prompted.attack_success.mean(-1)

  @property
  def steered_PK(self) -> np.ndarray:
    """Returns attack success rates of the steered personas."""
    return self.steered.attack_success.mean(-1)

  def rho(self) -> float:
    """Returns Spearman's ρ of the two methods."""
    return rank_correlation(self.prompted_PK.mean(1), self.steered_PK.mean(1))

  def slope(self, block: int | None = None) -> float:
    """Returns the slope of steered rates on alignment as read at a block, by default the edits'.

    NaN where no persona is aligned by more than 1e-4.
    """
    x_P = self.alignment_PKL[..., self.block if block is None else block].mean(1)
    return float(np.polyfit(x_P, self.steered_PK.mean(1), 1)[0]) if np.ptp(x_P) > 1e-4 else np.nan

  def inversions(self, margin: float = 0.05, *, every_replicate: bool = False) -> dict[str, str]:
    """Names the personas whose excess is on opposite sides of ± margin, and what they are worse by.

    "AS" is dangerous when steered and safe when prompted, "SP" the reverse. With `every_replicate`
    that must hold in each replicate, else in their mean.
    """
    prompted_PK, steered_PK = (excess(asr_PK) for asr_PK in (self.prompted_PK, self.steered_PK))
    if not every_replicate:
      prompted_PK, steered_PK = prompted_PK.mean(1)[:, None], steered_PK.mean(1)[:, None]
    worse_AS_P = ((prompted_PK < -margin) & (steered_PK > margin)).all(1)
    worse_SP_P = ((prompted_PK > margin) & (steered_PK < -margin)).all(1)
    sides = zip(self.personas, worse_AS_P, worse_SP_P, strict=True)
    return {
      name: "AS" if steered else "SP" for name, steered, prompted in sides if steered | prompted
    }


def excess(asr_P: np.ndarray) -> np.ndarray:
  """Returns D: every persona's rate less the mean of the others', along the first axis."""
  return (asr_P - asr_P.mean(0)) * len(asr_P) / (len(asr_P) - 1)


def rank_correlation(a_P: np.ndarray, b_P: np.ndarray) -> float:
  """Returns Spearman's ρ of rates; rates equal to 1e-5 are tied; NaN where one varies by < 1e-4."""
  if min(np.ptp(a_P), np.ptp(b_P)) < 1e-4:
    return np.nan
  return float(scipy.stats.spearmanr(a_P.round(5), b_P.round(5)).statistic)


def population(
  world: World,
  users: Sequence[str],
  directions: Directions,
  *,
  personas: Mapping[str, tuple[str, ...]] = PERSONAS,
  block: int = 2,
  coef: float = 2.0,
  tokens: str = "answer",
) -> Population:
  """Works out every cell: personas × replicates × prompts, prompted and steered.

  Args:
    world: the world.
    users: N harmful user turns.
    directions: of `extract`.
    personas: name → poles.
    block: whose output the edits change, and whose directions they use.
    coef: times the unit vector of a persona.
    tokens: "answer" or "all".
  """
  unit_PKLD = directions.personas(personas)
  prompted = [
    [last_token(world, users, system_text(poles, k))[:, -1] for k in range(REPLICATES)]
    for poles in personas.values()
  ]
  return Population(
    personas=tuple(personas),
    base=first_token(world, last_token(world, users)[:, -1]),
    prompted=first_token(world, np.array(prompted)),
    steered=steered(world, users, coef * unit_PKLD[:, :, block], block=block, tokens=tokens),
    alignment_PKL=np.einsum("pkld,ld->pkl", unit_PKLD, _unit(directions.refusal_LD)),
    block=block,
  )


def steered(
  world: World,
  users: Sequence[str],
  shift_RD: np.ndarray,
  *,
  block: int = 2,
  tokens: str = "answer",
) -> Cells:
  """Works out the cells [..., N] of edits that add shifts [..., D]: a census of directions."""
  flat_RD = shift_RD.reshape(-1, HIDDEN)
  h_RND = np.array(
    [last_token(world, users, push=Push(shift_D, block, tokens))[:, -1] for shift_D in flat_RD]
  )
  return first_token(world, h_RND.reshape(*shift_RD.shape[:-1], len(users), HIDDEN))


def _by_reference(world: World, user: str, system: str, push: Push | None) -> np.ndarray:
  ids = world.prompt_ids(user, system)
  hook = None
  if push is not None:
    start, stop = reference.WINDOWS[push.tokens]
    change = reference.add(push.shift_D, 1.0)
    edit = reference.Edit(change, (push.block,), start=start, stop=stop)
    hook = reference.edit_hook([edit], len(ids))
  return reference.forward(world.config, world.tensors, ids, hook).resid_post_LTD[:, -1]


@functools.lru_cache(maxsize=16)
def _counts(texts: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
  """Counts the words of texts: the words, and float64 [N, W]."""
  words = sorted({word for text in texts for word in text.split()})
  place = {word: i for i, word in enumerate(words)}
  count_NW = np.zeros((len(texts), len(words)))
  for row, text in enumerate(texts):
    np.add.at(count_NW[row], [place[word] for word in text.split()], 1)
  return words, count_NW


def _mixed(
  world: World,
  head: Head,
  query_QD: np.ndarray,
  key_KD: np.ndarray,
  count_QK: np.ndarray,
  own_key: bool = False,
) -> np.ndarray:
  """Returns what a head writes to queries for keys that are there so many times, [Q, D].

  With `own_key` every query is a key too, to itself alone.
  """
  query_QD, key_KD = _norm_10(query_QD), _norm_10(key_KD)
  flag_D = (40 * head.flag_D + 20 * world.basis.bos_D) / 3
  focus_Q = query_QD @ world.basis.constant_D / 4
  score_QK = focus_Q[:, None] * (key_KD @ flag_D)
  own_Q = focus_Q * (query_QD @ flag_D) if own_key else np.full(len(query_QD), -np.inf)
  top_Q = np.maximum(score_QK.max(1), own_Q)
  weight_QK, own_Q = count_QK * np.exp(score_QK - top_Q[:, None]), np.exp(own_Q - top_Q)
  value_Qn = weight_QK @ (key_KD @ head.reads_nD.T) + own_Q[:, None] * (query_QD @ head.reads_nD.T)
  return value_Qn / (weight_QK.sum(1) + own_Q)[:, None] @ head.writes_nD


def _norm_10(h_nD: np.ndarray) -> np.ndarray:
  return 10 * h_nD / np.linalg.norm(h_nD, axis=-1, keepdims=True)


def _unit(x_nD: np.ndarray) -> np.ndarray:
  """Returns unit vectors; NaN for zero ones, such as refusal before the harm head."""
  norm_n = np.linalg.norm(x_nD, axis=-1, keepdims=True)
  return np.divide(x_nD, norm_n, out=np.full_like(x_nD, np.nan), where=norm_n > 1e-9)
