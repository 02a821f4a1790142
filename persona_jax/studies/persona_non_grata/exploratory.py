"""Benjamini-Hochberg over every exploratory p, family by family; families are written down.

Confirmatory p are not here: the hypotheses, and the inversions, which Holm corrects. The slope that
H4 tests stands in the table of regressions among the others, and in their family, too.
"""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from persona_jax.stats.families import adjust


@dataclasses.dataclass(frozen=True)
class Family:
  """Tests that are corrected together: one column of p in one table.

  Attributes:
    table: name of the table.
    p: its column of p; the corrected ones go into `q`.
    test: columns that tell one test from another; several rows of one test count once.
    within: columns whose values part the table into families; none for one family.
  """

  table: str
  p: str
  test: tuple[str, ...]
  within: tuple[str, ...] = ()

  @property
  def q(self) -> str:
    """The column of corrected p: "p_odd" gives "q_odd", "cos_p" gives "cos_q"."""
    return f"q{self.p[1:]}" if self.p.startswith("p") else f"{self.p[:-1]}q"


FAMILIES = (
  *(
    Family("controls", f"p_{code}", ("persona",)) for code in ("R-iso", "R-cov", "R-shuf", "R-plac")
  ),
  Family("effects", "p_equivalent", ("arm", "persona"), ("arm",)),
  Family("rankings", "p_permutation", ("x", "y")),
  Family("interaction", "p", ("match",)),
  Family("alignment_tests", "p", ("match",)),
  Family("doses", "p_odd", ("persona",)),
  Family("doses", "p_even", ("persona",)),
  Family("geometry_alignment", "cos_p", ("direction", "block")),
  Family("geometry_alignment", "coupling_p", ("direction", "block")),
  Family("geometry_traits", "cos_p", ("direction", "block")),
  Family("geometry_traits", "coupling_p", ("direction", "block")),
  Family("geometry_cosines", "p", ("direction", "block"), ("metric",)),
  Family("geometry_regressions", "p_positive", ("predictor",), ("outcome",)),
  Family("geometry_regressions", "p_negative", ("predictor",), ("outcome",)),
  Family("geometry_regressions", "p_specific", ("predictor",), ("outcome",)),
)


def corrected(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
  """Return the tables with a column of q for every exploratory p, and a table "families".

  A test whose p is NaN stays in its family as p = 1, and its q is NaN.

  Returns:
    The tables, and "families": table, p, q, family (what parts it, "" for the whole), tests,
    correction.
  """
  found, rows = dict(tables), []
  for family in FAMILIES:
    table = found.get(family.table)
    if table is None or table.empty or family.p not in table:
      continue
    named = table.assign(
      family=[" ".join(map(str, row)) for row in table[list(family.within)].to_numpy()]
      if family.within
      else ""
    )
    tests = named.drop_duplicates(["family", *family.test])
    done = adjust(tests.astype({family.p: "float64"}), "fdr_bh", p=family.p)
    keys = ["family", *family.test]
    q = named[keys].merge(done[[*keys, "p_adjusted"]], on=keys, how="left")["p_adjusted"]
    q = q.where(table[family.p].notna().to_numpy()).to_numpy()
    found[family.table] = table.copy()
    found[family.table].insert(int(table.columns.get_loc(family.p)) + 1, family.q, q)
    for name, mine in done.groupby("family", sort=False):
      rows.append(
        {
          "table": family.table,
          "p": family.p,
          "q": family.q,
          "family": name,
          "tests": len(mine),
          "correction": "Benjamini-Hochberg",
        }
      )
  columns = ["table", "p", "q", "family", "tests", "correction"]
  return found | {"families": pd.DataFrame(rows, columns=columns)}
