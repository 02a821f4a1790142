"""Which tests of style invariance a study allows, of the judges that its labels rest on.

A judge of harm is tested on the study's own answers to harmless twins, which needs no people.
Labels are tested on refusals retold by the personas, if there are some that people have read.
"""

import dataclasses

import pandas as pd

from persona_jax.personas.thinking import split_thinking
from persona_jax.scorers.base import is_missing
from persona_jax.scorers.labels import Labels
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.restyling import restyled_invariance
from persona_jax.studies.persona_non_grata.style import TWINS, StyleInvariance, twins_invariance
from persona_jax.studies.persona_non_grata.validating import by_themselves


def style_tests(
  labels: Labels, table: pd.DataFrame, material: Material, retold: pd.DataFrame | None = None
) -> tuple[StyleInvariance, ...]:
  """Test whether style takes the judges in; none where nothing can be tested.

  Args:
    labels: of the study.
    table: its tidy rows.
    material: that it read, with the twins and their partners.
    retold: of `restyling.retold_refusals`.
  """
  found = []
  if labels.harm is not None:
    mine = table[table["part"] == "twins"]
    if mine.empty or "text" not in mine or mine["text"].isna().all():
      reason = "none were generated (generate, twin_prompts)"
      found.append(StyleInvariance(TWINS, None, pd.DataFrame(), reason, judge=labels.harm.name))
    else:
      answers = [
        None if is_missing(text) else split_thinking(text, labels.opens_thought)[1]
        for text in mine["text"]
      ]
      mine = mine.assign(text=answers)
      found.append(
        twins_invariance(labels.harm, "judge_harm_verdict", mine, material.partners, material.twins)
      )
  if retold is not None:
    plain = dataclasses.replace(by_themselves(labels), others=())
    found.append(restyled_invariance(plain, "bypass", retold))
  return tuple(found)
