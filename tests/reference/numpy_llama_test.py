"""The reference itself, held against numbers that transformers 5.23 computed in float64 (torch).

Those numbers are from `LlamaForCausalLM(...).double()` on `random_llama(2)`: logits of the last
token and greedy tokens. transformers takes norms, angles and softmax in float32 whatever the dtype,
which leaves differences near 1e-6.
"""

import numpy as np
import pytest

from tests.reference import numpy_llama as reference
from tests.reference.random_llama import random_llama

IDS = [0, 7, 93, 7, 54, 12, 12, 100]
UNTIED = (
  [-3.99651064, 1.28346557, -3.69813999, 1.73790585, -1.04079865, -0.33655155],
  [80, 80, 80, 57, 100, 80, 57, 49, 52, 67],
)
TIED = (
  [5.19205184, -9.15402085, 3.66437891, -2.73123955, 0.84483061, -1.75656281],
  [100, 100, 100, 73, 73, 73, 73, 73, 57, 57],
)


@pytest.mark.parametrize(("tied", "expected"), [(False, UNTIED), (True, TIED)])
def test_logits_and_greedy_tokens_are_those_of_transformers(
  tied: bool, expected: tuple[list[float], list[int]]
) -> None:
  config, tensors = random_llama(2, tied=tied)
  logits_TV = reference.forward(config, tensors, IDS).logits_TV
  np.testing.assert_allclose(logits_TV[-1, :6], expected[0], atol=1e-5)
  tokens, log_probs_NV = reference.greedy(config, tensors, IDS, 10, eos_ids=[1])
  assert tokens == expected[1]
  np.testing.assert_allclose(np.exp(log_probs_NV).sum(-1), 1, rtol=1e-12)


def test_a_hook_sees_every_site_of_every_block_in_order() -> None:
  config, tensors = random_llama()
  seen = []

  def hook(site: str, block: int, h_TD: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
    heads = (config["num_attention_heads"], config["head_dim"])
    assert h_TD.shape == (8, *(heads if site == "head_out" else (config["hidden_size"],)))
    assert list(positions_T) == list(range(8))
    seen.append((block, site))
    return h_TD

  hooked = reference.forward(config, tensors, IDS, hook)
  assert seen == [(block, site) for block in range(3) for site in reference.SITES]
  np.testing.assert_array_equal(hooked.logits_TV, reference.forward(config, tensors, IDS).logits_TV)


def test_edits_act_one_after_another_inside_their_window() -> None:
  config, tensors = random_llama()
  v_D = np.random.default_rng(0).normal(size=config["hidden_size"])
  unit_D = v_D / np.linalg.norm(v_D)
  edits = [
    reference.Edit(reference.set_to(v_D, 3.0), (1,), start=-2, stop=1),
    reference.Edit(reference.add(unit_D, 0.5), (1,), start=-2, stop=0),
    reference.Edit(reference.cap(v_D, 3.25), (1,), start=-1),
  ]
  hook = reference.edit_hook(edits, prompt_length=6)
  edited_TD = reference.forward(config, tensors, IDS, hook).resid_post_LTD[1]
  plain_TD = reference.forward(config, tensors, IDS).resid_post_LTD[1]
  np.testing.assert_array_equal(edited_TD[:4], plain_TD[:4])
  capped = min(3.25, plain_TD[7] @ unit_D)  # offset 1 is outside the first window
  np.testing.assert_allclose(edited_TD[4:] @ unit_D, [3.5, 3.25, 3.0, capped], rtol=1e-12)


def test_what_is_no_plain_llama_is_refused() -> None:
  config, tensors = random_llama()
  with pytest.raises(ValueError, match="attention_bias"):
    reference.forward({**config, "attention_bias": True}, tensors, IDS)
  with pytest.raises(ValueError, match=r"lm_head\.weight"):
    reference.forward({**config, "tie_word_embeddings": True}, tensors, IDS)
