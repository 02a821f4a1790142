"""Models of the hub: fetched by its own client from a server on this machine, then read offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import persona_jax as pj
from persona_jax.checkpoints.hub import HubId, pinned
from tests.reference import hub_server


def in_process(code, home, **environment):
  """Runs code by itself: the hub's client reads its settings when it is imported."""
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False,
    env=os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
  )  # fmt: skip


FETCH = (
  "import sys; from persona_jax import fetch; sys.exit(fetch.main(sys.argv[1:] or ['toys/tiny']))"
)
LOAD = (
  "import persona_jax as pj; m = pj.load('toys/tiny'); "
  "print(m.identity.name, m.identity.source, m.identity.sha256, "
  "m.generate(['w5 w6'], max_new_tokens=3)[0].token_ids)"
)
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def fetched(tiny, tmp_path_factory):
  """A home of the hub's cache with the model in it, what fetching printed, what was asked for."""
  home = tmp_path_factory.mktemp("hub")
  files = {path.name: path.read_bytes() for path in tiny.directory.iterdir()}
  files |= {"pytorch_model.bin": b"pickled", "modeling_tiny.py": b"raise SystemExit", "x/a.md": b""}
  with hub_server.serve(files) as (address, asked):
    done = in_process(FETCH, home, HF_ENDPOINT=address)
  assert done.returncode == 0, done.stderr
  return home, done.stdout, asked


def test_fetch_names_licence_and_commit_and_brings_no_pickle_and_no_code(fetched):
  home, printed, asked = fetched
  assert "licence: cc0-1.0" in printed and f"hub:toys/tiny@{hub_server.COMMIT}" in printed
  names = {path.name for path in home.rglob("*") if path.is_symlink() or path.is_file()}
  assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
  assert not {"pytorch_model.bin", "modeling_tiny.py", "a.md"} & names
  assert not [path for path in asked if ".bin" in path or ".py" in path]


def test_load_reads_the_cache_without_a_network_and_pins_the_commit(tiny, fetched):
  done = in_process(LOAD, fetched[0], **NOWHERE)
  assert done.returncode == 0, done.stderr
  name, source, sha256, ids = done.stdout.strip().split(" ", 3)
  assert (name, source) == ("toys/tiny", f"hub:toys/tiny@{hub_server.COMMIT}")
  assert sha256 == tiny.model.identity.sha256
  assert ids == str(tiny.model.generate(["w5 w6"], max_new_tokens=3)[0].token_ids)


def test_what_was_not_fetched_names_the_command(tmp_path):
  done = in_process(LOAD, tmp_path, **NOWHERE)
  assert "python -m persona_jax.fetch toys/tiny" in done.stderr


def test_fetch_says_what_failed(tmp_path):
  with hub_server.serve({}) as (address, _):
    done = in_process(FETCH.replace("toys/tiny", "toys/other"), tmp_path, HF_ENDPOINT=address)
  assert done.returncode == 1 and "toys/other: FAILED: the hub did not" in done.stderr
  done = in_process(FETCH, tmp_path, HF_HUB_OFFLINE="1", **NOWHERE)
  assert done.returncode == 1 and "toys/tiny: FAILED" in done.stderr


@pytest.mark.parametrize(
  "text,expected",
  [
    ("a-b/c.d", HubId("a-b/c.d")), ("a/b@v1.0", HubId("a/b", None, "v1.0")),
    ("a/b@refs/pr/3", HubId("a/b", None, "refs/pr/3")),
    ("a/b/q4/c.gguf@main", HubId("a/b", "q4/c.gguf", "main")), ("a", None), ("a/b/c", None),
    ("/a/b", None), ("a/b c", None), ("./a", None), ("../a", None), ("a/b.gguf", None),
  ],
)  # fmt: skip
def test_ids_are_read_and_written(text, expected):
  assert HubId.parse(text) == expected
  assert expected is None or str(expected) == text


def test_repositories_without_safetensors_say_what_they_have(tmp_path):
  for files, message in (
    ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pickled weights (pytorch_model.bin)"),
    ({"config.json": b"{}", "q/m.Q4_0.gguf": b"x"}, "name one: toys/tiny/q/m.Q4_0.gguf"),
  ):
    with hub_server.serve(files) as (address, _):
      done = in_process(FETCH, tmp_path / message[:4], HF_ENDPOINT=address)
    assert done.returncode == 1 and message in done.stderr, done.stderr


def test_commit_is_read_from_the_end_of_the_path():
  where = Path("/home/snapshots/hub/models--a--b/snapshots/0123abc/config.json")
  assert pinned(HubId("a/b"), where) == "hub:a/b@0123abc"


def test_directory_goes_before_a_hub_id(tiny, tmp_path, monkeypatch):
  (tmp_path / "toys").mkdir()
  (tmp_path / "toys" / "tiny").symlink_to(tiny.directory)
  monkeypatch.chdir(tmp_path)
  assert pj.load("toys/tiny").identity.source == "toys/tiny"
