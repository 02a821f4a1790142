"""Claims: every number of a page is asked of a table, and what is smuggled in is found."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from persona_jax.report.claims import Claims, check, main


def tables() -> dict[str, pd.DataFrame]:
  return {
    "rates": pd.DataFrame(
      {
        "arm": ["SP", "AS", "B0"],
        "persona": ["P1", "P1", None],
        "rate": [0.523, -0.0004, np.nan],
        "low": [0.4, -0.1, np.nan],
        "high": [0.6, 0.1, np.nan],
        "n": [1200, 1200, 200],
      }
    )
  }


def page(tmp_path: Path, more: str = "") -> tuple[Path, Path, Claims]:
  claims = Claims(tables())
  sp, b0 = {"arm": "SP", "persona": "P1"}, {"arm": "B0", "persona": None}
  body = [
    claims.interval("rates", sp, "rate"),
    claims.number("rates", sp, "n", ",d"),
    claims.number("rates", {"arm": "AS"}, "rate"),
    claims.interval("rates", b0, "rate"),
    claims.number("rates", sp, "rate", ".0%"),
  ]
  html = tmp_path / "x.html"
  text = " and ".join(body)
  html.write_text(
    f"<html><head><title>12</title><style>a{{b:3px}}</style></head><body><p>P1 and H3: {text}.</p>"
    f"<p data-plain>95 % of <b>3</b></p><code>0.1</code>{more}</body></html>"
  )
  return html, claims.write(tmp_path / "claims.json"), claims


def test_numbers_are_shown_as_their_tables_have_them(tmp_path: Path) -> None:
  html, file, _ = page(tmp_path)
  rows = json.loads(file.read_text())["numbers"]
  assert [row["text"] for row in rows] == ["0.52 [0.40, 0.60]", "1,200", "0.00", "n/m", "52%"]
  assert (rows[0]["value"], rows[0]["low"], rows[0]["high"]) == (0.523, 0.4, 0.6)
  assert rows[3]["value"] is None and rows[3]["query"]["where"] == {"arm": "B0", "persona": None}
  assert rows[1]["query"]["columns"] == ["n"]
  assert check(html, file, tables()) == []


def test_a_number_that_changed_in_its_table_is_found(tmp_path: Path) -> None:
  html, file, _ = page(tmp_path)
  changed = tables()
  changed["rates"].loc[0, "high"] = 0.7
  (said,) = check(html, file, changed)
  assert said == "c1: '0.52 [0.40, 0.60]' is claimed, the table gives '0.52 [0.40, 0.70]'"
  found = check(html, file, {"rates": tables()["rates"].drop(columns="n")})
  assert [said for said in found if "has no columns ['n']" in said] == found != []


@pytest.mark.parametrize(
  ("more", "said"),
  [
    ("<p>and 0.77 besides</p>", "'0.77' in 'and 0.77 besides' is no claim"),
    ("<td>.5</td>", "'.5' in '.5' is no claim"),
    ("<p>-3</p>", "'-3' in '-3' is no claim"),
    ('<data id="c99">7</data>', "the page shows '7' as c99, which is no claim"),
    ('<data id="c2">1,300</data>', "c2: the page shows '1,300', claimed is '1,200'"),
  ],
)
def test_a_number_that_is_smuggled_in_is_found(tmp_path: Path, more: str, said: str) -> None:
  html, file, _ = page(tmp_path, more)
  assert check(html, file, tables()) == [said]


def test_names_with_digits_are_no_numbers(tmp_path: Path) -> None:
  html, file, _ = page(tmp_path, "<p>P12, H3, G1 and v2-a of R-cov</p>")
  assert check(html, file, tables()) == []


def test_a_claim_that_is_not_shown_is_found(tmp_path: Path) -> None:
  html, _, claims = page(tmp_path)
  claims.number("rates", {"arm": "SP"}, "low")
  file = claims.write(tmp_path / "claims.json")
  assert check(html, file, tables()) == ["c6: claimed, and not on the page"]


def test_queries_that_give_no_single_number_are_refused() -> None:
  claims = Claims(tables())
  with pytest.raises(ValueError, match="2 rows where {'persona': 'P1'}; one fits"):
    claims.number("rates", {"persona": "P1"}, "rate")
  with pytest.raises(ValueError, match="there is no table 'rate'"):
    claims.number("rate", {}, "rate")
  with pytest.raises(ValueError, match=r"has no columns \['mean'\]"):
    claims.number("rates", {"arm": "SP"}, "mean")


def test_a_figure_stands_for_columns_that_are_there(tmp_path: Path) -> None:
  svg = '<svg><g id="F2-text_1"><!-- at 0.52 [0.40, 0.60] --></g></svg>'
  html, file, claims = page(tmp_path, f'<figure id="F2">{svg}</figure>')
  assert check(html, file, tables()) == ["figure F2: on the page, and not claimed"]
  with pytest.raises(ValueError, match=r"table 'rates' has no columns \['mean'\]"):
    claims.figure("F2", "Forest", {"rates": ["mean"]}, svg)
  claims.figure("F2", "Forest", {"rates": ["rate", "low", "high"]}, svg)
  claims.figure("F3", "Doses", {"rates": ["n"]}, "<svg/>")
  file = claims.write(file)
  assert check(html, file, tables()) == ["figure F3: claimed, and not on the page"]
  found = check(html, file, {"rates": tables()["rates"].drop(columns="low")})
  assert "figure F2: table 'rates' has no columns ['low']." in found


def test_a_number_in_a_figure_that_its_table_does_not_hold_is_found(tmp_path: Path) -> None:
  svg = '<svg><g id="F2-text_1"><!-- at 0.52, margin 0.05 --></g></svg>'
  html, file, claims = page(tmp_path, f'<figure id="F2" class="x">{svg}</figure>')
  claims.figure("F2", "Forest", {"rates": ["rate"]}, svg, {"margin": 0.05})
  claims.write(file)
  assert check(html, file, tables()) == []
  told = json.loads(file.read_text())["figures"][0]["numbers"]
  assert [(one["number"], one["from"]) for one in told] == [
    ("0.52", {"table": "rates", "column": "rate", "row": 0}), ("0.05", {"given": "margin"}),
  ]  # fmt: skip
  moved = tables()
  moved["rates"]["rate"] += 0.3
  assert (
    "inside figure F2: '0.52' in 'at 0.52, margin 0.05' is nothing that it is drawn from"
    in check(html, file, moved)
  )
  html.write_text(html.read_text().replace("at 0.52,", "at 0.55,"))
  found = check(html, file, tables())
  assert (
    "inside figure F2: '0.55' in 'at 0.55, margin 0.05' is nothing that it is drawn from" in found
  )
  assert any("it shows 2 numbers and 2 are claimed; ('at 0.55" in line for line in found)


def test_truths_of_numpy_are_written_in_words() -> None:
  claims = Claims({"x": pd.DataFrame({"k": ["a"], "yes": np.array([True])})})
  assert "True" in claims.number("x", {"k": "a"}, "yes")


def test_the_command_checks_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
  assert main([str(tmp_path)]) == 2
  html, _, _ = page(tmp_path)
  html.rename(tmp_path / "report.html")
  (tmp_path / "tables").mkdir()
  tables()["rates"].to_parquet(tmp_path / "tables" / "rates.parquet")
  assert main([str(tmp_path)]) == 0
  assert "5 numbers, and 0 in 0 figures: nothing that does not fit" in capsys.readouterr().out
  tables()["rates"].assign(n=7).to_parquet(tmp_path / "tables" / "rates.parquet")
  assert main([str(tmp_path)]) == 1
  assert "c2: '1,200' is claimed, the table gives '7'" in capsys.readouterr().out
