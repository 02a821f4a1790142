"""The knobs of an extraction."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from persona_jax.directions.methods import METHODS
from persona_jax.directions.train import Training
from persona_jax.personas.persona import TRAITS
from persona_jax.studies.fields import settings_of

TRAINED = ("preference", "likelihood")
_MEANS = ("diff_means", "mean_centred")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every knob of an extraction.

  Attributes:
    bank: "traits" for the Big Five, or a TOML file of roles (`contrasts`).
    only: names out of the bank; empty for all.
    methods: out of diff_means, mean_centred, those of `directions.methods`, and "preference" and
      "likelihood" for trained vectors.
    source: "prompts" contrasts prompts under opposite texts at their last token; "answers" has
      answers generated under these texts, takes the texts away, and contrasts the answers.
    site: where to read.
    train_questions, held_out_questions: how many questions directions are made of, and are judged
      by; no question is in both.
    answer_tokens: budget of an answer.
    train_block: block at which vectors are trained; None: three fifths of the depth.
    train_steps, train_batch, train_rate: of training, see `directions.train.Training`.
    lat_seed: of LAT's pairing.
    store: whether activations are kept in a TensorStore.
    seed: of everything that is drawn.
  """

  bank: str
  only: tuple[str, ...]
  methods: tuple[str, ...]
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
    for name in ("only", "methods"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    known = (*_MEANS, *METHODS, *TRAINED)
    unknown = [m for m in self.methods if m not in known]
    if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
      raise ValueError(f"methods={self.methods}: name some of {list(dict.fromkeys(known))}, once.")
    if self.source not in ("prompts", "answers"):
      raise ValueError(f"source={self.source!r}: use 'prompts' or 'answers'.")
    if self.train_questions < 4 or self.held_out_questions < 2:
      raise ValueError(
        f"{self.train_questions} questions to train and {self.held_out_questions} held out; at "
        "least 4 and 2 are needed."
      )
    if self.bank == "traits":
      wrong = [name for name in self.only if name not in TRAITS]
      if wrong:
        raise ValueError(f"only={self.only}: the traits are {list(TRAITS)}.")
    elif not Path(self.bank).is_file():
      raise ValueError(f"bank={self.bank!r}: use 'traits' or a TOML file of roles.")
    if self.trained and self.site != "resid_post":
      raise ValueError(f"vectors are trained at 'resid_post', not at {self.site!r}.")

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
