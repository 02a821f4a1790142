"""What directions are made of: pairs of answers, or prompts, under opposite texts; filtered.

A pair is a question asked under two texts, in one replicate: paraphrase k on its own questions. An
answer is kept only if it can carry the trait: coherent, no refusal, long enough. A pair is kept
only if it shows every trait of its contrast: the answer under the positive text is rated on the
right side of the other one (`ratings`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import tqdm

from persona_jax.data.hashing import content_hash
from persona_jax.engine.model import Model
from persona_jax.personas.poles import Lexicon, Pole
from persona_jax.scorers.degenerate import Degenerate
from persona_jax.scorers.refusal import RefusalRules
from persona_jax.studies.persona_non_grata.material import Material
from persona_jax.studies.persona_non_grata.ratings import LETTERS, Answer, rate
from persona_jax.studies.persona_non_grata.settings import Settings

Chat = list[dict[str, str]]
Texts = tuple[str | None, ...]

LEAST_KEPT = 0.5  # share of pairs below which a trait is not elicited
_LEAST_PAIRS = 2  # of a replicate, from which a vector is made
_RATINGS = ("rating", "second_rating")  # on a contrast's first trait, and on its second


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Two texts, a paraphrase each place; None is no system message.

  Attributes:
    name: of the direction that it gives, such as "C+".
    positive, negative: the texts.
    traits: one or two: a trait's name, such as "conscientiousness", and 1 if the positive text has
      more of it than the negative one, -1 if less.
  """

  name: str
  positive: Texts
  negative: Texts
  traits: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of chats that a direction is made of.

  Attributes:
    positive, negative: chats, ending with answers where answers are read.
    replicate, question: of each pair.
  """

  positive: list[Chat]
  negative: list[Chat]
  replicate: list[int]
  question: list[int]

  @property
  def halves(self) -> list[int]:
    """0 or 1, the half that a pair's question is in, within its replicate."""
    return [q % 2 for q in self.question]


def contrasts_of(settings: Settings, material: Material) -> list[Contrast]:
  """Return the contrasts of all traits, placebo traits and composites.

  Under "high_low" a trait has one, named after its + pole, and of two composites that are each
  other's opposite the first has one; under "neutral" every pole and composite has its own.
  """
  found: dict[str, Contrast] = {}
  groups = [(material.personas, material.traits)]
  if material.placebo:
    groups.append((material.placebo, list(material.placebo[0].lexicon.traits)))
  for personas, traits in groups:
    for trait in traits:
      high, low = Pole(trait, 1), Pole(trait, -1)
      lexicon = personas[0].lexicon
      texts = {pole: _texts(lexicon, pole) for pole in (high, low)}
      if settings.contrast == "high_low":
        found[str(high)] = Contrast(str(high), texts[high], texts[low], _traits(lexicon, (high,)))
      else:
        for pole in (high, low):
          none = (None,) * len(texts[pole])
          found[str(pole)] = Contrast(str(pole), texts[pole], none, _traits(lexicon, (pole,)))
    for persona in personas:
      if len(persona.poles) == 1:
        continue
      reversed_label = persona.contrast().label
      if settings.contrast == "high_low" and reversed_label in found:
        continue
      kind = "high_low" if settings.contrast == "high_low" else "high_neutral"
      recipe = persona.recipe(kind)  # type: ignore[arg-type]
      found[persona.label] = Contrast(
        persona.label,
        recipe.positive,
        recipe.negative,
        _traits(persona.lexicon, persona.poles),
      )
  return list(found.values())


def _texts(lexicon: Lexicon, pole: Pole) -> Texts:
  return tuple(" ".join(halves) for halves in lexicon[pole])


def _traits(lexicon: Lexicon, poles: Sequence[Pole]) -> tuple[tuple[str, int], ...]:
  return tuple((lexicon.traits[pole.trait], pole.sign) for pole in poles)


def asked(text: str | None, question: str, persona_in: str = "system") -> Chat:
  """Return a question under a text, or under none; see `Settings.persona_in`."""
  if persona_in == "user" and text is not None:
    return [{"role": "user", "content": f"{text}\n\n{question}"}]
  system = [] if text is None else [{"role": "system", "content": text}]
  return [*system, {"role": "user", "content": question}]


def prompt_pairs(
  contrast: Contrast, questions: Sequence[Sequence[str]], persona_in: str = "system"
) -> Pairs:
  """Return the prompts of a contrast, to be read at their last token."""
  pairs = Pairs([], [], [], [])
  for k, (x, y) in enumerate(zip(contrast.positive, contrast.negative, strict=True)):
    for q, question in enumerate(questions[k]):
      pairs.positive.append(asked(x, question, persona_in))
      pairs.negative.append(asked(y, question, persona_in))
      pairs.replicate.append(k)
      pairs.question.append(q)
  return pairs


def answer_table(
  model: Model,
  settings: Settings,
  contrasts: Sequence[Contrast],
  material: Material,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Have every question answered under both texts of every contrast.

  A text that several contrasts have is answered once.

  Returns:
    A row a contrast, replicate, question, sample and side: contrast, replicate, question, sample,
    side ("positive", "negative"), prompt (the question), system, text, n_tokens.
  """
  rows: list[dict[str, Any]] = [
    {
      "contrast": contrast.name,
      "replicate": k,
      "question": q,
      "sample": sample,
      "side": side,
      "prompt": question,
      "system": (contrast.positive if side == "positive" else contrast.negative)[k],
    }
    for contrast in contrasts
    for k, questions in enumerate(material.questions)
    for q, question in enumerate(questions)
    for sample in range(settings.answer_samples)
    for side in ("positive", "negative")
  ]
  table = pd.DataFrame(rows)
  keys = [content_hash([r["system"], r["prompt"], r["sample"]]) for r in rows]
  first = {key: n for n, key in reversed(list(enumerate(keys)))}
  unique = sorted(first.values())
  with tqdm.tqdm(total=len(unique), unit="row", disable=not progress, desc="answers") as bar:
    answers = model.generate(
      [asked(rows[n]["system"], rows[n]["prompt"], settings.persona_in) for n in unique],
      max_new_tokens=settings.answer_tokens,
      temperature=1.0,
      seed=[settings.seed + rows[n]["sample"] for n in unique],
      progress=bar.update,
    )
  by_key = {keys[n]: answer for n, answer in zip(unique, answers, strict=True)}
  table["text"] = [by_key[key].text for key in keys]
  table["n_tokens"] = [len(by_key[key].token_ids) for key in keys]
  return table


def judged(
  model: Model,
  settings: Settings,
  contrasts: Sequence[Contrast],
  table: pd.DataFrame,
  *,
  progress: bool = True,
) -> pd.DataFrame:
  """Judge answers: which can carry the trait that they were given under.

  Args:
    table: of `answer_table`.

  Returns:
    The table with rating and second_rating (how high its writer comes across in the contrast's
    first and second trait, 1 to 5; NaN where there is no such trait or no rating), mass (the least
    probability that the options of a rating have together), problem ("" or why it is not used).
  """
  table = _rated(model, settings, contrasts, table, progress)
  return table.assign(problem=_problems(settings, contrasts, table))


def _rated(
  model: Model,
  settings: Settings,
  contrasts: Sequence[Contrast],
  table: pd.DataFrame,
  progress: bool,
) -> pd.DataFrame:
  """Return the table with ratings; an answer that several contrasts have is rated once a trait."""
  traits = {c.name: [trait for trait, _ in c.traits] for c in contrasts}
  wanted = [
    [Answer(row["prompt"], row["text"], trait) for trait in traits[row["contrast"]]]
    if row["text"].strip()
    else []
    for row in table.to_dict("records")
  ]
  unique = list(dict.fromkeys(answer for mine in wanted for answer in mine))
  options = 2 * len(LETTERS) * len(unique)
  with tqdm.tqdm(total=options, unit="option", disable=not progress, desc="ratings") as bar:
    rating_A, mass_A = rate(
      model, unique, lead=settings.lead, least_mass=settings.least_mass, progress=bar.update
    )
  number = {answer: n for n, answer in enumerate(unique)}
  rating_NT = np.full((len(table), len(_RATINGS)), np.nan)
  mass_N = np.full(len(table), np.nan)
  for n, mine in enumerate(wanted):
    at = [number[answer] for answer in mine]
    rating_NT[n, : len(at)] = rating_A[at]
    mass_N[n] = mass_A[at].min() if at else np.nan
  return table.assign(**dict(zip(_RATINGS, rating_NT.T, strict=True)), mass=mass_N)


def _problems(settings: Settings, contrasts: Sequence[Contrast], table: pd.DataFrame) -> list[str]:
  """Return "" or why it is not used for each answer; the two of a pair stand side by side."""
  signs = {c.name: [sign for _, sign in c.traits] for c in contrasts}
  degenerate = Degenerate(min_words=settings.least_words)
  refused = RefusalRules().score(table.assign(finish_reason="stop"))["refused"].fillna(False)
  rating_NT = table[list(_RATINGS)].to_numpy()
  found = []
  for row, refuses, rating_T in zip(table.to_dict("records"), refused, rating_NT, strict=True):
    reason = degenerate.reason_of(row["text"], row["prompt"])
    if reason:
      found.append(reason)
    elif refuses:
      found.append("refusal")
    elif row["n_tokens"] < settings.least_answer_tokens:
      found.append("too short")
    elif np.isnan(rating_T[: len(signs[row["contrast"]])]).any():
      found.append("not rated")
    else:
      found.append("")
  for n, name in enumerate(table["contrast"][::2]):
    pair = slice(2 * n, 2 * n + 2)
    sign_T = signs[name]
    positive_T, negative_T = rating_NT[pair, : len(sign_T)]
    shown = sign_T * (positive_T - negative_T) > settings.least_margin
    if found[pair] == ["", ""] and not shown.all():
      found[pair] = ["does not show the trait more than its opposite"] * 2
  return found


def kept_table(table: pd.DataFrame) -> pd.DataFrame:
  """Count pairs of each contrast: contrast, pairs, kept, used, share, elicited, and reasons.

  A contrast is elicited if half of its pairs are kept, and two at least in each replicate; `used`
  is how many its direction is made of (`answer_pairs`). Reasons are of answers: a pair that does
  not show its trait counts twice.
  """
  pairs = _pairs_of(table)
  rows = []
  for name, mine in pairs.groupby("contrast", sort=False):
    kept = int(mine["kept"].sum())
    enough = bool((mine.groupby("replicate")["kept"].sum() >= _LEAST_PAIRS).all())
    own = table[table["contrast"] == name]
    reasons = own[own["problem"] != ""]["problem"]
    rows.append(
      {
        "contrast": name,
        "pairs": len(mine),
        "kept": kept,
        "used": len(_used(own)),
        "share": kept / len(mine),
        "elicited": enough and kept / len(mine) >= LEAST_KEPT,
        "reasons": ", ".join(f"{why}: {n}" for why, n in reasons.value_counts().items()),
      }
    )
  return pd.DataFrame(rows)


def _pairs_of(table: pd.DataFrame) -> pd.DataFrame:
  """Return a row a pair: kept if neither side has a problem."""
  key = ["contrast", "replicate", "question", "sample"]
  good = (table["problem"] == "").groupby([table[k] for k in key], sort=False).all()
  return good.rename("kept").reset_index()


def _used(mine: pd.DataFrame) -> pd.DataFrame:
  """Return the pairs of one contrast that its direction is made of."""
  kept = _pairs_of(mine)
  speaks = mine.assign(problem=["" if t.strip() else "empty" for t in mine["text"]])
  said = _pairs_of(speaks).rename(columns={"kept": "said"})
  pairs = kept.merge(said, on=["contrast", "replicate", "question", "sample"])
  enough = pairs.groupby("replicate")["kept"].transform("sum") >= _LEAST_PAIRS
  return pairs[pairs["kept"].where(enough, pairs["said"])]


def answer_pairs(table: pd.DataFrame, name: str, context: str, persona_in: str = "system") -> Pairs:
  """Return the pairs of answers of a contrast, with or without the texts they were given under.

  Pairs that are kept; of a replicate that has fewer than two of them all whose answers say
  anything, for there is no vector to be had otherwise: then the contrast is not elicited.

  Args:
    table: of `answer_table`.
    name: of the contrast.
    context: "stripped" or "kept".
    persona_in: see `Settings.persona_in`.

  Raises:
    ValueError: a replicate has no pair of answers that say anything.
  """
  mine = table[table["contrast"] == name]
  use = _used(mine)
  silent = sorted(set(mine["replicate"]) - set(use["replicate"]))
  if silent:
    raise ValueError(f"{name!r}: replicates {silent} have no pair of answers that say anything.")
  by_key: Mapping[tuple[Any, ...], dict[str, Any]] = {
    (r["replicate"], r["question"], r["sample"], r["side"]): r for r in mine.to_dict("records")
  }
  pairs = Pairs([], [], [], [])
  for row in use.to_dict("records"):
    for side, chats in (("positive", pairs.positive), ("negative", pairs.negative)):
      answer = by_key[row["replicate"], row["question"], row["sample"], side]
      system = answer["system"] if context == "kept" else None
      chats.append(
        [
          *asked(system, answer["prompt"], persona_in),
          {"role": "assistant", "content": answer["text"]},
        ]
      )
    pairs.replicate.append(int(row["replicate"]))
    pairs.question.append(int(row["question"]))
  return pairs
