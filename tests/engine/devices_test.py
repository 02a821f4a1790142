"""Programs are compiled for the device that the model lies on; two_devices.py runs with two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "two_devices.py"


@pytest.fixture(scope="module")
def record() -> dict:
  program = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=SCRIPT.parents[2], capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["moved", "default"])
def test_a_model_on_the_second_device_runs_there(record, how):
  assert record[how]["tokens"] == record["first"]["tokens"]
  assert record[how]["scores"] == pytest.approx(record["first"]["scores"], rel=1e-5)
  assert record[how]["reads"] == pytest.approx(record["first"]["reads"], rel=1e-5)
  assert record[how]["devices"] == [1]


def test_a_model_says_where_it_lies(record):
  assert record["models"] == [0, 1, 1]


def test_programs_made_ahead_are_for_the_models_device(record):
  assert record["first"]["devices"] == [0]
  assert record["compiled ahead"] > 0


def test_a_plan_is_for_the_models_device(record):
  assert record["plan"] == {"devices": [1], "more in the run": 0}
