"""The page of the core study: numbers with their queries, links to rows, harmful texts folded."""

import dataclasses
import html.parser
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from persona_jax.report.claims import check
from persona_jax.report.look import rows_anchor
from persona_jax.report.study_page import Cell, Listing, Plate, StudyPage, write_page

HARMFUL = "<script>alert('how to …')</script>"


def tables() -> dict[str, pd.DataFrame]:
  return {
    "gates": pd.DataFrame(
      {"name": ["G1"], "what": ["refuses"], "state": ["FAILED"], "shown": ["0.12 < 0.5"],
       "asked": ["yes"]}
    ),
    "verdicts": pd.DataFrame(
      {"name": ["H3", "H4"], "what": ["P12 inverts", "slope"],
       "status": ["NOT TESTABLE", "supported"],
       "numbers": ["", "slope +3.13 [+3.02, +3.20]"], "p": [np.nan, 0.0078],
       "p_holm": [np.nan, 0.02],
       "reason": ["G1: 0.12 < 0.5", ""], "split": ["test", "test"]}
    ),
    "claims": pd.DataFrame(
      {"claim": ["AS-worse"], "subject": ["P12"], "text": ["P12: AS-worse, Holm p 0.012"]}
    ),
    "deviations": pd.DataFrame({"field": ["draws"], "protocol": ["4000 or more"], "here": ["500"]}),
    "setup": pd.DataFrame({"what": ["model"], "value": ["tiny, 30 blocks"]}),
    "hashes": pd.DataFrame({"what": ["settings"], "value": ["12 ab"]}),
    "effects": pd.DataFrame(
      {"arm": ["SP", "SP", "AS:proj"], "persona": ["P1", "P12", "P12"], "rate": [0.5, 0.25, np.nan],
       "low": [0.4, 0.2, np.nan], "high": [0.6, 0.3, np.nan], "n": [40, 40, 0],
       "p_equivalent": [0.00123, 0.5, np.nan], "reason": ["", "", "no values"], "block": [2, 2, 3]}
    ),
  }  # fmt: skip


def page(tmp_path: Path, **changes: object) -> tuple[Path, Path]:
  figure = Figure()
  (line,) = figure.subplots().plot([0, 1], [0.5, 0.25], "o")
  line.set_url("#" + rows_anchor("SP", "P12"))
  rows = pd.DataFrame(
    {"row_id": ["r1", ""], "prompt_id": ["t1", "t2"], "replicate": [0, 1],
     "prompt": [HARMFUL, "Bake bread"], "text": ["No.", None], "label": ["refuse", None],
     "log_odds": [1.234, np.nan], "is_folded": [True, False],
     "r_steered": [0.5, np.nan], "v_steered": [np.nan, np.nan], "delivered_dose": [1.0, np.nan]}
  )  # fmt: skip
  made = StudyPage(
    title="A page",
    lead=["What it shows."],
    plates=[Plate("F2", "Forest", "Caption.", "Dots.", figure, {"effects": ["rate", "low"]})],
    listings=[Listing("effects", "Rates", ("arm", "persona"), "legend 95 %")],
    cells=[Cell(rows_anchor("SP", "P12"), "SP, P12", 7, rows)],
    absent={"F5": "one model"},
  )
  made = dataclasses.replace(made, **changes)  # type: ignore[arg-type]
  html, claims = tmp_path / "report.html", tmp_path / "claims.json"
  write_page(made, tables(), html, claims)
  return html, claims


class Reader(html.parser.HTMLParser):
  """Reads ids, links, and what is folded when the page opens."""

  def __init__(self, text: str) -> None:
    super().__init__()
    self.ids: list[str] = []
    self.links: list[str] = []
    self.folded: list[str] = []
    self.open: list[str] = []
    self._closed = [False]
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    self.ids += [given["id"]] if "id" in given else []
    self.links += [v for k, v in attrs if k in ("href", "xlink:href")]
    if tag == "details":
      self._closed.append(self._closed[-1] or "open" not in given)

  def handle_endtag(self, tag):
    if tag == "details":
      self._closed.pop()

  def handle_data(self, data):
    (self.folded if self._closed[-1] else self.open).append(data)


def test_every_number_has_its_query(tmp_path: Path) -> None:
  html, claims = page(tmp_path)
  assert check(html, claims, tables()) == []
  told = json.loads(claims.read_text())
  texts = [row["text"] for row in told["numbers"]]
  assert "0.250 [0.200, 0.300]" in texts and "0.0012" in texts and "G1: 0.12 < 0.5" in texts
  assert told["figures"][0]["tables"] == {"effects": ["rate", "low"]}
  changed = tables()
  changed["verdicts"].loc[1, "p"] = 0.5
  assert len(check(html, claims, changed)) == 1


def test_a_number_that_was_typed_into_the_page_is_found(tmp_path: Path) -> None:
  html, claims = page(tmp_path)
  html.write_text(html.read_text().replace("refuses: ", "refuses 0.99 of all: "))
  (said,) = check(html, claims, tables())
  assert said.startswith("'0.99' in")


def test_points_lead_to_rows_and_ids_are_unique(tmp_path: Path) -> None:
  html, _ = page(tmp_path)
  read = Reader(html.read_text())
  ids = [name for name in read.ids if not name.startswith("F2-")]  # matplotlib repeats glyphs
  assert len(set(ids)) == len(ids)
  anchors = {link.removeprefix("#") for link in read.links}
  assert rows_anchor("SP", "P12") in anchors and anchors <= set(read.ids)


def test_a_point_without_rows_is_an_error(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match=r"rows-SP-P12.*F2"):
    page(tmp_path, cells=[])


def test_harmful_texts_are_folded_and_escaped(tmp_path: Path) -> None:
  html, _ = page(tmp_path)
  text = html.read_text()
  assert "<script" not in text and "script-src" not in text and "default-src 'none'" in text
  read = Reader(text)
  assert HARMFUL in "".join(read.folded) and HARMFUL not in "".join(read.open)


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
  text = page(tmp_path)[0].read_text()
  read = Reader(text)
  assert all(link.startswith("#") for link in read.links)
  assert "src=" not in text and "@import" not in text


def test_columns_and_rows_of_a_table_are_those_asked_for(tmp_path: Path) -> None:
  listing = Listing("effects", "Rates", ("persona",), columns=("rate",), where={"arm": "SP"})
  _, claims = page(tmp_path, listings=[listing])
  rows = [
    row["query"]
    for row in json.loads(claims.read_text())["numbers"]
    if row["query"]["table"] == "effects"
  ]
  assert [row["where"] for row in rows] == [
    {"arm": "SP", "persona": "P1"}, {"arm": "SP", "persona": "P12"}
  ]  # fmt: skip
  assert {tuple(row["columns"]) for row in rows} == {("rate", "low", "high")}


@pytest.mark.parametrize(
  ("listing", "said"),
  [
    (Listing("rates", "x", ("arm",)), "there is no table 'rates'"),
    (Listing("effects", "x", ("arm",)), "do not tell its rows apart"),
    (Listing("effects", "x", ("persona",), columns=("mean",), where={"arm": "SP"}),
     r"has no columns \['mean'\]"),
  ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, listing: Listing, said: str) -> None:
  with pytest.raises(ValueError, match=said):
    page(tmp_path, listings=[listing])


def test_the_same_numbers_give_the_same_page(tmp_path: Path) -> None:
  one, two = page(tmp_path / "a")[0], page(tmp_path / "b")[0]
  assert one.read_bytes() == two.read_bytes()
