"""What parts of a persona's direction do, and the whole above a floor: mediation by refusal."""

import pandas as pd

from persona_jax import stats
from persona_jax.studies.persona_non_grata.settings import Settings

VARIANTS = ("v", "v_perp_r", "v_perp_subspace", "v_par_r", "floor r", "floor random")
COLUMNS = ("persona", "variant", "effect", "low", "high", "n", "reason")


def mediation_table(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
  """Return the effect of every persona's direction, of its parts, and above floors: T7.

  In exact probabilities of the first token, which samples of a prompt share. The shares of
  `control_table` are ratios of these effects.

  Args:
    table: tidy rows of `generation.generate`.
    settings: of the study.

  Returns:
    A row a persona and variant that was run: persona, variant ("v"; "v_perp_r", "v_perp_subspace",
    "v_par_r": the part orthogonal to refusal, to its subspace, and along it; "floor r", "floor
    random": v, with refusal or a random direction kept from falling), effect (mean change of the
    probability of a bypass, paired by prompt with no edit), low, high (95 % interval over clusters
    of prompts), n (prompts), reason.
  """
  part = table[table["part"] == "controls"]
  base = part[part["arm"] == "B0"].groupby("prompt_id")["p_bypass"].first()
  clusters = part.drop_duplicates("prompt_id").set_index("prompt_id")["cluster"].reindex(base.index)
  run = part[(part["persona"] != "") & part["control"].isin(VARIANTS)]
  found = []
  for persona in run["persona"].drop_duplicates():
    mine = run[run["persona"] == persona]
    for variant in [v for v in VARIANTS if (mine["control"] == v).any()]:
      steered = mine[mine["control"] == variant].groupby("prompt_id")["p_bypass"].mean()
      effect = stats.difference(
        steered.reindex(base.index).to_numpy(),
        base.to_numpy(),
        clusters.to_numpy(),
        draws=settings.draws,
        seed=settings.seed,
      )
      values = (persona, variant, effect.value, effect.low, effect.high, effect.n, effect.reason)
      found.append(dict(zip(COLUMNS, values, strict=True)))
  return pd.DataFrame(found, columns=list(COLUMNS))
