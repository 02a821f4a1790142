"""Control vectors exchanged with repeng and llama.cpp, on SmolLM2 in float32.

Two files: one of `pj.extract`, written here, and one that repeng trains and writes. Each steers
persona_jax, repeng and llama.cpp at the same blocks, on every token of the sixteen prompts. Answers
are greedy and must have the same tokens, or part where the other tool itself hardly prefers one.
llama.cpp reads both files with its own loader. The other tools run in the benchmark's environments.
"""

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import persona_jax as pj
from benchmarks.grid.environments import ENVIRONMENTS, ROOT
from benchmarks.grid.work import write_gguf, write_hf
from persona_jax.checkpoints.registry import registry_file
from persona_jax.personas.persona import load_questions
from tests.parity import llama_loader
from tests.parity.checks import Tally, compare_greedy
from tests.parity.prompts import PROMPTS

BLOCKS = range(10, 20)
STEPS = 32
QUESTIONS = 16
POLES = (
  "You are organized, thorough, punctual and hardworking.",
  "You are disorganized, careless, late and lazy.",
)
# Times its vectors; enough to change what is said, not to break it.
STRENGTH = {"ours": 0.5, "repeng": 2.0}
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Answer:
  """Greedy tokens of one prompt.

  Attributes:
    ids: the tokens, a stop token included.
    logits: of each step the largest logits, by token; empty of ours.
  """

  ids: list[int]
  logits: list[dict[int, float]]

  def lead(self, step: int, token: int) -> float:
    """Returns by how much the chosen token leads another; infinity if that is not near."""
    found = self.logits[step]
    return found[self.ids[step]] - found.get(token, -np.inf)


def _chat(system: str, question: str) -> list[dict[str, str]]:
  return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _run(environment: str, module: str, request: Path) -> None:
  """Runs the other end in its environment.

  Raises:
    subprocess.CalledProcessError: it failed; it has said why.
  """
  subprocess.run([ENVIRONMENTS[environment].python, "-m", module, request], cwd=ROOT, check=True)


def _read(path: Path) -> dict[str, list[Answer]]:
  return {
    name: [
      Answer(answer["ids"], [{int(i): v for i, v in top} for top in answer["top"]])
      for answer in answers
    ]
    for name, answers in json.loads(path.read_text()).items()
  }


def _ours(model: pj.Model, files: Mapping[str, Path]) -> dict[str, list[Answer]]:
  """Returns what we answer, plain and under each file."""
  edits: dict[str, Any] = {PLAIN: None}
  for name, file in files.items():
    direction = pj.load_direction(file, model=model)
    edits[name] = pj.add(direction, STRENGTH[name], unit="raw", blocks=BLOCKS, tokens="all")
  answers = {}
  for name, edit in edits.items():
    made = model.generate(
      list(PROMPTS.values()),
      edits=None if edit is None else [edit] * len(PROMPTS),
      max_new_tokens=STEPS,
    )
    answers[name] = [Answer(list(one.token_ids), []) for one in made]
  return answers


def _compare(
  tally: Tally, title: str, ours: Sequence[Answer], theirs: Sequence[Answer], limit: float
) -> None:
  same = 0
  with tally.group(title, 0) as group:
    for name, mine, other in zip(PROMPTS, ours, theirs, strict=True):
      same += compare_greedy(group, name, mine.ids, other.ids, other.lead, limit)
    total = sum(len(other.ids) for other in theirs)
    group.note = f"; {same} of {len(theirs)} identical, {total} tokens"


def _by_llama(
  tally: Tally, model: pj.Model, files: Mapping[str, Path], with_block_0: Path
) -> dict[str, np.ndarray]:
  """Returns the buffers that llama.cpp makes of the files that it reads."""
  buffers = {}
  with tally.group("control vectors, by llama.cpp's own loader", 0) as group:
    for name, file in files.items():
      buffer = llama_loader.load_control_vector(file, STRENGTH[name])
      group.equal(f"{name}: is read", buffer is not None, True)
      if buffer is not None:
        vectors = np.float32(STRENGTH[name]) * pj.load_direction(file, model=model).mean_LD[1:]
        group.equal(f"{name}: bits", buffer.tobytes() == vectors.tobytes(), True)
        buffers[name] = buffer
    refused = llama_loader.load_control_vector(with_block_0, 1.0) is None
    group.equal("a file with block 0: is refused", refused, True)
  return buffers


def check_exchange(tally: Tally, model: pj.Model, limit: float) -> None:
  """Control vectors of ours and of repeng, in three tools.

  Args:
    tally: takes the checks.
    model: SmolLM2 in float32.
    limit: margin of the other tool's logits up to which a token may differ.
  """
  with_llama = llama_loader.is_there()
  if not with_llama:
    print("  llama.cpp's loader has no wheel for this platform: llama.cpp is NOT steered here")
  missing = [
    ENVIRONMENTS[name].directory.name
    for name in ("steering", *(["llama"] if with_llama else []))
    if not ENVIRONMENTS[name].stamp.exists()
  ]
  if missing:
    with tally.group("control vectors, exchanged", 0) as group:
      group.equal("environments that are missing", missing, [])
    return
  questions = [question.text for question in load_questions("neutral")[:QUESTIONS]]
  pairs = [(_chat(POLES[0], q), _chat(POLES[1], q)) for q in questions]
  with tempfile.TemporaryDirectory() as folder:
    directory = Path(folder)
    files = {"ours": directory / "ours.gguf", "repeng": directory / "repeng.gguf"}
    positives, negatives = zip(*pairs, strict=True)
    direction = pj.extract(model, positives, negatives, method="diff_means", concept="C+")
    pj.write_directions(direction, files["ours"])
    with_block_0 = directory / "block_0.gguf"
    pj.write_directions(direction, with_block_0, block_0=True)
    write_hf(model, directory / "hf")
    write_gguf(registry_file(model.identity.name), directory / "model.gguf")
    request: dict[str, Any] = {
      "hf": f"{directory / 'hf'}",
      "gguf": f"{directory / 'model.gguf'}",
      "prompts": [[int(i) for i in model.encode(chat).ids] for chat in PROMPTS.values()],
      "pairs": [[model.chat.render(chat).text for chat in pair] for pair in pairs],
      "repeng_writes": f"{files['repeng']}",
      "files": {
        PLAIN: [None, 0.0], **{n: [f"{f}", STRENGTH[n]] for n, f in files.items()}
      },
      "blocks": [BLOCKS[0], BLOCKS[-1]],
      "steps": STEPS,
      "stop_ids": list(model.tokenizer.eos_ids),
    }  # fmt: skip

    def ask(environment: str, module: str, **more: Any) -> dict[str, list[Answer]]:
      answers, written = directory / f"{environment}.answers.json", directory / "request.json"
      written.write_text(json.dumps({**request, "answers": f"{answers}", **more}))
      _run(environment, module, written)
      return _read(answers)

    theirs = {"repeng": ask("steering", "tests.parity.repeng_side")}
    if with_llama:
      buffers: dict[str, str | None] = {PLAIN: None}
      for name, buffer in _by_llama(tally, model, files, with_block_0).items():
        buffers[name] = f"{directory / name}.npy"
        np.save(directory / f"{name}.npy", buffer)
      theirs["llama.cpp"] = ask("llama", "tests.parity.llama_side", buffers=buffers)
    ours = _ours(model, files)

  for tool, answers in theirs.items():
    _compare(tally, f"greedy tokens without edits, {tool}", ours[PLAIN], answers[PLAIN], limit)
    for name in [name for name in answers if name != PLAIN]:
      title = f"greedy tokens, {tool} steered by the file of {name}"
      _compare(tally, title, ours[name], answers[name], limit)
  with tally.group("what is said changes under the files", 0) as group:
    for name in files:
      moved = sum(a.ids != b.ids for a, b in zip(ours[name], ours[PLAIN], strict=True))
      group.equal(f"{name}: {moved} of {len(PROMPTS)}", moved >= len(PROMPTS) // 2, True)
