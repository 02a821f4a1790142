"""docs/engine.md: its plan is what its code prints, its table lists the programs of the plan."""

import collections
import re
from typing import Any

from tests.docs.families_page_test import ROOT

MAY_BE_FILLED = r", [\d.]+ GiB may be filled$"  # the machine's


def blocks(kind: str) -> list[str]:
  """Returns the page's blocks of a language."""
  return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(), re.S)


def test_the_plan_on_the_page_is_that_of_its_code(capsys):
  space: dict[str, Any] = {}
  exec(blocks("python")[0], space)
  printed = capsys.readouterr().out.splitlines()
  shown = blocks("text")[0].splitlines()
  assert len(printed) == len(shown)
  for line, on_page in zip(printed, shown, strict=True):
    line, on_page = (re.sub(MAY_BE_FILLED, "", text) for text in (line, on_page))
    assert line.startswith(on_page[:-1]) if on_page.endswith("…") else line == on_page


def test_the_table_on_the_page_lists_the_programs_of_the_plan():
  plan, table = (text.splitlines() for text in blocks("text")[:2])
  first = next(n for n, line in enumerate(plan) if line.startswith("programs"))
  listed = (re.match(r"  (\w[\w ]*?) +(\d+)  ", line) for line in plan[first + 1 :])
  announced = {found[1]: int(found[2]) for found in listed if found}
  assert collections.Counter(line[:16].strip() for line in table[1:-1]) == announced
  assert table[-1].startswith(f"{sum(announced.values())} programs")
