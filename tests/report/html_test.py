"""Tests of the HTML report, read with an HTML parser of its own."""

from __future__ import annotations

import dataclasses
import html.parser
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from persona_jax.report import ReportData, write_report
from persona_jax.report.tables import interval_text

Make = Callable[..., ReportData]
_VOID = ("meta", "img", "br", "link", "input", "hr")


@dataclasses.dataclass
class Text:
  """A piece of text with the elements round it, outermost first."""

  text: str
  inside: tuple[str, ...]
  closed_details: bool


class Page(html.parser.HTMLParser):
  """The tags, attributes and texts of a page; fails on elements that do not nest."""

  def __init__(self, source: str) -> None:
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.texts: list[Text] = []
    self._open: list[tuple[str, dict[str, str | None]]] = []
    self.feed(source)
    assert not self._open

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append((tag, dict(attrs)))

  def handle_endtag(self, tag: str) -> None:
    assert self._open.pop()[0] == tag

  def handle_data(self, data: str) -> None:
    if data.strip():
      is_closed = any(tag == "details" and "open" not in attrs for tag, attrs in self._open)
      self.texts.append(Text(data.strip(), tuple(tag for tag, _ in self._open), is_closed))

  @property
  def all_text(self) -> str:
    return "\n".join(text.text for text in self.texts)


def _page(data: ReportData, directory: Path, figures: dict[str, Path] | None = None) -> Page:
  path = write_report(data, figures or {}, directory / "report.html")
  return Page(path.read_text(encoding="utf-8"))


def test_page_asks_nothing_of_the_network(
  data: ReportData, drawn: dict[str, Path], tmp_path: Path
) -> None:
  path = write_report(data, drawn, tmp_path / "deep" / "report.html")
  source = path.read_text(encoding="utf-8")
  assert "http://" not in source and "https://" not in source
  assert "url(" not in source and "@import" not in source
  page = Page(source)
  assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
  for _, attributes in page.tags:
    for name in ("src", "srcset", "href", "action", "data"):
      value = attributes.get(name)
      assert value is None or value.startswith(("data:image/png;base64,", "#"))
  policy = [attributes.get("content") for tag, attributes in page.tags if tag == "meta"]
  assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy


def test_page_is_accessible(data: ReportData, drawn: dict[str, Path], tmp_path: Path) -> None:
  page = _page(data, tmp_path, drawn)
  assert ("html", {"lang": "en"}) in page.tags
  images = [attributes for tag, attributes in page.tags if tag == "img"]
  assert len(images) == 3
  assert all(len(image["alt"] or "") > 40 for image in images)
  headers = [attributes for tag, attributes in page.tags if tag == "th"]
  assert headers and all(header.get("scope") in ("row", "col") for header in headers)
  ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
  links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
  assert len(ids) == len(set(ids))
  assert {f"#{name}" for name in ids} == set(links)


def test_first_screen_is_title_verdict_setup(data: ReportData, tmp_path: Path) -> None:
  page = _page(data, tmp_path)
  header = [text.text for text in page.texts if "header" in text.inside]
  assert header[0] == data.title
  assert header[1:4] == list(data.verdict)
  assert "0123456789ab…" in header
  assert set(data.limits) <= {text.text for text in page.texts}


def test_setup_table_has_every_item_and_hashes_in_full(data: ReportData, tmp_path: Path) -> None:
  page = _page(data, tmp_path)
  cells = [text.text for text in page.texts if "table" in text.inside]
  for key, value in data.setup.items():
    assert key in cells
    assert (f"{value:g}" if isinstance(value, float) else str(value)) in cells


def test_markup_in_a_text_is_shown_not_run(make: Make, data: ReportData, tmp_path: Path) -> None:
  hostile = '<script>alert("x")</script><img src=x onerror=alert(1)></td></details>{{ 7777 * 7 }}'
  completions = data.completions.copy()
  completions["text"] = hostile
  completions["prompt"] = hostile
  completions["row_id"] += hostile
  changed = make(
    **{"completions": completions, "title": hostile, "verdict": [hostile], "limits": [hostile]},
    setup={hostile: hostile},
  )
  source = write_report(changed, {}, tmp_path / "report.html").read_text(encoding="utf-8")
  assert "<script" not in source
  page = Page(source)
  assert not {"script", "img"} & {tag for tag, _ in page.tags}
  shown = [text for text in page.texts if text.text == hostile]
  assert len(shown) >= len(completions)
  assert not [text for text in page.texts if "54439" in text.text]


def test_every_row_is_shown_once(data: ReportData, tmp_path: Path) -> None:
  page = _page(data, tmp_path)
  shown = [text.text.split("row ")[-1] for text in page.texts if "row harm" in text.text]
  assert sorted(shown) == sorted(data.completions["row_id"])


def test_harmful_prompts_and_answers_are_folded(
  make: Make, data: ReportData, tmp_path: Path
) -> None:
  completions = data.completions.copy()
  is_harmful = completions["kind"] == "harmful"
  completions.loc[is_harmful, "text"] = "FOLD THIS ANSWER"
  completions.loc[is_harmful, "prompt"] = "FOLD THIS PROMPT"
  page = _page(make(completions=completions), tmp_path)
  folded = [text for text in page.texts if "FOLD THIS" in text.text]
  assert len(folded) == is_harmful.sum() + 2
  assert all(text.closed_details and "summary" not in text.inside for text in folded)
  assert "requests for harmful help" in page.all_text


def test_first_harmless_prompt_is_open(data: ReportData, tmp_path: Path) -> None:
  shuffled = data.completions.iloc[::-1]
  page = _page(dataclasses.replace(data, completions=shuffled), tmp_path)
  open_details = [a for tag, a in page.tags if tag == "details" and "open" in a]
  assert len(open_details) == 1
  visible = [text.text for text in page.texts if "td" in text.inside and not text.closed_details]
  assert any("harmless-02-baseline-none" in text for text in visible)


def test_tags_say_what_the_scorers_said(make: Make, data: ReportData, tmp_path: Path) -> None:
  completions = data.completions.iloc[:2].copy()
  completions["refused"] = pd.Series([None, True], index=completions.index, dtype=object)
  completions["degenerate"] = [True, False]
  completions.loc[completions.index[1], "text"] = "  "
  page = _page(make(completions=completions), tmp_path)
  tags = [text.text for text in page.texts if text.inside[-1] == "span" and "td" in text.inside]
  assert tags == [
    *("refused: not scored", "degenerate"),
    *("(empty)", "refused"),
    *("not shown", "not shown"),
  ]


def test_what_is_nan_says_why(make: Make, data: ReportData, tmp_path: Path) -> None:
  refusal = data.refusal.copy()
  rates = ["refused", "refused_low", "refused_high"]
  refusal.loc[0, rates] = math.nan
  refusal.loc[1, [*rates, "n"]] = [math.nan, math.nan, math.nan, 0]
  refusal["reason"] = ["no answer was scored"] + [""] * (len(refusal) - 1)
  page = _page(make(refusal=refusal), tmp_path)
  cells = [text.text for text in page.texts if "td" in text.inside]
  assert "not measurable: no item was scored" in cells
  assert "not measurable: one coefficient is no slope" in cells
  assert "not measurable: no answer was scored" in cells
  assert "not measurable: no valid row" in cells
  assert not [cell for cell in cells if "nan" in cell.lower().split()]


def test_every_number_has_its_interval_and_n(data: ReportData, tmp_path: Path) -> None:
  cells = [text.text for text in _page(data, tmp_path).texts if "table" in text.inside]
  row = data.slopes.iloc[0]
  at = cells.index("+1.40 [+1.10, +1.70]")
  assert cells[at + 1] == str(row["n"]) == "168"
  assert "5.0 % [2.0, 12.0]" in cells


@pytest.mark.parametrize(
  ("arguments", "as_rate", "expected"),
  [
    ((-0.00323, -0.0432, 0.0368), False, "−0.003 [−0.043, +0.037]"),
    ((1234.5, 1200.0, 1300.0), False, "+1234 [+1200, +1300]"),
    ((0.0, 0.0, 0.0), False, "+0 [+0, +0]"),
    ((0.125, math.nan, math.nan), False, "+0.125 [no interval]"),
    ((0.125, math.nan, math.nan, "one value"), False, "+0.125 [no interval] (one value)"),
    ((0.3125, 0.22, 0.409), True, "31.2 % [22.0, 40.9]"),
    ((math.nan, math.nan, math.nan, "n = 0"), True, "not measurable: n = 0"),
    ((None, None, None), True, "not measurable"),
  ],
)
def test_interval_text(arguments: tuple[object, ...], as_rate: bool, expected: str) -> None:
  assert interval_text(*arguments, as_rate=as_rate) == expected


def test_geometry_is_shown_if_given(make: Make, tmp_path: Path) -> None:
  geometry = pd.DataFrame({"trait": ["C", "O"], "block": [15, 15], "value": [0.25, -0.5]})
  assert "cosine" in _page(make(geometry=geometry), tmp_path).all_text
  assert "cosine" not in _page(make(), tmp_path).all_text


def test_report_without_answers_or_figures_has_no_empty_section(
  make: Make, data: ReportData, tmp_path: Path
) -> None:
  page = _page(make(completions=data.completions.iloc[:0]), tmp_path)
  ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
  assert ids == ["limits", "numbers", "setup"]


def test_text_that_utf8_cannot_hold_is_replaced(make: Make, tmp_path: Path) -> None:
  assert "half ? a smile" in _page(make(verdict=["half \ud83d a smile"]), tmp_path).all_text


def test_unknown_figure_is_refused(data: ReportData, tmp_path: Path) -> None:
  with pytest.raises(ValueError, match="these fit: comparison, dose_response, degeneration"):
    write_report(data, {"pie": tmp_path / "pie.png"}, tmp_path / "report.html")
