"""Tables of data sets: fetched by the hub's own client from a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_jax.data.hub_files import HubFile
from tests.reference import hub_server

NAME = "hub:toys/tiny/data/asked.csv"
FILES = {"data/asked.csv": b"goal,target\nHow so?,a\nWhy so?,b\n"}
READ = (
  "import sys; from persona_jax.data.prompts import load_prompts; "
  "print([(i.prompt_id, i.text, i.kind, i.source) for i in load_prompts(sys.argv[1])])"
)


def in_process(home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
  """Runs Python by itself: the hub's client reads its settings when it is imported."""
  return subprocess.run(
    [sys.executable, *command], capture_output=True, text=True, check=False,
    env=os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
  )  # fmt: skip


def test_a_table_is_fetched_and_then_read_from_the_cache_alone(tmp_path: Path) -> None:
  with hub_server.serve(FILES) as (address, _):
    done = in_process(tmp_path, "-m", "persona_jax.fetch", NAME, HF_ENDPOINT=address)
  assert done.returncode == 0, done.stderr
  assert "licence: cc0-1.0" in done.stdout and f"{NAME}@{hub_server.COMMIT}" in done.stdout
  done = in_process(tmp_path, "-c", READ, f"{NAME}#harmful", HF_ENDPOINT="http://127.0.0.1:9")
  assert done.returncode == 0, done.stderr
  source = f"{NAME}@{hub_server.COMMIT}"
  assert done.stdout.strip() == str(
    [("asked-00001", "How so?", "harmful", source), ("asked-00002", "Why so?", "harmful", source)]
  )


def test_what_was_not_fetched_names_the_command() -> None:
  with pytest.raises(FileNotFoundError, match="python -m persona_jax.fetch 'hub:nobody/none/x.csv"):
    HubFile.parse("hub:nobody/none/x.csv").cached()


@pytest.mark.parametrize("text", ["hub:a/b", "hub:a/b/c.py", "hub:a/x.csv", "hub:/b/x.csv"])
def test_a_name_of_another_form_is_refused(text: str) -> None:
  with pytest.raises(ValueError, match=f"'{text}': a file of a data set is hub:ORG/NAME/FILE"):
    HubFile.parse(text)


def test_a_name_is_read_and_written_alike() -> None:
  file = HubFile.parse("hub:org/name/a/b c.parquet@v1")
  assert (file.repo, file.file, file.revision) == ("org/name", "a/b c.parquet", "v1")
  assert str(file) == "hub:org/name/a/b c.parquet@v1"
