"""The figures of the report: which apply to this study, from which tables, in which words."""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from persona_jax.report.geometry_figures import draw_alignment
from persona_jax.report.study_page import Plate
from persona_jax.studies.persona_non_grata.settings import Settings

Tables = Mapping[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """Figures of a study.

  Attributes:
    plates: in the order of the page.
    absent: name → why it does not apply.
  """

  plates: tuple[Plate, ...]
  absent: Mapping[str, str]


def draw(settings: Settings, tables: Tables, labels: Mapping[str, str], blocked: str) -> Drawn:
  """Draw every figure that there are numbers for.

  Args:
    settings: of the study.
    tables: of the study, by name.
    labels: persona → its poles, such as "C+ A+".
    blocked: why nothing may be claimed, or "".
  """
  plates: list[Plate] = []
  absent: dict[str, str] = {}
  alignment = tables["geometry_alignment"]
  if len(alignment):
    names = [n for n in dict.fromkeys(alignment["direction"]) if n in labels]
    plates.append(
      Plate(
        "F7",
        "How directions lie to refusal, block by block",
        "Above: cosine of each persona's direction with the refusal direction of the block. Below: "
        "what adding it does to the log-odds of a refusal, by the derivative. Only what leaves the "
        "grey band differs from random directions.",
        "Two panels of lines by block, one line a persona, each before a grey band of chance.",
        draw_alignment(alignment, names, steered=int(tables["matches"]["block"].iloc[0])),
        {"geometry_alignment": ["direction", "block", "cos", "coupling", "low", "high"]},
      )
    )
  return Drawn(tuple(plates), absent)
