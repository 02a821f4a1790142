"""An independent Llama in float64 numpy, written to be read beside the paper, not to be fast.

It shares no code with the library and imports nothing but numpy, so that an agreement between the
two is evidence. The computation is that of Hugging Face's `LlamaForCausalLM`: RMSNorm (Zhang and
Sennrich 2019), rotary positions in the half-split layout (Su et al. 2021), grouped queries (Ainslie
et al. 2023), SwiGLU (Shazeer 2020), a tied or untied head. A model is what a checkpoint directory
holds: `config`, the dictionary of config.json, and `tensors`, Hugging Face name → array [out, in].
There is no batch: one sequence of T tokens goes in, so there are no pads and no masks but the
causal one.

Axes: T tokens · D model · F ffw · N query heads · K key heads · G = N / K · H head dim · V
vocabulary · L blocks.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SITES = (
  "resid_pre",
  "attn_in",
  "head_out",
  "attn_out",
  "resid_mid",
  "mlp_in",
  "mlp_out",
  "resid_post",
)

Config = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
Hook = Callable[
  [str, int, np.ndarray, np.ndarray], np.ndarray
]  # (site, block, h_TD, positions_T) → h_TD


@dataclasses.dataclass(frozen=True)
class Output:
  """What one sequence gives: logits [T, V] and every block's `resid_post`, edited, [L, T, D]."""

  logits_TV: np.ndarray
  resid_post_LTD: np.ndarray


def tensor_names(config: Config) -> set[str]:
  """Names the tensors of a checkpoint with this config, as Hugging Face does."""
  block = "model.layers.{}."
  parts = ["input_layernorm", "post_attention_layernorm"]
  parts += [f"self_attn.{p}_proj" for p in "qkvo"] + [
    f"mlp.{p}_proj" for p in ("gate", "up", "down")
  ]
  names = {"model.embed_tokens.weight", "model.norm.weight"}
  names |= {
    f"{block.format(i)}{p}.weight" for i in range(config["num_hidden_layers"]) for p in parts
  }
  return names if config.get("tie_word_embeddings", False) else names | {"lm_head.weight"}


def forward(
  config: Config, tensors: Tensors, ids_T: Sequence[int], hook: Hook | None = None
) -> Output:
  """Runs one sequence through the model in float64.

  Args:
    config: keys of a Llama config.json. Biases, scaled RoPE and other activations than SiLU are
      outside this reference.
    tensors: Hugging Face name → array [out, in], any float dtype; exactly the names of
      `tensor_names`.
    ids_T: token ids, T ≥ 1.
    hook: called as hook(site, block, h_TD, positions_T) at each site of `SITES` in every block;
      what it returns takes the place of h_TD. `attn_in` and `mlp_in` come after the norm; at
      `head_out` h is [T, N, H].

  Raises:
    ValueError: the config asks for something else than plain Llama, or tensors are missing or left
      over.
  """
  _check(config, tensors)
  w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
  eps = config["rms_norm_eps"]
  positions_T = np.arange(len(ids_T))

  def at(site: str, block: int, h_TD: np.ndarray) -> np.ndarray:
    return h_TD if hook is None else hook(site, block, h_TD, positions_T)

  def attend(i: int, name: str, x_TD: np.ndarray) -> np.ndarray:
    mixed_TNH = at("head_out", i, _heads(config, w, name + "self_attn.", x_TD))
    return mixed_TNH.reshape(len(x_TD), -1) @ w[name + "self_attn.o_proj.weight"].T

  h_TD = w["model.embed_tokens.weight"][np.asarray(ids_T, np.int64)]
  outputs = []
  for i in range(config["num_hidden_layers"]):
    name = f"model.layers.{i}."
    h_TD = at("resid_pre", i, h_TD)
    x_TD = at("attn_in", i, _rms_norm(h_TD, w[name + "input_layernorm.weight"], eps))
    h_TD = h_TD + at("attn_out", i, attend(i, name, x_TD))
    h_TD = at("resid_mid", i, h_TD)
    x_TD = at("mlp_in", i, _rms_norm(h_TD, w[name + "post_attention_layernorm.weight"], eps))
    h_TD = h_TD + at("mlp_out", i, _swiglu(w, name + "mlp.", x_TD))
    h_TD = at("resid_post", i, h_TD)
    outputs.append(h_TD)
  tied = config.get("tie_word_embeddings", False)
  head_VD = w["model.embed_tokens.weight" if tied else "lm_head.weight"]
  logits_TV = _rms_norm(h_TD, w["model.norm.weight"], eps) @ head_VD.T
  return Output(logits_TV, np.stack(outputs))


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
  """Turns logits into log-probabilities along the last axis."""
  shifted_TV = logits_TV - logits_TV.max(-1, keepdims=True)
  return shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit as a hook does it: `change` acts on a window of tokens at one site of some blocks.

  `start` and `stop` are a half-open interval of token offsets from the end of the prompt: offset 0
  is the first token after the prompt, −1 the last token of the prompt. WINDOWS holds the named
  ones.
  """

  change: Callable[[np.ndarray], np.ndarray]  # h_nD → h_nD, n tokens of the window
  blocks: tuple[int, ...]
  site: str = "resid_post"
  start: float = -math.inf
  stop: float = math.inf


WINDOWS = {
  "all": (-math.inf, math.inf),
  "prompt": (-math.inf, 0),
  "generated": (0, math.inf),
  "answer": (-1, math.inf),
}


def add(v_D: np.ndarray, coef: float) -> Callable[[np.ndarray], np.ndarray]:
  """Adds coef·v, v as it is given."""
  return lambda h_nD: h_nD + coef * np.asarray(v_D, np.float64)


def scale(v_D: np.ndarray, factor: float) -> Callable[[np.ndarray], np.ndarray]:
  """Multiplies the component along v by `factor`."""
  return _move(v_D, lambda a_n: factor * a_n)


def ablate(v_D: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Removes the component along v."""
  return _move(v_D, lambda a_n: 0 * a_n)


def set_to(v_D: np.ndarray, target: float) -> Callable[[np.ndarray], np.ndarray]:
  """Puts the projection on v̂ at `target`."""
  return _move(v_D, lambda a_n: 0 * a_n + target)


def clamp(v_D: np.ndarray, low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
  """Keeps the projection on v̂ inside [low, high]."""
  return _move(v_D, lambda a_n: np.clip(a_n, low, high))


def cap(v_D: np.ndarray, high: float) -> Callable[[np.ndarray], np.ndarray]:
  """Keeps the projection on v̂ at or below `high`."""
  return _move(v_D, lambda a_n: np.minimum(a_n, high))


def floor(v_D: np.ndarray, low: float) -> Callable[[np.ndarray], np.ndarray]:
  """Keeps the projection on v̂ at or above `low`."""
  return _move(v_D, lambda a_n: np.maximum(a_n, low))


def edit_hook(edits: Iterable[Edit], prompt_length: int) -> Hook:
  """Makes the hook that applies edits in the order given, each to what the one before left."""
  edits = tuple(edits)
  if unknown := {e.site for e in edits} - set(SITES):
    raise ValueError(f"unknown sites {sorted(unknown)}; there are {SITES}")

  def hook(site: str, block: int, h_TD: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
    offsets_T = positions_T - prompt_length
    for edit in edits:
      if edit.site == site and block in edit.blocks:
        on_T = (offsets_T >= edit.start) & (offsets_T < edit.stop)
        h_TD = h_TD.copy()
        h_TD[on_T] = edit.change(h_TD[on_T])
    return h_TD

  return hook


def greedy(
  config: Config,
  tensors: Tensors,
  ids: Sequence[int],
  max_new_tokens: int,
  *,
  edits: Iterable[Edit] = (),
  eos_ids: Iterable[int] = (),
  prompt_length: int | None = None,
) -> tuple[list[int], np.ndarray]:
  """Generates greedily by running the whole sequence again for every token.

  Returns:
    The n ≤ max_new_tokens new ids, the end token included where one came, and the log-probabilities
    [n, V] that each was chosen from. `prompt_length` is where windows count from: len(ids), unless
    the ids end in an answer's beginning.
  """
  hook = edit_hook(edits, len(ids) if prompt_length is None else prompt_length)
  seen, stops = list(ids), set(eos_ids)
  steps: list[np.ndarray] = []
  while len(steps) < max_new_tokens and not (steps and seen[-1] in stops):
    steps.append(log_softmax(forward(config, tensors, seen, hook).logits_TV[-1]))
    seen.append(int(np.argmax(steps[-1])))
  return seen[len(ids) :], np.reshape(steps, (len(steps), config["vocab_size"]))


def score(
  config: Config,
  tensors: Tensors,
  ids: Sequence[int],
  continuation: Sequence[int],
  *,
  edits: Iterable[Edit] = (),
) -> np.ndarray:
  """Returns the log-probability of each continuation token after the prompt `ids`: [n]."""
  whole = [*ids, *continuation]
  logits_TV = forward(config, tensors, whole, edit_hook(edits, len(ids))).logits_TV
  return log_softmax(logits_TV)[np.arange(len(ids) - 1, len(whole) - 1), list(continuation)]


def _move(
  v_D: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
  unit_D = np.asarray(v_D, np.float64) / np.linalg.norm(np.asarray(v_D, np.float64))

  def change(h_nD: np.ndarray) -> np.ndarray:
    a_n = h_nD @ unit_D
    return h_nD + np.outer(wanted(a_n) - a_n, unit_D)

  return change


def _check(config: Config, tensors: Tensors) -> None:
  other = {
    "model_type": config.get("model_type", "llama") != "llama",
    "hidden_act": config.get("hidden_act", "silu") != "silu",
    "attention_bias": config.get("attention_bias", False),
    "mlp_bias": config.get("mlp_bias", False),
    "rope_scaling": config.get("rope_scaling") is not None,
  }
  if any(other.values()):
    fields = {field: config[field] for field, differs in other.items() if differs}
    raise ValueError(f"this reference is of plain Llama, the config has {fields}")
  if wrong := tensor_names(config) ^ set(tensors):
    raise ValueError(f"tensors missing or left over: {sorted(wrong)}")


def _rms_norm(h_TD: np.ndarray, weight_D: np.ndarray, eps: float) -> np.ndarray:
  return weight_D * h_TD / np.sqrt(np.mean(h_TD**2, axis=-1, keepdims=True) + eps)


def _rotate(x_TNH: np.ndarray, theta: float) -> np.ndarray:
  """Turns the pair (j, j + H/2) of the token at position t by t·θ^(−2j/H)."""
  n_tokens, _, head_dim = x_TNH.shape
  half = head_dim // 2
  angle_Th = np.arange(n_tokens)[:, None] * theta ** (-2 * np.arange(half) / head_dim)
  turned_TNh = (x_TNH[..., :half] + 1j * x_TNH[..., half:]) * np.exp(1j * angle_Th)[:, None]
  return np.concatenate([turned_TNh.real, turned_TNh.imag], axis=-1)


def _heads(config: Config, w: Mapping[str, np.ndarray], name: str, x_TD: np.ndarray) -> np.ndarray:
  n_heads = config["num_attention_heads"]
  n_keys = config.get("num_key_value_heads") or n_heads
  head_dim = config.get("head_dim") or config["hidden_size"] // n_heads
  theta = config["rope_theta"]
  n_tokens = len(x_TD)

  def heads(part: str, n: int) -> np.ndarray:
    return (x_TD @ w[f"{name}{part}_proj.weight"].T).reshape(n_tokens, n, head_dim)

  q_TNH = _rotate(heads("q", n_heads), theta)
  k_TKH = _rotate(heads("k", n_keys), theta)
  v_TKH = heads("v", n_keys)
  future_TS = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
  mixed_TNH = np.empty_like(q_TNH)
  for n in range(n_heads):
    k = n // (n_heads // n_keys)  # a group of neighbouring query heads shares one key head
    scores_TS = q_TNH[:, n] @ k_TKH[:, k].T / math.sqrt(head_dim)
    scores_TS[future_TS] = -np.inf
    mixed_TNH[:, n] = np.exp(log_softmax(scores_TS)) @ v_TKH[:, k]
  return mixed_TNH


def _swiglu(w: Mapping[str, np.ndarray], name: str, x_TD: np.ndarray) -> np.ndarray:
  gate_TF = x_TD @ w[name + "gate_proj.weight"].T
  up_TF = x_TD @ w[name + "up_proj.weight"].T
  return (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ w[name + "down_proj.weight"].T
