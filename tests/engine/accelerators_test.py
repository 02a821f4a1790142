"""Plans for an accelerator that is not here, of a model whose weights are not here."""

import shutil

import pytest
import tokenizers

import persona_jax as pj
from benchmarks.gpu_model import LARGE, TEMPLATE, make_grids
from benchmarks.grid.ours import edits_of
from persona_jax.checkpoints.checkpoint import Identity
from persona_jax.checkpoints.tokenizer import Tokenizer
from persona_jax.engine.accelerators import ACCELERATORS, Clock, duration
from persona_jax.models.families import family
from persona_jax.models.params import placed_params
from persona_jax.personas.chat import Chat


@pytest.fixture
def bare(tiny, tmp_path):
  """A copy of the tiny model's directory without its weights."""
  shutil.copytree(tiny.directory, tmp_path / "bare")
  (tmp_path / "bare" / "model.safetensors").unlink()
  return tmp_path / "bare"


def grid(**options):
  conditions = [pj.Condition("a"), pj.Condition("b", system="w7 w8")]
  return pj.Grid(["w5 w6", "w9"], conditions, max_new_tokens=8, **options)


def test_a_model_without_weights_is_planned_like_one_with_them(tiny, bare):
  shapes = pj.load(bare, dtype="float32", weights=False)
  found, expected = pj.plan(shapes, grid()), pj.plan(tiny.model, grid())
  assert str(found) == str(expected).replace(tiny.model.identity.name, shapes.identity.name)
  assert (found.row_tokens, found.params_bytes) == (expected.row_tokens, expected.params_bytes)


def test_a_model_without_weights_is_not_run(bare, tmp_path):
  shapes = pj.load(bare, dtype="float32", weights=False)
  message = "loaded without weights"
  with pytest.raises(ValueError, match=message):
    shapes.generate(["w5"], max_new_tokens=1)
  with pytest.raises(ValueError, match=message):
    shapes.score(["w5"], ["w6"])
  with pytest.raises(ValueError, match=message):
    shapes.capture(["w5"], pj.Capture())
  with pytest.raises(ValueError, match=message):
    pj.run(shapes, grid(), out=tmp_path / "run")
  with pytest.raises(FileNotFoundError):
    pj.load(bare, dtype="float32")


@pytest.fixture(scope="module")
def llama_8b() -> pj.Model:
  """Shapes of Llama-3.1-8B, with the words of the benchmark."""
  arch = family("llama").parse(LARGE.config)
  words = {f"w{n}": n for n in range(arch.vocab_size)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = Tokenizer(backend, chat_template=TEMPLATE)
  return pj.Model(
    placed_params(arch, "bfloat16"), arch, tokenizer, Chat.of(tokenizer),
    Identity("8B", "", "", "BF16", "bfloat16"), "bfloat16", "float32", None, "{}",
  )  # fmt: skip


# BENCHMARKS.md, "On one GPU": tokens of the grid over its first run's tokens a second.
@pytest.mark.parametrize(
  ("name", "rows", "measured"),
  [("all_tokens", 256, 256 * 64 / 17_747), ("20_generated", 160, 160 * 64 / 14_600)],
)
def test_the_grids_of_the_benchmark_take_what_was_measured(llama_8b, name, rows, measured):
  work = make_grids(llama_8b, LARGE)[name]
  conditions = [
    pj.Condition(f"c{n}", edits=edit) for n, edit in enumerate(edits_of(llama_8b, work))
  ]
  plan = pj.plan(llama_8b, pj.Grid(list(work.texts), conditions, max_new_tokens=64), on="h200")
  assert len(plan.row_tokens) == rows
  assert plan.seconds == pytest.approx(measured, rel=0.15)
  assert f"{duration(plan.seconds)} estimated on one NVIDIA H200" in str(plan)
  assert plan.memory_bytes == int(0.9 * (139 << 30))


def test_a_step_of_256_rows_of_8b_is_what_was_measured(llama_8b):
  step = Clock(llama_8b.params, llama_8b.arch, ACCELERATORS["h200"]).decode(256, 1, own=32)
  assert step == pytest.approx(10.1e-3, rel=0.05)  # BENCHMARKS.md, "On one GPU"


def test_unknown_accelerators_and_other_types_are_refused(tiny):
  with pytest.raises(
    ValueError, match=r"accelerator 'a100' is unknown; known are \['h100', 'h200'"
  ):
    pj.plan(tiny.model, grid(), on="a100")
  with pytest.raises(ValueError, match="weights of 32 bits: the figures of NVIDIA H200"):
    pj.plan(tiny.model, grid(), on="h200")


def test_durations_have_the_unit_that_fits():
  assert [duration(s) for s in (7200, 90, 5)] == ["2.0 h", "1.5 min", "5.0 s"]
