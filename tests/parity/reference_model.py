"""Hugging Face transformers on given tensors: logits, residuals, greedy decoding, edits."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from tests.parity.reading import Reading

# Bookkeeping of a config.json that our port ignores too; dtype is chosen here.
_DROPPED = ("architectures", "torch_dtype", "dtype")


@dataclasses.dataclass(frozen=True)
class Steering:
  """Adds `vector_D` to the output of decoder layer `block`, at every position from `first` on."""

  block: int
  vector_D: np.ndarray
  first: int


def _hf_config(config: Mapping[str, Any]) -> Any:
  """Reads config.json as transformers does for a file of the hub."""
  fields = {name: value for name, value in config.items() if name not in _DROPPED}
  hf_config = transformers.AutoConfig.for_model(**fields)
  hf_config._attn_implementation = "eager"
  return hf_config


def _causal_lm(hf_config: Any) -> Any:
  return transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the tensors that a checkpoint of this configuration has, as transformers saves it."""
  with torch.device("meta"):
    model = _causal_lm(_hf_config(config))
  tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
  return {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}


class Reference:
  """Transformers' causal language model with eager attention, on the CPU.

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
    hf_config = _hf_config(config)
    before = torch.get_default_dtype()
    # As from_pretrained does, so that the rotary angles stay float32.
    torch.set_default_dtype(dtype)
    try:
      self.model = _causal_lm(hf_config).eval()
    finally:
      torch.set_default_dtype(before)
    for name, buffer in self.model.named_buffers():
      assert "inv_freq" not in name or buffer.dtype == torch.float32
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    if hf_config.tie_word_embeddings:
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
