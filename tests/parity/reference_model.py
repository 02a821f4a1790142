"""Hugging Face transformers' Llama on given tensors: logits, residuals, greedy decoding, edits."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

# Bookkeeping of a config.json that our port ignores too; dtype is chosen here.
_DROPPED = ("architectures", "torch_dtype", "dtype", "rope_theta")


class Reading(NamedTuple):
  """One pass: float32 logits [T, V] and each block's output [L, T, D]."""

  logits_TV: np.ndarray
  resid_LTD: np.ndarray


@dataclasses.dataclass(frozen=True)
class Steering:
  """Adds `vector_D` to the output of decoder layer `block`, at every position from `first` on."""

  block: int
  vector_D: np.ndarray
  first: int


class Reference:
  """`LlamaForCausalLM` with eager attention, on the CPU.

  Args:
    config: content of config.json.
    tensors: Hugging Face name → array; all that the model has, and nothing else.
    dtype: of weights, products and residuals. Norms, angles and softmax are float32 in any case.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: torch.dtype = torch.float32,
  ):
    fields = {name: value for name, value in config.items() if name not in _DROPPED}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    llama_config = transformers.LlamaConfig(**fields, rope_parameters=rope)
    llama_config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    torch.set_default_dtype(
      dtype
    )  # as from_pretrained does, so that the rotary angles stay float32
    try:
      self.model = transformers.LlamaForCausalLM(llama_config).eval()
    finally:
      torch.set_default_dtype(before)
    assert self.model.model.rotary_emb.inv_freq.dtype == torch.float32
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    if config["tie_word_embeddings"]:
      state["lm_head.weight"] = state["model.embed_tokens.weight"]
    self.model.load_state_dict(state, strict=True)
    self.num_blocks = len(self.model.model.layers)

  def read(self, ids: Sequence[int], steering: Steering | None = None) -> Reading:
    """Runs the whole sequence; residuals are what hooks on the decoder layers see.

    The last of transformers' `hidden_states` is no residual: it is taken after the final norm.
    """
    reads: list[np.ndarray] = []
    logits_TV = self._run(ids, steering=steering, reads=reads)
    return Reading(logits_TV, np.stack(reads))

  def greedy(
    self,
    ids: Sequence[int],
    steps: int,
    stop_ids: Collection[int],
    steering: Steering | None = None,
  ) -> tuple[list[int], np.ndarray]:
    """Decodes with a cache, taking the largest logit each time.

    Returns:
      The n ≤ steps new ids, a stop token included, and the logits [n, V] each was chosen from.
    """
    cache = transformers.DynamicCache(config=self.model.config)
    fed, new, steps_nV = list(ids), list[int](), list[np.ndarray]()
    while len(new) < steps and not (new and new[-1] in stop_ids):
      steps_nV.append(self._run(fed, cache=cache, steering=steering)[-1])
      new.append(int(np.argmax(steps_nV[-1])))
      fed = new[-1:]
    return new, np.stack(steps_nV)

  def score(self, ids: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
    """Returns the log-probability of each continuation token after prompt `ids`, float64 [n]."""
    logits_TV = torch.from_numpy(self._run([*ids, *continuation])).double()
    logprob_nV = torch.log_softmax(logits_TV[len(ids) - 1 : -1], dim=-1)
    return logprob_nV[torch.arange(len(continuation)), list(continuation)].numpy()

  def _run(
    self,
    ids: Sequence[int],
    *,
    cache: transformers.DynamicCache | None = None,
    steering: Steering | None = None,
    reads: list[np.ndarray] | None = None,
  ) -> np.ndarray:
    start = cache.get_seq_length() if cache is not None else 0
    layers, handles = self.model.model.layers, []
    if steering is not None:
      on_T1 = (torch.arange(start, start + len(ids)) >= steering.first)[:, None]
      vector_D = torch.from_numpy(np.asarray(steering.vector_D, np.float32))
      handles.append(
        layers[steering.block].register_forward_hook(
          lambda layer, given, out: torch.where(on_T1, out + vector_D, out)
        )
      )
    if reads is not None:
      handles += [
        layer.register_forward_hook(
          lambda layer, given, out: reads.append(out[0].float().numpy().copy())
        )
        for layer in layers
      ]
    try:
      with torch.inference_mode():
        out = self.model(
          torch.tensor([list(ids)]), past_key_values=cache, use_cache=cache is not None
        )
    finally:
      for handle in handles:
        handle.remove()
    return out.logits[0].float().numpy()
