"""llama.cpp with control vectors, through the C API that `llama-cpp-python` binds.

Four files: the float32 one (cache in float32 too, so that it does the work of the others), the
quantised one as it is shipped (Q4_1), and the same weights in Q8_0 and Q4_0, for which the library
has faster products (these three with the default cache, float16). A control vector belongs to a
context, so conditions come one after another; the prompts of a condition are parallel sequences of
one batch, each with a cache of its own. Greedy choice by NumPy on the logits, which is faster than
the library's samplers for a batch.

  f32, q4_1, q8_0, q4_0  every condition prefills its prompts
  reuse_f32, …           for the grid whose prompts no edit touches: prompts are prefilled once, and
                         the cache is cut back to them after each condition

The library is built from source for this machine's instruction set (`environments.py`).
"""

import ctypes

import llama_cpp
import numpy as np

from benchmarks.grid.grids import Grid, Work
from benchmarks.grid.protocol import THREADS, Arm, Rows, serve

UBATCH = 512
SETTINGS = {
  "threads": THREADS,
  "n_ubatch": UBATCH,
  "flash_attn": "auto",
  "kv_unified": False,
  "cache": {"f32": "float32", "others": "float16"},
}


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: int) -> None:
  """Drop the library's log; failures come back as return values."""


class Context:
  """Memory for the sequences of one grid: as many as it has prompts.

  Args:
    model: of llama.cpp.
    grid: what is to be run.
    cache_type: of keys and values.
  """

  def __init__(self, model: int, grid: Grid, cache_type: int):
    count, longest = len(grid.prompts), max(map(len, grid.prompts))
    total = sum(map(len, grid.prompts))
    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = count
    params.n_ctx = count * (-(-(longest + grid.new_tokens) // 256) * 256)
    params.n_batch, params.n_ubatch = total, UBATCH
    params.n_threads = params.n_threads_batch = THREADS
    params.type_k = params.type_v = cache_type
    params.no_perf = True
    self.context = llama_cpp.llama_init_from_model(model, params)
    if not self.context:
      raise RuntimeError("llama.cpp made no context")
    self.memory = llama_cpp.llama_get_memory(self.context)
    self.batch = llama_cpp.llama_batch_init(total, 0, 1)
    self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    self.num_blocks = llama_cpp.llama_model_n_layer(model)

  def steer(self, grid: Grid, vector_D: np.ndarray | None) -> None:
    """Set the control vector, or clear it.

    Raises:
      RuntimeError: llama.cpp refuses it.
    """
    width = grid.vectors_CD.shape[1]
    pointer, size = None, 0
    if vector_D is not None:
      # The buffer begins at layer 1; layer i is the output of block i.
      buffer = np.zeros((self.num_blocks - 1, width), np.float32)
      buffer[grid.block - 1] = vector_D
      pointer, size = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), buffer.size
    status = llama_cpp.llama_set_adapter_cvec(
      self.context, pointer, size, width, grid.block, grid.block
    )
    if status:
      raise RuntimeError(f"llama.cpp refuses the control vector: {status}")

  def read(self, tokens: list[list[int]], position: list[int]) -> np.ndarray:
    """Feed sequence s its tokens from a position on; return the greedy next token of each.

    Raises:
      RuntimeError: llama.cpp does not decode.
    """
    n, batch = 0, self.batch
    for sequence, (ids, first) in enumerate(zip(tokens, position, strict=True)):
      for offset, token in enumerate(ids):
        batch.token[n], batch.pos[n] = token, first + offset
        batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        batch.logits[n] = offset == len(ids) - 1
        n += 1
    batch.n_tokens = n
    status = llama_cpp.llama_decode(self.context, batch)
    if status:
      raise RuntimeError(f"llama.cpp does not decode: {status}")
    logits = llama_cpp.llama_get_logits(self.context)
    logits_SV = np.ctypeslib.as_array(logits, (len(tokens), self.vocab_size))
    return logits_SV.argmax(-1)

  def prefill(self, grid: Grid) -> np.ndarray:
    """Forget everything and read the prompts."""
    llama_cpp.llama_memory_clear(self.memory, False)
    return self.read([list(ids) for ids in grid.prompts], [0] * len(grid.prompts))

  def forget_answers(self, grid: Grid) -> None:
    """Cut the cache back to the prompts."""
    for sequence, ids in enumerate(grid.prompts):
      llama_cpp.llama_memory_seq_rm(self.memory, sequence, len(ids), -1)

  def answer(self, grid: Grid, first_tokens: np.ndarray) -> Rows:
    """Go on from the first tokens to the budget."""
    answers = [first_tokens]
    for step in range(grid.new_tokens - 1):
      position = [len(ids) + step for ids in grid.prompts]
      answers.append(self.read(answers[-1][:, None].tolist(), position))
    return np.stack(answers, axis=-1).tolist()


class LlamaCpp:
  """One file, with a context for each grid."""

  def __init__(self, work: Work, file: str, cache_type: int):
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(work.directory / file).encode(), params)
    if not model:
      raise RuntimeError(f"llama.cpp does not load {file}")
    self.contexts = {name: Context(model, grid, cache_type) for name, grid in work.grids.items()}

  def by_condition(self, grid: Grid) -> Rows:
    """Condition after condition, each with its own prefill."""
    context, rows = self.contexts[grid.name], []
    for vector_D in grid.vectors_CD:
      context.steer(grid, vector_D if grid.window == "all" else None)
      first_tokens = context.prefill(grid)
      context.steer(grid, vector_D)
      rows += context.answer(grid, first_tokens)
    return rows

  def by_condition_reusing(self, grid: Grid) -> Rows:
    """Condition after condition on one unedited prefill."""
    context, rows = self.contexts[grid.name], []
    context.steer(grid, None)
    first_tokens = context.prefill(grid)
    for vector_D in grid.vectors_CD:
      context.forget_answers(grid)
      context.steer(grid, vector_D)
      rows += context.answer(grid, first_tokens)
    return rows


def build(work: Work) -> dict[str, Arm]:
  """Load the files."""
  llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
  llama_cpp.llama_backend_init()
  SETTINGS["system"] = llama_cpp.llama_print_system_info().decode()
  arms = {}
  for name, file, dtype, cache_type in (
    ("f32", "model-f32.gguf", "float32", llama_cpp.GGML_TYPE_F32),
    ("q4_1", "model-q4_1.gguf", "Q4_1", llama_cpp.GGML_TYPE_F16),
    ("q8_0", "model-q8_0.gguf", "Q8_0", llama_cpp.GGML_TYPE_F16),
    ("q4_0", "model-q4_0.gguf", "Q4_0", llama_cpp.GGML_TYPE_F16),
  ):
    tool = LlamaCpp(work, file, cache_type)
    arms[name] = Arm(dtype, tool.by_condition)
    arms[f"reuse_{name}"] = Arm(dtype, tool.by_condition_reusing, grids=("20_generated",))
  return arms


if __name__ == "__main__":
  serve(build, SETTINGS)
