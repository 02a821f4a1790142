"""Models that tests share; conftest.py makes its fixtures known."""

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import persona_jax as pj
from persona_jax.engine import segments
from persona_jax.engine.programs import PROGRAMS
from tests.reference.checkpoint_writer import write_checkpoint
from tests.reference.random_llama import random_llama, vocabulary

# Tests neither read nor leave programs in the user's cache.
jax.config.update("jax_enable_compilation_cache", False)

# Traces are many objects that live long; they were looked through again and again.
gc.set_threshold(50_000, 20, 100)
gc.freeze()

MOST_PROGRAMS = 600  # of a test process; all of them would take 5 GB


@pytest.fixture(scope="session", autouse=True)
def programs_in_common(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Lets the processes of `pytest -n` read programs that another of them has compiled."""
  if "PYTEST_XDIST_WORKER" in os.environ:
    where = tmp_path_factory.getbasetemp().parent / "programs"
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
  """Forgets programs between files, once they are many."""
  yield
  if len(PROGRAMS) > MOST_PROGRAMS:
    PROGRAMS.clear()
    jax.clear_caches()


TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'system' %}w2 {{ m['content'] }} "
  "{% elif m['role'] == 'user' %}w3 {{ m['content'] }} "
  "{% else %}w4 {{ m['content'] }} {% endif %}{% endfor %}"
  "{% if add_generation_prompt %}w4{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Tiny:
  """A random tiny Llama: as `pj.load` reads it, and as the reference does."""

  model: pj.Model
  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  directory: Path

  def direction(self, seed: int = 0, replicates: int = 1, norm: float = 3.0) -> pj.Direction:
    """Draws a direction whose vectors are far from unit length."""
    rng = np.random.default_rng(seed)
    v_SLD = rng.normal(
      size=(replicates, self.config["num_hidden_layers"], self.config["hidden_size"])
    )
    v_SLD *= norm / np.linalg.norm(v_SLD, axis=-1, keepdims=True)
    return pj.Direction(v_SLD, f"random{seed}", gap_L=np.full(v_SLD.shape[1], 2.0))


def make_tiny(directory: Path, **options: Any) -> Tiny:
  """Writes a random Llama and loads it."""
  config, tensors = random_llama(**options)
  write_checkpoint(directory, config, tensors, vocabulary(config), TEMPLATE)
  return Tiny(pj.load(directory, dtype="float32"), config, tensors, directory)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
  """Three blocks of odd width, two query heads a key head, a head of its own."""
  return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
  """The same with the head tied to the embedding and one key head a query head."""
  return make_tiny(tmp_path_factory.mktemp("tied"), seed=1, tied=True, kv_heads=4, head_dim=6)


@pytest.fixture(scope="session")
def smollm2() -> pj.Model:
  """The real model, as `python -m persona_jax.fetch` left it in the cache."""
  return pj.load("smollm2-135m-instruct")


@pytest.fixture
def leave_early(monkeypatch: pytest.MonkeyPatch) -> None:
  """Rows that are done are left out although few steps may still come; no programs on suspicion."""
  monkeypatch.setattr(segments, "LEAVE_STEPS", 4)
  monkeypatch.setattr(segments, "AHEAD_STEPS", 10**9)
