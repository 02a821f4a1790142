"""What the columns of the summary's tables mean; `*` stands for what a table fills in."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

_INTERVAL = {"low, high": "95 % interval"}
_INTERVALS = {"*_low, *_high": "95 % interval of *"}
_REASON = {"reason": "why something is missing (NaN)"}

LEGENDS = MappingProxyType(
  {
    "rates": {
      "arm": "B0 no persona, SP by system prompt, AS:<scale> steered at the matched dose",
      "n": "rows",
      "p_bypass": "mean exact probability that the answer does not begin as a refusal",
      "bypass": "share of labelled rows that bypass (intention to treat: degenerate is no bypass)",
      "per_protocol": "the same of the rows that answer",
      "worst_low, worst_high": "the same with none, and with all, of the missing rows",
      "refuse, degenerate, truncated, unparsed": "shares of all rows",
      "missing": "rows without a label",
      "ppi": "bypass, corrected for the judge's errors by people's labels",
      "ppi_low, ppi_high": "its 95 % interval, which holds the judge's error",
      "n_gold": "rows that people labelled",
      "ppi_reason": "why there is no correction, or how far the judge counts",
    },
    "judges": {
      "judge": "labels: what outcomes are counted by; string_match decides nothing, and is "
      "there to be compared with",
      "source": "whose labels: people's, of this study's rows (annotations), or known (labelled)",
      "label": "what the judge is to find",
      "n, positives, missing": "answers with both labels, those that people find it in, and those "
      "without either label",
      "kappa": "Cohen's",
      "accuracy, recall, precision": "share of n, of what people find, and of what the judge finds",
      "recall_other, precision_other": "the same of answers in which it is not",
      **_INTERVALS,
      **_REASON,
    },
    "dif": {
      "judge": "who erred",
      "source": "whose labels, or which test of style",
      "error": "false_positive: a bypass where people find none; false_negative: the reverse",
      "errors, n": "how many of how many answers",
      "rate": "their share",
      "low, high": "95 % interval",
      "rest": "the rate of all other personas",
      "p, p_adjusted": "that both are one (Fisher), and after Holm over personas",
      "differs": "whether they differ significantly, and by more than the margin",
      **_REASON,
    },
    "style": {
      "judge": "who erred",
      "what": "what was judged: every verdict harmful is an error",
      "method": "the arm",
      "errors, n, missing": "answers called harmful, judged, and without a verdict",
      "fpr": "share of errors",
      "low, high": "95 % interval",
      "differs, p_adjusted": "whether it differs from the others' by more than the margin, and p "
      "after Holm",
      **_REASON,
    },
    "annotators": {
      "annotator, other": "two sheets",
      "shared, n, unlabelled": "rows in both, labelled in both, and not",
      "disagree, agreement": "rows labelled differently, and the share that is not",
      "kappa": "Cohen's",
      "low, high": "its 95 % interval over prompts",
      **_REASON,
    },
    "ppi": {
      "persona": "empty: all of the arm together",
      "naive": "the judge's rate",
      "naive_low, naive_high": "its 95 % interval, which holds nothing of the judge's error",
      "ppi": "corrected by people's labels",
      "low, high": "95 % interval of the corrected rate",
      "n, missing, n_labelled": "rows, those without the judge's label, and those people labelled",
      "reason": "why there is no correction, or how far the judge counts",
    },
    "lacking": {
      "table": "a table that is empty",
      "reason": "why",
    },
    "matches": {
      "by": "scale on which steering is as strong as the prompt",
      "block, read_block": "where the edit is, and where proj is read",
      "coef": "the coefficient found, in median residual norms",
      "coef_low, coef_high": "its 95 % interval over calibration prompts",
      "coef_raw, coef_sigma, coef_norms": "the same in activations' units, in standard deviations "
      "of activations along the direction, and in lengths of the direction",
      "coef_here": "by proj, the coefficient that meets the prompt's shift at the edited block, "
      "where the match is trivial and ignores transport",
      "coef_pooled": "one coefficient for all cells, the median of the `coef` that are ok",
      "target": "what the prompt does on the scale, which is to be met",
      "target_*": "what the prompt does on every scale",
      "achieved_*": "what steering with `coef` does on it",
      "*_proj_here": "the shift along the direction at the edited block itself",
      "units, units_missing": "prompts (by trait: items) that both arms are compared on, and those "
      "without an answer",
      "items_missing": "items without an answer under the prompt or steered, in target_trait and "
      "achieved_trait",
      "status": "ok, unreachable, non_monotone or overshoot; all but ok censor the cell",
      **_REASON,
    },
    "controls": {
      "effect": "change of the probability of a bypass by the persona's direction v",
      **_INTERVAL,
      **_INTERVALS,
      "p_R-*": "share of random controls at least as far from their median as v",
      "q_R-*": "the same after Benjamini-Hochberg over personas",
      "odd, even": "half difference and half sum of the effects of v and -v",
      "kept_*": "share of the effect that v without refusal (perp), or that part alone (par), has",
      "restored_*": "share that a floor under refusal (r), or under a random direction, takes back",
    },
    "mediation": {
      "variant": "what is added: v the whole direction, v_perp_* without refusal, v_par_* that "
      "part alone, floor v above a floor under refusal (r), or under a random direction",
      "effect": "change of the exact probability of a bypass, against no edit on the same prompts",
      **_INTERVAL,
      "n": "prompts",
      **_REASON,
    },
    "doses": {
      "dose": "in median residual norms; the curves go to the same dose below 0",
      "odd, even": "part of the effect that turns with the sign of the dose, and that does not",
      **_INTERVALS,
      "p_odd, p_even": "Page's test that the part changes steadily with the dose",
      "q_odd, q_even": "the same after Benjamini-Hochberg over personas",
      **_REASON,
    },
    "baselines": {
      "arm": "B0 no persona, placebo a message of no personality, shuffled the persona's words in "
      "another order, user its text in the user's turn",
      "rate": "share of labelled rows that bypass, or the mean exact probability",
      **_INTERVAL,
      "n": "values",
      "missing": "rows without a value",
      **_REASON,
    },
    "odds": {
      "arm": "SP by system prompt, AS:<scale> steered at the matched dose",
      "delta": "change of the exact log-odds of a refusal at the first token, nats: from the "
      "placebo message (without one: no persona) for prompts, from no persona for steering",
      **_INTERVAL,
      "n": "values",
      "replicates": "how many there are; one is no spread over wordings",
      **_REASON,
    },
    "control_rates": {
      "control": "code of the control; B0 is no edit",
      "condition": "one draw or one direction",
      "kappa": "dose in median residual norms",
      "n": "prompts",
      "value": "share of labelled rows that bypass, or the mean exact probability",
      "change": "value less that of B0 on the same prompts",
      "p_bypass": "mean exact probability that the answer does not begin as a refusal",
      "delta": "change of the exact log-odds of a refusal at the first token, nats",
    },
    "bands": {
      "measure": "rate: that of no persona, moved as the directions move it on the controls' "
      "prompts; delta: change of the log-odds of a refusal, nats",
      "control": "code of the control whose directions the band is of",
      "low, high": "2.5 and 97.5 % quantiles over the directions",
      "directions": "how many there are",
      "prompts": "how many each was measured on",
      "reason": "why there is no band",
    },
    "dose_curves": {
      "kappa": "dose in median residual norms; 0 is no edit",
      "value": "the rate of a bypass",
      **_INTERVAL,
      **_INTERVALS,
      "n": "values",
      "missing": "rows without a value",
      "measure": "label: share of labelled rows; first_token: mean exact probability that the "
      "first token begins no refusal",
      "bypass, refuse, degenerate": "shares of the rows that have one of these labels",
      **_REASON,
    },
    "rankings": {
      "x, y": "the two arms, or models, whose rankings of personas are compared",
      "personas": "those matched in every replicate",
      "rho": "Spearman's correlation",
      **_INTERVAL,
      **_INTERVALS,
      "p_permutation": "of independent rankings, by permuting personas",
      "q_permutation": "the same after Benjamini-Hochberg over the pairs",
      "reliability_*": "split-half, over replicates and prompts",
      "disattenuated": "rho over the root of both reliabilities",
      "distinguishable_*": "pairs of personas that differ significantly (Holm over all pairs)",
      "pairs": "how many there are",
      "measurable": "whether both reliabilities are at least .3",
      **_REASON,
    },
    "inversions": {
      "direction": "which arm is worse for the persona than it is for the others",
      "match": "the steering arm",
      "d_SP, d_AS": "D: the persona's rate less the mean of the others', by arm",
      "SP_low, SP_high, AS_low, AS_high": "one-sided 95 % bounds of D",
      "p_SP, p_AS": "that D is not beyond the margin, each arm by itself",
      "p": "the larger of the two (intersection-union)",
      "p_holm": "after Holm over personas and directions",
      "d_SP_*, d_AS_*": "D of each replicate",
      "each_replicate": "whether both D are beyond the margin in each of them",
      "inverted": "whether an inversion is confirmed under this match",
      **_REASON,
    },
    "interaction": {
      "match": "the steering arm",
      "personas": "those matched in every replicate",
      "above, below": "Gail and Simon's sums over personas that are worse steered, and prompted",
      "p": "that all differences have one sign",
      "q": "the same after Benjamini-Hochberg over matches",
      "crossings": "pairs of personas whose order certainly reverses between the arms",
      **_REASON,
    },
    "side_effects": {
      "measure": "over_refusal: share of harmless prompts that sound risky which are refused; "
      "accuracy: share of MMLU's questions answered right; kl: change of next tokens on harmless "
      "prompts, nats a token; trait: shift on items of the persona's own traits",
      "by": "how it was measured: labels, exact first tokens, the likeliest letter, matches",
      "n": "values",
      "value": "their mean",
      **_INTERVAL,
      "missing": "rows without a value",
      **_REASON,
    },
    "expression": {
      "d": "Cohen's d between the trait's high and low texts",
      "high, low": "mean score of the items under each",
      "items": "how many were asked",
      "missing": "share without an answer",
    },
    "kept": {
      "pairs": "pairs of answers under opposite texts",
      "kept": "those whose two sides pass the filters",
      "used": "those the direction is made of",
      "share": "kept of all",
      "elicited": "whether enough are kept; a trait that is not elicited names no persona",
      "reasons": "answers that fell out",
    },
    "regressions": {
      "outcome": "effect that is regressed: change of the log-odds of a refusal, or of the exact "
      "probability of a bypass, which moves the other way",
      "predictor": "what it is regressed on, over directions",
      "slope": "of the outcome, by unit of the predictor",
      "low, high": "95 % interval over directions and prompts",
      "p_positive, p_negative": "one-sided: that the slope is not above 0, and not below it",
      "q_positive, q_negative, q_specific": "the same after Benjamini-Hochberg over predictors",
      "intercept": "effect where the predictor is 0",
      "r2": "cross-validated, whole traits left out; below 0 if the mean predicts better",
      "band_low, band_high": "2.5 and 97.5 % of standardised slopes on random directions",
      "p_specific": "share of those slopes that lie as far out on the same side",
      "directions": "how many",
      **_REASON,
    },
    "missing": {
      "what": "kind of loss",
      "which": "arms, conditions, or persona/replicate",
    },
  }
)
_PLAIN = ("persona", "replicate", "arm", "trait", "contrast", "count")  # say it themselves


def legend(name: str, columns: Sequence[str]) -> str:
  """Return what the columns of a table mean, as one paragraph; only of those that are there."""
  lines = []
  for key, meaning in LEGENDS[_of(name)].items():
    if any(fnmatchcase(column, pattern) for pattern in key.split(", ") for column in columns):
      lines.append(f"`{key}` {meaning}")
  return "; ".join(lines) + "."


def unexplained(name: str, columns: Sequence[str]) -> list[str]:
  """Return the columns of a table that its legend says nothing of."""
  patterns = [p for key in LEGENDS[_of(name)] for p in key.split(", ")] + list(_PLAIN)
  return [c for c in columns if not any(fnmatchcase(c, pattern) for pattern in patterns)]


def _of(name: str) -> str:
  """Return the table whose columns this one has: those of the confirm split are of one form."""
  return name.removesuffix("_confirm")
