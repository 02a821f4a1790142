"""The core study's binary on a planted world, and the configs of the studies."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_jax.studies import persona_non_grata as product
from persona_jax.studies.trait_refusal_geometry import BankSettings
from tests.planted import files
from tests.planted.study import MODEL_FIELDS

ROOT = Path(__file__).parents[2]


def test_a_dry_run_prints_the_rows_of_every_part_and_writes_nothing(tmp_path: Path) -> None:
  files.main(["W1", str(tmp_path / "W1"), "--noise", "0.5", "--prompts", "24"])
  done = subprocess.run(
    [
      sys.executable, "experiments/persona_non_grata.py", "--dry_run",
      f"--config=configs/persona_non_grata_planted.py:{tmp_path / 'W1'}",
      f"--workdir={tmp_path / 'out'}", "--config.test_prompts=10", "--config.dose_prompts=4",
      "--config.control_prompts=5", "--config.confirm_prompts=4", "--config.over_prompts=3",
      f"--config.over={tmp_path / 'W1' / 'twins.jsonl'}", "--config.util_items=7",
      "--config.generate=('test', 'confirm')",
      "--config.spec_prompts=4", "--config.num_controls=20", "--config.matches=('proj', 'norm')",
      "--config.judges.fluency=True",
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")},
    capture_output=True,
    text=True,
    check=True,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  # B0, twelve personas of three replicates, prompted and steered by two matches.
  assert "test: 109 conditions x 10 prompts: 1090 exact first tokens" in lines
  assert "1,090 rows = 10 prompts x 109 conditions x 1 samples, W1 in float32" in lines
  # Of the confirm split, no more than its size is said.
  assert "confirm (when it is opened): 109 conditions x 4 prompts: 436 exact first tokens" in lines
  assert "over: 109 conditions x 3 prompts: 327 exact first tokens" in lines
  assert "mmlu: 109 conditions x 7 questions: 763 answers scored" in lines
  # B0 and five doses of both signs of C to N and of C+A; opposites have the same vectors.
  assert "dose: 61 conditions x 4 prompts: 244 exact first tokens" in lines
  # B0, 20 draws of two kinds, both signs of refusal and its ablation, and seven of each persona's
  # own: v, -v, its
  # part along refusal, those at right angles to it and to its span, two floors.
  assert "controls: 128 conditions x 5 prompts: 640 exact first tokens" in lines
  # Blocks 1 to 3, two windows, two rules of composites, five doses; twelve personas.
  assert "specification curve: 60 ways: 2880 exact first tokens at most" in lines
  # Of the test and the confirm split, which are generated.
  assert "fluency: 1526 answers scored under the unedited model, without a persona" in lines
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "name", ["persona_non_grata", "persona_non_grata_tiny", "persona_non_grata_planted"]
)
def test_a_config_has_the_settings_of_the_study_and_no_others(name: str) -> None:
  config = importlib.import_module(f"configs.{name}").get_config("somewhere").to_dict()
  assert config["model"] == "somewhere"
  fields = {key: value for key, value in config.items() if key not in MODEL_FIELDS}
  chosen = product.Settings.of(fields)
  assert (chosen.named, chosen.delta) == ("P12", 0.05)


def test_the_config_of_geometry_has_settings_of_the_study_and_of_the_bank() -> None:
  module = importlib.import_module("configs.trait_refusal_geometry")
  config = module.get_config().to_dict()
  bank = BankSettings.of(config.pop("bank"))
  fields = {key: value for key, value in config.items() if key not in MODEL_FIELDS}
  chosen = product.Settings.of(fields)
  assert bank.isotropic + bank.covariance + bank.components == 800
  assert bank.prompts <= chosen.test_prompts
  assert chosen.block is not None  # the census is at a given block
