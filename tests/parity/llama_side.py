"""What llama.cpp answers under control vectors: the other end of `exchange.py`.

  .venv-bench-llama/bin/python -m tests.parity.llama_side REQUEST.json

Float32 throughout, the cache too. Each prompt by itself, greedy by NumPy on the logits.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

TOP = 8  # logits kept of each step
CONTEXT = 1024  # tokens
F32 = 0  # of ggml's types


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: int) -> None:
  """Drops the library's log; failures come back as return values."""


class Llama:
  """A float32 model with a context of one sequence.

  Raises:
    RuntimeError: llama.cpp does not load the file.
  """

  def __init__(self, file: str):
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    self.model = llama_cpp.llama_model_load_from_file(file.encode(), params)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = F32
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    self.context = llama_cpp.llama_init_from_model(self.model, options)
    if not self.context:
      raise RuntimeError(f"llama.cpp does not load {file}")
    self.memory = llama_cpp.llama_get_memory(self.context)
    self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
    self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

  def steer(self, buffer: np.ndarray | None, first: int, last: int) -> None:
    """Sets a control vector [L', D] at blocks first to last, or none.

    Raises:
      RuntimeError: llama.cpp refuses it.
    """
    pointer, size, width = None, 0, 0
    if buffer is not None:
      buffer = np.ascontiguousarray(buffer, np.float32)
      pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
      size, width = buffer.size, buffer.shape[1]
    if llama_cpp.llama_set_adapter_cvec(self.context, pointer, size, width, first, last):
      raise RuntimeError("llama.cpp refuses the control vector")

  def _next_logits(self, ids: list[int], first: int) -> np.ndarray:
    """Feeds tokens at positions from `first` on; returns the logits after the last, [V]."""
    batch = self.batch
    for n, token in enumerate(ids):
      batch.token[n], batch.pos[n] = token, first + n
      batch.n_seq_id[n], batch.seq_id[n][0], batch.logits[n] = 1, 0, n == len(ids) - 1
    batch.n_tokens = len(ids)
    status = llama_cpp.llama_decode(self.context, batch)
    if status:
      raise RuntimeError(f"llama.cpp does not decode: {status}")
    logits = llama_cpp.llama_get_logits_ith(self.context, len(ids) - 1)
    return np.array(np.ctypeslib.as_array(logits, (self.vocab_size,)))

  def answer(self, prompt: list[int], steps: int, stop_ids: list[int]) -> dict[str, Any]:
    """Returns the greedy tokens, and the largest logits that each was chosen from."""
    llama_cpp.llama_memory_clear(self.memory, True)
    fed, done, ids, tops = prompt, 0, list[int](), list[list[tuple[int, float]]]()
    while len(ids) < steps and not (ids and ids[-1] in stop_ids):
      logits_V = self._next_logits(fed, done)
      top = np.argsort(-logits_V, kind="stable")[:TOP]
      tops.append([(int(i), float(logits_V[i])) for i in top])
      done += len(fed)
      ids.append(tops[-1][0][0])
      fed = ids[-1:]
    return {"ids": ids, "top": tops}


def main() -> None:
  request = json.loads(Path(sys.argv[1]).read_text())
  llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
  llama = Llama(request["gguf"])
  answers = {}
  for name, file in request["buffers"].items():
    buffer = None if file is None else np.load(file)
    llama.steer(buffer, *request["blocks"])
    answers[name] = [
      llama.answer(prompt, request["steps"], request["stop_ids"]) for prompt in request["prompts"]
    ]
  Path(request["answers"]).write_text(json.dumps(answers))


if __name__ == "__main__":
  main()
