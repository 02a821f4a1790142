"""Starts the processes that do the work, and talks to them; `protocol.py` is the other end."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.grid.environments import ENVIRONMENTS, ROOT


@dataclasses.dataclass(frozen=True)
class Tool:
  """A module that serves arms, and the environment it needs; None is the one of this process."""

  name: str
  module: str
  environment: str | None = None


TOOLS = (
  Tool("ours", "benchmarks.grid.ours"),
  Tool("hf", "benchmarks.grid.peers.hf", "hf"),
  Tool("steering_vectors", "benchmarks.grid.peers.steering_vectors", "steering"),
  Tool("repeng", "benchmarks.grid.peers.repeng", "steering"),
  Tool("llama_cpp", "benchmarks.grid.peers.llama_cpp", "llama"),
)


class ToolError(Exception):
  """A tool could not be started, or a request failed; the message says why."""


class Process:
  """A running tool.

  Args:
    tool: what to start.
    work: the directory with the work.
    logs: where its stderr goes, in a file of its name.
    quick: whether it cuts the grids.

  Raises:
    ToolError: its environment has not been made.
  """

  def __init__(self, tool: Tool, work: Path, logs: Path, *, quick: bool):
    python = Path(sys.executable)
    if tool.environment is not None:
      environment = ENVIRONMENTS[tool.environment]
      python = environment.python
      if not environment.stamp.exists():
        raise ToolError(
          f"{environment.directory.name} is not there; make it with "
          f"python -m benchmarks.grid.environments {environment.name}"
        )
    self.tool = tool
    self._log = logs / f"{tool.name}.log"
    command = [python, "-m", tool.module, work, *(["--quick"] if quick else [])]
    with self._log.open("w") as log:
      self._process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
      )
    try:
      self.description = self.request(call="describe")
    except ToolError:
      self.close()
      raise

  def request(self, **fields: Any) -> dict[str, Any]:
    """Send a request and wait for its answer.

    Raises:
      ToolError: the tool reports an error, or has ended.
    """
    assert self._process.stdin is not None and self._process.stdout is not None
    try:
      self._process.stdin.write(json.dumps(fields) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      raise ToolError(f"{self.tool.name} has ended; its last words are in {self._log}")
    answer = json.loads(line)
    if "error" in answer:
      raise ToolError(f"{self.tool.name}, {fields}: {answer['error']}"[:4000])
    return answer

  def close(self) -> None:
    """End the process, if it has not ended by itself."""
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has, and a request was still on its way
      self._process.stdin.close()
    try:
      self._process.wait(60)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
