"""Tables that describe a study and its directions, and test nothing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_jax.engine.model import Model
from persona_jax.personas.placement import describe_system_default, system_placement
from persona_jax.personas.wording import check_texts
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.extraction import Extracted
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.refusal import Refusal
from persona_jax.studies.persona_non_grata.settings import Settings


def trait_cosines(extracted: Extracted) -> pd.DataFrame:
  """Return cosines between all contrasts' directions: contrast, other, block, cos."""
  names = list(extracted.contrasts)
  unit_RLD = np.stack([extracted.contrasts[name].unit_LD for name in names]).astype(np.float64)
  cos_LRR = np.einsum("rld,sld->lrs", unit_RLD, unit_RLD)
  rows = [
    {"contrast": names[i], "other": names[j], "block": block, "cos": float(cos_RR[i, j])}
    for block, cos_RR in enumerate(cos_LRR)
    for i in range(len(names))
    for j in range(i + 1, len(names))
  ]
  return pd.DataFrame(rows, columns=["contrast", "other", "block", "cos"])


def composites(extracted: Extracted, refusal: Refusal) -> pd.DataFrame:
  """Return both rules of every composite, by block: their cosine, and each with refusal."""
  rows = []
  r_LD = refusal.family.unit_LD
  for name, other in extracted.others.items():
    own = extracted.personas[name]
    for block in range(len(r_LD)):
      rows.append(
        {
          "persona": name,
          "block": block,
          "cos_rules": float(own.unit_LD[block] @ other.unit_LD[block]),
          "cos_refusal": float(own.unit_LD[block] @ r_LD[block]),
          "cos_refusal_other_rule": float(other.unit_LD[block] @ r_LD[block]),
        }
      )
  return pd.DataFrame(rows)


def refusal_table(refusal: Refusal) -> pd.DataFrame:
  """Return by block: norm and reliability of refusal, cosines with what it may be taken for."""
  unit_LD = refusal.family.unit_LD.astype(np.float64)
  table = {
    "block": range(len(unit_LD)),
    "norm": refusal.family.norm_L,
    "reliability": refusal.family.reliability_L,
    "cos_causal": (unit_LD * refusal.causal.unit_LD).sum(axis=-1),
  }
  if refusal.harmfulness is not None:
    table["cos_harmfulness"] = (unit_LD * refusal.harmfulness.unit_LD).sum(axis=-1)
  return pd.DataFrame(table)


def setup(
  model: Model,
  settings: Settings,
  material: Material,
  refusal: Refusal,
  calibrated: Calibrated,
  left_out: Mapping[str, str],
) -> pd.DataFrame:
  """Return T1: what was run with what; and which studies of other models are left out, and why."""
  lines = {
    "model": f"{model.identity.name} {model.identity.sha256[:12]} ({model.identity.quantisation})",
    "dtype": f"{model.dtype}, residual stream {model.resid_dtype}",
    "system default": describe_system_default(model.chat),
    "persona in": "prefix of the user's turn"
    if settings.persona_in == "user"
    else f"system message (placement={system_placement(model.chat)})",
    "personas": ", ".join(f"{p.name} {p.label}" for p in material.personas),
    "documented": ", ".join(p.name for p in material.personas if p.documented)
    + "; the others are an assumption"
    if any(p.documented for p in material.personas)
    else "none: all are an assumption",
    "problems of persona texts": _text_problems(material),
    "harmless prompts": f"{settings.harmless}; none shares a pair_id or a text with harmful ones",
    "block": f"{calibrated.block} of {model.arch.num_blocks}: {calibrated.why}",
    "median residual norm": f"{calibrated.scale.resid_L[calibrated.block]:.4g}",
    "answers of calibration": f"{calibrated.num_answers}, and {calibrated.num_empty} empty; "
    f"{calibrated.scale.provenance.get('too_short', 0)} too short for the norm",
    "window": settings.window,
    "dose of controls": f"{calibrated.kappa:.3g} median residual norms",
    "refusal direction": f"position {refusal.about['position']}, block {refusal.about['block']}"
    + ("" if refusal.about["selected"] else f"; NOT selected: {refusal.about['why']}"),
    "labels": settings.labels,
    "outcome": settings.outcome,
    "margin": f"{settings.delta}",
  }
  if left_out:
    lines["other models left out"] = "; ".join(f"{name}: {why}" for name, why in left_out.items())
  return pd.DataFrame({"what": list(lines), "value": list(lines.values())})


def _text_problems(material: Material) -> str:
  problems = check_texts(material.personas[0].lexicon)
  if not problems:
    return "none"
  kinds = pd.Series([f"{p.kind}{' (declared)' if p.declared else ''}" for p in problems])
  return ", ".join(f"{kind}: {n}" for kind, n in kinds.value_counts().items())
