"""Sharding: the rules, every family on eight forced host devices, one saved and moved there."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

import persona_jax as pj
from persona_jax import sharding

SCRIPT = Path(__file__).parent / "eight_devices.py"


def run_script(*arguments: str) -> list[dict]:
  root = SCRIPT.parents[2]
  program = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
  done = subprocess.run(
    [sys.executable, "-c", program, *arguments],
    cwd=root, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def records() -> list[dict]:
  return run_script()


def test_every_family_on_every_mesh_gives_the_numbers_of_one_device(records):
  assert len(records) == 5 * 4
  for record in records:
    assert record["logits"] <= 1e-5 and record["residuals"] <= 1e-5, record
    assert record["same_tokens"], record


def test_parameters_and_rows_are_split_as_the_rules_say(records):
  for record in records:
    data, model, parts = record["data"], record["model"], record["parts"]
    assert {parts[n] for n in ("q_DNH", "gate_DF", "down_FD", "o_NHD", "embed_VD")} == {model}
    assert parts["k_DKH"] == (
      model if model <= 2 else 1
    )  # two key heads: then each device has both
    assert parts["attn_norm_D"] == 1
    assert record["rows_split"] == data


def test_edit_kernel_runs_on_each_device_s_rows():
  records = run_script("kernel")
  assert [record["rows"] for record in records] == [8, 6]  # six do not divide: each device has all
  for record in records:
    assert record["kernel"] == "mosaic_tpu"
    assert record["error"] <= 1e-4 < 1 < record["effect"], record


def test_a_vector_is_trained_with_rows_split_over_devices():
  (record,) = run_script("training")
  assert record["error"] <= 1e-4 and record["size"] > 0.01
  assert record["share"] < 0.3  # of a step's work, on each of four devices


def test_attention_kernel_runs_on_each_device_s_rows_and_heads():
  (record,) = run_script("attention")
  assert record["error"] <= 2e-6


def test_a_plan_counts_the_bytes_of_one_device():
  for record in run_script("memory"):
    assert record["params_counted"] == record["params"] <= record["all_params"]
    assert record["counted"] == record["seen"] <= record["whole"], record
    if record["model"] < 8:  # 8 does not divide the two key heads
      assert record["seen"] < record["whole"], record
    else:
      assert record["params"] < record["peak"] < record["all_params"], record


class Mesh:
  """As much of a mesh as the rules look at."""

  axis_names = ("data", "model")

  def __init__(self, data, model):
    self.shape = {"data": data, "model": model}


def test_axes_that_do_not_divide_are_whole():
  mesh = Mesh(2, 4)
  assert sharding.spec("DNH", (10, 8, 6), mesh) == PartitionSpec(None, "model", None)
  assert sharding.spec("DKH", (10, 2, 6), mesh) == PartitionSpec(None, None, None)
  assert sharding.spec("BTD", (6, 5, 4), mesh) == PartitionSpec("data", None, None)
  assert sharding.spec("BTD", (5, 5, 4), mesh) == PartitionSpec(None, None, None)


def test_mesh_that_divides_nothing_is_refused_with_those_that_fit():
  sizes = {"N": 4, "K": 2, "F": 54, "V": 101, "D": 8}
  with pytest.raises(ValueError, match=r"8 ways.*'F': 54.*\[1, 2, 3, 4, 6\]"):
    sharding.check_mesh(Mesh(1, 8), sizes)
  sharding.check_mesh(Mesh(1, 4), sizes)


def test_meshes_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match=r"data=64, model=2 needs 128 devices; there are \d"):
    pj.make_mesh(64, 2)
  with pytest.raises(ValueError, match="model=0"):
    pj.make_mesh(1, 0)
  other = jax.make_mesh((1,), ("x",))
  with pytest.raises(ValueError, match="'data' and 'model' are needed"):
    sharding.check_mesh(other, {"N": 1})


def test_one_device_mesh_is_a_mesh_too(tiny):
  model = pj.load(tiny.directory, mesh=pj.make_mesh())
  ours, theirs = (
    m.generate(["w5 w6"], max_new_tokens=3, logprobs=True)[0] for m in (model, tiny.model)
  )
  assert ours.token_ids == theirs.token_ids
  assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
