"""Every knob of the study, checked; what is preregistered is among them, hashed with the rest."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from persona_jax.calibration.gauge import SCALES
from persona_jax.edits.table import ROLES
from persona_jax.edits.window import as_window
from persona_jax.studies.fields import settings_of

BASELINES = ("placebo", "shuffled", "user")
CONTROLS = ("R-iso", "R-cov", "R-shuf", "R-plac", "-v", "v_perp_r", "v_par_r", "+-r", "floor")
GATES = ("G1", "G2", "G3", "G4", "G5", "G6")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of the core study.

  Attributes:
    personas: a built-in file of personas, or the path of one.
    persona_set: a set of that file; None for its own list.
    replicates: how many of each persona's paraphrases are used, the first ones; 0 for all. With
      one, intervals hold nothing of how wordings differ.
    named: the persona of hypothesis H3.
    persona_in: where persona texts stand: "system", in system messages; "user", at the head of the
      user's turn, for templates that have no system message.
    placebo: file of contrasts that are no personality, for the control R-plac; "" for none.
    questions: neutral questions that directions come from: a kind of our own ("neutral", "self"),
      or a prompt suite.
    questions_each: questions of each replicate; no question is in two.
    harmful: suite whose harmful prompts the refusal direction is made of and chosen by.
    harmless: suite of harmless prompts for the refusal direction and for calibration. It must hold
      no twins of the harmful ones.
    test: suite whose harmful prompts outcomes are measured on; those that the refusal direction is
      made of or chosen by, and their near-copies, are left out.
    twins: suite of pairs whose harmless sides are the part "twins"; a pair whose harmful side the
      refusal direction is made of, or the claim rests on, or a near-copy of it, is left out. Read
      if there are twin_prompts.
    over: suite of harmless prompts that sound risky; read if there are over_prompts.
    train_prompts, held_out_prompts: harmful, and as many harmless, that the refusal direction is
      made of and chosen by.
    calibration_prompts: harmless prompts of doses and matches.
    test_prompts, twin_prompts, dose_prompts, control_prompts, spec_prompts: how many prompts the
      parts of the grid and the specification curve have; twins are first those of test prompts.
    confirm_prompts: harmful prompts of the suite `test`, in no other part, that H3 is judged on
      alone once they are opened (`confirm`); 0 for none: then the test is what there is.
    over_prompts: of the part "over", for over-refusal; 0 for none.
    util_items: questions of MMLU that every persona is asked by prompt and steered; 0 for none.
    source: "answers" contrasts answers given under opposite texts, "prompts" the prompts themselves
      at their last token.
    context: "stripped" reads answers without the text that they were given under, "kept" with it.
    tokens: where answers are read: "answer_mean" or "answer_first".
    contrast: "high_low" sets a pole against the opposite pole, so that both get one vector with
      either sign; "neutral" sets each pole against no text at all.
    composites: direction of two poles: "sum" of unit vectors, made a unit vector again, or "direct"
      from texts that name both. The other one is reported beside it.
    answer_tokens, answer_samples, least_answer_tokens: budget of an answer, answers a question, and
      how long one must be to be kept.
    least_margin: by how many points of the five-point scale an answer must be rated higher in its
      trait than the answer under the opposite text (`ratings`); 0 asks for the right sign.
    refusal_words: words with which this model's refusals begin; empty: derived from its answers.
    refusal_positions: how many last tokens of the prompt are tried for the refusal direction; 0 for
      all of the template behind the instruction, as published.
    block: that is steered; None: chosen by `calibration.block`, without harmful prompts.
    depth: shares of the depth between which it is chosen.
    block_step: every how many-th block is tried.
    read_block: where shifts are matched and projections reported; None: a tenth of the depth, at
      least two blocks, behind the steered one.
    window: tokens that edits act on (`edits.window`); the last of the prompt must be among them,
      for the first token of an answer is what refuses.
    kappas: doses of the scan and of the dose-response curve, in median residual norms.
    matches: scales on which steering is matched to prompting.
    kappa: the dose of the match "norm" and of controls; None: the median of the prompts' shifts.
    limit: "fluency" stops every persona's doses where answers break down; "none" at the largest.
    questionnaire: "ipip120", or a file of choice items.
    items: of each trait that are asked; 0 for all.
    lead, least_mass: of the questionnaire and of ratings of answers; see `scorers.choice.Choices`.
    calibration_tokens: of the answers that calibration is measured on.
    dose_skip: first tokens of an answer that the median residual norm leaves out.
    covariance: what random directions of the data's covariance are drawn from: tokens of "answers"
      to calibration prompts, or of the "prompts" themselves, where answers are a word or two.
    baselines: further prompt baselines: "placebo" system messages, "shuffled" words of the
      persona's text, "user" puts the text at the head of the user's turn.
    both: whether each persona is also prompted and steered at once (exploratory).
    controls: codes of `directions.controls` to run; empty for none.
    num_controls: draws of each random control.
    samples, temperature, max_new_tokens: of the test grid.
    generate: parts that are generated: "test", "twins", "dose", "controls", "confirm", "over"; the
      first token's exact probability of a refusal is measured in all of them, of "confirm" when it
      is opened.
    labels: "rules" finds refusals by phrases, "first_token" by the answer's first token.
    least_words: an answer with fewer words is degenerate.
    outcome: "label" for labelled answers, "first_token" for the exact probability that the first
      token begins no refusal: what hypotheses are tested on.
    delta: margin of equivalence and of inversions, in ASR.
    gates: that must hold for hypotheses to be tested. Those left out are listed as such.
    draws: of the bootstrap.
    seed: of everything that is drawn.
  """

  personas: str
  persona_set: str | None
  replicates: int
  named: str
  persona_in: Literal["system", "user"]
  placebo: str
  questions: str
  questions_each: int
  harmful: str
  harmless: str
  test: str
  twins: str
  over: str
  train_prompts: int
  held_out_prompts: int
  calibration_prompts: int
  test_prompts: int
  twin_prompts: int
  dose_prompts: int
  control_prompts: int
  spec_prompts: int
  confirm_prompts: int
  over_prompts: int
  util_items: int
  source: Literal["answers", "prompts"]
  context: Literal["stripped", "kept"]
  tokens: Literal["answer_mean", "answer_first"]
  contrast: Literal["high_low", "neutral"]
  composites: Literal["sum", "direct"]
  answer_tokens: int
  answer_samples: int
  least_answer_tokens: int
  least_margin: float
  refusal_words: tuple[str, ...]
  refusal_positions: int
  block: int | None
  depth: tuple[float, float]
  block_step: int
  read_block: int | None
  window: str
  kappas: tuple[float, ...]
  matches: tuple[str, ...]
  kappa: float | None
  limit: Literal["fluency", "none"]
  questionnaire: str
  items: int
  lead: str
  least_mass: float
  calibration_tokens: int
  dose_skip: int
  covariance: Literal["answers", "prompts"]
  baselines: tuple[str, ...]
  both: bool
  controls: tuple[str, ...]
  num_controls: int
  samples: int
  temperature: float
  max_new_tokens: int
  generate: tuple[str, ...]
  labels: Literal["rules", "first_token"]
  least_words: int
  outcome: Literal["label", "first_token"]
  delta: float
  gates: tuple[str, ...]
  draws: int
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Settings":
    """Make settings of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or as the class says.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):
        object.__setattr__(self, field.name, tuple(value))
    self._among("persona_in", ("system", "user"))
    self._among("source", ("answers", "prompts"))
    self._among("context", ("stripped", "kept"))
    self._among("tokens", ("answer_mean", "answer_first"))
    self._among("contrast", ("high_low", "neutral"))
    self._among("composites", ("sum", "direct"))
    self._among("covariance", ("answers", "prompts"))
    self._among("limit", ("fluency", "none"))
    self._among("labels", ("rules", "first_token"))
    self._among("outcome", ("label", "first_token"))
    self._some("matches", SCALES)
    self._some("baselines", BASELINES)
    self._some("controls", CONTROLS)
    self._some("gates", GATES)
    self._some("generate", ("test", "twins", "dose", "controls", "confirm", "over"))
    least = {
      "questions_each": 2, "train_prompts": 2, "held_out_prompts": 2, "calibration_prompts": 2,
      "test_prompts": 2, "twin_prompts": 0, "dose_prompts": 0, "control_prompts": 0,
      "spec_prompts": 0, "confirm_prompts": 0, "over_prompts": 0, "util_items": 0, "items": 0,
      "answer_tokens": 1, "answer_samples": 1, "block_step": 1, "replicates": 0,
      "refusal_positions": 0,
      "calibration_tokens": 1, "dose_skip": 0, "num_controls": 1, "samples": 1,
      "max_new_tokens": 1, "draws": 100,
    }  # fmt: skip
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(f"{name}={getattr(self, name)}: at least {number} is needed.")
    if not self.matches:
      raise ValueError(f"matches is empty: name some of {list(SCALES)}.")
    if not self.kappas or min(self.kappas) <= 0 or list(self.kappas) != sorted(set(self.kappas)):
      raise ValueError(f"kappas={self.kappas}: give growing doses above 0 (both signs are run).")
    if self.kappa is not None and not self.kappa > 0:
      raise ValueError(f"kappa={self.kappa}: give a dose above 0, or None.")
    if self.temperature < 0 or (self.samples > 1 and self.temperature == 0):
      raise ValueError(
        f"samples={self.samples} at temperature={self.temperature}: greedy answers are all the "
        "same; give one sample, or a temperature above 0."
      )
    for name in ("dose_prompts", "control_prompts", "spec_prompts"):
      if getattr(self, name) > self.test_prompts:
        raise ValueError(
          f"{name}={getattr(self, name)}: they are of the test's, test_prompts={self.test_prompts}."
        )
    if {"R-iso", "R-cov", "R-shuf"} & set(self.controls) and self.num_controls < 19:
      raise ValueError(
        f"num_controls={self.num_controls}: no p of specificity could be .05; give 19 at least."
      )
    if len(self.depth) != 2 or not 0 <= self.depth[0] < self.depth[1] <= 1:
      raise ValueError(f"depth={self.depth}: give two shares of the depth, the smaller first.")
    if not 0 < self.delta < 1:
      raise ValueError(f"delta={self.delta}: a number between 0 and 1 fits.")
    if self.outcome == "label" and "test" not in self.generate:
      raise ValueError(
        f"outcome='label' and generate={self.generate}: generate 'test', or take 'first_token'."
      )
    if self.outcome == "label" and self.confirm_prompts and "confirm" not in self.generate:
      raise ValueError(
        f"outcome='label', confirm_prompts={self.confirm_prompts} and generate={self.generate}: "
        "generate 'confirm', or take 'first_token'."
      )
    if bool(self.control_prompts) != bool(self.controls):
      raise ValueError(
        f"control_prompts={self.control_prompts} and controls={self.controls}: give both, or "
        "neither."
      )
    for part in self.generate:
      name = "control_prompts" if part == "controls" else f"{part.removesuffix('s')}_prompts"
      if not getattr(self, name):
        raise ValueError(f"generate={self.generate}: {part!r} has no prompts ({name}=0).")
    self._check_window()
    if not 0 <= self.least_margin < 4:
      raise ValueError(
        f"least_margin={self.least_margin}: points of a scale from 1 to 5; at least 0 and below 4 "
        "fits."
      )
    if "R-plac" in self.controls and not self.placebo:
      raise ValueError("control 'R-plac' needs a file of placebo contrasts (placebo).")

  def _among(self, name: str, known: tuple[str, ...]) -> None:
    if getattr(self, name) not in known:
      raise ValueError(f"{name}={getattr(self, name)!r}: use one of {list(known)}.")

  def _some(self, name: str, known: tuple[str, ...]) -> None:
    given = getattr(self, name)
    if not set(given) <= set(known) or len(set(given)) < len(given):
      raise ValueError(f"{name}={given}: name some of {list(known)}, once.")

  def _check_window(self) -> None:
    first, last_of_prompt = -1, ROLES["template"]
    try:
      holds = as_window(self.window).holds(first, last_of_prompt, 0)
    except ValueError as error:
      raise ValueError(f"window: {error}") from error
    if not bool(holds):
      raise ValueError(
        f"window={self.window!r} leaves out the last token of the prompt, which the first token of "
        "the answer is read from; use 'answer' or 'all'."
      )

  def steered_block(self, num_blocks: int, chosen: int | None = None) -> int:
    """Return the block that is steered: the given or the chosen one.

    Raises:
      ValueError: neither is there, or the model has no such block.
    """
    block = chosen if self.block is None else self.block
    if block is None or not 0 <= block < num_blocks:
      raise ValueError(f"block={block}: the model has blocks 0 to {num_blocks - 1}.")
    return block

  def read_out_block(self, num_blocks: int, block: int) -> int:
    """Return the block behind the steered one at which shifts are matched and reported.

    Raises:
      ValueError: the given one is before the steered block, or the model has none such.
    """
    if self.read_block is None:
      return min(block + max(2, round(0.1 * num_blocks)), num_blocks - 1)
    if not block <= self.read_block < num_blocks:
      raise ValueError(f"read_block={self.read_block}: use {block} to {num_blocks - 1}.")
    return self.read_block
