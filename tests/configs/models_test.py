"""Configs of large models by their short names: every study takes them, planned without weights."""

import importlib

import pytest

import persona_jax as pj
from configs import models
from configs.sweeps import core_study
from persona_jax.studies import extraction, persona_non_grata, reasoning_traces
from persona_jax.studies.trait_refusal_geometry import BankSettings, describe

MODEL_FIELDS = ("model", "dtype", "resid_dtype", "system_default", "chat_template")
CONFIGS = ("persona_non_grata", "trait_refusal_geometry", "extract_directions", "reasoning_traces")


def config_of(name: str, model: str) -> tuple[dict, dict]:
  """Returns the fields of the model, and those of the study."""
  config = importlib.import_module(f"configs.{name}").get_config(model).to_dict()
  config.pop("judges", None)
  return {k: config.pop(k) for k in MODEL_FIELDS}, config


def settings_of(name: str, fields: dict) -> object:
  if name == "trait_refusal_geometry":
    bank, fields = fields["bank"], {k: v for k, v in fields.items() if k != "bank"}
    settings = persona_non_grata.Settings.of(fields)
    assert BankSettings.of(bank).prompts <= settings.test_prompts
    return settings
  study = {"extract_directions": extraction, "reasoning_traces": reasoning_traces}
  return study.get(name, persona_non_grata).Settings.of(fields)


@pytest.fixture(scope="module")
def shapes() -> pj.Model:
  return pj.load("smollm2-135m-instruct", dtype="bfloat16", weights=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model", models.LARGE)
def test_every_study_takes_every_large_model(name: str, model: str) -> None:
  about, fields = config_of(name, model)
  assert "/" in about["model"]  # a hub id
  assert (about["dtype"], about["resid_dtype"]) == ("bfloat16", "float32")
  settings = settings_of(name, fields)
  # Which block is steered, or trained at, depends on the model: none is given.
  assert getattr(settings, "train_block" if name == "extract_directions" else "block") is None
  wanted = "user" if model == "r1_distill_qwen_32b" or name == "reasoning_traces" else "system"
  assert settings.persona_in == wanted
  # Qwen's own template says who it is to a chat without a system message.
  if model == "qwen25_32b" and name != "reasoning_traces":
    assert about["system_default"] == "empty" and about["chat_template"] is None


@pytest.mark.parametrize("name", CONFIGS)
def test_any_other_text_is_the_model_itself(name: str) -> None:
  about, fields = config_of(name, "some/where.gguf")
  assert about["model"] == "some/where.gguf" and about["chat_template"] is None
  settings_of(name, fields)


@pytest.mark.parametrize("model", [m for m in models.NAMES if m != "r1_distill_qwen_32b"])
def test_models_that_do_not_think_are_made_to_begin_a_thought(model: str) -> None:
  about, fields = config_of("reasoning_traces", model)
  template = about["chat_template"]
  chat = pj.load(
    "smollm2-135m-instruct", dtype="bfloat16", weights=False, chat_template=template
  ).chat
  asked = chat.render("Hello.")
  assert asked.opens_thought and asked.text.count("Hello.") == 1
  assert fields["at_budget"] == "closed"
  # Behind a thought an answer goes on: its turn is the last and does not end.
  behind = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Well.\n</think>"},
  ]
  whole = chat.render(behind).text
  assert whole.startswith(asked.text.removesuffix("<think>\n"))


def test_the_model_that_thinks_begins_thoughts_by_itself() -> None:
  assert config_of("reasoning_traces", "r1_distill_qwen_32b")[0]["chat_template"] is None
  assert "</think>" in config_of("persona_non_grata", "r1_distill_qwen_32b")[0]["chat_template"]


def test_dry_runs_need_no_weights(shapes: pj.Model) -> None:
  settings = settings_of("extract_directions", config_of("extract_directions", "llama31_8b")[1])
  lines = extraction.describe(shapes, settings, extraction.load_contrasts(settings)).splitlines()
  # Five traits and C+ A+ from texts, three wordings, both sides; eight questions and four.
  assert "extract: 288 rows read at resid_post of every block" in lines
  assert "evidence: 144 rows that no direction is made of" in lines
  assert "coefficients: 63 conditions x 12 answers of up to 128 tokens" in lines
  fields = config_of("reasoning_traces", "r1_distill_qwen_32b")[1]
  traces = reasoning_traces.Settings.of(fields | {"prompts": 2, "named": ("P12",)})
  with pytest.raises(ValueError, match="at_block"):
    reasoning_traces.describe(shapes, traces, reasoning_traces.load_items(traces))
  at = traces.at_block(shapes.arch.num_blocks)
  assert at.block == 18  # three fifths of 30
  text = reasoning_traces.describe(shapes, at, reasoning_traces.load_items(at), "h200")
  assert text.count("estimated on one NVIDIA H200") == 2
  with pytest.raises(ValueError, match="block=30: the model has blocks 0 to 29"):
    reasoning_traces.Settings.of(fields | {"block": 30}).at_block(30)


def test_a_block_that_is_chosen_is_said_to_be() -> None:
  fields = config_of("trait_refusal_geometry", "llama31_8b")[1]
  bank = BankSettings.of(fields.pop("bank"))
  material = persona_non_grata.load_material(persona_non_grata.Settings.of(fields))
  text = describe(bank, material, 32, None)
  assert text.startswith("1008 directions (50 personas, 150 replicates, 8 placebo")
  assert "census at the block that is chosen, dose 0.2" in text


def test_the_sweep_has_every_model_then_compares_then_has_traces() -> None:
  runs = core_study.get_config().runs
  names = [run["name"] for run in runs]
  assert names == [
    *models.LARGE, *(f"{name} compared" for name in models.LARGE), "r1_distill_qwen_32b-traces"
  ]  # fmt: skip
  for run in runs:
    path, model = run["config"].split(":")
    module = path.removesuffix(".py").replace("/", ".")
    assert importlib.import_module(module).get_config(model).model.count("/") == 1
  assert len({run["directory"] for run in runs}) == 5
  assert [r["binary"] for r in core_study.get_config("qwen25_32b").runs] == ["persona_non_grata"]
