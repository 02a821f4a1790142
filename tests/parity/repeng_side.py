"""What repeng writes, and what it answers under control vectors: the other end of `exchange.py`.

  .venv-bench-steering/bin/python -m tests.parity.repeng_side REQUEST.json

repeng trains a control vector by its own recipe on the request's texts and writes it. Then it reads
that file and ours again and answers under each, float32, each prompt by itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

import repeng
import torch
import transformers

TOP = 8  # logits kept of each step


def train(model: repeng.ControlModel, request: dict[str, Any]) -> None:
  """Writes repeng's control vector of the request's pairs of texts."""
  folder = Path(request["hf"])
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
  tokenizer.pad_token_id = 0
  tokenizer.model_input_names = ["input_ids", "attention_mask"]
  entries = [repeng.DatasetEntry(positive, negative) for positive, negative in request["pairs"]]
  repeng.ControlVector.train(model, tokenizer, entries, batch_size=8).export_gguf(
    request["repeng_writes"]
  )


def answer(
  model: repeng.ControlModel, prompt: list[int], steps: int, stop_ids: list[int]
) -> dict[str, Any]:
  """Returns the greedy tokens, and the largest logits that each was chosen from."""
  with torch.inference_mode():
    out = model.generate(
      input_ids=torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      max_new_tokens=steps,
      do_sample=False,
      eos_token_id=stop_ids,
      pad_token_id=0,
      output_logits=True,
      return_dict_in_generate=True,
    )
  tops = []
  for logits_1V in out.logits:
    value, index = logits_1V[0].topk(TOP)
    tops.append(list(zip(index.tolist(), value.tolist(), strict=True)))
  return {"ids": out.sequences[0, len(prompt) :].tolist(), "top": tops}


def main() -> None:
  request = json.loads(Path(sys.argv[1]).read_text())
  torch.set_num_threads(1)  # several spin where cores are busy
  plain = transformers.AutoModelForCausalLM.from_pretrained(
    request["hf"], dtype=torch.float32, attn_implementation="eager"
  )
  first, last = request["blocks"]
  model = repeng.ControlModel(plain.eval(), range(first, last + 1))
  train(model, request)
  answers = {}
  for name, (file, strength) in request["files"].items():
    model.reset()
    if file is not None:
      model.set_control(repeng.ControlVector.import_gguf(file), strength)
    answers[name] = [
      answer(model, prompt, request["steps"], request["stop_ids"]) for prompt in request["prompts"]
    ]
  Path(request["answers"]).write_text(json.dumps(answers))


if __name__ == "__main__":
  main()
