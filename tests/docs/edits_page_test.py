"""docs/edits.md: every block runs as it stands, and its edit changes something."""

import importlib.util

import numpy as np
import pytest

import persona_jax as pj
from tests.docs.families_page_test import ROOT


@pytest.fixture(scope="module")
def page():
  spec = importlib.util.spec_from_file_location("draw_edits", ROOT / "docs" / "draw_edits.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def read(model, edit, table):
  """Returns what the site of an edit holds in a pass over a prompt and an answer."""
  ids = [int(i) for i in model.encode("w5 w6 w7").ids]
  where = (edit.site, edit.blocks[-1])
  reads = pj.forward(
    model,
    np.asarray([ids * 3]),
    table,
    pj.Capture(where[:1], blocks=where[1]),
    prompt_lengths_B=np.asarray([len(ids)]),
    roles_BT=np.asarray([[1] * len(ids) + [3, 3] + [2] * (2 * len(ids) - 2)]),
  )[1]
  return np.asarray(reads[where])


def test_every_block_makes_an_edit_that_acts(page, tmp_path):
  space = page.setting(tmp_path)
  model, made = space["model"], list(page.run_blocks(space))
  assert len(made) > 25
  for block, edit in made:
    (edits,) = pj.resolve_gates(model, ["w5 w6 w7"], [edit])
    change = read(model, edit, pj.compile_edits(model, [edits])) - read(model, edit, None)
    assert (np.abs(change).max() > 1e-5) == (edits[0].gate == 1), block


def test_panels_are_blocks_of_the_page(page):
  for title, call in page.PANELS.items():
    assert any(call in block for block in page.blocks()), title
