"""The weights of a planted world: a named basis, the words, and heads that attend by content."""

import dataclasses
from collections.abc import Sequence

import numpy as np

TRAITS = ("O", "C", "E", "A", "N")
POLES = tuple(trait + sign for trait in TRAITS for sign in "+-")
BLOCKS, HIDDEN, HEADS, HEAD_DIM, INTERMEDIATE = 6, 64, 4, 16, 64
FILLERS = tuple(f"w{i}" for i in range(40))


class Basis:
  """Names the rows of an orthogonal matrix."""

  def __init__(self, rows_DD: np.ndarray):
    self.constant_D, self.bos_D, self.trait_flag_D, self.harm_flag_D, self.slack_D = rows_DD[:5]
    self.decision_D, self.word_harm_D, self.refusal_D = rows_DD[5:8]
    self.word_TD, self.context_TD = rows_DD[8:13], rows_DD[13:18]
    self.after_sorry_D, self.after_sure_D, self.ending_D = rows_DD[18:21]
    self.decoy_D = rows_DD[21]
    self.identity_ID = rows_DD[24:]


@dataclasses.dataclass(frozen=True)
class Head:
  """A head that adds writes_j times the mean of ⟨reads_j, h⟩ over the tokens with a flag.

  h is taken at norm 10 here, as embeddings are. A token's key is 40 a unit of the flag and 20 a
  unit of that of `<bos>`, both thirds of what is embedded; the query is the constant.
  """

  block: int
  flag_D: np.ndarray
  reads_nD: np.ndarray
  writes_nD: np.ndarray


def embeddings(
  basis: Basis,
  rng: np.random.Generator,
  harm_levels: Sequence[float] | np.ndarray,
  mild_levels: Sequence[float] | np.ndarray,
) -> dict[str, np.ndarray]:
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
  for name, levels in (("harm", harm_levels), ("ok", mild_levels)):
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


def unembedding(basis: Basis, words: tuple[str, ...]) -> np.ndarray:
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


def idle_block(block: int, kv_heads: int) -> dict[str, np.ndarray]:
  """Makes a block that adds nothing."""
  name, ffw = f"model.layers.{block}.", INTERMEDIATE
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


def write_head(tensors: dict[str, np.ndarray], basis: Basis, index: int, head: Head) -> None:
  """Writes a head as query head `index` of its block."""
  name = f"model.layers.{head.block}.self_attn."
  norm = np.sqrt(HIDDEN) / 10  # what RMSNorm does to a vector of norm 10
  kv_heads = len(tensors[name + "k_proj.weight"]) // HEAD_DIM
  query = index * HEAD_DIM
  key = index // (HEADS // kv_heads) * HEAD_DIM
  slowest = HEAD_DIM // 2 - 1  # the first half of the pair (7, 15): .0056 radians in 1,000 tokens
  columns = np.arange(len(head.reads_nD))
  # A flagged token scores 40, <bos> 20, any other token 0.
  tensors[name + "q_proj.weight"][query + slowest] = basis.constant_D / (4 * norm) * 4
  tensors[name + "k_proj.weight"][key + slowest] = (40 * head.flag_D + 20 * basis.bos_D) / (
    3 * norm
  )
  tensors[name + "v_proj.weight"][key + columns] = head.reads_nD / norm
  tensors[name + "o_proj.weight"][:, query + columns] = head.writes_nD.T
