"""What the benchmark does where nothing is timed: tools that end, ratios, a report in parts."""

import pytest

from benchmarks.grid import table
from benchmarks.grid.grid_section import Entrant, ratios
from benchmarks.grid.processes import Process, Tool, ToolError


def test_a_tool_that_has_ended_is_an_error_and_can_be_closed(tmp_path):
  process = Process(Tool("dying", "tests.benchmarks.dying_tool"), tmp_path, tmp_path, quick=True)
  assert process.description == {"arms": {}}
  process._process.wait(60)
  for _ in range(2):
    with pytest.raises(ToolError, match="dying has ended"):
      process.request(call="run", arm="a", grid="b")
  process.close()


def entrant(key: str, dtype: str) -> Entrant:
  class Process:
    tool = Tool(key.split("_")[0], "none")

  return Entrant(key, Process(), key.split("_", 1)[1], dtype)


def test_ratios_are_of_medians_and_the_best_peer_of_each_kind():
  field = [
    entrant("ours_f32", "float32"),
    entrant("hf_rows_f32", "float32"),
    entrant("hf_rows_reuse_f32", "float32"),
    entrant("llama_q4_1", "quantised"),
  ]
  seconds = {
    "ours_f32": [10.0, 30.0, 20.0],
    "hf_rows_f32": [90.0],
    "hf_rows_reuse_f32": [60.0, 62.0, 64.0],
    "llama_q4_1": [40.0],
  }
  found = {name: (r["peer"], r["median"]) for name, r in ratios(field, seconds).items()}
  assert found == {
    "ours_f32_over_best_f32_peer": ("hf_rows_reuse_f32", 3.1),
    "ours_f32_over_best_f32_peer_as_shipped": ("hf_rows_f32", 4.5),
    "ours_f32_over_best_any_peer": ("llama_q4_1", 2.0),
    "ours_f32_over_best_any_peer_as_shipped": ("llama_q4_1", 2.0),
  }


def test_a_report_of_some_sections_is_a_table_of_these():
  ran = {"date": "d", "commit": "c", "repetitions": 1, "only": [], "load_average": [0.5, 0, 0]}
  ran |= {"skipped": {}, "failed": {"engine, passes": "why"}}
  report = {
    "device": {"processor": "P", "cores": 2, "flags": []},
    "ran": {"engine": ran},
    "engine": {"tax": {"quartiles": [0.99, 1.03]}},
    "tax_one_block": 0.01,
  }
  text = table.markdown(report)
  assert "| engine | d | c | 1 |  | 0.5 |" in text
  assert "| +1.0% (-1.0% to +3.0%) |" in text
  assert "FAILED in engine: engine, passes: why" in text
