"""`pj.dose`: how large residuals are, block by block, so that doses can be given in units of them.

Measured on answer tokens of deployment-like length: the first tokens of a sequence (attention
sinks) and short prompts understate or overstate the norm, and BOS has a norm of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from persona_jax.data.hashing import content_hash
from persona_jax.edits.table import HEAD_SITE
from persona_jax.edits.window import Window
from persona_jax.engine.capture import Capture
from persona_jax.engine.model import Model
from persona_jax.personas.chat import Prompt, Raw

_MAX_SAMPLE = 512  # tokens kept to measure spreads: a standard deviation to about 3 %


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dose:
  """Sizes of the activations at one site of each block.

  Attributes:
    resid_L: float32 [L], median of ‖h‖ over the measured tokens; [L, N], of each head, at
      "head_out".
    sample_LND: float32 [L, N, D], activations of up to 512 of those tokens, evenly taken.
    num_tokens: tokens measured.
    provenance: model, data hash and token range; "prompts", how many were given, and "too_short",
      how many of them are not measured because their answers have no token behind the first `skip`.
    site: where it was measured; edits that take their amounts from it must act there.
  """

  resid_L: np.ndarray
  sample_LND: np.ndarray
  num_tokens: int
  provenance: dict[str, Any]
  site: str = "resid_post"

  def __repr__(self) -> str:
    norms = f"{self.resid_L.min():.3g} to {self.resid_L.max():.3g}"
    return f"<Dose at {self.site!r} of {self.num_tokens} tokens, median norms {norms}>"

  def sigma(self, block: int, unit_D: np.ndarray) -> float:
    """Return the standard deviation of the projection on a unit vector [D], in the units of h."""
    return float((self.sample_LND[block].astype(np.float64) @ np.asarray(unit_D, np.float64)).std())


def dose(
  model: Model,
  prompts: Sequence[Prompt],
  *,
  answer_tokens: int = 64,
  skip: int = 4,
  site: str = "resid_post",
) -> Dose:
  """Measure residual norms on the model's own greedy answers to harmless prompts.

  Args:
    model: the model, unedited.
    prompts: prompts or chats; those that end with an assistant message are measured on that answer.
    answer_tokens: length of the answers to generate for the others.
    skip: answer tokens to leave out at the beginning.
    site: where to read.

  Returns:
    A `Dose` over all blocks.

  Raises:
    ValueError: no prompt, or no answer longer than `skip`.
  """
  prompts = list(prompts)
  count = len(prompts)
  if not prompts or skip < 0:
    raise ValueError(f"dose needs prompts (got {len(prompts)}) and skip >= 0 (got {skip}).")
  raw = [p for p in prompts if isinstance(p, Raw)]
  if raw:
    raise ValueError("dose measures answers; give strings or chats, not pj.Raw.")
  chats = [[{"role": "user", "content": p}] if isinstance(p, str) else list(p) for p in prompts]  # type: ignore[arg-type]
  todo = [n for n, chat in enumerate(chats) if chat[-1]["role"] != "assistant"]
  answers = model.generate([chats[n] for n in todo], max_new_tokens=answer_tokens)
  for n, answer in zip(todo, answers, strict=True):
    if answer.text:
      chats[n] = [*chats[n], {"role": "assistant", "content": answer.text}]
  rows = [model.encode(chat) for chat in chats]
  keep = [n for n, row in enumerate(rows) if len(row.ids) - row.prompt_length > skip]
  if not keep:
    raise ValueError(f"no answer is longer than skip={skip} tokens; nothing can be measured.")
  chats, rows = [chats[n] for n in keep], [rows[n] for n in keep]
  reads = model.capture(chats, Capture((site,), reduce="all"))
  norms, samples, num_tokens = [], [], 0
  for block in range(model.arch.num_blocks):
    h_ND = np.concatenate(
      [reads[site, block][n, row.prompt_length + skip : len(row.ids)] for n, row in enumerate(rows)]
    )
    num_tokens = len(h_ND)
    parts = h_ND if site != HEAD_SITE else h_ND.reshape(num_tokens, model.arch.num_heads, -1)
    norms.append(np.median(np.linalg.norm(parts, axis=-1), axis=0))
    samples.append(h_ND[np.unique(np.linspace(0, num_tokens - 1, _MAX_SAMPLE).astype(int))])
  provenance = {
    "model_hash": model.identity.sha256,
    "data_hash": content_hash(chats),
    "window": str(Window(start=skip)),
    "site": site,
    "prompts": count,
    "too_short": count - len(chats),
  }
  return Dose(np.asarray(norms, np.float32), np.stack(samples), num_tokens, provenance, site)
