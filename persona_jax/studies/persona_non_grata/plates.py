"""The figures of the report: which apply to this study, from which tables, in which words."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from persona_jax.personas.persona import Persona
from persona_jax.report.arm_figures import draw_forest, draw_odds
from persona_jax.report.check_figures import draw_dif, draw_models, draw_side_effects
from persona_jax.report.dose_figures import draw_doses, draw_labels
from persona_jax.report.geometry_figures import draw_alignment
from persona_jax.report.mechanism_figures import draw_effects, draw_mediation, draw_specifications
from persona_jax.report.persona_figures import draw_grid, draw_matched
from persona_jax.report.rank_figures import draw_ranks
from persona_jax.report.study_page import Plate
from persona_jax.studies.persona_non_grata.gates import rate_name
from persona_jax.studies.persona_non_grata.settings import Settings

_WITH_BOUNDS = ("arm", "persona", "rate", "low", "high")
_BAND = ("measure", "low", "high", "directions", "prompts", "reason")
_BROKEN = 0.1  # share of degenerate answers above which a dose is shaded
_UNTESTED = "nothing is tested ({}), so that rankings and inversions are not shown"


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """Figures of a study.

  Attributes:
    plates: in the order of the page.
    absent: name → why it does not apply.
  """

  plates: tuple[Plate, ...]
  absent: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class _Study:
  """What figures are drawn of."""

  settings: Settings
  tables: Mapping[str, pd.DataFrame]
  personas: Sequence[Persona]
  blocked: str
  untested: str

  def __getitem__(self, name: str) -> pd.DataFrame:
    """Return a table; one that was not written is empty."""
    return self.tables.get(name, pd.DataFrame())

  @property
  def labels(self) -> dict[str, str]:
    return {p.name: f"{p.name}  {p.label}" for p in self.personas}

  @property
  def rate(self) -> str:
    return rate_name(self.settings, self.blocked)

  @property
  def matches(self) -> list[str]:
    arms = set(self["effects"]["arm"])
    return [f"AS:{by}" for by in self.settings.matches if f"AS:{by}" in arms]

  @property
  def opposites(self) -> dict[str, str]:
    """Return {persona: persona whose direction is its negative}."""
    if self.settings.contrast != "high_low":
      return {}
    by_poles = {frozenset(map(str, p.poles)): p.name for p in self.personas}
    turned = {p.name: frozenset(str(pole.opposite) for pole in p.poles) for p in self.personas}
    return {name: by_poles[poles] for name, poles in turned.items() if poles in by_poles}


def draw(
  settings: Settings,
  tables: Mapping[str, pd.DataFrame],
  personas: Sequence[Persona],
  blocked: str,
  untested: str,
) -> Drawn:
  """Draw every figure that there are numbers for.

  Args:
    settings: of the study.
    tables: of the study, by name.
    personas: of the study.
    blocked: why nothing may be claimed, or "": the figure that holds for any model comes first.
    untested: why nothing is tested, or "": rankings and inversions are then not drawn.
  """
  study = _Study(settings, tables, personas, blocked, untested)
  drawers: dict[str, Callable[[_Study], Plate | str]] = {
    "F1": _ranks, "F2": _forest, "F2b": _odds, "F3": _doses, "F4": _labels, "F5": _models,
    "F6": _matched, "F7": _alignment, "F8": _census, "F9": _mediation, "F10": _specifications,
    "F11": _grid, "F12": _dif, "F13": _side_effects,
  }  # fmt: skip
  order = sorted(drawers, key=lambda name: bool(blocked) and name != "F2b")
  plates: list[Plate] = []
  absent: dict[str, str] = {}
  for name in order:
    found = drawers[name](study)
    if isinstance(found, str):
      absent[name] = found
    else:
      given = {
        "persona": "; ".join(study.labels.values()),
        "margin": (settings.delta, -settings.delta),
      }
      plates.append(dataclasses.replace(found, given=given | dict(found.given)))
  absent["F14"] = "cues and swaps of thoughts: experiments/reasoning_traces.py draws them"
  return Drawn(tuple(plates), absent)


def _ranks(study: _Study) -> Plate | str:
  if study.untested:
    return _UNTESTED.format(study.untested)
  if not study.matches or len(set(study["effects"]["persona"])) < 2:
    return "fewer than two personas are steered"
  return Plate(
    "F1",
    "Who is more dangerous: by prompt, and steered",
    f"{study.rate}, as ranks: rank 1 has the highest. A coloured line is a persona whose order "
    "with another certainly reverses between the methods, by more than the margin in both; grey"
    " lines cross as chance would have it, and say nothing.",
    "Slope graphs from the rank by system prompt to the rank steered, a panel a match.",
    draw_ranks(
      study["effects"], study["crossings"], study.labels, rate_name=study.rate,
      delta=study.settings.delta,
    ),
    {"effects": _WITH_BOUNDS, "crossings": ("p", "q", "crosses", "match")},
  )  # fmt: skip


def _forest(study: _Study) -> Plate | str:
  if study["effects"].empty:
    return "no persona has a rate"
  return Plate(
    "F2",
    "Every persona by every method",
    f"{study.rate} with 95 % intervals over prompts and wordings. The grey band, where there is "
    "one, is what random directions do at the controls' dose: a steered persona inside it is not "
    "told apart from them.",
    "Forest plot: a line a persona, a mark a method, before baselines and the band of chance.",
    draw_forest(
      study["effects"], study["baselines"], study["bands"], study.labels,
      rate_name=study.rate,
    ),
    {"effects": _WITH_BOUNDS, "baselines": _WITH_BOUNDS, "bands": _BAND},
  )  # fmt: skip


def _odds(study: _Study) -> Plate | str:
  if study["odds"].empty:
    return "no persona was measured"
  columns = ("arm", "persona", "delta", "low", "high", "replicates")
  return Plate(
    "F2b",
    "How far each persona moves the model from refusing, or towards it",
    "Change of the exact log-odds that the first token of an answer begins a refusal, in nats, "
    "each method against its own baseline; to the left, less refusing. It is measured without "
    "sampling, and says something of models that hardly ever refuse. It is no rate of harmful "
    "answers.",
    "Forest plot: a line a persona, a mark a method, around zero, before the band of chance.",
    draw_odds(study["odds"], study["bands"], study.labels),
    {"odds": columns, "bands": _BAND},
  )


def _doses(study: _Study) -> Plate | str:
  if study["dose_curves"].empty:
    return "no dose curve was run"
  measured = set(study["dose_curves"]["measure"]) == {"label"}
  rate = study.rate if measured else "Exact probability that the first token begins no refusal"
  return Plate(
    "F3",
    "Dose and response",
    f"{rate}, over the dose in median residual norms, both signs through no edit at zero. Above "
    "the curves stand the doses at which steering is as strong as the prompt, by each scale and"
    " wording; shaded doses break the text.",
    "Curves over the dose, a panel a direction, with the matched doses above.",
    draw_doses(
      study["dose_curves"], study["matches"], study.labels, rate_name=study.rate,
      opposites=study.opposites, most_degenerate=_BROKEN,
    ),
    {
      "dose_curves": ("persona", "kappa", "value", "low", "high", "measure", "degenerate"),
      "matches": ("persona", "by", "coef", "coef_low", "coef_high", "status"),
    },
    {"share of degenerate answers from which a dose is shaded, %": 100 * _BROKEN},
  )  # fmt: skip


def _labels(study: _Study) -> Plate | str:
  curves = study["dose_curves"]
  if curves.empty or curves["bypass"].isna().all():
    return "answers were not generated at the doses of the curve, so they have no labels"
  return Plate(
    "F4",
    "What answers become as the dose grows",
    "Shares of answers that refuse, bypass, or fall apart, stacked. A rate that falls because "
    "answers fall apart is no safety.",
    "Stacked shares of labels over the dose, a panel a direction.",
    draw_labels(curves, study.labels, opposites=study.opposites),
    {"dose_curves": ("persona", "kappa", "n", "missing", "bypass", "refuse", "degenerate")},
  )


def _matched(study: _Study) -> Plate | str:
  if study.untested:
    return _UNTESTED.format(study.untested)
  named = study.settings.named
  # H3 rests on the confirm split alone once it is open.
  split = "confirm" if len(study["inversions_confirm"]) else "test"
  table = "inversions_confirm" if split == "confirm" else "inversions"
  if study[table].empty or named not in set(study[table]["persona"]):
    return f"{named} is not matched in every wording"
  columns = ["persona", "direction", "match", "d_SP", "SP_low", "SP_high", "d_AS", "AS_low",
             "AS_high", "p", "p_holm", "inverted"]  # fmt: skip
  columns += [c for c in study[table] if c.startswith(("d_SP_", "d_AS_"))]
  return Plate(
    "F6",
    f"{named} against the other personas, under each match",
    f"D on the {split} split: its rate less the mean of the others', by prompt and steered, with "
    "bounds that are each one-sided at 95 %. It inverts under a match if D by prompt lies left of "
    "the margin and D steered right of it; the third hypothesis asks for that under every match.",
    "Two marks a match, D by prompt and D steered, before the margin.",
    draw_matched(
      study[table], named, study.matches, study.labels, delta=study.settings.delta,
      rate_name=study.rate,
    ),
    {table: columns},
  )  # fmt: skip


def _alignment(study: _Study) -> Plate | str:
  alignment = study["geometry_alignment"]
  names = [name for name in study.labels if name in set(alignment.get("direction", ()))]
  if not names:
    return "no persona's direction is reliable, or none was elicited"
  columns = ["direction", "block", "cos", "coupling", "low", "high"]
  return Plate(
    "F7",
    "How directions lie to refusal, block by block",
    "Above: cosine of each persona's direction with the refusal direction of the block. Below: "
    "what adding it does to the log-odds of a refusal, by the derivative. Only what leaves the "
    "grey band differs from random directions; a cosine without an effect below it explains "
    "nothing.",
    "Two panels of lines by block, one line a persona, each before a grey band of chance.",
    draw_alignment(
      alignment,
      names,
      steered=_block(study),
      cosines=study["geometry_cosines"],
      labels=study.labels,
    ),
    {
      "geometry_alignment": [*columns, "cos_null_low", "cos_null_high"],
      "geometry_cosines": ["direction", "block", "metric", "low", "high"],
    },
  )


def _grid(study: _Study) -> Plate | str:
  effects = study["effects"]
  poles = {p.name: tuple(map(str, p.poles)) for p in study.personas}
  inside = [n for n, mine in poles.items() if {x[0] for x in mine} <= {"C", "A"}]
  mine = effects[effects["persona"].isin(inside)] if len(effects) else effects
  if len(set(mine.get("persona", ()))) < 2:
    return "there are no personas of conscientiousness and agreeableness"
  return Plate(
    "F11",
    "Conscientiousness and agreeableness together",
    f"{study.rate}; colours are the change against each method's own baseline, which stands in the "
    "middle. Cells that no persona stands for are hatched.",
    "Grids of three by three cells, a panel a method.",
    draw_grid(mine, study["baselines"], {n: poles[n] for n in inside}, rate_name=study.rate),
    {"effects": (*_WITH_BOUNDS, "effect"), "baselines": _WITH_BOUNDS},
  )


def _models(study: _Study) -> Plate | str:
  if study.untested:
    return _UNTESTED.format(study.untested)
  if study["rankings"].empty or "rho" not in study["rankings"]:
    return "fewer than two rankings can be compared"
  columns = ["x", "y", "rho", "low", "high", "reliability_x", "reliability_y", "measurable"]
  return Plate(
    "F5",
    "Do rankings agree, between methods and between models?",
    "Spearman's correlation of the personas' rates, its interval, and how reliable either ranking "
    "is by itself: two rankings of one truth agree only as far as both are reliable. Models are "
    "compared by their prompted rankings alone.",
    "Matrices of rank correlations, with intervals and reliabilities in the cells.",
    draw_models(study["rankings"]),
    {"rankings": columns},
  )


def _census(study: _Study) -> Plate | str:
  if study["geometry_census"].empty or study["geometry_regressions"].empty:
    return "no census of directions was measured"
  columns = ["direction", "kind", "outcome", "delta", "low", "high", "coef", "cos_euclidean"]
  fitted = ["outcome", "predictor", "slope", "low", "high", "intercept", "r2"]
  return Plate(
    "F8",
    "Does alignment with refusal foretell what steering does?",
    "Each point is a direction: how it lies to refusal, and what adding it does. The line is "
    "fitted to those that are no personas: random ones and components, grey, and traits. A line "
    "that explains little of them says little of a persona, wherever its point lies.",
    "Scatter of the change of refusal log-odds over the cosine, with a line and its band.",
    draw_effects(study["geometry_census"], study["geometry_regressions"], study.labels),
    {"geometry_census": columns, "geometry_regressions": fitted},
  )


def _mediation(study: _Study) -> Plate | str:
  if study["mediation"].empty or set(study["mediation"]["variant"]) == {"v"}:
    return "no parts of directions, and no floors, were among the controls"
  return Plate(
    "F9",
    "Is it the part along refusal?",
    "What the whole direction does, what it does without its part along refusal, that part "
    "alone, and the whole above a floor under refusal or under a random direction.",
    "Bars of effects, a panel a part of the direction, a bar a persona.",
    draw_mediation(study["mediation"], study.labels),
    {"mediation": ["persona", "variant", "effect", "low", "high", "n"]},
  )


def _specifications(study: _Study) -> Plate | str:
  if study.untested:
    return _UNTESTED.format(study.untested)
  if study["specifications"].empty:
    return "no other specifications were run (spec_prompts)"
  named = study.settings.named
  return Plate(
    "F10",
    "Would other choices have said the same?",
    f"{study.labels[named]}: what steering adds to its rate beyond the others, in every "
    "specification of block, window, rule of composites and dose, in their order; below, "
    "which choices each consists of.",
    "Sorted estimates above, dots for the choices below.",
    draw_specifications(study["specifications"], study.labels[named], delta=study.settings.delta),
    {
      "specifications": [
        "block",
        "window",
        "rule",
        "kappa",
        "d_sp",
        "d_as",
        "coherent",
        "holds",
        "primary",
      ]
    },
  )


def _dif(study: _Study) -> Plate | str:
  dif = study["dif"]
  mine = dif[dif["label"] == "bypass"] if len(dif) else dif
  if mine.empty:
    lacking = study["lacking"]
    why = lacking[lacking["table"] == "dif"]["reason"] if len(lacking) else []
    return next(iter(why), "no known labels")
  mine = mine.assign(judge=mine["judge"] + ", " + mine["source"])
  return Plate(
    "F12",
    "Does the judge err alike under every persona?",
    "How often the labels call a harmless answer harmful, and miss a harmful one, by persona,"
    " against known labels. A judge that hears a persona's tone would move these apart.",
    "Error rates of judges with intervals, by persona.",
    draw_dif(mine, study.labels | {"": "no persona"}),
    {
      "dif": ["judge", "source", "label", "persona", "error", "rate", "low", "high", "n", "differs"]
    },
  )


def _side_effects(study: _Study) -> Plate | str:
  if study["side_effects"].empty:
    return "none was measured"
  return Plate(
    "F13",
    "What else they do",
    "Refusals of harmless requests that sound risky, knowledge, the change of next tokens on "
    "harmless requests, and the shift on questionnaire items of the persona's own traits. Items of "
    "other traits are not asked, so that cross-talk is not shown.",
    "Small panels, a measure each, a line a persona.",
    draw_side_effects(study["side_effects"], study.labels),
    {"side_effects": ["measure", "by", "arm", "persona", "value", "low", "high"]},
  )


def _block(study: _Study) -> int:
  return int(study["matches"]["block"].iloc[0])
