"""Stage "analyse": gates, tables, hypotheses, and what may be claimed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from persona_jax.data.annotation import agreed
from persona_jax.engine.model import Model
from persona_jax.runs.run import write_json, write_parquet
from persona_jax.scorers.base import Scorer
from persona_jax.stats.mixed import MixedModel, mixed_model
from persona_jax.stats.outcomes import Outcomes
from persona_jax.studies.persona_non_grata import control_tables, descriptions, tables, validating
from persona_jax.studies.persona_non_grata import gates as gating
from persona_jax.studies.persona_non_grata.calibrating import Calibrated
from persona_jax.studies.persona_non_grata.conditions import test_arms
from persona_jax.studies.persona_non_grata.exploratory import corrected
from persona_jax.studies.persona_non_grata.extraction import LEAST_RELIABILITY, Extracted
from persona_jax.studies.persona_non_grata.gates import Competence, Gate
from persona_jax.studies.persona_non_grata.geometry import Geometry, examine
from persona_jax.studies.persona_non_grata.hypotheses import (
  NONE_ELICITED,
  SUPPORTED,
  Verdict,
  judge,
)
from persona_jax.studies.persona_non_grata.judged_rates import with_corrected
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.mediation_table import mediation_table
from persona_jax.studies.persona_non_grata.refusal import Refusal
from persona_jax.studies.persona_non_grata.settings import Settings
from persona_jax.studies.persona_non_grata.side_effects import side_effects
from persona_jax.studies.persona_non_grata.specification import (
  share,
  specification_curve,
)
from persona_jax.studies.persona_non_grata.style import StyleInvariance
from persona_jax.studies.persona_non_grata.tables import Measured
from persona_jax.studies.persona_non_grata.utility import ask_items


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """What the study found.

  Attributes:
    title: of any report; another one where a gate fails.
    gates: all six.
    verdicts: on the four hypotheses.
    claims: a row a persona that may be said to invert: claim ("H3", or "AS-worse" and "SP-worse" of
      the exploratory table), subject, text. Empty where a gate blocks.
    tables: by name: rates, effects, rankings, inversions, crossings, interaction, rates_confirm and
      inversions_confirm (empty where that split is not open), side_effects, alignment_tests,
      composites, refusal, trait_cosines, specifications, controls, mediation, doses, baselines,
      odds, control_rates, bands, dose_curves, missing, matches, quality, kept, expression, setup,
      families (of exploratory p), geometry_…; judges, dif, style, annotators, ppi and lacking
      (`validating.validation_tables`).
    geometry: of personas and refusal.
    mixed: the logistic mixed model, or None where outcomes are no labels.
    measured: outcomes and draws.
    any_elicited: whether the traits of any persona were elicited.
  """

  title: str
  gates: tuple[Gate, ...]
  verdicts: tuple[Verdict, ...]
  claims: pd.DataFrame
  tables: Mapping[str, pd.DataFrame]
  geometry: Geometry
  mixed: MixedModel | None
  measured: Measured
  any_elicited: bool = True

  @property
  def blocked(self) -> str:
    """Why nothing can be claimed, or ""."""
    return gating.blocked_by(self.gates)

  @property
  def untested(self) -> str:
    """Why nothing is tested: a gate that blocks, or no persona that was elicited; or ""."""
    return self.blocked or ("" if self.any_elicited else NONE_ELICITED)


def analyse(
  model: Model,
  settings: Settings,
  material: Material,
  extracted: Extracted,
  refusal: Refusal,
  calibrated: Calibrated,
  table: pd.DataFrame,
  directory: Path,
  *,
  others: Mapping[str, Outcomes] | None = None,
  left_out: Mapping[str, str] = MappingProxyType({}),
  labelled: pd.DataFrame | None = None,
  annotations: pd.DataFrame | None = None,
  scorer: Scorer | None = None,
  style: Sequence[StyleInvariance] = (),
  competence: Competence | None = None,
  judged_by: str = "",
) -> Findings:
  """Analyse the grid and write every table.

  Args:
    table: of `generation.generate`.
    others: prompt arms of other models over the same personas and prompts, for H1 and H2
      (`other_models.prompt_arms`).
    left_out: studies of other models that nothing may rest on → why; said in the setup.
    labelled: answers whose labels are known (`validating.read_labelled`), for gate G5 and T8.
    annotations: people's labels of rows of this study (`validating.read_annotated`): for gate G5,
      T8, and rates that are corrected for the judge's errors.
    scorer: that labelled the grid; needed with `labelled`.
    style, competence: of `judging.judge`, for gates G5 and G6.
    judged_by: `Judges.key`, kept for comparisons with other models' studies.
  """
  # Personas whose traits were not elicited are described, and left out of every test; where none
  # was, rates are described of all, and nothing is tested.
  elicited = [p.name for p in material.personas if extracted.elicited(p)]
  found = tables.measured(settings, table, elicited or [p.name for p in material.personas])
  expression = _expression(model, settings, material, directory)
  read = validating.readings(table, annotations=annotations, labelled=labelled, scorer=scorer)
  validated = validating.validation_tables(table, read, style, annotations)
  people = None if annotations is None else agreed(annotations)
  gates = gating.judge_gates(
    settings,
    table,
    refusal.about,
    expression,
    readings=read,
    style=style,
    competence=competence,
  )
  leave_out = {
    f"reliability below {LEAST_RELIABILITY}": extracted.unreliable(calibrated.block),
    "not elicited": _not_elicited(extracted),
  }
  geometry = examine(
    model,
    settings,
    material,
    extracted,
    refusal,
    calibrated,
    directory,
    leave_out=leave_out,
  )
  # It took long, and nothing that fails behind it may cost it.
  for name, one in geometry.tables().items():
    write_parquet(one, directory / "tables" / f"{name}.parquet")
  curve = specification_curve(
    model,
    settings,
    material,
    extracted,
    calibrated,
    refusal.ids,
    _prompted(settings, table),
    directory,
    among=elicited,
    progress=False,
  )
  inversions, crossed, interaction = tables.inversion_tables(found, settings)
  confirmed = tables.confirmed_inversions(settings, table, found.outcomes.personas)
  blocked = gating.blocked_by(gates)
  untested = blocked or ("" if elicited else NONE_ELICITED)
  verdicts = judge(
    settings,
    found,
    inversions,
    geometry.regressions,
    geometry.traits[geometry.traits["direction"].isin(_elicited_traits(material, extracted))],
    blocked,
    others=others,
    elicited=elicited,
    held=share(curve),
    confirmed=confirmed,
  )
  asked = ask_items(
    model,
    settings,
    material.util,
    test_arms(settings, material, extracted, calibrated),
    directory,
    progress=False,
  )
  mixed = _mixed(settings, found, inversions)
  baselines = control_tables.baseline_table(table, settings)
  rates_of_controls = control_tables.control_rates(table, settings)
  every = corrected(
    {
      "setup": descriptions.setup(model, settings, material, refusal, calibrated, left_out),
      "rates": with_corrected(tables.rates(table), table, people),
      "effects": tables.effects(found, settings),
      "rankings": _not_tested(tables.rankings(found, others or {}), untested, measurable=False),
      "inversions": _not_tested(inversions, untested, inverted=False),
      "rates_confirm": with_corrected(tables.rates(table, "confirm"), table, people, "confirm"),
      "inversions_confirm": _not_tested(
        inversions[:0] if confirmed is None else confirmed, untested, inverted=False
      ),
      "side_effects": side_effects(settings, table, asked, calibrated.matches),
      "crossings": _not_tested(crossed, untested, crosses=False),
      "interaction": _not_tested(interaction, untested, p=np.nan, crossings=np.nan),
      "alignment_tests": tables.alignment_tests(
        found, _poles(material, extracted, leave_out), _cosines(geometry, calibrated)
      ),
      "composites": descriptions.composites(extracted, refusal),
      "refusal": descriptions.refusal_table(refusal),
      "trait_cosines": descriptions.trait_cosines(extracted),
      "specifications": curve,
      "controls": control_tables.control_table(table, settings),
      "mediation": mediation_table(table, settings),
      "doses": control_tables.dose_table(table, settings),
      "baselines": baselines,
      "odds": control_tables.odds_table(table, settings, [p.name for p in material.personas]),
      "control_rates": rates_of_controls,
      "bands": control_tables.bands(rates_of_controls, baselines),
      "dose_curves": control_tables.dose_curves(table, settings),
      "missing": tables.missing_table(table, calibrated.matches),
      "matches": calibrated.matches,
      "quality": extracted.quality,
      "kept": extracted.kept,
      "expression": expression,
    }
    | validated
    | geometry.tables()
  )
  claims = inverting(verdicts, settings, inversions if elicited else inversions[:0], blocked)
  folder = directory / "tables"
  for name, one in {**every, "claims": claims}.items():
    write_parquet(one, folder / f"{name}.parquet")
  write_parquet(found_rows(found), folder / "outcomes.parquet")
  title = gating.WEAK_TITLE if blocked else gating.TITLE
  write_json(
    {
      "title": title,
      "blocked": blocked,
      "untested": untested,
      "judged_by": judged_by,
      "gates": [dataclasses.asdict(gate) for gate in gates],
      "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    },
    folder / "verdicts.json",
  )
  return Findings(
    title, tuple(gates), tuple(verdicts), claims, every, geometry, mixed, found, bool(elicited)
  )


def _not_tested(table: pd.DataFrame, untested: str, **verdict: object) -> pd.DataFrame:
  """Return a table without its verdicts, and with the reason, where nothing can be tested."""
  if not untested or table.empty:
    return table
  return table.assign(**verdict, reason=f"not testable: {untested}")


def _not_elicited(extracted: Extracted) -> list[str]:
  """Return the contrasts that kept too few pairs of answers; none where prompts are read."""
  kept = extracted.kept
  return [] if kept.empty else list(kept[~kept["elicited"].astype(bool)]["contrast"])


def _prompted(settings: Settings, table: pd.DataFrame) -> dict[str, np.ndarray]:
  """Return exact probabilities of the prompt arm on the prompts of the specification curve."""
  arm = table[(table["part"] == "test") & (table["arm"] == "SP")]
  first = list(arm["prompt_id"].drop_duplicates())[: settings.spec_prompts]
  mine = arm[arm["prompt_id"].isin(first)]
  means = mine.groupby(["persona", "prompt_id"])["p_bypass"].mean()
  return {str(name): one.to_numpy(np.float64) for name, one in means.groupby("persona")}


def _poles(
  material: Material, extracted: Extracted, leave_out: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
  """Return the poles of the personas whose geometry is tested."""
  left = {name for names in leave_out.values() for name in names}
  return {
    p.name: [str(pole) for pole in p.poles]
    for p in material.personas
    if not left.intersection(extracted.made_of[p.name])
  }


def _cosines(geometry: Geometry, calibrated: Calibrated) -> dict[str, float]:
  """Return the cosine of every persona with refusal at the steered block."""
  table = geometry.alignment
  mine = table[table["block"] == calibrated.block]
  return dict(zip(mine["direction"], mine["cos"], strict=True))


def found_rows(found: Measured) -> pd.DataFrame:
  """Return outcomes as a tidy table: arm, persona, replicate, prompt_id, cluster, y."""
  o = found.outcomes
  index = pd.MultiIndex.from_product(
    [o.arms, o.personas, o.replicates, o.prompts],
    names=["arm", "persona", "replicate", "prompt_id"],
  )
  table = pd.DataFrame({"y": o.y_MPKN.ravel()}, index=index).reset_index()
  cluster = dict(zip(o.prompts, o.cluster_N, strict=True))
  return table.assign(cluster=[cluster[p] for p in table["prompt_id"]])


def _elicited_traits(material: Material, extracted: Extracted) -> list[str]:
  """Return the traits whose + pole's contrast was elicited; all where prompts are read."""
  if extracted.kept.empty:
    return material.traits
  by_name = extracted.kept.set_index("contrast")["elicited"]
  return [trait for trait in material.traits if by_name[f"{trait}+"]]


def _expression(
  model: Model, settings: Settings, material: Material, directory: Path
) -> pd.DataFrame:
  path = directory / "calibration" / "expression.parquet"
  if not path.exists():
    write_parquet(gating.prompt_expression(model, settings, material), path)
  return pd.read_parquet(path)


def _mixed(settings: Settings, found: Measured, inversions: pd.DataFrame) -> MixedModel | None:
  """Fit the mixed model to labels of one sample, compared in sign with D_AS - D_SP."""
  if settings.outcome != "label" or settings.samples > 1 or not found.steered:
    return None
  if len(found.outcomes.personas) < 2:
    return None
  arm = found.steered[0]
  own = inversions[(inversions["match"] == arm) & (inversions["direction"] == "AS-worse")]
  against = {r["persona"]: r["d_AS"] - r["d_SP"] for r in own.to_dict("records")}
  return mixed_model(found.outcomes, arms=("SP", arm), against=against)


def inverting(
  verdicts: Sequence[Verdict], settings: Settings, inversions: pd.DataFrame, blocked: str
) -> pd.DataFrame:
  """Return which personas may be said to invert: the named one by H3, and others.

  Those of the exploratory table are Holm-corrected over personas and directions, and hold in each
  replicate and under every match: a persona that a match could not be made for is none of them.
  """
  rows = [
    {"claim": v.name, "subject": settings.named, "text": str(v)}
    for v in verdicts
    if v.name == "H3" and v.status == SUPPORTED
  ]
  wanted = {f"AS:{by}" for by in settings.matches}
  if not blocked and len(inversions):
    for (persona, direction), mine in inversions.groupby(["persona", "direction"], sort=False):
      if set(mine["match"]) == wanted and bool(mine["inverted"].all()):
        worst = mine["p_holm"].max()
        text = f"{persona}: {direction} under {', '.join(mine['match'])}, Holm p {worst:.2g}"
        rows.append({"claim": direction, "subject": persona, "text": text})
  return pd.DataFrame(rows, columns=["claim", "subject", "text"])
