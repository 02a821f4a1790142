"""The knobs of an extraction."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from persona_jax.directions.extract import KNOWN, MEANS, Tokens
from persona_jax.directions.train import Training
from persona_jax.edits.table import SITES
from persona_jax.personas.persona import TRAITS, Pole
from persona_jax.studies.fields import settings_of

TRAINED = ("preference", "likelihood")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of an extraction.

  Attributes:
    bank: "traits" for the Big Five, or a TOML file of roles (`contrasts`).
    only: names out of the bank; empty for all.
    composites: two poles of traits each, such as "C+ A+": extracted from texts that name both, and
      put together of the traits' directions (unit vectors, summed, made a unit vector again). The
      twelve personas P1 to P12 are five traits and "C+ A+", with either sign. Empty with roles.
    methods: out of diff_means, mean_centred, those of `directions.methods`, and "preference" and
      "likelihood" for trained vectors.
    persona_in: where the opposite texts stand: "system", in system messages; "user", at the head of
      the user message, for models without system messages (Gemma 2).
    source: "prompts" contrasts prompts under opposite texts at their last token; "answers" has
      answers generated under these texts, takes the texts away, and contrasts the answers.
    site: where to read.
    train_questions, held_out_questions: how many questions directions are made of, and are judged
      by; no question is in both. Traits have 12, about oneself, for prompts and 120, neutral ones,
      for answers.
    answer_tokens: budget of an answer.
    train_block: block at which vectors are trained; None: three fifths of the depth.
    train_steps, train_batch, train_rate: of training, see `directions.train.Training`.
    lat_seed: of LAT's pairing.
    depth: shares of the depth between which a block is chosen.
    coefficients: that the first method's direction is tried with at its block, both ways, in median
      residual norms; empty for none.
    coefficient_prompts, coefficient_tokens: harmless questions that are then answered, and budget.
    refusal_pairs, refusal_held_out: pairs of a harmful and a harmless question that the refusal
      direction is made of and is chosen by (Arditi et al. 2024), at "resid_post"; no pairs: no such
      direction.
    store: whether activations are kept in a TensorStore.
    seed: of everything that is drawn.
  """

  bank: str
  only: tuple[str, ...]
  composites: tuple[str, ...]
  methods: tuple[str, ...]
  persona_in: Literal["system", "user"]
  source: Literal["prompts", "answers"]
  site: str
  train_questions: int
  held_out_questions: int
  answer_tokens: int
  train_block: int | None
  train_steps: int
  train_batch: int
  train_rate: float
  lat_seed: int
  depth: tuple[float, float]
  coefficients: tuple[float, ...]
  coefficient_prompts: int
  coefficient_tokens: int
  refusal_pairs: int
  refusal_held_out: int
  store: bool
  seed: int

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Settings":
    """Make settings of a config's fields.

    Raises:
      ValueError: a field is unknown or missing, or as the class says.
    """
    return settings_of(cls, fields)

  def __post_init__(self) -> None:
    for name in ("only", "composites", "methods", "depth", "coefficients"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    known = (*KNOWN, *TRAINED)
    unknown = [m for m in self.methods if m not in known]
    if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
      raise ValueError(f"methods={self.methods}: name some of {list(known)}, once.")
    if self.site not in SITES:
      raise ValueError(f"site={self.site!r}: use one of {SITES}.")
    if self.persona_in not in ("system", "user"):
      raise ValueError(f"persona_in={self.persona_in!r}: use 'system' or 'user'.")
    if self.source not in ("prompts", "answers"):
      raise ValueError(f"source={self.source!r}: use 'prompts' or 'answers'.")
    if self.train_questions < 4 or self.held_out_questions < 2:
      raise ValueError(
        f"{self.train_questions} questions to train and {self.held_out_questions} held out; at "
        "least 4 and 2 are needed."
      )
    if len(self.depth) != 2 or not 0 <= self.depth[0] < self.depth[1] <= 1:
      raise ValueError(f"depth={self.depth}: give two shares of the depth, the smaller first.")
    if any(c <= 0 for c in self.coefficients) or (
      self.coefficients and min(self.coefficient_prompts, self.coefficient_tokens) < 1
    ):
      raise ValueError(
        f"coefficients={self.coefficients} with {self.coefficient_prompts} prompts of "
        f"{self.coefficient_tokens} tokens: give numbers above 0 (both signs are tried)."
      )
    if self.refusal_pairs and (self.refusal_pairs < 4 or self.refusal_held_out < 2):
      raise ValueError(
        f"{self.refusal_pairs} pairs and {self.refusal_held_out} held out for the refusal "
        "direction; at least 4 and 2 are needed."
      )
    if self.refusal_pairs and self.site != "resid_post":
      raise ValueError(
        f"site={self.site!r}: the refusal direction is of 'resid_post', so no cosines with it; set "
        "refusal_pairs=0."
      )
    if self.answer_tokens < 1:
      raise ValueError(f"answer_tokens={self.answer_tokens} must be above 0.")
    for loss in self.trained:
      self.training(loss)  # raises for what it cannot be
    if self.store and not set(self.read) - set(MEANS):
      raise ValueError(f"store=True, and no method of {self.methods} reads activations.")
    self._check_composites()
    if self.bank == "traits":
      wrong = [name for name in self.only if name not in TRAITS]
      if wrong:
        raise ValueError(f"only={self.only}: the traits are {list(TRAITS)}.")
    elif not Path(self.bank).is_file():
      raise ValueError(f"bank={self.bank!r}: use 'traits' or a TOML file of roles.")
    if self.trained and self.site != "resid_post":
      raise ValueError(f"vectors are trained at 'resid_post', not at {self.site!r}.")

  def _check_composites(self) -> None:
    """Raise ValueError unless composites are poles of traits that are extracted."""
    if self.composites and self.bank != "traits":
      raise ValueError(f"composites={self.composites} are of traits; the bank is {self.bank!r}.")
    there = self.only or tuple(TRAITS)
    for label in self.composites:
      poles = [Pole.parse(text) for text in label.split()]
      traits = {pole.trait for pole in poles}
      if len(poles) != 2 or len(traits) != 2 or not traits <= set(there):
        raise ValueError(
          f"composite {label!r}: two poles of different traits of {list(there)} fit."
        )

  @property
  def tokens(self) -> Tokens:
    """Where directions are read, and judged."""
    return "last" if self.source == "prompts" else "answer_mean"

  @property
  def trained(self) -> tuple[str, ...]:
    """The methods that train a vector."""
    return tuple(m for m in self.methods if m in TRAINED)

  @property
  def read(self) -> dict[str, dict[str, Any]]:
    """The methods that read activations, with their options."""
    options = {"lat": {"seed": self.lat_seed}}
    return {m: options.get(m, {}) for m in self.methods if m not in TRAINED}

  def training(self, loss: str) -> Training:
    """Return how vectors are trained."""
    return Training(
      loss=loss,  # type: ignore[arg-type]
      steps=self.train_steps,
      batch=self.train_batch,
      learning_rate=self.train_rate,
      seed=self.seed,
    )
