"""Compares persona_jax with PyTorch and Hugging Face transformers on the real weights, live.

  make parity                  every check; writes smollm2_reference.json if all pass
  make parity ARGS=--check     the same, and compares the committed file instead of writing it
  make parity ARGS=--only-exchange   control vectors between us, repeng and llama.cpp, nothing else

Both sides get the same dequantised tensors and run in float32 on the CPU; transformers' attention
is the eager one. One line a group of checks, with the worst error and where it was; the last line
adds up, and the exit code is 1 if anything failed. An error is ‖ours − reference‖ / ‖reference‖
over all tokens of a prompt.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers

import persona_jax as pj
from persona_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from persona_jax.checkpoints.registry import registry_file
from persona_jax.personas.chat import Chat, Prompt
from tests.parity import family_numbers, gemma, reference_numbers
from tests.parity.checks import Tally, compare_greedy, relative_error
from tests.parity.exchange import check_exchange
from tests.parity.families import check_families, check_kept
from tests.parity.judges import check_judges
from tests.parity.prompts import CONTINUATIONS, PROMPTS, STEERED, prompts_hash
from tests.parity.reading import Edits, Reading, our_reading
from tests.parity.reference_model import Reference, Steering
from tests.reference import make_chat_reference, make_tokenizer_reference
from tests.reference.chat_templates import CHATS, TEMPLATES

MODEL = "smollm2-135m-instruct"
LIMIT = 1e-5  # relative error of logits and residuals in float32
LOGPROB_LIMIT = 1e-4  # absolute, in nats
DRIFT_FACTOR = 1.5  # our bfloat16 error, in units of PyTorch's
GREEDY_STEPS, STEERED_STEPS = 64, 32
STEERED_BLOCK = 15
GEMMA_STEPS = 24

Ids = dict[str, list[int]]
Greedy = dict[str, tuple[list[int], np.ndarray]]  # prompt → new ids, logits [n, V] they came from


def check_text(tally: Tally, checkpoint: Checkpoint, model: pj.Model) -> None:
  """Chat templates against `apply_chat_template`, token ids against tiktoken."""
  with tally.group("chat templates, rendered by transformers", 0) as group:
    for name, texts in make_chat_reference.render_all().items():
      template, bos, eos = TEMPLATES[name]
      for title, text in texts.items():
        try:
          ours = Chat(template, bos, eos).render(CHATS[title]).text
        except ValueError:
          ours = None  # as the reference, which has None where the template raised
        group.equal(f"template {name}, chat {title!r}", ours, text)
    tokenizer = _template_only_tokenizer(checkpoint)
    for name, chat in PROMPTS.items():
      started = chat[-1]["role"] == "assistant"
      expected = tokenizer.apply_chat_template(
        [dict(message) for message in chat],
        tokenize=False,
        add_generation_prompt=not started,
        continue_final_message=started,
      )
      rendered = model.chat.render(chat)
      group.equal(f"prompt {name!r}", rendered.text + rendered.answer, expected)

  with tally.group("token ids, by tiktoken", 0) as group:
    gguf = registry_file(MODEL)
    checked, group.failed = make_tokenizer_reference.check_tokenizer(gguf)
    group.passed = checked - group.failed
    fields = make_tokenizer_reference.read_tokenizer_fields(gguf)
    encode = make_tokenizer_reference.reference_encoder(fields, "smollm")
    for name, chat in PROMPTS.items():
      rendered = model.chat.render(chat)
      ids = encode(rendered.text) + encode(rendered.answer)
      group.equal(f"prompt {name!r}", [int(i) for i in model.encode(chat).ids], ids)


def _template_only_tokenizer(checkpoint: Checkpoint) -> transformers.PreTrainedTokenizerFast:
  """Returns transformers' tokenizer class with the file's chat template and nothing else of it."""
  import tokenizers

  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x")),
    chat_template=checkpoint.tokenizer.chat_template,
  )


def check_weights(tally: Tally, reference: Reference, model: pj.Model) -> None:
  """The reference itself: it reads English, so the tensors were not permuted on the way."""
  text = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid."
  )
  ids = model.tokenizer.encode(text)
  nats = -float(np.mean(reference.score(ids[:1], ids[1:])))
  with tally.group("the tensors make sense: nats a token of plain English", 2.0) as group:
    group.check("transformers", nats)


def check_passes(
  tally: Tally, reference: Reference, model: pj.Model, ids: Ids, *, note: str = ""
) -> dict[str, Reading]:
  """Logits and residuals of each prompt by itself, and of all in one padded batch."""
  theirs = {name: reference.read(row) for name, row in ids.items()}
  passes = {
    "each prompt alone": lambda: [our_reading(model, [row])[0] for row in ids.values()],
    "one padded batch": lambda: our_reading(model, list(ids.values())),
  }
  for title, run in passes.items():
    with (
      tally.group(f"{note}residual after every block, {title}", LIMIT, relative=True) as residuals,
      tally.group(f"{note}logits, {title}", LIMIT, relative=True) as logits,
    ):
      tokens = []
      for name, ours in zip(ids, run(), strict=True):
        expected = theirs[name]
        logits.check(repr(name), relative_error(ours.logits_TV, expected.logits_TV))
        for block in range(reference.num_blocks):
          error = relative_error(ours.resid_LTD[block], expected.resid_LTD[block])
          residuals.check(f"{name!r}, block {block}", error)
        tokens.append(_token_errors(ours.resid_LTD, expected.resid_LTD).max())
      residuals.note = f"; worst single token {max(tokens):.1e}"
  return theirs


def _token_errors(ours_LTD: np.ndarray, reference_LTD: np.ndarray) -> np.ndarray:
  difference_LTD = ours_LTD.astype(np.float64) - reference_LTD
  return np.linalg.norm(difference_LTD, axis=-1) / np.linalg.norm(reference_LTD, axis=-1)


def check_greedy(
  tally: Tally,
  title: str,
  reference: Reference,
  model: pj.Model,
  ids: Ids,
  steps: int,
  *,
  edits: Edits | None = None,
  steerings: Mapping[str, Steering] | None = None,
  prompts: Mapping[str, Prompt] = PROMPTS,
) -> Greedy:
  """Greedy tokens are identical, or part where the reference itself hardly prefers one."""
  same = 0
  with tally.group(f"greedy tokens, {title}", 0) as group:
    answers = model.generate([prompts[name] for name in ids], edits=edits, max_new_tokens=steps)
    references = {
      name: reference.greedy(row, steps, model.tokenizer.eos_ids, (steerings or {}).get(name))
      for name, row in ids.items()
    }
    for name, answer in zip(ids, answers, strict=True):
      expected, logits_nV = references[name]

      def lead(step: int, token: int, expected=expected, logits_nV=logits_nV) -> float:
        return float(logits_nV[step, expected[step]] - logits_nV[step, token])

      same += compare_greedy(
        group, name, answer.token_ids, expected, lead, reference_numbers.NEAR_TIE
      )
    total = sum(len(expected) for expected, _ in references.values())
    closest = min(float(_gaps(logits_nV).min()) for _, logits_nV in references.values())
    group.note = (
      f"; {same} of {len(answers)} identical, {total} tokens, closest call of the reference "
      f"{closest:.1e}"
    )
  return references


def _gaps(logits_nV: np.ndarray) -> np.ndarray:
  """Returns by how much the largest logit leads the next one, [n]."""
  top_n2 = np.partition(logits_nV, -2, axis=-1)[:, -2:]
  return top_n2[:, 1] - top_n2[:, 0]


def check_scores(tally: Tally, reference: Reference, model: pj.Model, ids: Ids) -> None:
  """`model.score`, token by token."""
  pairs = [(name, text) for name in PROMPTS for text in CONTINUATIONS]
  prompts, texts = [PROMPTS[name] for name, _ in pairs], [text for _, text in pairs]
  with tally.group("log-probabilities, nats a token", LOGPROB_LIMIT) as group:
    ours = model.score(prompts, texts, per_token=True)
    for (name, text), ours_n in zip(pairs, ours, strict=True):
      expected_n = reference.score(ids[name], model.tokenizer.encode(text))
      group.check(f"{name!r}, {text[:12]!r}", float(np.max(np.abs(ours_n - expected_n))))


def check_steered(tally: Tally, reference: Reference, model: pj.Model, ids: Ids) -> None:
  """`pj.add` on answer tokens against a hook that adds the same vector."""
  v_SLD = np.random.default_rng(0).normal(size=(1, model.arch.num_blocks, model.arch.width))
  names, block = list(STEERED), STEERED_BLOCK
  typical = np.median(
    np.linalg.norm(reference.read(ids["open question"]).resid_LTD[block], axis=-1)
  )
  v_SLD *= typical / np.linalg.norm(v_SLD, axis=-1, keepdims=True)
  direction = pj.Direction(v_SLD, "random")
  edits = [pj.add(direction, c, unit="raw", blocks=block) for c in STEERED.values()]
  ends = [model.encode(PROMPTS[name]).prompt_length for name in names]
  steerings = {
    name: Steering(block, coef * direction.mean_LD[block], end - 1)
    for (name, coef), end in zip(STEERED.items(), ends, strict=True)
  }
  theirs = check_greedy(
    tally,
    f"pj.add at block {block}",
    reference,
    model,
    {name: ids[name] for name in names},
    STEERED_STEPS,
    edits=edits,
    steerings=steerings,
  )

  whole = {name: [*ids[name], *theirs[name][0]] for name in names}
  ours = our_reading(model, list(whole.values()), edits=edits, ends=ends)
  with (
    tally.group(f"logits, pj.add at block {block}", LIMIT, relative=True) as logits,
    tally.group(f"residuals, pj.add at block {block}", LIMIT, relative=True) as residuals,
    tally.group("the steered pass differs from the plain one", 0) as effect,
  ):
    for name, reading in zip(names, ours, strict=True):
      expected = reference.read(whole[name], steerings[name])
      plain = reference.read(whole[name])
      logits.check(repr(name), relative_error(reading.logits_TV, expected.logits_TV))
      for i in range(reference.num_blocks):
        error = relative_error(reading.resid_LTD[i], expected.resid_LTD[i])
        residuals.check(f"{name!r}, block {i}", error)
      moved = relative_error(reading.logits_TV, plain.logits_TV)
      effect.equal(f"{name!r} moved by {moved:.1e}", moved > 1e-2, True)


def check_drift(
  tally: Tally, checkpoint: Checkpoint, theirs: Mapping[str, Reading], ids: Ids
) -> None:
  """bfloat16 against float32: ours loses no more than PyTorch does."""
  tensors = {name: checkpoint.read(name) for name in checkpoint.names}
  with tally.group("bfloat16 drift, ours by PyTorch's", DRIFT_FACTOR) as group:
    half = Reference(checkpoint.config, tensors, torch.bfloat16)
    errors = {"PyTorch": [_drift(half.read(row), theirs[name]) for name, row in ids.items()]}
    for title, resid_dtype in (("ours", "bfloat16"), ("ours, float32 residual", "float32")):
      model = pj.load(MODEL, dtype="bfloat16", resid_dtype=resid_dtype)
      readings = our_reading(model, list(ids.values()))
      errors[title] = [_drift(r, theirs[name]) for name, r in zip(ids, readings, strict=True)]
    mean = {title: np.mean(rows, axis=0) for title, rows in errors.items()}
    for title, rows in errors.items():
      worst = np.max(rows, axis=0)
      print(
        f"  bfloat16, {title}: logits off by {mean[title][0]:.4f} on average, {worst[0]:.4f} at "
        f"worst; last block's residual {mean[title][1]:.4f}, {worst[1]:.4f}"
      )
    for title in list(errors)[1:]:
      for what, ratio in zip(("logits", "residual"), mean[title] / mean["PyTorch"], strict=True):
        group.check(f"{title}, {what}", float(ratio))


def _drift(reading: Reading, exact: Reading) -> tuple[float, float]:
  return (
    relative_error(reading.logits_TV, exact.logits_TV),
    relative_error(reading.resid_LTD[-1], exact.resid_LTD[-1]),
  )


def check_committed(tally: Tally, theirs: Mapping[str, Reading], numbers: dict[str, Any]) -> None:
  """The committed file holds what the reference gives now."""
  kept = reference_numbers.load()
  with tally.group(f"committed {reference_numbers.GOLDEN.name}", 1e-4) as group:
    for key in ("model_sha256", "prompts_sha256", "dtype"):
      group.equal(key, kept[key], numbers[key])
    for name, item in kept["prompts"].items():
      reading = theirs[name]
      errors = reference_numbers.relative_errors(
        item, reading.logits_TV[-1], reading.resid_LTD[:, -1]
      )
      for what, error in errors.items():
        group.check(f"{name!r}, {what}", error)
      settled = reference_numbers.settled_ids(item, GREEDY_STEPS)
      fresh = numbers["prompts"][name]["greedy_ids"][: len(settled)]
      group.equal(f"{name!r}, greedy ids", settled, fresh)


def check_gemma(tally: Tally) -> None:
  """Gemma 3 270M, a base model, on plain texts; one is longer than its window."""
  checkpoint = open_checkpoint(gemma.MODEL)
  gemma.check_token_ids(tally, checkpoint)
  model = pj.load(gemma.MODEL, dtype="float32")
  reference = Reference(
    checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names}
  )
  prompts = {name: pj.Raw(text) for name, text in gemma.TEXTS.items()}
  ids = {name: [int(i) for i in model.encode(prompt).ids] for name, prompt in prompts.items()}
  longest, window = max(map(len, ids.values())), max(k.window or 0 for k in model.arch.kinds)
  with tally.group(f"{gemma.MODEL}: a text of {longest} tokens, window {window}", 0) as group:
    group.equal("longer than the window", longest > window > 0, True)
  note = f"{gemma.MODEL}: "
  check_passes(tally, reference, model, ids, note=note)
  title = f"{gemma.MODEL}, {GEMMA_STEPS}"
  check_greedy(tally, title, reference, model, ids, GEMMA_STEPS, prompts=prompts)


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--check", action="store_true", help="compare the committed file, not write")
  parser.add_argument("--only-exchange", action="store_true", help="only control vectors")
  parser.add_argument("--only-judges", action="store_true", help="only judges behind an endpoint")
  args = parser.parse_args()
  print(
    f"persona_jax {pj.__version__} on JAX {jax.__version__}, against transformers "
    f"{transformers.__version__} on PyTorch {torch.__version__}; {MODEL}, {len(PROMPTS)} prompts"
  )
  # OpenMP threads spin: on two busy cores a token took 0.1 s with one thread, 0.9 s with two.
  torch.set_num_threads(1)
  tally = Tally()
  checkpoint = open_checkpoint(MODEL)
  model = pj.load(MODEL, dtype="float32")
  if args.only_exchange:
    check_exchange(tally, model, reference_numbers.NEAR_TIE)
    return 1 if tally.failed else 0
  if args.only_judges:
    check_judges(tally, model)
    return 1 if tally.failed else 0
  reference = Reference(
    checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names}
  )
  ids = {name: [int(i) for i in model.encode(chat).ids] for name, chat in PROMPTS.items()}

  check_text(tally, checkpoint, model)
  family_results = check_families(tally)
  check_weights(tally, reference, model)
  theirs = check_passes(tally, reference, model, ids)
  title = f"{GREEDY_STEPS} at most, one call"
  greedy = check_greedy(tally, title, reference, model, ids, GREEDY_STEPS)
  check_scores(tally, reference, model, ids)
  check_steered(tally, reference, model, ids)
  check_drift(tally, checkpoint, theirs, ids)
  check_exchange(tally, model, reference_numbers.NEAR_TIE)
  check_judges(tally, model)
  gemma.check_multimodal(tally)
  del reference
  check_gemma(tally)

  numbers = {
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "dtype": "float32",
    "model": MODEL,
    "model_sha256": model.identity.sha256,
    "prompts_sha256": prompts_hash(),
    "prompts": {
      name: reference_numbers.numbers_of(
        len(ids[name]),
        theirs[name].logits_TV[-1],
        theirs[name].resid_LTD[:, -1],
        greedy[name][0],
        _gaps(greedy[name][1]),
      )
      for name in PROMPTS
    },
  }
  if args.check:
    check_committed(tally, theirs, numbers)
    check_kept(tally, family_results)
  elif not tally.failed:
    reference_numbers.write(numbers)
    family_numbers.write(family_results)
    print(f"wrote {reference_numbers.GOLDEN.name} and {family_numbers.GOLDEN.name}")
  print(
    f"parity: worst relative error {tally.worst:.2e}, {tally.passed} checks passed, "
    f"{tally.failed} failed"
  )
  return 1 if tally.failed else 0


if __name__ == "__main__":
  raise SystemExit(main())
