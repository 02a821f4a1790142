"""Loads the fixtures where tests run."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
  """The process of `pytest -n` that only hands out tests does not wait for JAX."""
  hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
  if not hands_out:
    config.pluginmanager.import_plugin("tests.fixtures")
