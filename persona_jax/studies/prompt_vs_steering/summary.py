"""Numbers of the prompt-versus-steering study: every table of its report, with intervals."""

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
  """Add arm, persona, label, coef, kind and pair_id to the rows of a run."""
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
  return table


def refusal(rows: pd.DataFrame) -> pd.DataFrame:
  """Return refusal and degeneration rates by arm, persona and kind of prompt (Wilson intervals).

  Rows that were not steered as asked (`valid` false) are left out of the rates and counted.
  """
  out = []
  rows = rows[rows["kind"] != "trait"]
  keys = ["arm", "persona", "label", "kind"]
  for (arm, persona, label, kind), all_cells in rows.groupby(keys, sort=False):
    cells = all_cells[all_cells["valid"]]
    refused = intervals.rate(int(cells["refused"].sum()), len(cells))
    degenerate = intervals.rate(int(cells["degenerate"].sum()), len(cells))
    out.append(
      {
        "arm": arm, "persona": persona, "label": label, "kind": kind, "coef": cells["coef"].mean(),
        "n": len(cells), "refused": refused.value, "refused_low": refused.low,
        "refused_high": refused.high, "degenerate": degenerate.value,
        "degenerate_low": degenerate.low, "degenerate_high": degenerate.high,
        "invalid": len(all_cells) - len(cells),
      }
    )  # fmt: skip
  return pd.DataFrame(out)


def degeneration(rows: pd.DataFrame) -> pd.DataFrame:
  """Return the share of degenerate answers at each dose and arm, with Wilson intervals.

  The same rows at every dose: the trait questions, pushed towards the high poles. Rows that were
  not steered as asked are left out.
  """
  rows = rows[(rows["kind"] == "trait") & rows["valid"]]
  high = {p.name for p in load_personas() if len(p.poles) == 1 and p.poles[0].sign > 0}
  base = rows[rows["arm"] == "baseline"]
  pushed = rows[(rows["persona"] == "") | rows["persona"].isin(high)]
  out = []
  for arm in ("steer", "random"):
    mine = pushed[pushed["arm"] == arm]
    for coef, cells in [(0.0, base), *mine.groupby("coef")]:
      rate = intervals.rate(int(cells["degenerate"].sum()), len(cells))
      out.append((coef, arm, rate.value, rate.low, rate.high, rate.n))
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

  In nats per token, positive towards the persona's pole; bootstrap over the trait's items, both
  keys together, which errs on the wide side where all items shift alike.
  """
  shifts = _shift(items)
  out = []
  for persona in load_personas():
    sign = {pole.trait: pole.sign for pole in persona.poles}
    for (arm, trait), cells in shifts[shifts["persona"] == persona.name].groupby(
      ["arm", "trait"], sort=False
    ):
      mean = intervals.mean(sign[trait] * cells["shift"], cells["item_id"])
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
  bootstrap over the trait's items.
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
      a, b = (
        mine[mine["persona"] == name].set_index("item_id")["expression"] for name in (high, low)
      )
      estimate = intervals.mean((a - b.reindex(a.index)) / 2, a.index)
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
  least squares over all doses and items, in nats per token per median residual norm; bootstrap over
  items.
  """
  shifts = _shift(_on_curves(items))
  points, slopes = [], []
  for (trait, arm), cells in shifts.groupby(["trait", "arm"], sort=False):
    n = cells["item_id"].nunique()
    points.append(
      {"trait": trait, "arm": arm, "coef": 0.0, "value": 0.0, "low": 0.0, "high": 0.0, "n": n}
    )
    for coef, at in cells.groupby("coef"):
      estimate = _estimate(intervals.mean(at["shift"], at["item_id"]))
      estimate.pop("reason")
      points.append({"trait": trait, "arm": arm, "coef": coef, **estimate})
    slope = intervals.dose_slope(cells["coef"], cells["shift"], cells["item_id"])
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
