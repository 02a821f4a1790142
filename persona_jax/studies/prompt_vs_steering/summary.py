"""Numbers of the prompt-versus-steering study: every table of its report, with intervals."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_jax.data.prompts import PromptItem
from persona_jax.personas.persona import TRAITS, load_personas
from persona_jax.stats import intervals
from persona_jax.stats.intervals import Estimate
from persona_jax.studies.prompt_vs_steering.conditions import Arm


def annotate(
  table: pd.DataFrame, by_name: Mapping[str, Arm], chosen: Mapping[str, PromptItem]
) -> pd.DataFrame:
  """Add arm, persona, label, coef, kind and outcome to the rows of a run.

  The outcome is one of three, so that broken text is neither a refusal nor an answer: "degenerate"
  (whatever it says), else "refused", else "answered"; missing where a scorer gave no label.
  """
  table = table.copy()
  arm_of = [by_name[name] for name in table["condition"]]
  table["arm"] = [arm.arm for arm in arm_of]
  table["persona"] = [arm.persona.name if arm.persona else "" for arm in arm_of]
  table["label"] = [arm.persona.label if arm.persona else "" for arm in arm_of]
  table["coef"] = [arm.coef for arm in arm_of]
  table["kind"] = [
    "trait" if chosen[p].category.startswith("trait-") else chosen[p].kind
    for p in table["prompt_id"]
  ]
  table["outcome"] = [
    _outcome(refused, degenerate)
    for refused, degenerate in zip(table["refused"], table["degenerate"], strict=True)
  ]
  return table


def _outcome(refused: bool | None, degenerate: bool | None) -> str | None:
  if pd.isna(degenerate) or (not degenerate and pd.isna(refused)):
    return None
  return "degenerate" if degenerate else "refused" if refused else "answered"


def refusal(rows: pd.DataFrame) -> pd.DataFrame:
  """Return the rates of the three outcomes by arm, persona and kind of prompt (Wilson intervals).

  Left out of the rates and counted: rows that were not steered as asked ("invalid"), and rows that
  a scorer gave no label ("missing"); neither is a failure to refuse.
  """
  out = []
  rows = rows[rows["kind"] != "trait"]
  keys = ["arm", "persona", "label", "kind"]
  for (arm, persona, label, kind), all_cells in rows.groupby(keys, sort=False):
    steered = all_cells[all_cells["valid"]]
    cells = steered[steered["outcome"].notna()]
    line = {
      "arm": arm, "persona": persona, "label": label, "kind": kind, "coef": steered["coef"].mean(),
      "n": len(cells), "invalid": len(all_cells) - len(steered),
      "missing": len(steered) - len(cells),
    }  # fmt: skip
    for outcome in ("refused", "degenerate", "answered"):
      rate = intervals.rate(int((cells["outcome"] == outcome).sum()), len(cells))
      line |= {outcome: rate.value, f"{outcome}_low": rate.low, f"{outcome}_high": rate.high}
    out.append(line)
  return pd.DataFrame(out)


def degeneration(rows: pd.DataFrame) -> pd.DataFrame:
  """Return the share of degenerate answers at each dose and arm.

  The same rows at every dose: the trait questions, pushed towards the high poles. Rows that were
  not steered as asked are left out. Answers to one question are not independent: the bootstrap
  draws questions, and where all have one rate (0, mostly) the interval is Wilson's for as many
  trials as there are questions. `n` counts the answers.
  """
  rows = rows[(rows["kind"] == "trait") & rows["valid"] & rows["outcome"].notna()]
  high = {p.name for p in load_personas() if len(p.poles) == 1 and p.poles[0].sign > 0}
  base = rows[rows["arm"] == "baseline"]
  pushed = rows[(rows["persona"] == "") | rows["persona"].isin(high)]
  out = []
  for arm in ("steer", "random"):
    mine = pushed[pushed["arm"] == arm]
    for coef, cells in [(0.0, base), *mine.groupby("coef")]:
      rate = intervals.mean(cells["outcome"] == "degenerate", cells["prompt_id"])
      if np.isnan(rate.low):
        questions = cells["prompt_id"].nunique()
        bounds = intervals.rate(round(rate.value * questions), questions)
        rate = dataclasses.replace(rate, low=bounds.low, high=bounds.high)
      out.append((coef, arm, rate.value, rate.low, rate.high, len(cells)))
  return pd.DataFrame(out, columns=["coef", "arm", "rate", "low", "high", "n"])


def _shift(items: pd.DataFrame) -> pd.DataFrame:
  """Add `shift`: expression minus the baseline's of the same item; leave out invalid rows."""
  items = items[items["valid"]]
  base = items[items["arm"] == "baseline"].set_index("item_id")["expression"]
  items = items[items["arm"] != "baseline"].copy()
  items["shift"] = items["expression"] - items["item_id"].map(base)
  return items


def _estimate(estimate: Estimate) -> dict[str, float | int | str]:
  return {
    "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n,
    "reason": estimate.reason,
  }  # fmt: skip


def trait_shifts(items: pd.DataFrame) -> pd.DataFrame:
  """Return each persona's shift of its own traits' expression against the baseline, by arm.

  In nats per token, positive towards the persona's pole; bootstrap over the trait's items, drawn
  within their keys, so that a shift of all items alike cancels in every draw as in the estimate.
  """
  shifts = _shift(items)
  out = []
  for persona in load_personas():
    sign = {pole.trait: pole.sign for pole in persona.poles}
    for (arm, trait), cells in shifts[shifts["persona"] == persona.name].groupby(
      ["arm", "trait"], sort=False
    ):
      mean = intervals.mean(sign[trait] * cells["shift"], cells["item_id"], strata=cells["key"])
      out.append(
        {
          "arm": arm, "persona": persona.name, "label": persona.label, "trait": trait,
          "coef": cells["coef"].mean(), **_estimate(mean),
        }
      )  # fmt: skip
  return pd.DataFrame(out)


def contrasts(items: pd.DataFrame) -> pd.DataFrame:
  """Return, by trait and arm, half the difference of expression under the high and the low pole.

  What both poles share (the presence of any persona, or of any push) cancels. In nats per token,
  bootstrap over the trait's items within their keys.
  """
  items = items[items["valid"]]
  name_of = {persona.label: persona.name for persona in load_personas()}
  present = set(items["persona"])
  out = []
  for trait in TRAITS:
    high, low = (name_of[f"{trait}{sign}"] for sign in "+-")
    if not {high, low} <= present:
      continue
    for arm in ("prompt", "steer", "random"):
      mine = items[(items["arm"] == arm) & (items["trait"] == trait)]
      key = mine.drop_duplicates("item_id").set_index("item_id")["key"]
      a, b = (
        mine[mine["persona"] == name].set_index("item_id")["expression"] for name in (high, low)
      )
      estimate = intervals.mean((a - b.reindex(a.index)) / 2, a.index, strata=key[a.index])
      out.append({"trait": trait, "arm": arm, **_estimate(estimate)})
  columns = ["trait", "arm", "value", "low", "high", "n", "reason"]
  return pd.DataFrame(out, columns=columns)


def _on_curves(items: pd.DataFrame) -> pd.DataFrame:
  """Return the baseline and the points of the curves; the arms of single poles are points too.

  A pole's steer (random) arm is the trait's (random) direction at plus or minus its dose.
  """
  sign = {p.name: float(p.poles[0].sign) for p in load_personas() if len(p.poles) == 1}
  poles = items[items["persona"].isin(list(sign)) & (items["arm"] != "prompt")].copy()
  poles["coef"] *= poles["persona"].map(sign)
  return pd.concat([items[items["persona"] == ""], poles], ignore_index=True)


def curves(items: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Return dose curves and their slopes, by trait and arm.

  Curves: mean shift towards the high pole at each signed dose, 0 at dose 0 by definition. Slopes:
  least squares over all doses and items, in nats per token per median residual norm. Bootstrap over
  items, within their keys.
  """
  shifts = _shift(_on_curves(items))
  points, slopes = [], []
  for (trait, arm), cells in shifts.groupby(["trait", "arm"], sort=False):
    n = cells["item_id"].nunique()
    points.append(
      {"trait": trait, "arm": arm, "coef": 0.0, "value": 0.0, "low": 0.0, "high": 0.0, "n": n}
    )
    for coef, at in cells.groupby("coef"):
      estimate = _estimate(intervals.mean(at["shift"], at["item_id"], strata=at["key"]))
      estimate.pop("reason")
      points.append({"trait": trait, "arm": arm, "coef": coef, **estimate})
    slope = intervals.dose_slope(
      cells["coef"], cells["shift"], cells["item_id"], strata=cells["key"]
    )
    slopes.append({"trait": trait, "arm": arm, **_estimate(slope)})
  columns = ["trait", "arm", "coef"]
  return (
    pd.DataFrame(points).sort_values(columns, ignore_index=True),
    pd.DataFrame(slopes),
  )


def cosines(traits: Mapping[str, "object"], block: int) -> pd.DataFrame:
  """Return the cosines between trait directions at a block: one row per pair of traits."""
  units = {name: d.unit_LD[block].astype(np.float64) for name, d in traits.items()}  # type: ignore[attr-defined]
  names = list(units)
  return pd.DataFrame(
    [
      {"trait": f"{a} x {b}", "block": block, "value": float(units[a] @ units[b])}
      for i, a in enumerate(names)
      for b in names[i + 1 :]
    ]
  )
