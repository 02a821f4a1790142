"""Every family against transformers, on random tiny configurations of it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

import persona_jax as pj
from tests.parity import family_numbers
from tests.parity.checks import Tally, relative_error
from tests.parity.reading import Reading, our_reading
from tests.parity.reference_model import Reference, tensor_shapes
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_families import CONFIGS, random_tensors, rows
from tests.reference.random_llama import vocabulary

LIMIT = 1e-5  # relative error of logits and residuals in float32
LOGPROB_LIMIT = 1e-4  # absolute, in nats
STEPS = 9  # tokens decoded with the cache: prompt and answer outgrow every window


def check_families(tally: Tally) -> dict[str, dict[str, Any]]:
  """Checks every configuration: logits, residuals at every block, decoding with the cache.

  Prints a table at the end. Returns the numbers to keep, by configuration.
  """
  table, numbers = [], {}
  for title, config in CONFIGS.items():
    shapes = tensor_shapes(config)
    tensors = random_tensors(config, shapes)
    reference = Reference(config, tensors)
    expected = [reference.read(row) for row in rows()]
    with tempfile.TemporaryDirectory() as directory:
      write_checkpoint(Path(directory), config, tensors, vocabulary(config), eos_token="<eos>")
      model = pj.load(directory)
    with (
      tally.group(f"{title}: logits", LIMIT, relative=True) as logits,
      tally.group(f"{title}: residuals", LIMIT, relative=True) as residuals,
    ):
      for n, (ours, theirs) in enumerate(zip(our_reading(model, rows()), expected, strict=True)):
        logits.check(f"row {n}", relative_error(ours.logits_TV, theirs.logits_TV))
        for block in range(reference.num_blocks):
          error = relative_error(ours.resid_LTD[block], theirs.resid_LTD[block])
          residuals.check(f"row {n}, block {block}", error)
    with tally.group(f"{title}: decoding with the cache, nats", LOGPROB_LIMIT) as cached:
      _check_cached(cached, model, reference)
    table.append((title, len(tensors), logits.worst, residuals.worst, cached.worst))
    numbers[title] = family_numbers.numbers_of(shapes, expected[0])
  print(f"\n{'family and configuration':54s} tensors   logits residuals  cached")
  for title, count, *errors in table:
    print(f"{title:54s} {count:7d} " + " ".join(f"{error:9.1e}" for error in errors))
  print()
  return numbers


def _check_cached(group: Any, model: pj.Model, reference: Reference) -> None:
  """Every token decoded with the cache is the best by transformers' full forward, as likely."""
  prompts = [pj.Raw(" ".join(f"w{i}" for i in row)) for row in rows()]
  answers = model.generate(prompts, max_new_tokens=STEPS, logprobs=True)
  for n, (row, answer) in enumerate(zip(rows(), answers, strict=True)):
    ids = list(answer.token_ids)
    logits_TV = reference.read([*row, *ids]).logits_TV[len(row) - 1 : -1].astype(np.float64)
    logprob_TV = scipy.special.log_softmax(logits_TV, axis=-1)
    chosen_T = logprob_TV[np.arange(len(ids)), ids]
    group.check(f"row {n}, log-probability", float(np.abs(chosen_T - answer.logprobs).max()))
    group.check(f"row {n}, greedy", float((logprob_TV.max(axis=-1) - chosen_T).max()))


def check_kept(tally: Tally, numbers: Mapping[str, dict[str, Any]]) -> None:
  """The committed file holds what transformers gives now."""
  kept = family_numbers.load()
  with tally.group(f"committed {family_numbers.GOLDEN.name}", 1e-5) as group:
    group.equal("configurations", list(kept), list(numbers))
    for title, item in numbers.items():
      group.equal(f"{title}, tensors", kept[title]["shapes"], item["shapes"])
      logits_V, resid_LD = family_numbers.arrays_of(item)
      for what, error in family_numbers.errors(
        kept[title], Reading(logits_V[None], resid_LD[:, None])
      ).items():
        group.check(f"{title}, {what}", error)
